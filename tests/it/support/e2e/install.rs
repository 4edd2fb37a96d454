//! Control plane and operator in the cluster, from the image `terrapool:test`: installed once for all tests of a run,
//! and left to whoever ends the cluster. What an earlier run has left is removed first.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use terrapool::server::tls::own_ca;
use tokio::sync::OnceCell;

use super::manifests::{self, Own};
use crate::support::{
    admin::Admin,
    app::ADMIN_TOKEN,
    cli::Access,
    cluster::{Kubectl, cluster},
    poll::eventually,
};

pub const NAMESPACE: &str = "terrapool-system";

/// Drift that nobody tells of is to be repaired within a test's patience.
pub(super) const SECONDS_BETWEEN_LOOKS: u32 = 5;

/// Label of the namespaces of these tests.
pub const TEST_LABEL: &str = "terrapool-e2e";

/// Where everything is.
#[derive(Debug)]
pub struct Installation {
    /// `ADDRESS:PORT` of a node, where the control plane answers.
    pub host: String,
    ca: TempDir,
}

static INSTALLATION: OnceCell<Installation> = OnceCell::const_new();

/// The one installation; the first caller makes it.
pub async fn installation() -> &'static Installation {
    INSTALLATION.get_or_init(install).await
}

impl Installation {
    pub fn ca_file(&self) -> PathBuf {
        self.ca.path().join("tls/ca.pem")
    }

    pub fn access(&self) -> Access {
        Access { host: self.host.clone(), token: ADMIN_TOKEN.to_owned(), ca: Some(self.ca_file()) }
    }

    /// Each test has a client of its own: connections live in its runtime.
    pub fn admin(&self) -> Admin {
        Admin::trusting(format!("https://{}", self.host), ADMIN_TOKEN.to_owned(), &self.ca_file())
    }
}

/// Addresses of the nodes, as this host reaches them.
fn addresses(kubectl: &Kubectl) -> Vec<String> {
    let nodes = kubectl.get(&["nodes"]);
    let addresses =
        nodes["items"].as_array().unwrap().iter().flat_map(|node| node["status"]["addresses"].as_array().unwrap());
    addresses
        .filter(|address| address["type"] == "InternalIP")
        .map(|it| it["address"].as_str().unwrap().to_owned())
        .collect()
}

async fn install() -> Installation {
    let kubectl = Kubectl::new(cluster(), NAMESPACE);
    clean(&kubectl);
    kubectl.install_definitions();
    let ca = tempfile::tempdir().unwrap();
    let nodes = addresses(&kubectl);
    let services = ["", ".svc", ".svc.cluster.local"].map(|end| format!("terrapool.{NAMESPACE}{end}"));
    let names: Vec<String> = services.into_iter().chain(nodes.iter().cloned()).collect();
    let own = own_ca(&ca.path().join("tls"), &names).unwrap();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    let before = Own {
        admin_token: ADMIN_TOKEN,
        ca: &read(&own.ca),
        certificate: &read(&own.server.certificate),
        key: &read(&own.server.key),
    };
    let run = ca.path().file_name().unwrap().to_str().unwrap();
    for items in [manifests::before(&kubectl, &before), manifests::programs(&kubectl, run)] {
        kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    }
    for name in ["statefulset/terrapool-server", "deployment/terrapool-operator"] {
        rollout(&kubectl, name);
    }
    let service = kubectl.get(&["service", "terrapool"]);
    let port = &service["spec"]["ports"][0]["nodePort"];
    let installation = Installation { host: format!("{}:{port}", nodes[0]), ca };
    let admin = installation.admin();
    // A node may forward to a Pod some time after that is ready.
    eventually("the control plane answers on the node's port", PATIENCE, async || admin.is_reached().await).await;
    installation
}

/// Waits until the Pods are what was applied.
fn rollout(kubectl: &Kubectl, name: &str) {
    let status = ["rollout", "status", name, "--timeout=90s"];
    let output = kubectl.output(&status, "");
    if !output.status.success() {
        let pods = kubectl.output(&["describe", "pods"], "");
        let logs = kubectl.output(&["logs", name, "--tail=50"], "");
        panic!(
            "{name} does not come up: {}\n{}\n{}{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&pods.stdout),
            String::from_utf8_lossy(&logs.stdout),
            String::from_utf8_lossy(&logs.stderr),
        );
    }
}

/// Ends what an earlier run has left: its control plane is gone, and its objects would wait for it for ever.
fn clean(kubectl: &Kubectl) {
    let namespaces = kubectl.get(&["namespaces", "--selector", TEST_LABEL]);
    let namespaces: Vec<&str> =
        namespaces["items"].as_array().unwrap().iter().filter_map(|it| it["metadata"]["name"].as_str()).collect();
    if namespaces.is_empty() {
        return;
    }
    kubectl.run(&["delete", "deployments,statefulsets", "--all", "--wait=false"]);
    let left = kubectl.output(&["get", "agentpools,workspacelinks", "--all-namespaces", "--output=json"], "");
    let left: Value = serde_json::from_slice(&left.stdout).unwrap_or_default();
    for object in left["items"].as_array().into_iter().flatten() {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let namespace = text("/metadata/namespace");
        if namespaces.contains(&namespace) {
            let release = r#"{"metadata":{"finalizers":null}}"#;
            let (kind, name) = (text("/kind").to_lowercase(), text("/metadata/name"));
            // Gone meanwhile is as good.
            drop(
                kubectl
                    .output(&["patch", &kind, name, "--namespace", namespace, "--type=merge", "--patch", release], ""),
            );
        }
    }
    drop(kubectl.output(&["delete", "namespaces", "--selector", TEST_LABEL, "--wait=false"], ""));
}

/// What one of the two programs has said lately.
pub fn log(kubectl: &Kubectl, name: &str, lines: u32) -> String {
    let selector = format!("--selector=app.kubernetes.io/name={name}");
    let arguments = ["logs", &selector, &format!("--tail={lines}"), "--prefix", "--namespace", NAMESPACE];
    let output = kubectl.output(&arguments, "");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// As long as a test waits for the cluster, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
