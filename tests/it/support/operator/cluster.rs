//! The real API server as the tests themselves see it: plain JSON, no faults.

use std::{path::Path, sync::Arc, time::Duration};

use axum::http::{Method, Request};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use terrapool::crd;

use super::mirror::Feed;
use crate::support::{cluster::apiserver, poll::eventually};

/// The kinds that a schedule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    AgentPool,
    WorkspaceLink,
    Secret,
    Pod,
    DaemonSet,
    Deployment,
    NetworkPolicy,
    PodDisruptionBudget,
    Event,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::AgentPool,
        Self::WorkspaceLink,
        Self::Secret,
        Self::Pod,
        Self::DaemonSet,
        Self::Deployment,
        Self::NetworkPolicy,
        Self::PodDisruptionBudget,
        Self::Event,
    ];

    /// Group and version as in a path, and the plural.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AgentPool => ("apis/terrapool.dev/v1alpha1", "agentpools"),
            Self::WorkspaceLink => ("apis/terrapool.dev/v1alpha1", "workspacelinks"),
            Self::Secret => ("api/v1", "secrets"),
            Self::Pod => ("api/v1", "pods"),
            Self::DaemonSet => ("apis/apps/v1", "daemonsets"),
            Self::Deployment => ("apis/apps/v1", "deployments"),
            Self::NetworkPolicy => ("apis/networking.k8s.io/v1", "networkpolicies"),
            Self::PodDisruptionBudget => ("apis/policy/v1", "poddisruptionbudgets"),
            Self::Event => ("apis/events.k8s.io/v1", "events"),
        }
    }

    /// Whether pools own objects of it.
    pub fn is_owned(self) -> bool {
        !matches!(self, Self::AgentPool | Self::WorkspaceLink | Self::Event)
    }

    pub fn of_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.names().1 == plural)
    }

    pub fn of(word: &str) -> Self {
        let found = Self::ALL.into_iter().find(|kind| format!("{kind:?}") == word);
        found.unwrap_or_else(|| panic!("no kind {word} here"))
    }
}

/// Direct access.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    feed: Arc<Feed>,
    /// Whether the controllers of Kubernetes work here: they fill new namespaces, and empty those that are deleted.
    has_controllers: bool,
}

pub type Answer = Result<Value, kube::Error>;

/// HTTP status of a refusal.
pub fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

impl Cluster {
    /// Connects to the tests' API server, and installs our definitions there.
    pub async fn connect() -> Self {
        Self::connect_to(&apiserver()).await
    }

    /// The same with the API server of that kubeconfig.
    pub async fn connect_to(kubeconfig: &Path) -> Self {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        terrapool::http::install_tls_provider();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let mut cluster = Self { feed: Arc::new(Feed::new(client.clone())), client, has_controllers: false };
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        cluster.has_controllers = cluster.call(Method::GET, account, JSON, &Value::Null).await.is_ok();
        cluster.install().await;
        cluster
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Our definitions are there and served.
    pub async fn install(&self) {
        for definition in crd::all().unwrap() {
            let mut manifest = serde_json::to_value(&definition).unwrap();
            manifest["apiVersion"] = json!("apiextensions.k8s.io/v1");
            manifest["kind"] = json!("CustomResourceDefinition");
            let name = manifest["metadata"]["name"].as_str().unwrap().to_owned();
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            self.call(Method::PATCH, &format!("{path}?fieldManager=tests&force=true"), APPLY, &manifest).await.unwrap();
            eventually(&format!("{name} is served"), Duration::from_secs(30), async || {
                let seen = self.call(Method::GET, &path, JSON, &Value::Null).await.unwrap();
                let conditions = seen["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let served = conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True");
                if served { Ok(()) } else { Err(seen["status"].clone()) }
            })
            .await;
        }
    }

    /// One call; a body of null sends none.
    pub async fn call(&self, method: Method, path: &str, content: &str, body: &Value) -> Answer {
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
        let request = Request::builder().method(method).uri(path).header("content-type", content).body(bytes).unwrap();
        self.client.request::<Value>(request).await
    }
}

pub const JSON: &str = "application/json";
const APPLY: &str = "application/apply-patch+yaml";
pub const MERGE: &str = "application/merge-patch+json";

/// One namespace of the API server.
#[derive(Clone)]
pub struct Space {
    pub cluster: Cluster,
    pub name: String,
}

impl Space {
    /// A new namespace in which Pods are admitted.
    pub async fn create(cluster: Cluster, name: &str, labels: &Value) -> Self {
        let manifest = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        cluster.call(Method::POST, "/api/v1/namespaces", JSON, &manifest).await.unwrap();
        if cluster.has_controllers {
            let path = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
            let account = async || cluster.call(Method::GET, &path, JSON, &Value::Null).await;
            eventually("the namespace has a ServiceAccount", Duration::from_secs(30), account).await;
        }
        Self { cluster, name: name.to_owned() }
    }

    pub fn path(&self, kind: Kind, name: &str) -> String {
        let (group, plural) = kind.names();
        let end = if name.is_empty() { String::new() } else { format!("/{name}") };
        format!("/{group}/namespaces/{}/{plural}{end}", self.name)
    }

    pub async fn list(&self, kind: Kind) -> Vec<Value> {
        let list = self.cluster.call(Method::GET, &self.path(kind, ""), JSON, &Value::Null).await.unwrap();
        let mut items = list["items"].as_array().cloned().unwrap_or_default();
        for item in &mut items {
            item["kind"] = json!(format!("{kind:?}"));
        }
        items
    }

    /// The object; null when it is not there.
    pub async fn get(&self, kind: Kind, name: &str) -> Value {
        match self.cluster.call(Method::GET, &self.path(kind, name), JSON, &Value::Null).await {
            Ok(found) => found,
            Err(error) if code(&error) == 404 => Value::Null,
            Err(error) => panic!("{kind:?} {name}: {error}"),
        }
    }

    /// Server-side apply, as kubectl or a GitOps tool does it.
    pub async fn apply(&self, manifest: &Value) -> Answer {
        let kind = Kind::of(manifest["kind"].as_str().unwrap());
        let path = self.path(kind, manifest["metadata"]["name"].as_str().unwrap());
        self.cluster.call(Method::PATCH, &format!("{path}?fieldManager=kubectl&force=true"), APPLY, manifest).await
    }

    /// A merge patch; `part` may be `/status`.
    pub async fn merge(&self, kind: Kind, name: &str, part: &str, patch: &Value) -> Answer {
        self.cluster.call(Method::PATCH, &format!("{}{part}", self.path(kind, name)), MERGE, patch).await
    }

    /// Puts the object in place of what is there, whatever that is.
    pub async fn replace(&self, kind: Kind, name: &str, manifest: &Value) -> Answer {
        self.cluster.call(Method::PUT, &self.path(kind, name), JSON, manifest).await
    }

    /// Deletes; fine when it is gone.
    pub async fn delete(&self, kind: Kind, name: &str, options: &Value) {
        match self.cluster.call(Method::DELETE, &self.path(kind, name), JSON, options).await {
            Err(error) if code(&error) != 404 => panic!("delete {kind:?} {name}: {error}"),
            _ => {}
        }
    }

    /// Removes the pools and links that are left, finalizers or not: the rest goes with the namespace. Where nothing
    /// empties namespaces, all of it goes with the API server.
    pub async fn clear(&self, left: &[(Kind, String)]) {
        if !self.cluster.has_controllers {
            return;
        }
        for (kind, name) in left {
            drop(self.merge(*kind, name, "", &json!({"metadata": {"finalizers": null}})).await);
            self.delete(*kind, name, &json!({"propagationPolicy": "Background"})).await;
        }
        let path = format!("/api/v1/namespaces/{}", self.name);
        drop(self.cluster.call(Method::DELETE, &path, JSON, &Value::Null).await);
    }
}
