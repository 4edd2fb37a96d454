//! Stages that end otherwise than by themselves: orders, limits, a revoked token, a full disk.

use std::{path::PathBuf, process::Command, time::Duration};

use terrapool::{
    agent::{Error, Fatal},
    api::{agent::reason, run_state::RunState},
    server::{app::Policy, domain::runs},
};

use crate::support::{
    agents::{Plane, RunningAgent, appears, assert_clean, eventually, state},
    gate::Fault,
};

/// A stage that tells its process id and then waits for ever.
fn hang(plane: &Plane) -> (PathBuf, String) {
    let running = plane.signal("running");
    let script = format!("echo $$ >{0}.tmp; mv {0}.tmp {0}; while true; do sleep 0.05; done\n", running.display());
    (running, script)
}

/// Waits until the process that wrote its id there is gone.
async fn gone(pid_file: &std::path::Path) {
    let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    eventually("the end of the engine", async || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
}

#[tokio::test]
async fn a_forced_cancellation_kills() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, script) = hang(&plane);
    let run = plane.run("", &format!("trap '' INT\n{script}")).await;
    appears(&running).await;
    runs::cancel(&plane.test.app, &run.id).await.unwrap();
    plane.test.advance(3600);
    runs::force_cancel(&plane.test.app, &run.id).await.unwrap();
    plane.until(&run, RunState::ForceCanceled).await;
    gone(&running).await;
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_cancellation_before_the_start_starts_nothing() {
    let plane = Plane::new().await;
    plane.gate.fault("GET /configuration", Fault::HangBefore, usize::MAX);
    let agent = plane.agent("a").await;
    let run = plane.run("", "").await;
    plane.gate.reached("GET /configuration", 1).await;
    runs::cancel(&plane.test.app, &run.id).await.unwrap();
    let run = plane.until(&run, RunState::Canceled).await;
    assert!(plane.log(run.plan_id.as_str()).await.contains("canceled before"));
    assert!(plane.gate.seen("POST /started").is_empty());
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_stage_beyond_its_time_limit_is_ended_with_that_reason() {
    let policy =
        Policy { plan_timeout: Duration::from_secs(1), heartbeat: Duration::from_millis(300), ..Policy::default() };
    let plane = Plane::with(policy).await;
    let agent = plane.agent("a").await;
    let (running, script) = hang(&plane);
    let run = plane.run(&script, "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::TIMED_OUT), "{:?}", run.error_message);
    gone(&running).await;
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_revoked_token_stops_the_stage_and_the_agent() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, script) = hang(&plane);
    plane.run("", &script).await;
    appears(&running).await;
    plane.gate.fault("POST /", Fault::Refuse(401), usize::MAX);
    plane.gate.fault("PUT /", Fault::Refuse(401), usize::MAX);
    let error = agent.end().await.unwrap_err();
    assert!(matches!(error, Error::Fatal(Fatal::Token { .. })), "{error:?}");
    gone(&running).await;
}

#[tokio::test]
async fn a_state_that_comes_too_late_is_kept_on_the_host() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let script = format!(
        "touch {0}; while [ ! -e {1} ]; do sleep 0.02; done; printf '%s' '{2}' >terraform.tfstate; touch {0}.done\n\
         while true; do sleep 0.05; done\n",
        running.display(),
        go.display(),
        state(9)
    );
    let run = plane.run("", &script).await;
    appears(&running).await;
    plane.gate.serve(None);
    std::fs::write(&go, "").unwrap();
    appears(&running.with_extension("done")).await;
    plane.test.advance(31);
    terrapool::server::domain::queue::expire(&plane.test.app).await.unwrap();
    plane.gate.serve(Some(plane.test.router.clone()));
    let kept = plane.config("a").data.join("undelivered").join(format!("app-{}.tfstate", run.id));
    appears(&kept).await;
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), state(9));
    assert_eq!(plane.serial().await, None);
    agent.drain().await.unwrap();
}

/// A small disk of its own, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, megabytes: u32) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "this test needs the right to mount a tmpfs: run it as root"
        );
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_agent_goes_on_afterwards() {
    let plane = Plane::new().await;
    let config = plane.config("a");
    let _disk = SmallDisk::mount(config.data.clone(), 24);
    let agent = RunningAgent::start(config.clone()).await;

    let run = plane.run("cat /dev/zero >filler; exit 1", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::OUT_OF_SPACE), "{:?}", run.error_message);

    // A configuration that does not even fit.
    let zeros = "0".repeat(32 << 20);
    let configuration = plane.configuration(&[("main.tf", ""), ("zeros.txt", &zeros)]).await;
    let options = terrapool::server::domain::model::RunOptions { auto_apply: true, ..Default::default() };
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, options).await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::OUT_OF_SPACE), "{:?}", run.error_message);
    assert!(plane.log(run.plan_id.as_str()).await.contains("Error:"));

    let run = plane.run("echo planned", "echo applied").await;
    plane.until(&run, RunState::Applied).await;
    agent.drain().await.unwrap();
    assert_clean(&config.data);
}

#[tokio::test]
async fn an_agent_on_a_full_disk_says_so_and_takes_no_jobs_until_there_is_room() {
    let plane = Plane::new().await;
    let config = plane.config("a");
    let _disk = SmallDisk::mount(config.data.clone(), 24);
    let agent = RunningAgent::start(config.clone()).await;
    plane.gate.reached("POST /claim", 1).await;
    let filler = config.data.join("filler");
    drop(std::io::copy(&mut std::io::repeat(0), &mut std::fs::File::create(&filler).unwrap()));

    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::OUT_OF_SPACE), "{:?}", run.error_message);
    assert!(plane.log(run.plan_id.as_str()).await.contains("Error:"));
    eventually("an agent that says that it cannot work", async || {
        let mut connection = plane.test.app.store.read().await.unwrap();
        let row = sqlx::query_scalar::<_, String>("SELECT status FROM agents").fetch_one(&mut *connection);
        row.await.unwrap() == "errored"
    })
    .await;
    let waits = plane.run("", "").await;
    std::fs::remove_file(&filler).unwrap();
    plane.until(&waits, RunState::Applied).await;
    agent.drain().await.unwrap();
    assert_clean(&config.data);
}

#[tokio::test]
async fn an_agent_leaves_after_its_idle_time_and_not_while_it_works() {
    let plane = Plane::new().await;
    let mut config = plane.config("a");
    config.idle_timeout = Some(Duration::from_millis(700));
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let script = format!("touch {}; while [ ! -e {} ]; do sleep 0.02; done", running.display(), go.display());
    let run = plane.run(&script, "").await;
    let agent = RunningAgent::start(config).await;
    appears(&running).await;
    // Longer than the time that an idle agent has.
    let beats = plane.gate.seen("POST /heartbeat").len();
    plane.gate.reached("POST /heartbeat", beats + 4).await;
    std::fs::write(&go, "").unwrap();
    plane.until(&run, RunState::Applied).await;
    agent.end().await.unwrap();
    assert_eq!(plane.gate.seen("POST /deregister").len(), 1, "it signs off");
    assert_clean(&plane.config("a").data);
}
