//! `/api/iacp/v3`: the Scalr-compatible surface. Attributes and resource types: `crate::api::iacp`.

mod access_tokens;
mod accounts;
mod agent_pools;
mod agents;
mod demand;
mod document;
mod environments;
mod views;
mod workspaces;

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode, routing::get};

use crate::{api::iacp::BASE, server::app::App};

/// Pools with thousands of linked workspaces fit well into this.
const MAX_BODY: usize = 4 << 20;

/// Its routes.
pub fn router() -> Router<App> {
    let routes = Router::new()
        .route("/ping", get(async || StatusCode::NO_CONTENT))
        .merge(accounts::router())
        .merge(agent_pools::router())
        .merge(access_tokens::router())
        .merge(agents::router())
        .merge(demand::router())
        .merge(environments::router())
        .merge(workspaces::router())
        .layer(DefaultBodyLimit::max(MAX_BODY));
    Router::new().nest(BASE, routes)
}
