//! Prometheus metrics, `/metrics`, `/healthz`, `/readyz`.

/// What the control plane counts and measures; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {}

/// `/metrics`, `/healthz`, `/readyz`.
pub fn router() -> axum::Router<super::app::App> {
    axum::Router::new()
}
