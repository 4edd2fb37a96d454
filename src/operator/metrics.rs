//! What the operator counts, for Prometheus.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    kind: &'static str,
    reason: &'static str,
}

/// The operator's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    duration: Family<Kind, Histogram, fn() -> Histogram>,
    errors: Family<Why, Counter>,
    waiting: Family<Why, Counter>,
    in_line: Family<Kind, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let duration: Family<Kind, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 8)));
        let errors: Family<Why, Counter> = Family::default();
        let waiting: Family<Why, Counter> = Family::default();
        let in_line: Family<Kind, Gauge> = Family::default();
        let mut registry = Registry::with_prefix("terrapool");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the program", build);
        registry.register("reconcile_duration_seconds", "Time of one visit of an object", duration.clone());
        registry.register("reconcile_errors", "Visits that ended with an error, by reason", errors.clone());
        registry.register("reconcile_waiting", "Visits that found something to wait for, by reason", waiting.clone());
        registry.register("objects_in_line", "Objects that were in line when last looked at", in_line.clone());
        Self { registry: Arc::new(registry), duration, errors, waiting, in_line }
    }
}

impl Metrics {
    /// One visit of an object is over.
    pub(super) fn reconciled(&self, kind: &'static str, took: Duration, error: Option<&'static str>) {
        self.duration.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
        if let Some(reason) = error {
            self.errors.get_or_create(&Why { kind, reason }).inc();
        }
    }

    /// A visit found that somebody else has to do something first.
    pub(super) fn waiting(&self, kind: &'static str, reason: &'static str) {
        self.waiting.get_or_create(&Why { kind, reason }).inc();
    }

    /// So many more objects are known to be in line, or with a negative number so many fewer.
    pub(super) fn in_line(&self, kind: &'static str, more: i64) {
        self.in_line.get_or_create(&Kind { kind }).inc_by(more);
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(fmt::Error) => String::new(),
        }
    }
}
