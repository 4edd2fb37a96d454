//! An agent that dies at each point of a job, a server that goes away, a lease that is lost.

use terrapool::{
    api::{agent::reason, run_state::RunState},
    server::domain::model::Run,
};

use crate::support::{
    agents::{Plane, RunningAgent, appears, assert_clean, eventually, state},
    gate::Fault,
};

/// How often an engine ran an apply: `apply.sh` writes a line each time.
fn applies(plane: &Plane) -> usize {
    std::fs::read_to_string(plane.signal("applies")).unwrap_or_default().lines().count()
}

async fn counted_run(plane: &Plane) -> Run {
    let script =
        format!("echo once >>{}\nprintf '%s' '{}' >terraform.tfstate\n", plane.signal("applies").display(), state(1));
    plane.run("echo planned", &script).await
}

/// The agent hangs at the `nth` call like `call`, is killed there, and starts again inside its lease.
async fn crash_at(call: &'static str, nth: usize, fault: Fault) {
    let plane = Plane::new().await;
    // Calls before the wanted one pass.
    plane.gate.fault(call, Fault::Delay(std::time::Duration::ZERO), nth - 1);
    plane.gate.fault(call, fault, usize::MAX);
    let agent = plane.agent("a").await;
    let run = counted_run(&plane).await;
    plane.gate.reached(call, nth).await;
    if fault == Fault::HangAfter {
        // The server is to have done it.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let config = agent.crash().await;
    plane.gate.heal();
    let data = config.data.clone();
    let again = RunningAgent::start(config).await;
    let run = plane.until(&run, RunState::Applied).await;
    assert_eq!(applies(&plane), 1, "{call} #{nth}");
    assert_eq!(plane.serial().await, Some(1));
    let log = plane.log(run.plan_id.as_str()).await;
    assert_eq!(log.matches("planned\n").count(), 1, "{log}");
    again.drain().await.unwrap();
    assert_clean(&data);
}

macro_rules! crash_points {
    ($($name:ident: $call:literal, $nth:literal, $fault:ident;)*) => {$(
        #[tokio::test]
        async fn $name() {
            crash_at($call, $nth, Fault::$fault).await;
        }
    )*};
}

crash_points! {
    a1_after_a_claim_whose_answer_was_lost: "POST /claim", 1, HangAfter;
    a1_after_an_apply_claim_whose_answer_was_lost: "POST /claim", 2, HangAfter;
    a2_before_the_configuration_is_there: "GET /configuration", 1, HangBefore;
    a2_before_the_apply_has_its_plan: "GET /artifacts/plan", 1, HangBefore;
    a3_before_the_start_is_told: "POST /started", 1, HangBefore;
    a3_before_the_start_of_the_apply_is_told: "POST /started", 2, HangBefore;
    a5_before_the_plan_is_delivered: "PUT /artifacts/plan", 1, HangBefore;
    a5_before_the_last_state: "PUT /state", 1, HangBefore;
    a6_before_the_result_of_the_plan: "POST /finish", 1, HangBefore;
    a6_before_the_result_of_the_apply: "POST /finish", 2, HangBefore;
    a7_after_the_result_of_the_plan: "POST /finish", 1, HangAfter;
    a7_after_the_result_of_the_apply: "POST /finish", 2, HangAfter;
}

#[tokio::test]
async fn a4_a_stage_outlives_its_agent_and_its_log_is_byte_exact() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let script = format!(
        "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo \"before $i\"; done; touch {}\n\
         while [ ! -e {} ]; do sleep 0.02; done\n\
         i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo \"after $i\"; done\n",
        running.display(),
        go.display()
    );
    let run = plane.run("", &script).await;
    appears(&running).await;
    eventually("what was printed before", async || {
        plane.log(plane.test.reread(&run).await.apply_id.as_str()).await.contains("before 500\n")
    })
    .await;
    let config = agent.crash().await;
    std::fs::write(&go, "").unwrap();
    let again = RunningAgent::start(config).await;
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.apply_id.as_str()).await;
    let lines: Vec<&str> =
        log.lines().filter(|line| line.starts_with("before ") || line.starts_with("after ")).collect();
    let expected: Vec<String> =
        ["before", "after"].iter().flat_map(|word| (1..=500).map(move |i| format!("{word} {i}"))).collect();
    assert!(lines == expected, "{} lines:\n{log}", lines.len());
    again.drain().await.unwrap();
}

#[tokio::test]
async fn an_apply_whose_process_vanished_with_its_agent_is_never_started_again() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, pid) = (plane.signal("running"), plane.signal("pid"));
    // The runner is the parent of the engine.
    let script = format!(
        "echo once >>{}; echo $PPID >{}; touch {}; sleep 60",
        plane.signal("applies").display(),
        pid.display(),
        running.display()
    );
    let run = plane.run("", &script).await;
    appears(&running).await;
    let config = agent.crash().await;
    let runner: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(runner).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let again = RunningAgent::start(config).await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::CONTAINER_LOST));
    assert_eq!(applies(&plane), 1);
    again.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn everything_arrives_after_the_server_was_away() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, go, over) = (plane.signal("running"), plane.signal("go"), plane.signal("over"));
    let script = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.02; done; echo while away\n\
         printf '%s' '{}' >terraform.tfstate; touch {}\n",
        running.display(),
        go.display(),
        state(5),
        over.display()
    );
    let run = plane.run("", &script).await;
    appears(&running).await;
    plane.gate.serve(None);
    std::fs::write(&go, "").unwrap();
    appears(&over).await;
    let refused = plane.gate.seen("PUT /").len();
    plane.gate.reached("PUT /", refused + 3).await;
    plane.gate.serve(Some(plane.test.router.clone()));
    let run = plane.until(&run, RunState::Applied).await;
    assert!(plane.log(run.apply_id.as_str()).await.contains("while away"));
    assert_eq!(plane.serial().await, Some(5));
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_restart_of_the_server_loses_nothing() {
    let mut plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let script = format!(
        "echo before; printf '%s' '{}' >terraform.tfstate; touch {}; while [ ! -e {} ]; do sleep 0.02; done; echo after\n",
        state(1),
        running.display(),
        go.display()
    );
    let run = plane.run("", &script).await;
    appears(&running).await;
    plane.gate.serve(None);
    plane.test.reopen().await;
    std::fs::write(&go, "").unwrap();
    plane.gate.serve(Some(plane.test.router.clone()));
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert!(log.contains("before\nafter\n"), "{log}");
    assert_eq!(log.matches("before\n").count(), 1, "{log}");
    assert_eq!(plane.serial().await, Some(1));
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_zombie_stops_its_stage_and_writes_nothing() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let script = format!("echo $$ >{}; while [ ! -e {} ]; do sleep 0.02; done\n", running.display(), go.display());
    let run = plane.run("", &script).await;
    appears(&running).await;
    // Nothing gets through until the lease is over by the server's clock.
    plane.gate.serve(None);
    plane.test.advance(31);
    terrapool::server::domain::queue::expire(&plane.test.app).await.unwrap();
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::AGENT_LOST));
    let before = plane.log(run.apply_id.as_str()).await;
    plane.gate.serve(Some(plane.test.router.clone()));
    let data = plane.config("a").data;
    eventually("the end of the zombie's stage", async || {
        std::fs::read_dir(data.join("jobs")).is_ok_and(|entries| entries.count() == 0)
    })
    .await;
    let engine: i32 = std::fs::read_to_string(&running).unwrap().trim().parse().unwrap();
    eventually("the end of the engine", async || !std::path::Path::new(&format!("/proc/{engine}")).exists()).await;
    assert_eq!(plane.log(run.apply_id.as_str()).await, before);
    assert_eq!(plane.serial().await, None);
    agent.drain().await.unwrap();
    assert_clean(&data);
}

#[tokio::test]
async fn a_lost_plan_that_comes_back_to_the_same_agent_is_planned_anew() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let script = format!(
        "echo x >>{0}; if [ $(wc -l <{0}) = 1 ]; then while [ ! -e {1} ]; do sleep 0.02; done; fi\n",
        running.display(),
        go.display()
    );
    let run = plane.run(&script, "").await;
    appears(&running).await;
    plane.gate.serve(None);
    plane.test.advance(31);
    terrapool::server::domain::queue::expire(&plane.test.app).await.unwrap();
    plane.gate.serve(Some(plane.test.router.clone()));
    let run = plane.until(&run, RunState::Applied).await;
    assert_eq!(run.plan_attempts, 2);
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}
