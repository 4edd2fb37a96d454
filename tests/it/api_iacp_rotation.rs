//! A pool token that another one replaces: agents that registered with it notice nothing. One that is revoked:
//! they are cut off at once.

use std::time::Duration;

use axum::{body::Body, http::Method};
use serde_json::{Value, json};
use terrapool::{
    agent::{Error, Fatal},
    server::app::Policy,
};

use crate::support::{
    agents::{Plane, eventually},
    app::{Answer, TestApp},
    sim_agent::{SimAgent, call, registration},
};

const API: &str = "/api/iacp/v3";

/// A token of the pool: id and secret.
async fn token(test: &TestApp, pool: &str, minutes: Option<u64>) -> (String, String) {
    let body = json!({"data": {"type": "access-tokens", "attributes": {"expires-in": minutes}}});
    let path = format!("{API}/agent-pools/{pool}/access-tokens");
    let made = test.request(Method::POST, &path, &body).await.expect(201).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&made["data"]["id"]), text(&made["data"]["attributes"]["token"]))
}

async fn retire(test: &TestApp, id: &str, successor: &str) -> Answer {
    let path = format!("{API}/access-tokens/{id}/actions/retire");
    test.request(Method::POST, &path, &json!({"successor": successor})).await
}

async fn revoke(test: &TestApp, id: &str) {
    test.request(Method::DELETE, &format!("{API}/access-tokens/{id}"), &Value::Null).await.expect(204);
}

async fn is_accepted(agent: &SimAgent<'_>) -> bool {
    let body = json!({"status": "idle", "draining": false, "jobs": [], "known": [], "wait_ms": 0});
    agent.call(Method::POST, "heartbeat", None, Body::from(body.to_string())).await.status.as_u16() == 200
}

#[tokio::test]
async fn agents_of_a_retired_token_go_on_under_its_successor_and_are_cut_with_that() {
    let test = TestApp::new().await;
    let pool = test.fixture().await.pool.id.to_string();
    let (first, secret) = token(&test, &pool, Some(60)).await;
    let agent = SimAgent::register(&test, &secret, "a").await;
    let (second, _) = token(&test, &pool, Some(600)).await;
    // Expired: nobody registers with it any more, but what registered stays.
    test.advance(3601);
    let body = || Body::from(serde_json::to_vec(&registration("b")).unwrap());
    call(&test, &secret, Method::POST, "register", None, body()).await.expect(401);
    assert!(is_accepted(&agent).await);
    retire(&test, &first, &second).await.expect(204);
    assert!(is_accepted(&agent).await);
    retire(&test, &first, &second).await.expect(404);
    call(&test, &secret, Method::POST, "register", None, body()).await.expect(401);
    let (third, _) = token(&test, &pool, None).await;
    retire(&test, &second, &third).await.expect(204);
    assert!(is_accepted(&agent).await, "and through any number of rotations");
    revoke(&test, &third).await;
    assert!(!is_accepted(&agent).await, "a revocation cuts off all that hang on the token");
}

#[tokio::test]
async fn only_a_live_token_of_the_same_pool_can_be_a_successor() {
    let test = TestApp::new().await;
    let pool = test.fixture().await.pool.id.to_string();
    let other = json!({"data": {"type": "agent-pools", "attributes": {"name": "other"}}});
    let other = test.request(Method::POST, &format!("{API}/agent-pools"), &other).await.expect(201).json();
    let (old, secret) = token(&test, &pool, None).await;
    let agent = SimAgent::register(&test, &secret, "a").await;
    let (expired, _) = token(&test, &pool, Some(1)).await;
    let (stranger, _) = token(&test, other["data"]["id"].as_str().unwrap(), None).await;
    test.advance(61);
    for (successor, status) in [(&expired, 422), (&old, 422), (&stranger, 404), (&"at-none".to_owned(), 404)] {
        let refused = retire(&test, &old, successor).await.expect(status).json();
        assert_eq!(refused["errors"][0]["source"]["pointer"], "/data/relationships/successor", "{refused}");
    }
    assert!(is_accepted(&agent).await);
    let own = json!({"data": {"type": "access-tokens", "attributes": {}}});
    let own = test.request(Method::POST, &format!("{API}/access-tokens"), &own).await.expect(201).json();
    retire(&test, own["data"]["id"].as_str().unwrap(), &old).await.expect(422);
}

/// Idle, or in the middle of a job: whoever is cut off is not there any more, and cannot say so itself.
#[tokio::test]
async fn agents_of_a_revoked_token_are_offline_at_once_everywhere() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let pool = fixture.pool.id.to_string();
    let (id, secret) = token(&test, &pool, None).await;
    let idle = SimAgent::register(&test, &secret, "idle").await;
    let busy = SimAgent::register(&test, &secret, "busy").await;
    let other = SimAgent::register(&test, &fixture.pool_token, "other").await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, Default::default()).await;
    let job = busy.claim().await.unwrap();
    busy.heartbeat(&[&job]).await;
    let read = async |path: String| test.get(&format!("{API}{path}")).await.expect(200).json();
    let counts = async || {
        let pool = read(format!("/agent-pools/{pool}")).await;
        let counts = &pool["data"]["attributes"]["agent-counts"];
        ["idle", "busy", "errored", "offline"].map(|status| counts[status].as_u64().unwrap())
    };
    assert_eq!(counts().await, [3, 0, 0, 0]);

    revoke(&test, &id).await;
    assert_eq!(counts().await, [1, 0, 0, 2]);
    let demand = read(format!("/agent-pools/{pool}/demand")).await;
    let seen = |name: &str| {
        let agents = demand["agents"].as_array().unwrap();
        let agent = agents.iter().find(|agent| agent["name"] == name).unwrap();
        (agent["status"].as_str().unwrap(), agent["revoked"].as_bool().unwrap(), agent["jobs"].as_u64().unwrap())
    };
    assert_eq!(seen("idle"), ("offline", true, 0));
    assert_eq!(seen("busy"), ("offline", true, 1), "its lease is not over");
    assert_eq!(seen("other"), ("idle", false, 0));
    for (agent, status) in [(&idle, "offline"), (&busy, "offline"), (&other, "idle")] {
        let shown = read(format!("/agents/{}", agent.registered.agent_id)).await;
        assert_eq!(shown["data"]["attributes"]["status"], status);
    }

    // What can be done with those that are gone can be done now: its name be taken, or it be forgotten.
    let mut heir = registration("idle");
    heir.instance = "another-instance".to_owned();
    let body = Body::from(serde_json::to_vec(&heir).unwrap());
    call(&test, &fixture.pool_token, Method::POST, "register", None, body).await.expect(200);
    let delete = async |agent: &SimAgent<'_>| {
        let path = format!("{API}/agents/{}", agent.registered.agent_id);
        test.request(Method::DELETE, &path, &Value::Null).await
    };
    delete(&busy).await.expect(409);
    test.advance(31);
    terrapool::server::domain::queue::expire(&test.app).await.unwrap();
    assert_eq!(test.reread(&run).await.status.as_str(), "plan_queued", "another agent gets the plan");
    delete(&busy).await.expect(204);
}

/// A real agent: rotation, end of the overlap and of the token, retirement; then a person revokes.
#[tokio::test]
async fn a_real_agent_sees_no_failed_heartbeat_through_a_rotation_and_ends_with_a_revocation() {
    let plane = Plane::with(Policy { heartbeat: Duration::from_millis(100), ..Policy::default() }).await;
    let (test, pool) = (&plane.test, plane.fixture.pool.id.to_string());
    let (first, secret) = token(test, &pool, Some(60)).await;
    let mut config = plane.config("a");
    config.token = secret.into();
    let agent = crate::support::agents::RunningAgent::start(config).await;
    let beats = async |more: usize| {
        let wanted = plane.gate.seen("POST /heartbeat").len() + more;
        plane.gate.reached("POST /heartbeat", wanted).await;
    };
    beats(2).await;
    let (second, _) = token(test, &pool, None).await;
    beats(2).await;
    retire(test, &first, &second).await.expect(204);
    beats(3).await;
    let seen = plane.gate.seen("POST /heartbeat");
    let failed: Vec<_> = seen.iter().filter(|seen| seen.status.is_some_and(|status| status != 200)).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(plane.gate.seen("POST /register").len(), 1, "nobody had to register again");

    revoke(test, &second).await;
    let error = agent.end().await.unwrap_err();
    assert!(matches!(error, Error::Fatal(Fatal::Token { .. })), "{error:?}");
}

/// Whoever holds a call when its token is revoked gets neither a job nor an order.
#[tokio::test]
async fn a_revocation_ends_calls_that_are_held() {
    let plane = Plane::with(Policy { heartbeat: Duration::from_secs(25), ..Policy::default() }).await;
    let (test, pool) = (&plane.test, plane.fixture.pool.id.to_string());
    let (id, secret) = token(test, &pool, None).await;
    let mut config = plane.config("a");
    config.token = secret.into();
    let agent = crate::support::agents::RunningAgent::start(config).await;
    plane.gate.reached("POST /heartbeat", 1).await;
    eventually("the claim is held", async || test.app.held.count() == 1).await;
    revoke(test, &id).await;
    let run = test.run(&plane.fixture.workspace.id, &plane.fixture.configuration, Default::default()).await;
    // Sooner than the held heartbeat and claim would end by themselves.
    let ended = tokio::time::timeout(Duration::from_secs(18), agent.end()).await.expect("held calls are not ended");
    let error = ended.unwrap_err();
    assert!(matches!(error, Error::Fatal(Fatal::Token { .. })), "{error:?}");
    assert_eq!(test.reread(&run).await.status.as_str(), "plan_queued");
    assert_eq!(plane.gate.seen("POST /claim").iter().filter(|seen| seen.status == Some(200)).count(), 0);
}
