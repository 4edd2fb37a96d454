//! Decisions, one by one and in a simulated world.

mod simulation;

use serde_json::{Value, json};

use super::*;
use crate::{
    api::{
        agent::AgentStatus,
        iacp::demand::{DemandAgent, QueuedJobs},
    },
    crd::conditions::reason,
    operator::workloads::{Fault, PodProblem},
};

const NOW: i64 = 1_000_000_000;

fn spec(value: &Value) -> AgentPoolSpec {
    serde_json::from_value(value.clone()).unwrap()
}

pub(super) fn agent(name: &str, jobs: u32) -> DemandAgent {
    DemandAgent {
        id: format!("agent-{}", name.replace('-', "")).parse().unwrap(),
        name: name.to_owned(),
        status: if jobs > 0 { AgentStatus::Busy } else { AgentStatus::Idle },
        error_message: None,
        draining: false,
        cordoned: false,
        revoked: false,
        version: "0.1.0".to_owned(),
        slots: 1,
        jobs,
        seen_seconds_ago: 1,
    }
}

pub(super) fn pod_view(name: &str, created_ms: i64) -> PodView {
    PodView {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        resource_version: "1".to_owned(),
        created_ms,
        ends_ms: None,
        phase: Phase::Running,
        agent_ended_ms: None,
        image: String::new(),
        template: "t".to_owned(),
        busy: false,
        node: None,
        problem: None,
    }
}

fn no_image(run_image: bool, permanent: bool) -> Option<PodProblem> {
    let image = Some("x:1".to_owned());
    Some(PodProblem { fault: Fault::ImagePullFailed, message: "not there".to_owned(), image, run_image, permanent })
}

/// A world, written as `name:state/age name:state …`. A state may have `old-` (another template) or `B-` (image B)
/// before it, and `*` (labelled busy) after it.
struct Case {
    pods: Vec<PodView>,
    demand: PoolDemand,
    memory: Memory,
}

fn case(world: &str, queue: &str) -> Case {
    let mut case = Case {
        pods: Vec::new(),
        demand: PoolDemand { queued: Vec::new(), agents: Vec::new(), registrations: 0, linked_workspaces: 0 },
        memory: Memory::default(),
    };
    for word in world.split_whitespace() {
        let (name, rest) = word.split_once(':').unwrap();
        let (state, age) = rest.split_once('/').unwrap_or((rest, "30"));
        case.pod(name, state, age.parse().unwrap());
    }
    for word in queue.split_whitespace() {
        let (jobs, rest) = word.split_once('@').unwrap_or((word, ""));
        let (image, oldest) = rest.split_once('/').unwrap_or((rest, "1"));
        let image = Some(image).filter(|image| !image.is_empty()).map(str::to_owned);
        let (jobs, oldest_seconds) = (jobs.parse().unwrap(), oldest.parse().unwrap());
        case.demand.queued.push(QueuedJobs { image, run_as_root: false, jobs, oldest_seconds });
    }
    case
}

impl Case {
    fn pod(&mut self, name: &str, state: &str, age_seconds: i64) {
        let mut pod = pod_view(name, NOW - age_seconds * 1000);
        let state = state.strip_suffix('*').inspect(|_| pod.busy = true).unwrap_or(state);
        let state = state.strip_prefix("old-").inspect(|_| pod.template = "old".to_owned()).unwrap_or(state);
        let state = state.strip_prefix("B-").inspect(|_| pod.image = "B".to_owned()).unwrap_or(state);
        let mut its = Some(agent(name, u32::from(state.ends_with("busy"))));
        let own = its.as_mut().unwrap();
        match state {
            "idle" | "busy" => {}
            "cordoned" | "cordoned-busy" => own.cordoned = true,
            "draining" => own.draining = true,
            "lost" => (own.status, own.seen_seconds_ago) = (AgentStatus::Offline, age_seconds),
            "revoked" | "revoked-busy" => (own.status, own.revoked) = (AgentStatus::Offline, true),
            // Its agent ended in this moment, or so long ago that the rest of the Pod should have.
            "left" | "left-busy" => pod.agent_ended_ms = Some(NOW - 5_000),
            "abandoned" | "abandoned-busy" => pod.agent_ended_ms = Some(NOW - 25_000),
            "errored" => own.status = AgentStatus::Errored,
            "ending" | "ending-busy" => (pod.phase, pod.ends_ms) = (Phase::Ending, Some(NOW + 1000)),
            "foreign" => {
                self.demand.agents.extend(its);
                return;
            }
            _ => {
                its = None;
                match state {
                    "starting" => pod.phase = Phase::Starting,
                    "unschedulable" => {
                        pod.phase = Phase::Starting;
                        pod.problem = no_image(false, false).map(|problem| PodProblem {
                            fault: Fault::Unschedulable,
                            image: None,
                            ..problem
                        });
                    }
                    "broken" => (pod.phase, pod.problem) = (Phase::Starting, no_image(true, true)),
                    "unreachable" => (pod.phase, pod.problem) = (Phase::Starting, no_image(true, false)),
                    "agentless" => (pod.phase, pod.problem) = (Phase::Starting, no_image(false, true)),
                    "crashed" | "crashed-before" => {
                        pod.agent_ended_ms = Some(NOW - if state == "crashed" { 5_000 } else { 25_000 });
                        let message = "container agent ended with exit code 1".to_owned();
                        pod.problem = no_image(false, false).map(|problem| PodProblem {
                            fault: Fault::Exited,
                            message,
                            image: None,
                            ..problem
                        });
                    }
                    "ending-long" | "ending-soon" => {
                        pod.phase = Phase::Ending;
                        pod.ends_ms = Some(NOW + if state == "ending-long" { 600_000 } else { 9_000 });
                        pod.agent_ended_ms = Some(NOW - 25_000);
                    }
                    "done" => pod.phase = Phase::Succeeded,
                    "failed" => pod.phase = Phase::Failed,
                    "removed" => (pod.phase, pod.ends_ms) = (Phase::Succeeded, Some(NOW)),
                    "overdue" => (pod.phase, pod.ends_ms) = (Phase::Ending, Some(NOW - 61_000)),
                    "finishing" => drop(self.memory.registered.insert(pod.name.clone(), pod.uid.clone())),
                    other => panic!("no state `{other}`"),
                }
            }
        }
        self.demand.agents.extend(its);
        self.pods.push(pod);
    }

    /// Nothing was wanted in the last while.
    fn calm(mut self) -> Self {
        self.memory.window.push(NOW - 3_600_000, 0, 1);
        self
    }

    fn decide(&self, spec: &AgentPoolSpec, demand: Option<&PoolDemand>, deleted_ms: Option<i64>) -> ScaleDecision {
        let (pods, memory) = (self.pods.as_slice(), &self.memory);
        decide(&ScaleInput { spec, template: "t", now_ms: NOW, demand, pods, memory, deleted_ms })
    }

    fn scaled(&self, agents: &Value) -> String {
        let runs = json!({"allowedImages": ["B"]});
        shown(&self.decide(&spec(&json!({"agents": agents, "runs": runs})), Some(&self.demand), None))
    }
}

/// A decision in one line.
fn shown(decision: &ScaleDecision) -> String {
    let mut parts = Vec::new();
    let default = decision.create.iter().filter(|create| create.image.is_none()).count();
    for (number, of) in [(default, ""), (decision.create.len() - default, "@B")] {
        if number > 0 {
            parts.push(format!("+{number}{of}"));
        }
    }
    let mut list = |what: &str, mut names: Vec<String>| {
        names.sort();
        if !names.is_empty() {
            parts.push(format!("{what} {}", names.join(",")));
        }
    };
    let name = |id: &AgentId| id.as_str().trim_start_matches("agent-").to_owned();
    list("cordon", decision.cordon.iter().map(name).collect());
    list("remove", decision.remove.iter().map(|removal| format!("{}:{:?}", removal.name, removal.why)).collect());
    list("busy", decision.mark_busy.clone());
    list("fail", decision.fail.iter().map(|fail| fail.image.clone().unwrap_or_else(|| "default".to_owned())).collect());
    parts.push(format!("={}", decision.desired));
    parts.extend(decision.limited.iter().map(|limit| format!("!{}", limit.reason)));
    parts.join("; ")
}

#[test]
fn decisions_follow_from_what_is_there() {
    let one = || json!({});
    let zero = || json!({"minIdle": 0});
    let most = |most: u32| json!({"maxAgents": most});
    let fixed = |number: u32| json!({"replicas": number});
    #[rustfmt::skip]
    let table = [
        ("an empty pool keeps one agent waiting", one(), "", "", "+1; =1"),
        ("what is there is enough", one(), "a:idle", "", "=1"),
        ("queued jobs get agents beside the idle one", one(), "a:idle", "3", "+3; =4"),
        ("a busy agent is marked and replaced", one(), "a:busy", "", "+1; busy a; =2"),
        ("a marked one is not marked again", one(), "a:busy* b:idle", "", "=2"),
        ("scale from zero", zero(), "", "1", "+1; =1"),
        ("zero stays zero", zero(), "", "", "=0"),
        ("a starting Pod is on its way", one(), "a:starting", "1", "+1; =2"),
        ("several starting Pods are enough", one(), "a:starting b:starting", "1", "=2"),
        ("at most maxAgents", most(3), "a:busy* b:busy*", "14", "+1; =3; !MaxReplicasReached"),
        ("full, and nothing waits", most(2), "a:busy* b:busy*", "", "=2"),
        ("full, and something waits", most(2), "a:busy* b:busy*", "1", "=2; !MaxReplicasReached"),
        ("more than maxAgents are busy after an edit", most(1), "a:busy* b:busy*", "", "=2"),
        ("fixed number", fixed(3), "", "", "+3; =3"),
        ("fixed number with busy ones", fixed(3), "a:busy* b:idle c:idle", "", "=3"),
        ("fixed number is lowered at once", fixed(1), "a:idle b:idle c:idle", "", "cordon a,b; =1"),
        ("fixed number of zero", fixed(0), "a:idle", "", "cordon a; =0"),
        ("fixed number of zero lets the busy one finish", fixed(0), "a:busy* b:starting", "", "remove b:NeverRegistered; =1"),
        ("fixed number and a queue", fixed(2), "", "5", "+2; =2; !MaxReplicasReached"),
        ("replicas are ignored beside minIdle", json!({"replicas": 5, "minIdle": 1}), "", "", "+1; =1"),
        ("replicas are ignored beside maxAgents", json!({"replicas": 5, "maxAgents": 9}), "", "", "+1; =1"),
        ("another image needs Pods of its own", one(), "a:idle", "2@B", "+2@B; =3"),
        ("an image that is not allowed gets none", one(), "a:idle", "2@C", "=1"),
        ("an idle agent makes room for another image", most(1), "a:idle", "1@B", "cordon a; =1; !MaxReplicasReached"),
        ("and only once", most(1), "a:cordoned", "1@B", "remove a:Cordoned; =1; !MaxReplicasReached"),
        ("the longest waiting image comes first", most(1), "", "1@B/9 1@/5", "+1@B; =1; !MaxReplicasReached"),
        ("or the other one", most(1), "", "1@B/5 1@/9", "+1; =1; !MaxReplicasReached"),
        ("an ended Pod is removed and replaced", one(), "a:done", "", "+1; remove a:Finished; =1"),
        ("a removed Pod is not removed again", one(), "a:removed", "", "+1; =1"),
        ("a failed Pod is removed, and the next one waits a moment", one(), "a:failed", "", "remove a:Finished; =1"),
        ("a Pod that failed in its run is as good as any", one(), "a:failed*", "", "+1; remove a:Finished; =1"),
        ("a Pod about to end is none", one(), "a:finishing", "", "+1; =1"),
        ("a draining agent is none", one(), "a:draining", "", "+1; =1"),
        ("an agent cordoned by somebody is replaced", one(), "a:cordoned", "", "+1; remove a:Cordoned; =1"),
        ("a cordoned busy agent finishes", one(), "a:cordoned-busy* b:idle", "", "=2"),
        ("an ending idle Pod is none", one(), "a:ending", "", "+1; =1"),
        ("but takes its place", most(1), "a:ending", "", "=1"),
        ("an ending busy Pod takes its place", most(1), "a:ending-busy", "1", "=1; !MaxReplicasReached"),
        ("a Pod of a node that is gone takes none", most(1), "a:overdue", "", "+1; =1"),
        ("an agent may be silent for a while", one(), "a:lost/100", "", "=1"),
        ("but not longer", one(), "a:lost/130", "", "+1; cordon a; =1"),
        ("an agent may have an error for a while", one(), "a:errored/100", "", "=1"),
        ("but no longer", one(), "a:errored/130", "", "cordon a; =1"),
        ("a revoked agent is replaced at once", one(), "a:revoked", "", "+1; cordon a; =1"),
        ("unless it has a job, until its lease is over", one(), "a:revoked-busy*", "", "+1; =2"),
        ("a Pod that its agent has left is none", one(), "a:left", "", "+1; =1"),
        ("whatever the control plane says of its agent", one(), "a:left-busy*", "", "+1; =1"),
        ("it takes its place", most(1), "a:left-busy*", "", "=1"),
        ("but not for ever", most(1), "a:abandoned-busy*", "", "remove a:Abandoned; =1"),
        ("nor when it was idle", one(), "a:abandoned", "", "+1; remove a:Abandoned; =1"),
        ("nor when somebody gave it time that it has no use for", one(), "a:ending-long", "", "+1; remove a:Abandoned; =1"),
        ("unless it ends soon anyway", one(), "a:ending-soon", "", "+1; =1"),
        ("an agent that crashes at once is no reason to try again at once", one(), "a:crashed", "", "=1; !InvalidSpec"),
        ("but it is tried again", one(), "a:crashed-before", "", "remove a:Abandoned; =1"),
        ("agents of others take jobs", one(), "a:idle f:foreign", "1", "=1"),
        ("as many as they can", one(), "a:idle f:foreign", "3", "+2; =3"),
        ("unless they leave them alone", one(), "a:idle f:foreign", "1@/20", "+1; =2"),
        ("of the default image only", one(), "a:idle f:foreign", "1@B", "+1@B; =2"),
        ("of an image that cannot be had one Pod stays", one(), "a:broken/50 b:broken", "", "remove b:NeverRegistered; =1; !ImagePullFailed"),
        ("and what waits for it fails", one(), "a:broken", "2", "fail default; =3; !ImagePullFailed"),
        ("other images go on", one(), "a:broken", "1@B", "+1@B; =2; !ImagePullFailed"),
        ("nobody needs that Pod", one(), "a:idle b:B-broken", "", "remove b:NeverRegistered; =1"),
        ("a registry may be away for a while", one(), "a:unreachable/50", "1", "=2; !ImagePullFailed"),
        ("but no longer", one(), "a:unreachable/61", "1", "fail default; =2; !ImagePullFailed"),
        ("without the agent's image nothing goes, and runs wait", one(), "a:agentless", "1 1@B", "=3; !ImagePullFailed"),
        ("a bad node among good ones gets time", one(), "a:idle b:broken/10", "1", "=2"),
        ("and then another node is tried", one(), "a:idle b:broken/90", "1", "remove b:NeverRegistered; =2"),
        ("no node has room", one(), "a:unschedulable", "1", "+1; =2; !Unschedulable"),
        ("an outdated idle agent stays until another one is ready", one(), "a:old-idle", "", "+1; =1"),
        ("still", one(), "a:old-idle b:starting", "", "=1"),
        ("then it goes", one(), "a:old-idle b:idle", "", "cordon a; =1"),
        ("it goes first when there is no room", most(1), "a:old-idle", "", "cordon a; =1"),
        ("an outdated busy agent finishes", most(1), "a:old-busy*", "", "=1"),
        ("an outdated Pod that has not started goes at once", one(), "a:old-starting", "", "+1; remove a:NeverRegistered; =1"),
        ("an outdated broken one too", one(), "a:old-broken", "", "+1; remove a:NeverRegistered; =1"),
    ];
    assert!(table.len() >= 40);
    for (what, agents, world, queue, wanted) in table {
        assert_eq!(case(world, queue).scaled(&agents), wanted, "{what}: {world} | {queue}");
    }
}

#[test]
fn too_many_agents_go_when_fewer_were_enough_for_a_while() {
    let table = [
        ("a:idle b:idle", json!({}), "cordon a; =1"),
        ("a:idle/10 b:idle/20", json!({"minIdle": 0}), "cordon a,b; =0"),
        // The youngest goes first, and what has not started before that.
        ("a:idle/10 b:idle/20", json!({}), "cordon a; =1"),
        ("a:idle b:starting", json!({}), "remove b:NeverRegistered; =1"),
        ("a:busy* b:idle", json!({"minIdle": 0}), "cordon b; =1"),
        ("a:B-idle b:idle", json!({}), "cordon a; =1"),
    ];
    for (world, agents, wanted) in table {
        assert_eq!(case(world, "").calm().scaled(&agents), wanted, "{world}");
        // Nobody knows what was wanted before: it may have been all of it.
        let fresh = case(world, "").scaled(&agents);
        assert!(!fresh.contains("cordon") && !fresh.contains("remove"), "{world}: {fresh}");
    }
}

#[test]
fn the_next_look_is_when_something_may_change() {
    let look = |world: &str, agents: &Value| {
        let case = case(world, "");
        case.decide(&spec(&json!({"agents": agents})), Some(&case.demand), None).next_ms
    };
    assert_eq!(look("a:idle", &json!({})), None);
    assert_eq!(look("a:idle b:idle", &json!({"scaleDown": {"stabilization": "90s"}})), Some(90_000));
    assert_eq!(look("a:failed", &json!({})), Some(1_000));
    assert_eq!(look("a:lost/100", &json!({})), Some(20_000));
    assert_eq!(look("a:left b:idle", &json!({})), Some(5_000));
    assert_eq!(look("a:abandoned b:idle", &json!({})), None);
    assert_eq!(look("a:ending-soon b:idle", &json!({})), None);
    assert_eq!(look("a:idle b:broken/10", &json!({"minIdle": 2})), Some(50_000));
}

#[test]
fn a_deleted_pool_lets_busy_agents_finish() {
    let spec = spec(&json!({"agents": {"drainTimeout": "10m"}}));
    let world = "a:idle b:busy* c:starting d:cordoned e:done f:cordoned-busy* g:lost h:left-busy* i:abandoned-busy*";
    let case = case(world, "5");
    let decision = case.decide(&spec, Some(&case.demand), Some(NOW - 60_000));
    let wanted = "cordon a,b,g; remove c:NeverRegistered,d:Cordoned,e:Finished,i:Abandoned; =2";
    assert_eq!(shown(&decision), wanted);
    assert_eq!(decision.next_ms, Some(5_000));
    let decision = case.decide(&spec, Some(&case.demand), Some(NOW - 600_000));
    let wanted =
        "cordon a,g; remove b:DrainTimeout,c:NeverRegistered,d:Cordoned,e:Finished,f:DrainTimeout,i:Abandoned; =2";
    assert_eq!(shown(&decision), wanted);
    let decision = case.decide(&spec, None, Some(NOW - 600_000));
    assert_eq!(shown(&decision), "remove e:Finished,i:Abandoned; =2", "nobody knows who is busy");
}

#[test]
fn without_an_answer_of_the_control_plane_nothing_that_lives_is_removed() {
    let table = [
        ("", "+1; =1"),
        ("a:starting b:starting c:starting", "=1"),
        ("a:old-starting", "+1; =1"),
        ("a:done", "+1; remove a:Finished; =1"),
        ("a:busy*", "+1; =2"),
        ("a:finishing", "=1"),
        ("a:left", "+1; =1"),
        ("a:abandoned", "+1; remove a:Abandoned; =1"),
        ("a:broken b:broken", "=1; !ImagePullFailed"),
    ];
    for (world, wanted) in table {
        let decision = case(world, "").calm().decide(&spec(&json!({})), None, None);
        assert_eq!(shown(&decision), wanted, "{world}");
    }
}

#[test]
fn what_is_missing_is_said_in_words() {
    let message = |world: &str, queue: &str, agents: &Value| {
        let case = case(world, queue);
        let decision = case.decide(&spec(&json!({"agents": agents})), Some(&case.demand), None);
        decision.limited.unwrap().message
    };
    let found = message("a:busy*", "14", &json!({"maxAgents": 3}));
    assert_eq!(found, "14 runs wait, 16 agents are wanted, limited by maxAgents: 3");
    let found = message("", "1", &json!({"replicas": 0}));
    assert_eq!(found, "1 run waits, 1 agent is wanted, limited by replicas: 0");
    let found = message("a:broken", "", &json!({}));
    assert_eq!(found, "0 runs wait, 1 agent is wanted, no Pod can start: not there");
}

#[test]
fn a_refused_pod_is_tried_again_one_by_one() {
    let spec = spec(&json!({"agents": {"minIdle": 3}}));
    let mut world = case("", "");
    world.memory.create_refused(NOW - 1000, reason::QUOTA_EXCEEDED, "exceeded quota: pods".to_owned());
    let decision = world.decide(&spec, Some(&world.demand), None);
    assert_eq!((shown(&decision).as_str(), decision.next_ms), ("=3; !QuotaExceeded", Some(29_000)));
    assert!(decision.limited.unwrap().message.ends_with("the cluster refused the last Pod: exceeded quota: pods"));
    world.memory.create_refused(NOW - 61_000, reason::QUOTA_EXCEEDED, String::new());
    assert_eq!(shown(&world.decide(&spec, Some(&world.demand), None)), "+1; =3");
    world.memory.created();
    assert_eq!(shown(&world.decide(&spec, Some(&world.demand), None)), "+3; =3");
}

#[test]
fn a_template_that_always_fails_makes_at_most_one_pod_in_thirty_seconds() {
    let spec = spec(&json!({"agents": {"minIdle": 4}}));
    let demand = case("", "").demand;
    let (mut memory, mut pods, mut created) = (Memory::default(), Vec::<PodView>::new(), Vec::new());
    for second in 0..1200 {
        let now_ms = NOW + second * 1000;
        let (input_pods, input_memory) = (pods.clone(), memory.clone());
        let input = ScaleInput {
            spec: &spec,
            template: "t",
            now_ms,
            demand: Some(&demand),
            pods: &input_pods,
            memory: &input_memory,
            deleted_ms: None,
        };
        let decision = decide(&input);
        memory = decision.memory;
        pods.retain(|pod| !decision.remove.iter().any(|removal| removal.uid == pod.uid));
        for create in &decision.create {
            let mut pod = pod_view(&format!("p{second}-{}", create.index), now_ms);
            pod.phase = Phase::Failed;
            pods.push(pod);
            created.push(second);
        }
    }
    let later: Vec<_> = created.iter().filter(|second| **second > 10).collect();
    assert!(later.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{created:?}");
    assert!((4..=16).contains(&created.len()), "{created:?}");
}

#[test]
fn p05_scale_down_never_picks_a_busy_agent() {
    // 6 agents, every set of them busy: the others go, those never.
    for busy in 0..64_u32 {
        let state = |n: u32| if busy >> n & 1 == 1 { "busy*" } else { "idle" };
        let world: Vec<String> = (0..6).map(|n| format!("p{n}:{}", state(n))).collect();
        let case = case(&world.join(" "), "").calm();
        let decision = case.decide(&spec(&json!({"agents": {"minIdle": 0}})), Some(&case.demand), None);
        assert_eq!(decision.remove, [], "{world:?}");
        assert_eq!(decision.cordon.len() as u32, 6 - busy.count_ones(), "{world:?}");
        for id in &decision.cordon {
            let agent = case.demand.agents.iter().find(|agent| agent.id == *id).unwrap();
            assert_eq!(agent.jobs, 0, "{world:?}");
        }
    }
}

#[test]
fn p11_capacity_is_recomputed_from_listed_truth() {
    // Whatever was remembered of a world that is gone: the numbers are those of what is listed now.
    let worlds = ["", "a:idle", "a:busy* b:starting", "a:idle b:idle c:busy*", "a:done b:done", "a:cordoned b:idle"];
    let spec = spec(&json!({"agents": {"minIdle": 2}}));
    for before in worlds {
        for now in worlds {
            let fresh = case(now, "2");
            let mut stale = case(now, "2");
            // Of other Pods: the same one cannot be about to come again.
            let before: Vec<String> = before.split_whitespace().map(|word| format!("z{word}")).collect();
            let earlier = case(&before.join(" "), "7");
            stale.memory = earlier.decide(&spec, Some(&earlier.demand), None).memory;
            let fresh = fresh.decide(&spec, Some(&fresh.demand), None);
            let stale = stale.decide(&spec, Some(&stale.demand), None);
            assert_eq!((fresh.create, fresh.desired), (stale.create, stale.desired), "{before:?} → {now}");
        }
    }
}
