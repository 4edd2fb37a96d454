//! One case of `agent_executor_faults`: scenery, the fault, and what must hold afterwards.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sqlx::{Connection, Executor, sqlite::SqliteConnectOptions};
use terrapool::{
    agent::executor::Choice,
    api::run_state::RunState,
    ids::ConfigurationVersionId,
    server::domain::{model::Run, model::RunOptions, queue, runs},
};

use super::{
    agents::{Plane, eventually, state},
    cli::Running,
    docker::{containers, docker, quietly},
    gate::Fault as Call,
    proc::processes_with,
    programs::terrapool,
    warm::{TELLING, instance, one_waits},
    wire::{Line, Wire},
};
use crate::agent_executor_faults::{Case, End, Fault, Point, Where};

/// Longest wait for something that takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a network or an engine is away that comes back inside the lease.
const AWAY: Duration = Duration::from_millis(1500);

/// The control plane waits ten seconds for its database.
const LOCKED: Duration = Duration::from_millis(11_500);

/// Longer than a lease, in seconds of the control plane's clock.
const BEYOND_LEASE: i64 = 31;

/// Lines that a stage prints before it waits, and in all.
const HALF: usize = 200;
const LINES: usize = 400;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// Panics of cases are part of the test's own message; they are not shown one by one.
pub fn silenced() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some("tokio-rt-worker") {
                usual(info);
            }
        }));
    });
}

pub struct Scene {
    case: Case,
    plane: Plane,
    network: Wire,
    engine: Option<Wire>,
    address: String,
    /// A word for each start of the stage.
    starts: File,
    running: Option<Running>,
}

/// A pipe that never blocks and keeps what nobody has read. Whoever has it mounted read-only can still write to it.
fn pipe(path: &Path) -> File {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(path).unwrap()
}

/// What the stage does.
fn script(case: Case, starts: &Path) -> String {
    let write = |serial| match case.apply {
        true => format!(
            "printf '%s' '{}' >terraform.tfstate.new; mv terraform.tfstate.new terraform.tfstate\n",
            state(serial)
        ),
        false => String::new(),
    };
    // All that a container sees of the host besides its own directory, engine and runner.
    let starts = if case.place.is_container() { Path::new("/terrapool/providers/starts") } else { starts };
    let wait = if case.waits() { ": >running; while [ ! -e go ]; do sleep 0.05; done\n" } else { "" };
    let print = |end| format!("while [ $i -lt {end} ]; do i=$((i+1)); echo \"line $i\"; done\n");
    format!(
        "echo once >{}\necho begin; i=0\n{}{}{wait}{}{}",
        starts.display(),
        print(HALF),
        write(1),
        print(LINES),
        write(2)
    )
}

impl Scene {
    /// In a runtime of its own, with which everything goes that the case has started in this process.
    pub fn play_alone(case: Case) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(Self::play(case));
        runtime.shutdown_background();
    }

    async fn play(case: Case) {
        let plane = Plane::new().await;
        let (network, address) = Wire::tcp(plane.url.socket_addrs(|| None).unwrap()[0]).await;
        let engine =
            case.place.is_container().then(|| Wire::unix(&plane.signal("docker.sock"), "/var/run/docker.sock".into()));
        let mirror = plane.signal("mirror");
        fs::create_dir(&mirror).unwrap();
        let starts = pipe(&mirror.join("starts"));
        let address = format!("http://{address}");
        let mut scene = Self { case, plane, network, engine, address, starts, running: None };
        let run = scene.until_armed().await;
        scene.strike(&run).await;
        scene.until_over(&run).await;
        scene.check(&run).await;
        scene.leave().await;
        scene.is_free(&run).await;
    }

    /// A run whose stage is the next job, an agent, and something that stops it at the wanted point.
    async fn until_armed(&mut self) -> Run {
        let script = script(self.case, &self.plane.signal("mirror/starts"));
        let (plan, apply) = if self.case.apply { ("", script.as_str()) } else { (script.as_str(), "") };
        let configuration =
            self.plane.configuration(&[("main.tf", "# nothing\n"), ("plan.sh", plan), ("apply.sh", apply)]).await;
        if self.case.place == Where::Warm {
            // Before there is a job: one that is ready only then has no slot, and goes.
            self.launch().await;
            self.until_one_waits().await;
        }
        let run = if self.case.apply {
            let run = self.start(&configuration).await;
            if self.running.is_none() {
                self.launch().await;
            }
            self.until_status(&run, RunState::Planned).await;
            // Or the answer to the plan's result could be the one that is held.
            let answered = async || self.said().contains("reported the job's result");
            eventually("the agent knows that its plan has arrived", answered).await;
            self.until_one_waits().await;
            self.stop_at_point();
            runs::confirm(&self.plane.test.app, &run.id).await.unwrap();
            run
        } else {
            self.stop_at_point();
            let run = self.start(&configuration).await;
            if self.running.is_none() {
                self.launch().await;
            }
            run
        };
        self.until_reached().await;
        run
    }

    async fn start(&self, configuration: &ConfigurationVersionId) -> Run {
        self.plane.test.run(&self.plane.fixture.workspace.id, configuration, RunOptions::default()).await
    }

    /// A container stands ready for the stage, where stages are to have such ones.
    async fn until_one_waits(&self) {
        if self.case.place == Where::Warm {
            one_waits(&instance(&self.data()), || self.said()).await;
        }
    }

    fn stop_at_point(&self) {
        let gate = &self.plane.gate;
        match (self.case.point, self.case.place) {
            (Point::A1, _) => gate.fault("POST /claim", Call::HoldAnswer, 1),
            (Point::A2, _) => gate.fault("GET /configuration", Call::HoldBefore, 1),
            (Point::A3, Where::Docker) => self.engine.as_ref().unwrap().hold(Some("/start")),
            // On its way to the hand-over.
            (Point::A3, Where::Warm) => self.engine.as_ref().unwrap().hold(Some("/rename")),
            (Point::A3, Where::Process) => gate.fault("POST /started", Call::HoldBefore, 1),
            (Point::A4, _) => {}
            (Point::A5, _) => gate.fault("PUT /log", Call::HoldBefore, usize::MAX),
            (Point::A6, _) => gate.fault("POST /finish", Call::HoldBefore, 1),
            (Point::A7, _) => gate.fault("POST /finish", Call::HoldAnswer, 1),
        }
    }

    async fn until_reached(&self) {
        let Self { case, plane, .. } = self;
        eventually(&format!("{case}: the point\n{}", self.said()), async || match (case.point, &self.engine) {
            (Point::A3, Some(engine)) => engine.waiting() == 1,
            (Point::A4, _) => self.in_jobs("config/running").is_some(),
            (Point::A5, _) => plane.gate.held() > 0 && self.in_jobs("result").is_some(),
            _ => plane.gate.held() > 0,
        })
        .await;
        if case.apply && case.point >= Point::A4 {
            // Recorded within a second: what comes later must not take it away.
            let serial = if case.point == Point::A4 { 1 } else { 2 };
            eventually("the state is recorded", async || plane.serial().await == Some(serial)).await;
        }
    }

    /// The stage and the calls that are held go on.
    fn go_on(&self) {
        self.plane.gate.heal();
        if let Some(engine) = &self.engine {
            engine.hold(None);
        }
    }

    async fn strike(&mut self, run: &Run) {
        match self.case.fault {
            Fault::Kill => self.restart().await,
            Fault::Drain => {
                self.signal(Signal::TERM);
                self.go_on();
            }
            Fault::Zombie => {
                self.signal(Signal::STOP);
                self.lose_lease(run).await;
                self.go_on();
                self.signal(Signal::CONT);
            }
            Fault::ShortPartition => {
                self.network.set(Line::Silent);
                self.go_on();
                tokio::time::sleep(AWAY).await;
                self.network.set(Line::Open);
            }
            Fault::LongPartition => {
                self.network.set(Line::Silent);
                self.lose_lease(run).await;
                self.go_on();
                if self.case.waits() {
                    // It works on, and comes to its end unheard.
                    self.say_go();
                    eventually("the end of the stage", async || self.in_jobs("result").is_some()).await;
                }
                self.network.set(Line::Open);
            }
            Fault::ServerKilled => {
                self.plane.gate.serve(None);
                self.go_on();
                self.plane.test.reopen().await;
                self.plane.gate.serve(Some(self.plane.test.router.clone()));
            }
            Fault::DatabaseLocked => {
                let database = self.plane.test.data.path().join("terrapool.db");
                let options = SqliteConnectOptions::new().filename(database);
                let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                connection.execute("BEGIN IMMEDIATE").await.unwrap();
                self.go_on();
                tokio::time::sleep(LOCKED).await;
                connection.execute("COMMIT").await.unwrap();
                connection.close().await.unwrap();
            }
            Fault::EngineAway => {
                let engine = self.engine.clone().expect("a Docker engine");
                engine.set(Line::Refused);
                self.go_on();
                tokio::time::sleep(AWAY).await;
                engine.set(Line::Open);
            }
            Fault::StageKilled => {
                self.go_on();
                if self.case.waits() {
                    eventually("the stage waits", async || self.in_jobs("config/running").is_some()).await;
                    if self.case.apply {
                        eventually("the state is recorded", async || self.plane.serial().await == Some(1)).await;
                    }
                }
                self.kill_stage();
            }
            Fault::ClockForward => {
                fs::write(self.clock(), "+1h\n").unwrap();
                self.go_on();
            }
            Fault::Cancel | Fault::ForceCancel => {
                let app = &self.plane.test.app;
                let asked = runs::cancel(app, &run.id).await;
                // A run that has ended, or waits for somebody, is not canceled.
                assert_eq!(asked.is_ok(), self.case.point != Point::A7, "{asked:?}");
                if self.case.fault == Fault::ForceCancel && asked.is_ok() {
                    runs::force_cancel(app, &run.id).await.unwrap();
                }
                self.go_on();
            }
            Fault::ClockBack => {
                fs::write(self.clock(), "-1h\n").unwrap();
                self.restart().await;
            }
        }
    }

    async fn restart(&mut self) {
        self.running.take().unwrap().kill().await;
        self.go_on();
        self.launch().await;
    }

    /// Time goes by until the control plane has given the job up.
    async fn lose_lease(&self, run: &Run) {
        eventually("the lease has run out", async || {
            self.plane.test.advance(BEYOND_LEASE);
            queue::expire(&self.plane.test.app).await.unwrap();
            // A heartbeat that was on its way when the fault came renews the lease once more.
            !matches!(self.plane.test.reread(run).await.status, RunState::Planning | RunState::Applying)
        })
        .await;
    }

    fn kill_stage(&self) {
        if self.case.place.is_container() {
            for container in self.containers() {
                // One that has ended by itself is gone.
                quietly(&["kill", &container]);
            }
        } else {
            for process in self.processes() {
                let pid = rustix::process::Pid::from_raw(process).unwrap();
                // It may have ended.
                let _ended = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    async fn until_over(&self, run: &Run) {
        let deadline = Instant::now() + PATIENCE;
        let attempts = if self.case.end() == End::Again { 2 } else { 1 };
        loop {
            let now = self.plane.test.reread(run).await;
            if self.case.accepts(now.status) && now.plan_attempts == attempts {
                return;
            }
            assert!(
                Instant::now() < deadline && !now.status.is_final(),
                "the run is {:?} ({:?}: {:?}); its log:\n{}\nthe agent:\n{}",
                now.status,
                now.error_code,
                now.error_message,
                self.log(&now).await,
                self.said()
            );
            if self.case.waits() && !self.case.ends_by_force() {
                self.say_go();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_status(&self, run: &Run, status: RunState) {
        eventually(&format!("{}: the run is {status:?}", self.case), async || {
            self.plane.test.reread(run).await.status == status
        })
        .await;
    }

    async fn check(&self, run: &Run) {
        let Self { case, plane, .. } = self;
        let run = plane.test.reread(run).await;
        let end = case.end();
        if let End::Errored(reason) = end {
            assert_eq!(run.error_code.as_deref(), Some(reason), "{:?}\n{}", run.error_message, self.said());
        }
        let starts = self.starts();
        let most = if case.apply { 1 } else { usize::try_from(run.plan_attempts).unwrap() };
        assert!(starts <= most, "the stage was started {starts} times\n{}", self.said());
        assert!(starts >= 1 || case.is_cut_short(), "done, and never started");
        let serial = plane.serial().await;
        assert!(case.accepts_serial(serial), "the state recorded last has the serial {serial:?}");
        let log = self.log(&run).await;
        let lines: Vec<&str> = log.lines().skip_while(|line| *line != "begin").collect();
        let lines = match lines.iter().rposition(|line| *line == "begin") {
            Some(last) if end == End::Again => &lines[last..],
            _ => &lines[..],
        };
        let numbers: Vec<usize> = lines.iter().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
        let whole: Vec<usize> = (1..=LINES).collect();
        assert!(whole.starts_with(&numbers), "the log has a gap or a repetition:\n{log}");
        assert!(numbers.len() == LINES || case.is_cut_short(), "the log is not whole:\n{log}");
    }

    /// The agent goes in good order, and nothing is left of it.
    async fn leave(&mut self) {
        if self.case.fault != Fault::Drain {
            self.signal(Signal::TERM);
        }
        let ended = self.running.take().unwrap().end().await;
        assert!(ended.status.success(), "the agent ended with {}:\n{}", ended.status, ended.all);
        let left = async || {
            let mut left = self.containers();
            left.extend(self.processes().iter().map(|process| format!("process {process}")));
            for folder in ["jobs", "supervised", "warm", "work"] {
                let entries = fs::read_dir(self.data().join(folder)).into_iter().flatten().flatten();
                // The lock of the folder itself stays.
                let entries = entries.filter(|entry| entry.file_name() != "lock");
                left.extend(entries.map(|entry| entry.path().display().to_string()));
            }
            if self.case.place.is_container() {
                for kind in ["network", "volume"] {
                    let filter = format!("label=terrapool.dev/agent={}", instance(&self.data()));
                    left.extend(docker(&[kind, "ls", "--quiet", "--filter", &filter]).lines().map(str::to_owned));
                }
            }
            left
        };
        let deadline = Instant::now() + PATIENCE;
        while !left().await.is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:?}\n{}", left().await, ended.all);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The workspace takes its next run, unless this one waits for somebody to confirm it.
    async fn is_free(&self, run: &Run) {
        let Self { plane, case, .. } = self;
        let run = plane.test.reread(run).await;
        assert!(case.accepts(run.status), "after its end the run became {:?}", run.status);
        if run.status != RunState::Planned {
            let next = plane.test.run(&run.workspace_id, &plane.fixture.configuration, RunOptions::default()).await;
            assert_eq!(next.status, RunState::PlanQueued, "the workspace is not free for the next run");
        }
    }

    async fn launch(&mut self) {
        let mut command = terrapool();
        command.args(["agent", "run", "--url", &self.address, "--name", "a", "--concurrency", "1"]);
        command.arg("--data").arg(self.data()).arg("--engine-dir").arg(self.plane.signal("engines"));
        command.env("TERRAPOOL_POOL_TOKEN", &self.plane.fixture.pool_token);
        if self.case.place.is_container() {
            let socket = format!("unix://{}", self.plane.signal("docker.sock").display());
            command.args(["--executor", "docker", "--docker-host", &socket]);
            command.arg("--provider-mirror").arg(self.plane.signal("mirror"));
        } else {
            command.args(["--executor", "process"]);
        }
        if self.case.place == Where::Warm {
            command.args(["--warm", "1"]).env(TELLING.0, TELLING.1);
        }
        if matches!(self.case.fault, Fault::ClockForward | Fault::ClockBack) {
            assert!(Path::new(FAKETIME).exists(), "{FAKETIME} is missing: install libfaketime, or let tests/run do it");
            let clock = self.clock();
            if !clock.exists() {
                fs::write(&clock, "+0\n").unwrap();
                fs::set_permissions(&clock, fs::Permissions::from_mode(0o644)).unwrap();
            }
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", &clock);
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let mut running = Running::program(&format!("{}", self.case), command);
        running.until("the agent is ready").await;
        self.running = Some(running);
    }

    fn data(&self) -> PathBuf {
        self.plane.signal("agent")
    }

    /// The file that says how far the agent's clock is off.
    fn clock(&self) -> PathBuf {
        self.plane.signal("clock")
    }

    fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    fn said(&self) -> String {
        self.running.as_ref().map(Running::text).unwrap_or_default()
    }

    /// That file of a job, when there is a job that has it.
    fn in_jobs(&self, file: &str) -> Option<PathBuf> {
        let jobs = fs::read_dir(self.data().join("jobs")).into_iter().flatten().flatten();
        jobs.map(|job| job.path().join(file)).find(|path| path.exists())
    }

    /// The stage need not wait any longer.
    fn say_go(&self) {
        if let Some(running) = self.in_jobs("config/running") {
            // The job may be gone meanwhile.
            drop(fs::write(running.with_file_name("go"), ""));
        }
    }

    fn containers(&self) -> Vec<String> {
        match self.case.choice() {
            Choice::Docker => containers(&format!("terrapool.dev/agent={}", instance(&self.data()))),
            _ => Vec::new(),
        }
    }

    /// What runs for the agent beside itself.
    fn processes(&self) -> Vec<i32> {
        processes_with(self.data().join("jobs").to_str().unwrap())
    }

    /// How often the stage has been started, since this was asked last.
    fn starts(&self) -> usize {
        let mut words = String::new();
        match (&self.starts).read_to_string(&mut words) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => words.lines().count(),
            read => panic!("the pipe ends: {read:?}"),
        }
    }

    async fn log(&self, run: &Run) -> String {
        let stage = if self.case.apply { run.apply_id.as_str() } else { run.plan_id.as_str() };
        self.plane.log(stage).await
    }
}
