//! Liveness, readiness and metrics over plain HTTP: `/healthz`, `/readyz`, `/metrics`. Readiness names what it waits for.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use super::metrics::Metrics;
use crate::shutdown::Shutdown;

/// What the operator still waits for, by part, in words. Nothing: it is ready.
#[derive(Debug, Clone, Default)]
pub struct Pending(Arc<Mutex<BTreeMap<String, String>>>);

impl Pending {
    /// `part` waits for `what`.
    pub fn waits(&self, part: &str, what: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part.to_owned(), what.into());
    }

    /// `part` waits no more.
    pub fn done(&self, part: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    /// Everything that is waited for, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.iter().map(|(part, what)| format!("{part}: {what}")).collect()
    }
}

/// Serves until `shutdown.drain`; says which address it listens on.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    pending: Pending,
    metrics: Metrics,
    shutdown: &Shutdown,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let ready = move || {
        let lines = pending.lines();
        async move {
            if lines.is_empty() {
                (StatusCode::OK, "ready\n".to_owned())
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n")
            }
        }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || async move { metrics.text() }));
    let stop = shutdown.drain.clone();
    shutdown.spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::warn!(%error, "the health port is closed");
        }
    });
    Ok(bound)
}
