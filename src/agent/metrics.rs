//! What the agent counts, for Prometheus, on a port of its own that is closed unless it is asked for, and for a collector.
//! Label sets are bounded: stages, outcomes and reasons; never names or ids of runs.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};
use tokio::net::TcpListener;

use super::{
    Agent,
    provider_cache::{self, ProviderCache},
};
use crate::{
    api::{
        agent::{FinishRequest, Outcome},
        job::Stage,
    },
    trace::{Meter, Service},
};

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// OpenMetrics 1.0, which Prometheus reads.
const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The counters; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    prepared: Family<Labels<1>, Histogram, fn() -> Histogram>,
    took: Family<Labels<1>, Histogram, fn() -> Histogram>,
    ended: Family<Labels<2>, Counter>,
    failed_claims: Counter,
    failed_heartbeats: Counter,
    log_bytes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            prepared: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.5, 10))),
            took: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.5, 3.0, 11))),
            ended: Family::default(),
            failed_claims: Counter::default(),
            failed_heartbeats: Counter::default(),
            log_bytes: Counter::default(),
        }
    }
}

impl Metrics {
    /// From the claim to the start of the stage: files, image, container.
    pub(super) fn prepared(&self, stage: Stage, took: Duration) {
        self.prepared.get_or_create(&[("stage", stage.as_str())]).observe(took.as_secs_f64());
    }

    /// The stage's container or process is gone, that this process of the agent has watched so long.
    pub(super) fn ran(&self, stage: Stage, took: Duration) {
        self.took.get_or_create(&[("stage", stage.as_str())]).observe(took.as_secs_f64());
    }

    /// The control plane has the result.
    pub(super) fn reported(&self, stage: Stage, finish: &FinishRequest) {
        let outcome = match finish.outcome {
            Outcome::Finished => "finished",
            Outcome::Errored => "errored",
            Outcome::Canceled => "canceled",
        };
        self.ended.get_or_create(&[("stage", stage.as_str()), ("outcome", outcome)]).inc();
        self.log_bytes.inc_by(finish.log_bytes);
    }

    pub(super) fn claim_failed(&self) {
        self.failed_claims.inc();
    }

    pub(super) fn heartbeat_failed(&self) {
        self.failed_heartbeats.inc();
    }

    /// The text that Prometheus reads. What the agent knows anyway is read from it now, and counted nowhere.
    fn text(&self, now: &Now) -> String {
        let mut registry = Registry::with_prefix("terrapool_agent");
        registry.register("build", "Version of the program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("slots", "Jobs that this agent takes at a time", ConstGauge::new(now.slots));
        registry.register("jobs", "Jobs that this agent has now", ConstGauge::new(now.jobs));
        registry.register("warm", "Containers that wait for a job", ConstGauge::new(now.warm));
        let accepts = i64::from(now.accepts);
        registry.register(
            "accepts_jobs",
            "1: it takes new jobs; 0: it drains or is cordoned",
            ConstGauge::new(accepts),
        );
        registry.register("prepare_seconds", "From claim to start of a stage", self.prepared.clone());
        registry.register("stage_seconds", "From start to end of a stage", self.took.clone());
        registry.register("stages", "Stages whose results were delivered", self.ended.clone());
        registry.register("failed_claims", "Calls for a job that failed", self.failed_claims.clone());
        registry.register("failed_heartbeats", "Heartbeats that failed", self.failed_heartbeats.clone());
        registry.register(
            "dropped_spans",
            "Spans that did not reach the collector",
            ConstCounter::new(now.dropped_spans),
        );
        let provider_cache::Figures { linked, kept, removed, bytes } = now.providers;
        for (name, what, count) in [
            ("linked_providers", "Packages of providers that runs had from the cache", linked),
            ("kept_providers", "Packages of providers that were new to the cache", kept),
            ("removed_providers", "Packages of providers that were removed from the cache", removed),
        ] {
            registry.register(name, what, ConstCounter::new(count));
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        registry.register("provider_cache_bytes", "Size of the cache of providers", ConstGauge::new(bytes));
        registry.register("log_bytes", "Bytes of logs delivered, of stages that have ended", self.log_bytes.clone());
        let mut text = String::new();
        match text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(fmt::Error) => String::new(),
        }
    }
}

/// What is read from the agent at every scrape.
struct Now {
    slots: i64,
    jobs: i64,
    warm: i64,
    accepts: bool,
    dropped_spans: u64,
    providers: provider_cache::Figures,
}

impl Now {
    fn of(agent: &Agent) -> Self {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Self {
            slots: number(agent.slots()),
            jobs: number(agent.jobs.count()),
            warm: number(agent.executor.waiting()),
            accepts: !agent.shutdown.drain.is_cancelled() && !*agent.cordoned.borrow() && agent.trouble().is_none(),
            dropped_spans: agent.config.trace.dropped(),
            providers: agent.executor.provider_cache().map(ProviderCache::figures).unwrap_or_default(),
        }
    }
}

/// Tells a collector the same, where there is one, until the agent has ended.
pub(super) fn tell(agent: &Arc<Agent>) {
    let told = agent.clone();
    let meter = Meter {
        service: Service::Agent,
        instance: agent.config.name.clone(),
        clock: agent.clock.clone(),
        text: Box::new(move || told.metrics.text(&Now::of(&told))),
    };
    agent.config.trace.measure(meter, agent.done.clone());
}

/// Serves `/metrics` and `/healthz` over plain HTTP until the agent has ended; says which address it listens on.
///
/// # Errors
/// When the address cannot be listened on.
pub(super) async fn serve(address: SocketAddr, agent: &Arc<Agent>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (scraped, healthy) = (agent.clone(), agent.clone());
    let metrics = move || {
        let text = scraped.metrics.text(&Now::of(&scraped));
        async move { ([(CONTENT_TYPE, TYPE)], text) }
    };
    let health = move || {
        let trouble = healthy.trouble();
        async move {
            match trouble {
                None => (StatusCode::OK, "ok\n".to_owned()).into_response(),
                Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")).into_response(),
            }
        }
    };
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(health));
    let done = agent.done.clone();
    agent.shutdown.spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(done.cancelled_owned()).await {
            tracing::warn!(%error, "the port for metrics is closed");
        }
    });
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::agent::ResourceChanges;

    #[test]
    fn what_was_done_is_told_with_bounded_labels() {
        let metrics = Metrics::default();
        let finish = FinishRequest {
            outcome: Outcome::Finished,
            reason: None,
            message: None,
            log_bytes: 1200,
            has_changes: true,
            changes: ResourceChanges::default(),
            image_digest: None,
        };
        metrics.prepared(Stage::Plan, Duration::from_millis(30));
        metrics.ran(Stage::Plan, Duration::from_secs(2));
        metrics.reported(Stage::Plan, &finish);
        metrics.reported(Stage::Apply, &FinishRequest { outcome: Outcome::Canceled, ..finish });
        metrics.claim_failed();
        metrics.heartbeat_failed();
        let providers = provider_cache::Figures { linked: 3, kept: 2, removed: 1, bytes: 4096 };
        let text = metrics.text(&Now { slots: 5, jobs: 2, warm: 1, accepts: true, dropped_spans: 7, providers });
        for line in [
            "terrapool_agent_slots 5",
            "terrapool_agent_jobs 2",
            "terrapool_agent_warm 1",
            "terrapool_agent_accepts_jobs 1",
            "terrapool_agent_stages_total{stage=\"plan\",outcome=\"finished\"} 1",
            "terrapool_agent_stages_total{stage=\"apply\",outcome=\"canceled\"} 1",
            "terrapool_agent_prepare_seconds_count{stage=\"plan\"} 1",
            "terrapool_agent_stage_seconds_sum{stage=\"plan\"} 2.0",
            "terrapool_agent_log_bytes_total 2400",
            "terrapool_agent_failed_claims_total 1",
            "terrapool_agent_failed_heartbeats_total 1",
            "terrapool_agent_dropped_spans_total 7",
            "terrapool_agent_linked_providers_total 3",
            "terrapool_agent_kept_providers_total 2",
            "terrapool_agent_removed_providers_total 1",
            "terrapool_agent_provider_cache_bytes 4096",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
