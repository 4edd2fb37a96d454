//! The controller of AgentPools. One pass: read the object afresh, bring pool and token into line through
//! [`crate::sync`], put the token into the Secret, then see to the agents ([`agents`]), then tell in the status.
//!
//! Nothing here has to be remembered: [`Memory`] only saves calls, and losing it costs one full pass.

mod agents;
mod deletion;
mod registration;
mod secret;
mod status;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};

use self::{
    registration::{Known, Registered},
    status::{Facts, Urgency},
};
use super::{
    Common, Error, READ_BACK,
    asked::{PAUSED_MESSAGE, is_paused, requested},
    backoff::jittered,
    cluster::{has_finalizer, version},
    facts::{Fact, worse},
    workloads::{self, scale},
};
use crate::{
    crd::{
        AgentPool, POOL_FINALIZER,
        agent_pool::RunUser,
        conditions::{self, reason},
        names,
    },
    sync::PoolInput,
};

/// Numbers that change with every run are written at most this often.
const COARSE: Duration = Duration::from_secs(10);

/// A number that has not changed for so long has settled.
const SETTLED: Duration = Duration::from_secs(30);

/// One that does not settle is written at least this often.
const UNSETTLED: Duration = Duration::from_secs(120);

/// What can only be waited for is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What every pass over a pool works with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) common: Common,
    /// The Pods of all pools, as last heard of.
    pub(super) pods: Store<Pod>,
    /// Boxed: a table has room to spare, and these are large.
    memory: Mutex<HashMap<ObjectRef<AgentPool>, Box<Memory>>>,
}

/// What was found out by the last full pass, so that news of runs need not ask for all of it again.
#[derive(Debug, Clone)]
struct Memory {
    uid: String,
    generation: Option<i64>,
    /// Annotations that ask for something.
    asked: Option<String>,
    /// Until when it is believed; `None`: no longer, and whoever looks again says when it is the next time.
    until: Option<tokio::time::Instant>,
    known: Known,
    scaling: scale::Memory,
    pace: Pace,
    /// Version of the object with our last write.
    written: Option<u64>,
}

/// What tells when numbers are written.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// The last write.
    written: Option<tokio::time::Instant>,
    /// The number of linked workspaces, and since when it has been that.
    linked: Option<(i64, tokio::time::Instant)>,
}

impl Pace {
    fn sees(&mut self, linked: Option<i64>) {
        if let Some(number) = linked
            && self.linked.is_none_or(|(last, _)| last != number)
        {
            self.linked = Some((number, tokio::time::Instant::now()));
        }
    }

    /// How long a change of that urgency has to wait.
    fn wait(self, urgency: Urgency) -> Duration {
        let Some(written) = self.written else { return Duration::ZERO };
        let rest = |of: Duration, since: tokio::time::Instant| of.saturating_sub(since.elapsed());
        match urgency {
            Urgency::Never | Urgency::Now => Duration::ZERO,
            Urgency::Later => rest(COARSE, written),
            Urgency::Settled => {
                let settled = self.linked.map_or(Duration::ZERO, |(_, since)| rest(SETTLED, since));
                settled.min(rest(UNSETTLED, written))
            }
        }
    }
}

impl Context {
    pub(super) fn new(common: Common, pods: Store<Pod>) -> Self {
        Self { common, pods, memory: Mutex::default() }
    }

    /// For a dry run: there is no cache.
    pub(super) fn empty(common: Common) -> Self {
        let (pods, _) = kube::runtime::reflector::store();
        Self::new(common, pods)
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<ObjectRef<AgentPool>, Box<Memory>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, pool: &AgentPool) -> Option<Box<Memory>> {
        self.memory().get(&ObjectRef::from_obj(pool)).cloned()
    }

    /// Whether the pool has rested for long enough; says so once.
    pub(super) fn take_due(&self, pool: &AgentPool) -> bool {
        let mut memory = self.memory();
        let until = memory.get_mut(&ObjectRef::from_obj(pool)).map(|memory| &mut memory.until);
        until.is_some_and(|until| until.take_if(|until| *until <= tokio::time::Instant::now()).is_some())
    }

    /// What was believed may be out of date: the next visit asks for all of it.
    fn expire(&self, pool: &AgentPool) {
        self.common.own_pools.forget(pool.meta().uid.as_deref().unwrap_or_default());
        self.looks_again(pool);
    }

    fn looks_again(&self, pool: &AgentPool) {
        if let Some(memory) = self.memory().get_mut(&ObjectRef::from_obj(pool)) {
            memory.until = None;
        }
    }

    /// The object is gone.
    fn forget(&self, pool: &AgentPool) {
        let key = ObjectRef::from_obj(pool);
        if self.memory().remove(&key).is_some() {
            self.common.metrics.in_line("agentpool", -1);
        }
        self.common.control_planes.forget(&key);
        self.common.own_pools.forget(pool.meta().uid.as_deref().unwrap_or_default());
    }

    fn remember(&self, pool: &AgentPool, memory: Box<Memory>) {
        if self.memory().insert(ObjectRef::from_obj(pool), memory).is_none() {
            self.common.metrics.in_line("agentpool", 1);
        }
    }
}

/// Brings one pool into line.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub(super) async fn reconcile(seen: Arc<AgentPool>, context: Arc<Context>) -> Result<Action, Error> {
    let started = tokio::time::Instant::now();
    let result = Box::pin(visit(&seen, &context)).await;
    context.common.metrics.reconciled("agentpool", started.elapsed(), result.as_ref().err().map(Error::reason));
    let next = result?;
    context.common.pool_failures.succeeded(&ObjectRef::from_obj(&*seen));
    Ok(next.map_or_else(Action::await_change, |after| Action::requeue(after.max(Duration::from_millis(10)))))
}

/// One visit; when to come again by itself. `None`: when it is due, or something is heard.
async fn visit(seen: &AgentPool, context: &Context) -> Result<Option<Duration>, Error> {
    let active = seen.meta().deletion_timestamp.is_none() && !is_paused(seen);
    let remembered = context.remembered(seen).filter(|memory| {
        active
            && seen.meta().uid.as_deref() == Some(&memory.uid)
            && seen.meta().generation == memory.generation
            && requested(seen) == memory.asked
            && memory.until.is_some_and(|until| tokio::time::Instant::now() < until)
    });
    if let Some(memory) = remembered {
        if version(seen) < memory.written {
            return Ok(Some(READ_BACK));
        }
        return Pass::new(context, seen).quick(memory).await;
    }
    context.looks_again(seen);
    if active && was_in_line(seen) && !context.common.cluster.is_dry() {
        let pass = Pass::new(context, seen);
        match pass.look().await {
            Ok(Some(found)) => return pass.go_on(found, false).await,
            Ok(None) => {}
            // To ask the same again at once would only take another deadline.
            Err(error) => return pass.fail(error).await,
        }
    }
    // What a cache says may be long over: a pool must not be made for an object that is gone.
    let live = context.common.cluster.get_with_finalizer(seen.meta(), POOL_FINALIZER, active).await?;
    let Some(pool) = live else {
        context.forget(seen);
        return Ok(None);
    };
    if is_paused(&pool) {
        let facts =
            Facts { not_ready: Some(Fact::no(reason::PAUSED, PAUSED_MESSAGE)), stalled: true, ..Facts::default() };
        Pass { facts, ..Pass::new(context, &pool) }.tell(Pace::default()).await?;
        return Ok(None);
    }
    let pass = Pass::new(context, &pool);
    if pool.meta().deletion_timestamp.is_some() { pass.delete().await } else { pass.full().await }
}

/// Whether the last visit left the pool, as it is now, with nothing to do.
fn was_in_line(pool: &AgentPool) -> bool {
    let conditions = pool.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let ready = conditions::get(conditions, conditions::READY).filter(|ready| ready.status == "True");
    ready.is_some_and(|ready| ready.observed_generation == pool.meta().generation)
        && has_finalizer(pool, POOL_FINALIZER)
}

/// What became of a new status.
enum Told {
    /// It is the old one.
    Nothing,
    /// The version of the object then, if it is known.
    Written(Option<u64>),
    /// It is to be written after that long.
    Later(Duration),
}

/// One pass over one pool.
struct Pass<'a> {
    context: &'a Context,
    common: &'a Common,
    pool: &'a AgentPool,
    namespace: String,
    name: String,
    uid: String,
    facts: Facts,
}

impl<'a> Pass<'a> {
    fn new(context: &'a Context, pool: &'a AgentPool) -> Self {
        let facts = Facts {
            privileged: pool.spec.runs.user == RunUser::Root,
            selector: Some(format!("{}={}", names::POOL_LABEL, pool.name_any())),
            ..Facts::default()
        };
        Self {
            context,
            common: &context.common,
            pool,
            namespace: pool.namespace().unwrap_or_default(),
            name: pool.name_any(),
            uid: pool.uid().unwrap_or_default(),
            facts,
        }
    }

    /// Only the agents: pool, token and Secret were in line a moment ago.
    async fn quick(mut self, mut memory: Box<Memory>) -> Result<Option<Duration>, Error> {
        self.known(&memory.known);
        let next = self.agents(&memory.known, &mut memory.scaling, false).await;
        self.finish(next, memory).await
    }

    /// Everything.
    async fn full(mut self) -> Result<Option<Duration>, Error> {
        // There before the first write to the control plane, so that nothing stays behind there.
        self.common.cluster.add_finalizer(self.pool, POOL_FINALIZER).await?;
        let found = match self.register().await {
            Ok(Ok(found)) => found,
            Ok(Err(waiting)) => {
                self.facts.stalled = waiting.reason != reason::CONTROL_PLANE_UNREACHABLE;
                self.common.metrics.waiting("agentpool", waiting.reason);
                self.context.expire(self.pool);
                self.tell(Pace::default()).await?;
                return Ok(Some(jittered(LOOK_AGAIN)));
            }
            Err(error) => return self.fail(error).await,
        };
        self.go_on(found, true).await
    }

    /// Looks, without a write and from what the cache says of the pool, whether pool, token, Secret and owned objects
    /// are as they are to be. `None`: something is to be done, which is then decided from the object itself.
    async fn look(&self) -> Result<Option<Registered>, Error> {
        let common = self.common.looking();
        let mut pass = Pass { common: &common, ..Pass::new(self.context, self.pool) };
        let found = match pass.register().await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => return Ok(None),
            Err(error) if error.planned().is_some() => return Ok(None),
            Err(error) => return Err(error),
        };
        let Ok(objects) = workloads::objects(&pass.view(&found.known)) else { return Ok(None) };
        pass.apply(&objects).await?;
        Ok(common.cluster.take_planned().is_empty().then_some(found))
    }

    async fn fail<T>(mut self, error: Error) -> Result<T, Error> {
        self.context.expire(self.pool);
        self.tell_not_ready(&error).await?;
        Err(error)
    }

    /// Sees to the agents of a pool that is in line, tells, and remembers.
    async fn go_on(mut self, found: Registered, full: bool) -> Result<Option<Duration>, Error> {
        let mut memory = self.registered(found);
        let next = self.agents(&memory.known, &mut memory.scaling, full).await;
        self.finish(next, memory).await
    }

    /// Of a conflict nobody needs to hear: the next pass is in a moment.
    async fn tell_not_ready(&mut self, error: &Error) -> Result<(), Error> {
        if !error.is_conflict() {
            self.facts.not_ready = Some(Fact::no(error.reason(), error.to_text()));
            self.tell(Pace::default()).await?;
        }
        Ok(())
    }

    /// Tells in the facts, listens for changes, and makes what is to be remembered.
    fn registered(&mut self, Registered { known, next_token }: Registered) -> Box<Memory> {
        self.known(&known);
        let object = ObjectRef::from_obj(self.pool);
        self.common.control_planes.watch(&known.connection, &known.pool_id, object);
        let old = self.context.remembered(self.pool);
        Box::new(Memory {
            uid: self.uid.clone(),
            generation: self.pool.meta().generation,
            asked: requested(self.pool),
            until: Some(tokio::time::Instant::now() + jittered(self.common.resync).min(next_token)),
            scaling: old.as_ref().map(|memory| memory.scaling.clone()).unwrap_or_default(),
            pace: old.map(|memory| memory.pace).unwrap_or_default(),
            written: version(self.pool),
            known,
        })
    }

    /// Tells in the status how it went, and remembers.
    async fn finish(
        mut self,
        agents: Result<Option<Duration>, Error>,
        mut memory: Box<Memory>,
    ) -> Result<Option<Duration>, Error> {
        if let Err(error) = &agents
            && !error.is_conflict()
        {
            self.facts.agents_available = Some(Fact::unknown(error.reason(), error.to_text()));
        }
        memory.pace.sees(self.facts.linked_workspaces);
        let later = match self.tell(memory.pace).await? {
            Told::Nothing => None,
            Told::Written(version) => {
                memory.pace.written = Some(tokio::time::Instant::now());
                memory.written = version.or(memory.written);
                None
            }
            Told::Later(wait) => Some(wait),
        };
        let until = memory.until;
        self.context.remember(self.pool, memory);
        if agents.is_err() {
            self.context.expire(self.pool);
        }
        // Otherwise it is due before.
        let now = tokio::time::Instant::now();
        Ok(agents?.into_iter().chain(later).min().filter(|next| until.is_some_and(|until| now + *next < until)))
    }

    /// Somebody has deleted the object.
    fn is_ending(&self) -> bool {
        self.pool.meta().deletion_timestamp.is_some()
    }

    fn input(&self) -> PoolInput<'_> {
        PoolInput { uid: &self.uid, name: &self.name, spec: &self.pool.spec, held: None }
    }

    /// Writes the status if it changed and it is time to.
    async fn tell(&self, pace: Pace) -> Result<Told, Error> {
        let old = self.pool.status.as_ref();
        let new = status::compute(old, &self.facts, self.pool.meta().generation, self.common.now());
        let urgency = status::urgency(old, &new);
        if urgency == Urgency::Never {
            return Ok(Told::Nothing);
        }
        let wait = pace.wait(urgency);
        if !wait.is_zero() {
            return Ok(Told::Later(wait));
        }
        let manager = format!("{}-status", names::POOL_MANAGER);
        let version = self.common.cluster.apply_status(self.pool, &manager, &new).await?;
        let before = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
        if let Some(news) = worse(before, &new.conditions) {
            self.common.events.publish(self.pool, news).await;
        }
        Ok(Told::Written(version))
    }
}
