//! Runs that mean no good: what they do to their own Pod stays in it, and ends.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::e2e::{World, is_ready, name, small};

/// Ignores whoever asks it to end, and keeps up the pipe by which the runner would see that its agent is gone.
const CONFIGURATION: &str = r#"
resource "terraform_data" "hostile" {
  provisioner "local-exec" {
    command = "trap '' TERM INT HUP; exec 9>/terrapool/wake; echo here to stay; while :; do sleep 1; done"
  }
}
"#;

/// Whether the agent has ended and the run has not.
fn is_without_agent(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is = |container: &str, state: &str| {
        containers.iter().any(|status| status["name"] == container && status["state"][state].is_object())
    };
    is("agent", "terminated") && is("run", "running")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_on_without_its_agent_is_removed_and_its_run_is_lost() {
    let world = World::restricted().await;
    let agents = json!({"minIdle": 1, "maxAgents": 2, "drainTimeout": "1h", "resources": small()});
    world.apply_pool("guarded", &json!({"agents": agents, "runs": {"resources": small()}}));
    let workspace = world.make_workspace("app").await;
    world.apply_link("app", "guarded");
    let configuration = world.upload(&workspace, CONFIGURATION).await;
    world.link_becomes("app", "Ready", "True").await;
    let run = world.queue(&workspace, &configuration).await;
    world.run_becomes(&run, "applying").await;
    world.apply_says(&run, "here to stay").await;
    let is_busy = |pod: &Value| pod["metadata"]["labels"]["terrapool.dev/busy"] == "true";
    let applying = |pods: &[Value]| pods.iter().filter(|pod| is_busy(pod) && is_ready(pod)).count() == 1;
    let pods = world.pods_become("guarded", "the one that applies is marked", applying).await;
    let hostile = pods.into_iter().find(|pod| is_busy(pod) && is_ready(pod)).unwrap();

    world.kill_agent(&hostile);
    world.pods_become("guarded", "one goes on without its agent", |pods| pods.iter().any(is_without_agent)).await;
    let killed = Instant::now();
    let gone = |pods: &[Value]| pods.iter().all(|pod| name(pod) != name(&hostile));
    world.pods_become("guarded", "that one is gone", gone).await;
    println!("the agent is dead → the Pod is gone: {:?}", killed.elapsed());
    world.pods_become("guarded", "one is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    let lost = world.run_becomes(&run, "errored").await;
    assert_eq!(lost["attributes"]["error-code"], "agent_lost", "{lost}");
    world.admin.is_unlocked(&workspace).await;
    world.pool_becomes("guarded", "Ready", "True").await;
}
