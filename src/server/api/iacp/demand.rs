//! What an operator needs to scale pools: `crate::api::iacp::demand`. Plain JSON.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};

use super::document::Params;
use crate::{
    api::iacp::demand::{DemandAgent, FailQueued, FailedJobs, PoolChanges, PoolDemand, PoolDemands, RetireToken},
    server::{
        app::App,
        auth::UserAuth,
        domain::{agents, demand, pools, tokens, unit::Unit},
        error::{Error, Result},
        router::CallerGone,
    },
};

/// Pools of one question.
const MOST_POOLS: usize = 200;

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/agent-pools/changes", get(changes))
        .route("/agent-pools/{id}/demand", get(of_pool))
        .route("/agent-pools/demand", get(of_pools))
        .route("/agent-pools/{id}/actions/fail-queued", post(fail_queued))
        .route("/agents/{id}/actions/cordon", post(cordon))
        .route("/agents/{id}/actions/uncordon", post(uncordon))
        .route("/access-tokens/{id}/actions/retire", post(retire))
}

fn body<T: serde::de::DeserializeOwned>(bytes: &Bytes) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::Unprocessable(format!("The body cannot be read: {error}.")))
}

async fn changes(
    user: UserAuth,
    State(app): State<App>,
    Extension(caller): Extension<CallerGone>,
    params: Params,
) -> Result<Json<PoolChanges>> {
    let wait = match params.0.get("wait-ms") {
        None => 0,
        Some(text) => {
            text.parse().map_err(|_| Error::Malformed("`wait-ms` is a number of milliseconds.".to_owned()))?
        }
    };
    let cursor = params.0.get("since");
    let news =
        demand::changes(&app, &user.account_id, cursor, Duration::from_millis(wait), caller.0.cancelled()).await?;
    Ok(Json(news))
}

async fn of_pool(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<Json<PoolDemand>> {
    let mut snapshot = app.store.snapshot().await?;
    let pool = pools::find(&mut snapshot, &user.account_id, &id).await?;
    Ok(Json(demand::of_pool(&app, &mut snapshot, &pool, app.clock.now_ms()).await?))
}

async fn of_pools(user: UserAuth, State(app): State<App>, params: Params) -> Result<Json<PoolDemands>> {
    let mut snapshot = app.store.snapshot().await?;
    let now = app.clock.now_ms();
    let mut demands = PoolDemands::new();
    for id in params.0.get("pools").unwrap_or_default().split(',').take(MOST_POOLS) {
        match pools::find(&mut snapshot, &user.account_id, id).await {
            Ok(pool) => {
                let demand = demand::of_pool(&app, &mut snapshot, &pool, now).await?;
                demands.insert(pool.id, demand);
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(demands))
}

async fn fail_queued(
    user: UserAuth,
    State(app): State<App>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Json<FailedJobs>> {
    let request: FailQueued = body(&bytes)?;
    let mut connection = app.store.read().await?;
    let pool = pools::find(&mut connection, &user.account_id, &id).await?;
    drop(connection);
    Ok(Json(FailedJobs { failed: demand::fail_queued(&app, &pool.id, &request).await? }))
}

async fn cordon(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<Json<DemandAgent>> {
    set_cordoned(&user, &app, &id, true).await
}

async fn uncordon(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<Json<DemandAgent>> {
    set_cordoned(&user, &app, &id, false).await
}

async fn set_cordoned(user: &UserAuth, app: &App, id: &str, cordoned: bool) -> Result<Json<DemandAgent>> {
    let mut unit = Unit::begin(app).await?;
    let (agent, _) = agents::find(&mut unit, &user.account_id, id).await?;
    let (agent, jobs) = agents::set_cordoned(&mut unit, &agent.id, cordoned).await?;
    let now = unit.now;
    unit.commit().await?;
    Ok(Json(demand::view(app, jobs, agent, now)))
}

async fn retire(user: UserAuth, State(app): State<App>, Path(id): Path<String>, bytes: Bytes) -> Result<StatusCode> {
    let RetireToken { successor } = body(&bytes)?;
    let mut unit = Unit::begin(&app).await?;
    let token = tokens::find(&mut unit, &user.account_id, &user.id, &id).await?;
    let moved = tokens::retire(&mut unit, &token, &successor).await?;
    unit.commit().await?;
    tracing::info!(token = %token.id, %successor, agents = moved, "pool token retired");
    Ok(StatusCode::NO_CONTENT)
}
