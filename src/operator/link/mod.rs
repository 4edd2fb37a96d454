//! The controller of WorkspaceLinks. The work is [`crate::sync::link`]'s; here are the finalizer, the AgentPool that a
//! link refers to, and the status.

mod status;

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};

use self::status::Found;
use super::{
    Common, Error, READ_BACK,
    asked::{PAUSED_MESSAGE, is_forced, is_paused, requested},
    backoff::jittered,
    cluster::{has_finalizer, version},
    facts::worse,
};
use crate::{
    client::iacp::Pool,
    crd::{
        AgentPool, LINK_FINALIZER, WorkspaceLink, WorkspaceLinkStatus,
        conditions::{self, reason},
        names,
        workspace_link::PoolTarget,
    },
    sync::{self, LinkInput, Outcome, PoolInput, Waiting},
};

/// What is waited for outside of the cluster is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A pool that is younger is given the time to come about before a link says that it is not there.
const NEW: Duration = Duration::from_secs(30);

/// A link whose pool comes about hears of it; and looks by itself after this long.
const COMING: Duration = Duration::from_secs(1);

/// What every pass over a link works with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) common: Common,
    /// The AgentPools, as last heard of.
    pools: Store<AgentPool>,
    /// By the uid of the link.
    done: Mutex<HashMap<String, Done>>,
    /// Links that wait for something about their pool.
    waiting: Mutex<HashMap<ObjectRef<AgentPool>, BTreeSet<String>>>,
}

/// A link that was in line a moment ago.
#[derive(Debug, Clone, PartialEq)]
struct Done {
    generation: Option<i64>,
    asked: Option<String>,
    until: tokio::time::Instant,
    /// Version of the object with our last write.
    written: Option<u64>,
}

/// What [`crate::sync`] has to know of an AgentPool to find its pool.
fn pool_input(pool: &AgentPool) -> PoolInput<'_> {
    let meta = pool.meta();
    let [uid, name] = [&meta.uid, &meta.name].map(|text| text.as_deref().unwrap_or_default());
    PoolInput { uid, name, spec: &pool.spec, held: None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    pub(super) fn new(common: Common, pools: Store<AgentPool>) -> Self {
        Self { common, pools, done: Mutex::default(), waiting: Mutex::default() }
    }

    /// For a dry run: there is no cache.
    pub(super) fn empty(common: Common) -> Self {
        let (pools, _) = kube::runtime::reflector::store();
        Self::new(common, pools)
    }

    /// The links that an event of this pool may help.
    pub(super) fn waiting_for(&self, pool: &AgentPool) -> Vec<ObjectRef<WorkspaceLink>> {
        let names = lock(&self.waiting).get(&ObjectRef::from_obj(pool)).cloned().unwrap_or_default();
        let namespace = pool.namespace().unwrap_or_default();
        names.iter().map(|name| ObjectRef::new(name).within(&namespace)).collect()
    }

    /// The AgentPool of that name, as last heard of.
    fn heard_of(&self, namespace: &str, name: &str) -> Option<Arc<AgentPool>> {
        self.pools.get(&ObjectRef::new(name).within(namespace))
    }

    fn wait(&self, link: &WorkspaceLink, waits: bool) {
        let Some(pool) = &link.spec.pool_ref else { return };
        let key = ObjectRef::new(&pool.name).within(&link.namespace().unwrap_or_default());
        let mut waiting = lock(&self.waiting);
        if waits {
            waiting.entry(key).or_default().insert(link.name_any());
        } else if let Some(names) = waiting.get_mut(&key) {
            names.remove(&link.name_any());
            if names.is_empty() {
                waiting.remove(&key);
            }
        }
    }

    fn forget(&self, link: &WorkspaceLink) {
        self.not_done(link);
        self.wait(link, false);
    }

    fn done(&self, link: &WorkspaceLink, done: Done) {
        if lock(&self.done).insert(link.uid().unwrap_or_default(), done).is_none() {
            self.common.metrics.in_line("workspacelink", 1);
        }
    }

    fn not_done(&self, link: &WorkspaceLink) {
        if lock(&self.done).remove(&link.uid().unwrap_or_default()).is_some() {
            self.common.metrics.in_line("workspacelink", -1);
        }
    }
}

/// Brings one link into line.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub(super) async fn reconcile(seen: Arc<WorkspaceLink>, context: Arc<Context>) -> Result<Action, Error> {
    let started = tokio::time::Instant::now();
    let result = visit(&seen, &context).await;
    context.common.metrics.reconciled("workspacelink", started.elapsed(), result.as_ref().err().map(Error::reason));
    let next = result?;
    context.common.link_failures.succeeded(&ObjectRef::from_obj(&*seen));
    Ok(next.map_or_else(Action::await_change, Action::requeue))
}

async fn visit(seen: &WorkspaceLink, context: &Context) -> Result<Option<Duration>, Error> {
    let now = tokio::time::Instant::now();
    let active = seen.meta().deletion_timestamp.is_none() && !is_paused(seen);
    let done = lock(&context.done)
        .get(&seen.uid().unwrap_or_default())
        .cloned()
        .filter(|done| active && done.generation == seen.meta().generation && done.asked == requested(seen));
    if let Some(done) = done.filter(|done| now < done.until) {
        if version(seen) < done.written {
            return Ok(Some(READ_BACK));
        }
        if seen.status.as_ref().is_some_and(|status| !status.conditions.is_empty()) {
            return Ok(Some(done.until - now));
        }
    }
    if active {
        let pass = Pass::new(context, seen);
        if pass.pool_is_coming() {
            context.wait(seen, true);
            return Ok(Some(COMING));
        }
        if let Some(rest) = pass.verify().await {
            return Ok(Some(rest));
        }
    }
    // What a cache says may be long over: nothing is linked for an object that is gone.
    let live = context.common.cluster.get_with_finalizer(seen, LINK_FINALIZER, active).await?;
    let Some(link) = live else {
        context.forget(seen);
        return Ok(None);
    };
    let pass = Pass::new(context, &link);
    if is_paused(&link) {
        pass.tell(&Found::Waiting(Waiting::new(reason::PAUSED, PAUSED_MESSAGE))).await?;
        return Ok(None);
    }
    if link.meta().deletion_timestamp.is_some() {
        return pass.delete().await;
    }
    match pass.bring_into_line().await {
        Ok(next) => Ok(Some(next)),
        Err(error) => {
            context.forget(&link);
            if !error.is_conflict() {
                pass.tell(&Found::Failed { reason: error.reason(), message: error.to_text() }).await?;
            }
            Err(error)
        }
    }
}

struct Pass<'a> {
    context: &'a Context,
    common: &'a Common,
    link: &'a WorkspaceLink,
    namespace: String,
}

impl<'a> Pass<'a> {
    fn new(context: &'a Context, link: &'a WorkspaceLink) -> Self {
        Self { context, common: &context.common, link, namespace: link.namespace().unwrap_or_default() }
    }

    /// Whether link and pool are both so new that nobody has looked at the pool yet: it is the pool's turn, and to tell
    /// that it is not there would be news of the moment.
    fn pool_is_coming(&self) -> bool {
        let Some(target) = &self.link.spec.pool_ref else { return false };
        let Some(pool) = self.context.heard_of(&self.namespace, &target.name) else { return false };
        let created = pool.meta().creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
        let untold = |conditions: Option<&[_]>| conditions.is_none_or(<[_]>::is_empty);
        untold(self.link.status.as_ref().map(|status| &status.conditions[..]))
            && untold(pool.status.as_ref().map(|status| &status.conditions[..]))
            && u128::from((self.common.clock.now_ms() - created).unsigned_abs()) < NEW.as_millis()
    }

    /// Looks, without a write and from what the cache says of the objects, whether all is as the status says; when to
    /// look again. `None`: something is to be done, which is then decided from the objects themselves.
    async fn verify(&self) -> Option<Duration> {
        let status = self.link.status.as_ref()?;
        let ready = conditions::get(&status.conditions, conditions::READY)?;
        if ready.status != "True" || !has_finalizer(self.link, LINK_FINALIZER) {
            return None;
        }
        let pool = match &self.link.spec.pool_ref {
            Some(target) => Some(self.context.heard_of(&self.namespace, &target.name)?),
            None => None,
        };
        let sync = self.sync(pool.as_deref()).await.ok()?.ok()?;
        let seen = self.own_pool(pool.as_deref());
        let report = sync::link::inspect(&sync, self.input(pool.as_deref(), seen.as_deref())).await.ok()??;
        let new = self.status(&Found::Linked(Box::new(report)));
        (*status == new).then(|| self.done(None))
    }

    /// All is in line; when to look again.
    fn done(&self, written: Option<u64>) -> Duration {
        self.context.wait(self.link, false);
        let rest = jittered(self.common.resync);
        let done = Done {
            generation: self.link.meta().generation,
            asked: requested(self.link),
            until: tokio::time::Instant::now() + rest,
            written: written.or(version(self.link)),
        };
        self.context.done(self.link, done);
        rest
    }

    fn status(&self, found: &Found) -> WorkspaceLinkStatus {
        status::compute(self.link.status.as_ref(), found, self.link.meta().generation, self.common.now())
    }

    async fn bring_into_line(&self) -> Result<Duration, Error> {
        self.common.cluster.add_finalizer(self.link, LINK_FINALIZER).await?;
        let found = self.find().await?;
        let written = self.tell(&found).await?;
        if matches!(found, Found::Waiting(_)) {
            self.context.wait(self.link, true);
            self.context.not_done(self.link);
            return Ok(jittered(LOOK_AGAIN));
        }
        Ok(self.done(written))
    }

    async fn find(&self) -> Result<Found, Error> {
        let pool = self.pool().await?;
        if let Some(target) = &self.link.spec.pool_ref
            && pool.is_none()
        {
            let message =
                format!("there is no AgentPool `{}` in this namespace: create it, or correct poolRef", target.name);
            return Ok(Found::Waiting(Waiting::new(reason::POOL_NOT_FOUND, message)));
        }
        let sync = match self.sync(pool.as_deref()).await? {
            Ok(sync) => sync,
            Err(waiting) => return Ok(Found::Waiting(waiting)),
        };
        // What only looks as if it stood in the way is looked at again.
        if let Some(seen) = self.own_pool(pool.as_deref())
            && let Outcome::Done(report) =
                sync::link::reconcile(&sync, self.input(pool.as_deref(), Some(&seen))).await?
        {
            return Ok(Found::Linked(Box::new(report)));
        }
        match sync::link::reconcile(&sync, self.input(pool.as_deref(), None)).await? {
            Outcome::Done(report) => Ok(Found::Linked(Box::new(report))),
            Outcome::Waiting(waiting) => Ok(Found::Waiting(waiting)),
        }
    }

    /// What the reconciling core works with: the control plane is the AgentPool's, where the link refers to one.
    async fn sync(&self, pool: Option<&AgentPool>) -> Result<Result<sync::Context, Waiting>, Error> {
        let reference = match pool {
            Some(pool) => pool.spec.control_plane.as_ref(),
            None => self.link.spec.control_plane.as_ref(),
        };
        let connection = self.common.control_planes.resolve(&self.namespace, reference).await?;
        Ok(connection.map(|connection| self.common.sync(&connection.control_plane)))
    }

    fn own_pool(&self, pool: Option<&AgentPool>) -> Option<Arc<Pool>> {
        self.common.own_pools.of(pool?.metadata.uid.as_deref())
    }

    fn input<'p>(&'p self, pool: Option<&'p AgentPool>, seen: Option<&'p Pool>) -> LinkInput<'p> {
        LinkInput { spec: &self.link.spec, pool: pool.map(pool_input), seen }
    }

    /// The AgentPool that the link refers to. One that was heard of may be gone: then so is what has its uid in the
    /// control plane, which is looked for next. That there is none is asked of the API server itself.
    async fn pool(&self) -> Result<Option<Arc<AgentPool>>, Error> {
        let Some(target) = &self.link.spec.pool_ref else { return Ok(None) };
        match self.context.heard_of(&self.namespace, &target.name) {
            Some(pool) => Ok(Some(pool)),
            None => Ok(self.common.cluster.get::<AgentPool>(&self.namespace, &target.name).await?.map(Arc::new)),
        }
    }

    async fn delete(&self) -> Result<Option<Duration>, Error> {
        if !has_finalizer(self.link, LINK_FINALIZER) {
            self.context.forget(self.link);
            return Ok(None);
        }
        if let Err(error) = self.unlink().await
            && !(is_forced(self.link) && matches!(error, Error::Sync(_) | Error::Waiting(_)))
        {
            if !error.is_conflict() {
                let message = format!("cannot be unlinked now: {}", error.to_text());
                self.tell(&Found::Failed { reason: error.reason(), message }).await?;
            }
            return Err(error);
        }
        self.common.cluster.remove_finalizer(self.link, LINK_FINALIZER).await?;
        self.context.forget(self.link);
        Ok(None)
    }

    async fn unlink(&self) -> Result<(), Error> {
        let pool = self.pool().await?;
        let mut spec = Cow::Borrowed(&self.link.spec);
        if spec.pool_ref.is_some() && pool.is_none() {
            // A pool in use is not deleted before its links, but one that was only joined, or is retained, goes on
            // without its AgentPool.
            let Some(id) = self.link.status.as_ref().and_then(|status| status.pool_id.clone()) else { return Ok(()) };
            let spec = spec.to_mut();
            spec.pool_ref = None;
            spec.pool = Some(PoolTarget { id: Some(id), name: None });
        }
        let sync = self.sync(pool.as_deref()).await?.map_err(Error::Waiting)?;
        sync::link::delete(&sync, LinkInput { spec: &spec, ..self.input(pool.as_deref(), None) }).await?;
        Ok(())
    }

    /// Writes the status if it changed; the version of the object then.
    async fn tell(&self, found: &Found) -> Result<Option<u64>, Error> {
        let old = self.link.status.as_ref();
        let new = self.status(found);
        if old == Some(&new) {
            return Ok(None);
        }
        let manager = format!("{}-status", names::LINK_MANAGER);
        let written = self.common.cluster.apply_status(self.link, &manager, &new).await?;
        let before = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
        if let Some(news) = worse(before, &new.conditions) {
            self.common.events.publish(self.link, news).await;
        }
        Ok(written)
    }
}
