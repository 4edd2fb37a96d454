//! The agent: takes jobs from the control plane and runs each stage in a container or process of its own.
//!
//! [`run`] registers, takes up the jobs that an earlier process left, and then has three things going: the
//! heartbeat ([`heartbeat`]), the claims ([`poller`]) and one supervisor per job ([`job`]). All that must survive
//! a crash lies in the data directory before anybody hears of it.

pub mod check;
pub mod engine;
pub mod executor;
pub mod file_watch;
pub mod hooks;
pub mod jobdir;
pub mod provider_cache;
pub mod providers;
pub mod redact;
pub mod result;
pub mod steps;

mod backoff;
mod ending;
mod heartbeat;
mod identity;
mod job;
mod jobs;
mod logs;
mod lru;
mod metrics;
mod neutralise;
mod poller;
mod record;
mod remote;
mod service;
mod state;
mod sweep;
mod warm;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub use sweep::sweep;

use rand::RngExt;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    backoff::Backoff,
    executor::{Choice, Connected, Executor, Settings},
    identity::{DataLock, Identity, Registration},
    jobdir::JobDir,
    jobs::Jobs,
    metrics::Metrics,
    record::JobRecord,
};
use crate::{
    api::{
        agent::{ExecutorKind, JobRef, RegisterRequest},
        job::Stage,
    },
    client::{self, agent::AgentClient},
    clock::Clock,
    hash::hex,
    http,
    ids::AgentId,
    memory::keep_small,
    shutdown::Shutdown,
    telemetry::Chain,
    trace::Tracer,
};

/// How long a stopping agent tries to deliver what its jobs left, after they ended.
const DELIVERY: Duration = Duration::from_secs(20);

/// How long a leaving agent waits for stages that are being started just now.
const LAST_START: Duration = Duration::from_secs(10);

/// How long the agent tries to sign off.
const SIGN_OFF: Duration = Duration::from_secs(5);

/// Everything that an agent is started with.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Address of the control plane.
    pub server: Url,
    /// The pool token: registers the agent, and is used for nothing else.
    pub token: SecretString,
    /// Unique in the pool.
    pub name: String,
    /// Jobs at once; at least one.
    pub slots: u32,
    /// Absolute; for this agent alone.
    pub data: PathBuf,
    /// PEM file of certificates trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    /// Stages that this agent accepts.
    pub stages: Vec<Stage>,
    /// Run containers are started as root: shown wherever the agent is shown.
    pub run_as_root: bool,
    /// Most bytes that are shipped of one stage's log.
    pub log_limit: u64,
    /// Take one job and leave. A sidecar's agent always does.
    pub once: bool,
    /// Leave after so long a time without a job.
    pub idle_timeout: Option<Duration>,
    /// Where metrics are served over plain HTTP; absent: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Systemd is told how the agent does, by the socket that the environment names.
    pub service: bool,
    /// Where spans of runs go.
    pub trace: Tracer,
    /// How stages are run; `data`, `instance`, `run_as_root` and `hostname` in it are set by [`run`].
    pub executor: Settings,
}

impl AgentConfig {
    /// One slot, both stages, an executor as found.
    #[must_use]
    pub fn new(server: Url, token: SecretString, name: String, data: PathBuf) -> Self {
        Self {
            server,
            token,
            name,
            slots: 1,
            executor: Settings::new(data.clone(), String::new()),
            data,
            ca_file: None,
            labels: BTreeMap::new(),
            stages: vec![Stage::Plan, Stage::Apply],
            run_as_root: false,
            log_limit: logs::DEFAULT_LIMIT,
            once: false,
            idle_timeout: None,
            metrics: None,
            trace: Tracer::default(),
            service: false,
        }
    }
}

/// What [`run`] tells once the agent takes jobs.
#[derive(Debug, Clone)]
pub struct Ready {
    pub agent_id: AgentId,
    pub pool_name: String,
    pub executor: ExecutorKind,
    /// One plain sentence for the user when the executor is less than was hoped for.
    pub warning: Option<String>,
}

/// Why the agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("could not set up the connection to the control plane")]
    Http(#[from] http::Error),
    #[error(transparent)]
    Hooks(#[from] hooks::Error),
    #[error("no stage could be run on this host")]
    Executor(#[from] executor::Error),
    #[error("metrics cannot be served at {address}; choose a free address, or none")]
    Metrics { address: SocketAddr, source: std::io::Error },
    #[error("could not take up the jobs that are left in {path}")]
    Recover { path: String, source: jobdir::Error },
    #[error("the agent ends")]
    Fatal(#[from] Fatal),
    /// The second signal came while jobs were running.
    #[error("the agent was stopped while jobs were running; what could not be delivered is kept in {path}")]
    Undelivered { path: String },
}

/// Why the control plane does not have this agent.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("the control plane does not accept the pool token ({detail}); give the agent a valid one (--token)")]
    Token { detail: String },
    #[error("could not register at the control plane")]
    Register { source: client::agent::Error },
    #[error(transparent)]
    Identity(#[from] identity::Error),
}

impl Fatal {
    /// Whether trying again cannot help.
    fn is_final(&self) -> bool {
        match self {
            Self::Token { .. } => true,
            Self::Register { source } => !source.is_unavailable(),
            Self::Identity(_) => false,
        }
    }
}

/// What all parts of a running agent share.
#[derive(Debug)]
struct Agent {
    config: AgentConfig,
    client: AgentClient,
    executor: Executor,
    identity: tokio::sync::Mutex<Identity>,
    jobs: Jobs,
    metrics: Metrics,
    clock: Clock,
    shutdown: Shutdown,
    /// The control plane wants no new jobs here.
    cordoned: watch::Sender<bool>,
    /// Nothing can be delivered any more.
    halt: CancellationToken,
    /// The last job is over: heartbeats may end.
    done: CancellationToken,
    /// Held for reading while a stage is started.
    starts: tokio::sync::RwLock<()>,
    /// What runs is the next process's.
    left: CancellationToken,
    /// The control plane has accepted the agent at least once.
    registered: watch::Sender<bool>,
    /// When the heartbeat last went on.
    beat: Mutex<Instant>,
    /// Why no jobs can be taken, when that is so.
    trouble: Mutex<Option<String>>,
    heartbeat_ms: AtomicU64,
    _lock: DataLock,
}

/// Runs an agent until it is told to end: `shutdown.drain` lets its jobs finish, `shutdown.stop` interrupts them,
/// `shutdown.leave` leaves them to the next agent of the same data directory.
///
/// `on_ready` is called once, when the agent takes jobs.
///
/// # Errors
/// When it cannot start, when its pool token is not accepted, and when it had to leave undelivered work behind.
pub async fn run(mut config: AgentConfig, shutdown: Shutdown, on_ready: impl FnOnce(&Ready)) -> Result<(), Error> {
    config.once |= config.executor.choice == Choice::Sidecar;
    if config.once {
        config.slots = 1;
    }
    let lock = DataLock::take(&config.data)?;
    let identity = Identity::load(&config.data).await?;
    let client = AgentClient::new(http::client(config.ca_file.as_deref())?, &config.server, config.token.clone());
    let settings = Settings {
        data: config.data.clone(),
        instance: identity.instance.clone(),
        run_as_root: config.run_as_root,
        hostname: address(&config.server),
        ..config.executor.clone()
    };
    settings.hooks.announce()?;
    let Connected { executor, warning } = Executor::connect(settings).await?;
    if let Some(warning) = &warning {
        tracing::warn!("{warning}");
    }
    if config.run_as_root {
        tracing::warn!("runs are root in their containers (--user root): they can do more to this host than others");
    }
    let agent = Arc::new(Agent {
        client,
        executor,
        identity: tokio::sync::Mutex::new(identity),
        jobs: Jobs::default(),
        metrics: Metrics::default(),
        clock: Clock::real(),
        // An agent that ends by itself takes nobody along.
        shutdown: shutdown.into_child(),
        cordoned: watch::Sender::new(false),
        halt: CancellationToken::new(),
        done: CancellationToken::new(),
        starts: tokio::sync::RwLock::default(),
        left: CancellationToken::new(),
        registered: watch::Sender::new(false),
        beat: Mutex::new(Instant::now()),
        trouble: Mutex::new(None),
        heartbeat_ms: AtomicU64::new(10_000),
        config,
        _lock: lock,
    });
    if let Some(address) = agent.config.metrics {
        let bound = metrics::serve(address, &agent).await;
        let bound = bound.map_err(|source| Error::Metrics { address, source })?;
        tracing::info!("metrics are served at http://{bound}/metrics");
    }
    metrics::tell(&agent);
    let ended = tokio::select! {
        biased;
        () = leave(&agent) => Ok(()),
        ended = attend(&agent, warning, on_ready) => ended,
        never = service::tell(&agent), if agent.config.service => match never {},
        never = keep_small() => match never {},
    };
    agent.done.cancel();
    ended
}

/// Ends as a crash would, but for stages that are being started just now. Leases run on, for the next process.
async fn leave(agent: &Agent) {
    agent.shutdown.leave.cancelled().await;
    // Nobody starts a stage any more after this.
    let starts = tokio::time::timeout(LAST_START, agent.starts.write()).await;
    tracing::info!(jobs = agent.jobs.count(), "the agent leaves its jobs to the next process");
    agent.left.cancel();
    drop(starts);
}

/// From the first look at what an earlier process left to the end of the last job.
async fn attend(agent: &Arc<Agent>, warning: Option<String>, on_ready: impl FnOnce(&Ready)) -> Result<(), Error> {
    // Where nothing can be run yet, there is no agent yet. Where it has become impossible, old jobs are to be reported.
    let able = tokio::select! {
        able = agent.executor.ready() => able,
        () = agent.shutdown.drain.cancelled() => Ok(()),
    };
    // Before it is registered: an engine that runs since the last time has to be watched, whoever is away.
    recover(agent).await?;
    if agent.jobs.count() == 0 {
        able?;
    }
    let registration = match agent.sign_on().await {
        Ok(Some(registration)) => registration,
        Ok(None) if agent.jobs.count() == 0 => return Ok(()),
        Ok(None) => return work(agent).await,
        Err(error) => {
            agent.halt.cancel();
            let limit = agent.config.executor.grace + DELIVERY;
            drop(tokio::time::timeout(limit, agent.jobs.until(|count| count == 0)).await);
            return Err(error);
        }
    };
    let ready = Ready {
        agent_id: registration.agent_id,
        pool_name: registration.pool_name,
        executor: agent.executor.kind(),
        warning,
    };
    tracing::info!(agent = %ready.agent_id, pool = %ready.pool_name, executor = ready.executor.as_str(), "the agent is ready");
    if agent.config.service {
        service::ready();
    }
    on_ready(&ready);
    work(agent).await
}

/// Takes up the jobs of an earlier process, and removes what is left of others.
async fn recover(agent: &Arc<Agent>) -> Result<(), Error> {
    let data = &agent.config.data;
    let failed = |source| Error::Recover { path: data.display().to_string(), source };
    let found = JobDir::scan(data).await.map_err(failed)?;
    let keep: Vec<JobRef> =
        found.iter().map(|(spec, _)| JobRef { job_id: spec.job_id.clone(), epoch: spec.epoch }).collect();
    if let Err(error) = JobRecord::sweep(data, |id| keep.iter().any(|job| job.job_id.as_str() == id)).await {
        tracing::warn!(%error, "records of old jobs could not be removed");
    }
    match agent.executor.sweep(&keep).await {
        Ok(swept) => swept.iter().for_each(|job| tracing::warn!(%job, "removed what was left of a job")),
        Err(error) => tracing::warn!(error = %Chain(&error), "what is left of old jobs could not be removed"),
    }
    for (spec, dir) in found {
        tracing::info!(job = %spec.job_id, epoch = spec.epoch, "going on with a job of an earlier process");
        job::resume(agent, spec, dir);
    }
    Ok(())
}

async fn work(agent: &Arc<Agent>) -> Result<(), Error> {
    let heartbeat = {
        let agent = agent.clone();
        async move {
            let fatal = heartbeat::run(&agent).await;
            if fatal.is_some() {
                agent.shutdown.drain.cancel();
                agent.halt.cancel();
            }
            fatal
        }
    };
    let jobs = async {
        poller::run(agent).await;
        tracing::info!(jobs = agent.jobs.count(), "the agent takes no new jobs");
        tokio::select! {
            () = agent.jobs.until(|count| count == 0) => {}
            () = stop_in_time(agent) => {}
        }
        agent.done.cancel();
    };
    let (fatal, (), ()) = tokio::join!(heartbeat, jobs, Box::pin(warm::keep(agent)));
    if let Some(fatal) = fatal {
        return Err(fatal.into());
    }
    if agent.jobs.count() > 0 || agent.halt.is_cancelled() {
        return Err(Error::Undelivered { path: agent.config.data.display().to_string() });
    }
    agent.sign_off().await;
    match tokio::time::timeout(DELIVERY, agent.executor.clear()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "the network of run containers stays"),
        Err(_) => tracing::debug!("the network of run containers stays: Docker does not answer"),
    }
    Ok(())
}

/// After the second signal: jobs get their grace time and a while to deliver, then they are left on the disk.
async fn stop_in_time(agent: &Agent) {
    agent.shutdown.stop.cancelled().await;
    tokio::time::sleep(agent.config.executor.grace + DELIVERY).await;
    agent.halt.cancel();
    // The supervisors leave as soon as they see it; they only put down what they hold.
    drop(tokio::time::timeout(DELIVERY, agent.jobs.until(|count| count == 0)).await);
}

impl Agent {
    fn slots(&self) -> usize {
        usize::try_from(self.config.slots.max(1)).unwrap_or(usize::MAX)
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says whether that is news.
    fn set_trouble(&self, trouble: Option<String>) -> bool {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *known != trouble;
        *known = trouble;
        news
    }

    async fn sleep_or_drain(&self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.shutdown.drain.cancelled() => {}
        }
    }

    /// The stored registration when it still fits, else a new one; `None`: told to end before that.
    async fn sign_on(&self) -> Result<Option<Registration>, Error> {
        if let Some(stored) = self.identity.lock().await.registration.clone() {
            // Good for the jobs at hand even when something else is to be registered now.
            self.adopt(&stored);
            if stored.fingerprint == self.fingerprint() {
                return Ok(Some(stored));
            }
        }
        let mut backoff = Backoff::default();
        loop {
            let registered = tokio::select! {
                biased;
                () = self.shutdown.drain.cancelled() => return Ok(None),
                registered = self.register() => registered,
            };
            match registered {
                Ok(()) => return Ok(self.identity.lock().await.registration.clone()),
                Err(error) if error.is_final() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the agent is not registered yet; trying again");
                    self.sleep_or_drain(backoff.next(None)).await;
                }
            }
        }
    }

    /// Registers and stores who the agent is now.
    async fn register(&self) -> Result<(), Fatal> {
        let mut identity = self.identity.lock().await;
        let AgentConfig { name, slots, labels, run_as_root, .. } = &self.config;
        let os_release = tokio::fs::read_to_string("/etc/os-release").await.unwrap_or_default();
        let request = RegisterRequest {
            name: name.clone(),
            instance: identity.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            os: identity::os_name(&os_release),
            platform: identity::platform(),
            executor: self.executor.kind(),
            run_as_root: *run_as_root,
            slots: (*slots).max(1),
            labels: labels.clone(),
        };
        let answer = self.client.register(&self.config.token, &request).await.map_err(|source| match source {
            client::agent::Error::Unauthorized { detail } => Fatal::Token { detail },
            source => Fatal::Register { source },
        })?;
        let registration = Registration::new(self.fingerprint(), answer);
        self.adopt(&registration);
        identity.registration = Some(registration);
        // Unstored, the next start registers once more, which is as good.
        if let Err(error) = identity.store(&self.config.data).await {
            tracing::warn!(error = %Chain(&error), "the registration could not be stored");
        }
        Ok(())
    }

    fn adopt(&self, registration: &Registration) {
        self.registered.send_replace(true);
        self.client.set_token(registration.agent_token.clone());
        self.heartbeat_ms.store(registration.heartbeat_ms, Ordering::Relaxed);
        tracing::debug!(lease_ms = registration.lease_ms, heartbeat_ms = registration.heartbeat_ms, "registered");
    }

    /// Of everything that a registration tells the control plane.
    fn fingerprint(&self) -> String {
        let AgentConfig { server, token, name, slots, labels, run_as_root, .. } = &self.config;
        let (slots, root) = (slots.to_string(), run_as_root.to_string());
        let mut parts = vec![
            server.as_str(),
            token.expose_secret(),
            name,
            &slots,
            &root,
            self.executor.kind().as_str(),
            env!("CARGO_PKG_VERSION"),
        ];
        parts.extend(labels.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]));
        identity::fingerprint(parts)
    }

    /// The agent leaves for good: the control plane need not wait for its silence.
    async fn sign_off(&self) {
        match tokio::time::timeout(SIGN_OFF, self.client.deregister()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "the agent could not sign off"),
            Err(_) => tracing::warn!("the control plane was too slow to sign the agent off"),
        }
        let mut identity = self.identity.lock().await;
        identity.registration = None;
        if let Err(error) = identity.store(&self.config.data).await {
            tracing::warn!(error = %Chain(&error), "the end of the registration could not be stored");
        }
        tracing::info!("the agent has ended");
    }
}

/// `host` or `host:port` of a URL.
fn address(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// 128 random bits as text.
fn random_text() -> String {
    hex(rand::rng().random::<[u8; 16]>())
}
