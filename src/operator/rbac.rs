//! The rights that the operator needs, and no more: one table, and the objects that grant it. Pure.

use serde_json::{Value, json};

use crate::crd::GROUP;

/// Name of the service account, the roles and the bindings.
pub const NAME: &str = "terrapool-operator";

/// What the operator does with one kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub group: &'static str,
    pub resource: &'static str,
    pub verbs: &'static [&'static str],
    pub why: &'static str,
}

const fn rule(group: &'static str, resource: &'static str, verbs: &'static [&'static str], why: &'static str) -> Rule {
    Rule { group, resource, verbs, why }
}

/// Kept by server-side apply, and watched by their names only.
const KEEP: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// In the namespaces that the operator works in.
pub const RULES: &[Rule] = &[
    rule(GROUP, "agentpools", &["get", "list", "watch", "patch"], "what is asked for; finalizers"),
    rule(GROUP, "agentpools/status", &["patch"], "what was done"),
    rule(GROUP, "agentpools/finalizers", &["update"], "owning objects that block an AgentPool's deletion"),
    rule(GROUP, "workspacelinks", &["get", "list", "watch", "patch"], "what is asked for; finalizers"),
    rule(GROUP, "workspacelinks/status", &["patch"], "what was done"),
    rule("", "pods", &["list", "watch", "create", "patch", "delete"], "single-use agents; the label of busy ones"),
    rule("apps", "daemonsets", KEEP, "agents of mode Node"),
    rule("apps", "deployments", KEEP, "agents of mode Deployment"),
    rule("networking.k8s.io", "networkpolicies", KEEP, "what agents and runs may reach"),
    rule("policy", "poddisruptionbudgets", KEEP, "busy agents are not evicted"),
    // By name only: whoever may list Secrets may read all of them.
    rule(
        "",
        "secrets",
        &["get", "create", "patch", "delete"],
        "pool tokens; credentials that objects refer to by name",
    ),
    rule("", "configmaps", &["get"], "certificates and addresses that objects refer to by name"),
    rule("events.k8s.io", "events", &["create", "patch"], "news on the objects"),
];

/// In the operator's own namespace.
pub const OWN_RULES: &[Rule] =
    &[rule("coordination.k8s.io", "leases", &["get", "create", "update"], "which of several operators works")];

/// The service account, its roles and their bindings, for an operator in `namespace` that works in `namespaces`
/// (`None`: in all of them). Without a namespace named there is nothing in them of the whole cluster.
#[must_use]
pub fn manifests(namespace: &str, namespaces: Option<&[String]>) -> Vec<Value> {
    let mut all = vec![json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(NAME, Some(namespace)),
    })];
    match namespaces {
        None => {
            all.push(role("ClusterRole", NAME, None, RULES));
            all.push(binding("ClusterRoleBinding", "ClusterRole", NAME, None, namespace));
        }
        Some(namespaces) => {
            for watched in namespaces {
                all.push(role("Role", NAME, Some(watched), RULES));
                all.push(binding("RoleBinding", "Role", NAME, Some(watched), namespace));
            }
        }
    }
    let own = format!("{NAME}-leader");
    all.push(role("Role", &own, Some(namespace), OWN_RULES));
    all.push(binding("RoleBinding", "Role", &own, Some(namespace), namespace));
    all
}

fn metadata(name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "terrapool"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn role(kind: &str, name: &str, namespace: Option<&str>, rules: &[Rule]) -> Value {
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| json!({"apiGroups": [rule.group], "resources": [rule.resource], "verbs": rule.verbs}))
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(name, namespace),
        "rules": rules,
    })
}

fn binding(kind: &str, role: &str, name: &str, namespace: Option<&str>, account: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(name, namespace),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": account}],
    })
}
