//! State versions and their outputs.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tower_http::set_header::SetResponseHeaderLayer;

use super::{addresses::Addresses, signed::state_content, views};
use crate::{
    ids::{OutputId, StateVersionId, WorkspaceId},
    jsonapi::Query,
    server::{
        api::document::{Params, Payload, Reply, decode, id},
        app::App,
        auth::{BaseUrl, UserAuth},
        domain::{
            model::StateVersion,
            states::{self, CLASS, Form, NewState},
            workspaces,
        },
        error::{Error, Result},
    },
};

/// Seconds between the states that a locally running engine writes while it works.
const SNAPSHOT_HEADER: HeaderName = HeaderName::from_static("x-terraform-snapshot-interval");
const SNAPSHOT_INTERVAL: HeaderValue = HeaderValue::from_static("20");

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/workspaces/{id}/state-versions", get(list_of_workspace).post(create))
        .route("/workspaces/{id}/current-state-version", get(current))
        .route("/workspaces/{id}/current-state-version-outputs", get(current_outputs))
        .route("/state-versions", get(list))
        .route("/state-versions/{id}", get(read))
        .route("/state-versions/{id}/outputs", get(outputs))
        .route("/state-versions/{id}/download", get(download))
        .route("/state-version-outputs/{id}", get(output))
        .layer(SetResponseHeaderLayer::overriding(SNAPSHOT_HEADER, SNAPSHOT_INTERVAL))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Attributes {
    serial: Option<i64>,
    md5: Option<String>,
    lineage: Option<String>,
    force: Option<bool>,
    state: Option<String>,
    json_state: Option<String>,
}

fn base64(name: &'static str, text: Option<String>) -> Result<Option<Vec<u8>>> {
    let decode = |text: String| STANDARD.decode(text).map_err(|_| Error::attribute(name, "This is not base64."));
    text.filter(|text| !text.is_empty()).map(decode).transpose()
}

fn new_state(attributes: Attributes) -> Result<NewState> {
    let required = |name| move || Error::attribute(name, "This is needed to store a state.");
    Ok(NewState {
        serial: attributes.serial.ok_or_else(required("serial"))?,
        md5: attributes.md5.filter(|md5| !md5.is_empty()).ok_or_else(required("md5"))?,
        lineage: attributes.lineage.unwrap_or_default(),
        force: attributes.force.unwrap_or_default(),
        bytes: base64("state", attributes.state)?,
        json: base64("json-state", attributes.json_state)?,
    })
}

fn reply(app: &App, base: &str, state: &StateVersion, query: &Query) -> Result<Reply> {
    let outputs = states::outputs(app, state)?;
    let included =
        if query.includes().any(|path| path == "outputs") { views::outputs(&state.id, &outputs) } else { Vec::new() };
    Ok(Reply::one(views::state(state, outputs.len(), Addresses::new(app, base))).including(included))
}

async fn create(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
    Payload(resource): Payload,
) -> Result<Reply> {
    let new = new_state(decode(&resource)?)?;
    let state = states::create(&app, &user.account_id, &user.id, &id(workspaces::CLASS, &text)?, new).await?;
    Ok(reply(&app, &base, &state, &Query::default())?.created())
}

async fn find(app: &App, user: &UserAuth, text: &str) -> Result<StateVersion> {
    let mut connection = app.store.read().await?;
    states::find(&mut connection, &user.account_id, &id(CLASS, text)?).await
}

async fn find_current(app: &App, user: &UserAuth, text: &str) -> Result<StateVersion> {
    let mut connection = app.store.read().await?;
    states::current(&mut connection, &user.account_id, &id(workspaces::CLASS, text)?).await
}

async fn read(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
    Params(query): Params,
) -> Result<Reply> {
    reply(&app, &base, &find(&app, &user, &text).await?, &query)
}

async fn current(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
    Params(query): Params,
) -> Result<Reply> {
    reply(&app, &base, &find_current(&app, &user, &text).await?, &query)
}

async fn outputs(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    let state = find(&app, &user, &text).await?;
    Ok(Reply::whole_list(views::outputs(&state.id, &states::outputs(&app, &state)?)))
}

async fn current_outputs(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    let state = find_current(&app, &user, &text).await?;
    Ok(Reply::whole_list(views::outputs(&state.id, &states::outputs(&app, &state)?)))
}

/// One output, with its value also when it is sensitive.
async fn output(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    let id: OutputId = id("State version output", &text)?;
    let output = states::output(&app, &user.account_id, &id).await?;
    Ok(Reply::one(views::output(id.as_str(), &output, true)))
}

async fn download(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Response> {
    let state: StateVersionId = find(&app, &user, &text).await?.id;
    Ok(state_content(states::bytes(&app, &state, Form::Raw).await?)?.into_response())
}

async fn page(app: &App, base: &str, workspace: &WorkspaceId, query: &Query) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let page = query.page();
    let (found, total) = states::list(&mut connection, workspace, page).await?;
    let addresses = Addresses::new(app, base);
    let views = found
        .iter()
        .map(|state| Ok(views::state(state, states::outputs(app, state)?.len(), addresses)))
        .collect::<Result<_>>()?;
    Ok(Reply::list(views, page.meta(total)))
}

async fn list_of_workspace(
    State(app): State<App>,
    user: UserAuth,
    BaseUrl(base): BaseUrl,
    Path(text): Path<String>,
    Params(query): Params,
) -> Result<Reply> {
    let workspace = {
        let mut connection = app.store.read().await?;
        workspaces::find(&mut connection, &user.account_id, &id(workspaces::CLASS, &text)?).await?
    };
    page(&app, &base, &workspace.workspace.id, &query).await
}

/// States of the workspace that `filter[organization][name]` and `filter[workspace][name]` name.
async fn list(State(app): State<App>, user: UserAuth, BaseUrl(base): BaseUrl, Params(query): Params) -> Result<Reply> {
    let (organization, name) = (query.get("filter[organization][name]"), query.get("filter[workspace][name]"));
    let (Some(organization), Some(name)) = (organization, name) else {
        return Err(Error::Malformed(
            "State versions are listed by `filter[organization][name]` and `filter[workspace][name]`.".to_owned(),
        ));
    };
    let workspace = {
        let mut connection = app.store.read().await?;
        workspaces::find_by_name(&mut connection, &user.account_id, organization, name).await?
    };
    page(&app, &base, &workspace.workspace.id, &query).await
}
