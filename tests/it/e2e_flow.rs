//! From `kubectl apply` of the examples to a run of the real CLI in a Pod, and back to nothing.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{
    cluster::CENTOS,
    e2e::{World, condition, is_ready, name},
};

/// No provider is needed for this. The name of the Pod is that of its host.
const CONFIGURATION: &str = r#"
resource "terraform_data" "where" {
  provisioner "local-exec" {
    command = "echo ran on $(hostname) as $(id -u)"
  }
}
"#;

/// An example, as JSON.
fn example(world: &World, file: &str) -> Value {
    let path = format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR"));
    world.kubectl().get_file(&path)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_run_terraform_in_a_pod_on_a_labelled_node_and_leave_nothing() {
    let world = World::restricted().await;
    let kubectl = world.kubectl();
    let mut pool = example(&world, "01-agent-pool.yaml");
    world.adapt_pool(&mut pool);
    pool["spec"]["agents"]["nodeSelector"] = json!({CENTOS.0: CENTOS.1});
    let mut link = example(&world, "02-workspace-link.yaml");
    link["spec"]["workspace"]["environment"] = json!(world.name());
    let (pool_name, workspace) = ("private-network", "network");

    // Ready, in the words of kubectl.
    let start = Instant::now();
    kubectl.apply(&pool.to_string());
    kubectl.apply(&link.to_string());
    world.pool_becomes(pool_name, "Ready", "True").await;
    println!("apply → Ready: {:?}", start.elapsed());
    kubectl.run(&["wait", "--for=condition=Ready", "agentpool/private-network", "--timeout=60s"]);
    let first = world.pods_become(pool_name, "one is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    let first = name(&first[0]).to_owned();
    println!("apply → agent: {:?}", start.elapsed());
    world
        .until("the agent is shown", async || {
            let shown = kubectl.run(&["get", "agentpools"]);
            let columns: Vec<&str> = shown.lines().last().unwrap().split_whitespace().collect();
            if columns[..6] == [pool_name, "True", "1/1", "0", "0", "Account"] { Ok(()) } else { Err(shown) }
        })
        .await;

    // A run.
    let cli = world.desk(workspace, CONFIGURATION).await;
    world.link_becomes(workspace, "Ready", "True").await;
    let output = cli.succeed(&["apply", "-auto-approve"]).await;
    output.says("Apply complete! Resources: 1 added").says("ran on private-network-").says("as 65532");
    let run = world.admin.newest_run(&world.workspace_id(workspace).await).await;
    assert_eq!(run["attributes"]["status"], "applied", "{run}");

    // Its Pods are gone, another one waits, and none was anywhere else.
    let warm = world
        .pods_become(pool_name, "the used ones are gone and one waits", |pods| {
            pods.len() == 1 && is_ready(&pods[0]) && name(&pods[0]) != first
        })
        .await;
    on_labelled_node(&world, &warm[0]).await;

    // In use, it is not deleted, and works on.
    kubectl.run(&["delete", "agentpool", pool_name, "--wait=false"]);
    let blocked = world.pool_becomes(pool_name, "DeletionBlocked", "True").await;
    let blocked = condition(&blocked, "DeletionBlocked");
    assert_eq!(blocked["reason"], "LinkedWorkspaces", "{blocked}");
    assert!(blocked["message"].as_str().unwrap().contains(workspace), "{blocked}");
    cli.write("main.tf", &CONFIGURATION.replace("\"where\"", "\"there\""));
    cli.succeed(&["apply", "-auto-approve"]).await.says("Resources: 1 added, 0 changed, 1 destroyed");

    // Not in use any more, it goes by itself.
    let pool_id = world.pool(pool_name).await["status"]["poolID"].as_str().unwrap().to_owned();
    kubectl.run(&["delete", "workspacelink", workspace]);
    kubectl.run(&["wait", "--for=delete", "agentpool/private-network", "--timeout=60s"]);
    world.nothing_is_left().await;
    assert_eq!(world.remote_agents(&pool_id).await, Vec::<Value>::new());
}

async fn on_labelled_node(world: &World, pod: &Value) {
    let node = world.read(&format!("/api/v1/nodes/{}", pod["spec"]["nodeName"].as_str().unwrap())).await;
    assert_eq!(node["metadata"]["labels"][CENTOS.0], CENTOS.1, "{pod}");
}
