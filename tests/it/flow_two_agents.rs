//! Plan and apply of one run on different agents: what an apply needs of its plan lies in the control plane.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use terrapool::agent::executor::Choice;

use crate::support::{
    agent::Agent,
    cli::{Engine, Input},
    desk::Desk,
    poll::eventually,
    server::Transport,
};

/// What is planned is a value that only the plan knows, so an apply that planned anew would show another one.
const CONFIGURATION: &str = r#"
locals {
  planned_at = plantimestamp()
}

resource "terraform_data" "planned" {
  input = local.planned_at
}

output "planned_at" {
  value = terraform_data.planned.output
}
"#;

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn the_apply_executes_exactly_the_plan_of_another_agent(choice: Choice) {
    let mut desk = Desk::new(Engine::Terraform, Transport::Http, choice).await;
    desk.cli.write("main.tf", CONFIGURATION);
    desk.cli.succeed(&["init"]).await;
    let mut apply = desk.cli.start(&["apply"], Input::Terminal);
    apply.until("Enter a value:").await;
    let planned = seconds_now();

    let second = Agent::named("second-agent", &desk.server, &desk.place, choice).await;
    std::mem::replace(&mut desk.agent, second).drain().await;
    // A plan that was made anew would carry another time.
    eventually("another second", Duration::from_secs(5), async || {
        let now = seconds_now();
        if now == planned { Err(now) } else { Ok(()) }
    })
    .await;
    apply.say("yes").await;
    let output = apply.end().await;
    output.expect(0).says("Apply complete! Resources: 1 added, 0 changed, 0 destroyed.");

    let applied = desk.cli.succeed(&["output", "-raw", "planned_at"]).await.stdout;
    assert!(
        output.stdout.contains(&format!("input  = \"{applied}\"")),
        "applied {applied}, planned:\n{}",
        output.stdout
    );
    desk.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_processes() {
    the_apply_executes_exactly_the_plan_of_another_agent(Choice::Process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_containers() {
    the_apply_executes_exactly_the_plan_of_another_agent(Choice::Docker).await;
}
