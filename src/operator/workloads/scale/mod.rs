//! Which Pods of a pool are created, cordoned and removed. Pure: the same input gives the same decision, and all
//! numbers are counted anew from what is listed; only [`Memory`] goes from one decision to the next, and losing it
//! costs time, never an agent.

mod memory;
mod plan;
#[cfg(test)]
mod tests;
mod world;

pub use memory::{Memory, Window};

use super::{Phase, PodView, drain_seconds};
use crate::{
    api::iacp::demand::PoolDemand,
    crd::{AgentPoolSpec, agents::Agents, common::Span},
    ids::AgentId,
};
use world::{ABANDONED_MS, State, World};

/// What a container gets to end that goes on without its agent. Its Pod's own time is for an agent with a job.
const ABANDONED_GRACE_SECONDS: u32 = 10;

const DEFAULT_MIN_IDLE: u32 = 1;
const DEFAULT_MAX_AGENTS: u32 = 20;
const DEFAULT_STABILIZATION_SECONDS: u64 = 60;

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

impl ScaleDecision {
    /// Looks again in `in_ms` at the latest.
    fn look_in(&mut self, in_ms: i64) {
        let in_ms = u64::try_from(in_ms).unwrap_or(0).max(1);
        self.next_ms = Some(self.next_ms.map_or(in_ms, |other| other.min(in_ms)));
    }
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
    /// Its agent has ended, and another container goes on.
    Abandoned,
}

impl Why {
    /// Seconds that its containers get to end; `None`: those that the Pod was made with.
    #[must_use]
    pub fn grace_seconds(self) -> Option<u32> {
        (self == Self::Abandoned).then_some(ABANDONED_GRACE_SECONDS)
    }
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

/// How many agents the spec asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    /// Idle ones beside the busy ones; `None`: exactly `most` in all.
    min_idle: Option<u32>,
    most: u32,
    stabilization_ms: i64,
}

impl Numbers {
    fn of(agents: &Agents) -> Self {
        let number = |value: Option<i32>, default: u32| value.map_or(default, |n| u32::try_from(n).unwrap_or(0));
        let Agents { min_idle, max_agents, scale_down, replicas, .. } = agents;
        let stabilization = scale_down.as_ref().and_then(|scale_down| scale_down.stabilization.as_ref());
        let seconds = stabilization.map_or(DEFAULT_STABILIZATION_SECONDS, Span::seconds);
        let stabilization_ms = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        if min_idle.is_none() && max_agents.is_none() && replicas.is_some() {
            return Self { min_idle: None, most: number(*replicas, 0), stabilization_ms: 0 };
        }
        let most = number(*max_agents, DEFAULT_MAX_AGENTS);
        let min_idle = number(*min_idle, DEFAULT_MIN_IDLE.min(most));
        Self { min_idle: Some(min_idle), most, stabilization_ms }
    }
}

/// Takes the decision.
#[must_use]
pub fn decide(input: &ScaleInput<'_>) -> ScaleDecision {
    let mut memory = input.memory.clone();
    let world = World::new(input, &mut memory);
    let mut decision = ScaleDecision::default();
    tidy(input, &world, &mut decision);
    if let Some(deleted_ms) = input.deleted_ms {
        ending(input, &world, deleted_ms, &mut decision);
    } else {
        remember(input, &world, &mut memory);
        plan::scale(input, &world, Numbers::of(&input.spec.agents), &mut memory, &mut decision);
    }
    decision.memory = memory;
    decision
}

fn removal(pod: &PodView, why: Why) -> Removal {
    let PodView { name, uid, resource_version, .. } = pod;
    Removal { name: name.clone(), uid: uid.clone(), resource_version: resource_version.clone(), why }
}

/// What is right whatever is wanted: ended and abandoned Pods go, cordoned idle ones too, busy ones are marked.
fn tidy(input: &ScaleInput<'_>, world: &World<'_>, decision: &mut ScaleDecision) {
    let known = input.demand.is_some();
    for seen in &world.pods {
        let until_abandoned_ms = seen.pod.agent_ended_ms.map(|ended_ms| ended_ms + ABANDONED_MS - input.now_ms);
        if let Some(in_ms) = until_abandoned_ms.filter(|in_ms| *in_ms > 0 && seen.state != State::Finished) {
            decision.look_in(in_ms);
        }
        match seen.state {
            // Somebody has removed it already when its time is set.
            State::Finished if seen.pod.ends_ms.is_none() => decision.remove.push(removal(seen.pod, Why::Finished)),
            State::Abandoned => decision.remove.push(removal(seen.pod, Why::Abandoned)),
            State::Cordoned if known => decision.remove.push(removal(seen.pod, Why::Cordoned)),
            State::Busy if known && !seen.pod.busy => decision.mark_busy.push(seen.pod.name.clone()),
            _ => {}
        }
    }
}

/// The pool is deleted: who has no job goes now, who has one when it is done or the time is over.
fn ending(input: &ScaleInput<'_>, world: &World<'_>, deleted_ms: i64, decision: &mut ScaleDecision) {
    decision.desired = world.busy();
    if input.demand.is_none() {
        return;
    }
    let left_ms = deleted_ms.saturating_add(drain_seconds(&input.spec.agents) * 1000) - input.now_ms;
    for seen in &world.pods {
        match (seen.state, seen.agent) {
            (State::Starting | State::Broken, _) => decision.remove.push(removal(seen.pod, Why::NeverRegistered)),
            (State::Busy, _) if left_ms <= 0 => decision.remove.push(removal(seen.pod, Why::DrainTimeout)),
            (State::Idle | State::Lost | State::Busy, Some(agent)) if !agent.cordoned => {
                decision.cordon.push(agent.id.clone());
            }
            _ => {}
        }
    }
    if left_ms > 0 && world.count(|seen| seen.state == State::Busy) > 0 {
        decision.look_in(left_ms);
    }
}

/// Counts the Pods that were of no use, and notes those that were.
fn remember(input: &ScaleInput<'_>, world: &World<'_>, memory: &mut Memory) {
    let useless = world.pods.iter().filter(|seen| {
        let ended = match seen.state {
            State::Finished => seen.pod.phase == Phase::Failed,
            State::Abandoned => seen.pod.problem.is_some(),
            _ => false,
        };
        let failed = ended && !seen.pod.busy;
        seen.current && (failed || plan::is_given_up(input, world, seen))
    });
    let described = useless.map(|seen| (seen.pod.uid.clone(), plan::problem_text(seen.pod)));
    let listed = input.pods.iter().map(|pod| pod.uid.as_str()).collect();
    memory.failed(input.now_ms, input.template, &listed, described);
    for seen in world.pods.iter().filter(|seen| seen.current) {
        let done = seen.state == State::Finished && (seen.pod.phase == Phase::Succeeded || seen.pod.busy);
        if done || seen.agent.is_some() && matches!(seen.state, State::Idle | State::Busy) {
            memory.worked(input.template, &seen.pod.uid);
        }
    }
}
