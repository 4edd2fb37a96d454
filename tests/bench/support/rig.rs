//! The real `terrapool server` on SQLite, with an agent: the program itself, or a client of its protocol.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use terrapool::{
    api::{
        agent::{ClaimRequest, ExecutorKind, FinishRequest, JobRef, Outcome, RegisterRequest, ResourceChanges},
        job::{JobSpec, Stage},
    },
    client::{agent::AgentClient, iacp::ControlPlane},
    http,
};

use super::program::Program;

/// The optimised program, as cargo built it for this benchmark, or the one that TERRAPOOL_BENCH_PROGRAM names.
pub fn program() -> PathBuf {
    std::env::var_os("TERRAPOOL_BENCH_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_terrapool").into(), PathBuf::from)
}

pub const TOKEN: &str = "token-of-the-benchmarks-administrator";

/// The environment of all workspaces: the CLI's organization.
pub const ORGANIZATION: &str = "bench";

/// A control plane with one environment and one pool. Ends with the value.
pub struct Rig {
    // dropped in this order: the agent signs off, then the server ends, then their files go
    agent: Option<Program>,
    pub server: Program,
    pub address: String,
    http: reqwest::Client,
    pool_token: String,
    workspaces: AtomicU32,
    data: TempDir,
}

/// A workspace with an uploaded configuration.
pub struct Workspace {
    pub id: String,
    configuration: String,
}

/// A run that was created.
pub struct Run {
    pub id: String,
    pub plan: String,
}

impl Rig {
    pub async fn start() -> anyhow::Result<Self> {
        let data = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let mut command = terrapool(&["server", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(data.path().join("server")).env("TERRAPOOL_ADMIN_TOKEN", TOKEN);
        let mut server = Program::start("the server", command, data.path().join("server.log"))?;
        let address = server.until("the control plane is ready at ").await?;
        let http = http::client(None)?;
        let mut rig =
            Self { agent: None, server, address, http, pool_token: String::new(), workspaces: AtomicU32::new(0), data };
        let environment = json!({"data": {"type": "environments", "attributes": {"name": ORGANIZATION}}});
        rig.post("/api/iacp/v3/environments", &environment).await?;
        let pool = json!({"data": {"type": "agent-pools", "attributes": {"name": "bench", "default": true}}});
        let pool = text(&rig.post("/api/iacp/v3/agent-pools", &pool).await?["data"]["id"])?;
        let token = json!({"data": {"type": "access-tokens", "attributes": {"description": "agents"}}});
        let token = rig.post(&format!("/api/iacp/v3/agent-pools/{pool}/access-tokens"), &token).await?;
        rig.pool_token = text(&token["data"]["attributes"]["token"])?;
        Ok(rig)
    }

    /// Starts the agent program in the pool, with these options more.
    pub async fn start_agent(&mut self, executor: &str, more: &[&str]) -> anyhow::Result<()> {
        let mut command = terrapool(&["agent", "run", "--name", "bench", "--executor", executor, "--url"]);
        command.arg(&self.address).arg("--data").arg(self.data.path().join("agent")).args(more);
        command.env("TERRAPOOL_POOL_TOKEN", &self.pool_token);
        let mut agent = Program::start("the agent", command, self.data.path().join("agent.log"))?;
        agent.until("the agent is ready").await?;
        self.agent = Some(agent);
        Ok(())
    }

    pub fn agent(&self) -> anyhow::Result<&Program> {
        self.agent.as_ref().context("no agent was started")
    }

    /// What the agent's containers are labelled with.
    pub fn agent_instance(&self) -> anyhow::Result<String> {
        let identity = std::fs::read_to_string(self.data.path().join("agent/agent.json"))?;
        text(&serde_json::from_str::<Value>(&identity)?["instance"])
    }

    /// The control plane, as an administrator.
    pub fn control_plane(&self) -> anyhow::Result<ControlPlane> {
        Ok(ControlPlane::new(self.address.parse()?, TOKEN.to_owned().into(), self.http.clone()))
    }

    pub fn path(&self) -> &Path {
        self.data.path()
    }

    pub fn cli_token(&self) -> &'static str {
        TOKEN
    }

    /// Host and port for the CLI.
    pub fn host(&self) -> String {
        self.address.trim_start_matches("http://").replace("127.0.0.1", "localhost")
    }

    async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.address)).bearer_auth(TOKEN);
        request = request.header("content-type", "application/vnd.api+json");
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{method} {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.request(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.request(Method::POST, path, Some(body)).await
    }

    /// A new workspace with this configuration.
    pub async fn workspace(&self, configuration: &str, version: &str) -> anyhow::Result<Workspace> {
        let name = format!("api-{}", self.workspaces.fetch_add(1, Ordering::Relaxed));
        let body = json!({"data": {"type": "workspaces", "attributes": {"name": name, "terraform-version": version}}});
        let workspace = self.post(&format!("/api/v2/organizations/{ORGANIZATION}/workspaces"), &body).await?;
        let id = text(&workspace["data"]["id"])?;
        let body = json!({"data": {"type": "configuration-versions", "attributes": {"auto-queue-runs": false, "speculative": true}}});
        let created = self.post(&format!("/api/v2/workspaces/{id}/configuration-versions"), &body).await?;
        let upload = text(&created["data"]["attributes"]["upload-url"])?;
        let answer = self.http.put(upload).body(slug(configuration)?).send().await?;
        ensure!(answer.status().is_success(), "the upload: {}", answer.text().await?);
        Ok(Workspace { id, configuration: text(&created["data"]["id"])? })
    }

    /// Plans the workspace.
    pub async fn plan(&self, workspace: &Workspace) -> anyhow::Result<Run> {
        let body = json!({"data": {"type": "runs", "attributes": {"plan-only": true}, "relationships": {
            "workspace": {"data": {"type": "workspaces", "id": workspace.id}},
            "configuration-version": {"data": {"type": "configuration-versions", "id": workspace.configuration}},
        }}});
        let run = self.post("/api/v2/runs", &body).await?;
        Ok(Run { id: text(&run["data"]["id"])?, plan: text(&run["data"]["relationships"]["plan"]["data"]["id"])? })
    }

    /// Reads the plan's log until it holds `words`, as a CLI that waits for it.
    pub async fn log_has(&self, run: &Run, words: &str) -> anyhow::Result<()> {
        let plan = self.get(&format!("/api/v2/plans/{}", run.plan)).await?;
        let address = text(&plan["data"]["attributes"]["log-read-url"])?;
        let mut log = Vec::new();
        loop {
            let answer = self.http.get(format!("{address}?offset={}&limit=65536", log.len())).send().await?;
            log.extend_from_slice(&answer.error_for_status()?.bytes().await?);
            let text = String::from_utf8_lossy(&log);
            if text.contains(words) {
                return Ok(());
            }
            ensure!(!text.ends_with('\u{3}'), "the log ended without `{words}`:\n{text}");
        }
    }

    /// Waits for the end of the run, which must be good.
    pub async fn ended(&self, run: &Run) -> anyhow::Result<()> {
        loop {
            let status = text(&self.get(&format!("/api/v2/runs/{}", run.id)).await?["data"]["attributes"]["status"])?;
            match status.as_str() {
                "planned_and_finished" => return Ok(()),
                "errored" | "canceled" => bail!("the run is {status}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// An agent that speaks the protocol and does nothing.
    pub async fn idle_agent(&self) -> anyhow::Result<IdleAgent> {
        let token = SecretString::from(self.pool_token.clone());
        let client = AgentClient::new(http::client(None)?, &self.address.parse()?, token.clone());
        let registered = client.register(&token, &registration()).await?;
        client.set_token(registered.agent_token.into());
        Ok(IdleAgent { client })
    }
}

/// The program, with a clean environment.
pub fn terrapool(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("NO_COLOR", "1");
    // As in the image.
    command.env("MALLOC_MMAP_THRESHOLD_", "131072").env("MALLOC_TRIM_THRESHOLD_", "131072");
    command
}

fn text(value: &Value) -> anyhow::Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("a text was expected, not {value}"))
}

/// A configuration of one file, as the CLI uploads it.
fn slug(main: &str) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_ustar();
    header.set_size(main.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "main.tf", main.as_bytes())?;
    Ok(tar.into_inner()?.finish()?)
}

fn registration() -> RegisterRequest {
    RegisterRequest {
        name: "idle".to_owned(),
        instance: "idle-instance".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: "none".to_owned(),
        platform: "linux_amd64".to_owned(),
        executor: ExecutorKind::Docker,
        run_as_root: false,
        slots: 1,
        labels: std::collections::BTreeMap::new(),
    }
}

/// See [`Rig::idle_agent`].
#[derive(Clone)]
pub struct IdleAgent {
    pub client: AgentClient,
}

/// Three lines, because the CLI leaves out as many of an apply.
const HEADING: &[u8] = b"one\ntwo\nthree\n";

impl IdleAgent {
    /// The next job; held by the server until there is one.
    pub async fn claim(&self, claim_id: String) -> anyhow::Result<JobSpec> {
        let request = ClaimRequest { claim_id, stages: vec![Stage::Plan, Stage::Apply], wait_ms: 25_000, images: None };
        loop {
            if let Some(spec) = self.client.claim(&request).await? {
                return Ok(spec);
            }
        }
    }

    /// Ends the job without changes.
    pub async fn finish(&self, spec: &JobSpec, log_bytes: u64, has_changes: bool) -> anyhow::Result<()> {
        let result = FinishRequest {
            outcome: Outcome::Finished,
            reason: None,
            message: None,
            log_bytes,
            has_changes,
            changes: ResourceChanges::default(),
            image_digest: None,
        };
        Ok(self.client.finish(&reference(spec), &result).await?)
    }

    /// Ends every job at once, as if nothing took time.
    pub async fn serve(self) -> anyhow::Result<()> {
        for number in 0_u64.. {
            let spec = self.claim(format!("serve-{number}")).await?;
            let job = reference(&spec);
            self.client.append_log(&job, 0, Bytes::from_static(HEADING)).await?;
            let plan = spec.stage == Stage::Plan;
            if plan {
                let bundle = terrapool::client::agent::Upload::Bytes(Bytes::from_static(b"bundle"));
                self.client.put_artifact(&job, "plan", &bundle).await?;
            }
            self.finish(&spec, HEADING.len() as u64, plan).await?;
        }
        Ok(())
    }
}

pub fn reference(spec: &JobSpec) -> JobRef {
    JobRef { job_id: spec.job_id.clone(), epoch: spec.epoch }
}
