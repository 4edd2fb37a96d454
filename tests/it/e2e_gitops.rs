//! The resources in the hands of a GitOps engine: applied by its field manager, compared with what it wrote, pruned.

use serde_json::{Value, json};

use crate::support::e2e::{World, is_ready, name, scenery::control_plane};

const MANAGER: &str = "--field-manager=gitops";

fn manifests(world: &World, min_idle: u32) -> String {
    let labels = json!({"app.kubernetes.io/managed-by": "gitops", "team": "network"});
    let annotations = json!({"example.com/owner": "somebody"});
    let mut pool = json!({
        "apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool",
        "metadata": {"name": "kept", "labels": labels, "annotations": annotations},
        "spec": {"controlPlane": control_plane(), "agents": {"minIdle": min_idle}},
    });
    world.adapt_pool(&mut pool);
    let link = json!({
        "apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": "app", "labels": labels},
        "spec": {"poolRef": {"name": "kept"}, "workspace": {"environment": world.name(), "name": "app"}},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [pool, link]}).to_string()
}

fn apply(world: &World, manifests: &str) {
    let output = world.kubectl().output(&["apply", "--server-side", MANAGER, "--filename", "-"], manifests);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Which manager owns what of an object, at its uppermost levels.
fn owners(object: &Value) -> Vec<(String, Vec<String>)> {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let owned = |entry: &Value| {
        let mut fields: Vec<String> = entry["fieldsV1"].as_object().unwrap().keys().cloned().collect();
        if let Some(metadata) = entry["fieldsV1"]["f:metadata"].as_object() {
            fields.extend(metadata.keys().cloned());
        }
        fields
    };
    entries.iter().map(|entry| (entry["manager"].as_str().unwrap().to_owned(), owned(entry))).collect()
}

/// An object of the pool, once it is what it was.
async fn becomes_again(world: &World, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
    let path = path.replace("NAMESPACE", world.name());
    world
        .until(what, async || {
            let found = world.read(&path).await;
            if wanted(&found) { Ok(()) } else { Err(found) }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_field_manager_applied_is_left_to_it_and_drift_of_ours_is_repaired() {
    let world = World::restricted().await;
    world.make_workspace("app").await;
    world.apply_credentials();
    let wanted = manifests(&world, 1);
    apply(&world, &wanted);
    world.pool_becomes("kept", "Ready", "True").await;
    world.link_becomes("app", "Ready", "True").await;
    let pods = world.pods_become("kept", "one is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;

    // Drift by hand.
    let policy = "/apis/networking.k8s.io/v1/namespaces/NAMESPACE/networkpolicies/kept-agents";
    let budget = "/apis/policy/v1/namespaces/NAMESPACE/poddisruptionbudgets/kept-agents";
    let before = world.read(&policy.replace("NAMESPACE", world.name())).await["spec"].clone();
    assert!(before["egress"].is_array(), "{before}");
    let kubectl = world.kubectl();
    let open = json!({"spec": {"egress": [{}]}}).to_string();
    kubectl.run(&["patch", "networkpolicy", "kept-agents", "--type=merge", "--patch", &open]);
    world.kill_operator().await;
    becomes_again(&world, policy, "the NetworkPolicy is closed again", |found| found["spec"] == before).await;
    kubectl.run(&["delete", "networkpolicy", "kept-agents"]);
    becomes_again(&world, policy, "the NetworkPolicy is back", |found| found["spec"] == before).await;
    let least = world.read(&budget.replace("NAMESPACE", world.name())).await["spec"]["minAvailable"].clone();
    kubectl.run(&["patch", "pdb", "kept-agents", "--type=merge", "--patch", r#"{"spec":{"minAvailable":0}}"#]);
    becomes_again(&world, budget, "the budget is back", |found| found["spec"]["minAvailable"] == least).await;
    kubectl.run(&["delete", "pod", name(&pods[0])]);
    world
        .pods_become("kept", "another one is ready", |found| {
            found.len() == 1 && is_ready(&found[0]) && name(&found[0]) != name(&pods[0])
        })
        .await;

    // Nobody fights over the resource: its author applies the same again, and nothing changes.
    world.pool_becomes("kept", "Ready", "True").await;
    let before = world.pool("kept").await;
    apply(&world, &wanted);
    let after = world.pool("kept").await;
    assert_eq!(after["metadata"]["generation"], before["metadata"]["generation"]);
    assert_eq!(after["spec"], before["spec"]);
    let labels = json!({"app.kubernetes.io/managed-by": "gitops", "team": "network"});
    assert_eq!(after["metadata"]["labels"], labels);
    assert_eq!(after["metadata"]["annotations"], json!({"example.com/owner": "somebody"}));
    for (manager, fields) in owners(&after) {
        let has = |field: &str| fields.iter().any(|owned| owned == field);
        if manager == "gitops" {
            assert!(has("f:spec") && has("f:labels") && !has("f:status"), "{fields:?}");
        } else {
            assert!(!has("f:spec") && !has("f:labels") && !has("f:annotations"), "{manager} owns {fields:?}");
        }
    }

    // A change of the author's counts.
    apply(&world, &manifests(&world, 2));
    world.kill_operator().await;
    world.pods_become("kept", "two are ready", |pods| pods.len() == 2 && pods.iter().all(is_ready)).await;
    assert!(world.calls("patch", "networkpolicies", 200) <= 4, "what is in line is written again and again");

    // Pruned, all at once and in any order.
    let pruned = ["agentpools,workspacelinks", "--selector=app.kubernetes.io/managed-by=gitops"];
    kubectl.run(&[&["delete"][..], &pruned, &["--wait=false"]].concat());
    world.kill_operator().await;
    kubectl.run(&[&["wait", "--for=delete"][..], &pruned, &["--timeout=90s"]].concat());
    world.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_mode_leaves_nothing_of_the_former_one() {
    let world = World::new("privileged").await;
    let centos = json!({"feature.node.kubernetes.io/system-os_release.ID": "nowhere"});
    for (agents, there) in [
        (
            json!({"mode": "Node", "nodeSelector": centos}),
            vec!["daemonsets/moody-agents", "networkpolicies/moody-agents"],
        ),
        (
            json!({"mode": "Deployment", "image": "terraform:test", "replicas": 0}),
            vec!["deployments/moody-agents", "networkpolicies/moody-agents"],
        ),
        (
            json!({"mode": "Ephemeral", "minIdle": 0}),
            vec!["networkpolicies/moody-agents", "poddisruptionbudgets/moody-agents"],
        ),
        (json!({"mode": "External"}), vec![]),
    ] {
        let manifest = json!({
            "apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "moody"},
            "spec": {"name": format!("{}-moody", world.name()), "agents": agents},
        });
        apply(&world, &manifest.to_string());
        world.owned_become(&there).await;
    }
}
