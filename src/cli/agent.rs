//! `terrapool agent run`

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Subcommand;
use url::Url;

use super::label;
use crate::{
    agent::{self, AgentConfig, executor::Choice},
    shutdown::Shutdown,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register in a pool and execute its runs, until told to stop: the first signal drains, the second stops.
    Run(Box<Args>),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address of the control plane.
    #[arg(long, env = "TERRAPOOL_URL", value_name = "URL")]
    url: Url,
    /// Token of the pool. Only as a variable, never as an argument.
    #[arg(skip = std::env::var("TERRAPOOL_POOL_TOKEN").ok())]
    token: Option<String>,
    /// File with the pool's token; the variable TERRAPOOL_POOL_TOKEN does the same.
    #[arg(long, env = "TERRAPOOL_POOL_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Name of the agent, unique in its pool. Default: this host's name.
    #[arg(long, env = "TERRAPOOL_AGENT_NAME")]
    name: Option<String>,
    /// Directory for jobs and the agent's identity.
    #[arg(long, env = "TERRAPOOL_AGENT_DATA", default_value = "/var/lib/terrapool-agent", value_name = "DIR")]
    data: PathBuf,
    /// Runs at a time.
    #[arg(long, env = "TERRAPOOL_AGENT_CONCURRENCY", default_value_t = 5)]
    concurrency: u32,
    /// How runs are executed: docker, process (no isolation), or auto: docker when it answers.
    #[arg(long, env = "TERRAPOOL_AGENT_EXECUTOR", default_value = "auto")]
    executor: Choice,
    /// Certificates to trust beside the system's (PEM).
    #[arg(long, env = "TERRAPOOL_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A label that is shown with the agent; may be given several times.
    #[arg(long = "label", env = "TERRAPOOL_AGENT_LABELS", value_name = "KEY=VALUE", value_parser = label, value_delimiter = ',')]
    labels: Vec<(String, String)>,
    /// Directory with terraform and tofu programs, as `terraform_1.11.4`.
    #[arg(long, env = "TERRAPOOL_AGENT_ENGINE_DIR", value_name = "DIR")]
    engine_dir: Option<PathBuf>,
    /// Who runs the containers' processes: root lets local-exec install packages.
    #[arg(long, env = "TERRAPOOL_AGENT_USER", default_value = "nonroot", value_parser = ["nonroot", "root"])]
    user: String,
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Run(args) = command;
    let token = super::secret("the pool's token", args.token, args.token_file.as_ref())?
        .context("no pool token: set TERRAPOOL_POOL_TOKEN or --token-file (a pool's page shows how to get one)")?;
    std::fs::create_dir_all(&args.data).with_context(|| format!("could not create {}", args.data.display()))?;
    let data = args.data.canonicalize().with_context(|| format!("could not find {}", args.data.display()))?;
    let name = args.name.unwrap_or_else(host_name);
    let mut config = AgentConfig::new(args.url, token, name, data);
    config.slots = args.concurrency.max(1);
    config.ca_file = args.ca_file;
    config.labels = args.labels.into_iter().collect();
    config.run_as_root = args.user == "root";
    config.executor.choice = args.executor;
    config.executor.engines = super::engines(args.engine_dir);

    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    agent::run(config, shutdown.clone(), |_| {}).await?;
    shutdown.finished(Duration::from_secs(10)).await;
    Ok(ExitCode::SUCCESS)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "agent".to_owned() } else { name.to_owned() }
}
