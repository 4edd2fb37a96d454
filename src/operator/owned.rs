//! What the pools own beside Pods and Secrets, as last heard of: names only. Tells the controller when one of them
//! changes, and which are left from an earlier mode.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;

use super::workloads::OwnedKind;
use crate::crd::{AgentPool, names};

/// Stores of the names of what pools own.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    daemon_sets: Store<PartialObjectMeta<DaemonSet>>,
    deployments: Store<PartialObjectMeta<Deployment>>,
    network_policies: Store<PartialObjectMeta<NetworkPolicy>>,
    disruption_budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
}

/// Pools of which something changed.
pub(super) type Triggers = BoxStream<'static, ObjectRef<AgentPool>>;

impl Owned {
    /// The stores, and the streams that fill them: they must be polled.
    pub(super) fn new(client: &Client, namespace: Option<&str>) -> (Self, Vec<Triggers>) {
        let (daemon_sets, a) = follow(client, namespace);
        let (deployments, b) = follow(client, namespace);
        let (network_policies, c) = follow(client, namespace);
        let (disruption_budgets, d) = follow(client, namespace);
        (Self { daemon_sets, deployments, network_policies, disruption_budgets }, vec![a, b, c, d])
    }

    /// Resolves when all stores have been filled once.
    pub(super) async fn ready(&self) -> bool {
        let Self { daemon_sets, deployments, network_policies, disruption_budgets } = self;
        daemon_sets.wait_until_ready().await.is_ok()
            && deployments.wait_until_ready().await.is_ok()
            && network_policies.wait_until_ready().await.is_ok()
            && disruption_budgets.wait_until_ready().await.is_ok()
    }

    /// The uid of the object of that kind and name, if it is such a one.
    pub(super) fn uid_of(&self, kind: OwnedKind, namespace: &str, name: &str, which: &Which<'_>) -> Option<String> {
        match kind {
            OwnedKind::DaemonSet => uid_of(&self.daemon_sets, namespace, name, which),
            OwnedKind::Deployment => uid_of(&self.deployments, namespace, name, which),
            OwnedKind::NetworkPolicy => uid_of(&self.network_policies, namespace, name, which),
            OwnedKind::PodDisruptionBudget => uid_of(&self.disruption_budgets, namespace, name, which),
        }
    }
}

/// Whether what a pool of that name made has lost its owner, as with `kubectl delete --cascade=orphan`: nothing but the
/// pool's own end would remove it.
pub(super) fn is_orphan(meta: &ObjectMeta, pool: &str) -> bool {
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    meta.owner_references.iter().flatten().next().is_none()
        && label(names::POOL_LABEL) == Some(pool)
        && label(names::MANAGED_BY.0) == Some(names::MANAGED_BY.1)
}

type Followed<K> = Store<PartialObjectMeta<K>>;

type Which<'a> = dyn Fn(&ObjectMeta) -> bool + 'a;

fn uid_of<K>(store: &Followed<K>, namespace: &str, name: &str, which: &Which<'_>) -> Option<String>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let object = store.get(&ObjectRef::new(name).within(namespace)).filter(|object| which(&object.metadata))?;
    object.metadata.uid.clone()
}

fn follow<K>(client: &Client, namespace: Option<&str>) -> (Followed<K>, Triggers)
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(api::<PartialObjectMeta<K>>(client, namespace), labelled())
        .default_backoff()
        .modify(slim_meta)
        .reflect(writer)
        .touched_objects();
    let triggers = stream.filter_map(|object| async move { object.ok().as_ref().and_then(owner) });
    (store, triggers.boxed())
}

/// All objects of a kind: of one namespace, or of all.
pub(super) fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Only what belongs to pools.
pub(super) fn labelled() -> watcher::Config {
    watcher::Config::default().labels(names::POOL_LABEL)
}

fn slim_meta<K>(object: &mut PartialObjectMeta<K>) {
    object.metadata.managed_fields = None;
    object.metadata.annotations = None;
}

/// The AgentPool that owns the object.
pub(super) fn owner<K: Resource>(object: &K) -> Option<ObjectRef<AgentPool>> {
    let owner = object.owner_references().iter().find(|owner| owner.kind == "AgentPool")?;
    Some(ObjectRef::new(&owner.name).within(object.meta().namespace.as_deref()?))
}

/// How long stores may take to fill before it is said that they do not.
pub(super) const FILL: Duration = Duration::from_secs(20);
