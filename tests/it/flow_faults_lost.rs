//! Agents that are killed or stand still for longer than their lease: nothing that was made is lost, the run ends or
//! is planned again, and a late agent changes nothing. All programs are real; the lease is the real one of 30 s.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use terrapool::agent::executor::Choice;

use crate::support::{
    cli::{Cli, Input, Running},
    poll::eventually,
    programs::{AgentProgram, Gate, ServerProgram},
};

/// A run of a lost agent has ended after this long: the promise is 45 s, doubled for a busy machine.
const LOST: Duration = Duration::from_secs(90);

/// A resource is recorded this long after it was made: the promise is 1 s, doubled for a busy machine.
const RECORDED: Duration = Duration::from_secs(2);

/// One resource that is there at once, then three that wait for a file of their name. The waiting ends with the
/// directory, too, so that a failed test leaves nothing running.
const CHAIN: &str = r#"
resource "terraform_data" "one" {}

resource "terraform_data" "two" {
  depends_on = [terraform_data.one]
  provisioner "local-exec" {
    command = "echo at gate two; until [ -e two ] || [ ! -e main.tf ]; do sleep 0.05; done"
  }
}

resource "terraform_data" "three" {
  depends_on = [terraform_data.two]
  provisioner "local-exec" {
    command = "echo at gate three; until [ -e three ] || [ ! -e main.tf ]; do sleep 0.05; done"
  }
}

resource "terraform_data" "four" {
  depends_on = [terraform_data.three]
  provisioner "local-exec" {
    command = "echo at gate four; until [ -e four ] || [ ! -e main.tf ]; do sleep 0.05; done"
  }
}
"#;

/// A server, its agent, and the CLI in an apply of [`CHAIN`].
struct Site {
    server: ServerProgram,
    agent: AgentProgram,
    cli: Cli,
    apply: Running,
    workspace: String,
    _data: TempDir,
}

impl Site {
    /// The apply stands at gate two.
    async fn applying(choice: Choice) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ServerProgram::start(data.path()).await;
        let place = server.admin.place("prod").await;
        let agent = AgentProgram::start(&server, &place, "first", choice).await;
        let cli = server.cli(&place);
        cli.write("main.tf", CHAIN);
        cli.succeed(&["init"]).await;
        let workspace = server.admin.workspace("prod", "app").await["id"].as_str().unwrap().to_owned();
        let mut apply = cli.start(&["apply", "-auto-approve"], Input::None);
        apply.until("at gate two").await;
        Self { server, agent, cli, apply, workspace, _data: data }
    }

    /// Waits until the run is lost, and looks at all that this must mean; how long it took.
    async fn run_is_lost(&self, since: Instant) -> Duration {
        let admin = &self.server.admin;
        let run = admin.run_becomes(&self.workspace, "errored", LOST).await;
        let took = since.elapsed();
        assert!(took < LOST, "the run was given up after {took:?}");
        assert_eq!(run["attributes"]["error-code"], "agent_lost", "{run}");
        admin.is_unlocked(&self.workspace).await;
        let (log, complete) = self.log().await;
        let note = "agent first has not been heard of for 30 s, so this apply was given up.";
        assert!(complete && log.contains(note), "{log}");
        took
    }

    async fn log(&self) -> (String, bool) {
        let run = self.server.admin.newest_run(&self.workspace).await;
        let (log, complete) = self.server.admin.log(&run, "apply").await;
        (String::from_utf8(log).unwrap(), complete)
    }
}

async fn killed_in_mid_apply(choice: Choice) {
    let mut site = Site::applying(choice).await;
    let mut ages = vec![site.server.admin.has_resource(&site.workspace, "one").await];
    for (gate, next) in [("two", "three"), ("three", "four")] {
        site.agent.open_gate(gate);
        ages.push(site.server.admin.has_resource(&site.workspace, gate).await);
        site.apply.until(&format!("at gate {next}")).await;
    }
    println!("{choice:?}: resources were in the control plane after {ages:?}");
    assert!(ages.iter().all(|age| *age < RECORDED), "{ages:?}");

    site.agent.kill().await;
    let killed = Instant::now();
    assert!(!site.agent.stages().is_empty(), "the engine outlives its agent");
    let took = site.run_is_lost(killed).await;
    println!("{choice:?}: the run was errored (agent_lost) after {took:?}");
    let Site { server, mut agent, cli, apply, workspace, _data } = site;
    let output = apply.end().await;
    output.expect(1).says("agent first has not been heard of for 30 s, so this apply was given up.");
    assert_eq!(server.admin.resources(&workspace).await.len(), 3);

    // The next life of the agent clears up, and the workspace goes on from the state there is.
    agent.start_again().await;
    agent.leaves_nothing().await;
    cli.write("four", "");
    cli.succeed(&["apply", "-auto-approve"]).await.says("Apply complete! Resources: 1 added, 0 changed, 0 destroyed.");
    agent.leaves_nothing().await;
}

/// Stopped for longer than its lease, then woken: it finds its job gone.
async fn zombie(choice: Choice) {
    let site = Site::applying(choice).await;
    let Site { server, agent, .. } = &site;
    server.admin.has_resource(&site.workspace, "one").await;
    let asleep = agent.running.as_ref().unwrap();
    asleep.signal(Signal::STOP);
    let stopped = Instant::now();
    // The engine goes on under its sleeping agent: there is something that the zombie would like to tell.
    agent.open_gate("two");
    let job = agent.job_dir();
    eventually("the engine stands at gate three", Duration::from_secs(30), async || {
        let log = fs::read_to_string(job.join("log")).unwrap();
        if log.contains("at gate three") { Ok(()) } else { Err(log) }
    })
    .await;
    let took = site.run_is_lost(stopped).await;
    println!("{choice:?}: the zombie's run was errored (agent_lost) after {took:?}");
    let before = (site.log().await, server.admin.state(&site.workspace).await);
    assert!(!before.0.0.contains("at gate three"), "{}", before.0.0);

    asleep.signal(Signal::CONT);
    agent.leaves_nothing().await;
    assert_eq!((site.log().await, server.admin.state(&site.workspace).await), before, "the zombie wrote");
    let run = server.admin.newest_run(&site.workspace).await;
    assert_eq!(run["attributes"]["status"], "errored", "{run}");
    assert_eq!(run["attributes"]["error-code"], "agent_lost", "{run}");
    // What it could not tell is kept for a person.
    let kept: Vec<_> = fs::read_dir(agent.data.path().join("undelivered")).unwrap().collect();
    let state = fs::read_to_string(kept[0].as_ref().unwrap().path()).unwrap();
    assert!(state.contains(r#""name": "two""#), "{state}");

    // It is a good agent again.
    let Site { agent, cli, apply, _data, .. } = site;
    apply.end().await.expect(1);
    for gate in ["two", "three", "four"] {
        cli.write(gate, "");
    }
    cli.succeed(&["apply", "-auto-approve"]).await.says("Apply complete! Resources: 3 added");
    agent.leaves_nothing().await;
}

/// The plan is planned again, once, by another agent, and the CLI sees it through.
async fn killed_in_mid_plan() {
    let data = tempfile::tempdir().unwrap();
    let server = ServerProgram::start(data.path()).await;
    let place = server.admin.place("prod").await;
    let mut first = AgentProgram::start(&server, &place, "first", Choice::Process).await;
    let pipe = data.path().join("gate");
    let gate = Gate::new(pipe.clone());
    let cli = server.cli(&place);
    let configuration = format!("resource \"terraform_data\" \"one\" {{\n  input = file({pipe:?})\n}}\n");
    cli.write("main.tf", &configuration);
    cli.succeed(&["init"]).await;
    let workspace = server.admin.workspace("prod", "app").await["id"].as_str().unwrap().to_owned();
    let mut plan = cli.start(&["plan"], Input::None);
    let shut = gate.reached().await;

    first.kill().await;
    let killed = Instant::now();
    assert!(!first.stages().is_empty(), "the engine outlives its agent");
    let second = AgentProgram::start(&server, &place, "second", Choice::Process).await;
    plan.until("agent first has not been heard of for 30 s; planning again (attempt 2 of 2).").await;
    let took = killed.elapsed();
    println!("the plan was given up after {took:?}");
    assert!(took < LOST, "the plan was given up after {took:?}");
    drop(shut);
    let open = gate.open();
    plan.end().await.expect(0).says("Plan: 1 to add, 0 to change, 0 to destroy.");
    let run = server.admin.run_becomes(&workspace, "planned_and_finished", Duration::from_secs(20)).await;
    assert_eq!(run["attributes"]["error-code"], Value::Null, "{run}");

    first.start_again().await;
    first.leaves_nothing().await;
    second.leaves_nothing().await;
    open.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn p09_agent_killed_mid_apply_is_errored_within_lease_bound() {
    // Side by side, because most of it is waiting for the leases to end.
    tokio::join!(killed_in_mid_apply(Choice::Process), killed_in_mid_apply(Choice::Docker));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_mid_plan_is_replaced_and_a_zombie_is_fenced() {
    tokio::join!(killed_in_mid_plan(), zombie(Choice::Process), zombie(Choice::Docker));
}
