//! The agents of a pool: the objects that it owns, and in mode Ephemeral its Pods.
//!
//! Decisions are taken from the cache. Only when there is something to do are they taken once more, from what the
//! API server itself says now, and then carried out: a stale cache costs a call, never an agent.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::{Pass, registration::Known, secret};
use crate::{
    api::{agent::AgentStatus, iacp::demand::PoolDemand},
    client::iacp,
    crd::{
        agent_pool::{AgentsStatus, QueueStatus},
        agents::AgentMode,
        conditions::{self, reason},
        names,
    },
    operator::{
        Error,
        control_planes::Connection,
        drift,
        facts::Fact,
        owned::is_orphan,
        workloads::{
            self, NameSalt, NewPod, OwnedKind, Phase, PodView, PoolView, mark,
            scale::{self, Memory, Removal, ScaleDecision, ScaleInput},
        },
    },
    sync::{self, WriteKind},
};

/// Without news from the control plane its queue is looked at this often.
const POLL: Duration = Duration::from_secs(5);

impl Pass<'_> {
    pub(super) fn view<'v>(&'v self, known: &'v Known) -> PoolView<'v> {
        PoolView {
            namespace: &self.namespace,
            name: &self.name,
            uid: &self.uid,
            spec: &self.pool.spec,
            url: known.connection.address(),
            secret: &known.secret_name,
            has_ca: known.connection.ca.is_some(),
            token_id: known.token_id.as_str(),
            agent_image: &self.common.agent_image,
        }
    }

    /// Sees to the agents, and if it is a `full` pass to all that the mode needs beside; when to look again though nothing
    /// changed.
    pub(super) async fn agents(
        &mut self,
        known: &Known,
        memory: &mut Memory,
        full: bool,
    ) -> Result<Option<Duration>, Error> {
        let objects = match workloads::objects(&self.view(known)) {
            Ok(objects) => objects,
            Err(invalid) => return Ok(self.invalid(&invalid)),
        };
        if full {
            self.apply(&objects).await?;
        }
        let demand = self.demand(known).await?;
        if let Some(demand) = &demand {
            self.facts.linked_workspaces = Some(demand.linked_workspaces);
            self.facts.queue = Some(queue(demand));
        }
        let poll = demand.is_none().then_some(POLL);
        match self.pool.spec.agents.mode {
            AgentMode::Ephemeral => {
                let template = match workloads::template_hash(&self.view(known)) {
                    Ok(template) => template,
                    Err(invalid) => return Ok(self.invalid(&invalid)),
                };
                let next = self.scale(known, &template, demand.as_ref(), memory).await?;
                Ok(next.into_iter().chain(poll).min())
            }
            mode => {
                self.others(mode, demand.as_ref()).await?;
                if full {
                    self.remove_pods().await?;
                }
                Ok(poll)
            }
        }
    }

    fn invalid(&mut self, invalid: &workloads::Invalid) -> Option<Duration> {
        self.facts.agents_available = Some(Fact::no(reason::INVALID_SPEC, invalid.to_string()));
        self.facts.stalled = true;
        None
    }

    /// `None`: this control plane does not tell.
    async fn demand(&self, known: &Known) -> Result<Option<PoolDemand>, Error> {
        match known.connection.control_plane.pool_demand(&known.pool_id).await {
            Ok(demand) => Ok(Some(demand)),
            Err(iacp::Error::Unsupported) => Ok(None),
            // One that is gone there is made again by the next full pass.
            Err(source) => Err(Error::Demand { source: Box::new(source) }),
        }
    }

    /// Applies what differs from what is there, and removes what the mode has no more use for.
    pub(super) async fn apply(&self, objects: &[workloads::Owned]) -> Result<(), Error> {
        let cluster = &self.common.cluster;
        for object in objects {
            let live = cluster.get_owned(object.kind, &self.namespace, &object.name).await?;
            if drift::needs_apply(&object.manifest, live.as_ref()) {
                let manifest = drift::sealed(&object.manifest);
                cluster.apply_owned(object.kind, &self.namespace, &object.name, names::POOL_MANAGER, &manifest).await?;
            }
        }
        let name = workloads::object_name(&self.name);
        for kind in OwnedKind::ALL.into_iter().filter(|kind| !objects.iter().any(|object| object.kind == *kind)) {
            if let Some(uid) = self.common.owned.uid_of(kind, &self.namespace, &name, &|meta| self.owns(meta)) {
                cluster.delete_owned(kind, &self.namespace, &name, Some(&uid)).await?;
            }
        }
        Ok(())
    }

    fn selector(&self) -> String {
        format!("{}={}", names::POOL_LABEL, self.name)
    }

    /// Whether it is this pool's: others may carry the label, and a former pool may have had the name.
    fn owns(&self, meta: &ObjectMeta) -> bool {
        let owners = meta.owner_references.as_deref().unwrap_or_default();
        owners.iter().any(|owner| owner.uid == self.uid && owner.controller == Some(true))
            || (self.is_ending() && is_orphan(meta, &self.name))
    }

    fn cached_pods(&self) -> Vec<PodView> {
        let of_pool = |pod: &Pod| {
            pod.namespace().as_deref() == Some(&self.namespace)
                && pod.labels().get(names::POOL_LABEL) == Some(&self.name)
                && self.owns(pod.meta())
        };
        self.context.pods.state_filter(of_pool).iter().map(|pod| workloads::observe(pod)).collect()
    }

    async fn live_pods(&self) -> Result<Vec<Pod>, Error> {
        let pods = self.common.cluster.list::<Pod>(&self.namespace, &self.selector()).await?;
        // Pods of a DaemonSet or Deployment of ours carry the label too, and belong to that.
        Ok(pods.into_iter().filter(|pod| self.owns(pod.meta())).collect())
    }

    async fn scale(
        &mut self,
        known: &Known,
        template: &str,
        demand: Option<&PoolDemand>,
        memory: &mut Memory,
    ) -> Result<Option<Duration>, Error> {
        let now_ms = self.common.clock.now_ms();
        let spec = &self.pool.spec;
        let decide = |pods: &[PodView], memory: &Memory| {
            scale::decide(&ScaleInput { spec, template, now_ms, demand, pods, memory, deleted_ms: None })
        };
        let mut pods = self.cached_pods();
        let mut decision = decide(&pods, memory);
        if has_work(&decision) {
            let live = self.live_pods().await?;
            pods = live.iter().map(workloads::observe).collect();
            decision = decide(&pods, memory);
            *memory = decision.memory.clone();
            self.fail_queued(known, &decision).await?;
            self.create(known, &pods, demand, &decision, memory).await?;
            self.thin_out(&known.connection, &live, &decision).await?;
        } else {
            *memory = decision.memory.clone();
        }
        self.describe(&pods, demand, &decision);
        Ok(decision.next_ms.map(Duration::from_millis))
    }

    async fn create(
        &mut self,
        known: &Known,
        pods: &[PodView],
        demand: Option<&PoolDemand>,
        decision: &ScaleDecision,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        if !decision.create.is_empty() {
            self.check_secret(known).await?;
        }
        for create in &decision.create {
            let salt = NameSalt {
                pool_uid: &self.uid,
                registrations: demand.map_or(0, |demand| demand.registrations),
                pods: pods.iter().map(|pod| pod.uid.as_str()).collect(),
                image: create.image.as_deref(),
                index: create.index,
            };
            let name = workloads::pod_name(&self.name, &salt);
            let view = self.view(known);
            let new = NewPod { name: &name, image: create.image.as_deref() };
            let pod = workloads::pod(&view, &new).map_err(|invalid| invalid.to_string());
            let pod = pod.and_then(|pod| serde_json::from_value::<Pod>(pod).map_err(|error| error.to_string()));
            let pod = match pod {
                Ok(pod) => pod,
                Err(message) => {
                    self.facts.agents_available = Some(Fact::no(reason::INVALID_SPEC, message));
                    self.facts.stalled = true;
                    return Ok(());
                }
            };
            match self.common.cluster.create(&self.namespace, &pod).await {
                Ok(_) => memory.created(),
                // Quota, Pod Security, an admission webhook: somebody's decision, not a fault. No hot loop.
                Err(error) => {
                    let Some(reason) = error.refusal() else { return Err(error.into()) };
                    let detail = error.detail().unwrap_or_default().to_owned();
                    memory.create_refused(self.common.clock.now_ms(), reason, detail);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Pods that start need the Secret: nobody tells when one is deleted, since listing Secrets is not for operators.
    async fn check_secret(&self, known: &Known) -> Result<(), Error> {
        let stored = self.common.cluster.get::<Secret>(&self.namespace, &known.secret_name).await?;
        match stored.as_ref().and_then(secret::held) {
            Some((id, _)) if id == known.token_id => Ok(()),
            _ => Err(Error::NoToken),
        }
    }

    /// Cordons, removes and marks.
    async fn thin_out(&self, connection: &Connection, live: &[Pod], decision: &ScaleDecision) -> Result<(), Error> {
        for agent in &decision.cordon {
            let cordon = connection.control_plane.cordon(agent);
            match self.common.seam.write(WriteKind::CordonAgent, cordon).await {
                Ok(_) => {}
                // It has left by itself.
                Err(error) if matches!(error.cause(), Some(iacp::Error::NotFound { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for Removal { name, uid, resource_version, why } in &decision.remove {
            tracing::info!(namespace = self.namespace, pod = name, ?why, "removing a Pod");
            let cluster = &self.common.cluster;
            cluster.delete_pod(&self.namespace, name, uid, resource_version, why.grace_seconds()).await?;
        }
        for name in &decision.mark_busy {
            if let Some(pod) = live.iter().find(|pod| pod.name_any() == *name) {
                let marked = self.common.cluster.label(pod, &json!({mark::BUSY: "true"})).await;
                // It has ended meanwhile.
                match marked {
                    Err(error) if matches!(error.code(), Some(404 | 409)) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Runs that can never start are told so at once.
    async fn fail_queued(&self, known: &Known, decision: &ScaleDecision) -> Result<(), Error> {
        use crate::api::agent::reason::IMAGE_UNAVAILABLE;
        for fail in &decision.fail {
            let cp = &known.connection.control_plane;
            let call = cp.fail_queued(&known.pool_id, fail.image.as_deref(), IMAGE_UNAVAILABLE, &fail.message);
            let failed = self.common.seam.write(WriteKind::FailQueued, call).await?;
            tracing::info!(
                pool = self.name,
                failed,
                image = fail.image,
                "ended what waited for an image that cannot be had"
            );
        }
        Ok(())
    }

    fn describe(&mut self, pods: &[PodView], demand: Option<&PoolDemand>, decision: &ScaleDecision) {
        let desired = i32::try_from(decision.desired).unwrap_or(i32::MAX);
        let counts = counts(
            demand,
            self.pool.status.as_ref().and_then(|status| status.agents.as_ref()),
            desired,
            self.common.now(),
        );
        let living = pods.iter().filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed)).count();
        self.facts.replicas = i32::try_from(living).ok();
        let limit = decision.limited.as_ref().map(|limit| Fact::yes(limit.reason, limit.message.clone()));
        self.facts.agents_available = match (counts.ready, desired, pods.iter().find_map(|pod| pod.problem.as_ref())) {
            (1.., _, _) => Some(Fact::yes(reason::IN_SYNC, "agents are there to take runs")),
            (_, 0, None) => Some(Fact::yes(reason::SCALED_TO_ZERO, "no agent waits: one is started with the next run")),
            (_, _, Some(problem)) => Some(Fact::no(problem.fault.reason(), problem.message.clone())),
            _ if limit.is_some() && living == 0 => limit.clone().map(|fact| fact.that(false)),
            // Between one single-use agent and the next the pool is as good as it was.
            _ if self.was_available() => None,
            _ => Some(Fact::no(reason::AGENTS_STARTING, "agents are starting")),
        };
        self.facts.limited = Some(limit);
        self.facts.agents = Some(counts);
    }

    fn was_available(&self) -> bool {
        let conditions = self.pool.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        conditions::get(conditions, conditions::AGENTS_AVAILABLE).is_some_and(|condition| condition.status == "True")
    }

    /// Modes whose Pods are others' affair.
    async fn others(&mut self, mode: AgentMode, demand: Option<&PoolDemand>) -> Result<(), Error> {
        let (desired, running) = match mode {
            AgentMode::Node => {
                self.numbers(OwnedKind::DaemonSet, "/status/desiredNumberScheduled", "/status/numberReady").await?
            }
            AgentMode::Deployment => {
                self.numbers(OwnedKind::Deployment, "/spec/replicas", "/status/readyReplicas").await?
            }
            AgentMode::External | AgentMode::Ephemeral => (0, 0),
        };
        let old = self.pool.status.as_ref().and_then(|status| status.agents.as_ref());
        let mut counts = counts(demand, old, desired, self.common.now());
        if demand.is_none() {
            counts.ready = running;
            counts.summary = Some(format!("{running}/{desired}"));
        }
        self.facts.agents_available = Some(match mode {
            AgentMode::External => {
                Fact::yes(reason::AGENTS_ELSEWHERE, "the agents are run by somebody else (mode External)")
            }
            _ if desired == 0 && mode == AgentMode::Node => {
                Fact::no(reason::UNSCHEDULABLE, "no node has the labels of spec.agents.nodeSelector")
            }
            _ if desired == 0 => Fact::yes(reason::SCALED_TO_ZERO, "replicas is 0"),
            _ if counts.ready > 0 => Fact::yes(reason::IN_SYNC, "agents are there to take runs"),
            _ => Fact::no(reason::AGENTS_STARTING, "agents are starting"),
        });
        self.facts.replicas = Some(if mode == AgentMode::External { 0 } else { running });
        self.facts.limited = Some(None);
        self.facts.agents = Some(counts);
        Ok(())
    }

    async fn numbers(&self, kind: OwnedKind, desired: &str, ready: &str) -> Result<(i32, i32), Error> {
        let name = workloads::object_name(&self.name);
        let object = self.common.cluster.get_owned(kind, &self.namespace, &name).await?.unwrap_or_default();
        let number = |path: &str| object.pointer(path).and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
        Ok((number(desired).unwrap_or(0), number(ready).unwrap_or(0)))
    }

    /// What an earlier mode left. Agents with a job finish it first.
    async fn remove_pods(&self) -> Result<(), Error> {
        for pod in self.cached_pods() {
            self.common.cluster.delete::<Pod>(&self.namespace, &pod.name, Some(&pod.uid), None).await?;
        }
        Ok(())
    }

    /// Takes the agents of a deleted pool away; idle ones at once, busy ones when they have finished or their time
    /// is over. `None`: nothing is left; else when to look again, and what is waited for.
    pub(super) async fn remove_agents(
        &mut self,
        connection: &Connection,
        sync: &sync::Context,
    ) -> Result<Option<(Duration, String)>, Error> {
        let live = self.live_pods().await?;
        let pods: Vec<PodView> = live.iter().map(workloads::observe).collect();
        if pods.is_empty() {
            self.apply(&[]).await?;
            return Ok(None);
        }
        let pool = sync::pool::find(sync, self.input()).await?;
        let demand = match &pool {
            Some(pool) => match connection.control_plane.pool_demand(&pool.id).await {
                Ok(demand) => Some(demand),
                Err(iacp::Error::Unsupported | iacp::Error::NotFound { .. }) => None,
                Err(source) => return Err(Error::Demand { source: Box::new(source) }),
            },
            None => None,
        };
        // A pool that the control plane has not any more has no busy agents.
        let nobody = PoolDemand { queued: vec![], agents: vec![], registrations: 0, linked_workspaces: 0 };
        let demand = demand.or(pool.is_none().then_some(nobody));
        let decision = scale::decide(&ScaleInput {
            spec: &self.pool.spec,
            template: "",
            now_ms: self.common.clock.now_ms(),
            demand: demand.as_ref(),
            pods: &pods,
            memory: &Memory::default(),
            deleted_ms: self.pool.meta().deletion_timestamp.as_ref().map(|time| time.0.as_millisecond()),
        });
        self.thin_out(connection, &live, &decision).await?;
        let busy = pods.iter().filter(|pod| pod.busy).count();
        let next = decision.next_ms.map_or(Duration::from_secs(2), Duration::from_millis);
        let message =
            format!("{} Pods of the pool are left, {busy} of them with a run that is finished first", pods.len());
        Ok(Some((next.min(Duration::from_secs(2)), message)))
    }
}

fn has_work(decision: &ScaleDecision) -> bool {
    let ScaleDecision { create, cordon, remove, mark_busy, fail, .. } = decision;
    !(create.is_empty() && cordon.is_empty() && remove.is_empty() && mark_busy.is_empty() && fail.is_empty())
}

fn queue(demand: &PoolDemand) -> QueueStatus {
    QueueStatus {
        depth: demand.queued.iter().map(|group| i64::from(group.jobs)).sum(),
        // Not by the second: a status that changes with the clock is written for ever.
        oldest_seconds: None,
    }
}

fn counts(demand: Option<&PoolDemand>, old: Option<&AgentsStatus>, desired: i32, now: Timestamp) -> AgentsStatus {
    let agents = demand.map(|demand| demand.agents.as_slice()).unwrap_or_default();
    let count = |status: AgentStatus| {
        i32::try_from(agents.iter().filter(|agent| agent.status == status).count()).unwrap_or(i32::MAX)
    };
    let (busy, idle) = (count(AgentStatus::Busy), count(AgentStatus::Idle));
    let scaled = old.is_none_or(|old| old.desired != desired);
    AgentsStatus {
        desired,
        ready: busy + idle,
        busy,
        idle,
        offline: count(AgentStatus::Offline),
        summary: Some(format!("{}/{desired}", busy + idle)),
        version: agents
            .iter()
            .map(|agent| agent.version.clone())
            .min_by_key(|version| semver::Version::parse(version).ok()),
        last_scale_time: if scaled { Some(now.to_string()) } else { old.and_then(|old| old.last_scale_time.clone()) },
    }
}
