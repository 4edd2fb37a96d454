//! What the agent adds to the trace of a run.

use super::Supervisor;
use crate::{
    agent::steps::{self, format::Report},
    trace::{Node, Part, Service, Span},
};

/// One program of a stage, as its runner tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    name: &'static str,
    start_ms: i64,
    end_ms: i64,
    code: i32,
    /// It decided that the stage did not succeed.
    failed: bool,
}

impl Supervisor {
    /// A part of the work that ends now. `error`: a code, when it failed.
    pub(super) fn record_span(&self, part: Part, from: i64, error: Option<&str>) {
        self.record(self.part(part), (from, self.agent.clock.now_ms()), Vec::new(), error);
    }

    /// The part in which the stage ran, with both times in milliseconds since 1970, and the programs that ran there.
    pub(super) async fn record_engine(&self, times: (i64, i64), error: Option<&str>) {
        if !self.agent.config.trace.is_on() {
            return;
        }
        self.record(self.part(Part::Engine), times, Vec::new(), error);
        // Who cannot read it has said so already.
        let Ok(Some(report)) = self.dir.result().await else { return };
        for Step { name, start_ms, end_ms, code, failed } in ran(&report, times) {
            let node = Node::Step { stage: self.spec.stage, epoch: self.spec.epoch, step: name };
            let attributes = vec![("terrapool.step.exit_code", code.to_string())];
            self.record(node, (start_ms, end_ms), attributes, error.filter(|_| failed));
        }
    }

    fn part(&self, part: Part) -> Node {
        Node::Part { stage: self.spec.stage, epoch: self.spec.epoch, part }
    }

    fn record(
        &self,
        node: Node,
        (start_ms, end_ms): (i64, i64),
        mut attributes: Vec<(&'static str, String)>,
        error: Option<&str>,
    ) {
        let Self { agent, spec, .. } = self;
        if !agent.config.trace.is_on() {
            return;
        }
        attributes.extend([
            ("terrapool.run.id", spec.run.id.to_string()),
            ("terrapool.job.id", spec.job_id.to_string()),
            ("terrapool.stage", spec.stage.as_str().to_owned()),
            ("terrapool.agent.name", agent.config.name.clone()),
        ]);
        agent.config.trace.record(Span {
            service: Service::Agent,
            run: spec.run.id.clone(),
            node,
            start_ms,
            end_ms,
            attributes,
            error: error.map(str::to_owned),
        });
    }
}

/// The programs that a report tells of, within the time of their stage. A stage could have written the report: names that no
/// program has, and a second time of the same one, are left out.
fn ran(report: &Report, (from, until): (i64, i64)) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for ((step, code), time) in report.exits.iter().zip(&report.times) {
        let Some(name) = steps::known(step) else { continue };
        if time.step != *step || steps.iter().any(|step| step.name == name) {
            continue;
        }
        let start_ms = time.start_ms.clamp(from, until.max(from));
        let end_ms = time.end_ms.clamp(start_ms, until.max(start_ms));
        steps.push(Step { name, start_ms, end_ms, code: *code, failed: report.step == *step });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::steps::format::{Outcome, Time};

    fn report(steps: &[(&str, i64, i64)]) -> Report {
        Report {
            outcome: Outcome::Failed,
            step: "plan".into(),
            exits: steps.iter().map(|(step, ..)| ((*step).to_owned(), 1)).collect(),
            times: steps
                .iter()
                .map(|(step, start_ms, end_ms)| Time { step: (*step).to_owned(), start_ms: *start_ms, end_ms: *end_ms })
                .collect(),
            message: None,
        }
    }

    #[test]
    fn steps_lie_within_their_stage_whatever_their_clock_says() {
        let report = report(&[("init", 50, 120), ("pre-plan", 130, 140), ("plan", 150, 900), ("show", 190, 180)]);
        let report = Report::parse(&report.to_text()).unwrap();
        let step = |name, start_ms, end_ms, failed| Step { name, start_ms, end_ms, code: 1, failed };
        let wanted = [
            step("init", 100, 120, false),
            step("pre-plan", 130, 140, false),
            step("plan", 150, 200, true),
            step("show", 190, 190, false),
        ];
        assert_eq!(ran(&report, (100, 200)), wanted);
        let set_back = ran(&report, (100, 50));
        assert!(set_back.iter().all(|step| (step.start_ms, step.end_ms) == (100, 100)), "{set_back:?}");
    }

    #[test]
    fn what_no_stage_runs_or_runs_twice_is_not_told() {
        let mut report = report(&[("rm -rf", 1, 2), ("init", 1, 2), ("init", 2, 3)]);
        assert_eq!(ran(&report, (0, 9)).iter().map(|step| step.end_ms).collect::<Vec<_>>(), [2]);
        report.times.clear();
        assert_eq!(ran(&report, (0, 9)), []);
    }
}
