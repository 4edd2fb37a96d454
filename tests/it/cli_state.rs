//! The real terraform and tofu: what they do without a run.

use serde_json::{Value, json};

use crate::support::{
    cli::{Access, Cli, Engine, cloud_block},
    served::Served,
};

fn remote_block(access: &Access, organization: &str, workspace: &str) -> String {
    cloud_block(access, organization, workspace).replace("cloud {", "backend \"remote\" {")
}

/// A state with a plain and a sensitive output and one resource.
fn state(serial: i64) -> Value {
    json!({
        "version": 4, "terraform_version": "1.11.4", "serial": serial, "lineage": "5c9f3bd1-0000-4000-8000-000000000001",
        "outputs": {
            "greeting": {"value": "hello", "type": "string"},
            "secret": {"value": "hunter2", "type": "string", "sensitive": true},
        },
        "resources": [{
            "mode": "managed", "type": "terraform_data", "name": "one",
            "provider": "provider[\"terraform.io/builtin/terraform\"]",
            "instances": [{"schema_version": 0, "attributes": {"id": "x", "input": null, "output": null, "triggers_replace": null},
                "sensitive_attributes": []}],
        }],
        "check_results": null,
    })
}

async fn state_commands(engine: Engine, block: fn(&Access, &str, &str) -> String) {
    let served = Served::new().await;
    served.test.fixture().await;
    let cli = Cli::new(engine, &served.access);
    cli.write("main.tf", &block(&served.access, "prod", "fresh"));
    cli.run(&["init"]).await.expect(0);

    let workspace = served.test.get("/api/v2/organizations/prod/workspaces/fresh").await.expect(200).json();
    let attributes = &workspace["data"]["attributes"];
    let platform = if engine == Engine::Tofu { "opentofu" } else { "terraform" };
    assert_eq!(attributes["iac-platform"], platform);
    assert_ne!(attributes["terraform-version"], "latest", "the CLI names its version");

    let empty: Value = serde_json::from_str(&cli.run(&["state", "pull"]).await.expect(0).stdout).unwrap();
    assert_eq!(empty["serial"], 0);
    cli.write("new.tfstate", &state(3).to_string());
    cli.run(&["state", "push", "new.tfstate"]).await.expect(0);
    let pulled: Value = serde_json::from_str(&cli.run(&["state", "pull"]).await.expect(0).stdout).unwrap();
    assert_eq!(pulled["outputs"]["secret"]["value"], "hunter2");
    assert_eq!(cli.run(&["state", "list"]).await.expect(0).stdout.trim(), "terraform_data.one");

    assert_eq!(cli.run(&["output", "-raw", "greeting"]).await.expect(0).stdout, "hello");
    assert_eq!(cli.run(&["output", "-raw", "secret"]).await.expect(0).stdout, "hunter2");
    cli.run(&["output"]).await.expect(0).says("secret = <sensitive>");

    // an older state is refused, by the CLI itself or by us
    cli.write("old.tfstate", &state(1).to_string());
    cli.run(&["state", "push", "old.tfstate"]).await.expect(1);
    cli.run(&["state", "rm", "terraform_data.one"]).await.expect(0);
    assert_eq!(cli.run(&["state", "list"]).await.expect(0).stdout.trim(), "");
    let after = served.test.get("/api/v2/organizations/prod/workspaces/fresh").await.expect(200).json();
    assert_eq!(after["data"]["attributes"]["locked"], false, "every command gave its lock back");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_reads_and_writes_state_with_the_cloud_block() {
    state_commands(Engine::Terraform, cloud_block).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_reads_and_writes_state_with_the_remote_backend() {
    state_commands(Engine::Terraform, remote_block).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_reads_and_writes_state_with_the_cloud_block() {
    state_commands(Engine::Tofu, cloud_block).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_that_is_not_there_is_named() {
    let served = Served::new().await;
    let cli = Cli::new(Engine::Terraform, &served.access);
    cli.write("main.tf", &cloud_block(&served.access, "nowhere", "x"));
    cli.run(&["init"]).await.expect(1).says("nowhere");
    served.stop().await;
}
