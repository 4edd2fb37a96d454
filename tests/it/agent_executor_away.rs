//! An agent whose Docker engine is away, or hangs, leaves the pool's runs to others, and says why. Needs a Docker engine.

use std::time::Duration;

use terrapool::{
    agent::{AgentConfig, executor::Choice},
    api::run_state::RunState,
    server::{
        domain::model::{Run, RunOptions},
        store,
    },
};

use crate::support::{
    agents::{Plane, RunningAgent, eventually},
    wire::{Line, Wire},
};

/// Where a stage runs in a container.
const IN_CONTAINER: &str = "/terrapool/job";

/// An agent whose engine is at the end of a wire.
fn wired(plane: &Plane) -> (Wire, AgentConfig) {
    let socket = plane.signal("docker.sock");
    let engine = Wire::unix(&socket, "/var/run/docker.sock".into());
    let mut config = plane.config("wired");
    config.executor.choice = Choice::Docker;
    config.executor.docker_host = Some(format!("unix://{}", socket.display()));
    (engine, config)
}

/// What it tells the control plane.
async fn trouble(plane: &Plane) -> String {
    let mut connection = plane.test.app.store.read().await.unwrap();
    let agent = store::agents::by_name(&mut connection, &plane.fixture.pool.id, "wired").await.unwrap().unwrap();
    agent.error_message.unwrap_or_default()
}

async fn plan_says(plane: &Plane, run: &Run, words: &str) {
    let log = plane.log(run.plan_id.as_str()).await;
    assert!(log.contains(words), "{log}");
}

#[tokio::test]
async fn an_agent_takes_no_jobs_while_its_engine_is_away() {
    let plane = Plane::new().await;
    let (engine, config) = wired(&plane);
    let agent = RunningAgent::start(config).await;
    // In the middle of its waiting for a job.
    engine.set(Line::Refused);
    eventually("the agent says that Docker is away", async || trouble(&plane).await.contains("Docker does not answer"))
        .await;
    let run = plane.run("pwd", "").await;
    let other = plane.agent("other").await;
    let run = plane.until(&run, RunState::Applied).await;
    plan_says(&plane, &run, plane.place.path().to_str().unwrap()).await;
    other.drain().await.unwrap();

    engine.set(Line::Open);
    eventually("the agent works again", async || trouble(&plane).await.is_empty()).await;
    let run = plane.run("pwd", "").await;
    let run = plane.until(&run, RunState::Applied).await;
    plan_says(&plane, &run, IN_CONTAINER).await;
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn an_agent_takes_no_further_jobs_while_its_engine_starts_none() {
    let plane = Plane::new().await;
    let (engine, mut config) = wired(&plane);
    config.slots = 2;
    config.executor.call_timeout = Duration::from_secs(2);
    let agent = RunningAgent::start(config).await;
    engine.hold(Some("/start"));
    let stuck = plane.run("pwd", "").await;
    eventually("the agent says that Docker hangs", async || trouble(&plane).await.contains("has not started a run"))
        .await;

    let workspace = plane.test.workspace(&plane.fixture.environment.id, "further", Some(&plane.fixture.pool.id)).await;
    let configuration = plane.configuration_of(&workspace.id, &[("main.tf", ""), ("plan.sh", "pwd")]).await;
    let further = plane.test.run(&workspace.id, &configuration, RunOptions::default()).await;
    let other = plane.agent("other").await;
    let further = plane.until(&further, RunState::Planned).await;
    plan_says(&plane, &further, plane.place.path().to_str().unwrap()).await;
    other.drain().await.unwrap();

    // The one that it has is not given up at once.
    assert_eq!(plane.test.reread(&stuck).await.status, RunState::Planning);
    engine.hold(None);
    let stuck = plane.until(&stuck, RunState::Applied).await;
    plan_says(&plane, &stuck, IN_CONTAINER).await;
    eventually("the agent works again", async || trouble(&plane).await.is_empty()).await;
    agent.drain().await.unwrap();
}
