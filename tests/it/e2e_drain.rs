//! `kubectl drain`: idle agents go at once, busy ones when they have finished.

use serde_json::{Value, json};

use crate::support::{
    cli::Running,
    cluster::{CENTOS, kubectl_command},
    e2e::{World, is_ready, name},
};

/// Runs for longer than it takes to begin draining.
const CONFIGURATION: &str = r#"
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command = "echo slow && sleep 12 && echo done"
  }
}
"#;

/// A node that others use less: the one without the label.
async fn node(world: &World) -> String {
    let nodes = world.read("/api/v1/nodes").await;
    let plain = nodes["items"].as_array().unwrap().iter().find(|node| node["metadata"]["labels"][CENTOS.0].is_null());
    name(plain.unwrap()).to_owned()
}

/// As a user drains a node, of this pool's Pods.
fn drain(world: &World, node: &str) -> Running {
    let mut command = kubectl_command();
    command.args([
        "drain",
        node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--pod-selector=terrapool.dev/pool=moving",
    ]);
    command.args(["--timeout=110s"]);
    Running::program(&format!("kubectl drain {node} for {}", world.name()), command)
}

struct Uncordon<'a>(&'a World, String);

impl Drop for Uncordon<'_> {
    fn drop(&mut self) {
        drop(self.0.kubectl().output(&["uncordon", &self.1], ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_a_node_takes_an_idle_agent_at_once_and_a_busy_one_when_it_is_done() {
    let world = World::restricted().await;
    let node = node(&world).await;
    // Elsewhere when it must, there when it may.
    let prefers = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 100,
        "preference": {"matchExpressions": [{"key": CENTOS.0, "operator": "DoesNotExist"}]},
    }]}});
    world.apply_pool("moving", &json!({"agents": {"minIdle": 1, "affinity": prefers}}));
    world.apply_link("app", "moving");
    let on = |pod: &Value| pod["spec"]["nodeName"] == node.as_str();
    let there = |pods: &[Value]| pods.len() == 1 && is_ready(&pods[0]);
    let idle = world.pods_become("moving", "one is ready there", |pods| there(pods) && on(&pods[0])).await;

    // Idle.
    let uncordon = Uncordon(&world, node.clone());
    let output = drain(&world, &node).end().await;
    output.expect(0).says("evicting pod");
    println!("drained an idle agent: {:?}", output.took);
    world
        .pods_become("moving", "another one elsewhere", |pods| {
            there(pods) && !on(&pods[0]) && name(&pods[0]) != name(&idle[0])
        })
        .await;
    drop(uncordon);

    // Busy.
    world.kubectl().run(&["delete", "pods", "--selector=terrapool.dev/pool=moving"]);
    let plans = world.pods_become("moving", "one is ready there again", |pods| there(pods) && on(&pods[0])).await;
    let workspace = world.make_workspace("app").await;
    let configuration = world.upload(&workspace, CONFIGURATION).await;
    world.link_becomes("app", "Ready", "True").await;
    let run = world.queue(&workspace, &configuration).await;
    world.run_becomes(&run, "applying").await;
    the_one_that_applies_is_protected(&world, &node, name(&plans[0])).await;
    let uncordon = Uncordon(&world, node.clone());
    let mut draining = drain(&world, &node);
    draining.until("evicting pod").await;
    world.kill_operator().await;
    let drained = draining.end().await;
    let status = world.run(&run).await["attributes"]["status"].clone();
    assert_eq!(status, "applied", "the node was drained before the run had ended: {drained:?}");
    drained.expect(0).says("Cannot evict pod as it would violate the pod's disruption budget");
    drop(uncordon);
    let (log, _) = world.admin.log(&world.run(&run).await, "apply").await;
    assert!(String::from_utf8_lossy(&log).contains("done"), "{}", String::from_utf8_lossy(&log));
}

/// The Pod of the agent that has the apply is marked and runs. Before, it would be let go: it finishes its job then, within its
/// time to end. The agent that planned, each has one job, may still be told as busy.
async fn the_one_that_applies_is_protected(world: &World, node: &str, planned: &str) {
    let pool = world.pool("moving").await["status"]["poolID"].as_str().unwrap().to_owned();
    let protected = world.until("the Pod with the job is on the node and marked", async || {
        let demand = world.admin.get(&format!("/api/iacp/v3/agent-pools/{pool}/demand")).await;
        let agents = demand["agents"].as_array().unwrap();
        let working = agents.iter().find(|agent| agent["jobs"] != 0 && agent["name"] != planned);
        let working = working.map(|agent| agent["name"].clone());
        let pods = world.pods("moving").await;
        // No budget holds a Pod that is pending, as one still is for a moment whose agent works already.
        let marked = |pod: &Value| {
            pod["metadata"]["labels"]["terrapool.dev/busy"] == "true"
                && pod["status"]["phase"] == "Running"
                && pod["spec"]["nodeName"] == node
        };
        let protected = pods.iter().any(|pod| Some(&pod["metadata"]["name"]) == working.as_ref() && marked(pod));
        if protected { Ok(()) } else { Err((working, pods)) }
    });
    protected.await;
}
