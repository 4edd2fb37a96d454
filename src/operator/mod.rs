//! The operator: brings what AgentPools and WorkspaceLinks of a cluster ask for into being, in the control plane
//! (through [`crate::sync`]) and as agents in the cluster ([`workloads`]).
//!
//! * [`pool`], [`link`]: the controllers' passes; [`controllers`] runs them.
//! * [`cluster`]: the one way to the API server; [`control_planes`]: the one way to control planes.
//! * [`leader`]: who may write. [`health`], [`metrics`], [`events`]: what people and machines see.
//! * [`dry_run`]: what a pass would write. [`rbac`]: the rights that all of it needs.

pub mod cluster;
pub mod control_planes;
pub mod dry_run;
pub mod health;
pub mod leader;
pub mod metrics;
pub mod rbac;
pub mod workloads;

mod asked;
mod backoff;
mod controllers;
mod drift;
mod error;
mod events;
mod facts;
mod link;
mod own_pools;
mod owned;
mod pool;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, api::ListParams, runtime::reflector::ObjectRef};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    backoff::Failures,
    cluster::Cluster,
    control_planes::ControlPlanes,
    controllers::Controllers,
    events::Events,
    health::Pending,
    leader::{Candidate, Fence},
    own_pools::OwnPools,
    owned::Owned,
};
pub use self::{control_planes::DefaultControlPlane, error::Error, metrics::Metrics};
use crate::{
    client::iacp::ControlPlane,
    clock::Clock,
    crd::{AgentPool, WorkspaceLink},
    memory::keep_small,
    shutdown::Shutdown,
    sync::{self, Fault, Seam},
    telemetry::Chain,
};

/// A cache that does not show our own last write yet is asked again after this long: its event is on the way.
const READ_BACK: Duration = Duration::from_millis(25);

/// What readiness says of kinds that the API server does not know.
const MISSING: &str = "the CustomResourceDefinitions are missing: terrapool crds | kubectl apply -f -";

/// How an operator is started.
#[derive(Debug, Clone)]
pub struct Config {
    /// Namespaces to work in; `None`: all.
    pub namespaces: Option<Vec<String>>,
    /// The control plane of objects that name none.
    pub control_plane: Option<DefaultControlPlane>,
    /// Image of agents whose pool names none.
    pub agent_image: String,
    /// How often everything is looked at again though nothing was heard; spread, so that it is not all at once.
    pub resync: Duration,
    /// Visits of each kind at a time.
    pub concurrency: u16,
    /// First and longest pause after a failed visit.
    pub backoff: (Duration, Duration),
    /// Who this is: unique among all operators.
    pub identity: String,
    /// `None`: this is the only operator.
    pub leader_election: Option<leader::Settings>,
    /// Where health, readiness and metrics are served; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Accept control planes over plain HTTP beyond this host: tokens can be read on the way.
    pub allow_plain_http: bool,
    pub clock: Clock,
}

impl Config {
    /// Everything as usual, for the operator of that name.
    #[must_use]
    pub fn new(identity: String, agent_image: String) -> Self {
        Self {
            namespaces: None,
            control_plane: None,
            agent_image,
            resync: Duration::from_secs(300),
            concurrency: 32,
            backoff: (Duration::from_millis(200), Duration::from_secs(60)),
            identity,
            leader_election: None,
            health: None,
            allow_plain_http: false,
            clock: Clock::real(),
        }
    }
}

/// What has begun may take so long after the word to end.
const FINISH: Duration = Duration::from_secs(10);

/// Why the operator ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("another operator leads now: this process ends, and starts again as a candidate")]
    LeadershipLost,
    #[error("could not listen on {address} for health checks")]
    Health { address: SocketAddr, source: std::io::Error },
}

/// What all passes share. Cheap to clone.
#[derive(Debug, Clone)]
struct Common {
    cluster: Cluster,
    control_planes: ControlPlanes,
    owned: Owned,
    own_pools: OwnPools,
    seam: Seam,
    clock: Clock,
    events: Events,
    metrics: Metrics,
    agent_image: String,
    resync: Duration,
    pool_failures: Arc<Failures<ObjectRef<AgentPool>>>,
    link_failures: Arc<Failures<ObjectRef<link::LinkSight>>>,
}

impl Common {
    /// For a dry run: nobody hears of events, and the caches stay empty.
    fn new(
        config: &Config,
        cluster: Cluster,
        control_planes: ControlPlanes,
        seam: Seam,
        client: &Client,
        namespace: Option<&str>,
    ) -> Self {
        let (owned, _) = Owned::new(client, namespace);
        Self::assemble(config, cluster, control_planes, seam, owned, Metrics::default())
    }

    fn assemble(
        config: &Config,
        cluster: Cluster,
        control_planes: ControlPlanes,
        seam: Seam,
        owned: Owned,
        metrics: Metrics,
    ) -> Self {
        let (first, longest) = config.backoff;
        Self {
            cluster,
            control_planes,
            owned,
            own_pools: OwnPools::default(),
            seam,
            clock: config.clock.clone(),
            events: Events::none(),
            metrics,
            agent_image: config.agent_image.clone(),
            resync: config.resync,
            pool_failures: Arc::new(Failures::new(first, longest)),
            link_failures: Arc::new(Failures::new(first, longest)),
        }
    }

    /// The same for a pass that may only look: what it would write to the cluster it notes down, and at what it would
    /// write to a control plane it ends.
    fn looking(&self) -> Self {
        Self {
            cluster: Cluster::dry(self.cluster.client().clone()),
            seam: Seam::with_hook(|_, _| Fault::Planned),
            events: Events::none(),
            ..self.clone()
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.clock.now_ms()).unwrap_or_default()
    }

    /// What the reconciling core works with.
    fn sync(&self, control_plane: &ControlPlane) -> sync::Context {
        sync::Context {
            control_plane: control_plane.clone(),
            seam: self.seam.clone(),
            clock: self.clock.clone(),
            create_environments: false,
        }
    }
}

/// An operator.
pub struct Operator {
    config: Config,
    client: Client,
    shutdown: Shutdown,
    pending: Pending,
    metrics: Metrics,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Operator {
    /// Ends on `shutdown.drain`.
    #[must_use]
    pub fn new(config: Config, client: Client, shutdown: Shutdown) -> Self {
        Self { config, client, shutdown, pending: Pending::default(), metrics: Metrics::default() }
    }

    /// What it still waits for before it works.
    #[must_use]
    pub fn pending(&self) -> Pending {
        self.pending.clone()
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Runs until told to end, or leadership is lost.
    ///
    /// # Errors
    /// [`Ended`]
    pub async fn run(self) -> Result<(), Ended> {
        if let Some(address) = self.config.health {
            let served = health::serve(address, self.pending.clone(), self.metrics.clone(), &self.shutdown).await;
            let bound = served.map_err(|source| Ended::Health { address, source })?;
            tracing::info!(address = %bound, "health, readiness and metrics are served");
        }
        // Ends with this operator, not with the process that it is a part of.
        let shutdown = self.shutdown.clone().into_child();
        let lost = tokio::select! {
            lost = self.lead(&shutdown) => lost,
            never = keep_small() => match never {},
        };
        shutdown.drain.cancel();
        if lost { Err(Ended::LeadershipLost) } else { Ok(()) }
    }

    /// Becomes the leader and works as long as it is; whether leadership was lost.
    async fn lead(&self, shutdown: &Shutdown) -> bool {
        let Some(settings) = self.config.leader_election.clone() else {
            self.work_to_the_end(Fence::open(), shutdown).await;
            return false;
        };
        let mut candidate = Candidate::new(self.client.clone(), settings);
        // Who stands by is ready: it can take over at any moment, and nobody who waits for a rollout waits for ever.
        tracing::info!("standing by until this operator leads");
        if !candidate.acquire(&shutdown.drain).await {
            return false;
        }
        let fence = candidate.fence();
        // It leads until its last visit is finished; then the Lease is given back, and the next one need not wait.
        let finished = CancellationToken::new();
        let work = async {
            self.work_to_the_end(fence, shutdown).await;
            finished.cancel();
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            lost = candidate.keep(&finished) => lost,
            never = work => match never {},
        }
    }

    /// Works until told to end; what has begun then is finished, if that does not take too long.
    async fn work_to_the_end(&self, fence: Fence, shutdown: &Shutdown) {
        let overdue = async {
            shutdown.drain.cancelled().await;
            tokio::time::sleep(FINISH).await;
        };
        tokio::select! {
            () = self.work(fence, shutdown) => {}
            () = overdue => tracing::warn!("what was under way is left to the next operator"),
        }
    }

    async fn work(&self, fence: Fence, shutdown: &Shutdown) {
        if !self.wait_for_definitions(shutdown).await {
            return;
        }
        let namespaces = match &self.config.namespaces {
            None => vec![None],
            Some(names) => names.iter().cloned().map(Some).collect(),
        };
        let all = namespaces.into_iter().map(|namespace| {
            let cluster = Cluster::live(self.client.clone(), fence.clone());
            let guard = fence.clone();
            let seam = Seam::with_hook(move |_, _| if guard.holds() { Fault::None } else { Fault::Fenced });
            let controllers = self.controllers(cluster, seam, fence.clone(), namespace, shutdown);
            controllers.run(shutdown.clone())
        });
        futures::future::join_all(all).await;
    }

    fn controllers(
        &self,
        cluster: Cluster,
        seam: Seam,
        fence: Fence,
        namespace: Option<String>,
        shutdown: &Shutdown,
    ) -> Controllers {
        let config = &self.config;
        let (owned, owned_triggers) = Owned::new(&self.client, namespace.as_deref());
        let (told, changed) = mpsc::unbounded_channel();
        let default = config.control_plane.clone();
        let control_planes =
            ControlPlanes::new(cluster.clone(), default, config.allow_plain_http, told, shutdown.clone());
        let events = Events::new(self.client.clone(), &config.identity, fence);
        let common =
            Common { events, ..Common::assemble(config, cluster, control_planes, seam, owned, self.metrics.clone()) };
        Controllers {
            common,
            namespace,
            owned_triggers,
            changed,
            concurrency: config.concurrency,
            pending: self.pending.clone(),
        }
    }

    /// Waits until the API server knows our kinds: they may be applied after the operator is started.
    async fn wait_for_definitions(&self, shutdown: &Shutdown) -> bool {
        let namespace = self.config.namespaces.as_ref().and_then(|names| names.first()).map(String::as_str);
        let mut pause = Duration::from_millis(200);
        loop {
            let one = ListParams::default().limit(1);
            let pools = owned::api::<AgentPool>(&self.client, namespace);
            let links: Api<WorkspaceLink> = owned::api(&self.client, namespace);
            let both = async { pools.list(&one).await.map(drop).and(links.list(&one).await.map(drop)) };
            let waits = match tokio::time::timeout(Duration::from_secs(10), both).await {
                Ok(Ok(())) => {
                    self.pending.done("definitions");
                    return true;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => MISSING.to_owned(),
                Ok(Err(error)) => Chain(&error).to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            tracing::warn!("waiting: {waits}");
            self.pending.waits("definitions", waits);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.drain.cancelled() => return false,
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}
