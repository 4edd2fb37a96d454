//! The whole product in a real cluster: control plane and operator installed once ([`install`]), and for each test a
//! [`World`] of its own: a namespace, an environment of the control plane, a user with `kubectl` and `terraform`.

pub mod audit;
pub mod install;
mod manifests;
pub mod narrow;
pub mod program;
pub mod runs;
pub mod scenery;

use std::{
    fmt::Debug,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use axum::http::Request;
use serde_json::{Value, json};
use terrapool::operator::cluster::connect;
use tokio::sync::{Mutex, MutexGuard};

use self::install::{Installation, TEST_LABEL, installation, log};
use super::{
    admin::{Admin, id},
    cli::{Access, Cli, Engine, cloud_block},
    cluster::{Kubectl, Namespace, cluster},
};

pub use self::install::PATIENCE;

/// Between two looks at the cluster.
const PAUSE: Duration = Duration::from_millis(50);

static MADE: AtomicUsize = AtomicUsize::new(0);
static LIVING: AtomicUsize = AtomicUsize::new(0);
/// Those of them that wait for the others to end, or have.
static ALONE: AtomicUsize = AtomicUsize::new(0);
static TURN: Mutex<()> = Mutex::const_new(());

/// What one test has. On a failure it prints what there is; at its end the namespace goes.
pub struct World {
    pub installation: &'static Installation,
    namespace: Namespace,
    pub admin: Admin,
    pub access: Access,
    client: kube::Client,
}

impl World {
    /// A namespace whose Pods must satisfy a profile of Pod Security, and an environment of the same name.
    pub async fn new(profile: &str) -> Self {
        let installation = installation().await;
        let namespace = Namespace::of_profile(cluster(), profile);
        namespace.kubectl.run(&["label", "namespace", &namespace.name, &format!("{TEST_LABEL}=")]);
        let admin = installation.admin();
        let environment = json!({"data": {"type": "environments", "attributes": {"name": namespace.name}}});
        admin.post("/api/iacp/v3/environments", &environment).await;
        let client = connect(Some(&cluster())).await.unwrap();
        LIVING.fetch_add(1, Ordering::SeqCst);
        MADE.fetch_add(1, Ordering::SeqCst);
        Self { installation, namespace, admin, access: installation.access(), client }
    }

    /// How many of these there were.
    pub fn made() -> usize {
        MADE.load(Ordering::SeqCst)
    }

    /// Waits until no other test of these runs: those that ask for this too have their turn one after another.
    pub async fn alone(&self) -> Alone {
        ALONE.fetch_add(1, Ordering::SeqCst);
        let deadline = Instant::now() + 8 * PATIENCE;
        while LIVING.load(Ordering::SeqCst) > ALONE.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "other tests do not end");
            tokio::time::sleep(PAUSE).await;
        }
        Alone { _turn: TURN.lock().await }
    }

    pub async fn restricted() -> Self {
        Self::new("restricted").await
    }

    /// Of the namespace, and of the environment.
    pub fn name(&self) -> &str {
        &self.namespace.name
    }

    pub fn kubectl(&self) -> &Kubectl {
        &self.namespace.kubectl
    }

    /// Reads from the API server; null when there is nothing.
    pub async fn read(&self, path: &str) -> Value {
        let request = Request::get(path).body(Vec::new()).unwrap();
        match self.client.request::<Value>(request).await {
            Ok(value) => value,
            Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
            Err(error) => panic!("GET {path}: {error:?}"),
        }
    }

    async fn items(&self, path: &str) -> Vec<Value> {
        self.read(path).await["items"].as_array().cloned().unwrap_or_default()
    }

    /// An AgentPool; null when it is gone.
    pub async fn pool(&self, name: &str) -> Value {
        self.read(&format!("/apis/terrapool.dev/v1alpha1/namespaces/{}/agentpools/{name}", self.name())).await
    }

    /// The Pods of a pool.
    pub async fn pods(&self, pool: &str) -> Vec<Value> {
        let namespace = self.name();
        self.items(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector=terrapool.dev%2Fpool%3D{pool}")).await
    }

    /// Everything in the namespace that carries our labels, as `kind/name`.
    pub async fn ours(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (api, kinds) in [
            ("api/v1", &["pods", "secrets", "configmaps", "services", "serviceaccounts"][..]),
            ("apis/apps/v1", &["deployments", "daemonsets", "replicasets", "statefulsets"]),
            ("apis/networking.k8s.io/v1", &["networkpolicies"]),
            ("apis/policy/v1", &["poddisruptionbudgets"]),
            ("apis/terrapool.dev/v1alpha1", &["agentpools", "workspacelinks"]),
        ] {
            for kind in kinds {
                let all = self.items(&format!("/{api}/namespaces/{}/{kind}", self.name())).await;
                let is_ours = |object: &&Value| {
                    api.contains("terrapool") || object["metadata"]["labels"]["terrapool.dev/pool"].is_string()
                };
                let names = all
                    .iter()
                    .filter(is_ours)
                    .map(|object| format!("{kind}/{}", object["metadata"]["name"].as_str().unwrap()));
                found.extend(names);
            }
        }
        found
    }

    /// Waits until nothing of ours is left in the namespace. Then nothing of it is left in the control plane either.
    pub async fn nothing_is_left(&self) {
        self.until("nothing is left in the cluster", async || {
            let left = self.ours().await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        assert_eq!(self.remote_pools().await, Vec::<Value>::new());
    }

    /// Waits until pools own these objects and no others, besides their Secrets.
    pub async fn owned_become(&self, wanted: &[&str]) {
        self.until(&format!("only {wanted:?} is there"), async || {
            let mut ours = self.ours().await;
            // The resources themselves, and what is a Deployment's affair.
            let others = ["agentpools/", "workspacelinks/", "secrets/", "replicasets/", "pods/"];
            ours.retain(|object| !others.iter().any(|kind| object.starts_with(kind)));
            let same =
                ours.len() == wanted.len() && wanted.iter().all(|object| ours.iter().any(|found| found == object));
            if same { Ok(()) } else { Err(ours) }
        })
        .await;
    }

    /// Applies a pool of this name with a spec, for runs in the image `terraform:test`; its name in the control plane
    /// is the namespace's and this one.
    pub fn apply_pool(&self, name: &str, spec: &Value) -> Value {
        let mut pool = json!({
            "apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": name}, "spec": spec,
        });
        self.adapt_pool(&mut pool);
        self.kubectl().apply(&pool.to_string());
        pool
    }

    /// Makes a pool fit this cluster: the image that its nodes have, and a name that no other test uses.
    pub fn adapt_pool(&self, pool: &mut Value) {
        let name = format!("{}-{}", self.name(), pool["metadata"]["name"].as_str().unwrap());
        let spec = &mut pool["spec"];
        if spec["name"].is_null() {
            spec["name"] = json!(name);
        }
        if spec["runs"]["image"].is_null() {
            spec["runs"]["image"] = json!("terraform:test");
        }
    }

    /// Links a workspace of this environment to a pool.
    pub fn apply_link(&self, workspace: &str, pool: &str) {
        let workspace_name = json!({"environment": self.name(), "name": workspace});
        self.kubectl().apply(
            &json!({
                "apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": workspace},
                "spec": {"poolRef": {"name": pool}, "workspace": workspace_name},
            })
            .to_string(),
        );
    }

    /// Waits until a condition of a pool has this status; the pool.
    pub async fn pool_becomes(&self, pool: &str, type_: &str, status: &str) -> Value {
        self.until(&format!("{type_} of the pool {pool} is {status}"), async || {
            let object = self.pool(pool).await;
            if condition(&object, type_)["status"] == status { Ok(object) } else { Err(object["status"].clone()) }
        })
        .await
    }

    /// Waits until a condition of a link has this status.
    pub async fn link_becomes(&self, link: &str, type_: &str, status: &str) {
        let path = format!("/apis/terrapool.dev/v1alpha1/namespaces/{}/workspacelinks/{link}", self.name());
        self.until(&format!("{type_} of the link {link} is {status}"), async || {
            let object = self.read(&path).await;
            if condition(&object, type_)["status"] == status { Ok(()) } else { Err(object["status"].clone()) }
        })
        .await;
    }

    /// Waits for the Pods of a pool to be as `wanted` says; those that are there then.
    pub async fn pods_become(&self, pool: &str, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        self.until(&format!("the Pods of {pool}: {what}"), async || {
            let pods = self.pods(pool).await;
            if wanted(&pods) { Ok(pods) } else { Err(pods.iter().map(summary).collect::<Vec<_>>()) }
        })
        .await
    }

    /// Asks `probe` until it answers `Ok`; its `Err` is the state seen.
    pub async fn until<T, S: Debug>(&self, what: &str, mut probe: impl AsyncFnMut() -> Result<T, S>) -> T {
        let start = Instant::now();
        loop {
            match probe().await {
                Ok(value) => return value,
                Err(seen) if start.elapsed() > PATIENCE => {
                    panic!("{what}: not within {PATIENCE:?}; seen last: {seen:#?}")
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// A desk for a workspace of this environment, initialised: `main.tf` is written, and the workspace is there.
    pub async fn desk(&self, workspace: &str, configuration: &str) -> Cli {
        let cli = Cli::new(Engine::Terraform, &self.access);
        cli.write("cloud.tf", &cloud_block(&self.access, self.name(), workspace));
        cli.write("main.tf", configuration);
        cli.succeed(&["init"]).await;
        cli
    }

    /// Pools in the control plane whose name contains that of this namespace.
    pub async fn remote_pools(&self) -> Vec<Value> {
        let all = self.admin.get("/api/iacp/v3/agent-pools?page[size]=100").await;
        let all = all["data"].as_array().unwrap().clone();
        all.into_iter().filter(|pool| pool["attributes"]["name"].as_str().unwrap().contains(self.name())).collect()
    }

    /// Agents in the control plane that registered in this pool.
    pub async fn remote_agents(&self, pool_id: &str) -> Vec<Value> {
        let all = self.admin.get(&format!("/api/iacp/v3/agents?filter[agent-pool]={pool_id}&page[size]=100")).await;
        all["data"].as_array().unwrap().clone()
    }

    /// The workspace's id.
    pub async fn workspace_id(&self, workspace: &str) -> String {
        id(&json!({"data": self.admin.workspace(self.name(), workspace).await}))
    }

    fn print(&self) {
        let kubectl = self.kubectl();
        let show = |title: &str, arguments: &[&str]| {
            let output = kubectl.output(arguments, "");
            eprintln!(
                "--- {title}:\n{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        };
        show(
            "objects",
            &["get", "agentpools,workspacelinks,pods,networkpolicies,poddisruptionbudgets", "--output=wide"],
        );
        show(
            "AgentPools",
            &[
                "get",
                "agentpools",
                "--output=jsonpath={range .items[*]}{.metadata.name}{\"\\t\"}{.status}{\"\\n\"}{end}",
            ],
        );
        show(
            "WorkspaceLinks",
            &[
                "get",
                "workspacelinks",
                "--output=jsonpath={range .items[*]}{.metadata.name}{\"\\t\"}{.status}{\"\\n\"}{end}",
            ],
        );
        show("events", &["get", "events", "--sort-by=.lastTimestamp"]);
        show(
            "agents",
            &["logs", "--selector=terrapool.dev/pool", "--all-containers", "--tail=25", "--prefix", "--ignore-errors"],
        );
        for name in ["terrapool-operator", "terrapool-server"] {
            eprintln!("--- {name}:\n{}", log(kubectl, name, 60));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print();
        }
        LIVING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// While this value lives, its test is the only one that does anything.
pub struct Alone {
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        ALONE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A condition of an object; null when it is not there.
pub fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == type_).unwrap_or(&Value::Null)
}

/// Requests that let many Pods fit on a small machine.
pub fn small() -> Value {
    json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "1Gi"}})
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// The Pod runs and all its containers are ready.
pub fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && condition(pod, "Ready")["status"] == "True"
}

fn summary(pod: &Value) -> String {
    let waiting = pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten();
    let states: Vec<String> = waiting.map(|container| container["state"].to_string()).collect();
    format!(
        "{} {} on {}, deleted {}: {states:?}",
        name(pod),
        pod["status"]["phase"],
        pod["spec"]["nodeName"],
        pod["metadata"]["deletionTimestamp"]
    )
}
