//! Stages in containers of the host's Docker engine. The agent alone talks to the engine; a container knows its job
//! directory and nothing else.

mod firewall;
mod hold;
mod image;
pub mod look;
mod network;
mod profile;
mod reach;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use bollard::{
    API_DEFAULT_VERSION,
    models::{ContainerState, ContainerStateStatusEnum, SystemInfo},
    query_parameters::{
        CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder,
    },
};
use tokio::{sync::OnceCell, time::Instant};

use self::{
    hold::Hold,
    image::{Image, Minimal},
    profile::Profile,
    reach::Reach,
};
use super::{
    Error, Exit, Isolation, KILL_PATIENCE, POLL, Prepared, Pull, Result, Seen, Settings, Signal, Users, runner, set_up,
};
use crate::{
    agent::jobdir::{JobDir, Placement},
    api::{
        agent::{ExecutorKind, JobRef},
        job::JobSpec,
    },
    ids::JobId,
};

/// What the engine answers when something is wrong.
pub type Cause = bollard::errors::Error;

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Longest time of one call, in seconds. Under load an engine takes long to start a container.
const CALL: u64 = 120;

/// Longest time to find out whether an engine answers at all.
const ANSWER: Duration = Duration::from_secs(10);

/// How often a container is looked at, in case it has ended without a result.
const LOOK: Duration = Duration::from_millis(500);

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
}

/// What matters of the engine's description of itself.
#[derive(Debug, Clone, Default)]
struct Facts {
    cores: Option<i64>,
    selinux: bool,
    /// The engine maps users of containers to others of the host.
    maps_users: bool,
    /// The host's user and group that users of containers are counted from, where the engine maps them.
    base: Option<(u32, u32)>,
    /// The engine runs as this user: root in a container is this user outside.
    rootless: bool,
    /// Names of its OCI runtimes.
    runtimes: Vec<String>,
    /// Its storage can limit a container's own layer.
    quota: bool,
}

impl Facts {
    fn of(info: &SystemInfo) -> Self {
        let options = info.security_options.as_deref().unwrap_or_default();
        let has =
            |name: &str| options.iter().any(|option| option.split(',').any(|part| part == format!("name={name}")));
        let mut runtimes: Vec<String> = info.runtimes.iter().flat_map(HashMap::keys).cloned().collect();
        runtimes.sort();
        Self {
            cores: info.ncpu,
            selinux: has("selinux"),
            maps_users: has("userns"),
            base: info.docker_root_dir.as_deref().and_then(base),
            rootless: has("rootless"),
            runtimes,
            quota: has_quota(info),
        }
    }

    /// Whether the engine can do what is asked of it.
    ///
    /// # Errors
    /// [`Error::Refused`] says what it cannot do, and the mend.
    fn check(&self, isolation: &Isolation) -> Result<()> {
        if let Some(runtime) = isolation.runtime.as_ref().filter(|runtime| !self.runtimes.contains(runtime)) {
            let known = self.runtimes.join(", ");
            return Err(Error::Refused(format!(
                "the Docker engine has no OCI runtime `{runtime}` (--container-runtime): it has {known}. Install it and \
                 name it in the engine's daemon.json under `runtimes`"
            )));
        }
        if isolation.disk_bytes.is_some() && !self.quota {
            return Err(Error::Refused(
                "the Docker engine's storage cannot limit a container (--run-disk): that takes the driver overlay2 on xfs \
                 with pquota, btrfs or zfs"
                    .to_owned(),
            ));
        }
        let mapped = isolation.users == Users::Engine && self.maps_users && !self.rootless;
        if mapped && !(self.base.is_some() && rustix::process::geteuid().is_root()) {
            return Err(Error::Refused(
                "files cannot be given to the users that the Docker engine maps to (--userns=engine): the agent has to be \
                 root, and the engine's data directory named after the users as userns-remap does"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// An engine that maps users keeps its data below `<uid>.<gid>`, so named after the first of each.
fn base(data: &str) -> Option<(u32, u32)> {
    let (uid, gid) = data.trim_end_matches('/').rsplit('/').next()?.split_once('.')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

fn has_quota(info: &SystemInfo) -> bool {
    let status = |name: &str| {
        let mut rows = info.driver_status.iter().flatten();
        rows.find(|row| row.first().is_some_and(|key| key == name)).and_then(|row| row.get(1)).map(String::as_str)
    };
    match info.driver.as_deref() {
        Some("btrfs" | "zfs") => true,
        Some("overlay2") => status("Backing Filesystem") == Some("xfs"),
        _ => false,
    }
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

/// The engine does not have the network any more that a container is to have.
fn is_network_gone(error: &Cause) -> bool {
    matches!(error, Cause::DockerResponseServerError { status_code: 404, message } if message.contains("network"))
}

/// The engine at this address, with a version that it speaks: old ones refuse calls of a newer version than their own.
async fn open(host: &str) -> Result<bollard::Docker, Cause> {
    let made = match host.strip_prefix("unix://") {
        Some(path) => bollard::Docker::connect_with_unix(path, CALL, API_DEFAULT_VERSION),
        None => bollard::Docker::connect_with_http(host, CALL, API_DEFAULT_VERSION),
    };
    made?.negotiate_version().await
}

impl Docker {
    /// Also says in one sentence in what this is less than was hoped for.
    pub(super) async fn connect(settings: Settings) -> Result<(Self, Option<String>)> {
        let host = settings.docker_host.clone().unwrap_or_else(|| DEFAULT_HOST.to_owned());
        let silent = |source| Error::NoDocker { host: host.clone(), source: Box::new(source) };
        let engine = match tokio::time::timeout(ANSWER, open(&host)).await {
            Ok(engine) => engine.map_err(silent)?,
            Err(_) => return Err(silent(Cause::RequestTimeoutError)),
        };
        let info = engine.info().await.map_err(silent)?;
        let facts = Facts::of(&info);
        facts.check(&settings.isolation)?;
        let reach = Reach::new(settings.isolation.clone(), facts.rootless)?;
        let open = reach.make(&engine).await?.open;
        let runner = runner::install(&settings.data)?;
        Ok((Self { engine, settings, runner, facts, minimal: OnceCell::new(), reach }, open))
    }

    /// Pool or agent want root.
    fn root(&self, spec: &JobSpec) -> bool {
        spec.run_as_root || self.settings.run_as_root
    }

    /// The host's users are those of the container, although the engine maps users.
    fn host_users(&self) -> bool {
        self.facts.maps_users && !self.facts.rootless && self.settings.isolation.users == Users::Host
    }

    /// The user in the container, and whose the files must be on the host.
    fn user(&self, spec: &JobSpec) -> ((u32, u32), Option<(u32, u32)>) {
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mapped = self.facts.maps_users && !self.facts.rootless && !self.host_users();
        let base = self.facts.base.filter(|_| mapped).unwrap_or_default();
        let outside = |(uid, gid): (u32, u32)| Some((base.0 + uid, base.1 + gid));
        match (self.root(spec) || self.facts.rootless, own.0 == 0) {
            (true, true) => ((0, 0), outside((0, 0))),
            (true, false) => ((0, 0), None),
            (false, true) => (NOBODY, outside(NOBODY)),
            (false, false) => (own, None),
        }
    }

    pub(super) fn placement(&self, spec: &JobSpec) -> Placement {
        Placement { owner: self.user(spec).1, ..Placement::of(ExecutorKind::Docker) }
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
                let minimal = self.minimal.get_or_try_init(|| Minimal::new(NOBODY)).await?;
                (minimal.obtain(&self.engine).await?, Some(engine))
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

    pub(super) async fn start(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        match self.start_once(dir, spec, prepared).await {
            // Somebody prunes networks between two calls of ours: it is made anew.
            Err(Error::Docker { source, .. }) if source.downcast_ref().is_some_and(is_network_gone) => {
                self.start_once(dir, spec, prepared).await
            }
            done => done,
        }
    }

    async fn start_once(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        let _hold = Hold::shared().await;
        let name = profile::name(spec);
        match self.state(&name).await? {
            Some(state) if state.status == Some(ContainerStateStatusEnum::CREATED) => {}
            Some(_) => return Ok(()),
            None if dir.has_begun() => return Ok(()),
            None => self.create(dir, spec, prepared, &name).await?,
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

    async fn create(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared, name: &str) -> Result<()> {
        let engine = prepared.engine.as_ref().map(|_| profile::engine_path(spec));
        let providers = &self.settings.providers;
        if !dir.is_set_up() {
            let cli_config = providers.mounted_at(profile::PROVIDERS);
            let seen = Seen { dir: profile::JOB_DIR, engine: engine.as_deref(), tmp: Some("/tmp"), cli_config };
            set_up(dir, spec, &self.settings, seen).await?;
        }
        let way = self.reach.make(&self.engine).await?;
        if let Some(open) = way.open {
            tracing::warn!(job = %spec.job_id, "{open}");
        }
        let (uid, gid) = self.user(spec).0;
        let isolation = &self.settings.isolation;
        let body = Profile {
            spec,
            image: prepared.image.as_deref().unwrap_or_default(),
            instance: &self.settings.instance,
            job_dir: dir.path(),
            hooks: dir.hooks().as_deref(),
            runner: &self.runner,
            engine: prepared.engine.as_deref(),
            providers: providers.directory(),
            user: &format!("{uid}:{gid}"),
            root: self.root(spec),
            network: &way.network,
            runtime: isolation.runtime.as_deref(),
            tmp_bytes: isolation.tmp_bytes,
            disk_bytes: isolation.disk_bytes,
            limits: &self.settings.limits,
            cores: self.facts.cores,
            selinux: self.facts.selinux,
            host_users: self.host_users(),
            grace_seconds: self.settings.grace.as_secs(),
        }
        .body()?;
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
        let name = profile::name(spec);
        let mut looked: Option<Instant> = None;
        loop {
            if dir.has_result() {
                return Ok(Exit::Result);
            }
            if looked.is_none_or(|at| at.elapsed() >= LOOK) {
                looked = Some(Instant::now());
                self.reach.renew().await;
                let state = self.state(&name).await?;
                if !state.as_ref().is_some_and(is_going_on) {
                    // Its last act is the result: looked for once more, now that there is nobody left to write it.
                    return Ok(if dir.has_result() { Exit::Result } else { gone(state.as_ref()) });
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) async fn is_alive(&self, spec: &JobSpec) -> Result<bool> {
        Ok(self.state(&profile::name(spec)).await?.is_some_and(|state| state.running == Some(true)))
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
        self.remove_container(&profile::name(spec)).await
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
        let ours = HashMap::from([("label", vec![format!("{}={}", profile::AGENT, self.settings.instance)])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&ours).build();
        let containers = self.engine.list_containers(Some(options)).await.map_err(failed("list the run containers"))?;
        let mut swept = Vec::new();
        for container in containers {
            let labels = container.labels.unwrap_or_default();
            let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
            let epoch = label(profile::EPOCH).parse::<i64>().ok();
            let job = label(profile::JOB).parse::<JobId>();
            let kept = |kept: &JobRef| kept.job_id.as_str() == label(profile::JOB) && Some(kept.epoch) == epoch;
            let Some(id) = container.id.filter(|_| !keep.iter().any(kept)) else { continue };
            self.remove_container(&id).await?;
            swept.extend(job);
        }
        Ok(swept)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: impl FnOnce(&mut SystemInfo)) -> Facts {
        let mut info = SystemInfo {
            runtimes: Some(["runc", "runsc"].map(|name| (name.to_owned(), Default::default())).into()),
            driver: Some("overlay2".to_owned()),
            driver_status: Some(vec![vec!["Backing Filesystem".to_owned(), "extfs".to_owned()]]),
            docker_root_dir: Some("/var/lib/docker".to_owned()),
            ..SystemInfo::default()
        };
        change(&mut info);
        Facts::of(&info)
    }

    #[test]
    fn what_the_engine_cannot_do_is_refused_at_the_start() {
        let facts_now = facts(|_| {});
        facts_now.check(&Isolation::default()).unwrap();
        facts_now.check(&Isolation { runtime: Some("runsc".to_owned()), ..Isolation::default() }).unwrap();
        let error =
            facts_now.check(&Isolation { runtime: Some("kata".to_owned()), ..Isolation::default() }).unwrap_err();
        assert!(error.to_string().contains("`kata`") && error.to_string().contains("runc, runsc"), "{error}");
        let disk = Isolation { disk_bytes: Some(1), ..Isolation::default() };
        assert!(facts_now.check(&disk).unwrap_err().to_string().contains("--run-disk"));
        let xfs = facts(|info| info.driver_status = Some(vec![vec!["Backing Filesystem".into(), "xfs".into()]]));
        xfs.check(&disk).unwrap();
        let maps = facts(|info| info.security_options = Some(vec!["name=userns".to_owned()]));
        let engine = Isolation { users: Users::Engine, ..Isolation::default() };
        // Its data directory does not say whom it maps to.
        assert!(maps.check(&engine).unwrap_err().to_string().contains("--userns=engine"));
    }

    #[test]
    fn an_engines_data_directory_tells_whom_it_maps_to() {
        assert_eq!(base("/var/lib/docker/231072.231073"), Some((231_072, 231_073)));
        for data in ["/var/lib/docker", "/var/lib/docker.d/x", "/var/lib/docker/a.b", "", "/"] {
            assert_eq!(base(data), None, "{data}");
        }
    }
}
