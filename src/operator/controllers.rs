//! The two controllers of one namespace, or of all: their watches, what triggers a visit, how many at a time.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        Controller, WatchStreamExt,
        controller::{self, Action},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::sync::mpsc;

use super::{
    Common, Error, MISSING,
    cluster::has_finalizer,
    health::Pending,
    link::{self, LinkSight},
    owned::{self, FILL, Owned, Triggers, api},
    pool,
};
use crate::{
    crd::{AgentPool, LINK_FINALIZER, POOL_FINALIZER, names},
    shutdown::Shutdown,
    telemetry::Chain,
};

/// Objects that a list asks for at a time: bounds the memory of the first list.
const PAGE: u32 = 100;

/// Parts of a rest: so exactly is the end of it kept.
const PARTS: u32 = 12;

/// Triggers of one object within this time are one visit.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// What is needed to run the controllers.
pub(super) struct Controllers {
    pub(super) common: Common,
    pub(super) namespace: Option<String>,
    pub(super) owned_triggers: Vec<Triggers>,
    /// Pools of which a control plane says that something changed.
    pub(super) changed: mpsc::UnboundedReceiver<ObjectRef<AgentPool>>,
    pub(super) concurrency: u16,
    pub(super) pending: Pending,
}

impl Controllers {
    /// Runs both controllers until `shutdown.drain`; visits that have begun are finished.
    pub(super) async fn run(self, shutdown: Shutdown) {
        let part = format!("caches of {}", self.namespace.as_deref().unwrap_or("all namespaces"));
        self.pending.waits(&part, "the first lists of the API server");
        let (pods, pod_triggers) = follow_pods(self.common.cluster.client(), self.namespace.as_deref());
        let (triggered, triggers) = mpsc::unbounded_channel();
        let mut sources = self.owned_triggers;
        sources.push(pod_triggers);
        sources.push(stream_of(self.changed).boxed());
        // Err: the controllers have ended.
        let pump = stream::select_all(sources).for_each(move |pool| {
            drop(triggered.send(pool));
            async {}
        });
        let owned = self.common.owned.clone();
        let controllers = async {
            // Before that, what is there would look as if it were not.
            while !filled(&owned, &pods).await {
                tracing::warn!("the API server has not answered the first lists yet; see readiness");
            }
            self.pending.done(&part);
            tracing::info!(namespace = self.namespace.as_deref().unwrap_or("all"), "controllers start");
            let namespace = self.namespace.as_deref();
            let watched = Watched { namespace, pods: pods.clone(), triggers, pending: &self.pending };
            run_both(self.common.clone(), watched, self.concurrency, &shutdown).await;
        };
        tokio::select! {
            () = pump => {}
            () = controllers => {}
        }
    }
}

async fn filled(owned: &Owned, pods: &Store<Pod>) -> bool {
    let all = async { owned.ready().await && pods.wait_until_ready().await.is_ok() };
    tokio::time::timeout(FILL, all).await.is_ok()
}

/// What the controllers hear of.
struct Watched<'a> {
    namespace: Option<&'a str>,
    pods: Store<Pod>,
    triggers: mpsc::UnboundedReceiver<ObjectRef<AgentPool>>,
    pending: &'a Pending,
}

async fn run_both(common: Common, watched: Watched<'_>, concurrency: u16, shutdown: &Shutdown) {
    let Watched { namespace, pods, triggers, pending } = watched;
    let client = common.cluster.client().clone();
    let (pools, pool_writer) = reflector::store::<AgentPool>();
    let (links, link_writer) = reflector::store::<LinkSight>();
    let every = common.resync / PARTS;
    let link_context = Arc::new(link::Context::new(common.clone(), pools.clone()));
    let pool_context = Arc::new(pool::Context::new(common, pods));
    let waiting = Arc::clone(&link_context);
    let due_pools = due(pools.clone(), every, {
        let context = Arc::clone(&pool_context);
        move |pool| context.take_due(pool)
    });
    let due_links = due(links.clone(), every, {
        let context = Arc::clone(&link_context);
        move |link| context.take_due(link)
    });
    let (helped, helped_links) = mpsc::unbounded_channel();
    let pool_stream = watcher(api::<AgentPool>(&client, namespace), paged())
        .default_backoff()
        .inspect(note_missing(pending.clone()))
        .modify(slim)
        .reflect(pool_writer)
        .touched_objects()
        .inspect(move |pool| {
            if let Ok(pool) = pool {
                waiting.waiting_for(pool).into_iter().for_each(|link| drop(helped.send(link)));
            }
        })
        .try_filter(worth_a_visit(|pool: &AgentPool| Progress {
            finalizer: has_finalizer(pool, POOL_FINALIZER),
            status: pool.status.as_ref().is_some_and(|status| !status.conditions.is_empty()),
        }));
    let link_stream = watcher(api::<LinkSight>(&client, namespace), in_one_piece())
        .default_backoff()
        .inspect(note_missing(pending.clone()))
        .modify(slim)
        .reflect(link_writer)
        .touched_objects()
        .try_filter(worth_a_visit(|link: &LinkSight| Progress {
            finalizer: has_finalizer(link, LINK_FINALIZER),
            status: link.is_told(),
        }));
    let stop = || shutdown.drain.clone().cancelled_owned();
    let config = || controller::Config::default().concurrency(concurrency).debounce(DEBOUNCE);
    let pools = Controller::for_stream(pool_stream, pools)
        .with_config(config())
        .reconcile_on(stream_of(triggers))
        .reconcile_on(due_pools)
        .graceful_shutdown_on(stop())
        .run(pool::reconcile, pool_failed, pool_context)
        .for_each(|done| async move { log(done) });
    let links = Controller::for_stream(link_stream, links)
        .with_config(config())
        .reconcile_on(stream_of(helped_links))
        .reconcile_on(due_links)
        .graceful_shutdown_on(stop())
        .run(link::reconcile, link_failed, link_context)
        .for_each(|done| async move { log(done) });
    tokio::join!(pools, links);
}

fn stream_of<T>(mut receiver: mpsc::UnboundedReceiver<T>) -> impl Stream<Item = T> {
    stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// Objects whose rest is over. One that asked the controller to be visited later would be kept there, by name, as many
/// times as there are queues on the way: for thousands that is more than what is known of them.
fn due<K>(
    store: Store<K>,
    every: Duration,
    take_due: impl Fn(&K) -> bool + Send + Sync + 'static,
) -> impl Stream<Item = ObjectRef<K>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let every = every.max(Duration::from_millis(10));
    let take_due = Arc::new(take_due);
    stream::unfold(store, move |store| {
        let take_due = Arc::clone(&take_due);
        async move {
            tokio::time::sleep(every).await;
            let all = store.state();
            let found: Vec<_> =
                all.iter().filter(|object| take_due(object)).map(|object| ObjectRef::from_obj(&**object)).collect();
            Some((stream::iter(found), store))
        }
    })
    .flatten()
}

fn paged() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// Listed from the API server's memory, as other controllers do: pages are read from etcd, which takes it five times as
/// long. What is listed so may be old; nothing is written because of it alone. It comes in one piece, so this is for
/// objects of which little is kept.
fn in_one_piece() -> watcher::Config {
    watcher::Config { page_size: None, ..watcher::Config::default().any_semantic() }
}

/// Readiness tells when a definition is gone; the watch tries on, and goes on with what is there when it is back.
fn note_missing<K: Resource<DynamicType = ()>>(
    pending: Pending,
) -> impl FnMut(&Result<watcher::Event<K>, watcher::Error>) {
    use watcher::{
        Error::{InitialListFailed, WatchStartFailed},
        Event,
    };
    let part = format!("definition of {}", K::plural(&()));
    move |event| match event {
        Err(InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)))
            if status.code == 404 =>
        {
            tracing::warn!("{part}: {MISSING}");
            pending.waits(&part, MISSING);
        }
        // Before a list, not after it.
        Ok(Event::Init) | Err(_) => {}
        Ok(_) => pending.done(&part),
    }
}

/// What nobody here reads.
fn slim<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// What our own visits make of an object.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// It has our finalizer.
    finalizer: bool,
    /// It has a status of ours.
    status: bool,
}

/// Which changes of objects are worth a visit: not our own writes, but that somebody undid them.
fn worth_a_visit<K: Resource<DynamicType = ()>>(
    progress: impl Fn(&K) -> Progress,
) -> impl FnMut(&K) -> future::Ready<bool> {
    // By a number for each object: thousands of names would take more room than what is known of them.
    let mut known: HashMap<u64, (u64, Progress)> = HashMap::new();
    move |object| {
        let key = number(&object.meta().uid);
        let (wanted, now) = (wanted(object), progress(object));
        let before = known.insert(key, (wanted, now));
        if object.meta().deletion_timestamp.is_some() && object.finalizers().is_empty() {
            known.remove(&key);
        }
        let undone = |before: Progress| (before.finalizer && !now.finalizer) || (before.status && !now.status);
        future::ready(before.is_none_or(|(last, before)| last != wanted || undone(before)))
    }
}

/// What is asked for: by the spec, by annotations, and by deleting the object.
fn wanted<K: Resource>(object: &K) -> u64 {
    let meta = object.meta();
    let annotations = [names::PAUSED, names::RECONCILE_REQUEST, names::FORCE_DELETE];
    let asked = annotations.map(|name| object.annotations().get(name));
    number(&(meta.generation, meta.deletion_timestamp.is_some(), asked))
}

fn number(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn follow_pods(client: &Client, namespace: Option<&str>) -> (Store<Pod>, Triggers) {
    let (store, writer) = reflector::store();
    let stream = watcher(api::<Pod>(client, namespace), owned::labelled().page_size(PAGE))
        .default_backoff()
        .modify(|pod: &mut Pod| {
            slim(pod);
            // Decisions need what it was made for and how it does, which stand in labels, annotations and status.
            if let Some(spec) = &mut pod.spec {
                spec.volumes = None;
            }
        })
        .reflect(writer)
        .touched_objects();
    let triggers = stream.filter_map(|pod| async move { pod.ok().as_ref().and_then(owned::owner) });
    (store, triggers.boxed())
}

#[expect(clippy::needless_pass_by_value, reason = "as a controller calls it")]
fn pool_failed(pool: Arc<AgentPool>, error: &Error, context: Arc<pool::Context>) -> Action {
    let pause = context.common.pool_failures.failed(ObjectRef::from_obj(&*pool));
    failed("AgentPool", &*pool, error, pause)
}

#[expect(clippy::needless_pass_by_value, reason = "as a controller calls it")]
fn link_failed(link: Arc<LinkSight>, error: &Error, context: Arc<link::Context>) -> Action {
    let pause = context.common.link_failures.failed(ObjectRef::from_obj(&*link));
    failed("WorkspaceLink", &*link, error, pause)
}

fn failed<K: Resource>(kind: &str, object: &K, error: &Error, pause: Duration) -> Action {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    if error.is_conflict() {
        tracing::debug!(kind, namespace, name, "somebody else wrote first; looking again");
    } else {
        tracing::warn!(kind, namespace, name, error = %error.to_text(), again_in = ?pause, "not in line yet");
    }
    Action::requeue(pause)
}

/// What the controller itself has to say: visits that failed were told of by the error policy.
fn log<K: Resource>(done: Result<(ObjectRef<K>, Action), controller::Error<Error, watcher::Error>>)
where
    K::DynamicType: std::fmt::Debug,
{
    match done {
        Err(controller::Error::QueueError(error)) => {
            tracing::warn!(error = %Chain(&error), "a watch broke off; trying on");
        }
        Err(error @ controller::Error::RunnerError(_)) => {
            tracing::error!(error = %Chain(&error), "a controller has a fault");
        }
        Ok(_) | Err(controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::crd::WorkspaceLink;

    fn link(change: impl FnOnce(&mut Value)) -> WorkspaceLink {
        let mut link = json!({"metadata": {"name": "app", "namespace": "n", "uid": "u", "generation": 1},
            "spec": {"poolRef": {"name": "p"}, "workspace": {"id": "ws-1"}}});
        change(&mut link);
        serde_json::from_value(link).unwrap()
    }

    #[test]
    fn our_own_writes_are_worth_no_visit_and_what_undoes_them_is() {
        let mut filter = worth_a_visit(|link: &WorkspaceLink| Progress {
            finalizer: has_finalizer(link, LINK_FINALIZER),
            status: link.status.is_some(),
        });
        let mut visits = |link: WorkspaceLink| filter(&link).into_inner();
        let finalizer = |link: &mut Value| link["metadata"]["finalizers"] = json!([LINK_FINALIZER]);
        let done = |link: &mut Value| {
            link["metadata"]["finalizers"] = json!([LINK_FINALIZER]);
            link["status"] = json!({"conditions": []});
        };
        assert!(visits(link(|_| {})), "it is new");
        assert!(!visits(link(finalizer)) && !visits(link(done)), "we did that");
        assert!(!visits(link(|link| {
            done(link);
            link["metadata"]["labels"] = json!({"a": "b"});
        })));
        assert!(visits(link(finalizer)), "its status was wiped");
        assert!(!visits(link(done)));
        assert!(visits(link(|link| link["status"] = json!({"conditions": []}))), "its finalizer was taken");
        assert!(visits(link(|link| {
            done(link);
            link["metadata"]["generation"] = json!(2);
        })));
        assert!(visits(link(|link| {
            done(link);
            link["metadata"]["uid"] = json!("another");
        })));
    }
}
