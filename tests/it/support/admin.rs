//! The control plane's APIs in an administrator's hands.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use terrapool::http;

use super::{poll::eventually, server::Place};

/// Speaks to one control plane.
#[derive(Debug, Clone)]
pub struct Admin {
    /// `http://localhost:PORT`
    address: String,
    token: String,
    client: Client,
}

impl Admin {
    pub fn new(address: String, token: String) -> Self {
        Self { address, token, client: http::client(None).unwrap() }
    }

    /// Over HTTPS, with a CA of somebody's own.
    pub fn trusting(address: String, token: String, ca: &Path) -> Self {
        Self { address, token, client: http::client(Some(ca)).unwrap() }
    }

    /// Whether anything answers.
    pub async fn is_reached(&self) -> Result<(), String> {
        let answer = self.client.get(format!("{}/api/v2/ping", self.address)).send().await;
        answer.map(drop).map_err(|error| format!("{error:?}"))
    }

    /// A request; status and body, which is null when there is none.
    pub async fn try_request(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.address) };
        let request = self.client.request(method.clone(), url).bearer_auth(&self.token);
        let request = request.header("content-type", "application/vnd.api+json");
        let request = if body.is_null() { request } else { request.body(body.to_string()) };
        let response = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    /// A request that must succeed.
    pub async fn request(&self, method: Method, path: &str, body: &Value) -> Value {
        let (status, answer) = self.try_request(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    pub async fn get(&self, path: &str) -> Value {
        self.request(Method::GET, path, &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.request(Method::POST, path, body).await
    }

    /// Uploads to an address that the control plane gave.
    pub async fn upload(&self, address: &str, content: Bytes) {
        let response = self.client.put(address).body(content).send().await.unwrap();
        assert!(response.status().is_success(), "PUT {address}: {}", response.status());
    }

    /// An environment of this name, with a pool that is the default of the account.
    pub async fn place(&self, organization: &str) -> Place {
        let environment = json!({"data": {"type": "environments", "attributes": {"name": organization}}});
        self.post("/api/iacp/v3/environments", &environment).await;
        let pool = json!({"data": {"type": "agent-pools", "attributes": {"name": "private", "default": true}}});
        let pool = id(&self.post("/api/iacp/v3/agent-pools", &pool).await);
        let pool_token = self.pool_token(&pool).await;
        Place { organization: organization.to_owned(), pool, pool_token }
    }

    /// A new token of the pool.
    pub async fn pool_token(&self, pool: &str) -> String {
        let token = json!({"data": {"type": "access-tokens", "attributes": {"description": "agents"}}});
        let token = self.post(&format!("/api/iacp/v3/agent-pools/{pool}/access-tokens"), &token).await;
        token["data"]["attributes"]["token"].as_str().unwrap().to_owned()
    }

    /// A workspace as `/api/v2` shows it.
    pub async fn workspace(&self, organization: &str, name: &str) -> Value {
        self.get(&format!("/api/v2/organizations/{organization}/workspaces/{name}")).await["data"].clone()
    }

    /// The newest run of a workspace.
    pub async fn newest_run(&self, workspace: &str) -> Value {
        self.get(&format!("/api/v2/workspaces/{workspace}/runs")).await["data"][0].clone()
    }

    /// Waits until the newest run of a workspace has this status; the run.
    pub async fn run_becomes(&self, workspace: &str, status: &str, deadline: Duration) -> Value {
        eventually(&format!("the run is {status}"), deadline, async || {
            let run = self.newest_run(workspace).await;
            if run["attributes"]["status"] == status { Ok(run) } else { Err(run["attributes"].clone()) }
        })
        .await
    }

    pub async fn is_unlocked(&self, workspace: &str) {
        eventually("the workspace is unlocked", Duration::from_secs(10), async || {
            let found = self.get(&format!("/api/v2/workspaces/{workspace}")).await;
            if found["data"]["attributes"]["locked"] == false { Ok(()) } else { Err(found) }
        })
        .await;
    }

    /// The log of a run's stage (`plan` or `apply`), without the marks at its start and end; and whether it is complete.
    pub async fn log(&self, run: &Value, stage: &str) -> (Vec<u8>, bool) {
        let id = run["relationships"][stage]["data"]["id"].as_str().unwrap();
        let plural = if stage == "plan" { "plans" } else { "applies" };
        let stage = self.get(&format!("/api/v2/{plural}/{id}")).await;
        let url = stage["data"]["attributes"]["log-read-url"].as_str().unwrap();
        let mut log = Vec::new();
        loop {
            let response = self.client.get(format!("{url}?limit=65536&offset={}", log.len())).send().await.unwrap();
            let part = response.error_for_status().unwrap().bytes().await.unwrap();
            log.extend_from_slice(&part);
            let complete = log.last() == Some(&3);
            // A short answer has reached the end; asked again, the server would wait for more.
            if part.len() < 8192 || complete {
                assert!(log.is_empty() || log.remove(0) == 2, "a log begins with its mark");
                log.truncate(log.len() - usize::from(complete));
                return (log, complete);
            }
        }
    }

    /// The current state of a workspace; null when there is none.
    pub async fn state(&self, workspace: &str) -> Value {
        let path = format!("/api/v2/workspaces/{workspace}/current-state-version");
        let (status, version) = self.try_request(Method::GET, &path, &Value::Null).await;
        if status == StatusCode::NOT_FOUND {
            return Value::Null;
        }
        assert!(status.is_success(), "{version}");
        let url = version["data"]["attributes"]["hosted-state-download-url"].as_str().unwrap();
        self.get(url).await
    }

    /// Names of the resources in the current state of a workspace.
    pub async fn resources(&self, workspace: &str) -> Vec<String> {
        let state = self.state(workspace).await;
        let resources = state["resources"].as_array().cloned().unwrap_or_default();
        resources.iter().map(|resource| resource["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until the current state has this resource; how long that took.
    pub async fn has_resource(&self, workspace: &str, name: &str) -> Duration {
        let start = std::time::Instant::now();
        eventually(&format!("{name} is in the state"), Duration::from_secs(20), async || {
            let resources = self.resources(workspace).await;
            if resources.iter().any(|resource| resource == name) { Ok(()) } else { Err(resources) }
        })
        .await;
        start.elapsed()
    }
}

/// The id of a document's object.
pub fn id(document: &Value) -> String {
    document["data"]["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
}
