//! A real agent in this process.

use std::time::Duration;

use secrecy::SecretString;
use tempfile::TempDir;
use terrapool::{
    agent::{self, AgentConfig, Error, executor::Choice},
    shutdown::Shutdown,
};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    cli::Engine,
    server::{Place, Server},
};

/// Longest time from start to the first claim.
const START: Duration = Duration::from_secs(60);

pub struct Agent {
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Error>>,
    _data: TempDir,
}

impl Agent {
    /// Starts an agent of the place's pool, and waits until it takes jobs.
    pub async fn start(server: &Server, place: &Place, choice: Choice) -> Self {
        Self::named("test-agent", server, place, choice).await
    }

    /// An agent of that name.
    pub async fn named(name: &str, server: &Server, place: &Place, choice: Choice) -> Self {
        let data = tempfile::tempdir().unwrap();
        let address = server.address().parse().unwrap();
        let token = SecretString::from(place.pool_token.clone());
        let mut config = AgentConfig::new(address, token, name.to_owned(), data.path().to_owned());
        config.executor.choice = choice;
        let programs = [Engine::Terraform, Engine::Tofu].map(Engine::program);
        config.executor.engines.path =
            programs.iter().filter_map(|program| Some(program.parent()?.to_owned())).collect();
        config.executor.engines.path.extend(["/usr/bin".into(), "/bin".into()]);
        let shutdown = Shutdown::new();
        let (ready, is_ready) = oneshot::channel();
        let run = agent::run(config, shutdown.clone(), |state| drop(ready.send(state.clone())));
        let mut task = tokio::spawn(run);
        tokio::select! {
            result = &mut task => panic!("the agent ended: {result:?}"),
            ready = tokio::time::timeout(START, is_ready) => drop(ready.unwrap_or_else(|_| panic!("the agent is not ready after {START:?}"))),
        }
        Self { shutdown, task, _data: data }
    }

    /// Drains: takes nothing new, finishes what runs, signs off.
    pub async fn drain(self) {
        self.shutdown.drain.cancel();
        self.task.await.unwrap().unwrap();
    }
}
