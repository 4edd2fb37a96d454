//! Configuration versions.

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;

use super::{addresses::Addresses, runs::Caller, views};
use crate::server::{
    api::document::{Payload, Reply, decode, id},
    app::App,
    auth::{BaseUrl, UserAuth},
    domain::{
        configurations::{self, CLASS, NewConfiguration},
        workspaces,
    },
    error::Result,
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/workspaces/{id}/configuration-versions", post(create))
        .route("/configuration-versions/{id}", get(read))
        .route("/configuration-versions/{id}/download", get(download))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Attributes {
    auto_queue_runs: Option<bool>,
    speculative: Option<bool>,
    provisional: Option<bool>,
}

async fn create(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    caller: Caller,
    Path(text): Path<String>,
    Payload(resource): Payload,
) -> Result<Reply> {
    let attributes: Attributes = decode(&resource)?;
    let new = NewConfiguration {
        source: caller.source.to_owned(),
        speculative: attributes.speculative.unwrap_or_default(),
        provisional: attributes.provisional.unwrap_or_default(),
        // as in the TFE API; the CLI sends false
        auto_queue_runs: attributes.auto_queue_runs.unwrap_or(true),
    };
    let configuration = configurations::create(&app, &user.account_id, &id(workspaces::CLASS, &text)?, new).await?;
    Ok(Reply::one(views::configuration(&configuration, Addresses::new(&app, &base))).created())
}

async fn read(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let configuration = configurations::find(&mut connection, &user.account_id, &id(CLASS, &text)?).await?;
    Ok(Reply::one(views::configuration(&configuration, Addresses::new(&app, &base))))
}

async fn download(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Response> {
    let configuration = {
        let mut connection = app.store.read().await?;
        configurations::find(&mut connection, &user.account_id, &id(CLASS, &text)?).await?
    };
    let (length, content) = configurations::content(&app, &configuration).await?;
    let headers = [(header::CONTENT_TYPE, "application/gzip".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    Ok((headers, Body::from_stream(content)).into_response())
}
