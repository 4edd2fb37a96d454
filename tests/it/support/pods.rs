//! Pods without Kubernetes: the agent's container and the run container are two processes, and their common volume is
//! a directory. Users differ as in Pods when the tests are root's, else all is this user's.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use terrapool::{agent::executor::volume, server::store};
use tokio::process::Command;

use super::{
    agents::{Plane, eventually},
    cli::{Output, Running},
    proc::processes_with,
};

/// Who the containers' users are.
#[derive(Debug, Clone, Copy)]
pub struct Users {
    pub agent: u32,
    pub run: u32,
}

/// One user for both, as operators make it.
pub const SAME: Users = Users { agent: 65_532, run: 65_532 };

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub struct Pod {
    pub name: String,
    /// What both containers see.
    pub volume: PathBuf,
    /// What the agent's container sees alone.
    pub data: PathBuf,
    users: Users,
    program: PathBuf,
    /// The run container's `PATH`.
    path: String,
    pub agent: Option<Running>,
    pub runner: Option<Running>,
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Copies a program. Not in this process: what another thread starts meanwhile would hold the copy open for writing,
/// and then it could not be started.
pub fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

impl Pod {
    /// A Pod of which nothing but the init container has run.
    pub async fn new(plane: &Plane, name: &str, users: Users) -> Self {
        let place = plane.place.path();
        open_to_all(place);
        let program = place.join("terrapool");
        if !program.exists() {
            // Where it was built, another user may not be able to start it.
            copy(Path::new(env!("CARGO_BIN_EXE_terrapool")), &program);
        }
        let root = place.join(name);
        let (volume, data) = (root.join("volume"), root.join("data"));
        for dir in [&root, &volume, &data] {
            fs::create_dir(dir).unwrap();
            open_to_all(dir);
        }
        let path = format!("{}:/usr/bin:/bin", place.join("engines").display());
        let mut pod = Self {
            name: name.to_owned(),
            volume,
            data: data.join("agent"),
            users,
            program,
            path,
            agent: None,
            runner: None,
        };
        let mut command = pod.command(&pod.program, users.agent);
        command.args(["agent", "place-runner"]).arg(&pod.volume);
        Running::program("place-runner", command).end().await.expect(0);
        if is_root() {
            pod.let_run_as_root(plane, users.run == 0).await;
        } else {
            pod.users = Users { agent: rustix::process::geteuid().as_raw(), run: rustix::process::geteuid().as_raw() };
        }
        pod
    }

    /// A Pod with both containers started, whose agent is ready.
    pub async fn start(plane: &Plane, name: &str) -> Self {
        Self::start_with(plane, name, SAME, &[]).await
    }

    pub async fn start_with(plane: &Plane, name: &str, users: Users, arguments: &[&str]) -> Self {
        let mut pod = Self::new(plane, name, users).await;
        pod.start_runner();
        pod.start_agent(plane, arguments).until("the agent is ready").await;
        pod
    }

    async fn let_run_as_root(&self, plane: &Plane, root: bool) {
        let mut pool = plane.fixture.pool.clone();
        pool.run_settings.run_as_root = root;
        let mut unit = terrapool::server::domain::unit::Unit::begin(&plane.test.app).await.unwrap();
        store::pools::update(&mut unit, &pool).await.unwrap();
        unit.commit().await.unwrap();
    }

    fn command(&self, program: &Path, user: u32) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        if is_root() {
            command.uid(user).gid(user);
        }
        command
    }

    /// Looks for engines here first.
    pub fn with_engines(mut self, dir: &Path) -> Self {
        self.path = format!("{}:{}", dir.display(), self.path);
        self
    }

    pub fn start_runner(&mut self) {
        let mut command = self.command(&self.volume.join(volume::RUNNER), self.users.run);
        command.arg("wait").arg(&self.volume).env("PATH", &self.path);
        self.runner = Some(Running::program(&format!("runner of {}", self.name), command));
    }

    pub fn start_agent(&mut self, plane: &Plane, arguments: &[&str]) -> &mut Running {
        let mut command = self.command(&self.program, self.users.agent);
        command.args(["agent", "run", "--executor=sidecar", "--once", "--name", &self.name]);
        command.args(["--url", plane.url.as_str()]).arg("--data").arg(&self.data);
        command.arg("--sidecar-dir").arg(&self.volume).args(arguments);
        if self.users.run == 0 {
            command.args(["--user", "root"]);
        }
        command.env("TERRAPOOL_POOL_TOKEN", &plane.fixture.pool_token);
        self.agent.insert(Running::program(&format!("agent {}", self.name), command))
    }

    /// User of the run container.
    pub fn run_user(&self) -> u32 {
        self.users.run
    }

    /// Process id of the runner.
    pub fn runner_pid(&self) -> i32 {
        let found = processes_with(&format!("wait\0{}\0", self.volume.display()));
        let [pid] = found[..] else { panic!("not one runner: {found:?}") };
        pid
    }

    /// The same to both containers, as the kubelet does it.
    pub fn signal(&self, signal: Signal) {
        for container in [&self.agent, &self.runner].into_iter().flatten() {
            container.signal(signal);
        }
    }

    /// How both containers end by themselves: the agent's, then the run container's.
    pub async fn end(&mut self) -> (Output, Output) {
        let agent = self.agent.take().unwrap().end().await;
        (agent, self.runner.take().unwrap().end().await)
    }

    /// Both containers end well, and the control plane knows no such agent any more.
    pub async fn succeeds(&mut self, plane: &Plane) {
        let (agent, runner) = self.end().await;
        agent.expect(0);
        runner.expect(0);
        assert!(!agents(plane).await.contains(&self.name), "{} did not sign off: {agent:?}", self.name);
    }

    /// Waits until the run container's runner is ready.
    pub async fn runner_is_ready(&self) {
        eventually("a ready runner", async || self.volume.join(volume::READY).exists()).await;
    }
}

/// Names of the agents that the control plane knows.
pub async fn agents(plane: &Plane) -> Vec<String> {
    let mut connection = plane.test.app.store.read().await.unwrap();
    let agents = store::agents::of_pool(&mut connection, &plane.fixture.pool.id).await.unwrap();
    agents.into_iter().map(|agent| agent.name).collect()
}
