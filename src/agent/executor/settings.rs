//! What an agent's executor is set up with.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    super::{
        engine::Engines, file_watch::FileWatches, hooks::Hooks, provider_cache::ProviderCache, providers::Providers,
    },
    Isolation,
};
use crate::api::{job::Limits, sidecar};

/// What the user asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// Docker when it answers, else Process with a warning.
    #[default]
    Auto,
    Docker,
    Sidecar,
    Process,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "docker" => Ok(Self::Docker),
            "sidecar" => Ok(Self::Sidecar),
            "process" => Ok(Self::Process),
            other => Err(format!("`{other}` is not an executor: auto, docker, sidecar or process")),
        }
    }
}

/// What an agent's executor is set up with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub choice: Choice,
    /// The agent's data directory; absolute.
    pub data: PathBuf,
    /// The agent's instance id: containers and processes labelled with another one are never touched.
    pub instance: String,
    /// Address of the Docker engine; absent: `unix:///var/run/docker.sock`.
    pub docker_host: Option<String>,
    /// Docker: longest time of one call; one that starts a container and takes longer casts doubt on the engine.
    pub call_timeout: Duration,
    /// Docker: how run containers are kept apart from host and network.
    pub isolation: Isolation,
    /// Docker: containers that are kept waiting for a job.
    pub warm: usize,
    /// Image for jobs that name none; absent: a minimal image made from this host's files.
    pub default_image: Option<String>,
    /// Sidecar: the volume that agent and run container share; absolute.
    pub volume: PathBuf,
    /// Sidecar: the image that the run container was made from; absent: one for jobs that name none.
    pub run_image: Option<String>,
    /// Docker: runs are root, whatever their pool says. Sidecar: the run container's user must be root.
    pub run_as_root: bool,
    /// Used where a job sets no limit of its own.
    pub limits: Limits,
    /// Longest time for pulling an image.
    pub pull_timeout: Duration,
    /// Time between SIGINT and SIGKILL.
    pub grace: Duration,
    /// Where terraform and tofu are looked for.
    pub engines: Engines,
    /// Where runs get their providers from.
    pub providers: Providers,
    /// What runs have fetched is kept there for others; absent: nowhere. Docker and Process, unless their providers come
    /// from a directory.
    pub provider_cache: Option<Arc<ProviderCache>>,
    /// What runs before and after the engine's commands.
    pub hooks: Hooks,
    /// Where the control plane is, for runs to know: `host` or `host:port`.
    pub hostname: Option<String>,
    /// How it is learnt that a stage has written its result.
    pub watches: FileWatches,
}

/// Where a Docker engine listens that nobody has set up otherwise.
pub(super) const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Longest time of one call to it, unless the settings say otherwise. Under load it takes long to start a container.
pub(super) const CALL: Duration = Duration::from_secs(120);

impl Settings {
    /// The defaults for an agent whose data is at `data`.
    #[must_use]
    pub fn new(data: PathBuf, instance: String) -> Self {
        Self {
            choice: Choice::default(),
            data,
            instance,
            docker_host: None,
            call_timeout: CALL,
            isolation: Isolation::default(),
            warm: 0,
            default_image: None,
            volume: sidecar::VOLUME.into(),
            run_image: None,
            run_as_root: false,
            limits: Limits::default(),
            pull_timeout: Duration::from_secs(600),
            grace: Duration::from_secs(60),
            engines: Engines::default(),
            providers: Providers::default(),
            provider_cache: None,
            hooks: Hooks::default(),
            hostname: None,
            watches: FileWatches::default(),
        }
    }

    /// Address of the Docker engine.
    #[must_use]
    pub fn docker_host(&self) -> &str {
        self.docker_host.as_deref().unwrap_or(DEFAULT_HOST)
    }
}
