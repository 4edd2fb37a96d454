//! The operator is killed, without a word, while it is in the middle of something. Whoever starts next goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::e2e::{World, condition, install::NAMESPACE, is_ready, program::Operators, small};

const POOLS: usize = 4;

const CONFIGURATION: &str = r#"
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command = "sleep 4"
  }
}
"#;

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
    // Not all of them: one that is planned late would find the first one's apply over.
    world.one_becomes(&queued, "applying").await;
    world.kill_operator().await;
    for run in &queued {
        world.run_becomes(run, "applied").await;
    }
    world.pods_become("crash-0", "back to the one that waits", |pods| pods.len() == 1 && is_ready(&pods[0])).await;

    // While links and pools go.
    world.kubectl().run(&["delete", "agentpools,workspacelinks", "--all", "--wait=false"]);
    kill_after(&world, 30).await;
    kill_after(&world, 300).await;
    world.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_under_a_quota_keeps_to_it_and_uses_all_of_it() {
    let world = World::restricted().await;
    world.allow_pods(2).await;
    let agents = json!({"minIdle": 3, "maxAgents": 4, "scaleDown": {"stabilization": "3s"}, "resources": small()});
    world.apply_pool("limited", &json!({"agents": agents, "runs": {"resources": small()}}));
    world.pods_become("limited", "the first one is made", |pods| !pods.is_empty()).await;
    world.kill_operator().await;
    let says_so = async || {
        world
            .until("the quota is told of", async || {
                let pool = world.pool("limited").await;
                let limited = condition(&pool, "ScalingLimited");
                if limited["reason"] == "QuotaExceeded" { Ok(()) } else { Err(pool["status"].clone()) }
            })
            .await;
    };
    let two = |pods: &[Value]| pods.len() == 2 && pods.iter().all(is_ready);
    says_so().await;
    world.pods_become("limited", "as many as there may be", two).await;

    // A run takes a place, and its Pod's place is taken again.
    let workspace = world.make_workspace("app").await;
    world.apply_link("app", "limited");
    let configuration = world.upload(&workspace, CONFIGURATION).await;
    world.link_becomes("app", "Ready", "True").await;
    let refused = world.calls("create", "pods", 403);
    let run = world.queue(&workspace, &configuration).await;
    world.run_becomes(&run, "applying").await;
    world.kill_operator().await;
    world.run_becomes(&run, "applied").await;
    world.pods_become("limited", "as many again", two).await;
    says_so().await;
    // One try of each operator, and of this one whenever a place may have become free.
    assert!(world.calls("create", "pods", 403) <= refused + 10, "Pods are tried again and again");

    world.allow_all_pods();
    world.kill_operator().await;
    let three = |pods: &[Value]| pods.len() == 3 && pods.iter().all(is_ready);
    world.pods_become("limited", "as many as wanted", three).await;
    assert_eq!(world.remote_pools().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_image_cannot_be_pulled_fails_once_and_says_why_though_the_operator_is_killed() {
    let world = World::restricted().await;
    let image = format!("{}/team/terraform:1", world.empty_registry());
    world.apply_pool("broken", &json!({"agents": {"minIdle": 0, "resources": small()}, "runs": {"image": image}}));
    let workspace = world.make_workspace("stuck").await;
    world.apply_link("stuck", "broken");
    let configuration = world.upload(&workspace, CONFIGURATION).await;
    world.link_becomes("stuck", "Ready", "True").await;
    let waits = |pod: &Value| pod.pointer("/status/containerStatuses/1/state/waiting/reason").cloned();
    for (when, late) in [("its Pod is there", false), ("its Pod cannot start", true)] {
        let run = world.queue(&workspace, &configuration).await;
        let refused = |pod: &Value| matches!(waits(pod).as_ref().and_then(Value::as_str), Some("ErrImagePull"));
        world
            .until(when, async || {
                let pods = world.pods("broken").await;
                let ended = world.run(&run).await["attributes"]["status"] == "errored";
                if ended || pods.iter().any(|pod| !late || refused(pod)) { Ok(()) } else { Err(pods) }
            })
            .await;
        world.kill_operator().await;
        let run = world.run_becomes(&run, "errored").await;
        let (log, complete) = world.admin.log(&run, "plan").await;
        let log = String::from_utf8_lossy(&log);
        assert!(complete, "{log}");
        assert_eq!(log.matches(&format!("The run image {image} cannot be pulled")).count(), 1, "{log}");
        world.admin.is_unlocked(&workspace).await;
        world.pods_become("broken", "nobody waits for one", |pods| pods.is_empty()).await;
    }
    let newest = world.admin.get(&format!("/api/v2/workspaces/{workspace}/runs")).await;
    assert_eq!(newest["data"].as_array().unwrap().len(), 2, "a run was made twice: {newest}");

    // Corrected, the pool works.
    world.apply_pool("broken", &json!({"agents": {"minIdle": 0, "resources": small()}}));
    let run = world.queue(&workspace, &configuration).await;
    world.run_becomes(&run, "applied").await;
}

/// Foreign agents, as somebody else may have them: ours, with the runs as its own children.
fn foreign() -> Value {
    let args = ["agent", "run", "--executor=process", "--data=/var/lib/terrapool-agent"];
    let container = json!({"name": "agent", "args": args});
    json!({
        "mode": "Deployment", "image": "terrapool:test", "replicas": 1, "resources": small(),
        "overrides": {"spec": {"containers": [container]}},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_while_agents_are_scaled_by_hand_ends_at_the_number() {
    let world = World::restricted().await;
    let spec = json!({"agents": {"replicas": 1, "resources": small()}, "runs": {"resources": small()}});
    world.apply_pool("fixed", &spec);
    world.apply_pool("foreign", &json!({"agents": foreign()}));
    for (step, number) in [3, 1, 0, 2].into_iter().enumerate() {
        let replicas = format!("--replicas={number}");
        world.kubectl().run(&["scale", "agentpool/fixed", "agentpool/foreign", &replicas]);
        kill_after(&world, 60 * step as u64).await;
        for pool in ["fixed", "foreign"] {
            let wanted = |pods: &[Value]| pods.len() == number && pods.iter().all(is_ready);
            world.pods_become(pool, &format!("{number}, as was said"), wanted).await;
            let id = world.pool(pool).await["status"]["poolID"].as_str().unwrap().to_owned();
            world
                .until(&format!("{number} agents of {pool} are there, and the pool says so"), async || {
                    let path =
                        format!("/apis/terrapool.dev/v1alpha1/namespaces/{}/agentpools/{pool}/scale", world.name());
                    let scale = world.read(&path).await;
                    let agents = world.remote_agents(&id).await;
                    let working = agents.iter().filter(|agent| agent["attributes"]["status"] == "idle").count();
                    let said = |part: &str| scale[part]["replicas"].as_u64().unwrap_or(0) == number as u64;
                    let said = said("spec") && said("status");
                    if said && working == number { Ok(()) } else { Err((scale, agents)) }
                })
                .await;
        }
    }
    assert_eq!(world.remote_pools().await.len(), 2);
    world.kubectl().run(&["delete", "agentpools", "--all", "--wait=false"]);
    world.nothing_is_left().await;
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
