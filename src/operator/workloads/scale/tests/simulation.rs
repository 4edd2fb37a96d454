//! A simulated cluster and control plane: Pods start, agents register, claim and finish, in any order.

use proptest::prelude::*;
use serde_json::json;

use super::{agent, pod_view, spec};
use crate::{
    api::{
        agent::AgentStatus,
        iacp::demand::{PoolDemand, QueuedJobs},
    },
    crd::AgentPoolSpec,
    operator::workloads::{
        Phase, allows_image,
        scale::{Memory, ScaleDecision, ScaleInput, Why, decide},
    },
};

#[derive(Debug, Clone, Copy)]
enum Event {
    /// A Pod that starts gets on: its agent registers.
    Start(usize),
    /// An agent takes a job.
    Claim(usize),
    /// A busy agent is done, and its Pod with it.
    Finish(usize),
    /// A Pod fails.
    Fail(usize),
    /// A job comes: of the default image or of another.
    Job(bool),
    /// A queued job is taken back.
    Cancel(bool),
    /// The pool is edited: every Pod is of an earlier template.
    Edit,
    Wait(i64),
    /// The operator looks. Without an answer of the control plane when false.
    Look(bool),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let which = 0..8_usize;
    let event = prop_oneof![
        3 => which.clone().prop_map(Event::Start),
        3 => which.clone().prop_map(Event::Claim),
        2 => which.clone().prop_map(Event::Finish),
        1 => which.prop_map(Event::Fail),
        2 => any::<bool>().prop_map(Event::Job),
        1 => any::<bool>().prop_map(Event::Cancel),
        1 => Just(Event::Edit),
        2 => (1..100_000_i64).prop_map(Event::Wait),
        6 => prop::bool::weighted(0.9).prop_map(Event::Look),
    ];
    prop::collection::vec(event, 0..120)
}

struct Sim {
    spec: AgentPoolSpec,
    most: usize,
    stabilization_ms: i64,
    now_ms: i64,
    template: usize,
    pods: Vec<crate::operator::workloads::PodView>,
    demand: PoolDemand,
    memory: Memory,
    made: usize,
    /// When how many agents were wanted.
    history: Vec<(i64, u32)>,
}

impl Sim {
    fn new(min_idle: u32, most: u32, stabilization: u32) -> Self {
        let agents = json!({"minIdle": min_idle, "maxAgents": most, "scaleDown": {"stabilization": format!("{stabilization}s")}});
        Self {
            spec: spec(&json!({"agents": agents, "runs": {"allowedImages": ["B"]}})),
            most: most as usize,
            stabilization_ms: i64::from(stabilization) * 1000,
            now_ms: 1_000_000,
            template: 0,
            pods: Vec::new(),
            demand: PoolDemand { queued: Vec::new(), agents: Vec::new(), registrations: 0, linked_workspaces: 0 },
            memory: Memory::default(),
            made: 0,
            history: Vec::new(),
        }
    }

    fn queued(&self) -> u32 {
        self.demand.queued.iter().map(|group| group.jobs).sum()
    }

    fn queue(&mut self, other: bool, change: i32) {
        let image = other.then(|| "B".to_owned());
        assert!(image.as_deref().is_none_or(|image| allows_image(&self.spec, image)));
        let group = self.demand.queued.iter_mut().find(|group| group.image == image);
        match (group, change) {
            (Some(group), _) => group.jobs = group.jobs.saturating_add_signed(change),
            (None, 1) => self.demand.queued.push(QueuedJobs { image, run_as_root: false, jobs: 1, oldest_seconds: 1 }),
            (None, _) => {}
        }
        self.demand.queued.retain(|group| group.jobs > 0);
    }

    /// The `n`th of the Pods that fit, by name.
    fn pick(&self, n: usize, fits: impl Fn(&Sim, &str) -> bool) -> Option<String> {
        let names: Vec<&String> = self.pods.iter().map(|pod| &pod.name).filter(|name| fits(self, name)).collect();
        (!names.is_empty()).then(|| names[n % names.len()].clone())
    }

    fn pod(&mut self, name: &str) -> &mut crate::operator::workloads::PodView {
        self.pods.iter_mut().find(|pod| pod.name == name).unwrap()
    }

    fn agent(&self, name: &str) -> Option<&crate::api::iacp::demand::DemandAgent> {
        self.demand.agents.iter().find(|agent| agent.name == name)
    }

    fn phase(&self, name: &str) -> Phase {
        self.pods.iter().find(|pod| pod.name == name).unwrap().phase
    }

    /// The agent is gone, and its Pod ends; one that was deleted vanishes.
    fn end(&mut self, name: &str, phase: Phase) {
        self.demand.agents.retain(|agent| agent.name != name);
        if self.phase(name) == Phase::Ending {
            self.pods.retain(|pod| pod.name != name);
        } else {
            self.pod(name).phase = phase;
        }
    }

    fn happen(&mut self, event: Event) -> bool {
        match event {
            Event::Start(n) => {
                let Some(name) = self.pick(n, |sim, name| sim.phase(name) == Phase::Starting) else { return false };
                self.pod(&name).phase = Phase::Running;
                self.demand.agents.push(agent(&name, 0));
                self.demand.registrations += 1;
            }
            Event::Claim(n) => {
                let free = |sim: &Sim, name: &str| {
                    let pod = sim.pods.iter().find(|pod| pod.name == name).unwrap();
                    let wanted = Some(pod.image.clone()).filter(|image| !image.is_empty());
                    pod.phase == Phase::Running
                        && sim.agent(name).is_some_and(|agent| agent.jobs == 0 && !agent.cordoned)
                        && sim.demand.queued.iter().any(|group| group.image == wanted)
                };
                let Some(name) = self.pick(n, free) else { return false };
                let other = self.pod(&name).image == "B";
                self.queue(other, -1);
                let agent = self.demand.agents.iter_mut().find(|agent| agent.name == name).unwrap();
                (agent.jobs, agent.status) = (1, AgentStatus::Busy);
            }
            Event::Finish(n) => {
                let busy = |sim: &Sim, name: &str| sim.agent(name).is_some_and(|agent| agent.jobs > 0);
                let Some(name) = self.pick(n, busy) else { return false };
                self.end(&name, Phase::Succeeded);
            }
            Event::Fail(n) => {
                let lives = |sim: &Sim, name: &str| matches!(sim.phase(name), Phase::Starting | Phase::Running);
                let Some(name) = self.pick(n, lives) else { return false };
                self.end(&name, Phase::Failed);
            }
            Event::Job(other) => self.queue(other, 1),
            Event::Cancel(other) => self.queue(other, -1),
            Event::Edit => self.template += 1,
            Event::Wait(ms) => self.now_ms += ms,
            Event::Look(known) => return self.look(known),
        }
        true
    }

    /// One decision, checked and carried out. Says whether it did anything.
    fn look(&mut self, known: bool) -> bool {
        let template = format!("t{}", self.template);
        let decision = decide(&ScaleInput {
            spec: &self.spec,
            template: &template,
            now_ms: self.now_ms,
            demand: known.then_some(&self.demand),
            pods: &self.pods,
            memory: &self.memory,
            deleted_ms: None,
        });
        self.check(&decision, known, &template);
        self.memory = decision.memory.clone();
        self.history.push((self.now_ms, decision.desired));
        for create in &decision.create {
            self.made += 1;
            let mut pod = pod_view(&format!("p{}", self.made), self.now_ms);
            (pod.phase, pod.template) = (Phase::Starting, template.clone());
            pod.image = create.image.clone().unwrap_or_default();
            self.pods.push(pod);
            self.memory.created();
        }
        for removal in &decision.remove {
            match self.phase(&removal.name) {
                Phase::Succeeded | Phase::Failed | Phase::Starting => self.pods.retain(|pod| pod.uid != removal.uid),
                _ => {
                    let name = removal.name.clone();
                    self.demand.agents.retain(|agent| agent.name != name);
                    self.pods.retain(|pod| pod.uid != removal.uid);
                }
            }
        }
        for id in &decision.cordon {
            self.demand.agents.iter_mut().find(|agent| agent.id == *id).unwrap().cordoned = true;
        }
        for name in &decision.mark_busy {
            self.pod(name).busy = true;
        }
        let live = self.pods.iter().filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed)).count();
        assert!(live <= self.most, "{live} agents, at most {}: {decision:?}", self.most);
        let ScaleDecision { create, cordon, remove, mark_busy, fail, .. } = &decision;
        assert!(fail.is_empty());
        !(create.is_empty() && cordon.is_empty() && remove.is_empty() && mark_busy.is_empty())
    }

    fn check(&self, decision: &ScaleDecision, known: bool, template: &str) {
        for removal in &decision.remove {
            let agent = self.agent(&removal.name);
            assert!(agent.is_none_or(|agent| agent.jobs == 0), "{} is busy: {removal:?}", removal.name);
            match removal.why {
                Why::Finished => assert!(matches!(self.phase(&removal.name), Phase::Succeeded | Phase::Failed)),
                Why::Cordoned => assert!(agent.unwrap().cordoned),
                Why::NeverRegistered => assert!(agent.is_none()),
                Why::DrainTimeout | Why::Abandoned => panic!("{removal:?}"),
            }
            assert!(known || removal.why == Why::Finished, "{removal:?}");
        }
        assert!(known || decision.cordon.is_empty());
        // A queue of another image and an edit of the pool are reasons to replace agents at once.
        let same = self.pods.iter().all(|pod| pod.template == template && pod.image.is_empty());
        if same && self.demand.queued.iter().all(|group| group.image.is_none()) && !decision.cordon.is_empty() {
            let live = self.pods.iter().filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed)).count();
            let from = self.now_ms - self.stabilization_ms;
            let mut held = self.history.iter().rev();
            for (at, wanted) in held.by_ref().take_while(|(at, _)| *at > from).chain([&(0, decision.desired)]) {
                assert!((*wanted as usize) < live, "{wanted} were wanted at {at} of {live}: {decision:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_converges_and_no_busy_agent_is_removed(
        events in events(), min_idle in 0..4_u32, more in 0..4_u32, stabilization in prop_oneof![Just(0_u32), Just(60)],
    ) {
        let mut sim = Sim::new(min_idle, (min_idle + more).max(1), stabilization);
        for event in events {
            sim.happen(event);
        }
        // From here on everything gets on, and nothing new comes.
        let mut quiet = 0;
        for _ in 0..2000 {
            while sim.happen(Event::Start(0)) || sim.happen(Event::Claim(0)) || sim.happen(Event::Finish(0)) {}
            quiet = if sim.look(true) { 0 } else { quiet + 1 };
            sim.now_ms += 10_000;
            if quiet == 50 {
                break;
            }
        }
        prop_assert_eq!(quiet, 50, "never at rest: {:?}", sim.pods);
        prop_assert_eq!(sim.queued(), 0);
        prop_assert_eq!(sim.pods.len(), min_idle as usize);
        let template = format!("t{}", sim.template);
        prop_assert!(sim.pods.iter().all(|pod| pod.template == template && pod.image.is_empty()));
        prop_assert_eq!(sim.demand.agents.len(), min_idle as usize);
    }
}
