//! Variables by the API: kept, checked, and the sensitive ones never shown again.

use axum::http::Method;
use serde_json::{Value, json};
use terrapool::{
    api::job::Category,
    server::{domain::variables, store},
};

use crate::support::app::{Answer, Fixture, TestApp};

struct Stand {
    test: TestApp,
    fixture: Fixture,
}

impl Stand {
    async fn new() -> Self {
        let test = TestApp::new().await;
        let fixture = test.fixture().await;
        Self { test, fixture }
    }

    async fn send(&self, method: Method, id: &str, attributes: &Value) -> Answer {
        let path = format!("/api/v2/workspaces/{}/vars{id}", self.fixture.workspace.id);
        let body = json!({"data": {"type": "vars", "attributes": attributes}});
        self.test.request(method, &path, &body).await
    }

    async fn create(&self, attributes: &Value) -> Answer {
        self.send(Method::POST, "", attributes).await
    }

    /// Key, value, category, HCL, sensitive: as a job gets them.
    async fn for_job(&self) -> Vec<(String, String, Category, bool, bool)> {
        let mut connection = self.test.app.store.read().await.unwrap();
        let workspace = store::workspaces::get(&mut connection, &self.fixture.workspace.id).await.unwrap().unwrap();
        let found = variables::for_job(&self.test.app, &mut connection, &workspace).await.unwrap();
        found.into_iter().map(|one| (one.key, one.value, one.category, one.hcl, one.sensitive)).collect()
    }
}

#[tokio::test]
async fn a_variable_is_created_changed_and_removed() {
    let stand = Stand::new().await;
    let new = json!({"key": "region", "value": "eu", "category": "terraform", "hcl": false, "description": "where"});
    let created = stand.create(&new).await.expect(201).json();
    assert_eq!(created["data"]["attributes"]["value"], "eu");
    assert_eq!(created["data"]["type"], "vars");
    let id = format!("/{}", created["data"]["id"].as_str().unwrap());
    let change = json!({"value": "[1]", "hcl": true, "description": null});
    let changed = stand.send(Method::PATCH, &id, &change).await.expect(200).json();
    assert_eq!(changed["data"]["attributes"]["key"], "region");
    assert_eq!(changed["data"]["attributes"]["description"], Value::Null);
    assert_eq!(stand.for_job().await, [("region".into(), "[1]".into(), Category::Terraform, true, false)]);
    stand.send(Method::DELETE, &id, &json!({})).await.expect(204);
    stand.send(Method::DELETE, &id, &json!({})).await.expect(404);
    assert_eq!(stand.for_job().await, []);
}

#[tokio::test]
async fn a_sensitive_value_is_never_shown_and_reaches_the_job() {
    let stand = Stand::new().await;
    let new = json!({"key": "password", "value": "hunter2", "category": "env", "sensitive": true});
    let created = stand.create(&new).await.expect(201);
    assert!(!String::from_utf8_lossy(&created.body).contains("hunter2"));
    let id = format!("/{}", created.json()["data"]["id"].as_str().unwrap());
    for answer in [
        stand.send(Method::GET, "", &json!({})).await,
        stand.send(Method::GET, &id, &json!({})).await,
        stand.send(Method::PATCH, &id, &json!({"description": "x"})).await,
    ] {
        let answer = answer.expect(200);
        assert!(!String::from_utf8_lossy(&answer.body).contains("hunter2"));
    }
    // it cannot be made readable, only replaced
    stand.send(Method::PATCH, &id, &json!({"sensitive": false})).await.expect(422);
    assert_eq!(stand.for_job().await, [("password".into(), "hunter2".into(), Category::Env, false, true)]);
    let open = stand.send(Method::PATCH, &id, &json!({"sensitive": false, "value": "open"})).await.expect(200).json();
    assert_eq!(open["data"]["attributes"]["value"], "open");
}

#[tokio::test]
async fn keys_are_unique_in_their_category_and_checked() {
    let stand = Stand::new().await;
    stand.create(&json!({"key": "a", "value": "1", "category": "terraform"})).await.expect(201);
    stand.create(&json!({"key": "a", "value": "1", "category": "env"})).await.expect(201);
    let taken = stand.create(&json!({"key": "a", "value": "2", "category": "env"})).await.expect(422).json();
    assert_eq!(taken["errors"][0]["source"]["pointer"], "/data/attributes/key");
    for bad in [
        json!({"value": "1", "category": "env"}),
        json!({"key": "a b", "category": "env"}),
        json!({"key": "x=y", "category": "env"}),
        json!({"key": "b"}),
        json!({"key": "b", "category": "policy"}),
        json!({"key": "b", "category": "env", "hcl": true}),
        json!({"key": "b", "category": "env", "value": "nul\u{0}"}),
    ] {
        stand.create(&bad).await.expect(422);
    }
    let path = "/api/v2/workspaces/ws-0000000000000000/vars";
    stand.test.get(path).await.expect(404);
}
