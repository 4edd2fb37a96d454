//! The pool's token in its Secret: replaced in time and made again when somebody breaks it, without an agent noticing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::e2e::{World, condition, is_ready, name};

/// Runs until it is told to end, so that something is under way while tokens change.
const LONG: &str = r#"
resource "terraform_data" "long" {
  provisioner "local-exec" {
    command = "sleep 25"
  }
}
"#;

const SHORT: &str = r#"
resource "terraform_data" "short" {}
"#;

/// Words of agents whose heartbeats are not accepted or do not get through.
const TROUBLE: [&str; 3] = ["is not accepted", "no heartbeat got through", "registering again"];

async fn secret(world: &World) -> Value {
    world.read(&format!("/api/v1/namespaces/{}/secrets/keeper-agent-token", world.name())).await
}

/// The Secret once it holds something else than before, and the pool says that it is well.
async fn repaired(world: &World, before: &Value) -> Value {
    let found = world
        .until("the Secret is repaired", async || {
            let found = secret(world).await;
            let whole = found["data"]["token"].is_string() && found["data"]["url"] == before["data"]["url"];
            let ours = found["metadata"]["labels"]["terrapool.dev/pool"] == "keeper";
            let changed = found["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"];
            let digest = &found["metadata"]["annotations"]["terrapool.dev/token-sha256"];
            if whole && ours && changed && digest.is_string() { Ok(found) } else { Err(found["metadata"].clone()) }
        })
        .await;
    world.pool_becomes("keeper", "TokenReady", "True").await;
    found
}

fn no_trouble(world: &World) {
    let all =
        ["logs", "--selector=terrapool.dev/pool", "--container=agent", "--tail=-1", "--prefix", "--ignore-errors"];
    let log = String::from_utf8(world.kubectl().output(&all, "").stdout).unwrap();
    for words in TROUBLE {
        assert!(!log.contains(words), "an agent noticed: {words}\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_deleted_or_edited_is_repaired_and_agents_go_on() {
    let world = World::restricted().await;
    world.apply_pool("keeper", &json!({"agents": {"minIdle": 1}}));
    world.apply_link("app", "keeper");
    let agents = world.pods_become("keeper", "one is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    // A Pod is ready before its agent has registered, and an agent that only starts does need a token that is valid.
    world.pool_becomes("keeper", "Ready", "True").await;
    let first = secret(&world).await;

    world.kubectl().run(&["delete", "secret", "keeper-agent-token"]);
    let second = repaired(&world, &first).await;
    assert_ne!(second["data"]["token"], first["data"]["token"], "nobody can read a token again");

    let edit = json!({"data": {"token": "bm9uc2Vuc2U="}}).to_string();
    world.kubectl().run(&["patch", "secret", "keeper-agent-token", "--type=merge", "--patch", &edit]);
    let edited = secret(&world).await;
    let third = if edited["data"]["token"] == "bm9uc2Vuc2U=" {
        repaired(&world, &edited).await
    } else {
        repaired(&world, &second).await
    };
    assert!(third["data"]["token"] != second["data"]["token"] && third["data"]["token"] != "bm9uc2Vuc2U=", "{third}");

    world.kubectl().run(&["label", "secret", "keeper-agent-token", "terrapool.dev/pool-"]);
    let fourth = world
        .until("the label is back", async || {
            let found = secret(&world).await;
            let ours = found["metadata"]["labels"]["terrapool.dev/pool"] == "keeper";
            if ours { Ok(found) } else { Err(found["metadata"].clone()) }
        })
        .await;
    assert_eq!(fourth["data"]["token"], third["data"]["token"], "the token was whole: it stays");

    // The agent that registered with the first token is the one that runs this.
    no_trouble(&world);
    let cli = world.desk("app", SHORT).await;
    world.link_becomes("app", "Ready", "True").await;
    assert_eq!(name(&world.pods("keeper").await[0]), name(&agents[0]), "the agent was replaced");
    cli.succeed(&["apply", "-auto-approve"]).await.says("Apply complete!");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_rotated_under_load_without_a_failed_heartbeat() {
    let world = World::restricted().await;
    // A second after it was made, a token is due to be replaced.
    let token = json!({"ttl": "1h", "rotateBefore": "59m59s", "overlap": "1s"});
    world.apply_pool("keeper", &json!({"token": token, "agents": {"minIdle": 1}}));
    world.apply_link("app", "keeper");
    let workspace = world.make_workspace("app").await;
    let configuration = world.upload(&workspace, LONG).await;
    world.link_becomes("app", "Ready", "True").await;
    world.pods_become("keeper", "one is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    let run = world.queue(&workspace, &configuration).await;
    let mut tokens = BTreeSet::new();
    let mut killed = false;
    world
        .until("the run is applied", async || {
            tokens.insert(world.pool("keeper").await["status"]["token"]["id"].as_str().unwrap_or_default().to_owned());
            no_trouble(&world);
            // Whoever rotates may die in the middle of it.
            if !killed && tokens.len() == 3 {
                world.kill_operator().await;
                killed = true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            let found = world.run(&run).await;
            let status = &found["attributes"]["status"];
            assert_ne!(*status, "errored", "{found}");
            if *status == "applied" { Ok(()) } else { Err(status.clone()) }
        })
        .await;
    assert!(tokens.len() >= 4, "the token was not replaced under load: {tokens:?}");
    println!("tokens during one run: {}", tokens.len());
    let pool = world.pool_becomes("keeper", "Ready", "True").await;
    assert_eq!(condition(&pool, "TokenReady")["status"], "True");
    no_trouble(&world);
}
