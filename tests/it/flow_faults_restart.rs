//! An agent killed and started again within its lease, then the server killed and started again, both in the middle
//! of one apply: the same container or process goes on, nothing is lost, and the log is the engine's, byte by byte.

use std::{fs, time::Duration};

use terrapool::agent::executor::Choice;

use crate::support::{
    cli::Input,
    poll::eventually,
    programs::{AgentProgram, ServerProgram},
};

/// Speaks without end, until the file `gate` is there (or, after a failed test, the directory is gone).
const TALKATIVE: &str = r#"
resource "terraform_data" "first" {}

resource "terraform_data" "talks" {
  depends_on = [terraform_data.first]
  provisioner "local-exec" {
    command = "i=0; until [ -e gate ] || [ ! -e main.tf ]; do i=$((i+1)); echo line $i; sleep 0.02; done"
  }
}

resource "terraform_data" "last" {
  depends_on = [terraform_data.talks]
}
"#;

async fn restarted(choice: Choice) {
    let data = tempfile::tempdir().unwrap();
    let mut server = ServerProgram::start(data.path()).await;
    let place = server.admin.place("prod").await;
    let mut agent = AgentProgram::start(&server, &place, "first", choice).await;
    let cli = server.cli(&place);
    cli.write("main.tf", TALKATIVE);
    cli.succeed(&["init"]).await;
    let workspace = server.admin.workspace("prod", "app").await["id"].as_str().unwrap().to_owned();
    let mut apply = cli.start(&["apply", "-auto-approve"], Input::None);
    apply.until("line 20\n").await;

    // The job directory vanishes at the end; what the engine wrote stays under a second name.
    let own = agent.data.path().join("copy-of-log");
    fs::hard_link(agent.job_dir().join("log"), &own).unwrap();
    let written = || String::from_utf8(fs::read(&own).unwrap()).unwrap();
    let lines = || written().matches("line ").count();
    let more = async |what: &str| {
        let before = lines();
        eventually(what, Duration::from_secs(30), async || {
            let now = lines();
            if now > before + 20 { Ok(()) } else { Err((before, now)) }
        })
        .await;
    };
    let stage = agent.stages();
    assert!(!stage.is_empty());

    agent.kill().await;
    more("the engine goes on without its agent").await;
    agent.start_again().await;
    let now = lines();
    apply.until(&format!("line {now}\n")).await;
    assert_eq!(agent.stages(), stage, "the same container or processes go on");

    server.kill().await;
    more("the engine goes on without the control plane").await;
    server.start_again().await;
    let line = format!("line {}\n", lines());
    eventually("the log arrives again", Duration::from_secs(30), async || {
        let run = server.admin.newest_run(&workspace).await;
        let log = String::from_utf8(server.admin.log(&run, "apply").await.0).unwrap();
        if log.contains(&line) { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(agent.stages(), stage, "the same container or processes go on");

    // The CLI may have given up the moment that nobody answered it; that is its own affair.
    drop(apply);
    agent.open_gate("gate");
    let run = server.admin.run_becomes(&workspace, "applied", Duration::from_secs(20)).await;
    assert_eq!(server.admin.resources(&workspace).await, ["first", "last", "talks"]);
    server.admin.is_unlocked(&workspace).await;
    let (log, complete) = server.admin.log(&run, "apply").await;
    assert!(complete && String::from_utf8(log).unwrap() == written(), "{choice:?}: the log is not the engine's");
    agent.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_goes_on_while_agent_and_server_are_restarted() {
    restarted(Choice::Process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_goes_on_while_agent_and_server_are_restarted() {
    restarted(Choice::Docker).await;
}
