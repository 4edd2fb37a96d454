//! `/workspaces`: found, created, linked to pools.

use axum::Router;

use crate::server::app::App;

pub(super) fn router() -> Router<App> {
    Router::new()
}
