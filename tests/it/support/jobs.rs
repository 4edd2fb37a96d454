//! Jobs for the executors: specs, configurations, and the walk from a spec to its result.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tempfile::TempDir;
use terrapool::{
    agent::{
        engine::Engines,
        executor::{Choice, Executor, Exit, Prepared, Settings},
        jobdir::{Archive, JobDir},
        result,
    },
    api::{
        agent::FinishRequest,
        job::{Category, Engine, EngineKind, JobSpec, Limits, Planned, RunSpec, Stage, Variable, WorkspaceSpec},
    },
    ids::{JobId, RunId, WorkspaceId},
};

/// Longest time for anything in these tests; a machine under load is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A plan of a configuration without wishes.
pub fn spec(stage: Stage) -> JobSpec {
    JobSpec {
        job_id: JobId::random(),
        epoch: 1,
        stage,
        run: RunSpec {
            id: RunId::random(),
            message: String::new(),
            source: "tfe-api".into(),
            is_destroy: false,
            refresh: true,
            refresh_only: false,
            plan_only: false,
            target_addrs: vec![],
            replace_addrs: vec![],
            allow_config_generation: false,
            variables: vec![],
        },
        workspace: WorkspaceSpec {
            id: WorkspaceId::random(),
            name: "demo".into(),
            environment: "acme".into(),
            environment_id: "env-0123456789abcdef".into(),
            account_id: "acc-0123456789abcdef".into(),
            working_directory: String::new(),
        },
        engine: Engine { kind: EngineKind::Terraform, version: None },
        image: None,
        planned: Planned::default(),
        run_as_root: false,
        variables: vec![],
        env: BTreeMap::new(),
        limits: Limits::default(),
        timeout_seconds: 100,
    }
}

/// The apply of a plan.
pub fn apply_of(plan: &JobSpec) -> JobSpec {
    JobSpec { job_id: JobId::random(), stage: Stage::Apply, ..plan.clone() }
}

pub fn variable(key: &str, value: &str, category: Category, hcl: bool) -> Variable {
    Variable { key: key.into(), value: value.into(), category, hcl, sensitive: false }
}

/// A configuration as the CLI uploads it.
pub fn slug(files: &[(&str, &str)]) -> Archive {
    Archive::Bytes(archive(files))
}

/// Files as a tar.gz.
pub fn archive(files: &[(&str, &str)]) -> Bytes {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    Bytes::from(tar.into_inner().unwrap().finish().unwrap())
}

/// An executor with a data directory of its own.
pub struct Host {
    pub data: TempDir,
    pub executor: Executor,
    pub instance: String,
}

pub fn engines() -> Engines {
    let path = std::env::var_os("PATH").expect("PATH is set");
    Engines::new(None, std::env::split_paths(&path).collect())
}

impl Host {
    pub async fn new(choice: Choice) -> Self {
        Self::with(choice, |_| {}).await
    }

    pub async fn with(choice: Choice, change: impl FnOnce(&mut Settings)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let instance = JobId::random().to_string();
        let mut settings = Settings::new(data.path().to_owned(), instance.clone());
        settings.choice = choice;
        settings.engines = engines();
        settings.grace = Duration::from_secs(5);
        change(&mut settings);
        let executor = Executor::connect(settings).await.expect("the executor that this test needs").executor;
        Self { data, executor, instance }
    }

    /// The same data directory, seen by a process that remembers nothing.
    pub async fn restarted(self, choice: Choice) -> Self {
        let mut settings = Settings::new(self.data.path().to_owned(), self.instance.clone());
        settings.choice = choice;
        settings.engines = engines();
        drop(self.executor);
        let executor = Executor::connect(settings).await.unwrap().executor;
        Self { executor, ..self }
    }

    pub async fn create(&self, spec: &JobSpec, files: &Archive) -> JobDir {
        let dir = JobDir::create(self.data.path(), spec, self.executor.placement(spec)).await.unwrap();
        dir.unpack_configuration(files.clone()).await.unwrap();
        dir
    }

    pub async fn start(&self, dir: &JobDir, spec: &JobSpec) -> Prepared {
        let prepared = self.executor.prepare(spec).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.executor.start(dir, spec, &prepared).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        prepared
    }

    pub async fn finish(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared, canceled: bool) -> FinishRequest {
        let exit = self.wait(dir, spec).await;
        let finished = result::gather(dir, spec, prepared, &exit, canceled).await.unwrap();
        self.executor.remove(dir, spec).await.unwrap();
        assert!(!self.executor.is_alive(dir, spec).await.unwrap());
        finished
    }

    pub async fn wait(&self, dir: &JobDir, spec: &JobSpec) -> Exit {
        match tokio::time::timeout(PATIENCE, self.executor.wait(dir, spec)).await {
            Ok(exit) => exit.unwrap(),
            Err(_) => panic!("the stage does not end; its log:\n{}", log(dir)),
        }
    }

    /// From a spec to its result in one go.
    pub async fn run(&self, spec: &JobSpec, files: &Archive) -> (JobDir, FinishRequest) {
        let dir = self.create(spec, files).await;
        let prepared = self.start(&dir, spec).await;
        let finished = self.finish(&dir, spec, &prepared, false).await;
        (dir, finished)
    }
}

/// The log without colours.
pub fn log(dir: &JobDir) -> String {
    let text = raw_log(dir);
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

pub fn raw_log(dir: &JobDir) -> String {
    std::fs::read_to_string(dir.path().join("log")).unwrap_or_default()
}

pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    terrapool::telemetry::Chain(error).to_string()
}

/// Waits until the log holds `text`.
pub async fn log_has(dir: &JobDir, text: &str) {
    until(|| log(dir).contains(text).then_some(()), || format!("`{text}` in the log:\n{}", log(dir))).await;
}

/// Polls for something, and says what was seen last when it does not come.
pub async fn until<T>(mut found: impl FnMut() -> Option<T>, seen: impl Fn() -> String) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited for {}", seen());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The processes whose command line holds `text`.
pub fn processes(text: &str) -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(text).then_some((pid, line))
        })
        .collect()
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
