//! Objects as the measures apply them.

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use terrapool::crd::{AgentPool, WorkspaceLink};

/// What a measure waits for at most.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

pub fn path(namespace: &str, resource: &str) -> String {
    format!("/apis/terrapool.dev/v1alpha1/namespaces/{namespace}/{resource}")
}

/// `agents` as in the spec.
pub fn pool(name: &str, agents: &Value) -> Value {
    json!({
        "apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": name},
        "spec": {"agents": agents},
    })
}

/// Pool and token only.
pub fn external() -> Value {
    json!({"mode": "External"})
}

/// Agents come with runs.
pub fn from_zero(most: u32) -> Value {
    json!({"mode": "Ephemeral", "minIdle": 0, "maxAgents": most})
}

pub fn link(name: &str, pool: &str, environment: &str, workspace: &str) -> Value {
    json!({
        "apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": name},
        "spec": {"poolRef": {"name": pool}, "workspace": {"environment": environment, "name": workspace}},
    })
}

/// As `kubectl apply --server-side` does.
pub async fn apply_pool(client: &Client, namespace: &str, manifest: &Value) -> anyhow::Result<AgentPool> {
    let api: Api<AgentPool> = Api::namespaced(client.clone(), namespace);
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    Ok(api.patch(name, &PatchParams::apply("kubectl"), &Patch::Apply(manifest)).await?)
}

pub async fn apply_link(client: &Client, namespace: &str, manifest: &Value) -> anyhow::Result<()> {
    let api: Api<WorkspaceLink> = Api::namespaced(client.clone(), namespace);
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    api.patch(name, &PatchParams::apply("kubectl"), &Patch::Apply(manifest)).await?;
    Ok(())
}
