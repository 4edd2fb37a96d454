//! Defects of other operators, each a test that this one does not have it. P1 to P4 and P5's second half are also held
//! by the reconciling core alone (`sync_pool`), P5 and P11 by the decision about scaling; P8's first half is in `crds`,
//! P9 in `queue_leases` and `flow_faults_lost`, P13 in `agent_sidecar_ends`.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::json;
use terrapool::crd::POOL_FINALIZER;

use crate::support::operator::{
    cluster::Kind,
    observe::Observation,
    plan::{Failure, Point, Schedule, Sight, Trouble},
    recorder::{Class, Recorder, Write},
    runner::{describe, hub},
    scenario::{Goal, Scenario, Step, Tamper, external, idle, link, pool, with},
    stage::Stage,
};

/// Plays a scenario with these troubles and steps after it; all oracles hold. What was there at the end.
fn play(class: &'static str, scenario: &str, troubles: Vec<Trouble>, more: &[Step]) -> Observation {
    let schedule = Schedule { class, scenario: scenario.to_owned(), title: String::new(), troubles, seed: 0 };
    let (ending, seen) = hub().block_on(Box::pin(hub().run(&schedule, more)));
    assert!(!ending.failed(), "{}", describe(&ending));
    seen.unwrap()
}

fn at(label: &str, nth: usize, failure: Failure) -> Vec<Trouble> {
    vec![Trouble::Write { at: Point::Write { label: label.to_owned(), nth }, failure }]
}

fn count(seen: &Observation, label: &str) -> usize {
    seen.writes.iter().filter(|write| write.label == label).count()
}

const NEW_POOL: &str = "control-plane POST agent-pools";
const NEW_TOKEN: &str = "control-plane POST agent-pools/*/access-tokens";
const SECRET: &str = "cluster PATCH secrets";
const STATUS: &str = "cluster PATCH agentpools/status";
const NEW_POD: &str = "cluster POST pods";

fn ready(name: &'static str) -> Step {
    Step::Wait(Goal::Ready(Kind::AgentPool, name))
}

fn agents(count: usize) -> Step {
    Step::Wait(Goal::Agents(count))
}

#[test]
fn p01_crash_after_remote_create_adopts_pool_by_external_id() {
    let seen = play("P1", "B1-pool", at(NEW_POOL, 1, Failure::CrashAfter), &[]);
    assert_eq!(count(&seen, NEW_POOL), 1, "created once, then found by its external id");
    assert_eq!(seen.pools.len(), 1);
    // And its deletion leaves nothing, though the status never knew the pool.
    let seen = play("P1", "S01-create", at(NEW_POOL, 1, Failure::CrashAfter), &[]);
    assert!(seen.pools.is_empty(), "{:?}", seen.pools);
}

#[test]
fn p02_failure_of_any_token_create_leaves_secret_complete() {
    for nth in [1, 2] {
        for failure in [Failure::Answer(500), Failure::TimeoutAfter, Failure::CrashAfter] {
            play("P2", "S06-rotate", at(NEW_TOKEN, nth, failure), &[]);
        }
    }
}

#[test]
fn p03_secret_write_conflict_is_retried_until_secret_matches() {
    for nth in [1, 2] {
        for failure in [Failure::Answer(409), Failure::Answer(500), Failure::TimeoutBefore] {
            play("P3", "S06-rotate", at(SECRET, nth, failure), &[]);
        }
    }
}

#[test]
fn p04_deleted_secret_or_key_gets_a_rotated_token_in_one_reconcile() {
    for tamper in [Tamper::DeleteAll(Kind::Secret), Tamper::EmptySecret, Tamper::ForgeSecret] {
        let steps = [
            Step::Wait(Goal::OtherToken("alpha")),
            Step::Tamper(tamper.clone()),
            Step::Wait(Goal::OtherToken("alpha")),
            ready("alpha"),
        ];
        let seen = play("P4", "B1-pool", Vec::new(), &steps);
        assert_eq!(count(&seen, NEW_TOKEN), 2, "{tamper:?}: the first token and one more");
    }
}

#[test]
fn p05_scale_down_never_picks_a_busy_agent() {
    let steps = [
        Step::Apply(pool("alpha", &idle(2))),
        Step::Apply(link("app", "alpha", "app")),
        Step::Wait(Goal::Ready(Kind::WorkspaceLink, "app")),
        agents(2),
        Step::Run("app"),
        Step::Wait(Goal::Busy(1)),
        Step::Merge(Kind::AgentPool, "alpha", json!({"spec": {"agents": {"minIdle": 0}}})),
        agents(1),
        Step::Wait(Goal::Busy(1)),
        Step::Finish(true),
        Step::Wait(Goal::Done(1)),
        agents(0),
    ];
    let seen = play("P5", "B0-empty", Vec::new(), &steps);
    assert_eq!(seen.executions.len(), 1);
}

#[test]
fn p06_lost_status_write_after_pod_create_leaves_one_pod() {
    let steps = [Step::Apply(pool("alpha", &idle(1))), agents(1), ready("alpha")];
    for (label, nth, failure) in [
        (STATUS, 1, Failure::CrashBefore),
        (STATUS, 1, Failure::TimeoutBefore),
        (NEW_POD, 1, Failure::CrashAfter),
        (NEW_POD, 1, Failure::TimeoutAfter),
    ] {
        let seen = play("P6", "B0-empty", at(label, nth, failure), &steps);
        let made: BTreeSet<String> = seen
            .writes
            .iter()
            .filter(|write| write.label == NEW_POD)
            .map(|write| write.body["metadata"]["name"].to_string())
            .collect();
        assert_eq!(made.len(), 1, "{label} {failure:?}: asked again, it is the same Pod: {made:?}");
    }
}

#[test]
fn p07_every_lease_names_its_holder_and_expires() {
    let seen = play("F9", "S01-create", Vec::new(), &[]);
    let leases: Vec<&Write> = seen.writes.iter().filter(|write| write.class == Class::Lease).collect();
    assert!(!leases.is_empty(), "two operators need a Lease");
    for write in leases {
        let spec = &write.body["spec"];
        assert!(spec["holderIdentity"].is_string() && spec["renewTime"].is_string(), "{}", write.body);
        assert!(spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds > 0), "{}", write.body);
        let replaces = write.label.starts_with("cluster PUT");
        assert!(!replaces || write.body["metadata"]["resourceVersion"].is_string(), "unguarded: {}", write.body);
    }
}

#[test]
fn p08_finalizer_is_present_before_any_side_effect() {
    let seen = play("P8", "S01-create", Vec::new(), &[]);
    let first = seen.counted()[0].clone();
    assert_eq!(first.label, "cluster PATCH agentpools");
    assert!(first.body["metadata"]["finalizers"].as_array().is_some_and(|list| list.contains(&json!(POOL_FINALIZER))));
    assert!(first.body["metadata"]["resourceVersion"].is_string(), "of the object as it was read: {}", first.body);
}

#[test]
fn p10_crash_between_secret_and_owner_leaks_nothing() {
    for failure in Failure::CRASHES {
        let seen = play("P10", "S01-create", at(SECRET, 1, failure), &[]);
        for write in seen.writes.iter().filter(|write| write.label == SECRET) {
            let owner = &write.body["metadata"]["ownerReferences"][0];
            assert_eq!(owner["kind"], "AgentPool", "the owner comes with the Secret: {}", write.body["metadata"]);
        }
    }
}

#[test]
fn p11_capacity_is_recomputed_from_listed_truth() {
    let steps = [
        Step::Tamper(Tamper::DeleteAll(Kind::Pod)),
        Step::Tamper(Tamper::WipeStatus(Kind::AgentPool, "alpha")),
        Step::Replace,
        agents(2),
        Step::Tamper(Tamper::DeleteAll(Kind::Pod)),
        agents(2),
        ready("alpha"),
    ];
    play("P11", "B3-agents", Vec::new(), &steps);
}

#[test]
fn p12_dead_peer_cannot_hold_a_reconcile() {
    // Takes every connection and never says a word.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address =
        json!({"url": format!("http://{}", dead.local_addr().unwrap()), "tokenSecretRef": {"name": "t", "key": "k"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "t"}, "stringData": {"k": "x"}});
    let mut steps = vec![Step::Call("POST", "/api/v1/namespaces/$NS/secrets", secret)];
    // More than there are visits at a time.
    for name in ["dead-1", "dead-2", "dead-3", "dead-4", "dead-5"] {
        steps.push(Step::Apply(with(pool(name, &external()), "/spec/controlPlane", address.clone())));
    }
    steps.push(Step::Apply(pool("alpha", &external())));
    steps.push(ready("alpha"));
    steps.push(Step::Wait(Goal::Is(Kind::AgentPool, "dead-1", "Ready", "False", "ControlPlaneUnreachable")));
    let scenario = Scenario { name: "P12".to_owned(), steps, operators: 1 };
    let result = hub().block_on(async {
        let (plane, recorder) = (hub().plane().await, Arc::new(Recorder::new(&[], 0)));
        let cluster = hub().cluster().await;
        let stage = Box::pin(Stage::open(cluster, plane, &hub().namespace(), &scenario, recorder)).await;
        let result = Box::pin(stage.play(&scenario.steps)).await;
        let log = stage.log.text();
        Box::pin(stage.close()).await;
        result.map_err(|stuck| format!("{}\n{log}", stuck.0))
    });
    result.unwrap_or_else(|stuck| panic!("{stuck}"));
}

#[test]
fn p14_any_missed_message_still_converges() {
    for nth in 1..=5 {
        play("P14", "S05-to-zero-and-back", vec![Trouble::Sight(Sight::Drop(nth))], &[]);
    }
}

#[test]
fn p15_pod_settings_come_from_the_pool_only() {
    let before = play("P15", "B3-agents", Vec::new(), &[]);
    let steps = [
        Step::Apply(pool("alpha", &idle(2))),
        Step::Apply(link("app", "alpha", "app")),
        Step::Wait(Goal::Ready(Kind::WorkspaceLink, "app")),
        agents(2),
        // What the user of a workspace may say.
        Step::Variables("app", &["TERRAPOOL_SERVICE_ACCOUNT", "serviceAccountName", "nodeSelector", "securityContext"]),
        Step::Run("app"),
        Step::Wait(Goal::Busy(1)),
        agents(3),
        Step::Finish(true),
        Step::Wait(Goal::Done(1)),
        agents(2),
    ];
    let after = play("P15", "B0-empty", Vec::new(), &steps);
    let specs = |seen: &Observation| -> BTreeSet<String> {
        let bodies = seen.writes.iter().filter(|write| write.label == NEW_POD).map(|write| &write.body);
        bodies
            .map(|pod| {
                let name = pod["metadata"]["name"].as_str().unwrap();
                let namespace = pod["metadata"]["namespace"].as_str().unwrap();
                let text = pod["spec"].to_string().replace(name, "POD").replace(namespace, "NS");
                // The port of the control plane.
                text.split("http://127.0.0.1:")
                    .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()))
                    .collect()
            })
            .collect()
    };
    assert_eq!(specs(&before).len(), 1);
    assert_eq!(specs(&before), specs(&after));
}
