//! All that a user of the CLI has, in one value.

use std::time::Duration;

use serde_json::Value;
use terrapool::agent::executor::Choice;

use super::{
    agent::Agent,
    cli::{Cli, Engine, cloud_block},
    poll::eventually,
    server::{Place, Server, Transport},
};

/// A user's desk: server and agent run, and the working directory points at the workspace `app`.
pub struct Desk {
    pub server: Server,
    pub agent: Agent,
    pub place: Place,
    pub cli: Cli,
}

impl Desk {
    /// Starts everything, and writes the `cloud` block.
    pub async fn new(engine: Engine, transport: Transport, choice: Choice) -> Self {
        let server = Server::start().await;
        let place = server.place("prod").await;
        let agent = Agent::start(&server, &place, choice).await;
        let access = server.access(transport);
        let cli = Cli::new(engine, &access);
        cli.write("cloud.tf", &cloud_block(&access, &place.organization, "app"));
        Self { server, agent, place, cli }
    }

    /// The workspace as `/api/v2` shows it.
    pub async fn workspace(&self) -> Value {
        self.server.get(&format!("/api/v2/organizations/{}/workspaces/app", self.place.organization)).await
    }

    /// Once the run of the CLI has ended, the workspace is free again.
    pub async fn is_unlocked(&self) {
        eventually("the workspace is unlocked", Duration::from_secs(10), async || {
            let workspace = self.workspace().await;
            if workspace["data"]["attributes"]["locked"] == false { Ok(()) } else { Err(workspace) }
        })
        .await;
    }

    /// The workspace's runs, the newest first.
    pub async fn runs(&self) -> Vec<Value> {
        let workspace = self.workspace().await;
        let id = workspace["data"]["id"].as_str().unwrap();
        let runs = self.server.get(&format!("/api/v2/workspaces/{id}/runs")).await;
        runs["data"].as_array().unwrap().clone()
    }

    /// Waits until the newest run has this status.
    pub async fn run_becomes(&self, status: &str) {
        eventually(&format!("the run is {status}"), Duration::from_secs(60), async || {
            let runs = self.runs().await;
            if runs[0]["attributes"]["status"] == status { Ok(()) } else { Err(runs[0]["attributes"].clone()) }
        })
        .await;
    }

    /// Everything ends in good order.
    pub async fn leave(mut self) {
        self.agent.drain().await;
        self.server.stop().await;
    }
}
