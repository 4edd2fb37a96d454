//! The controller of WorkspaceLinks. The work is [`crate::sync::link`]'s; here are the finalizer, the AgentPool that a
//! link refers to, and the status.

mod sight;
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

pub(super) use self::sight::LinkSight;
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
        AgentPool, LINK_FINALIZER, WorkspaceLink, WorkspaceLinkSpec, WorkspaceLinkStatus, conditions::reason, names,
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

/// A link that was in line when it was last looked at.
#[derive(Debug, Clone, PartialEq)]
struct Done {
    generation: Option<i64>,
    asked: Option<String>,
    /// How long it may rest; `None`: no longer, and whoever looks again says when it is the next time.
    until: Option<tokio::time::Instant>,
    /// Version of the object with our last write.
    written: Option<u64>,
}

/// A WorkspaceLink, read afresh or from the cache.
trait Link: Resource<DynamicType = ()> {
    fn spec(&self) -> &WorkspaceLinkSpec;
}

impl Link for WorkspaceLink {
    fn spec(&self) -> &WorkspaceLinkSpec {
        &self.spec
    }
}

impl Link for LinkSight {
    fn spec(&self) -> &WorkspaceLinkSpec {
        &self.spec
    }
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
    pub(super) fn waiting_for(&self, pool: &AgentPool) -> Vec<ObjectRef<LinkSight>> {
        let names = lock(&self.waiting).get(&ObjectRef::from_obj(pool)).cloned().unwrap_or_default();
        let namespace = pool.namespace().unwrap_or_default();
        names.iter().map(|name| ObjectRef::new(name).within(&namespace)).collect()
    }

    /// Whether the link has rested for long enough; says so once.
    pub(super) fn take_due(&self, link: &LinkSight) -> bool {
        let Some(uid) = &link.meta().uid else { return false };
        let mut done = lock(&self.done);
        let until = done.get_mut(uid).map(|done| &mut done.until);
        until.is_some_and(|until| until.take_if(|until| *until <= tokio::time::Instant::now()).is_some())
    }

    /// The AgentPool of that name, as last heard of.
    fn heard_of(&self, namespace: &str, name: &str) -> Option<Arc<AgentPool>> {
        self.pools.get(&ObjectRef::new(name).within(namespace))
    }

    fn wait(&self, link: &impl Link, waits: bool) {
        let Some(pool) = &link.spec().pool_ref else { return };
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

    fn forget(&self, link: &impl Link) {
        self.not_done(link);
        self.wait(link, false);
    }

    /// All is in line: it rests until it is due, or something is heard. `written`: see [`Done::written`].
    fn done(&self, link: &impl Link, written: Option<u64>) {
        self.wait(link, false);
        let done = Done {
            generation: link.meta().generation,
            asked: requested(link),
            until: Some(tokio::time::Instant::now() + jittered(self.common.resync)),
            written: written.or(version(link)),
        };
        if lock(&self.done).insert(link.uid().unwrap_or_default(), done).is_none() {
            self.common.metrics.in_line("workspacelink", 1);
        }
    }

    fn looks_again(&self, link: &LinkSight) {
        if let Some(done) = lock(&self.done).get_mut(&link.uid().unwrap_or_default()) {
            done.until = None;
        }
    }

    fn not_done(&self, link: &impl Link) {
        if lock(&self.done).remove(&link.uid().unwrap_or_default()).is_some() {
            self.common.metrics.in_line("workspacelink", -1);
        }
    }
}

/// Brings one link into line.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub(super) async fn reconcile(seen: Arc<LinkSight>, context: Arc<Context>) -> Result<Action, Error> {
    let started = tokio::time::Instant::now();
    let result = visit(&seen, &context).await;
    context.common.metrics.reconciled("workspacelink", started.elapsed(), result.as_ref().err().map(Error::reason));
    let next = result?;
    context.common.link_failures.succeeded(&ObjectRef::from_obj(&*seen));
    Ok(next.map_or_else(Action::await_change, Action::requeue))
}

/// When to come again by itself; `None`: when it is due, or something is heard.
async fn visit(seen: &LinkSight, context: &Context) -> Result<Option<Duration>, Error> {
    let active = seen.meta().deletion_timestamp.is_none() && !is_paused(seen);
    let done = lock(&context.done)
        .get(&seen.uid().unwrap_or_default())
        .cloned()
        .filter(|done| active && done.generation == seen.meta().generation && done.asked == requested(seen));
    if let Some(done) = done.filter(|done| done.until.is_some_and(|until| tokio::time::Instant::now() < until)) {
        if version(seen) < done.written {
            return Ok(Some(READ_BACK));
        }
        if seen.is_told() {
            return Ok(None);
        }
    }
    context.looks_again(seen);
    if active {
        let wish = Wish::of(context, seen);
        if wish.pool_is_coming(seen) {
            context.wait(seen, true);
            return Ok(Some(COMING));
        }
        if wish.is_fulfilled(seen).await {
            context.done(seen, None);
            return Ok(None);
        }
    }
    // What a cache says may be long over: nothing is linked for an object that is gone.
    let live = context.common.cluster.get_with_finalizer(seen.meta(), LINK_FINALIZER, active).await?;
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
        Ok(next) => Ok(next),
        Err(error) => {
            context.forget(&link);
            if !error.is_conflict() {
                pass.tell(&Found::Failed { reason: error.reason(), message: error.to_text() }).await?;
            }
            Err(error)
        }
    }
}

/// What a link asks for.
struct Wish<'a> {
    context: &'a Context,
    common: &'a Common,
    namespace: String,
    spec: &'a WorkspaceLinkSpec,
}

impl<'a> Wish<'a> {
    fn of(context: &'a Context, link: &'a impl Link) -> Self {
        let namespace = link.namespace().unwrap_or_default();
        Self { context, common: &context.common, namespace, spec: link.spec() }
    }

    /// Whether link and pool are both so new that nobody has looked at the pool yet: it is the pool's turn, and to tell
    /// that it is not there would be news of the moment.
    fn pool_is_coming(&self, seen: &LinkSight) -> bool {
        let Some(target) = &self.spec.pool_ref else { return false };
        let Some(pool) = self.context.heard_of(&self.namespace, &target.name) else { return false };
        let created = pool.meta().creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
        !seen.is_told()
            && pool.status.as_ref().is_none_or(|status| status.conditions.is_empty())
            && u128::from((self.common.clock.now_ms() - created).unsigned_abs()) < NEW.as_millis()
    }

    /// Looks, without a write and from what the cache says of the objects, whether all is as the status says. If not,
    /// what is to be done is decided from the objects themselves.
    async fn is_fulfilled(&self, seen: &LinkSight) -> bool {
        if !seen.is_ready() || !has_finalizer(seen, LINK_FINALIZER) {
            return false;
        }
        let pool = match &self.spec.pool_ref {
            Some(target) => match self.context.heard_of(&self.namespace, &target.name) {
                Some(pool) => Some(pool),
                None => return false,
            },
            None => None,
        };
        let Ok(Ok(sync)) = self.sync(pool.as_deref()).await else { return false };
        let own = self.own_pool(pool.as_deref());
        match sync::link::inspect(&sync, self.input(pool.as_deref(), own.as_deref())).await {
            Ok(Some(report)) => {
                let found = Found::Linked(Box::new(report));
                seen.says(&status::compute(None, &found, seen.meta().generation, self.common.now()))
            }
            Ok(None) | Err(_) => false,
        }
    }

    /// What the reconciling core works with: the control plane is the AgentPool's, where the link refers to one.
    async fn sync(&self, pool: Option<&AgentPool>) -> Result<Result<sync::Context, Waiting>, Error> {
        let reference = match pool {
            Some(pool) => pool.spec.control_plane.as_deref(),
            None => self.spec.control_plane.as_deref(),
        };
        let connection = self.common.control_planes.resolve(&self.namespace, reference).await?;
        Ok(connection.map(|connection| self.common.sync(&connection.control_plane)))
    }

    fn own_pool(&self, pool: Option<&AgentPool>) -> Option<Arc<Pool>> {
        self.common.own_pools.of(pool?.metadata.uid.as_deref())
    }

    fn input<'p>(&'p self, pool: Option<&'p AgentPool>, seen: Option<&'p Pool>) -> LinkInput<'p> {
        LinkInput { spec: self.spec, pool: pool.map(pool_input), seen }
    }

    /// The AgentPool that the link refers to. One that was heard of may be gone: then so is what has its uid in the
    /// control plane, which is looked for next. That there is none is asked of the API server itself.
    async fn pool(&self) -> Result<Option<Arc<AgentPool>>, Error> {
        let Some(target) = &self.spec.pool_ref else { return Ok(None) };
        match self.context.heard_of(&self.namespace, &target.name) {
            Some(pool) => Ok(Some(pool)),
            None => Ok(self.common.cluster.get::<AgentPool>(&self.namespace, &target.name).await?.map(Arc::new)),
        }
    }

    async fn find(&self) -> Result<Found, Error> {
        let pool = self.pool().await?;
        if let Some(target) = &self.spec.pool_ref
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
}

/// One pass over one link, as the API server has it.
struct Pass<'a> {
    wish: Wish<'a>,
    link: &'a WorkspaceLink,
}

impl<'a> Pass<'a> {
    fn new(context: &'a Context, link: &'a WorkspaceLink) -> Self {
        Self { wish: Wish::of(context, link), link }
    }

    async fn bring_into_line(&self) -> Result<Option<Duration>, Error> {
        self.wish.common.cluster.add_finalizer(self.link, LINK_FINALIZER).await?;
        let found = self.wish.find().await?;
        let written = self.tell(&found).await?;
        if matches!(found, Found::Waiting(_)) {
            self.wish.context.wait(self.link, true);
            self.wish.context.not_done(self.link);
            return Ok(Some(jittered(LOOK_AGAIN)));
        }
        self.wish.context.done(self.link, written);
        Ok(None)
    }

    async fn delete(&self) -> Result<Option<Duration>, Error> {
        if !has_finalizer(self.link, LINK_FINALIZER) {
            self.wish.context.forget(self.link);
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
        self.wish.common.cluster.remove_finalizer(self.link, LINK_FINALIZER).await?;
        self.wish.context.forget(self.link);
        Ok(None)
    }

    async fn unlink(&self) -> Result<(), Error> {
        let pool = self.wish.pool().await?;
        let mut spec = Cow::Borrowed(&self.link.spec);
        if spec.pool_ref.is_some() && pool.is_none() {
            // A pool in use is not deleted before its links, but one that was only joined, or is retained, goes on
            // without its AgentPool.
            let Some(id) = self.link.status.as_ref().and_then(|status| status.pool_id.clone()) else { return Ok(()) };
            let spec = spec.to_mut();
            spec.pool_ref = None;
            spec.pool = Some(PoolTarget { id: Some(id), name: None });
        }
        let sync = self.wish.sync(pool.as_deref()).await?.map_err(Error::Waiting)?;
        sync::link::delete(&sync, LinkInput { spec: &spec, ..self.wish.input(pool.as_deref(), None) }).await?;
        Ok(())
    }

    /// Writes the status if it changed; the version of the object then.
    async fn tell(&self, found: &Found) -> Result<Option<u64>, Error> {
        let old = self.link.status.as_ref();
        let new: WorkspaceLinkStatus = status::compute(old, found, self.link.meta().generation, self.wish.common.now());
        if old == Some(&new) {
            return Ok(None);
        }
        let manager = format!("{}-status", names::LINK_MANAGER);
        let written = self.wish.common.cluster.apply_status(self.link, &manager, &new).await?;
        let before = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
        if let Some(news) = worse(before, &new.conditions) {
            self.wish.common.events.publish(self.link, news).await;
        }
        Ok(written)
    }
}
