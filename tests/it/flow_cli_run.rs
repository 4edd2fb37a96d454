//! A user's day with the real CLI: everything from init to destroy, run by an agent, for both engines and over both
//! transports.

use serde_json::Value;
use terrapool::agent::executor::Choice;

use crate::support::{
    cli::{Engine, Input},
    desk::Desk,
    server::Transport,
};

/// No provider is needed for this, so none is downloaded.
const CONFIGURATION: &str = r#"
variable "greeting" {
  default = "hello"
}

resource "terraform_data" "first" {
  input = var.greeting
}

output "greeting" {
  value = terraform_data.first.output
}
"#;

async fn from_init_to_destroy(engine: Engine, transport: Transport) {
    let desk = Desk::new(engine, transport, Choice::Process).await;
    let cli = &desk.cli;
    cli.write("main.tf", CONFIGURATION);
    cli.succeed(&["init"]).await.says("successfully initialized!");

    // Plans, with and without a meaning of the exit code.
    // It is the user's own engine that runs on the agent.
    let engine_says = if engine == Engine::Tofu { "OpenTofu will perform" } else { "Terraform will perform" };
    cli.succeed(&["plan"]).await.says(engine_says).says("Plan: 1 to add, 0 to change, 0 to destroy.");
    cli.run(&["plan", "-detailed-exitcode"]).await.expect(2).says("terraform_data.first will be created");

    // No at the prompt: nothing is applied.
    let mut apply = cli.start(&["apply"], Input::Terminal);
    apply.until("Enter a value:").await;
    apply.say("no").await;
    apply.end().await.expect(1).says("Apply discarded.");
    desk.is_unlocked().await;
    cli.run(&["state", "list"]).await.expect(1).says("No state file was found");

    // Yes.
    let mut apply = cli.start(&["apply"], Input::Terminal);
    apply.until("Enter a value:").await;
    apply.say("yes").await;
    let output = apply.end().await;
    output.expect(0).says("Apply complete! Resources: 1 added, 0 changed, 0 destroyed.").says(r#"greeting = "hello""#);

    // Nothing to do.
    cli.succeed(&["apply"]).await.says("No changes.");
    cli.run(&["plan", "-detailed-exitcode"]).await.expect(0);

    // What there is.
    assert_eq!(cli.succeed(&["output", "-raw", "greeting"]).await.stdout, "hello");
    assert_eq!(cli.succeed(&["state", "list"]).await.stdout, "terraform_data.first\n");
    cli.succeed(&["state", "show", "terraform_data.first"]).await.says(r#"input = "hello""#);
    let state: Value = serde_json::from_str(&cli.succeed(&["state", "pull"]).await.stdout).unwrap();
    assert_eq!(state["outputs"]["greeting"]["value"], "hello", "{state}");

    // A change, without a prompt.
    cli.write("main.tf", &CONFIGURATION.replace("hello", "good day"));
    cli.succeed(&["apply", "-auto-approve"]).await.says("0 added, 1 changed, 0 destroyed.");
    assert_eq!(cli.succeed(&["output", "-raw", "greeting"]).await.stdout, "good day");

    cli.succeed(&["destroy", "-auto-approve"]).await.says("Resources: 0 added, 0 changed, 1 destroyed.");
    assert_eq!(cli.succeed(&["state", "list"]).await.stdout, "");
    desk.is_unlocked().await;
    desk.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_over_https_from_init_to_destroy() {
    from_init_to_destroy(Engine::Terraform, Transport::Https).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_over_http_from_init_to_destroy() {
    from_init_to_destroy(Engine::Terraform, Transport::Http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_over_https_from_init_to_destroy() {
    from_init_to_destroy(Engine::Tofu, Transport::Https).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_over_http_from_init_to_destroy() {
    from_init_to_destroy(Engine::Tofu, Transport::Http).await;
}
