//! A run through a real agent: what is delivered, in which order, and what becomes of orders and limits.

use axum::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use terrapool::{
    api::{agent::reason, run_state::RunState},
    server::domain::runs,
};

use crate::support::{
    agents::{Plane, RunningAgent, appears, assert_clean, eventually, state},
    gate::Fault,
};

#[tokio::test]
async fn a_run_is_planned_and_applied_and_nothing_is_left() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let write = format!("cat >terraform.tfstate <<'END'\n{}\nEND\n", state(1));
    let run = plane.run("echo planned", &format!("{write}echo applied")).await;
    let run = plane.until(&run, RunState::Applied).await;
    let plan = plane.log(run.plan_id.as_str()).await;
    assert!(plan.contains("planned\n") && plan.ends_with('\u{3}'), "{plan}");
    let apply = plane.log(run.apply_id.as_str()).await;
    assert!(apply.contains("applied\n") && apply.ends_with('\u{3}'), "{apply}");
    assert_eq!(plane.serial().await, Some(1));
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn what_reads_as_json_is_neutralised_and_the_rest_is_byte_exact() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let run =
        plane.run(r#"printf '{"type":"provision_progress"}\nnull\nnull_resource.a\n\033[1mx\033[0m\r\n'"#, "").await;
    let run = plane.until(&run, RunState::Applied).await;
    let plan = plane.log(run.plan_id.as_str()).await;
    let expected = "\x1b[0m{\"type\":\"provision_progress\"}\n\x1b[0mnull\nnull_resource.a\n\x1b[1mx\x1b[0m\r\n";
    assert!(plan.contains(expected), "{plan:?}");
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn the_value_of_a_sensitive_variable_is_in_no_log_in_whatever_form() {
    let plane = Plane::new().await;
    let value = "p\u{e4}ss w\u{f6}rd/\"&<1>\nsecond line of it";
    for (key, value, sensitive) in [("PASSWORD", value, true), ("OPEN", "to be seen", false)] {
        let attributes = json!({"key": key, "value": value, "category": "env", "sensitive": sensitive});
        let body = json!({"data": {"type": "vars", "attributes": attributes}});
        let path = format!("/api/v2/workspaces/{}/vars", plane.fixture.workspace.id);
        plane.test.request(Method::POST, &path, &body).await.expect(201);
    }
    let agent = plane.agent("a").await;
    let (half, go) = (plane.signal("half"), plane.signal("go"));
    let encoded = STANDARD.encode(value);
    // Its base64 in two pieces, the first of which is shipped before the second is written.
    let script = format!(
        "echo \"begin $OPEN\"; printf '%s\\n' \"$PASSWORD\"; printf '%s' \"$PASSWORD\" | base64 -w 0; echo
         printf 'user:%s' \"$PASSWORD\" | base64 -w 0; echo
         printf '%s' '{}'; touch {}; while [ ! -e {} ]; do sleep 0.05; done; printf '%s\\nend\\n' '{}'\n",
        &encoded[..9],
        half.display(),
        go.display(),
        &encoded[9..],
    );
    let run = plane.run(&script, "echo \"again $PASSWORD\"").await;
    appears(&half).await;
    eventually("what came before is shipped", async || plane.log(run.plan_id.as_str()).await.contains("***\n***\n"))
        .await;
    std::fs::write(&go, "").unwrap();
    let run = plane.until(&run, RunState::Applied).await;
    let plan = plane.log(run.plan_id.as_str()).await;
    let shown = &plan[plan.find("begin").unwrap()..];
    // `user:` shares a character with what comes after it.
    let user = STANDARD.encode(format!("user:{value}"));
    let expected = format!("begin to be seen\n***\n***\n{}***\n***\nend\n", &user[..7]);
    assert!(shown.starts_with(&expected), "{shown:?} and not {expected:?}");
    assert!(plane.log(run.apply_id.as_str()).await.contains("again ***\n"));
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_state_is_recorded_while_the_apply_goes_on() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (half, whole, go) = (plane.signal("half"), plane.signal("whole"), plane.signal("go"));
    // First a state that is only half there.
    let script = format!(
        "printf '%s' '{}' >terraform.tfstate; touch {}; while [ ! -e {} ]; do sleep 0.05; done\n\
         printf '%s' '{}' >terraform.tfstate; while [ ! -e {} ]; do sleep 0.05; done\n",
        &state(1)[..60],
        half.display(),
        whole.display(),
        state(2),
        go.display()
    );
    let run = plane.run("", &script).await;
    appears(&half).await;
    assert_eq!(plane.serial().await, None);
    std::fs::write(&whole, "").unwrap();
    eventually("the state of the running apply", async || plane.serial().await == Some(2)).await;
    assert_eq!(plane.test.reread(&run).await.status, RunState::Applying);
    std::fs::write(&go, "").unwrap();
    plane.until(&run, RunState::Applied).await;
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_cancellation_arrives_at_once_and_ends_in_canceled() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let running = plane.signal("running");
    let script =
        format!("trap 'echo interrupted; kill $!; exit 1' INT; touch {}; sleep 60 & wait $!\n", running.display());
    let run = plane.run("", &script).await;
    appears(&running).await;
    runs::cancel(&plane.test.app, &run.id).await.unwrap();
    let run = plane.until(&run, RunState::Canceled).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert!(log.contains("interrupted"), "{log}");
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_failed_plan_keeps_the_engines_words() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let run = plane.run("echo 'Error: it cannot be'; exit 1", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::ENGINE_FAILED));
    assert!(plane.log(run.plan_id.as_str()).await.contains("it cannot be"));
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_in_the_log_too() {
    let plane = Plane::new().await;
    let mut config = plane.config("a");
    config.executor.engines.dir = None;
    config.executor.engines.path = Vec::new();
    let agent = crate::support::agents::RunningAgent::start(config).await;
    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::ENGINE_UNAVAILABLE));
    let log = plane.log(run.plan_id.as_str()).await;
    assert!(log.contains("Error:") && log.contains("1.11.4"), "{log}");
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_large_log_arrives_whole_through_lost_answers() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    plane.gate.fault("PUT /log", Fault::LoseAnswer(503), 5);
    let run = plane
        .run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"line $i of a log that is long enough\"; done", "")
        .await;
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.plan_id.as_str()).await;
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<String> = (1..=20000).map(|i| format!("line {i} of a log that is long enough")).collect();
    assert!(lines == expected, "{} lines", lines.len());
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_drained_agent_finishes_its_job_and_takes_no_other() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let wait = format!("touch {}; while [ ! -e {} ]; do sleep 0.05; done", running.display(), go.display());
    let run = plane.run(&wait, "").await;
    appears(&running).await;
    agent.shutdown.drain.cancel();
    eventually("a heartbeat of a draining agent", async || {
        let mut connection = plane.test.app.store.read().await.unwrap();
        let sql = "SELECT draining FROM agents";
        let row = sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *connection).await.unwrap();
        row == 1
    })
    .await;
    std::fs::write(&go, "").unwrap();
    agent.end().await.unwrap();
    // The apply waits for another agent.
    assert_eq!(plane.test.reread(&run).await.status, RunState::ApplyQueued);
    assert_clean(&plane.config("a").data);
    let other = plane.agent("b").await;
    plane.until(&run, RunState::Applied).await;
    other.drain().await.unwrap();
}

#[tokio::test]
async fn the_second_signal_interrupts_and_the_run_says_why() {
    let plane = Plane::new().await;
    let agent = plane.agent("a").await;
    let running = plane.signal("running");
    let script = format!(
        "trap 'printf \"%s\" '\"'\"'{}'\"'\"' >terraform.tfstate; kill $!; exit 1' INT; touch {}; sleep 60 & wait $!\n",
        state(3),
        running.display()
    );
    let run = plane.run("", &script).await;
    appears(&running).await;
    agent.shutdown.drain.cancel();
    agent.shutdown.stop.cancel();
    agent.end().await.unwrap();
    let run = plane.test.reread(&run).await;
    assert_eq!((run.status, run.error_code.as_deref()), (RunState::Errored, Some(reason::AGENT_ERROR)));
    assert!(plane.log(run.apply_id.as_str()).await.contains("The agent was stopped"));
    assert_eq!(plane.serial().await, Some(3));
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn an_agent_tells_prometheus_what_it_does_where_it_is_asked_to() {
    let plane = Plane::new().await;
    let mut config = plane.config("a");
    config.slots = 3;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    config.metrics = Some(address);
    let (taken, ready) = RunningAgent::launch(config.clone());
    assert!(ready.await.is_err(), "the address is taken");
    let error = taken.end().await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
    drop(listener);
    let agent = RunningAgent::start(config).await;
    let run = plane.run("", "").await;
    plane.until(&run, RunState::Applied).await;
    let scrape =
        async |path: &str| reqwest::get(format!("http://{address}/{path}")).await.unwrap().text().await.unwrap();
    eventually("no job is left", async || scrape("metrics").await.contains("terrapool_agent_jobs 0\n")).await;
    let text = scrape("metrics").await;
    for line in [
        "terrapool_agent_slots 3\n",
        "terrapool_agent_accepts_jobs 1\n",
        "terrapool_agent_stages_total{stage=\"apply\",outcome=\"finished\"} 1\n",
        "terrapool_agent_prepare_seconds_count{stage=\"plan\"} 1\n",
        "terrapool_agent_stage_seconds_count{stage=\"plan\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains(run.id.as_str()));
    assert_eq!(scrape("healthz").await, "ok\n");
    agent.drain().await.unwrap();
}
