//! Runs by the API, as many as wanted and without a CLI for each.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::World;
use crate::support::{admin::id, cli::TERRAFORM_VERSION, jobs};

/// A run that was queued.
#[derive(Debug, Clone)]
pub struct Run {
    pub id: String,
    pub queued: Instant,
}

impl World {
    /// A new workspace; its id.
    pub async fn make_workspace(&self, name: &str) -> String {
        let attributes = json!({"name": name, "terraform-version": TERRAFORM_VERSION});
        let body = json!({"data": {"type": "workspaces", "attributes": attributes}});
        id(&self.admin.post(&format!("/api/v2/organizations/{}/workspaces", self.name()), &body).await)
    }

    /// Uploads a configuration; its id.
    pub async fn upload(&self, workspace: &str, configuration: &str) -> String {
        let body = json!({"data": {"type": "configuration-versions", "attributes": {"auto-queue-runs": false}}});
        let made = self.admin.post(&format!("/api/v2/workspaces/{workspace}/configuration-versions"), &body).await;
        let address = made["data"]["attributes"]["upload-url"].as_str().unwrap();
        self.admin.upload(address, jobs::archive(&[("main.tf", configuration)])).await;
        id(&made)
    }

    /// Queues a run of an uploaded configuration, which applies by itself.
    pub async fn queue(&self, workspace: &str, configuration: &str) -> Run {
        let body = json!({"data": {"type": "runs", "attributes": {"auto-apply": true}, "relationships": {
            "workspace": {"data": {"type": "workspaces", "id": workspace}},
            "configuration-version": {"data": {"type": "configuration-versions", "id": configuration}},
        }}});
        let queued = Instant::now();
        let run = self.admin.post("/api/v2/runs", &body).await;
        Run { id: id(&run), queued }
    }

    /// The run as it is.
    pub async fn run(&self, run: &Run) -> Value {
        self.admin.get(&format!("/api/v2/runs/{}", run.id)).await["data"].clone()
    }

    /// Waits until a run has this status; the run. One that ends otherwise fails the test with its log.
    pub async fn run_becomes(&self, run: &Run, status: &str) -> Value {
        self.until(&format!("the run {} is {status}", run.id), async || {
            let found = self.run(run).await;
            let now = found["attributes"]["status"].as_str().unwrap();
            if now != status && matches!(now, "errored" | "canceled" | "applied" | "planned_and_finished") {
                let (log, _) = self.admin.log(&found, "plan").await;
                panic!(
                    "the run is {now} instead of {status}: {}\n{}",
                    found["attributes"],
                    String::from_utf8_lossy(&log)
                );
            }
            if now == status { Ok(found) } else { Err(found["attributes"]["status"].clone()) }
        })
        .await
    }

    /// Waits until one of these runs has this status.
    pub async fn one_becomes(&self, runs: &[Run], status: &str) {
        self.until(&format!("one of {} runs is {status}", runs.len()), async || {
            let mut found = Vec::new();
            for run in runs {
                found.push(self.run(run).await["attributes"]["status"].clone());
            }
            if found.iter().any(|now| now == status) { Ok(()) } else { Err(found) }
        })
        .await;
    }

    /// Waits until the log of the run's apply has these words.
    pub async fn apply_says(&self, run: &Run, words: &str) {
        self.until(&format!("the apply of {} says `{words}`", run.id), async || {
            let (log, _) = self.admin.log(&self.run(run).await, "apply").await;
            let log = String::from_utf8_lossy(&log).into_owned();
            if log.contains(words) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// How long after the run was queued its first process of the engine was there, and how long until its first words
    /// were in the plan's log. Processes are seen only where the cluster's nodes are this machine.
    pub async fn engine_started_and_spoke(&self, run: &Run) -> (Option<Duration>, Duration) {
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let looked_for = run.clone();
        let started = tokio::task::spawn_blocking(move || {
            let mut processes = Processes::default();
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = end.recv_timeout(Duration::from_millis(1)) {
                if processes.new_engine(&looked_for.id) {
                    return Some(looked_for.queued.elapsed());
                }
            }
            None
        });
        let spoke = self.engine_spoke(run).await;
        drop(ended);
        (started.await.unwrap(), spoke)
    }

    async fn engine_spoke(&self, run: &Run) -> Duration {
        loop {
            let found = self.run(run).await;
            let (log, complete) = self.admin.log(&found, "plan").await;
            if String::from_utf8_lossy(&log).contains("Terraform v") {
                return run.queued.elapsed();
            }
            assert!(!complete, "the log ended without it: {}", String::from_utf8_lossy(&log));
        }
    }
}

/// Processes of this machine, by when they were first seen.
#[derive(Default)]
struct Processes(HashMap<String, Instant>);

impl Processes {
    /// As long as a new process is looked at: it has its own environment only when it runs its own program.
    const NEW: Duration = Duration::from_millis(200);

    /// Whether a new process of the engine works for that run: only the engine's have its variables.
    fn new_engine(&mut self, run: &str) -> bool {
        let wanted = format!("TERRAPOOL_RUN_ID={run}");
        let names = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for pid in names.filter(|name| name.starts_with(|first: char| first.is_ascii_digit())) {
            if self.0.entry(pid.clone()).or_insert_with(Instant::now).elapsed() > Self::NEW {
                continue;
            }
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
                return true;
            }
        }
        false
    }
}
