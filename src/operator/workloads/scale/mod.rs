//! Which Pods of a pool are created, cordoned and removed. Pure: the same input gives the same decision, and all
//! numbers are counted anew from what is listed; only [`Memory`] goes from one decision to the next, and losing it
//! costs time, never an agent.

mod memory;

pub use memory::{Memory, Window};

use super::PodView;
use crate::{api::iacp::demand::PoolDemand, crd::AgentPoolSpec, ids::AgentId};

/// What is known when a decision is taken.
#[derive(Debug, Clone, Copy)]
pub struct ScaleInput<'a> {
    /// A pool of mode Ephemeral.
    pub spec: &'a AgentPoolSpec,
    /// [`super::template_hash`] of the spec.
    pub template: &'a str,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// What the control plane says; `None`: it did not answer. Then no more than `minIdle` Pods are kept up, and
    /// nothing that lives is removed.
    pub demand: Option<&'a PoolDemand>,
    /// All Pods of the pool.
    pub pods: &'a [PodView],
    /// What the last decision left.
    pub memory: &'a Memory,
    /// When the pool was deleted, if it was. Milliseconds since 1970.
    pub deleted_ms: Option<i64>,
}

/// What is to be done. Nothing in it depends on the order in which it is carried out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScaleDecision {
    pub create: Vec<Create>,
    /// Agents of our Pods that are to get no more jobs: by what the control plane answers, they are removed later.
    pub cordon: Vec<AgentId>,
    pub remove: Vec<Removal>,
    /// Pods that get the label [`super::mark::BUSY`].
    pub mark_busy: Vec<String>,
    /// Queued jobs that cannot run: their image cannot be had.
    pub fail: Vec<FailImage>,
    /// Agents that there should be now, busy ones included.
    pub desired: u32,
    /// Why there are fewer than the queue asks for.
    pub limited: Option<Limit>,
    /// When to look again though nothing changed, from now. `None`: only when something changes.
    pub next_ms: Option<u64>,
    /// For the next decision.
    pub memory: Memory,
}

/// A Pod to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// Run image; `None`: the pool's default one.
    pub image: Option<String>,
    /// Tells the Pods of one decision apart, for [`super::NameSalt`].
    pub index: u32,
}

/// A Pod to delete, only as it was seen: with preconditions on uid and resourceVersion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub why: Why,
}

/// Why a Pod is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// It ended.
    Finished,
    /// Its agent is cordoned and has no job.
    Cordoned,
    /// Its agent never registered, and it is not needed, outdated or broken. Should it register and claim in this
    /// moment, then the deletion drains it.
    NeverRegistered,
    /// The pool is deleted, and the agent's time to finish is over.
    DrainTimeout,
}

/// Jobs of the queue that need `image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailImage {
    /// As the queue names it: `None` are the jobs that name none.
    pub image: Option<String>,
    /// For people: what happened and the mend.
    pub message: String,
}

/// Why there are fewer agents than the queue asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// One of [`crate::crd::conditions::reason`].
    pub reason: &'static str,
    /// For people: numbers and cause.
    pub message: String,
}

/// Takes the decision.
#[must_use]
pub fn decide(input: &ScaleInput<'_>) -> ScaleDecision {
    ScaleDecision { memory: input.memory.clone(), ..ScaleDecision::default() }
}
