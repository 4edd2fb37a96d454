//! Variables of workspaces. The values of sensitive ones are never shown.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde::Deserialize;
use serde_json::Value;

use super::views;
use crate::{
    api::job::Category,
    ids::{VariableId, WorkspaceId},
    jsonapi::Resource,
    server::{
        api::document::{Payload, Reply, decode, id},
        app::App,
        auth::UserAuth,
        domain::{
            variables::{self, Settings},
            workspaces,
        },
        error::{Error, Result},
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/workspaces/{id}/vars", get(list).post(create))
        .route("/workspaces/{id}/vars/{variable}", get(read).patch(update).delete(delete))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Attributes {
    key: Option<String>,
    value: Option<String>,
    category: Option<Category>,
    hcl: Option<bool>,
    sensitive: Option<bool>,
}

fn settings(resource: &Resource) -> Result<Settings> {
    let attributes: Attributes = decode(resource)?;
    let description = match resource.attributes.get("description") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.clone())),
        Some(_) => return Err(Error::attribute("description", "This must be a text or null.")),
    };
    let Attributes { key, value, category, hcl, sensitive } = attributes;
    Ok(Settings { key, value, category, hcl, sensitive, description })
}

fn workspace_id(text: &str) -> Result<WorkspaceId> {
    id(workspaces::CLASS, text)
}

fn ids((workspace, variable): &(String, String)) -> Result<(WorkspaceId, VariableId)> {
    Ok((workspace_id(workspace)?, id("Variable", variable)?))
}

async fn list(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    let found = variables::list(&app, &user.account_id, &workspace_id(&text)?).await?;
    Ok(Reply::whole_list(found.iter().map(views::variable).collect()))
}

async fn create(
    State(app): State<App>,
    user: UserAuth,
    Path(text): Path<String>,
    Payload(resource): Payload,
) -> Result<Reply> {
    let settings = settings(&resource)?;
    let variable = variables::create(&app, &user.account_id, &workspace_id(&text)?, settings).await?;
    Ok(Reply::one(views::variable(&variable)).created())
}

async fn read(State(app): State<App>, user: UserAuth, Path(path): Path<(String, String)>) -> Result<Reply> {
    let (workspace, id) = ids(&path)?;
    Ok(Reply::one(views::variable(&variables::get(&app, &user.account_id, &workspace, &id).await?)))
}

async fn update(
    State(app): State<App>,
    user: UserAuth,
    Path(path): Path<(String, String)>,
    Payload(resource): Payload,
) -> Result<Reply> {
    let (workspace, id) = ids(&path)?;
    let settings = settings(&resource)?;
    Ok(Reply::one(views::variable(&variables::update(&app, &user.account_id, &workspace, &id, settings).await?)))
}

async fn delete(State(app): State<App>, user: UserAuth, Path(path): Path<(String, String)>) -> Result<StatusCode> {
    let (workspace, id) = ids(&path)?;
    variables::delete(&app, &user.account_id, &workspace, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
