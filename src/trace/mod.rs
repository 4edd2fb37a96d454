//! One trace per run, over control plane, agent and stage: few spans, each made on purpose, with ids that follow from the
//! run's own. So everybody knows them without being told, and a span that is sent twice is one span.
//!
//! Spans are recorded when they have ended, with both times in hand: nothing is open, and nothing is lost by a restart but
//! what was not sent yet. Nothing here is ever waited for.

mod export;
mod metrics;
mod otlp;

pub use export::{Endpoint, Error, Meter, Tracer};

use sha2::{Digest, Sha256};

use crate::{api::job::Stage, hash::hex, ids::RunId};

/// Who recorded a span, or counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Server,
    Agent,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "terrapool-server",
            Self::Agent => "terrapool-agent",
        }
    }
}

/// A place in the tree of a run's spans. `epoch` tells attempts at the same stage apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The root: from the run's creation to its end.
    Run,
    /// From the claim to the result, as the control plane sees it.
    Stage {
        stage: Stage,
        epoch: i64,
    },
    Part {
        stage: Stage,
        epoch: i64,
        part: Part,
    },
    /// One program of [`Part::Engine`], by the name that it has there.
    Step {
        stage: Stage,
        epoch: i64,
        step: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The job waits for an agent. Beside its stage, which begins with the claim.
    Queued,
    /// Files, image and engine are fetched.
    Prepare,
    /// The container or process is made and started.
    Start,
    /// The runner works: hooks, init, plan or apply.
    Engine,
    /// State, artifacts, log and result are delivered.
    Deliver,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Engine => "engine",
            Self::Deliver => "deliver",
        }
    }
}

impl Node {
    /// What tells it from every other span of the run.
    fn path(self) -> String {
        match self {
            Self::Run => "run".to_owned(),
            Self::Stage { stage, epoch } => format!("{}/{epoch}", stage.as_str()),
            Self::Part { stage, epoch, part } => format!("{}/{epoch}/{}", stage.as_str(), part.as_str()),
            Self::Step { stage, epoch, step } => {
                format!("{}/{epoch}/{}/{step}", stage.as_str(), Part::Engine.as_str())
            }
        }
    }

    fn name(self) -> String {
        match self {
            Self::Run => "run".to_owned(),
            Self::Stage { stage, .. } => stage.as_str().to_owned(),
            Self::Part { stage, part, .. } => format!("{} {}", stage.as_str(), part.as_str()),
            Self::Step { stage, step, .. } => format!("{} step {step}", stage.as_str()),
        }
    }

    fn parent(self) -> Option<Self> {
        match self {
            Self::Run => None,
            Self::Stage { .. } | Self::Part { part: Part::Queued, .. } => Some(Self::Run),
            Self::Part { stage, epoch, .. } => Some(Self::Stage { stage, epoch }),
            Self::Step { stage, epoch, .. } => Some(Self::Part { stage, epoch, part: Part::Engine }),
        }
    }
}

/// Something that has happened to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub service: Service,
    pub run: RunId,
    pub node: Node,
    /// Milliseconds since 1970, by the clock of who recorded it.
    pub start_ms: i64,
    pub end_ms: i64,
    /// Names and ids only: never a value of a variable, nor text that a program printed.
    pub attributes: Vec<(&'static str, String)>,
    /// Why it failed: a code, as of [`crate::api::agent::reason`].
    pub error: Option<String>,
}

/// 32 hexadecimal digits: the first half of the SHA-256 of the run's id.
#[must_use]
pub fn trace_id(run: &RunId) -> String {
    hex(&Sha256::digest(run.as_str())[..16])
}

/// 16 hexadecimal digits.
#[must_use]
pub fn span_id(run: &RunId, node: Node) -> String {
    hex(&Sha256::digest(format!("{run}/{}", node.path()))[..8])
}

/// The W3C's header, as programs take it from the environment: what they record hangs below `node`.
#[must_use]
pub fn traceparent(run: &RunId, node: Node) -> String {
    format!("00-{}-{}-01", trace_id(run), span_id(run, node))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_follow_from_the_run_and_differ_for_every_place() {
        let run: RunId = "run-1".parse().unwrap();
        let other: RunId = "run-2".parse().unwrap();
        // Forever: spans of two versions of the program meet in one trace. `printf %s run-1 | sha256sum`
        assert_eq!(trace_id(&run), "4e65d3fbe8ad6535681b021b30785b12");
        let mut nodes = vec![Node::Run];
        for stage in [Stage::Plan, Stage::Apply] {
            for epoch in [1, 2, 11] {
                nodes.push(Node::Stage { stage, epoch });
                let parts = [Part::Queued, Part::Prepare, Part::Start, Part::Engine, Part::Deliver];
                nodes.extend(parts.map(|part| Node::Part { stage, epoch, part }));
                nodes.extend(["init", "plan"].map(|step| Node::Step { stage, epoch, step }));
            }
        }
        let ids: BTreeSet<_> =
            [&run, &other].iter().flat_map(|run| nodes.iter().map(|node| span_id(run, *node))).collect();
        assert_eq!(ids.len(), 2 * nodes.len());
        assert!(ids.iter().all(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
        for node in &nodes {
            let mut root = *node;
            while let Some(parent) = root.parent() {
                root = parent;
            }
            assert_eq!(root, Node::Run);
        }
    }

    #[test]
    fn programs_of_a_stage_are_told_in_the_form_of_the_w3c() {
        let run: RunId = "run-1".parse().unwrap();
        let node = Node::Part { stage: Stage::Apply, epoch: 1, part: Part::Engine };
        let text = traceparent(&run, node);
        assert_eq!(text, format!("00-{}-{}-01", trace_id(&run), span_id(&run, node)));
        assert_eq!(text.len(), 55);
    }
}
