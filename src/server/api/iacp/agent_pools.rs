//! `/agent-pools`.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::get,
};
use sqlx::AnyConnection;

use super::{
    document::{self, Body, Params},
    views,
};
use crate::{
    api::iacp::{AgentPoolAttributes, kind},
    ids::PoolId,
    jsonapi::Resource,
    server::{
        app::{App, AppState},
        auth::UserAuth,
        domain::{
            environments, links,
            model::Pool,
            pools::{self, Change},
            unit::Unit,
        },
        error::{Error, Result},
        store::{
            self,
            lists::{Match, Selection},
        },
    },
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/agent-pools", get(list).post(create))
        .route("/agent-pools/{id}", get(read).patch(update).delete(delete))
}

async fn list(user: UserAuth, State(app): State<App>, params: Params) -> Result<Response> {
    let selection = select(&params, Selection::new("pools", "id").column("account_id", Match::is(user.account_id)));
    let mut connection = app.store.read().await?;
    let (ids, total) = selection.page(&mut connection, params.page()).await?;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let pools = store::around::pools(&mut connection, &ids).await?;
    let data = views::pools(&app, &mut connection, &pools).await?;
    let mut included = Vec::new();
    for pool in &pools {
        related(&app, &mut connection, &params, pool, &mut included).await?;
    }
    Ok(document::many(data, included, params.page(), total))
}

/// Filters, search and order of the list.
fn select(params: &Params, selection: Selection) -> Selection {
    let filters = [
        ("account", "account_id"),
        ("environment", "environment_id"),
        ("name", "name"),
        ("agent-pool][name", "name"),
        ("agent-pool", "id"),
        ("external-id", "external_id"),
    ];
    let mut selection =
        filters.into_iter().fold(selection, |selection, (name, column)| params.filter(selection, name, column));
    if params.0.filter("vcs-enabled") == Some("true") {
        // there are none: runs are all that pools are for
        selection = selection.column("id", Match::OneOf { values: Vec::new(), null: false });
    }
    if let Some(text) = params.0.get("query").filter(|text| !text.is_empty()) {
        selection = selection.search(&["name", "id"], text);
    }
    params.sort(selection, &[("name", "name"), ("account", "account_id"), ("environment", "scope_key")])
}

async fn create(user: UserAuth, State(app): State<App>, params: Params, body: Body) -> Result<Response> {
    let attributes: AgentPoolAttributes = body.attributes(kind::AGENT_POOLS)?;
    check_vcs(&attributes)?;
    let scope = body.to_one("environment").flatten();
    let mut unit = Unit::begin(&app).await?;
    let now = unit.now;
    let change = change(attributes, &body);
    let changed = pools::create(&mut unit, &user.account_id, scope.as_deref(), change, now).await?;
    // Whoever made it knows.
    unit.changed_a_little(&changed.pool);
    note(&mut unit, &changed.bereft);
    if changed.routes {
        links::reroute(&mut unit, None).await?;
    }
    unit.commit().await?;
    show(&app, &params, StatusCode::CREATED, &changed.pool).await
}

async fn read(user: UserAuth, State(app): State<App>, Path(id): Path<String>, params: Params) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let pool = pools::find(&mut connection, &user.account_id, &id).await?;
    drop(connection);
    show(&app, &params, StatusCode::OK, &pool).await
}

async fn update(
    user: UserAuth,
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    body: Body,
) -> Result<Response> {
    let attributes: AgentPoolAttributes = body.attributes(kind::AGENT_POOLS)?;
    check_vcs(&attributes)?;
    let mut unit = Unit::begin(&app).await?;
    let now = unit.now;
    let pool = pools::find(&mut unit, &user.account_id, &id).await?;
    let changed = pools::update(&mut unit, pool, change(attributes, &body), now).await?;
    unit.changed(&changed.pool.id);
    note(&mut unit, &changed.bereft);
    if changed.routes {
        links::reroute(&mut unit, None).await?;
    }
    unit.commit().await?;
    show(&app, &params, StatusCode::OK, &changed.pool).await
}

async fn delete(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode> {
    let mut unit = Unit::begin(&app).await?;
    let pool = pools::find(&mut unit, &user.account_id, &id).await?;
    pools::delete(&mut unit, &pool).await?;
    unit.commit().await?;
    tracing::info!(pool = %pool.id, name = pool.name, "agent pool deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Those who watch pools hear of those that lost something to another one.
fn note(unit: &mut Unit<'_>, bereft: &[PoolId]) {
    for pool in bereft {
        unit.changed(pool);
    }
}

fn check_vcs(attributes: &AgentPoolAttributes) -> Result<()> {
    if attributes.vcs_enabled == Some(true) {
        return Err(Error::attribute("vcs-enabled", "Pools for VCS providers are not supported: pools run runs."));
    }
    Ok(())
}

fn change(attributes: AgentPoolAttributes, body: &Body) -> Change {
    // read-only members of what a client sends back are passed over
    let AgentPoolAttributes {
        name,
        is_shared,
        default,
        external_id,
        run_settings,
        vcs_enabled: _,
        in_use: _,
        agent_counts: _,
        queue_depth: _,
        created_at: _,
    } = attributes;
    let (environments, workspaces) = (body.to_many("environments"), body.to_many("workspaces"));
    Change { name, is_shared, default, external_id, run_settings, environments, workspaces }
}

async fn show(app: &AppState, params: &Params, status: StatusCode, pool: &Pool) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let mut included = Vec::new();
    related(app, &mut connection, params, pool, &mut included).await?;
    Ok(document::one(status, views::pool(app, &mut connection, pool).await?, included))
}

/// What `include` asks for.
async fn related(
    app: &AppState,
    connection: &mut AnyConnection,
    params: &Params,
    pool: &Pool,
    included: &mut Vec<Resource>,
) -> Result<()> {
    if params.includes("account")
        && let Some(account) = store::accounts::get(connection, &pool.account_id).await?
    {
        document::include(included, views::account(&account)?);
    }
    if params.includes("agents") {
        for agent in store::agents::of_pool(connection, &pool.id).await? {
            document::include(included, views::agent(app, &agent)?);
        }
    }
    let owner = pool.environment_id.iter().filter(|_| params.includes("environment"));
    let listed = pool.environments.iter().filter(|_| params.includes("environments"));
    for id in owner.chain(listed) {
        if let Some(environment) = environments::get(connection, id).await? {
            document::include(included, views::environment(&environment)?);
        }
    }
    if params.includes("workspaces") {
        for linked in store::pools::linked(connection, &pool.id).await? {
            if let Some(placed) = store::workspaces::placed_by_id(connection, &pool.account_id, &linked.id).await? {
                document::include(included, views::workspace(&placed.workspace, placed.resource_count)?);
            }
        }
    }
    Ok(())
}
