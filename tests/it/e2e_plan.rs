//! `terrapool operator --dry-run` on a cluster where the operator works.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::{
    app::ADMIN_TOKEN,
    cluster::cluster,
    e2e::{World, is_ready},
    programs::terrapool,
};

async fn dry_run(world: &World, more: &[&str]) -> Output {
    let mut command = terrapool();
    let url = format!("https://{}", world.installation.host);
    command.args(["operator", "--dry-run", "--json", "--namespace", world.name(), "--control-plane-url", &url]);
    command.arg("--kubeconfig").arg(cluster()).arg("--ca-file").arg(world.installation.ca_file()).args(more);
    command.env("TERRAPOOL_CONTROL_PLANE_TOKEN", ADMIN_TOKEN);
    command.output().await.unwrap()
}

/// Everything that could be written, by its version.
async fn versions(world: &World) -> Vec<(String, Value)> {
    let namespace = world.name();
    let mut found = Vec::new();
    for path in [
        format!("/api/v1/namespaces/{namespace}/pods"),
        format!("/api/v1/namespaces/{namespace}/secrets"),
        format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"),
        format!("/apis/terrapool.dev/v1alpha1/namespaces/{namespace}/agentpools"),
        format!("/apis/terrapool.dev/v1alpha1/namespaces/{namespace}/workspacelinks"),
    ] {
        let list = world.read(&path).await;
        for object in list["items"].as_array().unwrap() {
            found.push((
                format!("{path}/{}", object["metadata"]["name"]),
                object["metadata"]["resourceVersion"].clone(),
            ));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_be_done_and_writes_nothing() {
    let world = World::restricted().await;
    world.make_workspace("app").await;
    world.apply_pool("looked-at", &json!({"agents": {"minIdle": 1}}));
    world.apply_link("app", "looked-at");
    world.pool_becomes("looked-at", "Ready", "True").await;
    world.link_becomes("app", "Ready", "True").await;
    world.pods_become("looked-at", "one is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    let settled = world
        .until("the status is written", async || {
            let pool = world.pool("looked-at").await;
            let settled = pool["status"]["agents"]["summary"] == "1/1" && pool["status"]["linkedWorkspaces"] == 1;
            if settled { Ok(versions(&world).await) } else { Err(pool["status"].clone()) }
        })
        .await;

    // Under another address the Secret would be another one.
    let output = dry_run(&world, &["--agent-image=terrapool:test"]).await;
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    let plans: Value = serde_json::from_slice(&output.stdout).unwrap();
    let plan = |kind: &str| plans.as_array().unwrap().iter().find(|plan| plan["kind"] == kind).unwrap().clone();
    let pool = plan("AgentPool");
    let steps = pool["steps"].to_string();
    assert!(steps.contains("apply Secret") && steps.contains("looked-at-agent-token"), "{pool}");
    assert_eq!(plan("WorkspaceLink")["steps"], json!([]), "a link does not change with the address");
    let secret = world.read(&format!("/api/v1/namespaces/{}/secrets/looked-at-agent-token", world.name())).await;
    let token = secret["data"]["token"].as_str().unwrap();
    assert!(!plans.to_string().contains(token), "the plan shows a token");
    assert_eq!(versions(&world).await, settled, "a dry run wrote something");
}
