//! Web pages.

/// The pages.
pub fn router() -> axum::Router<super::app::App> {
    axum::Router::new()
}
