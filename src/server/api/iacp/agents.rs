//! `/agents`: who is there. Agents come by registering; only ones that are gone can be deleted.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::get,
};

use super::{
    document::{self, Params},
    views,
};
use crate::server::{
    app::App,
    auth::UserAuth,
    domain::{agents, pools, unit::Unit},
    error::Result,
    store::{
        self,
        lists::{Match, Selection},
    },
};

pub(super) fn router() -> Router<App> {
    Router::new().route("/agents", get(list)).route("/agents/{id}", get(read).delete(delete))
}

async fn list(user: UserAuth, State(app): State<App>, params: Params) -> Result<Response> {
    let mut selection = Selection::new("agents a JOIN pools p ON p.id = a.pool_id", "a.id")
        .column("p.account_id", Match::is(user.account_id));
    let filters = [
        ("agent", "a.id"),
        ("agent-pool", "a.pool_id"),
        ("pool", "a.pool_id"),
        ("agent][name", "a.name"),
        ("name", "a.name"),
    ];
    for (name, column) in filters {
        selection = params.filter(selection, name, column);
    }
    if let Some(text) = params.0.get("query").filter(|text| !text.is_empty()) {
        selection = selection.search(&["a.name", "a.id"], text);
    }
    let order = [("name", "a.name"), ("created-at", "a.created_at"), ("last-seen-at", "a.last_seen_at")];
    let mut connection = app.store.read().await?;
    let (ids, total) = params.sort(selection, &order).page(&mut connection, params.page()).await?;
    let (mut data, mut included) = (Vec::with_capacity(ids.len()), Vec::new());
    for id in ids.iter().filter_map(|id| id.parse().ok()) {
        let Some(agent) = store::agents::get(&mut connection, &id).await? else { continue };
        data.push(views::agent(&app, &agent)?);
        if params.includes("pool")
            && let Some(pool) = pools::get(&mut connection, &agent.pool_id).await?
        {
            document::include(&mut included, views::pool(&app, &mut connection, &pool).await?);
        }
    }
    Ok(document::many(data, included, params.page(), total))
}

async fn read(user: UserAuth, State(app): State<App>, Path(id): Path<String>, params: Params) -> Result<Response> {
    let mut connection = app.store.read().await?;
    let (agent, pool) = agents::find(&mut connection, &user.account_id, &id).await?;
    let mut included = Vec::new();
    if params.includes("pool") {
        included.push(views::pool(&app, &mut connection, &pool).await?);
    }
    Ok(document::one(StatusCode::OK, views::agent(&app, &agent)?, included))
}

async fn delete(user: UserAuth, State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode> {
    let mut unit = Unit::begin(&app).await?;
    let (agent, _) = agents::find(&mut unit, &user.account_id, &id).await?;
    agents::remove(&mut unit, &agent).await?;
    unit.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
