//! Our definitions on a real API server: accepted, explained, and refusing what their rules refuse.

use serde_json::{Value, json};

use crate::support::{
    cluster::{Namespace, apiserver},
    sources::root,
};

fn prepared() -> Namespace {
    let namespace = Namespace::restricted(apiserver());
    namespace.kubectl.install_definitions();
    namespace
}

fn pool(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn link(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

#[test]
fn what_breaks_a_rule_is_refused_with_its_words() {
    let namespace = prepared();
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
    let namespace = prepared();
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

#[test]
fn every_example_is_accepted() {
    let namespace = prepared();
    for entry in root().join("examples").read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            namespace.kubectl.run(&["apply", "--dry-run=server", "--filename", path.to_str().unwrap()]);
        }
    }
}

#[test]
fn definitions_fit_into_a_client_side_apply() {
    let namespace = prepared();
    let crds = root().join("crds");
    // It stores the whole object in an annotation, which has a limit.
    namespace.kubectl.run(&["apply", "--dry-run=server", "--filename", crds.to_str().unwrap()]);
}
