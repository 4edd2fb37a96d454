//! Leases, epochs and fencing, by the server's clock, which these tests move.

use std::time::Duration;

use serde_json::json;
use terrapool::{
    api::{
        agent::{Directive, FinishRequest, Order, Outcome, code},
        job::Stage,
        run_state::RunState,
    },
    server::domain::{
        logs,
        model::{Lock, RunOptions},
        queue, runs,
    },
};

use crate::support::{
    app::{Fixture, TestApp},
    sim_agent::{SimAgent, call, registration, result},
};

fn state(serial: i64) -> serde_json::Value {
    json!({"version": 4, "terraform_version": "1.11.4", "serial": serial, "lineage": "0f2a", "outputs": {}, "resources": []})
}

async fn log(test: &TestApp, stage: &str) -> String {
    let mut text = Vec::new();
    loop {
        let part = logs::read(&test.app, stage, text.len() as u64, 1 << 20, Duration::ZERO).await.unwrap();
        if part.is_empty() {
            return String::from_utf8(text).unwrap();
        }
        text.extend_from_slice(&part);
    }
}

/// A run whose apply an agent has claimed.
async fn applying<'a>(
    test: &'a TestApp,
    fixture: &Fixture,
) -> (terrapool::server::domain::model::Run, SimAgent<'a>, terrapool::api::job::JobSpec) {
    let agent = SimAgent::register(test, &fixture.pool_token, "a").await;
    let options = RunOptions { auto_apply: true, ..RunOptions::default() };
    let run = test.run(&fixture.workspace.id, &fixture.configuration, options).await;
    let plan = agent.claim().await.unwrap();
    agent.finish_plan(&plan).await;
    let apply = agent.claim().await.unwrap();
    assert_eq!(apply.stage, Stage::Apply);
    assert_eq!(test.reread(&run).await.status, RunState::Applying);
    (run, agent, apply)
}

#[tokio::test]
async fn a_run_of_a_free_workspace_is_queued_in_the_transaction_that_creates_it() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    assert_eq!(run.status, RunState::PlanQueued);
    assert_eq!(test.reread_workspace(&fixture.workspace).await.lock, Lock::Run { id: run.id });
}

#[tokio::test]
async fn the_second_run_of_a_workspace_waits_and_says_for_what() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let first = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let second = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    assert_eq!(second.status, RunState::Pending);
    assert_eq!(second.waiting_for, Some(format!("{} holds the workspace", first.id)));
    runs::cancel(&test.app, &first.id).await.unwrap();
    assert_eq!(test.reread(&second).await.status, RunState::PlanQueued);
}

#[tokio::test]
async fn a_run_without_a_pool_waits_and_says_so() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let workspace = test.workspace(&fixture.environment.id, "lonely", None).await;
    let configuration = test.configuration(&workspace.id, false).await;
    let run = test.run(&workspace.id, &configuration, RunOptions::default()).await;
    assert_eq!(run.status, RunState::Pending);
    assert!(run.waiting_for.unwrap().contains("workspace lonely has no agent pool"));
}

#[tokio::test]
async fn the_same_claim_id_gets_the_same_job_again() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let first = agent.claim_as("once").await.unwrap();
    let again = agent.claim_as("once").await.unwrap();
    assert_eq!((&first.job_id, first.epoch), (&again.job_id, again.epoch));
    assert!(agent.claim_as("twice").await.is_none());
}

#[tokio::test]
async fn a_heartbeat_keeps_the_lease_and_silence_ends_it() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, agent, job) = applying(&test, &fixture).await;
    for _ in 0..10 {
        test.advance(29);
        assert!(agent.heartbeat(&[&job]).await.directives.is_empty());
        assert_eq!(queue::expire(&test.app).await.unwrap(), 0);
    }
    test.advance(29);
    assert_eq!(queue::expire(&test.app).await.unwrap(), 0);
    test.advance(1);
    assert_eq!(queue::expire(&test.app).await.unwrap(), 1);
    let run = test.reread(&run).await;
    assert_eq!((run.status, run.error_code.as_deref()), (RunState::Errored, Some("agent_lost")));
    assert_eq!(test.reread_workspace(&fixture.workspace).await.lock, Lock::Unlocked);
    let text = log(&test, run.apply_id.as_str()).await;
    assert!(text.contains("agent a has not been heard of for 30 s") && text.ends_with('\u{3}'), "{text}");
}

/// By the clock that leases are measured with: 30 s after its last word, and never later than 45 s.
#[tokio::test]
async fn p09_agent_killed_mid_apply_is_errored_within_lease_bound() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, agent, job) = applying(&test, &fixture).await;
    test.advance(600);
    agent.heartbeat(&[&job]).await;
    let mut silent = 0;
    // The server looks every second.
    while queue::expire(&test.app).await.unwrap() == 0 {
        assert_eq!(test.reread(&run).await.status, RunState::Applying);
        test.advance(1);
        silent += 1;
        assert!(silent <= 45, "a dead agent has kept its apply for {silent} s");
    }
    assert!(silent >= 30, "given up after {silent} s: a lease is one of 30 s");
    let run = test.reread(&run).await;
    assert_eq!((run.status, run.error_code.as_deref()), (RunState::Errored, Some("agent_lost")));
}

#[tokio::test]
async fn a_lost_plan_is_planned_again_once_and_its_log_goes_on() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (a, b) = (
        SimAgent::register(&test, &fixture.pool_token, "a").await,
        SimAgent::register(&test, &fixture.pool_token, "b").await,
    );
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let first = a.claim().await.unwrap();
    a.append_log(&first, 0, "first attempt\n").await.expect(200);
    test.advance(31);
    queue::expire(&test.app).await.unwrap();
    assert_eq!(test.reread(&run).await.status, RunState::PlanQueued);

    let second = b.claim().await.unwrap();
    assert_eq!(second.epoch, first.epoch + 1);
    b.append_log(&second, 0, "second attempt\n").await.expect(200);
    let text = log(&test, run.plan_id.as_str()).await;
    assert!(text.starts_with("\u{2}first attempt\n") && text.ends_with("second attempt\n"), "{text}");
    assert!(text.contains("attempt 2 of 2"), "{text}");

    test.advance(31);
    queue::expire(&test.app).await.unwrap();
    let run = test.reread(&run).await;
    assert_eq!((run.status, run.error_code.as_deref()), (RunState::Errored, Some("agent_lost")));
}

#[tokio::test]
async fn a_zombie_can_write_neither_log_nor_state_nor_artifact_nor_result() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, zombie, job) = applying(&test, &fixture).await;
    zombie.put_state(&job, &state(1)).await.expect(204);
    test.advance(31);
    queue::expire(&test.app).await.unwrap();
    let before = log(&test, run.apply_id.as_str()).await;

    let answers = [
        zombie.append_log(&job, 0, "from the dead\n").await,
        zombie.put_state(&job, &state(2)).await,
        zombie.put_artifact(&job, "plan", "x").await,
        zombie.finish(&job, &result(Outcome::Finished)).await,
    ];
    for answer in answers {
        assert_eq!(answer.status.as_u16(), 409, "{:?}", answer.body);
        assert_eq!(answer.json()["errors"][0]["code"], code::FENCED);
    }
    let orders = zombie.heartbeat(&[&job]).await.directives;
    assert_eq!(orders, [Directive { job_id: job.job_id.clone(), epoch: job.epoch, order: Order::Fenced }]);
    assert_eq!(log(&test, run.apply_id.as_str()).await, before);
    let kept = test.get(&format!("/api/v2/workspaces/{}/current-state-version", fixture.workspace.id)).await;
    assert!(kept.status.as_u16() == 404 || kept.json()["data"]["attributes"]["serial"] == 1);
    let mut connection = test.app.store.read().await.unwrap();
    let current = terrapool::server::store::states::current(&mut connection, &fixture.workspace.id).await.unwrap();
    assert_eq!(current.unwrap().serial, 1);
}

#[tokio::test]
async fn the_same_result_twice_is_one_result_and_another_is_refused() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, agent, job) = applying(&test, &fixture).await;
    let done = result(Outcome::Finished);
    agent.finish(&job, &done).await.expect(204);
    agent.finish(&job, &done).await.expect(204);
    agent.finish(&job, &result(Outcome::Errored)).await.expect(409);
    assert_eq!(test.reread(&run).await.status, RunState::Applied);
}

#[tokio::test]
async fn log_appends_are_idempotent_and_leave_no_gap() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, agent, job) = applying(&test, &fixture).await;
    agent.append_log(&job, 0, "one\ntwo\n").await.expect(200);
    assert_eq!(agent.append_log(&job, 0, "one\ntwo\n").await.expect(200).json()["end"], 8);
    assert_eq!(agent.append_log(&job, 4, "two\nthree\n").await.expect(200).json()["end"], 14);
    let gap = agent.append_log(&job, 20, "late").await.expect(409).json();
    assert_eq!((&gap["errors"][0]["code"], &gap["errors"][0]["meta"]["end"]), (&json!(code::LOG_GAP), &json!(14)));
    assert_eq!(log(&test, run.apply_id.as_str()).await, "\u{2}one\ntwo\nthree\n");

    let short = agent.finish(&job, &result(Outcome::Finished)).await.expect(409).json();
    assert_eq!(short["errors"][0]["code"], code::LOG_GAP);
    agent.finish(&job, &FinishRequest { log_bytes: 14, ..result(Outcome::Finished) }).await.expect(204);
    assert_eq!(log(&test, run.apply_id.as_str()).await, "\u{2}one\ntwo\nthree\n\u{3}");

    assert_eq!(logs::archive(&test.app).await.unwrap(), 1);
    assert_eq!(log(&test, run.apply_id.as_str()).await, "\u{2}one\ntwo\nthree\n\u{3}");
    assert_eq!(logs::archive(&test.app).await.unwrap(), 0);
}

#[tokio::test]
async fn a_plan_with_changes_is_not_finished_without_its_bundle() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let job = agent.claim().await.unwrap();
    let result = FinishRequest { has_changes: true, ..result(Outcome::Finished) };
    agent.finish(&job, &result).await.expect(409);
    agent.put_artifact(&job, "plan", "bundle").await.expect(204);
    agent.finish(&job, &result).await.expect(204);
    assert_eq!(test.reread(&run).await.status, RunState::Planned);
}

#[tokio::test]
async fn a_restart_of_the_server_gives_every_lease_its_full_length() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, _, _) = applying(&test, &fixture).await;
    test.advance(600);
    queue::extend_after_restart(&test.app).await.unwrap();
    assert_eq!(queue::expire(&test.app).await.unwrap(), 0);
    assert_eq!(test.reread(&run).await.status, RunState::Applying);
}

#[tokio::test]
async fn cancelling_a_running_apply_orders_the_agent_and_its_report_ends_the_run() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, agent, job) = applying(&test, &fixture).await;
    runs::cancel(&test.app, &run.id).await.unwrap();
    runs::cancel(&test.app, &run.id).await.unwrap();
    assert_eq!(agent.heartbeat(&[&job]).await.directives[0].order, Order::Cancel);
    agent.finish(&job, &result(Outcome::Canceled)).await.expect(204);
    assert_eq!(test.reread(&run).await.status, RunState::Canceled);
    assert!(runs::cancel(&test.app, &run.id).await.is_err());
}

#[tokio::test]
async fn a_force_cancel_needs_a_cancel_before_it_and_fences_the_agent() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (run, agent, job) = applying(&test, &fixture).await;
    assert!(runs::force_cancel(&test.app, &run.id).await.is_err());
    runs::cancel(&test.app, &run.id).await.unwrap();
    runs::force_cancel(&test.app, &run.id).await.unwrap();
    assert_eq!(test.reread(&run).await.status, RunState::ForceCanceled);
    assert_eq!(agent.heartbeat(&[&job]).await.directives[0].order, Order::Fenced);
    agent.finish(&job, &result(Outcome::Finished)).await.expect(409);
}

#[tokio::test]
async fn applies_go_before_plans_and_plans_before_speculative_ones() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let confirmed = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    agent.finish_plan(&agent.claim().await.unwrap()).await;

    let other = test.workspace(&fixture.environment.id, "other", Some(&fixture.pool.id)).await;
    let speculative = test.configuration(&other.id, true).await;
    let look = test.run(&other.id, &speculative, RunOptions::default()).await;
    let configuration = test.configuration(&other.id, false).await;
    let plan = test.run(&other.id, &configuration, RunOptions::default()).await;
    runs::confirm(&test.app, &confirmed.id).await.unwrap();

    let mut order = Vec::new();
    while let Some(job) = agent.claim().await {
        order.push(job.run.id);
    }
    assert_eq!(order, [confirmed.id, plan.id, look.id]);
}

#[tokio::test]
async fn tokens_open_only_what_they_are_for() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let claim = || axum::body::Body::from(r#"{"claim_id":"x","stages":["plan"],"wait_ms":0}"#);
    let post = axum::http::Method::POST;
    for (token, wanted) in [
        (agent.registered.agent_token.as_str(), 204),
        (fixture.pool_token.as_str(), 401),
        (crate::support::app::ADMIN_TOKEN, 401),
        ("tpa_unknown", 401),
    ] {
        call(&test, token, post.clone(), "claim", None, claim()).await.expect(wanted);
    }
    let register = || axum::body::Body::from(serde_json::to_vec(&registration("b")).unwrap());
    for token in [agent.registered.agent_token.as_str(), "tpp_unknown", crate::support::app::ADMIN_TOKEN] {
        call(&test, token, post.clone(), "register", None, register()).await.expect(401);
    }
}

#[tokio::test]
async fn another_agent_of_the_same_name_is_refused_while_the_first_is_online() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let first = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let mut second = registration("a");
    second.instance = "another-instance".to_owned();
    let body = || axum::body::Body::from(serde_json::to_vec(&second).unwrap());
    let post = axum::http::Method::POST;
    let answer = call(&test, &fixture.pool_token, post.clone(), "register", None, body()).await.expect(409).json();
    assert_eq!(answer["errors"][0]["code"], code::NAME_TAKEN);
    test.advance(31);
    call(&test, &fixture.pool_token, post, "register", None, body()).await.expect(200);
    let heartbeat = axum::body::Body::from(r#"{"status":"idle","draining":false,"jobs":[],"known":[],"wait_ms":0}"#);
    first.call(axum::http::Method::POST, "heartbeat", None, heartbeat).await.expect(401);
}

#[tokio::test]
async fn another_protocol_version_is_told_to_upgrade() {
    let test = TestApp::new().await;
    let request = axum::http::Request::post("/api/agent/v1/claim").header("terrapool-agent-protocol", "9");
    let answer = test.send(request.body(axum::body::Body::empty()).unwrap()).await.expect(426);
    assert!(answer.json()["errors"][0]["detail"].as_str().unwrap().contains("Install the agent"));
}
