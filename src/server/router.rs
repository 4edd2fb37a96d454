//! All surfaces as one router.

use std::{any::Any, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio_util::sync::CancellationToken;
use tower_http::timeout::TimeoutLayer;

use super::{api, app::App, error::Error, metrics, ui};

/// Longest time for one request: uploads of large configurations and states included.
const REQUEST_LIMIT: Duration = Duration::from_secs(600);

/// Every route of the control plane.
pub fn router(app: App) -> Router {
    Router::new()
        .merge(api::agent::router())
        .merge(api::iacp::router())
        .merge(api::tfe::router())
        .merge(metrics::router())
        .merge(ui::router())
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(app.clone(), metrics::measure))
        .layer(middleware::from_fn(contain_panics))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_LIMIT))
        .with_state(app)
}

async fn unknown_path(request: Request) -> Error {
    Error::NoSuch(format!("There is nothing at {}.", request.uri().path()))
}

/// Part of every request: cancelled when nobody waits for its answer any more. What it writes is not cut short by
/// that, but a call that is held should end, and take nothing for a caller that has gone.
#[derive(Debug, Clone)]
pub struct CallerGone(pub CancellationToken);

/// A defect in one handler answers 500 and leaves the others alone. A handler goes on when its caller hangs up, so
/// that no commit is cut off from what has to follow it.
async fn contain_panics(mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let gone = CancellationToken::new();
    request.extensions_mut().insert(CallerGone(gone.clone()));
    let _gone = gone.drop_guard();
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => {
            let reason = error.try_into_panic().map_or_else(|_| "cancelled".to_owned(), |panic| panic_text(&*panic));
            tracing::error!(path, reason, "a request handler failed");
            Error::Internal("a request handler panicked").into_response()
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".to_owned())
}
