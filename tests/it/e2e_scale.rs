//! How many agents there are: as many as the queue asks for, none when nothing is queued, or a number that is given.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::e2e::{World, condition, is_ready, name, small};

const RUNS: usize = 10;

/// Long enough for runs to overlap.
const CONFIGURATION: &str = r#"
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command = "sleep 3"
  }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn ten_queued_runs_bring_ten_agents_and_then_none_is_left() {
    let world = World::restricted().await;
    let agents = json!({"minIdle": 0, "maxAgents": RUNS, "scaleDown": {"stabilization": "5s"}, "resources": small()});
    world.apply_pool("burst", &json!({"agents": agents, "runs": {"resources": small(), "image": "terraform:test"}}));
    let empty = world.pool_becomes("burst", "Ready", "True").await;
    assert_eq!(condition(&empty, "AgentsAvailable")["reason"], "ScaledToZero", "{}", empty["status"]);
    assert_eq!(world.pods("burst").await.len(), 0);

    let mut ready = Vec::new();
    for number in 0..RUNS {
        let workspace = format!("burst-{number}");
        let id = world.make_workspace(&workspace).await;
        world.apply_link(&workspace, "burst");
        ready.push((id.clone(), world.upload(&id, CONFIGURATION).await));
        world.link_becomes(&workspace, "Ready", "True").await;
    }
    let mut runs = Vec::new();
    for (workspace, configuration) in &ready {
        runs.push(world.queue(workspace, configuration).await);
    }
    let first = world.pods_become("burst", "the first is created", |pods| !pods.is_empty()).await;
    println!("queued → Pod created: {:?} ({} Pods)", runs[0].queued.elapsed(), first.len());

    // All at once, and never more than allowed; whoever makes them may die in the middle of it.
    let (mut seen, mut most, mut killed) = (BTreeSet::new(), 0, false);
    world
        .until("every run is applied", async || {
            let pods = world.pods("burst").await;
            let living: Vec<_> = pods
                .iter()
                .filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
                .collect();
            most = most.max(living.len());
            seen.extend(pods.iter().map(|pod| name(pod).to_owned()));
            if !killed && seen.len() > 1 {
                world.kill_operator().await;
                killed = true;
            }
            let mut waiting = Vec::new();
            for run in &runs {
                let found = world.run(run).await;
                assert_ne!(found["attributes"]["status"], "errored", "{found}");
                if found["attributes"]["status"] != "applied" {
                    waiting.push(found["attributes"]["status"].clone());
                }
            }
            if waiting.is_empty() { Ok(()) } else { Err(waiting) }
        })
        .await;
    assert_eq!(most, RUNS, "that many Pods lived at the same time");
    println!("{RUNS} runs: {:?}, {} Pods", runs[0].queued.elapsed(), seen.len());

    world.pods_become("burst", "none is left", |pods| pods.is_empty()).await;
    println!("back to zero: {:?}", runs[0].queued.elapsed());
    world
        .until("the status says so", async || {
            let pool = world.pool("burst").await;
            let agents = &pool["status"]["agents"];
            let zero =
                agents["desired"] == 0 && agents["summary"] == "0/0" && pool["status"]["replicas"].as_i64() == Some(0);
            if zero && condition(&pool, "Ready")["status"] == "True" { Ok(()) } else { Err(pool["status"].clone()) }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_scale_sets_the_number_of_agents() {
    let world = World::restricted().await;
    let agents = json!({"replicas": 1, "resources": small()});
    world.apply_pool("fixed", &json!({"agents": agents, "runs": {"resources": small(), "image": "terraform:test"}}));
    for number in [1, 3, 0, 2] {
        world.kubectl().run(&["scale", "agentpool/fixed", &format!("--replicas={number}")]);
        world.pods_become("fixed", "as many as said", |pods| pods.len() == number && pods.iter().all(is_ready)).await;
        world
            .until("the scale subresource says so", async || {
                let path = format!("/apis/terrapool.dev/v1alpha1/namespaces/{}/agentpools/fixed/scale", world.name());
                let scale = world.read(&path).await;
                let replicas = scale["status"]["replicas"].as_u64();
                if replicas == Some(number as u64) { Ok(()) } else { Err(scale) }
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_limits_the_agents_says_so_and_is_no_reason_to_hammer_the_cluster() {
    let world = World::restricted().await;
    world.allow_pods(1).await;
    world.apply_pool("limited", &json!({"agents": {"minIdle": 3, "resources": small()}}));
    let pool = world.pool_becomes("limited", "ScalingLimited", "True").await;
    let limited = condition(&pool, "ScalingLimited");
    assert_eq!(limited["reason"], "QuotaExceeded", "{limited}");
    assert!(limited["message"].as_str().unwrap().contains("exceeded quota"), "{limited}");
    world.pods_become("limited", "one has found room", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    // What there is can be used.
    world.pool_becomes("limited", "Ready", "True").await;
    assert!(world.calls("create", "pods", 403) <= 10, "Pods are tried again and again");

    world.allow_all_pods();
    world.pods_become("limited", "all are there", |pods| pods.len() == 3 && pods.iter().all(is_ready)).await;
    world
        .until("nothing limits any more", async || {
            let pool = world.pool("limited").await;
            if condition(&pool, "ScalingLimited")["status"] == "True" { Err(pool["status"].clone()) } else { Ok(()) }
        })
        .await;
}
