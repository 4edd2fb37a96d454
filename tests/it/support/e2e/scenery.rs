//! What the cluster around a pool is like: a quota, a registry that has nothing, a control plane that is named.

use std::fs;

use serde_json::{Value, json};

use super::{World, install::NAMESPACE};
use crate::support::app::ADMIN_TOKEN;

/// The control plane as somebody names it who may not rely on the operator's settings.
pub fn control_plane() -> Value {
    json!({
        "url": format!("https://terrapool.{NAMESPACE}.svc"),
        "tokenSecretRef": {"name": "control-plane", "key": "token"},
        "caConfigMapRef": {"name": "control-plane", "key": "ca.crt"},
    })
}

impl World {
    /// What [`control_plane`] refers to.
    pub fn apply_credentials(&self) {
        let meta = json!({"name": "control-plane"});
        let ca = fs::read_to_string(self.installation.ca_file()).unwrap();
        let token = json!({"token": ADMIN_TOKEN});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": token});
        let ca = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"ca.crt": ca}});
        self.kubectl().apply(&json!({"apiVersion": "v1", "kind": "List", "items": [secret, ca]}).to_string());
    }

    /// No more than so many Pods in the namespace, from now on.
    pub async fn allow_pods(&self, number: u32) {
        let pods = json!({"pods": number.to_string()});
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": pods},
        });
        self.kubectl().apply(&quota.to_string());
        self.until("the quota is counted", async || {
            let quota = self.read(&format!("/api/v1/namespaces/{}/resourcequotas/few", self.name())).await;
            if quota["status"]["hard"] == pods { Ok(()) } else { Err(quota["status"].clone()) }
        })
        .await;
    }

    /// As many as anybody wants.
    pub fn allow_all_pods(&self) {
        self.kubectl().run(&["delete", "resourcequota", "few"]);
    }

    /// The address of a registry that has no image, on the node's own address: runtimes talk plain HTTP to that.
    pub fn empty_registry(&self) -> String {
        let container = json!({
            "name": "registry", "image": "terraform:test", "imagePullPolicy": "IfNotPresent",
            "command": ["httpd", "-f", "-p", "5000", "-h", "/home/nonroot"],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        });
        let security = json!({"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "registry", "labels": {"app": "registry"}},
            "spec": {"containers": [container], "securityContext": security, "automountServiceAccountToken": false},
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "registry"},
            "spec": {"type": "NodePort", "selector": {"app": "registry"}, "ports": [{"port": 5000}]},
        });
        self.kubectl().apply(&json!({"apiVersion": "v1", "kind": "List", "items": [pod, service]}).to_string());
        self.kubectl().run(&["wait", "--for=condition=Ready", "pod/registry", "--timeout=60s"]);
        let service = self.kubectl().get(&["service", "registry"]);
        format!("localhost:{}", service["spec"]["ports"][0]["nodePort"])
    }
}
