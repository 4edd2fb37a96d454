//! `/api/iacp/v3`: the Scalr-compatible surface.

/// Its routes.
pub fn router() -> axum::Router<crate::server::app::App> {
    axum::Router::new()
}
