//! `/workspaces`: found, created, linked to pools, locked.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use serde::Deserialize;
use sqlx::AnyConnection;

use super::{
    document::{self, Body, Params},
    views,
};
use crate::{
    api::{
        iacp::{WorkspaceAttributes, kind},
        job::EngineKind,
    },
    ids::WorkspaceId,
    jsonapi::Resource,
    server::{
        app::App,
        auth::UserAuth,
        domain::{
            environments, links, pools,
            unit::Unit,
            workspaces::{self, CLASS, Execution, Settings},
        },
        error::{Error, Result},
        store::{
            self,
            lists::{Match, Selection},
            workspaces::Placed,
        },
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/workspaces", get(list).post(create))
        .route("/workspaces/{id}", get(read).patch(update).delete(delete))
        .route("/workspaces/{id}/actions/lock", post(lock))
        // one client sends actions without a body as GET
        .route("/workspaces/{id}/actions/unlock", post(unlock).get(unlock))
}

fn parse(id: &str) -> Result<WorkspaceId> {
    id.parse().map_err(|_| Error::not_found(CLASS, id))
}

async fn list(user: UserAuth, State(app): State<App>, params: Params) -> Result<Response> {
    let mut selection = Selection::new("workspaces w JOIN environments e ON e.id = w.environment_id", "w.id")
        .column("e.account_id", Match::is(user.account_id.clone()));
    let filters = [
        ("workspace", "w.id"),
        ("name", "w.name"),
        ("environment", "w.environment_id"),
        ("account", "e.account_id"),
        ("agent-pool", "w.pool_id"),
    ];
    for (name, column) in filters {
        selection = params.filter(selection, name, column);
    }
    if let Some(text) = params.0.get("query").filter(|text| !text.is_empty()) {
        selection = selection.search(&["w.name", "w.id"], text);
    }
    let order = [("name", "w.name"), ("created-at", "w.created_at"), ("updated-at", "w.updated_at")];
    let mut connection = app.store.read().await?;
    let (ids, total) = params.sort(selection, &order).page(&mut connection, params.page()).await?;
    let (mut data, mut included) = (Vec::with_capacity(ids.len()), Vec::new());
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for placed in store::around::workspaces(&mut connection, &user.account_id, &ids).await? {
        related(&app, &mut connection, &params, &placed, &mut included).await?;
        data.push(views::workspace(&placed.workspace, placed.resource_count)?);
    }
    Ok(document::many(data, included, params.page(), total))
}

async fn create(user: UserAuth, State(app): State<App>, params: Params, body: Body) -> Result<Response> {
    let settings = settings(&body)?;
    let environment = body.to_one("environment").flatten().unwrap_or_default();
    let mut unit = Unit::begin(&app).await?;
    let unknown = |_| Error::missing_relation("environment", environments::CLASS, &environment);
    let environment = environments::find(&mut unit, &user.account_id, &environment).await.map_err(unknown)?;
    let placed = workspaces::create(&mut unit, &user.account_id, &environment.id, &settings).await?;
    unit.commit().await?;
    show(&app, &params, StatusCode::CREATED, &placed).await
}

async fn read(user: UserAuth, State(app): State<App>, Path(id): Path<String>, params: Params) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let placed = workspaces::find(&mut connection, &user.account_id, &parse(&id)?).await?;
    drop(connection);
    show(&app, &params, StatusCode::OK, &placed).await
}

async fn update(
    user: UserAuth,
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    body: Body,
) -> Result<Response> {
    let settings = settings(&body)?;
    let mut unit = Unit::begin(&app).await?;
    let placed = workspaces::update(&mut unit, &user.account_id, &parse(&id)?, &settings).await?;
    unit.commit().await?;
    show(&app, &params, StatusCode::OK, &placed).await
}

/// Protected while it manages resources, as Scalr's workspaces are by default.
async fn delete(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode> {
    workspaces::delete(&app, &user.account_id, &parse(&id)?, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
struct Lock {
    reason: Option<String>,
}

async fn lock(
    user: UserAuth,
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    body: Option<Json<Lock>>,
) -> Result<Response> {
    let reason = body.and_then(|Json(lock)| lock.reason).filter(|reason| !reason.is_empty());
    let placed = workspaces::lock(&app, &user.account_id, &user.id, &parse(&id)?, reason).await?;
    show(&app, &params, StatusCode::OK, &placed).await
}

async fn unlock(user: UserAuth, State(app): State<App>, Path(id): Path<String>, params: Params) -> Result<Response> {
    let placed = workspaces::unlock(&app, &user.account_id, &user.id, &parse(&id)?, false).await?;
    show(&app, &params, StatusCode::OK, &placed).await
}

fn settings(body: &Body) -> Result<Settings> {
    let attributes: WorkspaceAttributes = body.attributes(kind::WORKSPACES)?;
    let execution = attributes.execution_mode.as_deref().map(Execution::parse).transpose()?;
    let engine = match attributes.iac_platform.as_deref() {
        None => None,
        Some(name) => Some(
            [EngineKind::Terraform, EngineKind::OpenTofu]
                .into_iter()
                .find(|engine| engine.as_str() == name)
                .ok_or_else(|| Error::attribute("iac-platform", "The platform must be `terraform` or `opentofu`."))?,
        ),
    };
    Ok(Settings {
        name: attributes.name,
        description: None,
        pool: body.to_one(links::RELATION),
        execution,
        auto_apply: attributes.auto_apply,
        engine,
        engine_version: attributes.terraform_version,
        // null: the configuration's root
        working_directory: attributes.working_directory.map(Option::unwrap_or_default),
        run_image: attributes.run_image.map(|image| image.filter(|image| !image.is_empty())),
    })
}

async fn show(app: &App, params: &Params, status: StatusCode, placed: &Placed) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let mut included = Vec::new();
    related(app, &mut connection, params, placed, &mut included).await?;
    Ok(document::one(status, views::workspace(&placed.workspace, placed.resource_count)?, included))
}

/// What `include` asks for.
async fn related(
    app: &App,
    connection: &mut AnyConnection,
    params: &Params,
    placed: &Placed,
    included: &mut Vec<Resource>,
) -> Result<()> {
    if params.includes("environment")
        && let Some(environment) = environments::get(connection, &placed.workspace.environment_id).await?
    {
        document::include(included, views::environment(&environment)?);
    }
    if params.includes(links::RELATION)
        && let Some(id) = &placed.workspace.pool_id
        && let Some(pool) = pools::get(connection, id).await?
    {
        document::include(included, views::pool(app, connection, &pool).await?);
    }
    Ok(())
}
