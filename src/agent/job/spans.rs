//! What the agent adds to the trace of a run.

use super::Supervisor;
use crate::trace::{Node, Part, Service, Span};

impl Supervisor {
    /// A part of the work that ends now. `error`: a code, when it failed.
    pub(super) fn record_span(&self, part: Part, from: i64, error: Option<&str>) {
        self.record_span_until(part, (from, self.agent.clock.now_ms()), error);
    }

    /// The same with both times, in milliseconds since 1970.
    pub(super) fn record_span_until(&self, part: Part, (start_ms, end_ms): (i64, i64), error: Option<&str>) {
        let Self { agent, spec, .. } = self;
        if !agent.config.trace.is_on() {
            return;
        }
        agent.config.trace.record(Span {
            service: Service::Agent,
            run: spec.run.id.clone(),
            node: Node::Part { stage: spec.stage, epoch: spec.epoch, part },
            start_ms,
            end_ms,
            attributes: vec![
                ("terrapool.run.id", spec.run.id.to_string()),
                ("terrapool.job.id", spec.job_id.to_string()),
                ("terrapool.stage", spec.stage.as_str().to_owned()),
                ("terrapool.agent.name", agent.config.name.clone()),
            ],
            error: error.map(str::to_owned),
        });
    }
}
