//! Workspaces: reading, creating, settings, locks, deletion.

use axum::{
    Router,
    extract::{FromRequestParts, Path, Request, State},
    http::{StatusCode, header, request::Parts},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::Value;

use super::views;
use crate::{
    api::job::EngineKind,
    ids::WorkspaceId,
    jsonapi::{Query, Resource, ToOne},
    server::{
        api::document::{Params, Payload, Reply, decode, id, json_body},
        app::App,
        auth::UserAuth,
        domain::{
            unit::Unit,
            workspaces::{self, CLASS, Execution, Settings},
        },
        error::{Error, Result},
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/organizations/{name}/workspaces", get(list).post(create))
        .route(
            "/organizations/{name}/workspaces/{workspace}",
            get(read_by_name).patch(update_by_name).delete(delete_by_name),
        )
        .route("/organizations/{name}/workspaces/{workspace}/actions/safe-delete", post(safe_delete_by_name))
        .route("/workspaces/{id}", get(read).patch(update).delete(delete))
        .route("/workspaces/{id}/actions/safe-delete", post(safe_delete))
        .route("/workspaces/{id}/actions/lock", post(lock))
        .route("/workspaces/{id}/actions/unlock", post(unlock))
        .route("/workspaces/{id}/actions/force-unlock", post(force_unlock))
}

/// The engine of the CLI that sends the request: tofu says so, everything else counts as terraform.
struct CallingEngine(EngineKind);

impl FromRequestParts<App> for CallingEngine {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Self::Rejection> {
        let agent = parts.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        Ok(Self(if agent.starts_with("OpenTofu/") { EngineKind::OpenTofu } else { EngineKind::Terraform }))
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Attributes {
    name: Option<String>,
    execution_mode: Option<String>,
    /// What `execution-mode` was once.
    operations: Option<bool>,
    auto_apply: Option<bool>,
    terraform_version: Option<String>,
    /// As the Scalr-compatible surface has it: terraform or opentofu.
    iac_platform: Option<String>,
    working_directory: Option<String>,
}

/// What a request sets.
fn settings(resource: &Resource) -> Result<Settings> {
    let attributes: Attributes = decode(resource)?;
    let execution = match (attributes.execution_mode.as_deref(), attributes.operations) {
        (Some(mode), _) => Some(Execution::parse(mode)?),
        (None, Some(remote)) => Some(if remote { Execution::Remote } else { Execution::Local }),
        (None, None) => None,
    };
    let engine = match attributes.iac_platform.as_deref() {
        None => None,
        Some("terraform") => Some(EngineKind::Terraform),
        Some("opentofu") => Some(EngineKind::OpenTofu),
        Some(_) => {
            return Err(Error::attribute("iac-platform", "The platform must be `terraform` or `opentofu`."));
        }
    };
    Ok(Settings {
        name: attributes.name,
        description: nullable(resource, "description")?,
        pool: pool(resource)?,
        execution,
        auto_apply: attributes.auto_apply,
        engine,
        engine_version: attributes.terraform_version,
        working_directory: attributes.working_directory,
        run_image: None,
    })
}

/// A text attribute where null has a meaning.
fn nullable(resource: &Resource, name: &str) -> Result<Option<Option<String>>> {
    match resource.attributes.get(name) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(Value::String(text)) => Ok(Some(Some(text.clone()))),
        Some(_) => Err(Error::attribute(name, "This must be a text or null.")),
    }
}

/// The pool, as attribute (TFE) or as relationship (Scalr).
fn pool(resource: &Resource) -> Result<Option<Option<String>>> {
    Ok(match resource.related("agent-pool") {
        ToOne::Absent => nullable(resource, "agent-pool-id")?.map(|pool| pool.filter(|pool| !pool.is_empty())),
        ToOne::Null => Some(None),
        ToOne::To(pool) => Some(Some(pool.id)),
    })
}

/// Tags and projects are not kept: a search for them finds nothing.
fn asks_for_tags(query: &Query) -> bool {
    query.get("search[tags]").is_some_and(|tags| !tags.is_empty())
        || query.get("filter[tagged][0][key]").is_some()
        || query.get("filter[project][id]").is_some_and(|project| project != views::NO_PROJECT)
}

async fn list(
    State(app): State<App>,
    user: UserAuth,
    Path(name): Path<String>,
    Params(query): Params,
) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    let (search, page) = (query.get("search[name]").unwrap_or_default(), query.page());
    let (found, total) = workspaces::list(&mut connection, &user.account_id, &name, search, page).await?;
    if asks_for_tags(&query) {
        return Ok(Reply::list(Vec::new(), page.meta(0)));
    }
    Ok(Reply::list(found.iter().map(views::workspace).collect(), page.meta(total)))
}

async fn create(
    State(app): State<App>,
    user: UserAuth,
    Path(name): Path<String>,
    CallingEngine(engine): CallingEngine,
    Payload(resource): Payload,
) -> Result<Reply> {
    let mut settings = settings(&resource)?;
    settings.engine = settings.engine.or(Some(engine));
    let mut unit = Unit::begin(&app).await?;
    let environment = workspaces::organization(&mut unit, &user.account_id, &name).await?;
    let placed = workspaces::create(&mut unit, &user.account_id, &environment.id, &settings).await?;
    unit.commit().await?;
    Ok(Reply::one(views::workspace(&placed)).created())
}

async fn by_name(app: &App, user: &UserAuth, organization: &str, name: &str) -> Result<WorkspaceId> {
    let mut connection = app.store.read().await?;
    let placed = workspaces::find_by_name(&mut connection, &user.account_id, organization, name).await?;
    Ok(placed.workspace.id)
}

async fn show(app: &App, user: &UserAuth, id: &WorkspaceId) -> Result<Reply> {
    let mut connection = app.store.read().await?;
    Ok(Reply::one(views::workspace(&workspaces::find(&mut connection, &user.account_id, id).await?)))
}

async fn read(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    show(&app, &user, &id(CLASS, &text)?).await
}

async fn read_by_name(
    State(app): State<App>,
    user: UserAuth,
    Path((organization, name)): Path<(String, String)>,
) -> Result<Reply> {
    show(&app, &user, &by_name(&app, &user, &organization, &name).await?).await
}

async fn change(app: &App, user: &UserAuth, id: &WorkspaceId, resource: &Resource) -> Result<Reply> {
    let mut unit = Unit::begin(app).await?;
    let placed = workspaces::update(&mut unit, &user.account_id, id, &settings(resource)?).await?;
    unit.commit().await?;
    Ok(Reply::one(views::workspace(&placed)))
}

async fn update(
    State(app): State<App>,
    user: UserAuth,
    Path(text): Path<String>,
    Payload(resource): Payload,
) -> Result<Reply> {
    change(&app, &user, &id(CLASS, &text)?, &resource).await
}

async fn update_by_name(
    State(app): State<App>,
    user: UserAuth,
    Path((organization, name)): Path<(String, String)>,
    Payload(resource): Payload,
) -> Result<Reply> {
    change(&app, &user, &by_name(&app, &user, &organization, &name).await?, &resource).await
}

async fn delete(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<StatusCode> {
    workspaces::delete(&app, &user.account_id, &id(CLASS, &text)?, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_by_name(
    State(app): State<App>,
    user: UserAuth,
    Path((organization, name)): Path<(String, String)>,
) -> Result<StatusCode> {
    let id = by_name(&app, &user, &organization, &name).await?;
    workspaces::delete(&app, &user.account_id, &id, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn safe_delete(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<StatusCode> {
    workspaces::delete(&app, &user.account_id, &id(CLASS, &text)?, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn safe_delete_by_name(
    State(app): State<App>,
    user: UserAuth,
    Path((organization, name)): Path<(String, String)>,
) -> Result<StatusCode> {
    let id = by_name(&app, &user, &organization, &name).await?;
    workspaces::delete(&app, &user.account_id, &id, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn lock(State(app): State<App>, user: UserAuth, Path(text): Path<String>, request: Request) -> Result<Reply> {
    let body = json_body(request).await?;
    let reason = body.pointer("/data/attributes/reason").or_else(|| body.get("reason"));
    let reason = reason.and_then(Value::as_str).map(str::to_owned);
    let placed = workspaces::lock(&app, &user.account_id, &user.id, &id(CLASS, &text)?, reason).await?;
    Ok(Reply::one(views::workspace(&placed)))
}

async fn unlock(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    let placed = workspaces::unlock(&app, &user.account_id, &user.id, &id(CLASS, &text)?, false).await?;
    Ok(Reply::one(views::workspace(&placed)))
}

async fn force_unlock(State(app): State<App>, user: UserAuth, Path(text): Path<String>) -> Result<Reply> {
    let placed = workspaces::unlock(&app, &user.account_id, &user.id, &id(CLASS, &text)?, true).await?;
    Ok(Reply::one(views::workspace(&placed)))
}
