//! The operator is killed, without a word, while it is in the middle of something. Whoever starts next goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::e2e::{World, condition, install::NAMESPACE, is_ready, program::Operators};

const POOLS: usize = 4;

const CONFIGURATION: &str = r#"
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command = "sleep 4"
  }
}
"#;

fn small() -> Value {
    json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "1Gi"}})
}

/// Lets the operator come so far, a little further each time, and no further.
async fn kill_after(world: &World, millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    world.kill_operator().await;
}

fn pool_name(number: usize) -> String {
    format!("crash-{number}")
}

/// One pool in the control plane for each of ours, under the identifier that its status names.
async fn one_of_each(world: &World) {
    let mut named: Vec<Value> = Vec::new();
    for number in 0..POOLS {
        named.push(world.pool(&pool_name(number)).await["status"]["poolID"].clone());
    }
    let mut there: Vec<Value> = world.remote_pools().await.iter().map(|pool| pool["id"].clone()).collect();
    named.sort_by_key(Value::to_string);
    there.sort_by_key(Value::to_string);
    assert_eq!(there, named, "a pool was made twice, or is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_in_the_middle_of_anything_leaves_nothing_undone_and_nothing_twice() {
    let world = World::restricted().await;
    let agents = json!({"minIdle": 1, "maxAgents": 4, "scaleDown": {"stabilization": "3s"}, "resources": small()});
    let spec = json!({"agents": agents, "runs": {"resources": small(), "image": "terraform:test"}});

    // While pools are made.
    for number in 0..POOLS {
        world.apply_pool(&pool_name(number), &spec);
        if number % 2 == 1 {
            kill_after(&world, 40 * number as u64).await;
        }
    }
    for number in 0..POOLS {
        world.pool_becomes(&pool_name(number), "Ready", "True").await;
        let one = |pods: &[Value]| pods.len() == 1 && is_ready(&pods[0]);
        world.pods_become(&pool_name(number), "one, not two", one).await;
    }
    one_of_each(&world).await;

    // While a token is replaced.
    let secret = "crash-0-agent-token";
    world.kubectl().run(&["delete", "secret", secret]);
    world.kill_operator().await;
    world
        .until("the Secret is back", async || {
            let found = world.read(&format!("/api/v1/namespaces/{}/secrets/{secret}", world.name())).await;
            if found["data"]["token"].is_string() { Ok(()) } else { Err(found) }
        })
        .await;

    // While agents are created for runs, and while these run.
    let mut runs = Vec::new();
    for number in 0..3 {
        let name = format!("app-{number}");
        let workspace = world.make_workspace(&name).await;
        world.apply_link(&name, "crash-0");
        let configuration = world.upload(&workspace, CONFIGURATION).await;
        world.link_becomes(&name, "Ready", "True").await;
        runs.push((workspace, configuration));
    }
    let mut queued = Vec::new();
    for (workspace, configuration) in &runs {
        queued.push(world.queue(workspace, configuration).await);
    }
    world.pods_become("crash-0", "more are created", |pods| pods.len() > 1).await;
    world.kill_operator().await;
    for run in &queued {
        world.run_becomes(run, "applying").await;
    }
    world.kill_operator().await;
    for run in &queued {
        world.run_becomes(run, "applied").await;
    }
    world.pods_become("crash-0", "back to the one that waits", |pods| pods.len() == 1 && is_ready(&pods[0])).await;

    // While links and pools go.
    world.kubectl().run(&["delete", "agentpools,workspacelinks", "--all", "--wait=false"]);
    kill_after(&world, 30).await;
    kill_after(&world, 300).await;
    world
        .until("nothing is left in the cluster", async || {
            let left = world.ours().await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    assert_eq!(world.remote_pools().await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_operators_one_leads_and_the_other_takes_over() {
    let world = World::restricted().await;
    let operators = Operators::scale(&world, 2).await;
    world.apply_pool("first", &json!({"agents": {"minIdle": 0}}));
    world.pool_becomes("first", "Ready", "True").await;

    // One that is told to go gives its place up: nobody waits until its Lease has run out.
    let first = world.leader_is_there().await;
    let delete = ["delete", "pod", &first, "--namespace", NAMESPACE];
    let start = Instant::now();
    world.kubectl().run(&[&delete[..], &["--wait=false"]].concat());
    world.leader_is_another_than(&first).await;
    let took = start.elapsed();
    println!("told to go → another one leads: {took:?}");
    assert!(took < world.lease_duration().await, "the Lease was not given back: {took:?}");

    // One that is killed does not.
    let leader = world.leader_is_there().await;
    let delete = ["delete", "pod", &leader, "--namespace", NAMESPACE, "--grace-period=0", "--force"];
    world.kubectl().run(&delete);
    world.apply_pool("second", &json!({"agents": {"minIdle": 0}}));
    let second = world.pool_becomes("second", "Ready", "True").await;
    assert_eq!(condition(&second, "AgentsAvailable")["reason"], "ScaledToZero");
    world.leader_is_another_than(&leader).await;
    world.apply_pool("third", &json!({"agents": {"minIdle": 0}}));
    world.pool_becomes("third", "Ready", "True").await;
    // None of them has made anything that another had made already.
    assert_eq!(world.remote_pools().await.len(), 3);
    drop(operators);
}
