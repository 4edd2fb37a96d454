//! The real terraform and tofu: runs, executed by a simulated agent.

use std::{pin::pin, time::Duration};

use axum::http::Method;
use serde_json::json;
use terrapool::{
    api::{
        agent::{FinishRequest, Outcome, ResourceChanges},
        job::{JobSpec, Stage},
    },
    server::domain::model::Workspace,
};

use crate::support::{
    app::Fixture,
    cli::{Cli, Engine, Input, Output, cloud_block},
    served::Served,
    sim_agent::{SimAgent, result},
};

const HEADER: &str = "Terraform v1.11.4\non linux_amd64\nInitializing plugins and modules...\n";

struct Stand {
    served: Served,
    fixture: Fixture,
    cli: Cli,
}

async fn stand(engine: Engine) -> Stand {
    let served = Served::new().await;
    let fixture = served.test.fixture().await;
    let cli = Cli::new(engine, &served.access);
    let block = cloud_block(&served.access, "prod", "app");
    cli.write("main.tf", &format!("{block}\nresource \"terraform_data\" \"one\" {{}}\n"));
    if engine == Engine::Tofu {
        let settings = json!({"data": {"type": "workspaces",
            "attributes": {"iac-platform": "opentofu", "terraform-version": "1.12.6"}}});
        let path = format!("/api/v2/workspaces/{}", fixture.workspace.id);
        served.test.request(Method::PATCH, &path, &settings).await.expect(200);
    }
    cli.run(&["init"]).await.expect(0);
    Stand { served, fixture, cli }
}

/// The next job, as soon as there is one.
async fn next_job(agent: &SimAgent<'_>) -> JobSpec {
    let waiting = async {
        loop {
            if let Some(job) = agent.claim().await {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("no job was queued within a minute")
}

/// Waits for both, and fails at once when the CLI ends before its agent's work does.
async fn together<T>(cli: impl Future<Output = Output>, work: impl Future<Output = T>) -> (Output, T) {
    let (mut cli, mut work) = (pin!(cli), pin!(work));
    tokio::select! {
        biased;
        done = &mut work => (cli.await, done),
        ended = &mut cli => panic!("the CLI ended too early: {ended:#?}"),
    }
}

/// An apply whose question is answered.
async fn answer(stand: &Stand, answer: &str) -> Output {
    let mut running = stand.cli.start(&["apply"], Input::Pipe);
    running.until("Enter a value:").await;
    running.say(answer).await;
    running.end().await
}

/// Plays the agent for so many jobs; returns them.
async fn play(agent: &SimAgent<'_>, jobs: usize, has_changes: bool) -> Vec<JobSpec> {
    let mut played = Vec::new();
    for _ in 0..jobs {
        let job = next_job(agent).await;
        let text = match job.stage {
            Stage::Plan => "the plan's own text\nPlan: 1 to add, 0 to change, 0 to destroy.\n",
            Stage::Apply => "the apply's own text\nApply complete! Resources: 1 added, 0 changed, 0 destroyed.\n",
        };
        let log = format!("{HEADER}{text}");
        agent.append_log(&job, 0, &log).await.expect(200);
        let mut finish = result(Outcome::Finished);
        finish.log_bytes = log.len() as u64;
        if job.stage == Stage::Plan {
            agent.put_artifact(&job, "plan", "bundle").await.expect(204);
            finish.has_changes = has_changes;
            finish.changes = ResourceChanges { additions: i64::from(has_changes), ..ResourceChanges::default() };
        } else {
            let state = json!({"version": 4, "terraform_version": "1.11.4", "serial": 1, "lineage": "l-1",
                "outputs": {"greeting": {"value": "hello", "type": "string"}}, "resources": []});
            agent.put_state(&job, &state).await.expect(204);
        }
        agent.finish(&job, &finish).await.expect(204);
        played.push(job);
    }
    played
}

async fn status_of_newest_run(stand: &Stand) -> String {
    let path = format!("/api/v2/workspaces/{}/runs", stand.fixture.workspace.id);
    let runs = stand.served.test.get(&path).await.expect(200).json();
    runs["data"][0]["attributes"]["status"].as_str().unwrap().to_owned()
}

async fn agent(stand: &Stand) -> SimAgent<'_> {
    SimAgent::register(&stand.served.test, &stand.fixture.pool_token, "a").await
}

async fn plan(engine: Engine) {
    let stand = stand(engine).await;
    let agent = agent(&stand).await;
    let args = ["plan", "-detailed-exitcode"];
    let (ended, jobs) = together(stand.cli.run(&args), play(&agent, 1, true)).await;
    ended.expect(2).says("the plan's own text");
    assert!(jobs[0].run.plan_only);
    assert_eq!(status_of_newest_run(&stand).await, "planned_and_finished");
}

async fn apply(engine: Engine) {
    let stand = stand(engine).await;
    let agent = agent(&stand).await;
    let (ended, jobs) = together(answer(&stand, "yes"), play(&agent, 2, true)).await;
    ended.expect(0).says("the apply's own text");
    assert!(!ended.stdout.contains('\u{3}'), "the end mark is not shown");
    assert_eq!(jobs[1].stage, Stage::Apply);
    assert_eq!(status_of_newest_run(&stand).await, "applied");
    assert_eq!(stand.cli.run(&["output", "-raw", "greeting"]).await.expect(0).stdout, "hello");

    let (ended, _) = together(stand.cli.run(&["apply", "-auto-approve"]), play(&agent, 1, false)).await;
    ended.expect(0);
    assert_eq!(status_of_newest_run(&stand).await, "planned_and_finished", "nothing to change");
    let workspace: Workspace = stand.served.test.reread_workspace(&stand.fixture.workspace).await;
    assert_eq!(workspace.lock, terrapool::server::domain::model::Lock::Unlocked);
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_plans() {
    plan(Engine::Terraform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_plans() {
    plan(Engine::Tofu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_applies_after_a_yes() {
    apply(Engine::Terraform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_applies_after_a_yes() {
    apply(Engine::Tofu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anything_but_yes_discards_the_run() {
    let stand = stand(Engine::Terraform).await;
    let agent = agent(&stand).await;
    let (ended, _) = together(answer(&stand, "no"), play(&agent, 1, true)).await;
    ended.expect(1).says("discarded");
    assert_eq!(status_of_newest_run(&stand).await, "discarded");
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_approve_and_destroy_need_no_answer() {
    let stand = stand(Engine::Terraform).await;
    let agent = agent(&stand).await;
    let (ended, jobs) = together(stand.cli.run(&["destroy", "-auto-approve"]), play(&agent, 2, true)).await;
    ended.expect(0);
    assert!(jobs[0].run.is_destroy);
    assert_eq!(status_of_newest_run(&stand).await, "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_more_than_one_read_arrives_whole() {
    let stand = stand(Engine::Terraform).await;
    let agent = agent(&stand).await;
    let lines: String = (0..20_000).map(|number| format!("line number {number}\n")).collect();
    let work = async {
        let job = next_job(&agent).await;
        let mut offset = 0;
        for part in lines.as_bytes().chunks(100_000) {
            agent.append_log(&job, offset, std::str::from_utf8(part).unwrap()).await.expect(200);
            offset += part.len() as u64;
        }
        let finish = FinishRequest { log_bytes: offset, ..result(Outcome::Finished) };
        agent.finish(&job, &finish).await.expect(204);
    };
    let (ended, ()) = together(stand.cli.run(&["plan"]), work).await;
    ended.expect(0);
    assert!(ended.all.contains(&lines), "{} bytes arrived", ended.all.len());
}
