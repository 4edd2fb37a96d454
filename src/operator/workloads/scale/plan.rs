//! How many Pods of which image there should be, and what that means for those that are there.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Create, FailImage, Limit, Memory, Numbers, ScaleDecision, ScaleInput, Why,
    memory::Pause,
    removal,
    world::{LOST_SECONDS, Seen, State, World, silent_seconds},
};
use crate::{
    api::agent::AgentStatus,
    crd::conditions::reason,
    operator::workloads::{Fault, Phase, PodView},
};

/// A Pod that cannot start on its node, where others of its kind run, is tried on another one after so long.
const GIVE_UP_MS: i64 = 60_000;
/// A registry that does not answer for so long is not there: runs that wait for it fail.
const REGISTRY_PATIENCE_MS: i64 = 60_000;

/// Pods per image: what there should be, and what there is.
#[derive(Debug, Default)]
struct Targets {
    /// Without busy ones. Images that jobs wait for first, in the order in which they have waited.
    wanted: Vec<(String, u32)>,
    /// All that is asked for, without any bound, busy ones included.
    asked: u32,
    /// With busy ones.
    desired: u32,
}

impl Targets {
    fn new(world: &World<'_>, numbers: Numbers) -> Self {
        let busy = world.busy();
        let mut left = numbers.most.saturating_sub(busy);
        let bound = left;
        let mut wanted = Vec::new();
        let mut take = |image: &str, number: u32| {
            let number = number.min(left);
            left -= number;
            match wanted.iter_mut().find(|(other, _): &&mut (String, u32)| other == image) {
                Some((_, sum)) => *sum += number,
                None => wanted.push((image.to_owned(), number)),
            }
        };
        for group in &world.queue {
            take(&group.image, group.jobs);
        }
        take(world.default, numbers.min_idle.unwrap_or(bound));
        let asked = match numbers.min_idle {
            Some(min_idle) => busy.saturating_add(world.waiting()).saturating_add(min_idle),
            None => busy.saturating_add(world.waiting()).max(numbers.most),
        };
        Self { desired: busy + (bound - left), wanted, asked }
    }

    fn of(&self, image: &str) -> u32 {
        self.wanted.iter().find(|(other, _)| other == image).map_or(0, |(_, number)| *number)
    }
}

/// What a decision is taken from.
struct Plan<'p, 'a> {
    input: &'p ScaleInput<'a>,
    world: &'p World<'a>,
    numbers: Numbers,
    targets: Targets,
    blocked: Blocked<'a>,
    memory: &'p mut Memory,
    decision: &'p mut ScaleDecision,
}

/// Brings what is there closer to what is wanted.
pub(super) fn scale<'a>(
    input: &ScaleInput<'a>,
    world: &World<'a>,
    numbers: Numbers,
    memory: &mut Memory,
    decision: &mut ScaleDecision,
) {
    let targets = Targets::new(world, numbers);
    decision.desired = targets.desired;
    let mut plan = Plan { input, world, numbers, targets, blocked: Blocked::new(world), memory, decision };
    let missing = plan.create();
    if input.demand.is_some() {
        plan.note();
        plan.replace_outdated(missing);
        plan.replace_lost();
        plan.drop_broken();
        plan.shrink(missing);
        plan.fail_images();
    }
    plan.decision.limited = plan.limit(missing);
}

/// What more Pods would not help, because none of them gets far.
#[derive(Debug, Default)]
struct Blocked<'a> {
    /// The Pod that shows it for everything: the agent's own image, a missing Secret.
    all: Option<&'a PodView>,
    /// The Pods that show it for one run image each.
    images: BTreeMap<&'a str, &'a PodView>,
}

impl<'a> Blocked<'a> {
    fn new(world: &World<'a>) -> Self {
        let mut blocked = Self::default();
        let mut broken: Vec<&PodView> =
            world.pods.iter().filter(|seen| seen.current && seen.state == State::Broken).map(|seen| seen.pod).collect();
        broken.sort_by_key(|pod| (pod.created_ms, pod.name.as_str()));
        for pod in broken {
            if concerns_one_image(pod) {
                if !world.is_healthy(Some(&pod.image)) {
                    blocked.images.entry(&pod.image).or_insert(pod);
                }
            } else if !world.is_healthy(None) {
                blocked.all.get_or_insert(pod);
            }
        }
        blocked
    }

    fn by(&self, image: &str) -> Option<&'a PodView> {
        self.all.or_else(|| self.images.get(image).copied())
    }
}

fn concerns_one_image(pod: &PodView) -> bool {
    pod.problem.as_ref().is_some_and(|problem| problem.run_image)
}

impl<'a> Plan<'_, 'a> {
    /// Looks again at `at_ms`, if nothing happens before.
    fn look_at(&mut self, at_ms: i64) {
        self.decision.look_in(at_ms - self.input.now_ms);
    }

    /// Creates what is missing and may be created. Returns what stays missing for want of a place.
    fn create(&mut self) -> u32 {
        let world = self.world;
        let mut room = self.numbers.most.saturating_sub(world.count(Seen::takes_a_place));
        let mut allowed = u32::MAX;
        if let Some(pause) = self.memory.pause(self.input.now_ms) {
            allowed = 0;
            self.look_at(pause.until_ms());
        } else if self.memory.careful() {
            allowed = u32::from(world.count(|seen| seen.current && seen.state == State::Starting) == 0);
        }
        let mut missing = 0;
        for (image, wanted) in &self.targets.wanted {
            if self.blocked.by(image).is_some() {
                continue;
            }
            // A bad node among good ones gets time: its Pod may come yet.
            let waits = world.count(|seen| {
                let broken = seen.current && seen.state == State::Broken && seen.pod.image == *image;
                broken && !is_given_up(self.input, world, seen)
            });
            let lacking = wanted.saturating_sub(world.capacity(image) + waits);
            let new = lacking.min(room).min(allowed);
            missing += lacking.saturating_sub(room);
            (room, allowed) = (room - new, allowed - new);
            for _ in 0..new {
                let index = u32::try_from(self.decision.create.len()).unwrap_or(u32::MAX);
                self.decision.create.push(Create { image: (image != world.default).then(|| image.clone()), index });
            }
        }
        missing
    }

    /// Remembers what is wanted, for the time over which fewer must be enough.
    fn note(&mut self) {
        let (now_ms, span_ms) = (self.input.now_ms, self.numbers.stabilization_ms);
        if self.memory.window.is_empty() {
            // Nobody knows for how long what is there has been wanted: it counts as wanted until now.
            self.memory.window.push(now_ms, self.world.count(Seen::takes_a_place), span_ms);
        }
        self.memory.window.push(now_ms, self.targets.desired, span_ms);
        if let Some(seconds) = self.world.patience_seconds {
            self.look_at(now_ms + seconds * 1000);
        }
    }

    /// Idle Pods of an earlier template go once others wait in their place, or have to make that place.
    fn replace_outdated(&mut self, missing: u32) {
        let world = self.world;
        let mut makes_room = missing.saturating_sub(leaving(world));
        for seen in world.pods.iter().filter(|seen| !seen.current) {
            match (seen.state, seen.agent) {
                (State::Starting | State::Broken, _) => {
                    makes_room = makes_room.saturating_sub(1);
                    self.decision.remove.push(removal(seen.pod, Why::NeverRegistered));
                }
                (State::Idle | State::Lost, Some(agent)) => {
                    let image = &seen.pod.image;
                    let ready =
                        |other: &Seen<'_>| other.current && other.state == State::Idle && other.pod.image == *image;
                    if makes_room > 0 || world.count(ready) >= self.targets.of(image) {
                        makes_room = makes_room.saturating_sub(1);
                        self.decision.cordon.push(agent.id.clone());
                    }
                }
                _ => {}
            }
        }
    }

    /// Agents that are not heard of, or say that they cannot work, are given up after a while.
    fn replace_lost(&mut self) {
        let now_ms = self.input.now_ms;
        for seen in self.world.pods.iter().filter(|seen| seen.current && seen.state == State::Lost) {
            let Some(agent) = seen.agent else { continue };
            let silent_ms = silent_seconds(agent).saturating_mul(1000);
            let age_ms = now_ms - seen.pod.created_ms;
            let errored = agent.status == AgentStatus::Errored;
            let wait_ms = LOST_SECONDS * 1000 - if errored { age_ms } else { silent_ms };
            if wait_ms <= 0 {
                self.decision.cordon.push(agent.id.clone());
            } else {
                self.look_at(now_ms + wait_ms);
            }
        }
    }

    /// Of Pods that cannot start, one stays to show whether that is still so.
    fn drop_broken(&mut self) {
        let world = self.world;
        for seen in world.pods.iter().filter(|seen| seen.current && seen.state == State::Broken) {
            let needed = self.targets.of(&seen.pod.image) > world.capacity(&seen.pod.image);
            let probe = self.blocked.by(&seen.pod.image);
            let waits = match probe {
                Some(probe) => probe.uid == seen.pod.uid,
                None => !is_given_up(self.input, world, seen),
            };
            if !(needed && waits) {
                self.decision.remove.push(removal(seen.pod, Why::NeverRegistered));
            } else if probe.is_none() {
                self.look_at(seen.pod.created_ms + GIVE_UP_MS);
            }
        }
    }

    /// Takes away what is too much: at once when its place is needed, else when fewer were enough for a while.
    fn shrink(&mut self, missing: u32) {
        let world = self.world;
        let surplus = surplus(world, &self.targets);
        let there = world.busy() + world.count(|seen| seen.current && seen.is_capacity());
        let stable = there.saturating_sub(self.memory.window.max().max(self.targets.desired));
        let taken = u32::try_from(self.decision.cordon.len()).unwrap_or(u32::MAX).saturating_add(leaving(world));
        let number = stable.max(missing.saturating_sub(taken)) as usize;
        for seen in surplus.iter().take(number) {
            match (seen.state, seen.agent) {
                (State::Starting, _) => self.decision.remove.push(removal(seen.pod, Why::NeverRegistered)),
                (_, Some(agent)) => self.decision.cordon.push(agent.id.clone()),
                _ => {}
            }
        }
        if surplus.len() > number
            && let Some(at_ms) = self.memory.window.falls_at(self.numbers.stabilization_ms)
        {
            self.look_at(at_ms);
        }
    }

    /// Jobs whose image cannot be had fail, instead of waiting for ever.
    fn fail_images(&mut self) {
        let world = self.world;
        for group in world.queue.iter().filter(|group| !world.is_healthy(Some(&group.image))) {
            let broken = world.pods.iter().filter(|seen| seen.current && seen.state == State::Broken);
            let broken = broken.map(|seen| seen.pod).filter(|pod| pod.image == group.image && concerns_one_image(pod));
            let Some(pod) = broken.min_by_key(|pod| pod.created_ms) else { continue };
            let Some(problem) = &pod.problem else { continue };
            if !problem.permanent && self.input.now_ms - pod.created_ms < REGISTRY_PATIENCE_MS {
                self.look_at(pod.created_ms + REGISTRY_PATIENCE_MS);
                continue;
            }
            let image = problem.image.as_deref().unwrap_or(&group.image);
            let message = format!(
                "The run image {image} cannot be pulled: {}. Correct the image in the pool or the workspace, or give the \
                 pool credentials for the registry (agents.imagePullSecrets).",
                problem.message.trim_end_matches('.')
            );
            let fail = |image: &Option<String>| FailImage { image: image.clone(), message: message.clone() };
            self.decision.fail.extend(group.named.iter().map(fail));
        }
    }

    /// Why there are fewer agents than are asked for: the first of the reasons that somebody could mend.
    fn limit(&self, missing: u32) -> Option<Limit> {
        let Self { world, targets, .. } = self;
        let ready = |image: &str| world.count(|seen| seen.state == State::Idle && seen.pod.image == image);
        let lacking = |image: &str| targets.of(image) > world.capacity(image);
        let waiting = world.waiting();
        let short = targets.wanted.iter().any(|(image, wanted)| ready(image) < *wanted);
        let held = targets.wanted.iter().find(|(image, _)| short && lacking(image));
        let (reason, why) = held
            .and_then(|_| self.held_back())
            .or_else(|| {
                let starting = world.pods.iter().filter(|seen| short && seen.state == State::Starting);
                let problems = starting.filter_map(|seen| seen.pod.problem.as_ref());
                let unscheduled = problems.into_iter().find(|problem| problem.fault == Fault::Unschedulable);
                unscheduled.map(|problem| (reason::UNSCHEDULABLE, problem.message.clone()))
            })
            .or_else(|| {
                let field = if self.numbers.min_idle.is_some() { "maxAgents" } else { "replicas" };
                (waiting > 0 && (missing > 0 || targets.asked > targets.desired))
                    .then(|| (reason::MAX_REPLICAS_REACHED, format!("limited by {field}: {}", self.numbers.most)))
            })?;
        Some(Limit { reason, message: format!("{}, {why}", numbers_text(waiting, targets.asked)) })
    }

    /// Why what is lacking is not created.
    fn held_back(&self) -> Option<(&'static str, String)> {
        let pause = self.memory.pause(self.input.now_ms);
        if let Some(Pause::Refused { reason, message, .. }) = pause {
            return Some((reason, format!("the cluster refused the last Pod: {message}")));
        }
        for (image, _) in &self.targets.wanted {
            let Some(problem) = self.blocked.by(image).and_then(|pod| pod.problem.as_ref()) else { continue };
            let reason = match problem.fault {
                Fault::ImagePullFailed => reason::IMAGE_PULL_FAILED,
                _ => reason::INVALID_SPEC,
            };
            return Some((reason, format!("no Pod can start: {}", problem.message)));
        }
        match pause {
            Some(Pause::Failing { in_a_row, message, .. }) if in_a_row > 1 => Some((
                reason::COOLDOWN,
                format!("{in_a_row} Pods in a row failed, and new ones are tried with growing pauses: {message}"),
            )),
            _ => None,
        }
    }
}

/// Pods that give their places free soon, without being asked again.
fn leaving(world: &World<'_>) -> u32 {
    world.count(|seen| match seen.state {
        State::Cordoned | State::Finishing | State::Abandoned => true,
        State::Ending => seen.agent.is_none_or(|agent| agent.jobs == 0),
        _ => false,
    })
}

/// A Pod that cannot start, where others of its kind run: the node's problem, and another node may do.
pub(super) fn is_given_up(input: &ScaleInput<'_>, world: &World<'_>, seen: &Seen<'_>) -> bool {
    let image = concerns_one_image(seen.pod).then_some(seen.pod.image.as_str());
    seen.state == State::Broken && world.is_healthy(image) && input.now_ms - seen.pod.created_ms >= GIVE_UP_MS
}

/// Pods beyond their image's number, those first that are missed least: not yet started, youngest.
fn surplus<'w, 'a>(world: &'w World<'a>, targets: &Targets) -> Vec<&'w Seen<'a>> {
    let mut candidates: Vec<&Seen<'_>> =
        world.pods.iter().filter(|seen| seen.current && seen.is_capacity() && seen.state != State::Lost).collect();
    candidates.sort_by_key(|seen| {
        (seen.state != State::Starting, std::cmp::Reverse(seen.pod.created_ms), seen.pod.name.as_str())
    });
    let images: BTreeSet<&str> = candidates.iter().map(|seen| seen.pod.image.as_str()).collect();
    let mut left: BTreeMap<&str, u32> =
        images.into_iter().map(|image| (image, world.capacity(image).saturating_sub(targets.of(image)))).collect();
    candidates.retain(|seen| match left.get_mut(seen.pod.image.as_str()) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    });
    candidates
}

pub(super) fn problem_text(pod: &PodView) -> String {
    match &pod.problem {
        Some(problem) => problem.message.clone(),
        None if pod.phase == Phase::Failed => "the Pod failed".to_owned(),
        None => "the Pod does not start".to_owned(),
    }
}

/// As `14 runs wait, 15 agents are wanted`.
fn numbers_text(waiting: u32, asked: u32) -> String {
    let runs = if waiting == 1 { "1 run waits".to_owned() } else { format!("{waiting} runs wait") };
    let agents = if asked == 1 { "1 agent is wanted".to_owned() } else { format!("{asked} agents are wanted") };
    format!("{runs}, {agents}")
}
