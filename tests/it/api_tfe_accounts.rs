//! What belongs to another account looks as if it were not there: 404, never 403, and nothing is changed.

use axum::{
    body::Body,
    http::{Method, Request},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use terrapool::{
    ids::{AccountId, TokenId, UserId},
    server::{
        domain::{
            access,
            model::{Account, RunOptions, Token, TokenKind, User},
            unit::Unit,
        },
        store,
    },
};

use crate::support::app::{Answer, TestApp};

/// The token of an administrator of another account.
async fn stranger(test: &TestApp) -> String {
    let mut unit = Unit::begin(&test.app).await.unwrap();
    let now = unit.now;
    let account = Account { id: AccountId::random(), name: "other".to_owned(), default_pool_id: None, created_at: now };
    store::accounts::insert(&mut unit, &account).await.unwrap();
    let user = User {
        id: UserId::random(),
        account_id: account.id,
        username: "mallory".to_owned(),
        email: "mallory@localhost".to_owned(),
        is_admin: true,
        is_service_account: false,
    };
    store::tokens::insert_user(&mut unit, &user, now).await.unwrap();
    let secret = access::new_secret(TokenKind::User);
    let token = Token {
        id: TokenId::random(),
        kind: TokenKind::User,
        user_id: Some(user.id),
        pool_id: None,
        agent_id: None,
        parent_id: None,
        name: None,
        description: None,
        external_id: None,
        created_at: now,
        expires_at: None,
        last_used_at: None,
    };
    store::tokens::insert(&mut unit, &token, &access::hash(&secret)).await.unwrap();
    unit.commit().await.unwrap();
    secret.expose_secret().to_owned()
}

async fn send(test: &TestApp, token: &str, method: Method, path: &str, body: &Value) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/v2/{path}"))
        .header("host", "terrapool.test")
        .header("authorization", format!("Bearer {token}"));
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    test.send(request.body(body).unwrap()).await
}

#[tokio::test]
async fn nothing_of_another_account_can_be_seen_or_changed() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let workspace = format!("workspaces/{}", fixture.workspace.id);
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let variable = json!({"data": {"type": "vars", "attributes": {"key": "k", "value": "v", "category": "env"}}});
    let variable = test.request(Method::POST, &format!("/api/v2/{workspace}/vars"), &variable).await.expect(201).json();
    let variable = format!("{workspace}/vars/{}", variable["data"]["id"].as_str().unwrap());
    let token = stranger(&test).await;

    for path in [
        "organizations/prod",
        "organizations/prod/entitlement-set",
        "organizations/prod/capacity",
        "organizations/prod/runs/queue",
        "organizations/prod/workspaces",
        "organizations/prod/workspaces/app",
        &workspace,
        &format!("{workspace}/runs"),
        &format!("{workspace}/vars"),
        &variable,
        &format!("{workspace}/state-versions"),
        &format!("{workspace}/current-state-version"),
        &format!("{workspace}/current-state-version-outputs"),
        &format!("configuration-versions/{}", fixture.configuration),
        &format!("configuration-versions/{}/download", fixture.configuration),
        &format!("runs/{}", run.id),
        &format!("runs/{}/run-events", run.id),
        &format!("plans/{}", run.plan_id),
        &format!("plans/{}/json-output", run.plan_id),
        &format!("applies/{}", run.apply_id),
        "state-versions?filter[organization][name]=prod&filter[workspace][name]=app",
    ] {
        send(&test, &token, Method::GET, path, &Value::Null).await.expect(404);
    }
    let body = json!({"data": {"type": "x", "attributes": {"name": "x", "key": "x", "value": "x", "category": "env",
        "serial": 1, "md5": "x"}}});
    let new_run = json!({"data": {"type": "runs", "relationships":
        {"workspace": {"data": {"type": "workspaces", "id": fixture.workspace.id}}}}});
    for (method, path, body) in [
        (Method::POST, "organizations/prod/workspaces".to_owned(), &body),
        (Method::PATCH, workspace.clone(), &body),
        (Method::DELETE, workspace.clone(), &Value::Null),
        (Method::DELETE, "organizations/prod/workspaces/app".to_owned(), &Value::Null),
        (Method::POST, format!("{workspace}/actions/lock"), &Value::Null),
        (Method::POST, format!("{workspace}/actions/force-unlock"), &Value::Null),
        (Method::POST, format!("{workspace}/actions/safe-delete"), &Value::Null),
        (Method::POST, format!("{workspace}/configuration-versions"), &body),
        (Method::POST, format!("{workspace}/state-versions"), &body),
        (Method::POST, format!("{workspace}/vars"), &body),
        (Method::PATCH, variable.clone(), &body),
        (Method::DELETE, variable, &Value::Null),
        (Method::POST, "runs".to_owned(), &new_run),
        (Method::POST, format!("runs/{}/actions/cancel", run.id), &Value::Null),
        (Method::POST, format!("runs/{}/actions/apply", run.id), &Value::Null),
    ] {
        let answer = send(&test, &token, method.clone(), &path, body).await;
        assert_eq!(answer.status.as_u16(), 404, "{method} {path}: {answer:?}");
    }
    assert_eq!(test.reread(&run).await, run);
    assert_eq!(
        send(&test, &token, Method::GET, "organizations", &Value::Null).await.expect(200).json()["data"],
        json!([])
    );
    let me = send(&test, &token, Method::GET, "account/details", &Value::Null).await.expect(200).json();
    assert_eq!(me["data"]["attributes"]["username"], "mallory");
}

#[tokio::test]
async fn a_pools_token_is_no_users_token() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    for token in [fixture.pool_token.as_str(), "tpu_unknown", ""] {
        send(&test, token, Method::GET, "organizations/prod/workspaces/app", &Value::Null).await.expect(401);
    }
}
