//! A simulated agent: speaks the agent protocol to a [`TestApp`], call by call, as a test wants it.

use axum::{
    body::Body,
    http::{Method, Request},
};
use serde_json::Value;
use terrapool::api::{
    agent::{
        BASE, EPOCH_HEADER, ExecutorKind, FinishRequest, HeartbeatResponse, Outcome, PROTOCOL_HEADER, PROTOCOL_VERSION,
        RegisterRequest, RegisterResponse, ResourceChanges,
    },
    job::JobSpec,
};

use super::app::{Answer, TestApp};

pub struct SimAgent<'a> {
    pub app: &'a TestApp,
    pub registered: RegisterResponse,
    claims: std::cell::Cell<u32>,
}

/// A registration as a test agent sends it.
pub fn registration(name: &str) -> RegisterRequest {
    RegisterRequest {
        name: name.to_owned(),
        instance: format!("instance-of-{name}"),
        version: "0.1.0".to_owned(),
        os: "centos_8".to_owned(),
        platform: "linux_amd64".to_owned(),
        executor: ExecutorKind::Docker,
        run_as_root: false,
        slots: 5,
        labels: std::collections::BTreeMap::new(),
    }
}

/// A result without changes.
pub fn result(outcome: Outcome) -> FinishRequest {
    FinishRequest {
        outcome,
        reason: None,
        message: None,
        log_bytes: 0,
        has_changes: false,
        changes: ResourceChanges::default(),
        image_digest: None,
    }
}

/// A call to the agent API with any token.
pub async fn call(app: &TestApp, token: &str, method: Method, path: &str, epoch: Option<i64>, body: Body) -> Answer {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{BASE}/{path}"))
        .header(PROTOCOL_HEADER, PROTOCOL_VERSION)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json");
    if let Some(epoch) = epoch {
        request = request.header(EPOCH_HEADER, epoch.to_string());
    }
    app.send(request.body(body).unwrap()).await
}

impl<'a> SimAgent<'a> {
    pub async fn register(app: &'a TestApp, pool_token: &str, name: &str) -> Self {
        let body = Body::from(serde_json::to_vec(&registration(name)).unwrap());
        let answer = call(app, pool_token, Method::POST, "register", None, body).await.expect(200);
        Self { app, registered: serde_json::from_slice(&answer.body).unwrap(), claims: std::cell::Cell::new(0) }
    }

    pub async fn call(&self, method: Method, path: &str, epoch: Option<i64>, body: Body) -> Answer {
        call(self.app, &self.registered.agent_token, method, path, epoch, body).await
    }

    /// Claims with an id of its own; does not wait.
    pub async fn claim(&self) -> Option<JobSpec> {
        self.claims.set(self.claims.get() + 1);
        self.claim_as(&format!("claim-{}", self.claims.get())).await
    }

    pub async fn claim_as(&self, claim_id: &str) -> Option<JobSpec> {
        let body = serde_json::json!({"claim_id": claim_id, "stages": ["plan", "apply"], "wait_ms": 0});
        let answer = self.call(Method::POST, "claim", None, Body::from(body.to_string())).await;
        match answer.status.as_u16() {
            204 => None,
            _ => Some(serde_json::from_slice(&answer.expect(200).body).unwrap()),
        }
    }

    pub async fn heartbeat(&self, jobs: &[&JobSpec]) -> HeartbeatResponse {
        let jobs: Vec<Value> =
            jobs.iter().map(|job| serde_json::json!({"job_id": job.job_id, "epoch": job.epoch})).collect();
        let body = serde_json::json!({"status": "idle", "draining": false, "jobs": jobs, "known": [], "wait_ms": 0});
        let answer = self.call(Method::POST, "heartbeat", None, Body::from(body.to_string())).await.expect(200);
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub async fn append_log(&self, job: &JobSpec, offset: u64, text: &str) -> Answer {
        let path = format!("jobs/{}/log?offset={offset}", job.job_id);
        self.call(Method::PUT, &path, Some(job.epoch), Body::from(text.to_owned())).await
    }

    pub async fn put_artifact(&self, job: &JobSpec, name: &str, content: &str) -> Answer {
        let path = format!("jobs/{}/artifacts/{name}", job.job_id);
        self.call(Method::PUT, &path, Some(job.epoch), Body::from(content.to_owned())).await
    }

    pub async fn put_state(&self, job: &JobSpec, state: &Value) -> Answer {
        let path = format!("jobs/{}/state", job.job_id);
        self.call(Method::PUT, &path, Some(job.epoch), Body::from(state.to_string())).await
    }

    pub async fn finish(&self, job: &JobSpec, result: &FinishRequest) -> Answer {
        let path = format!("jobs/{}/finish", job.job_id);
        self.call(Method::POST, &path, Some(job.epoch), Body::from(serde_json::to_vec(result).unwrap())).await
    }

    /// Plans with changes, as a real agent would.
    pub async fn finish_plan(&self, job: &JobSpec) {
        self.put_artifact(job, "plan", "bundle").await.expect(204);
        let result = FinishRequest { has_changes: true, ..result(Outcome::Finished) };
        self.finish(job, &result).await.expect(204);
    }
}
