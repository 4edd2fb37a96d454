//! Stages in containers of the host's Docker engine. The agent alone talks to the engine; a container knows its job
//! directory and nothing else.

mod facts;
mod firewall;
mod health;
mod hold;
mod image;
pub mod look;
mod network;
mod profile;
mod reach;
mod warm;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION,
    models::{ContainerCreateBody, ContainerState, ContainerStateStatusEnum},
    query_parameters::{
        CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder,
    },
};
use tokio::sync::OnceCell;

use self::{
    facts::Facts,
    health::Health,
    image::{Image, Minimal},
    profile::{Content, Profile},
    reach::{Reach, Way},
    warm::{Warm, Wish},
};
use super::{
    Error, Exit, KILL_PATIENCE, POLL, Prepared, Pull, Result, Seen, Settings, Signal, Users, end::end, runner, set_up,
};
use crate::{
    agent::{
        jobdir::{JobDir, Placement},
        provider_cache::ProviderCache,
    },
    api::{
        agent::{ExecutorKind, JobRef},
        job::JobSpec,
    },
    ids::JobId,
};

pub use warm::Room;

/// What the engine answers when something is wrong.
pub type Cause = bollard::errors::Error;

/// Longest time to find out whether an engine answers at all.
const ANSWER: Duration = Duration::from_secs(10);

/// User and group of run containers when the agent is root and the pool does not ask for root.
const NOBODY: (u32, u32) = (65_532, 65_532);

#[derive(Debug)]
pub struct Docker {
    engine: bollard::Docker,
    settings: Settings,
    runner: PathBuf,
    facts: Facts,
    minimal: OnceCell<Minimal>,
    reach: Reach,
    warm: Warm,
    health: Health,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(Cause) -> Error {
    move |source| {
        let (doing, away) = (doing.into(), is_away(&source));
        let source = Box::new(source);
        if away { Error::Away { doing, source } } else { Error::Docker { doing, source } }
    }
}

/// The engine has not answered, as while it is stopped.
fn is_away(error: &Cause) -> bool {
    matches!(
        error,
        Cause::HyperResponseError { .. }
            | Cause::HyperLegacyError { .. }
            | Cause::IOError { .. }
            | Cause::RequestTimeoutError
            | Cause::SocketNotFoundError(_)
    )
}

fn is_status(error: &Cause, status: u16) -> bool {
    matches!(error, Cause::DockerResponseServerError { status_code, .. } if *status_code == status)
}

/// The engine has answered, and so.
fn is_caused(error: &Error, by: impl FnOnce(&Cause) -> bool) -> bool {
    matches!(error, Error::Docker { source, .. } if source.downcast_ref().is_some_and(by))
}

/// The engine does not have the network any more that a container is to have.
fn is_network_gone(error: &Cause) -> bool {
    matches!(error, Cause::DockerResponseServerError { status_code: 404, message } if message.contains("network"))
}

/// The engine at this address, with a version that it speaks: old ones refuse calls of a newer version than their own.
async fn open(host: &str, call: Duration) -> Result<bollard::Docker, Cause> {
    let call = call.as_secs();
    let made = match host.strip_prefix("unix://") {
        Some(path) => bollard::Docker::connect_with_unix(path, call, API_DEFAULT_VERSION),
        None => bollard::Docker::connect_with_http(host, call, API_DEFAULT_VERSION),
    };
    made?.negotiate_version().await
}

impl Docker {
    /// Also says in one sentence in what this is less than was hoped for.
    pub(super) async fn connect(mut settings: Settings) -> Result<(Self, Option<String>)> {
        let host = settings.docker_host().to_owned();
        let silent = |source| Error::NoDocker { host: host.clone(), source: Box::new(source) };
        let engine = match tokio::time::timeout(ANSWER, open(&host, settings.call_timeout)).await {
            Ok(engine) => engine.map_err(silent)?,
            Err(_) => return Err(silent(Cause::RequestTimeoutError)),
        };
        let info = engine.info().await.map_err(silent)?;
        let facts = Facts::of(&info);
        facts.check(&settings.isolation)?;
        let reach = Reach::new(settings.isolation.clone(), facts.rootless)?;
        let open = reach.make(&engine).await?.open;
        let runner = runner::install(&settings.data)?;
        if let Some(cache) = &settings.provider_cache
            && let Err(refused) = profile::check_mount(cache.dir())
        {
            tracing::warn!("runs go on without a cache of providers: {refused}; name another directory (--cache-dir)");
            settings.provider_cache = None;
        }
        let warm = Warm::new(&settings, facts.selinux);
        Ok((
            Self { engine, settings, runner, facts, minimal: OnceCell::new(), reach, warm, health: Health::default() },
            open,
        ))
    }

    pub(super) fn provider_cache(&self) -> Option<&ProviderCache> {
        self.settings.provider_cache.as_deref()
    }

    /// Pool or agent want root.
    fn root(&self, spec: &JobSpec) -> bool {
        self.is_root(spec.run_as_root)
    }

    fn is_root(&self, wanted: bool) -> bool {
        wanted || self.settings.run_as_root
    }

    /// The host's users are those of the container, although the engine maps users.
    fn host_users(&self) -> bool {
        self.facts.maps_users && self.settings.isolation.users == Users::Host
    }

    /// The user in the container, and whose the files must be on the host.
    fn user(&self, root: bool) -> ((u32, u32), Option<(u32, u32)>) {
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mapped = self.facts.maps_users && !self.host_users();
        let base = self.facts.base.filter(|_| mapped).unwrap_or_default();
        let outside = |(uid, gid): (u32, u32)| Some((base.0 + uid, base.1 + gid));
        match (root || self.facts.rootless, own.0 == 0) {
            (true, true) => ((0, 0), outside((0, 0))),
            (true, false) => ((0, 0), None),
            (false, true) => (NOBODY, outside(NOBODY)),
            (false, false) => (own, None),
        }
    }

    pub(super) fn placement(&self, spec: &JobSpec) -> Placement {
        Placement { owner: self.user(self.root(spec)).1, ..Placement::of(ExecutorKind::Docker) }
    }

    pub(super) async fn prepare(&self, spec: &JobSpec) -> Result<Prepared> {
        let lasting = Duration::from_secs(spec.timeout_seconds);
        let isolation = &self.settings.isolation;
        let name = spec.image.as_deref().or(self.settings.default_image.as_deref());
        let planned = spec.planned.image_digest.as_deref();
        let (image, engine) = match image::wanted(name, planned, &isolation.allowed_images)? {
            Some(wanted) => {
                let image = self.obtain(&wanted, isolation.pull).await?;
                // The image may have its own; the runner looks and says what is missing.
                (image, self.settings.engines.try_obtain(&spec.engine, lasting).await)
            }
            None => {
                let engine = self.settings.engines.obtain(&spec.engine, lasting).await?;
                (self.obtain_minimal().await?, Some(engine))
            }
        };
        let engine = match engine {
            // Docker mounts what a link leads to, but the checks are about what is really mounted.
            Some(path) => Some(
                path.canonicalize()
                    .map_err(|source| Error::Io { doing: format!("find what {} leads to", path.display()), source })?,
            ),
            None => None,
        };
        Ok(Prepared { image: Some(image.id), image_digest: Some(image.digest), engine })
    }

    async fn obtain(&self, wanted: &image::Wanted, pull: Pull) -> Result<Image> {
        image::obtain(&self.engine, wanted, pull, self.settings.pull_timeout).await
    }

    async fn obtain_minimal(&self) -> Result<Image> {
        self.minimal.get_or_try_init(|| Minimal::new(NOBODY)).await?.obtain(&self.engine).await
    }

    pub(super) async fn start(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        let started = match self.start_once(dir, spec, prepared).await {
            // Somebody prunes networks between two calls of ours: it is made anew.
            Err(error) if is_caused(&error, is_network_gone) => self.start_once(dir, spec, prepared).await,
            done => done,
        };
        self.health.note(&self.engine, &started);
        started
    }

    async fn start_once(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        let _hold = self.reach.hold().await;
        let name = profile::name(spec);
        if self.warm.is_cut_short(&name) {
            // An earlier attempt to hand the job over. Its container has not begun, and never will.
            self.remove(spec).await?;
        }
        // At the same time: a run waits for all of them.
        let (state, way, filled) =
            tokio::join!(self.state(&name), self.reach.make(&self.engine), self.fill(dir, spec, prepared));
        match state? {
            // A directory that was made anew for it is filled by now.
            Some(state) if state.status == Some(ContainerStateStatusEnum::CREATED) => filled?,
            Some(_) => return Ok(()),
            None if dir.has_begun() => return Ok(()),
            None => {
                let way = filled.and(way)?;
                if let Some(open) = &way.open {
                    tracing::warn!(job = %spec.job_id, "{open}");
                }
                if self.hand_over(dir, spec, prepared, &way).await? {
                    return Ok(());
                }
                self.create(dir, spec, prepared, &way).await?;
            }
        }
        if let Err(error) = self.engine.start_container(&name, None).await {
            let failed = failed(format!(
                "start the run container of image {}",
                spec.image.as_deref().unwrap_or("(minimal)")
            ))(error);
            if matches!(failed, Error::Away { .. }) {
                // It may have been started all the same; another call sees.
                return Err(failed);
            }
            // Nothing may be left that a later call would take for a stage that has run.
            self.remove(spec).await?;
            return Err(failed);
        }
        Ok(())
    }

    /// Everything that the stage needs is in its job directory then.
    async fn fill(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        if dir.is_set_up() {
            return Ok(());
        }
        let engine = prepared.engine.as_ref().map(|_| profile::engine_path(spec));
        let cli_config = self.settings.providers.mounted_at(profile::PROVIDERS);
        let seen = Seen {
            dir: profile::JOB_DIR,
            engine: engine.as_deref(),
            tmp: Some("/tmp"),
            cli_config,
            provider_cache: Some(profile::PROVIDER_CACHE),
        };
        set_up(dir, spec, &self.settings, seen).await
    }

    async fn create(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared, way: &Way) -> Result<()> {
        let hooks = dir.hooks();
        let outside = Outside { job_dir: dir.path(), hooks: hooks.as_deref(), way };
        let content = Content::Job { spec, engine: prepared.engine.as_deref() };
        let body = self.body(&Wish::of(spec, prepared), content, outside)?;
        self.create_container(&profile::name(spec), body).await
    }

    /// A run container to be: of a job, or of whoever comes.
    fn body(&self, wish: &Wish, content: Content<'_>, outside: Outside<'_>) -> Result<ContainerCreateBody> {
        let root = self.is_root(wish.root);
        let (uid, gid) = self.user(root).0;
        let isolation = &self.settings.isolation;
        Profile {
            content,
            image: &wish.image,
            instance: &self.settings.instance,
            job_dir: outside.job_dir,
            hooks: outside.hooks,
            runner: &self.runner,
            providers: self.settings.providers.directory(),
            provider_cache: self.provider_cache().map(ProviderCache::dir),
            user: &format!("{uid}:{gid}"),
            root,
            network: &outside.way.network,
            runtime: isolation.runtime.as_deref(),
            tmp_bytes: isolation.tmp_bytes,
            disk_bytes: isolation.disk_bytes,
            job_limits: &wish.limits,
            limits: &self.settings.limits,
            cores: self.facts.cores,
            selinux: self.facts.selinux,
            host_users: self.host_users(),
            grace_seconds: self.settings.grace.as_secs(),
        }
        .body()
    }

    async fn create_container(&self, name: &str, body: ContainerCreateBody) -> Result<()> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        match self.engine.create_container(Some(options), body).await {
            // Somebody was faster: it is the same job and epoch.
            Err(error) if is_status(&error, 409) => Ok(()),
            Err(error) => Err(failed("create the run container")(error)),
            Ok(created) => {
                for warning in created.warnings {
                    tracing::debug!(container = name, warning, "Docker warns");
                }
                Ok(())
            }
        }
    }

    pub(super) async fn wait(&self, dir: &JobDir, spec: &JobSpec) -> Result<Exit> {
        let name = &profile::name(spec);
        end(dir, &self.settings.watches, || async move {
            if self.warm.is_cut_short(name) {
                return Ok(Some(gone(None)));
            }
            self.reach.renew().await;
            let state = self.state(name).await?;
            Ok((!state.as_ref().is_some_and(is_going_on)).then(|| gone(state.as_ref())))
        })
        .await
    }

    pub(super) async fn is_alive(&self, spec: &JobSpec) -> Result<bool> {
        let name = profile::name(spec);
        let runs = self.state(&name).await?.is_some_and(|state| state.running == Some(true));
        Ok(runs && !self.warm.is_cut_short(&name))
    }

    async fn state(&self, name: &str) -> Result<Option<ContainerState>> {
        match self.engine.inspect_container(name, None).await {
            Ok(container) => Ok(Some(container.state.unwrap_or_default())),
            Err(error) if is_status(&error, 404) => Ok(None),
            Err(error) => Err(failed(format!("look at the container {name}"))(error)),
        }
    }

    pub(super) async fn signal(&self, dir: &JobDir, spec: &JobSpec, signal: Signal) -> Result<()> {
        let (word, name) = match signal {
            Signal::Interrupt => ("interrupt", "SIGINT"),
            Signal::Kill => ("kill", "SIGKILL"),
        };
        let asked = dir.write_cancel(word).await;
        let done = match signal {
            // The stage may have made the file unwritable; a signal cannot be kept away.
            Signal::Interrupt => asked.is_ok(),
            Signal::Kill => {
                asked.is_ok() && matches!(tokio::time::timeout(KILL_PATIENCE, self.wait(dir, spec)).await, Ok(Ok(_)))
            }
        };
        if done {
            return Ok(());
        }
        let options = KillContainerOptionsBuilder::new().signal(name).build();
        match self.engine.kill_container(&profile::name(spec), Some(options)).await {
            // 409: it does not run any more.
            Err(error) if !is_status(&error, 404) && !is_status(&error, 409) => {
                Err(failed("signal the run container")(error))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn remove(&self, spec: &JobSpec) -> Result<()> {
        let name = profile::name(spec);
        self.remove_container(&name).await?;
        self.warm.forget(&name).await
    }

    async fn remove_container(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.engine.remove_container(name, Some(options)).await {
            // 409: somebody else removes it just now.
            Err(error) if !is_status(&error, 404) && !is_status(&error, 409) => {
                Err(failed(format!("remove the container {name}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes away what the run containers had in common, unless others use it.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub(super) async fn clear(&self) -> Result<()> {
        self.reach.clear(&self.engine).await
    }

    pub(super) async fn sweep(&self, keep: &[JobRef]) -> Result<Vec<JobId>> {
        let mut swept = Vec::new();
        let kept = |job: &JobId, epoch: i64| keep.iter().any(|kept| kept.job_id == *job && kept.epoch == epoch);
        for Found { id, name, job } in self.containers().await? {
            // What was never told its job to the end is nobody's.
            if job.as_ref().is_some_and(|(job, epoch)| kept(job, *epoch)) && !self.warm.is_cut_short(&name) {
                continue;
            }
            self.remove_container(&id).await?;
            swept.extend(job.map(|(job, _)| job));
        }
        let keep = keep.iter().map(|job| profile::name_of(job.job_id.as_str(), job.epoch)).collect();
        self.warm.sweep(keep).await?;
        Ok(swept)
    }

    /// This agent's containers, running or not.
    async fn containers(&self) -> Result<Vec<Found>> {
        let ours = HashMap::from([("label", vec![format!("{}={}", profile::AGENT, self.settings.instance)])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&ours).build();
        let containers = self.engine.list_containers(Some(options)).await.map_err(failed("list the run containers"))?;
        let found = containers.into_iter().filter_map(|container| {
            let labels = container.labels.unwrap_or_default();
            let names = container.names.unwrap_or_default();
            let name = names.first().map(|name| name.trim_start_matches('/').to_owned()).unwrap_or_default();
            let job = profile::job_of(&labels, &name);
            Some(Found { id: container.id?, name, job })
        });
        Ok(found.collect())
    }
}

/// A container of this agent.
#[derive(Debug)]
struct Found {
    id: String,
    name: String,
    /// Whose it is, with the epoch; absent: it waits.
    job: Option<(JobId, i64)>,
}

/// Where a container's files lie on the host, and its way out of it.
#[derive(Debug, Clone, Copy)]
struct Outside<'a> {
    job_dir: &'a Path,
    hooks: Option<&'a Path>,
    way: &'a Way,
}

/// It may still write a result.
fn is_going_on(state: &ContainerState) -> bool {
    use ContainerStateStatusEnum as S;
    matches!(state.status, Some(S::CREATED | S::RUNNING | S::PAUSED | S::RESTARTING | S::STOPPING))
}

fn gone(state: Option<&ContainerState>) -> Exit {
    Exit::Gone {
        code: state.and_then(|state| state.exit_code),
        out_of_memory: state.is_some_and(|state| state.oom_killed == Some(true)),
    }
}
