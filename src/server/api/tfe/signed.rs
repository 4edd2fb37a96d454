//! What the signed addresses open: logs, uploads of configurations, states.

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};

use super::addresses::{Purpose, form_name, verify};
use crate::{
    ids::{ConfigurationVersionId, StateVersionId},
    server::{
        api::document::{Params, id},
        app::App,
        domain::{
            configurations, logs,
            states::{self, Form},
        },
        error::{Error, Result},
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/_logs/{stage}/{signature}", get(log))
        .route("/_upload/cv/{id}/{signature}", put(upload_configuration))
        .route("/_sv/{id}/{form}/{signature}", get(download_state).put(upload_state))
}

fn check(app: &App, purpose: Purpose, id: &str, signature: &str) -> Result<()> {
    if verify(app, purpose, id, signature) {
        return Ok(());
    }
    Err(Error::NoSuch("There is nothing at this address: its signature is not valid.".to_owned()))
}

/// Raw bytes of a log from `offset`; held back until there are some.
async fn log(
    State(app): State<App>,
    Path((stage, signature)): Path<(String, String)>,
    Params(query): Params,
) -> Result<Response> {
    check(&app, Purpose::ReadLog, &stage, &signature)?;
    let offset = query.get("offset").and_then(|text| text.parse().ok()).unwrap_or_default();
    let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(logs::MAX_READ);
    let bytes = logs::read(&app, &stage, offset, limit, logs::MAX_WAIT).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], bytes)
        .into_response())
}

async fn upload_configuration(
    State(app): State<App>,
    Path((text, signature)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    check(&app, Purpose::UploadConfiguration, &text, &signature)?;
    let id: ConfigurationVersionId = id(configurations::CLASS, &text)?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    configurations::upload(&app, &id, length, body.into_data_stream()).await?;
    Ok(StatusCode::OK)
}

fn form(text: &str) -> Result<Form> {
    [Form::Raw, Form::Json]
        .into_iter()
        .find(|form| form_name(*form) == text)
        .ok_or_else(|| Error::NoSuch(format!("A state has no form `{text}`.")))
}

async fn download_state(
    State(app): State<App>,
    Path((text, form_text, signature)): Path<(String, String, String)>,
) -> Result<Response> {
    let form = form(&form_text)?;
    check(&app, Purpose::ReadState(form), &text, &signature)?;
    state_content(states::bytes(&app, &id::<StateVersionId>(states::CLASS, &text)?, form).await?)
}

/// A state as an answer. Nobody on the way may keep it.
pub(super) fn state_content(bytes: Vec<u8>) -> Result<Response> {
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], bytes).into_response())
}

async fn upload_state(
    State(app): State<App>,
    Path((text, form_text, signature)): Path<(String, String, String)>,
    body: Body,
) -> Result<StatusCode> {
    let form = form(&form_text)?;
    check(&app, Purpose::WriteState(form), &text, &signature)?;
    let id: StateVersionId = id(states::CLASS, &text)?;
    let limit = usize::try_from(app.policy.max_artifact_bytes).unwrap_or(usize::MAX);
    let bytes = axum::body::to_bytes(body, limit)
        .await
        .map_err(|_| Error::TooLarge(format!("The state broke off, or is larger than {limit} bytes.")))?;
    match form {
        Form::Raw => states::upload(&app, &id, &bytes).await?,
        Form::Json => states::upload_json(&app, &id, &bytes).await?,
    }
    Ok(StatusCode::OK)
}
