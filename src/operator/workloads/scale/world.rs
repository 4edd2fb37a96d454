//! Pods and agents brought together: what each Pod is good for now.

use std::collections::{BTreeMap, BTreeSet};

use super::{Memory, ScaleInput};
use crate::{
    api::{agent::AgentStatus, iacp::demand::DemandAgent},
    operator::workloads::{Fault, Phase, PodView, allows_image, job_image},
};

/// An agent that is not heard of for so long is replaced; until then it may come back.
pub(super) const LOST_SECONDS: i64 = 120;
/// A deleted Pod whose time to end was over so long ago is on a node that is gone.
const OVERDUE_MS: i64 = 60_000;
/// After its agent has ended, what is left of a Pod has so long to end by itself: the runner interrupts its stage after
/// five seconds. Together with [`super::ABANDONED_GRACE_SECONDS`] it is what is left of the job's lease at the least (30 s,
/// renewed every 10 s): when others may take the workspace, nothing of this one may go on.
pub(super) const ABANDONED_MS: i64 = 10_000;
/// Jobs that wait longer are not helped by agents that somebody else runs, idle as they may look.
const FOREIGN_PATIENCE_SECONDS: i64 = 15;

/// What a Pod is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum State {
    /// Ended, to be removed.
    Finished,
    /// Its agent ended a while ago, and another container goes on: nobody hears of it any more, and it holds its place.
    Abandoned,
    /// Removed already; its time may not be over.
    Ending,
    /// Its agent has a job.
    Busy,
    /// Its agent has no job and gets none.
    Cordoned,
    /// Its agent was there and is not any more: the Pod is about to end.
    Finishing,
    /// Its agent is registered and cannot work, or is not heard of.
    Lost,
    /// Its agent waits for a job.
    Idle,
    /// Its agent has not registered yet.
    Starting,
    /// Its agent has not registered, and will not by itself.
    Broken,
}

/// A Pod with its agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub pod: &'a PodView,
    pub agent: Option<&'a DemandAgent>,
    pub state: State,
    /// Made from the present template.
    pub current: bool,
}

impl Seen<'_> {
    /// It does a job, or would.
    pub(super) fn is_capacity(&self) -> bool {
        matches!(self.state, State::Idle | State::Starting)
            || self.state == State::Lost && self.agent.is_some_and(|agent| silent_seconds(agent) < LOST_SECONDS)
    }

    /// It takes one of the pool's places.
    pub(super) fn takes_a_place(&self) -> bool {
        self.state != State::Finished
    }

    fn is_busy(&self) -> bool {
        self.state == State::Busy || self.state == State::Ending && self.agent.is_some_and(|agent| agent.jobs > 0)
    }
}

/// Queued jobs that need one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// As in [`PodView::image`].
    pub image: String,
    pub jobs: u32,
    /// How the queue names it: with the default image there may be two ways.
    pub named: Vec<Option<String>>,
    oldest_seconds: i64,
}

/// Everything that a decision looks at.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub pods: Vec<Seen<'a>>,
    /// The longest waiting first. Images that the pool does not allow are not among them.
    pub queue: Vec<Group>,
    /// Image of jobs whose workspace names none.
    pub default: &'a str,
    /// How long agents that somebody else runs may still leave jobs alone that they could take.
    pub patience_seconds: Option<i64>,
}

impl<'a> World<'a> {
    /// Brings `memory` up to date as well.
    pub(super) fn new(input: &ScaleInput<'a>, memory: &mut Memory) -> Self {
        let agents: BTreeMap<&str, &DemandAgent> =
            input.demand.iter().flat_map(|demand| &demand.agents).map(|agent| (agent.name.as_str(), agent)).collect();
        let overdue = |pod: &PodView| pod.ends_ms.is_some_and(|ends| input.now_ms > ends + OVERDUE_MS);
        let mut pods = Vec::new();
        for pod in input.pods.iter().filter(|pod| pod.phase != Phase::Ending || !overdue(pod)) {
            let agent = agents.get(pod.name.as_str()).copied();
            if agent.is_some() {
                memory.registered.insert(pod.name.clone(), pod.uid.clone());
            }
            let came = memory.registered.get(&pod.name) == Some(&pod.uid);
            let state = state(pod, agent, came, input);
            pods.push(Seen { pod, agent, state, current: pod.template == input.template });
        }
        let uids: BTreeSet<&str> = input.pods.iter().map(|pod| pod.uid.as_str()).collect();
        let names: BTreeSet<&str> = agents.keys().copied().collect();
        memory.retain(&uids, input.demand.map(|_| &names));
        let foreign = agents.values().filter(|agent| !memory.registered.contains_key(&agent.name));
        let free = foreign.filter(|agent| takes_jobs(agent)).map(|agent| agent.slots.saturating_sub(agent.jobs)).sum();
        let default = job_image(input.spec);
        let (queue, patience_seconds) = queue(input, default, free);
        Self { pods, queue, default, patience_seconds }
    }

    pub(super) fn count(&self, of: impl Fn(&Seen<'a>) -> bool) -> u32 {
        u32::try_from(self.pods.iter().filter(|seen| of(seen)).count()).unwrap_or(u32::MAX)
    }

    pub(super) fn busy(&self) -> u32 {
        self.count(Seen::is_busy)
    }

    /// Pods of the present template that serve or would serve `image`.
    pub(super) fn capacity(&self, image: &str) -> u32 {
        self.count(|seen| seen.current && seen.is_capacity() && seen.pod.image == image)
    }

    /// Some agent of the present template with this image (any image: `None`) is or was at work.
    pub(super) fn is_healthy(&self, image: Option<&str>) -> bool {
        self.pods.iter().any(|seen| {
            let works = matches!(seen.state, State::Idle | State::Busy | State::Finishing)
                || seen.state == State::Finished && seen.pod.phase == Phase::Succeeded;
            works && seen.current && image.is_none_or(|image| seen.pod.image == image)
        })
    }

    /// Jobs that wait and that Pods of ours are wanted for.
    pub(super) fn waiting(&self) -> u32 {
        self.queue.iter().map(|group| group.jobs).fold(0, u32::saturating_add)
    }
}

/// Since it was heard of; one that was cut off will not be heard of again.
pub(super) fn silent_seconds(agent: &DemandAgent) -> i64 {
    if agent.revoked { LOST_SECONDS } else { agent.seen_seconds_ago }
}

fn takes_jobs(agent: &DemandAgent) -> bool {
    matches!(agent.status, AgentStatus::Idle | AgentStatus::Busy) && !agent.cordoned && !agent.draining
}

/// The Pod has been without its agent for too long, and will not end by itself in the time that it would get now.
fn is_abandoned(pod: &PodView, now_ms: i64) -> bool {
    let soon = |ends_ms: i64| ends_ms <= now_ms + i64::from(super::ABANDONED_GRACE_SECONDS) * 1000;
    pod.agent_ended_ms.is_some_and(|ended_ms| now_ms - ended_ms >= ABANDONED_MS) && !pod.ends_ms.is_some_and(soon)
}

fn state(pod: &PodView, agent: Option<&DemandAgent>, came: bool, input: &ScaleInput<'_>) -> State {
    let known = input.demand.is_some();
    match pod.phase {
        Phase::Succeeded | Phase::Failed => return State::Finished,
        _ if is_abandoned(pod, input.now_ms) => return State::Abandoned,
        Phase::Ending => return State::Ending,
        Phase::Starting | Phase::Running => {}
    }
    if pod.agent_ended_ms.is_some() {
        // Whatever the control plane still says of its agent.
        let useless = pod.problem.is_some() && !(came || pod.busy);
        return if useless { State::Broken } else { State::Finishing };
    }
    let Some(agent) = agent else {
        return match (&pod.problem, known) {
            // Nobody can say what it does: what was last known has to do.
            (_, false) if pod.busy => State::Busy,
            (_, false) if came => State::Idle,
            (_, true) if came || pod.busy => State::Finishing,
            (Some(problem), _) if problem.fault != Fault::Unschedulable => State::Broken,
            _ => State::Starting,
        };
    };
    if agent.jobs > 0 {
        State::Busy
    } else if agent.cordoned {
        State::Cordoned
    } else if agent.draining {
        State::Finishing
    } else if takes_jobs(agent) {
        State::Idle
    } else {
        State::Lost
    }
}

/// The queue by image, without what `free` places of foreign agents take.
fn queue(input: &ScaleInput<'_>, default: &str, mut free: u32) -> (Vec<Group>, Option<i64>) {
    let mut patience = None;
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    for queued in input.demand.iter().flat_map(|demand| &demand.queued) {
        let image = queued.image.as_deref().unwrap_or(default);
        if !allows_image(input.spec, image) {
            continue;
        }
        let group = groups.entry(image).or_insert_with(|| Group {
            image: image.to_owned(),
            jobs: 0,
            named: Vec::new(),
            oldest_seconds: 0,
        });
        let mut jobs = queued.jobs;
        if image == default && queued.oldest_seconds < FOREIGN_PATIENCE_SECONDS {
            let taken = free.min(jobs);
            (free, jobs) = (free - taken, jobs - taken);
            if taken > 0 {
                let left = FOREIGN_PATIENCE_SECONDS - queued.oldest_seconds;
                patience = Some(patience.map_or(left, |other: i64| other.min(left)));
            }
        }
        group.jobs = group.jobs.saturating_add(jobs);
        group.oldest_seconds = group.oldest_seconds.max(queued.oldest_seconds);
        if !group.named.contains(&queued.image) {
            group.named.push(queued.image.clone());
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by(|a, b| b.oldest_seconds.cmp(&a.oldest_seconds).then_with(|| a.image.cmp(&b.image)));
    (groups, patience)
}
