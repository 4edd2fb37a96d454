//! `/healthz`: the process lives. `/readyz`: it can do its work. `/metrics`: for Prometheus.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::scrape;
use crate::{
    server::{
        app::App,
        auth::UserAuth,
        error::{Error, Result},
    },
    telemetry::Chain,
};

/// Load balancers ask every few seconds and give up soon.
const DATABASE_DEADLINE: Duration = Duration::from_secs(2);

/// The content type of the exposition format that we write.
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// `/metrics`, `/healthz`, `/readyz`.
pub fn router() -> Router<App> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).route("/metrics", get(metrics))
}

async fn healthz() -> &'static str {
    "ok\n"
}

/// Names what is pending, so that nobody has to guess.
async fn readyz(State(app): State<App>) -> Response {
    let mut pending = Vec::new();
    if app.closing.is_cancelled() {
        pending.push("shutting down");
    }
    match tokio::time::timeout(DATABASE_DEADLINE, app.store.ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %Chain(&error), "the database does not answer");
            pending.push("the database answers with an error");
        }
        Err(_) => pending.push("the database does not answer within 2 s"),
    }
    if pending.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", pending.join(", "))).into_response()
}

/// Pools' names are nobody else's business: it takes a user's token, which Prometheus can send.
async fn metrics(_: UserAuth, State(app): State<App>) -> Result<Response> {
    let pools = scrape::pools(&app).await?;
    let body = app.metrics.encode(&pools).map_err(|_| Error::Internal("the metrics cannot be written as text"))?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response())
}
