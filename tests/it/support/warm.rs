//! Containers that wait for jobs, as `docker` shows them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use serde_json::Value;
use terrapool::{
    agent::{AgentConfig, executor::Choice},
    api::run_state::RunState,
    server::domain::{
        model::{Run, RunOptions},
        runs,
    },
};

use super::{
    agents::{Plane, eventually, state},
    cli::Running,
    docker::{containers, docker},
    programs::terrapool,
    wire::{Line, Wire},
};

/// What `docker inspect` says.
pub fn inspect(container: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&["inspect", container])).unwrap()[0].take()
}

/// Ids of an agent's containers that have waited or wait, the running ones, by name.
pub fn warm_of(instance: &str) -> Vec<(String, String)> {
    let filters = [format!("label=terrapool.dev/agent={instance}"), "label=terrapool.dev/warm".to_owned()];
    let format = "{{.Names}} {{.ID}}";
    let [agent, warm] = &filters;
    let text = docker(&["ps", "--no-trunc", "--filter", agent, "--filter", warm, "--format", format]);
    text.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// Those that wait.
fn waiting(instance: &str) -> Vec<(String, String)> {
    warm_of(instance).into_iter().filter(|(name, _)| name.starts_with("terrapool-warm-")).collect()
}

/// Their ids.
pub fn waiting_of(instance: &str) -> Vec<String> {
    waiting(instance).into_iter().map(|(_, id)| id).collect()
}

/// What an agent must be told to say which containers wait for it.
pub const TELLING: (&str, &str) = ("TERRAPOOL_LOG", "info,terrapool::agent::executor=debug");

/// The one container that waits, once its agent has said so: until then a job gets one of its own.
pub async fn one_waits(instance: &str, said: impl Fn() -> String) -> String {
    let mut found = String::new();
    eventually("one container waits, and its agent knows", async || {
        let waiting = waiting(instance);
        let [(name, id)] = waiting.as_slice() else { return false };
        found.clone_from(id);
        said().lines().any(|line| line.contains("a container waits for a job") && line.contains(name))
    })
    .await;
    found
}

/// The instance of the agent of this data directory.
pub fn instance(data: &Path) -> String {
    let identity: Value = serde_json::from_slice(&fs::read(data.join("agent.json")).unwrap()).unwrap();
    identity["instance"].as_str().unwrap().to_owned()
}

/// An agent whose containers wait.
pub fn config(plane: &Plane, name: &str, slots: u32, warm: usize) -> AgentConfig {
    let mut config = plane.config(name);
    config.slots = slots;
    config.executor.choice = Choice::Docker;
    config.executor.warm = warm;
    config
}

/// How far a hand-over has come when its agent is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The container does not have the job's name yet, and does not get it.
    BeforeName,
    /// It has the name; the runner does not know.
    BeforeGo,
    /// The engine runs.
    Begun,
}

/// An agent of a process of its own, one container waiting, that is killed in the middle of a hand-over.
pub struct Scene {
    pub plane: Plane,
    engine: Wire,
    running: Option<Running>,
}

impl Scene {
    pub async fn new() -> Self {
        let plane = Plane::new().await;
        let engine = Wire::unix(&plane.signal("docker.sock"), "/var/run/docker.sock".into());
        let mut scene = Self { plane, engine, running: None };
        scene.launch().await;
        scene
    }

    pub fn data(&self) -> PathBuf {
        self.plane.signal("agent")
    }

    async fn launch(&mut self) {
        let mut command = terrapool();
        let url = self.plane.url.as_str();
        command.args(["agent", "run", "--url", url, "--name", "a", "--concurrency", "1", "--warm", "1"]);
        command.arg("--data").arg(self.data()).arg("--engine-dir").arg(self.plane.signal("engines"));
        command.env("TERRAPOOL_POOL_TOKEN", &self.plane.fixture.pool_token);
        let socket = format!("unix://{}", self.plane.signal("docker.sock").display());
        command.args(["--executor", "docker", "--docker-host", &socket]);
        command.env(TELLING.0, TELLING.1);
        let mut running = Running::program("an agent with --warm 1", command);
        running.until("the agent is ready").await;
        self.running = Some(running);
    }

    pub async fn one_waits(&self) -> String {
        one_waits(&instance(&self.data()), || self.said()).await
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.running.take().unwrap().kill().await;
    }

    pub async fn start_again(&mut self) {
        self.launch().await;
    }

    /// A configuration whose plan or apply waits for a word.
    async fn waiting_run(&self, apply: bool) -> Run {
        let act = format!(
            "echo begin\nprintf '%s' '{}' >terraform.tfstate\n: >running; while [ ! -e go ]; do sleep 0.05; done\necho end\n",
            state(1)
        );
        let (plan, act) = if apply { ("", act.as_str()) } else { (act.as_str(), "") };
        let files = [("main.tf", "# nothing\n"), ("plan.sh", plan), ("apply.sh", act)];
        let configuration = self.plane.configuration(&files).await;
        self.plane.test.run(&self.plane.fixture.workspace.id, &configuration, RunOptions::default()).await
    }

    /// A run whose plan is handed over while the engine goes away, and comes back.
    pub async fn without_engine(&self) -> Run {
        self.engine.hold(Some("/rename"));
        let run = self.waiting_run(false).await;
        eventually("the point", async || self.engine.waiting() == 1).await;
        self.engine.set(Line::Refused);
        eventually("the call is lost", async || self.engine.waiting() == 0).await;
        eventually("the agent has seen it", async || self.said().contains("trying again")).await;
        self.engine.hold(None);
        self.engine.set(Line::Open);
        run
    }

    fn said(&self) -> String {
        self.running.as_ref().map(Running::text).unwrap_or_default()
    }

    /// A run whose plan or apply is handed over just now, cut at the point by the end of the agent; which starts again.
    pub async fn cut(&mut self, apply: bool, point: Point) -> Run {
        self.one_waits().await;
        let held = if point == Point::Begun { None } else { Some("/rename") };
        if !apply {
            self.engine.hold(held);
        }
        let run = self.waiting_run(apply).await;
        if apply {
            self.plane.until(&run, RunState::Planned).await;
            self.one_waits().await;
            self.engine.hold(held);
            runs::confirm(&self.plane.test.app, &run.id).await.unwrap();
        }
        eventually("the point", async || match point {
            Point::Begun => self.in_job("running").is_some(),
            Point::BeforeName | Point::BeforeGo => self.engine.waiting() == 1,
        })
        .await;
        self.kill().await;
        if point == Point::BeforeName {
            // What was on its way does not arrive.
            self.engine.set(Line::Refused);
            eventually("the call is lost", async || self.engine.waiting() == 0).await;
            self.engine.set(Line::Open);
        }
        self.engine.hold(None);
        if point == Point::BeforeGo {
            let instance = instance(&self.data());
            eventually("the container has its name", async || {
                let all = containers(&format!("terrapool.dev/agent={instance}"));
                all.iter().any(|id| inspect(id)["Name"].as_str().unwrap().starts_with("/terrapool-job-"))
            })
            .await;
        }
        self.start_again().await;
        run
    }

    /// That file of the one job's configuration, when it is there.
    pub fn in_job(&self, file: &str) -> Option<PathBuf> {
        let jobs = fs::read_dir(self.data().join("jobs")).into_iter().flatten().flatten();
        jobs.map(|job| job.path().join("config").join(file)).find(|path| path.exists())
    }

    /// The stage need not wait any longer.
    pub async fn say_go(&self) {
        eventually("the stage waits", async || match self.in_job("running") {
            Some(running) => fs::write(running.with_file_name("go"), "").is_ok(),
            None => false,
        })
        .await;
    }

    /// Ends the agent in good order; nothing may be left.
    pub async fn leave(mut self) {
        let instance = instance(&self.data());
        self.running.as_ref().unwrap().signal(Signal::TERM);
        let ended = self.running.take().unwrap().end().await;
        assert!(ended.status.success(), "the agent ended with {}:\n{}", ended.status, ended.all);
        assert_nothing_left(&self.data(), &instance);
    }
}

/// No container and no file of any job or of one that waited.
pub fn assert_nothing_left(data: &Path, instance: &str) {
    assert_eq!(containers(&format!("terrapool.dev/agent={instance}")), Vec::<String>::new());
    for folder in ["jobs", "supervised", "warm"] {
        let left: Vec<_> = fs::read_dir(data.join(folder)).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "left in {folder}: {left:?}");
    }
}
