//! The control plane's disk fills up in the middle of an apply, for longer than a lease: a clear error, nothing lost,
//! and the run goes on once there is room.

use std::{
    fs,
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde_json::json;
use terrapool::agent::executor::Choice;

use crate::support::{
    cli::Input,
    disk::SmallDisk,
    poll::eventually,
    programs::{AgentProgram, ServerProgram},
};

const CONFIGURATION: &str = r#"
resource "terraform_data" "one" {
  provisioner "local-exec" {
    command = "echo at the gate; until [ -e gate ] || [ ! -e main.tf ]; do sleep 0.05; done; seq 1 20000"
  }
}

resource "terraform_data" "two" {
  depends_on = [terraform_data.one]
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_control_plane_loses_nothing() {
    let disk = SmallDisk::of(24 << 20);
    let server = ServerProgram::start(disk.path()).await;
    let place = server.admin.place("prod").await;
    let agent = AgentProgram::start(&server, &place, "first", Choice::Process).await;
    let cli = server.cli(&place);
    cli.write("main.tf", CONFIGURATION);
    cli.succeed(&["init"]).await;
    let workspace = server.admin.workspace("prod", "app").await["id"].as_str().unwrap().to_owned();
    let mut apply = cli.start(&["apply", "-auto-approve"], Input::None);
    apply.until("at the gate").await;
    let own = agent.data.path().join("copy-of-log");
    fs::hard_link(agent.job_dir().join("log"), &own).unwrap();

    let filler = disk.fill();
    let full = Instant::now();
    agent.open_gate("gate");
    let environment = json!({"data": {"type": "environments", "attributes": {"name": "other"}}});
    let refused = eventually("writing is refused", Duration::from_secs(30), async || {
        let answer = server.admin.try_request(Method::POST, "/api/iacp/v3/environments", &environment).await;
        if answer.0.is_server_error() { Ok(answer) } else { Err(answer) }
    })
    .await;
    assert_eq!(refused.0, StatusCode::INSUFFICIENT_STORAGE, "{}", refused.1);
    assert_eq!(refused.1["errors"][0]["code"], "out_of_space", "{}", refused.1);
    // Reading goes on, and nobody takes the silence of the disk for that of the agent.
    eventually("a lease is over", Duration::from_secs(60), async || {
        let run = server.admin.newest_run(&workspace).await;
        assert_eq!(run["attributes"]["status"], "applying", "{run}");
        if full.elapsed() > Duration::from_secs(33) { Ok(()) } else { Err(full.elapsed()) }
    })
    .await;

    fs::remove_file(filler).unwrap();
    let run = server.admin.run_becomes(&workspace, "applied", Duration::from_secs(60)).await;
    let (log, complete) = server.admin.log(&run, "apply").await;
    assert!(complete && log == fs::read(&own).unwrap(), "the log is not the engine's");
    assert_eq!(server.admin.resources(&workspace).await, ["one", "two"]);
    apply.end().await.expect(0).says("Apply complete! Resources: 2 added");
    server.admin.is_unlocked(&workspace).await;
    agent.leaves_nothing().await;
}
