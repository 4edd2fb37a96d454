//! Access tokens and agents through the Scalr-compatible API.

use axum::{
    body::Body,
    http::{Method, Request},
};
use serde_json::{Value, json};

use crate::support::{
    app::{Answer, TestApp},
    sim_agent::{SimAgent, call, registration},
};

const API: &str = "/api/iacp/v3";

async fn send(test: &TestApp, method: Method, path: &str, body: Value) -> Answer {
    test.request(method, &format!("{API}{path}"), &body).await
}

#[expect(clippy::needless_pass_by_value, reason = "calls read like the document")]
fn token(attributes: Value) -> Value {
    json!({"data": {"type": "access-tokens", "attributes": attributes}})
}

#[tokio::test]
async fn a_pool_tokens_secret_is_shown_once_and_its_end_ends_its_agents() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let path = format!("/agent-pools/{}/access-tokens", fixture.pool.id);
    let new = token(json!({"name": "n", "description": "", "expires-in": 60, "external-id": "uid-1"}));
    let created = send(&test, Method::POST, &path, new.clone()).await.expect(201).json();
    let (id, secret) =
        (created["data"]["id"].as_str().unwrap(), created["data"]["attributes"]["token"].as_str().unwrap());
    assert!(secret.starts_with("tpp_") && secret.len() > 40);
    assert_eq!(created["data"]["attributes"]["expires-at"], "2026-01-02T04:04:05.000Z");
    let again = send(&test, Method::POST, &path, new).await.expect(422).json();
    assert_eq!(again["errors"][0]["source"]["pointer"], "/data/attributes/external-id");

    let own = format!("/access-tokens/{id}");
    for path in [&own, &path, &format!("{path}?filter[external-id]=uid-1")] {
        let shown = String::from_utf8(test.get(&format!("{API}{path}")).await.expect(200).body.to_vec()).unwrap();
        assert!(shown.contains(id) && !shown.contains(secret), "{path}: {shown}");
    }
    let renamed = send(&test, Method::PATCH, &own, token(json!({"description": "d"}))).await.expect(200).json();
    assert_eq!(
        (&renamed["data"]["attributes"]["name"], &renamed["data"]["attributes"]["description"]),
        (&json!("n"), &json!("d"))
    );

    let agent = SimAgent::register(&test, secret, "a").await;
    assert!(agent.claim().await.is_none());
    send(&test, Method::DELETE, &own, Value::Null).await.expect(204);
    let body = json!({"claim_id": "1", "stages": ["plan"], "wait_ms": 0}).to_string();
    agent.call(Method::POST, "claim", None, Body::from(body)).await.expect(401);
    let gone = send(&test, Method::DELETE, &own, Value::Null).await.expect(404).json();
    assert_eq!(gone["errors"][0]["title"], format!("AccessToken with ID '{id}' not found or user unauthorized."));
}

#[tokio::test]
async fn a_token_expires_and_unusual_lifetimes_are_refused() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let path = format!("/agent-pools/{}/access-tokens", fixture.pool.id);
    for minutes in [0, -1, i64::MAX] {
        let error = send(&test, Method::POST, &path, token(json!({"expires-in": minutes}))).await.expect(422).json();
        assert_eq!(error["errors"][0]["source"]["pointer"], "/data/attributes/expires-in");
    }
    let created = send(&test, Method::POST, &path, token(json!({"expires-in": 1}))).await.expect(201).json();
    let secret = created["data"]["attributes"]["token"].as_str().unwrap();
    test.advance(61);
    let body = Body::from(serde_json::to_vec(&registration("late")).unwrap());
    call(&test, secret, Method::POST, "register", None, body).await.expect(401);
    let list = test.get(&format!("{API}{path}")).await.expect(200).json();
    assert_eq!(list["data"].as_array().unwrap().iter().filter(|t| t["attributes"]["is-expired"] == true).count(), 1);
    let unknown =
        send(&test, Method::POST, "/agent-pools/apool-x/access-tokens", token(json!({}))).await.expect(404).json();
    assert_eq!(unknown["errors"][0]["title"], "AgentPool with ID 'apool-x' not found or user unauthorized.");
}

#[tokio::test]
async fn only_users_may_call_and_they_see_their_own_tokens() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    for secret in ["", "nonsense", &fixture.pool_token, &agent.registered.agent_token] {
        for path in ["agent-pools", "agents", "workspaces", "environments", "access-tokens", "accounts"] {
            let request =
                Request::builder().uri(format!("{API}/{path}")).header("authorization", format!("Bearer {secret}"));
            test.send(request.body(Body::empty()).unwrap()).await.expect(401);
        }
    }
    let created =
        send(&test, Method::POST, "/access-tokens", token(json!({"description": "mine"}))).await.expect(201).json();
    assert!(created["data"]["attributes"]["token"].as_str().unwrap().starts_with("tpu_"));
    let list = test.get(&format!("{API}/access-tokens")).await.expect(200).json();
    assert_eq!(list["meta"]["pagination"]["total-count"], 2);
    send(&test, Method::DELETE, &format!("/access-tokens/{}", created["data"]["id"].as_str().unwrap()), Value::Null)
        .await
        .expect(204);
}

#[tokio::test]
async fn agents_are_listed_with_what_they_are_now_and_deleted_when_gone() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "centos-1").await;
    let id = agent.registered.agent_id.as_str().to_owned();
    let path = format!("/agents/{id}");
    let shown = test.get(&format!("{API}{path}?include=pool")).await.expect(200).json();
    let attributes = &shown["data"]["attributes"];
    let wanted = [
        ("name", "centos-1"),
        ("status", "idle"),
        ("os", "centos_8"),
        ("cpu-platform", "linux_amd64"),
        ("driver", "docker"),
    ];
    for (name, value) in wanted {
        assert_eq!(attributes[name], value, "{name}");
    }
    assert_eq!(shown["included"][0]["attributes"]["agent-counts"]["idle"], 1);
    for (query, count) in [
        (format!("filter[agent-pool]={}", fixture.pool.id), 1),
        ("filter[agent-pool]=apool-none".to_owned(), 0),
        ("filter[agent][name]=centos-1".to_owned(), 1),
        ("query=CENTOS".to_owned(), 1),
    ] {
        let list = test.get(&format!("{API}/agents?{query}")).await.expect(200).json();
        assert_eq!(list["meta"]["pagination"]["total-count"], count, "{query}");
    }
    send(&test, Method::DELETE, &path, Value::Null).await.expect(409);
    let run = test.run(&fixture.workspace.id, &fixture.configuration, Default::default()).await;
    assert!(agent.claim().await.is_some(), "{run:?}");
    test.advance(31);
    // not heard of, but the lease is not ended yet by the task that does it: still its job
    let busy = send(&test, Method::DELETE, &path, Value::Null).await.expect(409).json();
    assert_eq!(busy["errors"][0]["detail"], "The agent is busy and can't be deleted.");
    terrapool::server::domain::queue::expire(&test.app).await.unwrap();
    assert_eq!(test.get(&format!("{API}{path}")).await.json()["data"]["attributes"]["status"], "offline");
    send(&test, Method::DELETE, &path, Value::Null).await.expect(204);
    send(&test, Method::DELETE, &path, Value::Null).await.expect(404);
}
