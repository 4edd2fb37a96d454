//! Real agents against a real control plane in this process: stages are run by the Process executor with an engine
//! that is a shell script, so that a test decides what it prints, writes and waits for.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use reqwest::Url;
use tempfile::TempDir;
use terrapool::{
    agent::{self, AgentConfig, Error, executor},
    api::run_state::RunState,
    ids::{ConfigurationVersionId, WorkspaceId},
    server::{
        app::Policy,
        domain::{
            configurations::{self, NewConfiguration},
            logs,
            model::{Run, RunOptions},
        },
        store,
    },
    shutdown::Shutdown,
};

use super::{
    app::{Fixture, TestApp},
    gate::Gate,
};

/// Longest wait for something that takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// What the fake engine does; `init.sh`, `plan.sh` and `apply.sh` come with the configuration.
pub const ENGINE: &str = r#"#!/bin/sh
case "$1" in
version) echo "Terraform v1.11.4" ;;
init)
    echo "initialised"
    if [ -f init.sh ]; then . ./init.sh; fi
    ;;
plan)
    code=2
    if [ -f plan.sh ]; then . ./plan.sh; fi
    for argument; do case "$argument" in -out=*) echo "the plan" >"${argument#-out=}" ;; esac; done
    exit $code
    ;;
show) echo '{"format_version":"1.2","resource_changes":[{"change":{"actions":["create"]}}]}' ;;
apply)
    if [ -f apply.sh ]; then . ./apply.sh; fi
    echo "Apply complete! Resources: 1 added, 0 changed, 0 destroyed."
    ;;
*) echo "what is $1?"; exit 64 ;;
esac
"#;

/// A state as the engine writes it.
pub fn state(serial: u64) -> String {
    format!(
        r#"{{"version":4,"terraform_version":"1.11.4","serial":{serial},"lineage":"0f2a","outputs":{{}},"resources":[]}}"#
    )
}

/// A control plane, a gate before it, and a place for agents.
pub struct Plane {
    pub test: TestApp,
    pub fixture: Fixture,
    pub gate: Gate,
    pub url: Url,
    pub place: TempDir,
}

impl Plane {
    pub async fn new() -> Self {
        Self::with(Policy { heartbeat: Duration::from_millis(300), ..Policy::default() }).await
    }

    pub async fn with(policy: Policy) -> Self {
        let test = TestApp::with(policy).await;
        let fixture = test.fixture().await;
        let (gate, url) = Gate::open(test.router.clone()).await;
        let place = tempfile::tempdir().unwrap();
        let engines = place.path().join("engines");
        std::fs::create_dir(&engines).unwrap();
        let engine = engines.join("terraform");
        std::fs::write(&engine, ENGINE).unwrap();
        std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { test, fixture, gate, url, place }
    }

    /// A path for a file by which a test and a stage talk.
    pub fn signal(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn config(&self, name: &str) -> AgentConfig {
        let data = self.place.path().join(name);
        let token = self.fixture.pool_token.clone().into();
        let mut config = AgentConfig::new(self.url.clone(), token, name.to_owned(), data);
        config.executor.choice = executor::Choice::Process;
        config.executor.engines.dir = Some(self.place.path().join("engines"));
        config.executor.engines.path = vec!["/usr/bin".into(), "/bin".into()];
        config.executor.grace = Duration::from_secs(3);
        config
    }

    /// A hook for agents of [`Self::hooked`].
    pub fn hook(&self, name: &str, script: &str) {
        let dir = self.place.path().join("hooks");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// An agent with hooks.
    pub fn hooked(&self, name: &str) -> AgentConfig {
        let mut config = self.config(name);
        config.executor.hooks.dir = Some(self.place.path().join("hooks"));
        config
    }

    pub async fn agent(&self, name: &str) -> RunningAgent {
        RunningAgent::start(self.config(name)).await
    }

    /// A configuration of these files.
    pub async fn configuration(&self, files: &[(&str, &str)]) -> ConfigurationVersionId {
        self.configuration_of(&self.fixture.workspace.id, files).await
    }

    /// The same for another workspace.
    pub async fn configuration_of(&self, workspace: &WorkspaceId, files: &[(&str, &str)]) -> ConfigurationVersionId {
        let new = NewConfiguration {
            source: "tfe-api".to_owned(),
            speculative: false,
            provisional: false,
            auto_queue_runs: false,
        };
        let app = &self.test.app;
        let made = configurations::create(app, &self.test.account, workspace, new).await.unwrap();
        let slug = slug(files);
        let length = slug.len() as u64;
        let content = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from(slug))]);
        configurations::upload(app, &made.id, Some(length), content).await.unwrap();
        made.id
    }

    /// A run of these scripts, applied without being asked.
    pub async fn run(&self, plan: &str, apply: &str) -> Run {
        let files = [("main.tf", "# nothing\n"), ("plan.sh", plan), ("apply.sh", apply)];
        let configuration = self.configuration(&files).await;
        let options = RunOptions { auto_apply: true, ..RunOptions::default() };
        self.test.run(&self.fixture.workspace.id, &configuration, options).await
    }

    /// Waits until the run has this status.
    #[track_caller]
    pub fn until(&self, run: &Run, status: RunState) -> impl Future<Output = Run> {
        let place = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let now = self.test.reread(run).await;
                if now.status == status {
                    return now;
                }
                assert!(
                    Instant::now() < deadline,
                    "{place}: the run is {:?} ({:?}: {:?}), not {status:?}; plan: {}\napply: {}",
                    now.status,
                    now.error_code,
                    now.error_message,
                    self.log(now.plan_id.as_str()).await,
                    self.log(now.apply_id.as_str()).await
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Waits until the run has come to any end.
    pub async fn ended(&self, run: &Run) -> Run {
        let deadline = Instant::now() + 4 * PATIENCE;
        loop {
            let now = self.test.reread(run).await;
            if now.status.is_final() {
                return now;
            }
            assert!(Instant::now() < deadline, "the run is {:?}", now.status);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A stage's whole log as readers have it now, marks included.
    pub async fn log(&self, stage: &str) -> String {
        let mut text = Vec::new();
        loop {
            let part = logs::read(&self.test.app, stage, text.len() as u64, 1 << 20, Duration::ZERO).await.unwrap();
            if part.is_empty() {
                return String::from_utf8_lossy(&text).into_owned();
            }
            text.extend_from_slice(&part);
        }
    }

    /// Serial of the workspace's current state.
    pub async fn serial(&self) -> Option<i64> {
        let mut connection = self.test.app.store.read().await.unwrap();
        store::states::current(&mut connection, &self.fixture.workspace.id).await.unwrap().map(|state| state.serial)
    }
}

/// tar.gz of these files.
pub fn slug(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    let mut gzip = archive.into_inner().unwrap();
    gzip.flush().unwrap();
    gzip.finish().unwrap()
}

/// Waits until `found` says so.
#[track_caller]
pub fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut found: F) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + PATIENCE;
        while !found().await {
            assert!(Instant::now() < deadline, "{place}: never came: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Waits for a file of a stage.
#[track_caller]
pub fn appears(path: &Path) -> impl Future<Output = ()> {
    let path = path.to_owned();
    let place = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + PATIENCE;
        while !path.exists() {
            assert!(Instant::now() < deadline, "{place}: {} never appeared", path.display());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An agent in a runtime of its own: dropping that is as sudden as the end of a process.
pub struct RunningAgent {
    runtime: Option<tokio::runtime::Runtime>,
    pub shutdown: Shutdown,
    ended: tokio::sync::oneshot::Receiver<Result<(), Error>>,
    config: AgentConfig,
}

impl RunningAgent {
    /// Starts an agent and waits until it is ready.
    pub async fn start(config: AgentConfig) -> Self {
        let (agent, ready) = Self::launch(config);
        tokio::time::timeout(PATIENCE, ready).await.expect("the agent is never ready").expect("the agent has ended");
        agent
    }

    pub fn launch(config: AgentConfig) -> (Self, tokio::sync::oneshot::Receiver<agent::Ready>) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = Shutdown::new();
        let (tell_ready, ready) = tokio::sync::oneshot::channel();
        let (tell_end, ended) = tokio::sync::oneshot::channel();
        let (stop, settings) = (shutdown.clone(), config.clone());
        runtime.spawn(async move {
            let on_ready = |ready: &agent::Ready| drop(tell_ready.send(ready.clone()));
            drop(tell_end.send(agent::run(settings, stop, on_ready).await));
        });
        (Self { runtime: Some(runtime), shutdown, ended, config }, ready)
    }

    /// As `kill -9`: nothing is said goodbye to. Returns once its data directory is free again.
    pub async fn crash(mut self) -> AgentConfig {
        self.runtime.take().unwrap().shutdown_background();
        let lock = self.config.data.join("agent.lock");
        eventually("the end of the crashed agent", async || {
            std::fs::File::open(&lock).is_ok_and(|file| file.try_lock().is_ok())
        })
        .await;
        self.config.clone()
    }

    /// What the agent ended with.
    pub async fn end(mut self) -> Result<(), Error> {
        let ended = tokio::time::timeout(PATIENCE, &mut self.ended).await.expect("the agent never ends");
        ended.expect("the agent was dropped")
    }

    /// Ends it in good order.
    pub async fn drain(self) -> Result<(), Error> {
        self.shutdown.drain.cancel();
        self.end().await
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Fails when something of any job is left in an agent's data directory.
pub fn assert_clean(data: &Path) {
    for folder in ["jobs", "supervised"] {
        let left: Vec<_> = std::fs::read_dir(data.join(folder)).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "left in {folder}: {left:?}");
    }
    assert!(!data.join("claim.json").exists() || std::fs::metadata(data.join("claim.json")).unwrap().len() > 0);
}
