//! A simulated agent of one Pod: registers, waits, takes one job, holds it as long as the test wants, leaves.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Method, StatusCode},
};
use serde_json::{Value, json};
use terrapool::api::{
    agent::{Outcome, RegisterRequest, RegisterResponse},
    job::JobSpec,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::proxy::ControlPlane;
use crate::support::{
    app::Answer,
    sim_agent::{call, registration, result},
};

/// How long the server may hold a claim or heartbeat, in milliseconds.
const HOLD_MS: u64 = 4_000;

pub struct Registration {
    pub name: String,
    /// The Pod's uid.
    pub instance: String,
}

pub struct Agent {
    plane: Arc<ControlPlane>,
    registered: RegisterResponse,
    name: String,
}

/// The server does not know the agent any more.
#[derive(Debug)]
pub struct Refused;

impl Agent {
    /// `None`: the server does not take it.
    pub async fn register(plane: Arc<ControlPlane>, token: &str, wanted: &Registration) -> Option<Self> {
        let request = RegisterRequest { instance: wanted.instance.clone(), slots: 1, ..registration(&wanted.name) };
        let body = Body::from(serde_json::to_vec(&request).ok()?);
        let answer = call(&plane.app, token, Method::POST, "register", None, body).await;
        if answer.status != StatusCode::OK {
            return None;
        }
        let registered = serde_json::from_slice(&answer.body).ok()?;
        Some(Self { plane, registered, name: wanted.name.clone() })
    }

    async fn call(&self, path: &str, epoch: Option<i64>, body: &Value) -> Answer {
        let body = Body::from(body.to_string());
        call(&self.plane.app, &self.registered.agent_token, Method::POST, path, epoch, body).await
    }

    async fn claim(&self, stages: &[&str], wait_ms: u64) -> Result<Option<JobSpec>, Refused> {
        // One job in a life, so one claim: asked again, it is the same.
        let body = json!({"claim_id": format!("claim-of-{}", self.name), "stages": stages, "wait_ms": wait_ms});
        let answer = self.call("claim", None, &body).await;
        match answer.status {
            StatusCode::OK => Ok(serde_json::from_slice(&answer.body).ok()),
            StatusCode::NO_CONTENT => Ok(None),
            _ => Err(Refused),
        }
    }

    /// Whether the server wants it to take no jobs.
    async fn heartbeat(&self, status: &str, jobs: &Value, wait_ms: u64) -> Result<bool, Refused> {
        let body = json!({"status": status, "draining": false, "cordoned": false, "jobs": jobs, "known": [], "wait_ms": wait_ms});
        let answer = self.call("heartbeat", None, &body).await;
        if answer.status != StatusCode::OK {
            return Err(Refused);
        }
        let answer: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        Ok(answer["drain"] == true)
    }

    /// A job; `None` when the agent is cordoned or `ends`.
    pub async fn wait_for_job(&self, ends: &CancellationToken) -> Result<Option<JobSpec>, Refused> {
        let taken = tokio::select! {
            job = self.ask() => return job.map(Some),
            cordoned = self.stay_in_touch() => cordoned,
            () = ends.cancelled() => Ok(()),
        };
        // The claim was cut: had it got a job?
        let job = self.claim(&[], 0).await?;
        taken.map(|()| job)
    }

    async fn ask(&self) -> Result<JobSpec, Refused> {
        loop {
            if let Some(job) = self.claim(&["plan", "apply"], HOLD_MS).await? {
                return Ok(job);
            }
        }
    }

    /// Ends when the agent is cordoned.
    async fn stay_in_touch(&self) -> Result<(), Refused> {
        loop {
            if self.heartbeat("idle", &json!([]), HOLD_MS).await? {
                return Ok(());
            }
        }
    }

    /// Has the job until jobs may end, then ends it without changes.
    pub async fn hold(&self, job: &JobSpec, mut finish: watch::Receiver<bool>) {
        let jobs = json!([{"job_id": job.job_id, "epoch": job.epoch}]);
        loop {
            if self.heartbeat("busy", &jobs, 0).await.is_err() {
                return;
            }
            if timeout(Duration::from_secs(1), finish.wait_for(|may| *may)).await.is_ok() {
                break;
            }
        }
        let body = serde_json::to_value(result(Outcome::Finished)).unwrap_or_default();
        for _ in 0..50 {
            let answer = self.call(&format!("jobs/{}/finish", job.job_id), Some(job.epoch), &body).await;
            if answer.status.is_success() || answer.status == StatusCode::CONFLICT {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Signs off; a server in trouble is asked again, for an agent that it takes for being there is one too many.
    pub async fn leave(&self) {
        for _ in 0..50 {
            let answer = self.call("deregister", None, &json!({})).await;
            if !answer.status.is_server_error() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}
