//! Our definitions on a real API server: accepted, explained, and refusing what their rules refuse.

use crate::support::{
    cluster::{Kubectl, Namespace, apiserver},
    sources::root,
};

fn prepared() -> Namespace {
    let namespace = Namespace::restricted(apiserver());
    namespace.kubectl.install_definitions();
    namespace
}

/// What the API server says to a pool with these agents.
fn refusal(kubectl: &Kubectl, agents: &str) -> String {
    let pool = format!(
        r#"{{"apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {{"name": "a"}}, "spec": {{"agents": {agents}}}}}"#
    );
    let output = kubectl.output(&["create", "--dry-run=server", "--filename", "-"], &pool);
    assert!(!output.status.success(), "accepted: {agents}");
    String::from_utf8(output.stderr).unwrap()
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
fn the_rules_refuse_with_their_own_words() {
    let namespace = prepared();
    for (agents, words) in [
        (r#"{"mode": "Node"}"#, "mode Node needs a nodeSelector"),
        (r#"{"mode": "Deployment"}"#, "mode Deployment needs a preset or an image"),
        (r#"{"mode": "Ephemeral", "concurrency": 3}"#, "concurrency belongs to mode Node"),
        (r#"{"mode": "Ephemeral", "minIdle": 30}"#, "minIdle must not exceed maxAgents"),
    ] {
        let refusal = refusal(&namespace.kubectl, agents);
        assert!(refusal.contains(words), "{agents}: {refusal}");
    }
}

#[test]
fn definitions_fit_into_a_client_side_apply() {
    let namespace = prepared();
    let crds = root().join("crds");
    // It stores the whole object in an annotation, which has a limit.
    namespace.kubectl.run(&["apply", "--dry-run=server", "--filename", crds.to_str().unwrap()]);
}

#[test]
fn kubectl_explains_fields() {
    let namespace = prepared();
    let said = namespace.kubectl.run(&["explain", "agentpool.spec.agents.minIdle"]);
    assert!(said.contains("agents kept waiting beside the busy ones"), "{said}");
}
