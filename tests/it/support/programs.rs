//! The product's own programs, each a process: they can be killed, stopped and started again.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use terrapool::agent::executor::Choice;
use tokio::process::Command;

use super::{
    admin::Admin,
    app::ADMIN_TOKEN,
    cli::{Access, Cli, Engine, Output, Running, cloud_block},
    docker::containers,
    poll::eventually,
    proc::processes_with,
    server::Place,
};

/// The program with nothing of this machine's environment but a search path.
pub fn terrapool() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrapool"));
    let engines = Engine::Terraform.program();
    let engines = engines.parent().unwrap().display();
    command.env_clear().env("PATH", format!("{engines}:/usr/bin:/bin")).env("HOME", "/nonexistent");
    command
}

/// A port of loopback that nobody uses now.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// `terrapool server` on plain HTTP, always at the same address.
pub struct ServerProgram {
    pub data: PathBuf,
    port: u16,
    running: Option<Running>,
    pub admin: Admin,
    /// Added to its environment.
    pub environment: Vec<(&'static str, String)>,
}

impl ServerProgram {
    pub async fn start(data: &Path) -> Self {
        Self::start_with(data, Vec::new()).await
    }

    /// With this in its environment.
    pub async fn start_with(data: &Path, environment: Vec<(&'static str, String)>) -> Self {
        let port = free_port();
        let admin = Admin::new(format!("http://localhost:{port}"), ADMIN_TOKEN.to_owned());
        let mut server = Self { data: data.to_owned(), port, running: None, admin, environment };
        server.start_again().await;
        server
    }

    pub async fn start_again(&mut self) {
        let mut command = terrapool();
        command.arg("server").arg("--data").arg(&self.data).args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        command.env("TERRAPOOL_ADMIN_TOKEN", ADMIN_TOKEN).envs(self.environment.iter().cloned());
        let running = self.running.insert(Running::program("terrapool server", command));
        running.until("the control plane is ready").await;
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.running.take().unwrap().kill().await;
    }

    /// SIGTERM; what it said and ended with.
    pub async fn terminate(&mut self) -> Output {
        let running = self.running.take().unwrap();
        running.signal(Signal::TERM);
        running.end().await
    }

    pub fn access(&self) -> Access {
        Access { host: format!("localhost:{}", self.port), token: ADMIN_TOKEN.to_owned(), ca: None }
    }

    /// A desk for the workspace `app` of the place.
    pub fn cli(&self, place: &Place) -> Cli {
        let access = self.access();
        let cli = Cli::new(Engine::Terraform, &access);
        cli.write("cloud.tf", &cloud_block(&access, &place.organization, "app"));
        cli
    }
}

/// `terrapool agent run`
pub struct AgentProgram {
    pub data: TempDir,
    url: String,
    name: String,
    token: String,
    choice: Choice,
    /// Added to its environment.
    pub environment: Vec<(&'static str, String)>,
    pub running: Option<Running>,
}

impl AgentProgram {
    pub fn new(server: &ServerProgram, token: &str, name: &str, choice: Choice) -> Self {
        Self {
            data: tempfile::tempdir().unwrap(),
            url: format!("http://localhost:{}", server.port),
            name: name.to_owned(),
            token: token.to_owned(),
            choice,
            environment: Vec::new(),
            running: None,
        }
    }

    /// Starts an agent of the place, and waits until it takes jobs.
    pub async fn start(server: &ServerProgram, place: &Place, name: &str, choice: Choice) -> Self {
        let mut agent = Self::new(server, &place.pool_token, name, choice);
        agent.start_again().await;
        agent
    }

    pub async fn start_again(&mut self) {
        self.launch().until("the agent is ready").await;
    }

    pub fn launch(&mut self) -> &mut Running {
        let mut command = terrapool();
        command.args(["agent", "run", "--url", &self.url, "--name", &self.name, "--concurrency", "1"]);
        command.arg("--executor").arg(if self.choice == Choice::Docker { "docker" } else { "process" });
        command.arg("--data").arg(self.data.path()).env("TERRAPOOL_POOL_TOKEN", &self.token);
        command.envs(self.environment.iter().cloned());
        self.running.insert(Running::program(&format!("terrapool agent {}", self.name), command))
    }

    /// SIGKILL; what it had started lives on.
    pub async fn kill(&mut self) {
        self.running.take().unwrap().kill().await;
    }

    /// SIGTERM; what it said and ended with.
    pub async fn terminate(&mut self) -> Output {
        let running = self.running.take().unwrap();
        running.signal(Signal::TERM);
        running.end().await
    }

    pub fn said(&self) -> String {
        self.running.as_ref().map(Running::text).unwrap_or_default()
    }

    /// The directory of the one job that the agent has.
    pub fn job_dir(&self) -> PathBuf {
        let jobs = fs::read_dir(self.data.path().join("jobs")).unwrap().map(|entry| entry.unwrap().path());
        let jobs: Vec<_> = jobs.filter(|path| path.is_dir()).collect();
        let [job] = &jobs[..] else { panic!("not one job: {jobs:?}") };
        job.clone()
    }

    /// Opens a gate of the configuration that runs now.
    pub fn open_gate(&self, name: &str) {
        fs::write(self.job_dir().join("config").join(name), "").unwrap();
    }

    /// What runs for the agent beside itself: containers by their id, else processes.
    pub fn stages(&self) -> Vec<String> {
        if self.choice == Choice::Docker {
            let identity = fs::read(self.data.path().join("agent.json")).unwrap();
            let identity: serde_json::Value = serde_json::from_slice(&identity).unwrap();
            return containers(&format!("terrapool.dev/agent={}", identity["instance"].as_str().unwrap()));
        }
        let jobs = self.data.path().join("jobs");
        processes_with(jobs.to_str().unwrap()).iter().map(ToString::to_string).collect()
    }

    /// No container, no process, no job directory.
    pub async fn leaves_nothing(&self) {
        eventually("nothing of the agent's jobs is left", Duration::from_secs(60), async || {
            let mut left = self.stages();
            let work = self.data.path().join("work");
            left.extend(processes_with(work.to_str().unwrap()).iter().map(ToString::to_string));
            let jobs = fs::read_dir(self.data.path().join("jobs")).into_iter().flatten();
            left.extend(jobs.map(|entry| entry.unwrap().path().display().to_string()));
            if left.is_empty() { Ok(()) } else { Err((left, self.said())) }
        })
        .await;
    }
}

/// A named pipe that holds up whatever reads it, and that always reads as empty in the end.
pub struct Gate {
    path: PathBuf,
}

impl Gate {
    pub fn new(path: PathBuf) -> Self {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
        Self { path }
    }

    fn lift(&self) -> std::io::Result<fs::File> {
        use std::os::unix::fs::OpenOptionsExt;
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        fs::OpenOptions::new().write(true).custom_flags(nonblocking).open(&self.path)
    }

    /// Waits until somebody stands at the gate; it stays shut until the value is dropped.
    pub async fn reached(&self) -> fs::File {
        eventually("somebody reads the gate", Duration::from_secs(60), async || {
            self.lift().map_err(|error| error.to_string())
        })
        .await
    }

    /// Lets everybody through until the task is aborted.
    pub fn open(self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                drop(self.lift());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    }
}
