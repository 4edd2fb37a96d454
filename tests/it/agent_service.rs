//! The agent as a service: what systemd and its journal are told, and runs that survive a restart.

use std::{fs::File, os::unix::fs::MetadataExt, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use terrapool::{
    agent::{self, Error},
    api::run_state::RunState,
};
use tokio::{net::UnixDatagram, process::Child};

use crate::support::{
    agents::{Plane, RunningAgent, appears, eventually},
    host::program,
    proc::processes_with,
};

/// Longest wait for something that takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// An apply that tells that it runs, counts itself, and goes on when it is let.
fn gated(plane: &Plane) -> String {
    let signal = |name: &str| plane.signal(name).display().to_string();
    format!(
        "echo once >>{}\ntouch {}\nuntil [ -e {} ]; do sleep 0.02; done\n",
        signal("applies"),
        signal("running"),
        signal("go")
    )
}

#[tokio::test]
async fn a_run_goes_on_while_one_agent_leaves_and_the_next_takes_it_up() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let run = plane.run("", &gated(&plane)).await;
    appears(&plane.signal("running")).await;
    let data = plane.config("a").data;
    let stages = processes_with(data.join("jobs").to_str().unwrap());
    assert!(!stages.is_empty());

    agent.shutdown.leave.cancel();
    agent.end().await.unwrap();
    assert_eq!(processes_with(data.join("jobs").to_str().unwrap()), stages);
    assert!(plane.gate.seen("POST /deregister").is_empty());

    let next = RunningAgent::start(plane.config("a")).await;
    std::fs::write(plane.signal("go"), "").unwrap();
    plane.until(&run, RunState::Applied).await;
    assert_eq!(std::fs::read_to_string(plane.signal("applies")).unwrap(), "once\n");
    assert_eq!(plane.gate.seen("POST /register").len(), 1);
    next.drain().await.unwrap();
}

#[tokio::test]
async fn a_sweep_ends_what_a_killed_agent_left_and_refuses_while_one_runs() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    plane.run("", &gated(&plane)).await;
    appears(&plane.signal("running")).await;
    let config = plane.config("a");
    let error = agent::sweep(&config).await.unwrap_err();
    assert!(matches!(error, Error::Identity(_)), "{error:?}");

    agent.crash().await;
    let jobs = config.data.join("jobs");
    assert!(!processes_with(jobs.to_str().unwrap()).is_empty());
    assert_eq!(agent::sweep(&config).await.unwrap().len(), 1);
    assert_eq!(processes_with(jobs.to_str().unwrap()), Vec::<i32>::new());
    // What it left is still there, for the next agent to report.
    assert!(std::fs::read_dir(&jobs).unwrap().count() > 0);
    assert_eq!(agent::sweep(&config).await.unwrap(), []);
}

/// An agent as systemd would start it, of that control plane.
fn service(plane: &Plane, log: &File, environment: &[(&str, &str)]) -> Child {
    let config = plane.config("service");
    let mut command = program();
    command.args(["agent", "run", "--executor", "process", "--name", "service"]);
    command.env("TERRAPOOL_URL", config.server.as_str()).env("TERRAPOOL_POOL_TOKEN", &plane.fixture.pool_token);
    command.env("TERRAPOOL_AGENT_ENGINE_DIR", config.executor.engines.dir.unwrap());
    command.env("TERRAPOOL_AGENT_DATA", config.data).envs(environment.iter().copied());
    command.stderr(log.try_clone().unwrap()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// The next message that has this line.
async fn told(socket: &UnixDatagram, line: &str) {
    let mut all = Vec::new();
    let wait = async {
        loop {
            let mut message = [0; 4096];
            let length = socket.recv(&mut message).await.unwrap();
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            let found = text.lines().any(|told| told.starts_with(line));
            all.push(text);
            if found {
                return;
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, wait).await.is_ok();
    assert!(found, "systemd was not told {line}, but {all:?}");
}

#[tokio::test]
async fn systemd_is_told_when_the_agent_is_ready_what_it_does_that_it_lives_and_when_it_stops() {
    let plane = Plane::new().await;
    let path = plane.signal("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let log = File::create(plane.signal("log")).unwrap();
    let mut agent = service(&plane, &log, &[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "600000")]);
    told(&socket, "READY=1").await;
    told(&socket, "WATCHDOG=1").await;
    told(&socket, "WATCHDOG=1").await;
    let run = plane.run("", &gated(&plane)).await;
    told(&socket, "STATUS=1 job of at most 5").await;
    appears(&plane.signal("running")).await;
    signal(&agent, Signal::TERM);
    told(&socket, "STATUS=Takes no new jobs").await;
    told(&socket, "EXTEND_TIMEOUT_USEC=").await;
    std::fs::write(plane.signal("go"), "").unwrap();
    told(&socket, "STOPPING=1").await;
    assert!(agent.wait().await.unwrap().success());
    plane.until(&run, RunState::Applied).await;
    assert_eq!(plane.gate.seen("POST /deregister").len(), 1);
}

#[tokio::test]
async fn the_signal_of_a_restart_ends_the_agent_and_no_run() {
    let plane = Plane::new().await;
    let log = File::create(plane.signal("log")).unwrap();
    let mut agent = service(&plane, &log, &[]);
    let run = plane.run("", &gated(&plane)).await;
    appears(&plane.signal("running")).await;
    signal(&agent, Signal::USR1);
    assert!(agent.wait().await.unwrap().success());
    assert!(plane.gate.seen("POST /deregister").is_empty());
    let mut next = service(&plane, &log, &[]);
    std::fs::write(plane.signal("go"), "").unwrap();
    plane.until(&run, RunState::Applied).await;
    assert_eq!(std::fs::read_to_string(plane.signal("applies")).unwrap(), "once\n");
    signal(&next, Signal::TERM);
    assert!(next.wait().await.unwrap().success());
}

#[tokio::test]
async fn the_journal_gets_priorities_and_others_get_the_time() {
    let plane = Plane::new().await;
    for (is_journal, format) in [(true, None), (false, None), (true, Some("json"))] {
        let path = plane.signal("log");
        let log = File::create(&path).unwrap();
        let meta = log.metadata().unwrap();
        let stream = if is_journal { format!("{}:{}", meta.dev(), meta.ino()) } else { "1:1".to_owned() };
        let mut environment = vec![("JOURNAL_STREAM", stream.as_str())];
        environment.extend(format.map(|format| ("TERRAPOOL_LOG_FORMAT", format)));
        let mut agent = service(&plane, &log, &environment);
        eventually("the agent is ready", async || {
            std::fs::read_to_string(&path).unwrap().contains("the agent is ready")
        })
        .await;
        signal(&agent, Signal::TERM);
        assert!(agent.wait().await.unwrap().success());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains('\u{1b}'), "{text}");
        for line in text.lines() {
            let plain = line.starts_with("20") && line.contains(" INFO ");
            let well = match (is_journal, format) {
                (_, Some(_)) => line.starts_with("{\"timestamp\""),
                (true, None) => line.starts_with("<6>INFO terrapool::agent"),
                (false, None) => plain,
            };
            assert!(well, "{line}");
        }
    }
}

#[tokio::test]
async fn an_error_that_ends_the_service_has_its_priority_in_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = File::create(&path).unwrap();
    let meta = log.metadata().unwrap();
    let mut command = program();
    command.args(["agent", "run", "--url", "http://127.0.0.1:1"]).stderr(log);
    command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
    assert_eq!(command.status().await.unwrap().code(), Some(1));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("<3>error: no pool token"), "{text}");
}
