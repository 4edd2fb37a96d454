//! State versions by the API: lock, serial, lineage, MD5; outputs; what lies on the disk.

use axum::{
    body::Body,
    http::{Method, Request},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use terrapool::server::domain::states::md5_hex;

use crate::support::app::{Answer, Fixture, TestApp};

const SECRET: &str = "a-secret-that-must-not-lie-open";

fn state(serial: i64, lineage: &str) -> Vec<u8> {
    json!({
        "version": 4, "terraform_version": "1.11.4", "serial": serial, "lineage": lineage,
        "outputs": {
            "list": {"value": ["a"], "type": ["list", "string"]},
            "secret": {"value": SECRET, "type": "string", "sensitive": true},
        },
        "resources": [{"mode": "managed", "type": "t", "name": "n", "provider": "p", "instances": [{}, {}]}],
    })
    .to_string()
    .into_bytes()
}

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

    fn path(&self, rest: &str) -> String {
        format!("/api/v2/workspaces/{}/{rest}", self.fixture.workspace.id)
    }

    async fn act(&self, action: &str) {
        self.test.request(Method::POST, &self.path(&format!("actions/{action}")), &Value::Null).await.expect(200);
    }

    async fn announce(&self, bytes: &[u8], serial: i64, lineage: &str, more: Value) -> Answer {
        let mut attributes = json!({"serial": serial, "md5": md5_hex(bytes), "lineage": lineage});
        attributes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = json!({"data": {"type": "state-versions", "attributes": attributes}});
        self.test.request(Method::POST, &self.path("state-versions"), &body).await
    }

    /// Writes a state as the CLI does.
    async fn write(&self, serial: i64, lineage: &str) -> Value {
        let bytes = state(serial, lineage);
        let created = self.announce(&bytes, serial, lineage, json!({})).await.expect(201).json();
        put(&self.test, &created, "hosted-state-upload-url", bytes).await.expect(200);
        created
    }
}

async fn put(test: &TestApp, created: &Value, url: &str, bytes: impl Into<Body>) -> Answer {
    let url = created["data"]["attributes"][url].as_str().unwrap();
    let request = Request::builder().method(Method::PUT).uri(url.strip_prefix("http://terrapool.test").unwrap());
    test.send(request.body(bytes.into()).unwrap()).await
}

fn detail(answer: &Answer) -> String {
    answer.json()["errors"][0]["detail"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_state_is_written_under_the_callers_lock_only() {
    let stand = Stand::new().await;
    stand.test.get(&stand.path("current-state-version")).await.expect(404);
    stand.test.get(&stand.path("current-state-version-outputs")).await.expect(404);
    let bytes = state(1, "l");
    stand.announce(&bytes, 1, "l", json!({})).await.expect(409);
    stand.act("lock").await;
    let created = stand.announce(&bytes, 1, "l", json!({})).await.expect(201);
    assert_eq!(created.headers["x-terraform-snapshot-interval"], "20");
    let created = created.json();
    assert_eq!(created["data"]["attributes"]["status"], "pending");
    stand.test.get(&stand.path("current-state-version")).await.expect(404);

    // the lock was given back before the upload came
    stand.act("unlock").await;
    put(&stand.test, &created, "hosted-state-upload-url", bytes.clone()).await.expect(409);
    stand.act("lock").await;
    put(&stand.test, &created, "hosted-state-upload-url", bytes.clone()).await.expect(200);
    // the same again: a client that missed our answer
    put(&stand.test, &created, "hosted-state-upload-url", bytes).await.expect(200);
    put(&stand.test, &created, "hosted-state-upload-url", state(2, "l")).await.expect(409);
    put(&stand.test, &created, "hosted-json-state-upload-url", "{}").await.expect(200);
    let current = stand.test.get(&stand.path("current-state-version")).await.expect(200).json();
    assert_eq!(current["data"]["id"], created["data"]["id"]);
    assert_eq!(current["data"]["attributes"]["status"], "finalized");
    assert_eq!(current["data"]["attributes"]["terraform-version"], "1.11.4");
}

#[tokio::test]
async fn serials_rise_lineages_stay_and_the_md5_is_checked() {
    let stand = Stand::new().await;
    stand.act("lock").await;
    stand.write(5, "l").await;
    for (serial, lineage) in [(5, "l"), (4, "l"), (6, "other")] {
        let answer = stand.announce(b"other bytes", serial, lineage, json!({})).await.expect(409);
        assert!(!detail(&answer).is_empty());
    }
    // the current one once more changes nothing
    let same = stand.announce(&state(5, "l"), 5, "l", json!({})).await.expect(201).json();
    let current = stand.test.get(&stand.path("current-state-version")).await.expect(200).json();
    assert_eq!(same["data"]["id"], current["data"]["id"]);
    // a jump of the serial, and force
    stand.write(50, "l").await;
    stand.announce(&state(1, "other"), 1, "other", json!({"force": true})).await.expect(201);

    let created = stand.announce(&state(51, "l"), 51, "l", json!({})).await.expect(201).json();
    let answer = put(&stand.test, &created, "hosted-state-upload-url", "something else").await.expect(422);
    assert!(detail(&answer).contains("MD5"), "{answer:?}");
    let garbage = b"{\"version\": 3}";
    let created = stand.announce(garbage, 51, "l", json!({})).await.expect(201).json();
    put(&stand.test, &created, "hosted-state-upload-url", &garbage[..]).await.expect(422);
    let current = stand.test.get(&stand.path("current-state-version")).await.expect(200).json();
    assert_eq!(current["data"]["attributes"]["serial"], 50, "nothing of it became current");
}

#[tokio::test]
async fn a_state_may_come_with_its_announcement() {
    let stand = Stand::new().await;
    stand.act("lock").await;
    let bytes = state(1, "l");
    let inline = json!({"state": STANDARD.encode(&bytes), "json-state": STANDARD.encode("{}")});
    let created = stand.announce(&bytes, 1, "l", inline).await.expect(201).json();
    assert_eq!(created["data"]["attributes"]["status"], "finalized");
    assert!(created["data"]["attributes"]["hosted-json-state-download-url"].is_string());
    stand.announce(&bytes, 2, "l", json!({"state": "not base64!"})).await.expect(422);
    let body = json!({"data": {"type": "state-versions", "attributes": {"serial": 2}}});
    let answer = stand.test.request(Method::POST, &stand.path("state-versions"), &body).await.expect(422).json();
    assert_eq!(answer["errors"][0]["source"]["pointer"], "/data/attributes/md5");
}

#[tokio::test]
async fn outputs_are_read_from_the_state_and_sensitive_ones_come_one_by_one() {
    let stand = Stand::new().await;
    stand.act("lock").await;
    let created = stand.write(1, "l").await;
    let workspace = stand.test.get("/api/v2/organizations/prod/workspaces/app").await.expect(200).json();
    assert_eq!(workspace["data"]["attributes"]["resource-count"], 2);

    let outputs = stand.test.get(&stand.path("current-state-version-outputs")).await.expect(200).json();
    let (list, secret) = (&outputs["data"][0], &outputs["data"][1]);
    assert_eq!(list["attributes"]["name"], "list");
    assert_eq!(list["attributes"]["value"], json!(["a"]));
    assert_eq!(list["attributes"]["detailed-type"], json!(["list", "string"]));
    assert_eq!(secret["attributes"]["sensitive"], true);
    assert_eq!(secret["attributes"]["value"], Value::Null);
    let path = format!("/api/v2/state-version-outputs/{}", secret["id"].as_str().unwrap());
    assert_eq!(stand.test.get(&path).await.expect(200).json()["data"]["attributes"]["value"], SECRET);
    stand.test.get("/api/v2/state-version-outputs/wsout-000000000000000000000").await.expect(404);

    let id = created["data"]["id"].as_str().unwrap();
    let one = stand.test.get(&format!("/api/v2/state-versions/{id}?include=outputs")).await.expect(200).json();
    assert_eq!(one["included"].as_array().unwrap().len(), 2);
    assert_eq!(one["data"]["relationships"]["outputs"]["data"].as_array().unwrap().len(), 2);
    let url = one["data"]["attributes"]["hosted-state-download-url"].as_str().unwrap();
    let download = stand.test.get(url.strip_prefix("http://terrapool.test").unwrap()).await.expect(200);
    assert_eq!(download.body, state(1, "l"));
    assert_eq!(download.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn states_are_listed_newest_first() {
    let stand = Stand::new().await;
    stand.act("lock").await;
    for serial in 1..=3 {
        stand.write(serial, "l").await;
        stand.test.advance(1);
    }
    let query = "filter[organization][name]=prod&filter[workspace][name]=app";
    for path in [stand.path("state-versions"), format!("/api/v2/state-versions?{query}")] {
        let list = stand.test.get(&path).await.expect(200).json();
        let serials: Vec<_> =
            list["data"].as_array().unwrap().iter().map(|one| one["attributes"]["serial"].clone()).collect();
        assert_eq!(serials, [3, 2, 1], "{path}");
        assert_eq!(list["meta"]["pagination"]["total-count"], 3);
    }
    stand.test.get("/api/v2/state-versions").await.expect(400);
}

#[tokio::test]
async fn a_workspace_with_resources_is_kept_by_a_safe_deletion() {
    let stand = Stand::new().await;
    stand.act("lock").await;
    stand.write(1, "l").await;
    let path = "/api/v2/organizations/prod/workspaces/app";
    let safe = format!("{path}/actions/safe-delete");
    stand.test.request(Method::POST, &safe, &Value::Null).await.expect(409);
    stand.act("unlock").await;
    let answer = stand.test.request(Method::POST, &safe, &Value::Null).await.expect(409);
    assert!(detail(&answer).contains("manages 2 resources"), "{answer:?}");
    stand.test.request(Method::DELETE, path, &Value::Null).await.expect(204);
    stand.test.get(path).await.expect(404);
    let left = std::fs::read_dir(stand.test.data.path().join("blobs/states")).unwrap().flat_map(|dir| {
        std::fs::read_dir(dir.unwrap().path()).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>()
    });
    assert_eq!(left.count(), 0, "its states are gone from the disk");
}

/// Whether any file below `dir` holds the text.
fn holds(dir: &std::path::Path, text: &str) -> bool {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return holds(&path, text);
        }
        std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test]
async fn states_and_sensitive_variables_lie_sealed_on_the_disk() {
    let stand = Stand::new().await;
    stand.act("lock").await;
    stand.write(1, "l").await;
    let variable = |key: &str, value: &str, sensitive: bool| {
        json!({"data": {"type": "vars", "attributes":
            {"key": key, "value": value, "category": "terraform", "sensitive": sensitive}}})
    };
    let path = stand.path("vars");
    stand.test.request(Method::POST, &path, &variable("password", SECRET, true)).await.expect(201);
    stand.test.request(Method::POST, &path, &variable("region", "plain-to-see", false)).await.expect(201);
    assert!(holds(stand.test.data.path(), "plain-to-see"), "the search sees what is not sealed");
    assert!(!holds(stand.test.data.path(), SECRET));
}
