//! Runs that need root: possible where somebody has said so twice, impossible everywhere else.

use serde_json::json;

use crate::support::e2e::{World, condition};

const CONFIGURATION: &str = r#"
resource "terraform_data" "root" {
  provisioner "local-exec" {
    command = "id -u && touch owned && chown 12345:12345 owned && stat -c 'owner %u' owned && touch /usr/bin/installed && ls /usr/bin/installed"
  }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn root_works_in_an_acknowledged_pool_and_fails_clearly_in_another() {
    let world = World::new("baseline").await;
    let root = json!({"user": "Root", "image": "terraform:test"});
    let pool = json!({
        "apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "rooted"}, "spec": {"runs": root},
    });
    let refused = world.kubectl().output(&["apply", "--filename", "-"], &pool.to_string());
    assert!(!refused.status.success());
    let complaint = String::from_utf8_lossy(&refused.stderr);
    assert!(complaint.contains("acknowledgeRoot"), "{complaint}");

    world.apply_pool("rooted", &json!({"runs": {"user": "Root", "acknowledgeRoot": true}}));
    world.apply_pool("plain", &json!({}));
    world.apply_link("with-root", "rooted");
    world.apply_link("without", "plain");
    let privileged = world.pool_becomes("rooted", "PrivilegedMode", "True").await;
    assert_eq!(condition(&privileged, "PrivilegedMode")["reason"], "RootAcknowledged", "{privileged}");

    let with_root = world.desk("with-root", CONFIGURATION).await;
    world.link_becomes("with-root", "Ready", "True").await;
    with_root.succeed(&["apply", "-auto-approve"]).await.says("owner 12345").says("Apply complete!");
    let without = world.desk("without", CONFIGURATION).await;
    world.link_becomes("without", "Ready", "True").await;
    let output = without.run(&["apply", "-auto-approve"]).await;
    output.expect(1).says("65532").says("Operation not permitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_allows_no_root_says_so_on_the_pool() {
    let world = World::restricted().await;
    world.apply_pool("rooted", &json!({"runs": {"user": "Root", "acknowledgeRoot": true}}));
    world
        .until("the refusal is shown", async || {
            let pool = world.pool("rooted").await;
            let available = condition(&pool, "AgentsAvailable");
            let told =
                available["reason"] == "Refused" && available["message"].as_str().unwrap().contains("PodSecurity");
            if told { Ok(()) } else { Err(pool["status"].clone()) }
        })
        .await;
    assert_eq!(world.pods("rooted").await.len(), 0);
}
