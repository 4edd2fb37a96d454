//! Registering, being the same agent again, and leaving.

use std::time::Duration;

use terrapool::{
    agent::{Error, Fatal},
    client,
};

use crate::support::{
    agents::{Plane, RunningAgent, eventually},
    gate::Fault,
};

#[tokio::test]
async fn a_token_that_nobody_knows_ends_the_agent_with_a_clear_error() {
    let plane = Plane::new().await;
    let mut config = plane.config("a");
    config.token = "tpp_unknown".into();
    let (agent, _ready) = RunningAgent::launch(config);
    let error = agent.end().await.unwrap_err();
    assert!(matches!(error, Error::Fatal(Fatal::Token { .. })), "{error:?}");
}

#[tokio::test]
async fn a_name_that_is_online_already_is_refused_with_the_mend() {
    let plane = Plane::new().await;
    let first = plane.agent("a").await;
    let mut config = plane.config("b");
    config.name = "a".to_owned();
    let (second, _ready) = RunningAgent::launch(config);
    let error = second.end().await.unwrap_err();
    let Error::Fatal(Fatal::Register { source: client::agent::Error::NameTaken { detail } }) = &error else {
        panic!("{error:?}")
    };
    assert!(detail.contains("--name"), "{detail}");
    first.drain().await.unwrap();
}

#[tokio::test]
async fn two_agents_cannot_share_a_data_directory() {
    let plane = Plane::new().await;
    let first = plane.agent("a").await;
    let (second, _ready) = RunningAgent::launch(plane.config("a"));
    let error = second.end().await.unwrap_err();
    assert!(error.to_string().contains("another agent runs with the data directory"), "{error}");
    first.drain().await.unwrap();
}

#[tokio::test]
async fn a_restarted_agent_is_the_same_one_and_needs_no_registration() {
    let plane = Plane::new().await;
    let config = plane.agent("a").await.crash().await;
    let again = RunningAgent::start(config).await;
    plane.gate.reached("POST /heartbeat", 2).await;
    assert_eq!(plane.gate.seen("POST /register").len(), 1);
    again.drain().await.unwrap();
    assert_eq!(plane.gate.seen("POST /deregister").len(), 1);
}

#[tokio::test]
async fn an_agent_that_was_forgotten_registers_again_by_itself() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    plane.gate.fault("POST /heartbeat", Fault::Refuse(401), 1);
    plane.gate.reached("POST /register", 2).await;
    let renewed = plane.gate.seen("POST /heartbeat").len();
    plane.gate.reached("POST /heartbeat", renewed + 2).await;
    eventually("an accepted heartbeat", async || {
        plane.gate.seen("POST /heartbeat").iter().skip(renewed).any(|seen| seen.status == Some(200))
    })
    .await;
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_revoked_pool_token_ends_the_agent() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    plane.gate.fault("POST /", Fault::Refuse(401), usize::MAX);
    let error = agent.end().await.unwrap_err();
    assert!(matches!(error, Error::Fatal(Fatal::Token { .. })), "{error:?}");
}

#[tokio::test]
async fn the_server_may_come_up_after_the_agent() {
    let plane = Plane::new().await;
    plane.gate.serve(None);
    let (agent, ready) = RunningAgent::launch(plane.config("a"));
    plane.gate.reached("POST /register", 2).await;
    plane.gate.serve(Some(plane.test.router.clone()));
    tokio::time::timeout(Duration::from_secs(30), ready).await.unwrap().unwrap();
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn claims_are_held_and_few() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    plane.gate.reached("POST /heartbeat", 4).await;
    assert_eq!(plane.gate.seen("POST /claim").len(), 1);
    agent.drain().await.unwrap();
    // Cut by the drain, then asked once more whether it had got a job.
    assert_eq!(plane.gate.seen("POST /claim").len(), 2);
}
