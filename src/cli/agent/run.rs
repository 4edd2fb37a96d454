//! `terrapool agent run`

use std::{convert::Infallible, os::unix::fs::DirBuilderExt, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use url::Url;

use super::super::{engines, label, secret};
use crate::{
    agent::{self, AgentConfig, executor::Choice},
    api::sidecar,
    crd::common::Span,
    shutdown::Shutdown,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
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
    pub(super) data: PathBuf,
    /// Runs at a time.
    #[arg(long, env = "TERRAPOOL_AGENT_CONCURRENCY", default_value_t = 5)]
    concurrency: u32,
    /// How runs are executed: docker, sidecar (in the other container of the agent's Pod), process (no isolation), or
    /// auto: docker when it answers.
    #[arg(long, env = "TERRAPOOL_AGENT_EXECUTOR", default_value = "auto")]
    pub(super) executor: Choice,
    /// Sidecar: the volume that `place-runner` prepared.
    #[arg(long, env = "TERRAPOOL_AGENT_SIDECAR_DIR", default_value = sidecar::VOLUME, value_name = "DIR")]
    sidecar_dir: PathBuf,
    /// Sidecar: image of the run container, as jobs name it; jobs of other images are left to others. Default: jobs
    /// that name no image are taken.
    #[arg(long, env = "TERRAPOOL_AGENT_RUN_IMAGE", value_name = "IMAGE")]
    run_image: Option<String>,
    /// Take one job, deliver everything, deregister and exit. The sidecar executor does so in any case.
    #[arg(long, env = "TERRAPOOL_AGENT_ONCE")]
    once: bool,
    /// With --once: leave when there was no job in so long a time, as 10m.
    #[arg(long, env = "TERRAPOOL_AGENT_IDLE_TIMEOUT", value_name = "DURATION")]
    pub(super) idle_timeout: Option<Span>,
    /// After the first signal, interrupt what still runs after so long a time, as 15m. Default: let it finish.
    #[arg(long, env = "TERRAPOOL_AGENT_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub(super) drain_timeout: Option<Span>,
    /// Certificates to trust beside the system's (PEM).
    #[arg(long, env = "TERRAPOOL_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A label that is shown with the agent; may be given several times.
    #[arg(long = "label", env = "TERRAPOOL_AGENT_LABELS", value_name = "KEY=VALUE", value_parser = label, value_delimiter = ',')]
    pub(super) labels: Vec<(String, String)>,
    /// Directory with terraform and tofu programs, as `terraform_1.11.4`.
    #[arg(long, env = "TERRAPOOL_AGENT_ENGINE_DIR", value_name = "DIR")]
    engine_dir: Option<PathBuf>,
    /// Who runs the containers' processes: root lets local-exec install packages.
    #[arg(long, env = "TERRAPOOL_AGENT_USER", default_value = "nonroot", value_parser = ["nonroot", "root"])]
    pub(super) user: String,
    #[command(flatten)]
    isolation: super::isolation::IsolationArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let token = secret("the pool's token", args.token, args.token_file.as_ref())?
        .context("no pool token: set TERRAPOOL_POOL_TOKEN or --token-file (a pool's page shows how to get one)")?;
    let mut private = std::fs::DirBuilder::new();
    private
        .recursive(true)
        .mode(0o700)
        .create(&args.data)
        .with_context(|| format!("could not create {}", args.data.display()))?;
    let data = args.data.canonicalize().with_context(|| format!("could not find {}", args.data.display()))?;
    let name = args.name.unwrap_or_else(super::host_name);
    let mut config = AgentConfig::new(args.url, token, name, data);
    config.slots = args.concurrency.max(1);
    config.ca_file = args.ca_file;
    config.labels = args.labels.into_iter().collect();
    config.run_as_root = args.user == "root";
    config.once = args.once;
    config.idle_timeout = args.idle_timeout.map(|span| span.as_duration());
    config.executor.choice = args.executor;
    config.executor.volume = std::path::absolute(&args.sidecar_dir)?;
    config.executor.run_image = args.run_image;
    config.executor.engines = engines(args.engine_dir);
    args.isolation.apply(&mut config.executor);

    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    tokio::select! {
        ended = agent::run(config, shutdown.clone(), |_| {}) => ended?,
        never = stop_in_time(&shutdown, args.drain_timeout) => match never {},
    }
    shutdown.finished(Duration::from_secs(10)).await;
    Ok(ExitCode::SUCCESS)
}

/// As a second signal does, some time after the first.
async fn stop_in_time(shutdown: &Shutdown, limit: Option<Span>) -> Infallible {
    if let Some(limit) = limit {
        shutdown.drain.cancelled().await;
        tokio::time::sleep(limit.as_duration()).await;
        tracing::warn!(limit = %limit, "what still runs is stopped");
        shutdown.stop.cancel();
    }
    std::future::pending().await
}
