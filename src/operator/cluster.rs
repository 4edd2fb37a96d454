//! The one way to the cluster: every call has a deadline, and every write passes here, where it is checked that this
//! process may still write. In a dry run writes are only noted down.

use std::{
    fmt::Debug,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
        PropagationPolicy,
    },
    config::{KubeConfigOptions, Kubeconfig},
    core::{NamespaceResourceScope, Request},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{leader::Fence, workloads::OwnedKind};
use crate::{
    crd::{WorkspaceLink, conditions::reason, names},
    http,
};

/// Deadline of one call.
const CALL: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {doing}")]
    Api { doing: String, source: Box<kube::Error> },
    #[error("could not {doing}: the API server did not answer in {} s", CALL.as_secs())]
    TimedOut { doing: String },
    #[error("could not {doing}: another operator leads now")]
    NotLeading { doing: String },
    #[error("{path} is no usable kubeconfig")]
    Kubeconfig { path: String, source: kube::config::KubeconfigError },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// HTTP status of the API server's refusal.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// What the API server wrote.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(&status.message),
                _ => None,
            },
            _ => None,
        }
    }

    /// Somebody else wrote first: what this was decided from is out of date.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The condition reason, if the API server will not have it: a quota, Pod Security, an admission webhook, or a rule
    /// of its own. That is somebody's decision, and the same again is refused again.
    #[must_use]
    pub fn refusal(&self) -> Option<&'static str> {
        let quota = || self.detail().is_some_and(|text| text.contains("exceeded quota"));
        match self.code() {
            Some(400 | 403 | 422) if quota() => Some(reason::QUOTA_EXCEEDED),
            Some(400 | 403 | 422) => Some(reason::REFUSED),
            _ => None,
        }
    }
}

/// A client of the API server that `kubeconfig` names; without it that of `KUBECONFIG`, of `~/.kube/config`, or of the
/// cluster that this process runs in.
///
/// # Errors
/// When no configuration is found, or it cannot be used.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    http::install_tls_provider();
    let failed = |doing: &str, source: kube::Error| Error::Api { doing: doing.to_owned(), source: Box::new(source) };
    let config = match kubeconfig {
        None => {
            kube::Config::infer().await.map_err(|error| failed("find a cluster", kube::Error::InferConfig(error)))?
        }
        Some(path) => {
            let read = async {
                let file = Kubeconfig::read_from(path)?;
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await
            };
            read.await.map_err(|source| Error::Kubeconfig { path: path.display().to_string(), source })?
        }
    };
    Client::try_from(config).map_err(|error| failed("set up the client of the API server", error))
}

/// One write of a dry run.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    /// `apply`, `create`, `delete`, …
    pub action: &'static str,
    /// `Secret default/pool-token`
    pub object: String,
    /// What would be sent; secrets are left out.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub manifest: Value,
}

#[derive(Debug, Clone)]
enum Mode {
    Live(Fence),
    Dry(Arc<Mutex<Vec<Planned>>>),
}

/// The cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    mode: Mode,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// The types that are used here: namespaced, and known at compile time.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug
{
}

impl Cluster {
    #[must_use]
    pub fn live(client: Client, fence: Fence) -> Self {
        Self { client, mode: Mode::Live(fence) }
    }

    /// Reads, and notes down what it would write.
    #[must_use]
    pub fn dry(client: Client) -> Self {
        Self { client, mode: Mode::Dry(Arc::default()) }
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether this is a dry run.
    #[must_use]
    pub fn is_dry(&self) -> bool {
        matches!(self.mode, Mode::Dry(_))
    }

    /// What a dry run would have written since the last call.
    #[must_use]
    pub fn take_planned(&self) -> Vec<Planned> {
        match &self.mode {
            Mode::Live(_) => Vec::new(),
            Mode::Dry(planned) => std::mem::take(&mut *planned.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn api<K: Object>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn owned(&self, kind: OwnedKind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(kind))
    }

    /// Reads one object from the API server itself, never from a cache.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn get<K: Object>(&self, namespace: &str, name: &str) -> Result<Option<K>> {
        let doing = || format!("read {} {namespace}/{name}", K::kind(&()));
        within(doing, self.api::<K>(namespace).get_opt(name)).await
    }

    /// Reads one owned object.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn get_owned(&self, kind: OwnedKind, namespace: &str, name: &str) -> Result<Option<Value>> {
        let doing = || format!("read {kind:?} {namespace}/{name}");
        let found = within(doing, self.owned(kind, namespace).get_opt(name)).await?;
        Ok(found.and_then(|object| serde_json::to_value(object).ok()))
    }

    /// All objects with these labels as they are now, never from a cache.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn list<K: Object>(&self, namespace: &str, labels: &str) -> Result<Vec<K>> {
        let doing = || format!("list {}s with {labels} in {namespace}", K::kind(&()));
        let params = ListParams::default().labels(labels);
        Ok(within(doing, self.api::<K>(namespace).list(&params)).await?.items)
    }

    fn begin(
        &self,
        action: &'static str,
        object: impl FnOnce() -> String,
        manifest: impl FnOnce() -> Value,
    ) -> Result<bool> {
        match &self.mode {
            Mode::Live(fence) if fence.holds() => Ok(true),
            Mode::Live(_) => Err(Error::NotLeading { doing: format!("{action} {}", object()) }),
            Mode::Dry(planned) => {
                let planned_write = Planned { action, object: object(), manifest: manifest() };
                planned.lock().unwrap_or_else(PoisonError::into_inner).push(planned_write);
                Ok(false)
            }
        }
    }

    /// Server-side apply of an owned object.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn apply_owned(
        &self,
        kind: OwnedKind,
        namespace: &str,
        name: &str,
        manager: &str,
        manifest: &Value,
    ) -> Result<()> {
        let object = || format!("{kind:?} {namespace}/{name}");
        if !self.begin("apply", object, || manifest.clone())? {
            return Ok(());
        }
        let params = PatchParams::apply(manager).force();
        let call = async { self.owned(kind, namespace).patch(name, &params, &Patch::Apply(manifest)).await };
        within(|| format!("apply {}", object()), call).await.map(drop)
    }

    /// Server-side apply of an object that may hold secrets: a dry run shows `shown` instead.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn apply_secret<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        manager: &str,
        manifest: &Value,
        shown: Value,
    ) -> Result<()> {
        let object = || format!("{} {namespace}/{name}", K::kind(&()));
        if !self.begin("apply", object, || shown)? {
            return Ok(());
        }
        let params = PatchParams::apply(manager).force();
        let call = async { self.api::<K>(namespace).patch(name, &params, &Patch::Apply(manifest)).await };
        within(|| format!("apply {}", object()), call).await.map(drop)
    }

    /// Creates an object. `false`: one of that name is there already.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn create<K: Object>(&self, namespace: &str, manifest: &K) -> Result<bool> {
        let name = manifest.meta().name.clone().unwrap_or_default();
        let object = || format!("{} {namespace}/{name}", K::kind(&()));
        if !self.begin("create", object, || serde_json::to_value(manifest).unwrap_or_default())? {
            return Ok(true);
        }
        let params = PostParams { field_manager: Some(manager::<K>().to_owned()), ..PostParams::default() };
        let call = async { self.api::<K>(namespace).create(&params, manifest).await };
        match within(|| format!("create {}", object()), call).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes exactly that object: by uid, and at `resource_version` where one is given. One that is gone is fine;
    /// one that changed since stays.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn delete<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        resource_version: Option<&str>,
    ) -> Result<()> {
        self.delete_with::<K>(namespace, name, deletion(uid, resource_version)).await
    }

    /// Deletes a Pod as it was seen. `grace_seconds`: what its containers get to end, if not what it was made with.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        resource_version: &str,
        grace_seconds: Option<u32>,
    ) -> Result<()> {
        let params =
            DeleteParams { grace_period_seconds: grace_seconds, ..deletion(Some(uid), Some(resource_version)) };
        self.delete_with::<Pod>(namespace, name, params).await
    }

    async fn delete_with<K: Object>(&self, namespace: &str, name: &str, params: DeleteParams) -> Result<()> {
        let object = || format!("{} {namespace}/{name}", K::kind(&()));
        if !self.begin("delete", object, || Value::Null)? {
            return Ok(());
        }
        let call = async { self.api::<K>(namespace).delete(name, &params).await.map(drop) };
        gone(within(|| format!("delete {}", object()), call).await)
    }

    /// Deletes an owned object.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn delete_owned(&self, kind: OwnedKind, namespace: &str, name: &str, uid: Option<&str>) -> Result<()> {
        let object = || format!("{kind:?} {namespace}/{name}");
        if !self.begin("delete", object, || Value::Null)? {
            return Ok(());
        }
        let params = deletion(uid, None);
        let call = async { self.owned(kind, namespace).delete(name, &params).await.map(drop) };
        gone(within(|| format!("delete {}", object()), call).await)
    }

    async fn set_finalizers<K: Object>(&self, meta: &ObjectMeta, finalizers: &[String]) -> Result<Option<K>> {
        let patch = json!({"metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers,
        }});
        self.merge(meta, "set the finalizers of", &patch).await
    }

    /// Gives the object a finalizer that it has not, if it is still as it was read; the object as it is then. `None`:
    /// nothing was written.
    ///
    /// # Errors
    /// A conflict when it changed.
    pub async fn add_finalizer<K: Object>(&self, seen: &K, finalizer: &str) -> Result<Option<K>> {
        self.add_finalizer_to(seen.meta(), finalizer).await
    }

    async fn add_finalizer_to<K: Object>(&self, meta: &ObjectMeta, finalizer: &str) -> Result<Option<K>> {
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        if finalizers.iter().any(|name| name == finalizer) {
            return Ok(None);
        }
        finalizers.push(finalizer.to_owned());
        self.set_finalizers(meta, &finalizers).await
    }

    /// Takes a finalizer from the object, if it is still as it was read.
    ///
    /// # Errors
    /// A conflict when it changed.
    pub async fn remove_finalizer<K: Object>(&self, seen: &K, finalizer: &str) -> Result<()> {
        let rest: Vec<String> = seen.finalizers().iter().filter(|name| *name != finalizer).cloned().collect();
        self.set_finalizers::<K>(seen.meta(), &rest).await.map(drop)
    }

    /// The object as the API server has it now, never from a cache, and with our finalizer if it is to have one. To an
    /// object that was `seen` without, the finalizer is written at once: that works only on what was seen, so that
    /// it need not be read before.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn get_with_finalizer<K: Object>(
        &self,
        seen: &ObjectMeta,
        finalizer: &str,
        wanted: bool,
    ) -> Result<Option<K>> {
        if wanted && !self.is_dry() {
            match self.add_finalizer_to(seen, finalizer).await {
                Ok(Some(object)) => return Ok(Some(object)),
                Ok(None) => {}
                // It changed, or it is gone.
                Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => {}
                Err(error) => return Err(error),
            }
        }
        let [namespace, name] = [&seen.namespace, &seen.name].map(|part| part.as_deref().unwrap_or_default());
        self.get(namespace, name).await
    }

    /// Sets labels of an object.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn label<K: Object>(&self, seen: &K, labels: &Value) -> Result<()> {
        let patch = json!({"metadata": {"uid": seen.meta().uid, "labels": labels}});
        self.merge::<K>(seen.meta(), "label", &patch).await.map(drop)
    }

    async fn merge<K: Object>(&self, meta: &ObjectMeta, action: &'static str, patch: &Value) -> Result<Option<K>> {
        let [namespace, name] = [&meta.namespace, &meta.name].map(|part| part.as_deref().unwrap_or_default());
        let object = || format!("{} {namespace}/{name}", K::kind(&()));
        if !self.begin(action, object, || patch.clone())? {
            return Ok(None);
        }
        let params = PatchParams { field_manager: Some(manager::<K>().to_owned()), ..PatchParams::default() };
        let call = async { self.api::<K>(namespace).patch(name, &params, &Patch::Merge(patch)).await };
        within(|| format!("{action} {}", object()), call).await.map(Some)
    }

    /// Server-side apply of the status, if the object is still as it was read: a status is told of what was seen, and
    /// whoever stood still meanwhile must not overwrite a later one. The [`version`] of the object then; an object
    /// that is gone needs none.
    ///
    /// # Errors
    /// A conflict when it changed; or the API server refuses or does not answer.
    pub async fn apply_status<K: Object>(
        &self,
        seen: &K,
        manager: &str,
        status: &impl Serialize,
    ) -> Result<Option<u64>> {
        let (namespace, name) = (seen.namespace().unwrap_or_default(), seen.name_any());
        let object = || format!("{} {namespace}/{name}", K::kind(&()));
        let patch = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": {"name": name, "uid": seen.meta().uid, "resourceVersion": seen.meta().resource_version},
            "status": status,
        });
        if !self.begin("write the status of", object, || patch["status"].clone())? {
            return Ok(None);
        }
        let params = PatchParams::apply(manager).force();
        let request = Request::new(K::url_path(&(), Some(&namespace)));
        let call = async {
            let request = request.patch_subresource("status", &name, &params, &Patch::Apply(&patch));
            // The answer is the whole object, of which its version is news.
            self.client.request::<Versioned>(request.map_err(kube::Error::BuildRequest)?).await
        };
        match within(|| format!("write the status of {}", object()), call).await {
            Ok(object) => Ok(object.metadata.resource_version.and_then(|version| version.parse().ok())),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// As much of an answer as is read.
#[derive(Deserialize)]
struct Versioned {
    metadata: VersionedMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionedMeta {
    resource_version: Option<String>,
}

/// Whether the object has that finalizer.
pub fn has_finalizer<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.finalizers().iter().any(|name| name == finalizer)
}

/// The object's resourceVersion as a number that grows with each change; `None` where it is no number.
pub fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

fn resource(kind: OwnedKind) -> ApiResource {
    use k8s_openapi::api::{
        apps::v1::{DaemonSet, Deployment},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    };
    match kind {
        OwnedKind::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
        OwnedKind::Deployment => ApiResource::erase::<Deployment>(&()),
        OwnedKind::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
        OwnedKind::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
    }
}

/// As whom the API server notes what is written.
fn manager<K: Object>() -> &'static str {
    if K::kind(&()) == WorkspaceLink::kind(&()) { names::LINK_MANAGER } else { names::POOL_MANAGER }
}

fn deletion(uid: Option<&str>, resource_version: Option<&str>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: uid.map(str::to_owned),
            resource_version: resource_version.map(str::to_owned),
        }),
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    }
}

/// 404: there is nothing to do. 409: it is another object by now, or changed; the next pass looks again.
fn gone(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
        other => other,
    }
}

async fn within<T>(doing: impl Fn() -> String, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T> {
    match tokio::time::timeout(CALL, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::Api { doing: doing(), source: Box::new(source) }),
        Err(_) => Err(Error::TimedOut { doing: doing() }),
    }
}
