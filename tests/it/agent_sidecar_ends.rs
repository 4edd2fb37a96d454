//! How the two containers of a Pod end: told to, one without the other, by violence, for want of work.

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use terrapool::{
    agent::executor::volume,
    api::{agent::reason, run_state::RunState},
    server::domain::{model::Run, queue, unit::Unit},
};

use crate::support::{
    agents::{Plane, appears, eventually, state},
    gate::Fault,
    pods::{Pod, SAME, agents},
};

/// A stage that has written a state and goes on until the file `go` is there.
fn busy(plane: &Plane) -> String {
    format!(
        "printf '%s' '{}' >terraform.tfstate\ntrap 'echo interrupted; exit 1' INT\necho $$ >{}\n\
         while [ ! -e {} ]; do sleep 0.02; done\n",
        state(1),
        plane.signal("running").display(),
        plane.signal("go").display()
    )
}

async fn engine_is_gone(plane: &Plane) {
    let pid: i32 = fs::read_to_string(plane.signal("running")).unwrap().trim().parse().unwrap();
    eventually("the end of the engine", async || !Path::new(&format!("/proc/{pid}")).exists()).await;
}

/// A run whose apply hangs in a Pod.
async fn applying(plane: &Plane, arguments: &[&str]) -> (Run, Pod) {
    let run = plane.run("", &busy(plane)).await;
    Pod::start(plane, "plan").await.succeeds(plane).await;
    let pod = Pod::start_with(plane, "apply", SAME, arguments).await;
    appears(&plane.signal("running")).await;
    eventually("the state of the running apply", async || plane.serial().await == Some(1)).await;
    (run, pod)
}

#[tokio::test]
async fn a_pod_without_work_ends_when_it_is_told_to() {
    let plane = Plane::new().await;
    let mut pod = Pod::start(&plane, "a").await;
    plane.gate.reached("POST /claim", 1).await;
    pod.signal(Signal::TERM);
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn a_runner_whose_agent_never_came_ends_when_it_is_told_to() {
    let plane = Plane::new().await;
    let mut pod = Pod::new(&plane, "a", SAME).await;
    pod.start_runner();
    pod.runner_is_ready().await;
    pod.signal(Signal::TERM);
    pod.runner.take().unwrap().end().await.expect(0);
}

#[tokio::test]
async fn an_agent_whose_runner_never_came_ends_when_it_is_told_to() {
    let plane = Plane::new().await;
    let mut pod = Pod::new(&plane, "a", SAME).await;
    pod.start_agent(&plane, &[]);
    appears(&pod.volume.join(volume::HERE)).await;
    pod.signal(Signal::TERM);
    pod.agent.take().unwrap().end().await.expect(0);
    assert!(plane.gate.seen("POST /api/agent").is_empty());
}

#[tokio::test]
async fn a_pod_with_work_finishes_it_when_it_is_told_to_end() {
    let plane = Plane::new().await;
    let (run, mut pod) = applying(&plane, &[]).await;
    pod.signal(Signal::TERM);
    // Heartbeats go on, so nobody else gets the job.
    let before = plane.gate.seen("POST /heartbeat").len();
    plane.gate.reached("POST /heartbeat", before + 3).await;
    fs::write(plane.signal("go"), "").unwrap();
    let run = plane.until(&run, RunState::Applied).await;
    assert!(!plane.log(run.apply_id.as_str()).await.contains("interrupted"));
    pod.succeeds(&plane).await;
}

/// Who has a stage of the run, as the API tells: stage, name of the agent, epoch of its claim.
async fn holder(plane: &Plane, run: &Run) -> Option<(String, String, i64)> {
    let shown = plane.test.get(&format!("/api/v2/runs/{}", run.id)).await.expect(200).json();
    let agents = shown["data"]["attributes"]["agents"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let agent = agents.iter().find(|agent| agent["holds"] == true)?;
    assert!(text(&agent["agent-id"]).starts_with("agent-"), "{agent}");
    Some((text(&agent["stage"]), text(&agent["agent-name"]), agent["epoch"].as_i64().unwrap()))
}

/// After the time for draining. The name of a Pod's agent is the Pod's.
#[tokio::test]
async fn p13_sigterm_reaches_terraform_and_holder_is_on_status() {
    let plane = Plane::new().await;
    let (run, mut pod) = applying(&plane, &["--drain-timeout", "1s"]).await;
    assert_eq!(holder(&plane, &run).await, Some(("apply".to_owned(), "apply".to_owned(), 1)));
    pod.signal(Signal::TERM);
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(holder(&plane, &run).await, None);
    assert_eq!(run.error_code.as_deref(), Some(reason::AGENT_ERROR));
    assert!(plane.log(run.apply_id.as_str()).await.contains("interrupted"));
    assert_eq!(plane.serial().await, Some(1));
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn a_run_container_that_is_killed_ends_its_run_with_a_reason() {
    let plane = Plane::new().await;
    let (run, mut pod) = applying(&plane, &[]).await;
    pod.runner.take().unwrap().kill().await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::CONTAINER_LOST));
    let message = run.error_message.unwrap();
    assert!(message.contains("killed from outside, as for memory"), "{message}");
    assert_eq!(plane.serial().await, Some(1));
    engine_is_gone(&plane).await;
    pod.agent.take().unwrap().end().await.expect(0);
    assert!(agents(&plane).await.is_empty());
}

#[tokio::test]
async fn an_agent_that_is_killed_leaves_no_engine_running() {
    let plane = Plane::new().await;
    let (run, mut pod) = applying(&plane, &[]).await;
    pod.agent.take().unwrap().kill().await;
    pod.runner.take().unwrap().end().await.expect(0);
    engine_is_gone(&plane).await;
    let job = pod.volume.join(volume::JOB);
    let log = fs::read_to_string(job.join("log")).unwrap();
    assert!(log.contains("interrupted"), "{log}");
    assert!(fs::read_to_string(job.join("result")).unwrap().contains("runner_failed"));
    assert_eq!(fs::read_to_string(job.join("config/terraform.tfstate")).unwrap(), state(1));
    plane.test.advance(31);
    queue::expire(&plane.test.app).await.unwrap();
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::AGENT_LOST));
    assert_eq!(plane.serial().await, Some(1));
}

#[tokio::test]
async fn an_agent_that_starts_again_goes_on_with_its_job() {
    let plane = Plane::new().await;
    let (run, mut pod) = applying(&plane, &[]).await;
    pod.agent.take().unwrap().kill().await;
    pod.start_agent(&plane, &[]).until("going on with a job of an earlier process").await;
    fs::write(plane.signal("go"), "").unwrap();
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert!(!log.contains("interrupted"), "{log}");
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn an_agent_that_starts_again_after_everything_ended_takes_no_second_job() {
    let plane = Plane::new().await;
    let run = plane.run("", "").await;
    let mut pod = Pod::start(&plane, "a").await;
    pod.succeeds(&plane).await;
    pod.start_agent(&plane, &[]);
    let agent = pod.agent.take().unwrap().end().await;
    agent.expect(1).says("run container ended");
    pod.start_runner();
    pod.runner.take().unwrap().end().await.expect(0);
    assert_eq!(plane.test.reread(&run).await.status, RunState::ApplyQueued);
}

#[tokio::test]
async fn an_agent_whose_run_container_ends_leaves() {
    let plane = Plane::new().await;
    let mut pod = Pod::start(&plane, "a").await;
    pod.runner.take().unwrap().kill().await;
    pod.agent.take().unwrap().end().await.says("the run container has ended");
    assert!(agents(&plane).await.is_empty());
}

#[tokio::test]
async fn a_pod_that_gets_no_work_leaves() {
    let plane = Plane::new().await;
    let mut pod = Pod::start_with(&plane, "a", SAME, &["--idle-timeout", "1s"]).await;
    pod.succeeds(&plane).await;
}

/// The claim has got a job at the server, the answer is lost, and then the agent wants to leave.
#[tokio::test]
async fn a_job_that_comes_while_a_pod_leaves_is_done() {
    let plane = Plane::new().await;
    plane.gate.fault("POST /claim", Fault::HangAfter, 1);
    let run = plane.run("", "").await;
    let mut pod = Pod::start_with(&plane, "a", SAME, &["--idle-timeout", "2s"]).await;
    plane.until(&run, RunState::ApplyQueued).await;
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn a_cordoned_pod_without_work_leaves() {
    let plane = Plane::new().await;
    let mut pod = Pod::start(&plane, "a").await;
    plane.gate.reached("POST /claim", 1).await;
    let mut unit = Unit::begin(&plane.test.app).await.unwrap();
    sqlx::query("UPDATE agents SET cordoned = 1").execute(&mut *unit).await.unwrap();
    unit.commit().await.unwrap();
    pod.succeeds(&plane).await;
}

/// A claim that was given up still waits at the server; a job that comes later must not be given to it.
#[tokio::test]
async fn after_its_last_claim_an_agent_gets_no_job() {
    let plane = Plane::new().await;
    let mut pod = Pod::start(&plane, "a").await;
    plane.gate.reached("POST /claim", 1).await;
    plane.gate.fault("POST /deregister", Fault::Delay(Duration::from_secs(2)), 1);
    pod.signal(Signal::TERM);
    plane.gate.reached("POST /deregister", 1).await;
    let run = plane.run("", "").await;
    pod.succeeds(&plane).await;
    let run = plane.test.reread(&run).await;
    assert_eq!((run.status, run.plan_attempts), (RunState::PlanQueued, 0));
}
