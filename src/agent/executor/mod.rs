//! Turns a claimed job into a running, hardened container or process. The order of a job's calls:
//!
//! ```text
//! Executor::connect → placement → JobDir::create → JobDir::unpack_configuration/unpack_plan/put_state
//!   → prepare → start → wait (with signal, as often as wanted) → result::conclude → remove → JobDir::remove
//! ```
//!
//! Every call may be repeated, by another process of the same agent too: names and labels of containers, and
//! the files beside a job directory, are all there is to remember.

mod docker;
mod end;
mod error;
mod isolation;
#[cfg(test)]
#[path = "../../runner/memory.rs"]
mod memory;
mod process;
mod runner;
mod settings;
mod sidecar;
#[path = "../../runner/volume.rs"]
pub mod volume;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use docker::{Cause as DockerCause, Docker, Room, look};
pub use error::Error;
pub(super) use error::patiently;
pub use isolation::{Isolation, NETWORK, Pull, Users};
pub use process::Process;
pub use settings::{Choice, Settings};
pub use sidecar::{Sidecar, place_runner};

use self::error::Result;
use super::{
    jobdir::{JobDir, Placement},
    provider_cache::ProviderCache,
    steps,
};
use crate::{
    api::{
        agent::{ExecutorKind, JobRef},
        job::JobSpec,
    },
    ids::JobId,
    telemetry::Chain,
};

/// How often it is looked whether what was asked of engine or runner has come about.
const POLL: Duration = Duration::from_millis(20);

/// Time for the runner to kill its stage and write its result, before it is killed itself.
const KILL_PATIENCE: Duration = Duration::from_secs(3);

/// Sockets of providers lie in `TMPDIR`, and the address of a socket has at most 108 bytes.
const LONGEST_TMP: usize = 80;

/// How stages are run.
#[derive(Debug)]
pub enum Executor {
    Docker(Box<Docker>),
    /// In the other container of the agent's Pod.
    Sidecar(Box<Sidecar>),
    /// No isolation: an explicit choice, or what is left without Docker.
    Process(Box<Process>),
}

/// Result of [`Executor::connect`].
#[derive(Debug)]
pub struct Connected {
    pub executor: Executor,
    /// One plain sentence for the user when the executor is less than was hoped for.
    pub warning: Option<String>,
}

/// What a job needs beside its directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The image to start; absent for Process.
    pub image: Option<String>,
    /// Digest of that image, for the run's record.
    pub image_digest: Option<String>,
    /// The engine on this host; absent: the image's own.
    pub engine: Option<PathBuf>,
}

/// Sets the job directory up for a stage that sees it where the agent does.
async fn set_up_in_place(dir: &JobDir, spec: &JobSpec, prepared: &Prepared, settings: &Settings) -> Result<()> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let root = text(dir.path());
    let tmp = Some(format!("{root}/tmp")).filter(|tmp| tmp.len() <= LONGEST_TMP);
    let engine = prepared.engine.as_deref().map(text);
    let cli_config = settings.providers.in_place();
    let provider_cache = settings.provider_cache.as_ref().map(|cache| text(cache.dir()));
    let (engine, tmp, provider_cache) = (engine.as_deref(), tmp.as_deref(), provider_cache.as_deref());
    set_up(dir, spec, settings, Seen { dir: &root, engine, tmp, cli_config, provider_cache }).await
}

/// What a stage sees, from where it runs.
struct Seen<'a> {
    dir: &'a str,
    engine: Option<&'a str>,
    tmp: Option<&'a str>,
    /// The engine's own configuration.
    cli_config: Option<String>,
    /// The packages of [`Settings::provider_cache`].
    provider_cache: Option<&'a str>,
}

/// Sets the job directory up for a stage that sees so much.
async fn set_up(dir: &JobDir, spec: &JobSpec, settings: &Settings, seen: Seen<'_>) -> Result<()> {
    if let Some(config) = &seen.cli_config {
        dir.put_cli_config(config).await?;
    }
    let provider_cache = match (&settings.provider_cache, seen.provider_cache) {
        (Some(cache), Some(seen)) => cache.link(dir, spec, seen).await,
        _ => false,
    };
    let hooks = settings.hooks.of(spec.stage).await?;
    let facts = steps::Facts {
        dir: seen.dir,
        engine: seen.engine,
        tmp: seen.tmp,
        grace_seconds: settings.grace.as_secs(),
        cli_config: seen.cli_config.is_some(),
        provider_cache,
        hooks: &hooks,
        hostname: settings.hostname.as_deref(),
    };
    let steps = steps::plan(spec, &facts)?;
    dir.set_up(steps, hooks).await?;
    Ok(())
}

/// How a stage's container or process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The runner wrote its result.
    Result,
    /// The container or process is gone, and there is no result.
    Gone {
        /// Exit code, or 128 + signal, where it is known.
        code: Option<i64>,
        /// Killed because it took more memory than its limit.
        out_of_memory: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT to the engine; SIGKILL after the grace time.
    Interrupt,
    /// SIGKILL to everything that the stage started.
    Kill,
}

/// The cache of providers, when there is to be one. Runs go on without it when it cannot be used.
async fn usable(settings: &Settings) -> Option<Arc<ProviderCache>> {
    // Packages of a directory are here already, and runs use them where they are.
    let wanted = settings.choice != Choice::Sidecar && settings.providers.directory().is_none();
    let cache = settings.provider_cache.clone().filter(|_| wanted)?;
    match cache.open().await {
        Ok(()) => Some(cache),
        Err(error) => {
            let path = cache.dir().display();
            tracing::warn!(%path, error = %Chain(&error), "runs go on without a cache of providers: it cannot be used; name another directory (--cache-dir)");
            None
        }
    }
}

impl Executor {
    /// Finds out how stages can be run on this host.
    ///
    /// # Errors
    /// When Docker was asked for and does not answer, or the data directory cannot be used.
    pub async fn connect(mut settings: Settings) -> Result<Connected> {
        settings.provider_cache = usable(&settings).await;
        // Docker alone can block anything.
        let blocks = settings.isolation.require_block;
        match settings.choice {
            Choice::Process | Choice::Sidecar if blocks => Err(Error::Refused(
                "--require-network-block needs the docker executor: no other can keep runs from metadata addresses and \
                 this host"
                    .to_owned(),
            )),
            Choice::Process => {
                Ok(Connected { executor: Self::Process(Box::new(Process::new(settings)?)), warning: None })
            }
            Choice::Sidecar => {
                Ok(Connected { executor: Self::Sidecar(Box::new(Sidecar::connect(settings)?)), warning: None })
            }
            Choice::Docker => Self::docker(settings).await,
            // An engine that answers and cannot do what is asked for is not to be replaced by one that does less.
            Choice::Auto => match Self::docker(settings.clone()).await {
                Err(error @ Error::NoDocker { .. }) if !blocks => Ok(Connected {
                    executor: Self::Process(Box::new(Process::new(settings)?)),
                    warning: Some(format!(
                        "{error}. Runs are started as plain processes of this user, without isolation."
                    )),
                }),
                connected => connected,
            },
        }
    }

    async fn docker(settings: Settings) -> Result<Connected> {
        let (docker, warning) = Docker::connect(settings).await?;
        Ok(Connected { executor: Self::Docker(Box::new(docker)), warning })
    }

    #[must_use]
    pub fn kind(&self) -> ExecutorKind {
        match self {
            Self::Docker(_) => ExecutorKind::Docker,
            Self::Sidecar(_) => ExecutorKind::Sidecar,
            Self::Process(_) => ExecutorKind::Process,
        }
    }

    /// What its runs have fetched is kept there for others.
    #[must_use]
    pub fn provider_cache(&self) -> Option<&ProviderCache> {
        match self {
            Self::Docker(docker) => docker.provider_cache(),
            Self::Sidecar(_) => None,
            Self::Process(process) => process.provider_cache(),
        }
    }

    /// Resolves when stages can be run: no job is to be claimed before.
    ///
    /// # Errors
    /// When that will never be.
    pub async fn ready(&self) -> Result<()> {
        match self {
            Self::Docker(_) | Self::Process(_) => Ok(()),
            Self::Sidecar(sidecar) => sidecar.ready().await,
        }
    }

    /// The images whose jobs can be run, for [`crate::api::agent::ClaimRequest::images`].
    #[must_use]
    pub fn images(&self) -> Option<Vec<Option<String>>> {
        match self {
            Self::Docker(_) | Self::Process(_) => None,
            Self::Sidecar(sidecar) => Some(vec![sidecar.image()]),
        }
    }

    /// Resolves when no stage can be run any more. After [`Self::ready`].
    pub async fn lost(&self) {
        match self {
            Self::Docker(_) | Self::Process(_) => std::future::pending().await,
            Self::Sidecar(sidecar) => sidecar.lost().await,
        }
    }

    /// Whether another stage can be started here now.
    ///
    /// # Errors
    /// [`Error::NoDocker`] while the engine of containers is away, [`Error::Refused`] while it seems to hang.
    pub async fn answers(&self) -> Result<()> {
        match self {
            Self::Docker(docker) => docker.answers().await,
            Self::Sidecar(_) | Self::Process(_) => Ok(()),
        }
    }

    /// Resolves when that has to be asked again. Cancel-safe.
    pub async fn until_away(&self) {
        match self {
            Self::Docker(docker) => docker.until_away().await,
            Self::Sidecar(_) | Self::Process(_) => std::future::pending().await,
        }
    }

    /// Where this job's files must lie and who owns them: for [`JobDir::create`].
    #[must_use]
    pub fn placement(&self, spec: &JobSpec) -> Placement {
        match self {
            Self::Docker(docker) => docker.placement(spec),
            Self::Sidecar(sidecar) => sidecar.placement(),
            Self::Process(_) => Placement::of(ExecutorKind::Process),
        }
    }

    /// Has the image and the engine at hand. May take minutes when an image is pulled.
    ///
    /// # Errors
    /// [`Error::Image`] and [`Error::Engine`] say what is missing and the mend.
    pub async fn prepare(&self, spec: &JobSpec) -> Result<Prepared> {
        match self {
            Self::Docker(docker) => docker.prepare(spec).await,
            Self::Sidecar(sidecar) => sidecar.prepare(spec).await,
            Self::Process(process) => process.prepare(spec).await,
        }
    }

    /// Writes the steps and starts the stage. Once started it is never started again, whatever became of it.
    ///
    /// # Errors
    /// When it could not be started; nothing runs then.
    pub async fn start(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        match self {
            Self::Docker(docker) => docker.start(dir, spec, prepared).await,
            Self::Sidecar(sidecar) => sidecar.start(dir, spec, prepared).await,
            Self::Process(process) => process.start(dir, spec, prepared).await,
        }
    }

    /// Resolves when the result appears, or the container or process is gone. Cancel-safe.
    ///
    /// # Errors
    /// When Docker cannot be asked any more; call it again later.
    pub async fn wait(&self, dir: &JobDir, spec: &JobSpec) -> Result<Exit> {
        match self {
            Self::Docker(docker) => docker.wait(dir, spec).await,
            Self::Sidecar(sidecar) => sidecar.wait(dir).await,
            Self::Process(process) => process.wait(dir, spec).await,
        }
    }

    /// The stage's container or process exists and runs.
    ///
    /// # Errors
    /// When Docker cannot be asked.
    pub async fn is_alive(&self, dir: &JobDir, spec: &JobSpec) -> Result<bool> {
        match self {
            Self::Docker(docker) => docker.is_alive(spec).await,
            Self::Sidecar(sidecar) => Ok(sidecar.is_alive()),
            Self::Process(process) => Ok(process.is_alive(dir, spec)),
        }
    }

    /// Asks the stage to end, or ends it. Harmless when it has ended.
    ///
    /// # Errors
    /// When the request could not be handed over.
    pub async fn signal(&self, dir: &JobDir, spec: &JobSpec, signal: Signal) -> Result<()> {
        match self {
            Self::Docker(docker) => docker.signal(dir, spec, signal).await,
            Self::Sidecar(sidecar) => sidecar.signal(dir, signal).await,
            Self::Process(process) => process.signal(dir, spec, signal).await,
        }
    }

    /// Kills what still runs of the stage and removes its container; the job directory stays. Harmless when repeated.
    ///
    /// # Errors
    /// When Docker refuses or does not answer.
    pub async fn remove(&self, dir: &JobDir, spec: &JobSpec) -> Result<()> {
        match self {
            Self::Docker(docker) => docker.remove(spec).await,
            Self::Sidecar(sidecar) => sidecar.remove(dir).await,
            Self::Process(process) => process.remove(dir, spec).await,
        }
    }

    /// Has containers waiting for jobs, as many as the settings want and `room` allows; those of no use are removed. Makes
    /// one at most; says whether there is more to do at once.
    ///
    /// # Errors
    /// When Docker refuses or does not answer; call it again later.
    pub async fn keep_warm(&self, room: Room) -> Result<bool> {
        match self {
            Self::Docker(docker) => docker.keep_warm(room).await,
            Self::Sidecar(_) | Self::Process(_) => Ok(false),
        }
    }

    /// Resolves when [`Self::keep_warm`] is to be called again, whatever else has happened.
    pub async fn warm_changed(&self) {
        match self {
            Self::Docker(docker) => docker.warm_changed().await,
            Self::Sidecar(_) | Self::Process(_) => std::future::pending().await,
        }
    }

    /// Containers that wait for a job now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        match self {
            Self::Docker(docker) => docker.waiting(),
            Self::Sidecar(_) | Self::Process(_) => 0,
        }
    }

    /// Takes away what this host has for run containers in common: the network that was made for them, and its rules.
    /// Those that other agents' containers use stay.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub async fn clear(&self) -> Result<()> {
        match self {
            Self::Docker(docker) => docker.clear().await,
            Self::Sidecar(_) | Self::Process(_) => Ok(()),
        }
    }

    /// Removes this agent's containers and processes of all jobs but those in `keep`; says whose they were.
    ///
    /// # Errors
    /// When Docker refuses or does not answer.
    pub async fn sweep(&self, keep: &[JobRef]) -> Result<Vec<JobId>> {
        match self {
            Self::Docker(docker) => docker.sweep(keep).await,
            Self::Sidecar(sidecar) => sidecar.sweep(keep),
            Self::Process(process) => Ok(process.sweep(keep)),
        }
    }
}
