//! `terrapool agent run`

use std::{
    convert::Infallible, net::SocketAddr, os::unix::fs::DirBuilderExt, path::PathBuf, process::ExitCode, time::Duration,
};

use anyhow::Context;
use secrecy::SecretString;
use url::Url;

use super::{
    super::{label, secret},
    engines::{EngineArgs, Settled},
};
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
    pub(super) url: Url,
    /// Token of the pool. Only as a variable, never as an argument.
    #[arg(skip = std::env::var("TERRAPOOL_POOL_TOKEN").ok())]
    pub(super) token: Option<String>,
    /// File with the pool's token; the variable TERRAPOOL_POOL_TOKEN does the same.
    #[arg(long, env = "TERRAPOOL_POOL_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Name of the agent, unique in its pool. Default: this host's name.
    #[arg(long, env = "TERRAPOOL_AGENT_NAME")]
    name: Option<String>,
    /// Directory for jobs and the agent's identity.
    #[arg(long, env = "TERRAPOOL_AGENT_DATA", default_value = "/var/lib/terrapool-agent", value_name = "DIR")]
    pub(super) data: PathBuf,
    /// Runs at a time.
    #[arg(long, env = "TERRAPOOL_AGENT_CONCURRENCY", default_value_t = 5)]
    pub(super) concurrency: u32,
    /// How runs are executed: docker, sidecar (in the other container of the agent's Pod), process (no isolation), or
    /// auto: docker when it answers.
    #[arg(long, env = "TERRAPOOL_AGENT_EXECUTOR", default_value = "auto")]
    pub(super) executor: Choice,
    /// Address of the Docker engine. Default: unix:///var/run/docker.sock
    #[arg(long, env = "TERRAPOOL_AGENT_DOCKER_HOST", value_name = "ADDRESS")]
    docker_host: Option<String>,
    /// Sidecar: the volume that `place-runner` prepared.
    #[arg(long, env = "TERRAPOOL_AGENT_SIDECAR_DIR", default_value = sidecar::VOLUME, value_name = "DIR")]
    sidecar_dir: PathBuf,
    /// Sidecar: image of the run container, as jobs name it; jobs of other images are left to others. Default: jobs
    /// that name no image are taken.
    #[arg(long, env = "TERRAPOOL_AGENT_RUN_IMAGE", value_name = "IMAGE")]
    run_image: Option<String>,
    /// Take one job, deliver everything, deregister and exit. The sidecar executor does so in any case.
    #[arg(long, env = "TERRAPOOL_AGENT_ONCE")]
    pub(super) once: bool,
    /// Leave when there was no job in so long a time, as 10m.
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
    /// Serve metrics for Prometheus there, as 127.0.0.1:9464, over plain HTTP. Default: nowhere.
    #[arg(long, env = "TERRAPOOL_AGENT_METRICS_ADDRESS", value_name = "ADDRESS")]
    metrics_address: Option<SocketAddr>,
    #[command(flatten)]
    engines: EngineArgs,
    /// Who runs the containers' processes: root lets local-exec install packages.
    #[arg(long, env = "TERRAPOOL_AGENT_USER", default_value = "nonroot", value_parser = ["nonroot", "root"])]
    pub(super) user: String,
    #[command(flatten)]
    otlp: crate::cli::otlp::OtlpArgs,
    #[command(flatten)]
    hooks: super::hooks::HookArgs,
    #[command(flatten)]
    isolation: super::isolation::IsolationArgs,
}

impl Args {
    /// What the agent is started with, and how long it may drain. Makes nothing.
    pub(super) fn config(self, token: SecretString) -> anyhow::Result<(AgentConfig, Option<Span>)> {
        let data = std::path::absolute(&self.data)?;
        let name = self.name.unwrap_or_else(super::host_name);
        let Settled { engines, providers, provider_cache } =
            self.engines.into_settings(&data, self.ca_file.as_deref())?;
        let mut config = AgentConfig::new(self.url, token, name, data);
        config.slots = self.concurrency.max(1);
        config.ca_file = self.ca_file;
        config.labels = self.labels.into_iter().collect();
        config.run_as_root = self.user == "root";
        config.once = self.once;
        config.idle_timeout = self.idle_timeout.map(|span| span.as_duration());
        config.metrics = self.metrics_address;
        config.executor.choice = self.executor;
        config.executor.docker_host = self.docker_host;
        config.executor.volume = std::path::absolute(&self.sidecar_dir)?;
        config.executor.run_image = self.run_image;
        config.executor.engines = engines;
        config.executor.providers = providers;
        config.executor.provider_cache = provider_cache;
        config.executor.hooks = self.hooks.hooks()?;
        self.isolation.apply(&mut config.executor);
        Ok((config, self.drain_timeout))
    }
}

pub(super) async fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    let token = secret("the pool's token", args.token.take(), args.token_file.as_ref())?
        .context("no pool token: set TERRAPOOL_POOL_TOKEN or --token-file (a pool's page shows how to get one)")?;
    let mut private = std::fs::DirBuilder::new();
    private
        .recursive(true)
        .mode(0o700)
        .create(&args.data)
        .with_context(|| format!("could not create {}", args.data.display()))?;
    args.data = args.data.canonicalize().with_context(|| format!("could not find {}", args.data.display()))?;
    let trace = args.otlp.start(args.ca_file.as_deref())?;
    let (mut config, drain_timeout) = args.config(token)?;
    config.trace = trace.clone();
    config.service = std::env::var_os("NOTIFY_SOCKET").is_some();

    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    shutdown.on_leave_signal()?;
    let ended = tokio::select! {
        ended = agent::run(config, shutdown.clone(), |_| {}) => ended,
        never = stop_in_time(&shutdown, drain_timeout) => match never {},
    };
    if ended.is_ok() {
        shutdown.finished(Duration::from_secs(10)).await;
    }
    trace.close().await;
    ended?;
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
