//! The definitions on the real API server: what it refuses, what it explains, what it prints, and who leads.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use terrapool::operator::{
    cluster,
    leader::{Candidate, Settings},
};
use tokio_util::sync::CancellationToken;

use crate::support::cluster::{Namespace, apiserver};

fn pool(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn link(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn namespace() -> Namespace {
    let namespace = Namespace::restricted(apiserver());
    namespace.kubectl.install_definitions();
    namespace
}

#[test]
fn what_breaks_a_rule_is_refused_with_its_words() {
    let namespace = namespace();
    let workspace = json!({"environment": "e", "name": "w"});
    for (manifest, words) in [
        (pool("a", &json!({"agents": {"minIdle": 3, "maxAgents": 2}})), "minIdle must not exceed maxAgents"),
        (pool("a", &json!({"agents": {"mode": "Node"}})), "mode Node needs a nodeSelector"),
        (pool("a", &json!({"agents": {"mode": "External", "replicas": 1}})), "replicas belongs to"),
        (pool("a", &json!({"runs": {"user": "Root"}})), "set acknowledgeRoot: true"),
        (pool("a", &json!({"scope": {"type": "Environment"}})), "environment is required"),
        (pool("a", &json!({"token": {"ttl": "1h", "rotateBefore": "2h"}})), "rotateBefore must be shorter"),
        (pool("a", &json!({"token": {"ttl": "5m"}})), "ttl is from 1h"),
        (pool("a", &json!({"runs": {"image": "terraform"}})), "spec.runs.image"),
        (pool("a", &json!({"agent": {}})), "unknown field"),
        (pool(&"a".repeat(64), &json!({})), "at most 63 characters"),
        (link("a", &json!({"workspace": workspace})), "exactly one of poolRef and pool"),
        (link("a", &json!({"poolRef": {"name": "p"}, "workspace": {"environment": "e"}})), "set either id"),
    ] {
        let output = namespace.kubectl.output(&["apply", "--filename", "-"], &manifest);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && complaint.contains(words), "{manifest}\n{complaint}");
    }
    namespace.kubectl.apply(&pool("a", &json!({})));
    let moved = namespace.kubectl.output(
        &["apply", "--filename", "-"],
        &pool("a", &json!({"scope": {"type": "Environment", "environment": "e"}})),
    );
    assert!(String::from_utf8_lossy(&moved.stderr).contains("scope is immutable"));
}

#[test]
fn kubectl_explains_scales_and_prints_pools() {
    let namespace = namespace();
    let kubectl = &namespace.kubectl;
    let explained = kubectl.run(&["explain", "agentpool.spec.agents.minIdle"]);
    assert!(explained.contains("agents kept waiting beside the busy ones"), "{explained}");
    kubectl.apply(&pool("p", &json!({"agents": {"replicas": 2}})));
    let before = kubectl.get(&["agentpool", "p"]);
    assert_eq!(
        before.pointer("/status/observedGeneration"),
        Some(&json!(-1)),
        "a new object is not finished: {before}"
    );
    kubectl.run(&["scale", "agentpool/p", "--replicas=4"]);
    let scaled = kubectl.get(&["agentpool", "p"]);
    assert_eq!(scaled.pointer("/spec/agents/replicas"), Some(&json!(4)));
    let printed = kubectl.run(&["get", "ap"]);
    let header: Vec<&str> = printed.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "READY", "AGENTS", "BUSY", "QUEUED", "SCOPE", "AGE"]);
    let all = kubectl.run(&["get", "terrapool"]);
    assert!(all.contains("agentpool.terrapool.dev/p"), "{all}");
}

/// Shortened, so that a test can wait for it.
fn settings(namespace: &str, identity: &str) -> Settings {
    Settings {
        duration: Duration::from_secs(3),
        renew_deadline: Duration::from_secs(2),
        retry: Duration::from_millis(100),
        ..Settings::new(namespace.to_owned(), identity.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_see_an_expired_lease_one_leads() {
    let namespace = namespace();
    let client = cluster::connect(Some(&apiserver())).await.unwrap();
    for round in 0..5 {
        // A holder that is gone, as a crash leaves it.
        let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace.name);
        let gone = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "terrapool-operator"}, "spec": {"holderIdentity": format!("gone-{round}"), "leaseDurationSeconds": 3}});
        let params = PatchParams::apply("test").force();
        leases.patch("terrapool-operator", &params, &Patch::Apply(&gone)).await.unwrap();
        let stop = CancellationToken::new();
        let mut candidates = tokio::task::JoinSet::new();
        for number in 0..4 {
            let mut candidate = Candidate::new(client.clone(), settings(&namespace.name, &format!("c{number}")));
            let stop = stop.clone();
            candidates.spawn(async move {
                let leads = candidate.acquire(&stop).await;
                (leads, candidate.fence().holds())
            });
        }
        let first = candidates.join_next().await.unwrap().unwrap();
        assert_eq!(first, (true, true));
        // The others have tried many times by the time that the Lease may expire; the leader here does not renew.
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        while let Some(other) = candidates.join_next().await {
            assert_eq!(other.unwrap(), (false, false), "two lead in round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_gives_the_lease_back_and_one_that_is_cut_off_loses_the_right_to_write() {
    let namespace = namespace();
    let client = cluster::connect(Some(&apiserver())).await.unwrap();
    let mut first = Candidate::new(client.clone(), settings(&namespace.name, "first"));
    let mut second = Candidate::new(client.clone(), settings(&namespace.name, "second"));
    let never = CancellationToken::new();
    assert!(first.acquire(&never).await);
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(!first.keep(&stop).await, "it was not lost");
    assert!(!first.fence().holds());
    assert!(second.acquire(&never).await);

    // Somebody takes it away: the next renewal finds out.
    let leases: Api<Lease> = Api::namespaced(client, &namespace.name);
    let taken = json!({"spec": {"holderIdentity": "third", "renewTime": null}});
    leases.patch("terrapool-operator", &PatchParams::default(), &Patch::Merge(&taken)).await.unwrap();
    assert!(second.keep(&never).await, "it was lost");
    assert!(!second.fence().holds());
}
