//! Input that cannot work, through the real programs: a clear answer, nothing lost, nothing left running.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sqlx::Connection;
use terrapool::agent::executor::Choice;

use crate::support::{
    cli::Input,
    programs::{AgentProgram, ServerProgram},
};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_bad_token_ends_and_says_why() {
    let data = tempfile::tempdir().unwrap();
    let server = ServerProgram::start(data.path()).await;
    let place = server.admin.place("prod").await;

    let mut unknown = AgentProgram::new(&server, "never-heard-of-this-token", "unknown", Choice::Process);
    unknown.launch();
    let output = unknown.running.take().unwrap().end().await;
    output.expect(1).says("the control plane does not accept the pool token");
    assert!(!output.all.contains("never-heard-of-this-token"), "the token is not shown: {output:?}");

    // An hour is the API's business; that it is over is the database's.
    let token = json!({"data": {"type": "access-tokens", "attributes": {"description": "old", "expires-in": 60}}});
    let path = format!("/api/iacp/v3/agent-pools/{}/access-tokens", place.pool);
    let token = server.admin.post(&path, &token).await;
    let secret = token["data"]["attributes"]["token"].as_str().unwrap();
    let database = format!("sqlite://{}", data.path().join("terrapool.db").display());
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    let changed = sqlx::query("UPDATE tokens SET expires_at = 1 WHERE id = $1");
    let changed = changed.bind(token["data"]["id"].as_str().unwrap()).execute(&mut database).await.unwrap();
    assert_eq!(changed.rows_affected(), 1);
    let mut expired = AgentProgram::new(&server, secret, "expired", Choice::Process);
    expired.launch();
    let output = expired.running.take().unwrap().end().await;
    output.expect(1).says("the control plane does not accept the pool token").says("expired");
    let agents = server.admin.get("/api/iacp/v3/agents").await;
    assert_eq!(agents["data"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_image_that_does_not_exist_is_named() {
    let data = tempfile::tempdir().unwrap();
    let server = ServerProgram::start(data.path()).await;
    let place = server.admin.place("prod").await;
    // Nothing listens on that port: the registry refuses at once.
    let image = "127.0.0.1:1/terrapool/absent:1";
    let settings = json!({"data": {"type": "agent-pools", "attributes": {"run-settings": {"image": image}}}});
    server.admin.request(Method::PATCH, &format!("/api/iacp/v3/agent-pools/{}", place.pool), &settings).await;
    let agent = AgentProgram::start(&server, &place, "first", Choice::Docker).await;
    let cli = server.cli(&place);
    cli.write("main.tf", "resource \"terraform_data\" \"one\" {}\n");
    cli.succeed(&["init"]).await;
    cli.run(&["plan"]).await.expect(1).says(image).says("Check its name and the registry");
    let workspace = server.admin.workspace("prod", "app").await["id"].as_str().unwrap().to_owned();
    let run = server.admin.run_becomes(&workspace, "errored", SOON).await;
    assert_eq!(run["attributes"]["error-code"], "image_unavailable", "{run}");
    server.admin.is_unlocked(&workspace).await;
    agent.leaves_nothing().await;
}

/// As an operator does when no Pod of an agent can start: the person at the CLI is told, instead of waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_no_agent_can_ever_take_ends_with_the_reason_in_the_cli() {
    let data = tempfile::tempdir().unwrap();
    let server = ServerProgram::start(data.path()).await;
    let place = server.admin.place("prod").await;
    let cli = server.cli(&place);
    cli.write("main.tf", "resource \"terraform_data\" \"one\" {}\n");
    cli.succeed(&["init"]).await;
    let plan = cli.start(&["plan"], Input::None);
    let workspace = server.admin.workspace("prod", "app").await["id"].as_str().unwrap().to_owned();
    server.admin.run_becomes(&workspace, "plan_queued", SOON).await;
    let message = "the image of the pool cannot be pulled: access denied. Give the pool a pull secret for it.";
    let body = json!({"image": null, "code": "image_unavailable", "message": message});
    let failed =
        server.admin.post(&format!("/api/iacp/v3/agent-pools/{}/actions/fail-queued", place.pool), &body).await;
    assert_eq!(failed["failed"], 1);
    plan.end().await.expect(1).says(message);
    let run = server.admin.newest_run(&workspace).await;
    assert_eq!(run["attributes"]["error-code"], "image_unavailable", "{run}");
    assert_eq!(run["attributes"]["error-message"], message);
    server.admin.is_unlocked(&workspace).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_does_not_parse_and_a_plan_of_50_mb() {
    let data = tempfile::tempdir().unwrap();
    let server = ServerProgram::start(data.path()).await;
    let place = server.admin.place("prod").await;
    let agent = AgentProgram::start(&server, &place, "first", Choice::Process).await;
    let cli = server.cli(&place);
    cli.write("main.tf", "resource \"terraform_data\" \"one\" {}\n");
    cli.succeed(&["init"]).await;
    let workspace = server.admin.workspace("prod", "app").await["id"].as_str().unwrap().to_owned();

    // The CLI reads the root module's syntax itself; what it means is found out on the agent.
    cli.write("main.tf", "resource \"terraform_data\" \"one\" {\n  input = terraform_data.nobody.id\n}\n");
    let output = cli.run(&["plan"]).await;
    output.expect(1).says("Error: Reference to undeclared resource").says("on main.tf line 2");
    let run = server.admin.run_becomes(&workspace, "errored", SOON).await;
    assert_eq!(run["attributes"]["error-code"], "engine_failed", "{run}");
    server.admin.is_unlocked(&workspace).await;
    cli.write("main.tf", "resource \"terraform_data\" {\n");
    cli.run(&["plan"]).await.expect(1).says("Error: Missing name for resource");
    agent.leaves_nothing().await;

    // Every line has its number, so that none can be missing, twice, or in another place.
    let filling = "x".repeat(980);
    let lines: Vec<String> = (0..50_000).map(|n| format!("{n:08} {filling}")).collect();
    cli.write("big.txt", &(lines.join("\n") + "\n"));
    cli.write("main.tf", "resource \"terraform_data\" \"big\" {\n  input = file(\"big.txt\")\n}\n");
    let output = cli.succeed(&["plan"]).await;
    println!("the CLI had the plan of {} bytes after {:?}", output.all.len(), output.took);
    let run = server.admin.newest_run(&workspace).await;
    let (log, complete) = server.admin.log(&run, "plan").await;
    assert!(complete);
    assert_all_lines("the control plane's log", &String::from_utf8(log).unwrap(), &lines);
    assert_all_lines("the CLI's output", &output.all, &lines);
    assert!(output.all.contains("Plan: 1 to add, 0 to change, 0 to destroy."));
    agent.leaves_nothing().await;
}

/// `text` has exactly these of the long lines, in their order.
#[track_caller]
fn assert_all_lines(what: &str, text: &str, lines: &[String]) {
    let long: Vec<&str> = text.lines().map(str::trim).filter(|line| line.contains("xxxxxxxxxx")).collect();
    let odd = long.iter().zip(lines).position(|(seen, wanted)| seen != wanted);
    let near = odd.map(|at| &long[at.saturating_sub(1)..(at + 2).min(long.len())]);
    assert!(odd.is_none(), "{what} differs at long line {odd:?}: {near:#?}");
    assert_eq!(long.len(), lines.len(), "{what}");
}
