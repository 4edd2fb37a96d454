//! What the control plane counts and measures, for Prometheus. Label sets are bounded: pools, words of our
//! own, matched paths; never ids of runs or texts of clients.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, histogram::Histogram, info::Info},
    registry::Registry,
};
use tokio::time::Instant;

use super::app::App;
use crate::api::agent::reason;

mod health;
mod scrape;

pub use health::router;

type Labels<const N: usize> = [(&'static str, String); N];
type Durations<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// From an answer out of memory to a slow disk.
const REQUEST_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
/// From an idle agent's long poll to a pool without agents.
const WAIT_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];
/// From an empty plan to the longest apply allowed.
const RUN_SECONDS: [f64; 12] = [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0];

/// The handles; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Durations<3>,
    claim_latency: Histogram,
    start_latency: Histogram,
    run_duration: Durations<1>,
    runs: Family<Labels<2>, Counter>,
    leases_expired: Family<Labels<1>, Counter>,
    fenced_writes: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("terrapool");
        let requests: Durations<3> = Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS));
        let run_duration: Durations<1> = Family::new_with_constructor(|| Histogram::new(RUN_SECONDS));
        let claim_latency = Histogram::new(WAIT_SECONDS);
        let start_latency = Histogram::new(WAIT_SECONDS);
        let (runs, leases_expired) = (Family::<Labels<2>, Counter>::default(), Family::<Labels<1>, Counter>::default());
        let fenced_writes = Counter::default();
        registry.register("build", "This program", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        registry.register(
            "http_request_duration_seconds",
            "Time to the start of an answer, by matched path; long polls wait on purpose",
            requests.clone(),
        );
        registry.register(
            "pool_claim_latency_seconds",
            "Time that jobs waited in the queue until an agent claimed them",
            claim_latency.clone(),
        );
        registry.register(
            "run_start_latency_seconds",
            "Time from an agent's claim until its run container was asked for",
            start_latency.clone(),
        );
        registry.register("run_duration_seconds", "Time that stages took on their agents", run_duration.clone());
        // the encoder adds `_total` to counters
        registry.register("runs", "Runs that ended, by final status and reason", runs.clone());
        registry.register("lease_expired", "Jobs whose agent was lost", leases_expired.clone());
        registry.register(
            "fenced_writes",
            "Writes refused because the job was no longer the agent's",
            fenced_writes.clone(),
        );
        Self(Arc::new(Inner {
            registry,
            requests,
            claim_latency,
            start_latency,
            run_duration,
            runs,
            leases_expired,
            fenced_writes,
        }))
    }
}

impl Metrics {
    /// An agent claimed a job that had waited for so long.
    pub fn claimed(&self, waited: Duration) {
        self.0.claim_latency.observe(waited.as_secs_f64());
    }

    /// The run container of a claimed job was asked for, so long after the claim.
    pub fn started(&self, after: Duration) {
        self.0.start_latency.observe(after.as_secs_f64());
    }

    /// A stage (`plan` or `apply`) ended on its agent after that time.
    pub fn stage_ended(&self, stage: &'static str, took: Duration) {
        self.0.run_duration.get_or_create(&[("stage", stage.to_owned())]).observe(took.as_secs_f64());
    }

    /// A run reached its final `status`; `reason` is its error code, or empty. Codes come from agents: one that is
    /// not ours is counted as `other`.
    pub fn run_ended(&self, status: &'static str, reason: &str) {
        let known = reason::ALL.into_iter().find(|known| *known == reason);
        let reason = known.unwrap_or(if reason.is_empty() { "" } else { "other" });
        self.0.runs.get_or_create(&[("result", status.to_owned()), ("reason", reason.to_owned())]).inc();
    }

    /// The lease of a job of that `stage` ran out.
    pub fn lease_expired(&self, stage: &'static str) {
        self.0.leases_expired.get_or_create(&[("stage", stage.to_owned())]).inc();
    }

    /// A write with an epoch that is over was refused.
    pub fn fenced_write(&self) {
        self.0.fenced_writes.inc();
    }

    fn request(&self, method: &str, path: &str, status: u16, took: Duration) {
        let labels = [("method", method.to_owned()), ("path", path.to_owned()), ("status", status.to_string())];
        self.0.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The exposition text, with the gauges of `pools` as they are now.
    fn encode(&self, pools: &Registry) -> Result<String, fmt::Error> {
        let mut body = String::new();
        text::encode_registry(&mut body, &self.0.registry)?;
        text::encode(&mut body, pools)?;
        Ok(body)
    }
}

/// Middleware that measures every request; add it outside of the router's routes with `from_fn_with_state`.
pub async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let path = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let begun = Instant::now();
    let response = next.run(request).await;
    app.metrics.request(&method, &path, response.status().as_u16(), begun.elapsed());
    response
}
