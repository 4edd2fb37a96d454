//! How long users wait. Told, not judged: that depends on the machine.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::e2e::{World, condition, is_ready};

const TIMES: usize = 7;

const CONFIGURATION: &str = r#"
resource "terraform_data" "one" {}
"#;

/// Looks as often as it can.
async fn at_once<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) -> Duration {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not come to pass");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: n {}, median {} ms, longest {} ms", times.len(), median.as_millis(), most.as_millis());
}

fn status_of(pool: &Value) -> &Value {
    &condition(pool, "Ready")["status"]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_users_wait_for_is_measured() {
    let world = World::restricted().await;
    let mut times = Vec::new();
    for number in 0..TIMES {
        let name = format!("empty-{number}");
        world.apply_pool(&name, &json!({"agents": {"minIdle": 0}}));
        times.push(at_once(async || status_of(&world.pool(&name).await) == "True").await);
    }
    tell("kubectl apply has ended → pool Ready, without agents", times);

    let mut times = Vec::new();
    for number in 0..TIMES {
        let (name, workspace) = (format!("empty-{number}"), format!("cold-{number}"));
        let id = world.make_workspace(&workspace).await;
        world.apply_link(&workspace, &name);
        let configuration = world.upload(&id, CONFIGURATION).await;
        world.link_becomes(&workspace, "Ready", "True").await;
        let run = world.queue(&id, &configuration).await;
        at_once(async || !world.pods(&name).await.is_empty()).await;
        times.push(run.queued.elapsed());
        world.run_becomes(&run, "applied").await;
    }
    tell("POST of a run begins → Pod is there, no agent waits", times);

    world.apply_pool("warm", &json!({"agents": {"minIdle": 1}}));
    let id = world.make_workspace("warm").await;
    world.apply_link("warm", "warm");
    let configuration = world.upload(&id, CONFIGURATION).await;
    world.link_becomes("warm", "Ready", "True").await;
    let first = world.queue(&id, &configuration).await;
    world.run_becomes(&first, "applied").await;
    let (mut started, mut spoke) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let idle = |pods: &[Value]| pods.len() == 1 && is_ready(&pods[0]);
        world.pods_become("warm", "one waits", idle).await;
        world
            .until("its agent is there", async || {
                let agents = &world.pool("warm").await["status"]["agents"];
                if agents["idle"] == 1 { Ok(()) } else { Err(agents.clone()) }
            })
            .await;
        let run = world.queue(&id, &configuration).await;
        let (process, words) = world.engine_started_and_spoke(&run).await;
        started.extend(process);
        spoke.push(words);
        world.run_becomes(&run, "planned_and_finished").await;
    }
    if started.len() == TIMES {
        tell("POST of a run begins → the engine's process, an agent waits", started);
    } else {
        println!("the engine's processes were seen in {} of {TIMES} runs: the nodes are elsewhere", started.len());
    }
    tell("POST of a run begins → the engine's first words, an agent waits", spoke);
}
