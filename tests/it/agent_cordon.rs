//! A cordoned agent: takes nothing, finishes what it has, stays, and goes on when it may.

use std::time::Duration;

use axum::http::Method;
use serde_json::Value;
use terrapool::{
    api::{
        iacp::demand::{DemandAgent, PoolDemand},
        run_state::RunState,
    },
    server::app::Policy,
};

use crate::support::agents::{Plane, appears, assert_clean, eventually};

/// Heartbeats and claims are held for longer than any of these tests takes.
async fn plane() -> Plane {
    Plane::with(Policy { heartbeat: Duration::from_secs(25), ..Policy::default() }).await
}

async fn demand(plane: &Plane) -> PoolDemand {
    let answer = plane.test.get(&format!("/api/iacp/v3/agent-pools/{}/demand", plane.fixture.pool.id)).await;
    serde_json::from_slice(&answer.expect(200).body).unwrap()
}

async fn act(plane: &Plane, action: &str) -> DemandAgent {
    let agent = demand(plane).await.agents[0].id.clone();
    let path = format!("/api/iacp/v3/agents/{agent}/actions/{action}");
    let answer = plane.test.request(Method::POST, &path, &Value::Null).await;
    serde_json::from_slice(&answer.expect(200).body).unwrap()
}

#[tokio::test]
async fn a_cordoned_agent_stays_idle_and_goes_on_when_it_may() {
    let plane = plane().await;
    let agent = plane.agent("a").await;
    plane.gate.reached("POST /heartbeat", 1).await;
    assert_eq!(act(&plane, "cordon").await.jobs, 0);
    // The held heartbeat is answered at once and the next one is held again: no haste while nothing changes.
    plane.gate.reached("POST /heartbeat", 2).await;
    let run = plane.run("echo planned", "echo applied").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(plane.gate.seen("POST /heartbeat").len(), 2, "a cordoned agent's heartbeats are not held");
    assert_eq!(plane.test.reread(&run).await.status, RunState::PlanQueued);
    let idle = demand(&plane).await;
    assert!(idle.agents[0].cordoned && !idle.agents[0].draining && idle.agents[0].jobs == 0, "{idle:?}");
    act(&plane, "uncordon").await;
    plane.until(&run, RunState::Applied).await;
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_cordoned_agent_finishes_its_job_and_leaves_when_it_is_told_to() {
    let plane = plane().await;
    let agent = plane.agent("a").await;
    let (planning, go) = (plane.signal("planning"), plane.signal("go"));
    let plan = format!("touch {}; while [ ! -e {} ]; do sleep 0.02; done", planning.display(), go.display());
    let run = plane.run(&plan, "echo applied").await;
    appears(&planning).await;
    assert_eq!(act(&plane, "cordon").await.jobs, 1);
    std::fs::write(&go, "").unwrap();
    // Its apply is for another agent.
    plane.until(&run, RunState::ApplyQueued).await;
    eventually("the agent has no job", async || demand(&plane).await.agents[0].jobs == 0).await;
    agent.drain().await.unwrap();
    assert!(demand(&plane).await.agents.is_empty());
    assert_clean(&plane.config("a").data);
    let other = plane.agent("b").await;
    plane.until(&run, RunState::Applied).await;
    other.drain().await.unwrap();
}
