//! Ctrl-C while an apply runs on the agent: the user may stop it, or only stop looking at it.

use std::{fs, path::PathBuf, time::Duration};

use terrapool::agent::executor::Choice;

use crate::support::{
    cli::{Engine, Input},
    desk::Desk,
    poll::eventually,
    proc::processes_with,
    server::Transport,
};

/// A resource that is there at once, then one that waits for the file `gate`.
fn configuration(gate: &str) -> String {
    format!(
        r#"
resource "terraform_data" "first" {{}}

resource "terraform_data" "slow" {{
  depends_on = [terraform_data.first]
  provisioner "local-exec" {{
    command = "echo at the gate; while [ ! -e {gate} ]; do sleep 0.1; done"
  }}
}}
"#
    )
}

async fn at_the_gate(engine: Engine, transport: Transport) -> (Desk, PathBuf) {
    let desk = Desk::new(engine, transport, Choice::Process).await;
    let gate = desk.server.data.path().join("gate");
    desk.cli.write("main.tf", &configuration(gate.to_str().unwrap()));
    desk.cli.succeed(&["init"]).await;
    (desk, gate)
}

/// What `apply -auto-approve` and Ctrl-C leave: a cancelled run, the state of what was made, and nothing that runs.
async fn auto_approved_apply_is_cancelled(engine: Engine, transport: Transport, input: Input) {
    let (desk, gate) = at_the_gate(engine, transport).await;
    let mut apply = desk.cli.start(&["apply", "-auto-approve"], input);
    apply.until("at the gate").await;
    apply.interrupt().await;
    // The CLI's exit code is 0 here: it looked at the run before it cancelled it.
    apply.end().await.says("The remote operation was successfully cancelled.");

    desk.run_becomes("canceled").await;
    desk.is_unlocked().await;
    let left = || processes_with(gate.to_str().unwrap());
    eventually("nothing of the run is left", Duration::from_secs(30), async || match left() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    })
    .await;
    let state = desk.cli.succeed(&["state", "list"]).await.stdout;
    assert!(state.contains("terraform_data.first"), "the state has what was made: {state}");

    // The workspace goes on from there.
    fs::write(&gate, "").unwrap();
    desk.cli.succeed(&["apply", "-auto-approve"]).await.says("Apply complete!");
    desk.leave().await;
}

/// Ctrl-C, and no to the question whether to cancel: the run goes on without a spectator.
async fn apply_goes_on_without_spectator(engine: Engine, transport: Transport) {
    let (desk, gate) = at_the_gate(engine, transport).await;
    let mut apply = desk.cli.start(&["apply"], Input::Terminal);
    apply.until("Only 'yes' will be accepted to approve.").await;
    apply.say("yes").await;
    apply.until("at the gate").await;
    apply.interrupt().await;
    apply.until("Do you want to cancel the remote operation?").await;
    apply.say("no").await;
    apply.end().await.says("The remote operation was not cancelled.");

    fs::write(&gate, "").unwrap();
    desk.run_becomes("applied").await;
    desk.is_unlocked().await;
    desk.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_over_https_cancels() {
    auto_approved_apply_is_cancelled(Engine::Terraform, Transport::Https, Input::Terminal).await;
}

/// As under a script: SIGINT to the group, and no terminal.
#[tokio::test(flavor = "multi_thread")]
async fn terraform_over_http_cancels_without_a_terminal() {
    auto_approved_apply_is_cancelled(Engine::Terraform, Transport::Http, Input::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_over_https_cancels() {
    auto_approved_apply_is_cancelled(Engine::Tofu, Transport::Https, Input::Terminal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_over_http_cancels_without_a_terminal() {
    auto_approved_apply_is_cancelled(Engine::Tofu, Transport::Http, Input::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_leaves_the_run_alone() {
    apply_goes_on_without_spectator(Engine::Terraform, Transport::Https).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_leaves_the_run_alone() {
    apply_goes_on_without_spectator(Engine::Tofu, Transport::Http).await;
}
