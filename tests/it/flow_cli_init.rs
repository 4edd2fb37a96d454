//! The CLIs find the control plane, log in and make a workspace: over HTTPS, and over plain HTTP with a `host` block.

use crate::support::{
    cli::{Cli, Engine, cloud_block},
    server::{Server, Transport},
};

async fn init_makes_the_workspace(engine: Engine, transport: Transport) {
    let mut server = Server::start().await;
    let place = server.place("prod").await;
    let access = server.access(transport);
    let cli = Cli::new(engine, &access);
    cli.write("main.tf", &cloud_block(&access, &place.organization, "app"));
    cli.succeed(&["init"]).await.says("successfully initialized!");
    let workspaces = server.get("/api/iacp/v3/workspaces").await;
    assert_eq!(workspaces["data"][0]["attributes"]["name"], "app", "{workspaces}");
    cli.succeed(&["workspace", "show"]).await.says("app");

    // All of it outlives the server's process, and so do the CA and the login.
    server.restart().await;
    cli.run(&["state", "list"]).await.expect(1).says("No state file was found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_over_https() {
    init_makes_the_workspace(Engine::Terraform, Transport::Https).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terraform_over_http() {
    init_makes_the_workspace(Engine::Terraform, Transport::Http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_over_https() {
    init_makes_the_workspace(Engine::Tofu, Transport::Https).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tofu_over_http() {
    init_makes_the_workspace(Engine::Tofu, Transport::Http).await;
}
