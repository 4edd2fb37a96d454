//! What all agent Pods have in common: names and labels, security, the fields that users set, and what they cannot.

use serde_json::{Map, Value, json};

use super::{Invalid, PoolView, mark, merge::merge, secret_key};
use crate::{
    api::sidecar::{self, USER},
    crd::{
        API_VERSION,
        agents::Agents,
        names::{MANAGED_BY, POOL_LABEL},
        pods::{AgentEnv, Resources},
    },
};

/// Name of the volume with the pool's Secret.
pub(super) const TOKEN_VOLUME: &str = "pool-token";
/// Where users' own parts of Pods come from, for messages.
const OVERRIDES: &str = "spec.agents.overrides";

/// Name of the objects of which a pool has one of a kind.
#[must_use]
pub fn object_name(pool: &str) -> String {
    format!("{pool}-agents")
}

/// The labels of everything that belongs to a pool.
pub(super) fn labels(pool: &PoolView<'_>) -> Map<String, Value> {
    let labels = [
        ("app.kubernetes.io/name", "terrapool-agent"),
        ("app.kubernetes.io/component", "agent"),
        ("app.kubernetes.io/instance", pool.name),
        MANAGED_BY,
        (POOL_LABEL, pool.name),
    ];
    labels.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// What a pool's agent Pods are found by.
pub(super) fn selector(pool: &PoolView<'_>) -> Value {
    json!({"matchLabels": {POOL_LABEL: pool.name}})
}

/// Metadata of an object that the pool owns.
#[must_use]
pub fn metadata(pool: &PoolView<'_>, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": pool.namespace,
        "labels": labels(pool),
        "ownerReferences": [{
            "apiVersion": API_VERSION,
            "kind": "AgentPool",
            "name": pool.name,
            "uid": pool.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

/// Whose rights the Pod's containers have when they have none of their own: passes Pod Security "restricted".
pub(super) fn pod_security() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Passes Pod Security "restricted".
pub(super) fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
    })
}

/// The token, and certificates where there are some, readable by the containers' group.
pub(super) fn token_volume(pool: &PoolView<'_>) -> Value {
    let mut items = vec![json!({"key": secret_key::TOKEN, "path": secret_key::TOKEN})];
    if pool.has_ca {
        items.push(json!({"key": secret_key::CA, "path": secret_key::CA}));
    }
    json!({"name": TOKEN_VOLUME, "secret": {"secretName": pool.secret, "defaultMode": 0o440, "items": items}})
}

pub(super) fn token_mount() -> Value {
    let folder = sidecar::TOKEN_FILE.rsplit_once('/').map_or("/", |(folder, _)| folder);
    json!({"name": TOKEN_VOLUME, "mountPath": folder, "readOnly": true})
}

/// What users ask for, or what does for most.
pub(super) fn resources(asked: Option<&Resources>, otherwise: Value) -> Value {
    asked.and_then(|resources| serde_json::to_value(resources).ok()).unwrap_or(otherwise)
}

/// Resources of our own agent, which only carries logs and states.
pub(super) fn agent_resources(agents: &Agents) -> Value {
    let default = json!({"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}});
    resources(agents.resources.as_ref(), default)
}

/// Variables by name: the user's, then ours, which win.
pub(super) fn env(user: &[AgentEnv], ours: Vec<Value>) -> Vec<Value> {
    let is_ours = |name: &str| ours.iter().any(|variable| variable["name"] == name);
    let mut all: Vec<Value> = user
        .iter()
        .filter(|variable| !is_ours(&variable.name))
        .filter_map(|variable| serde_json::to_value(variable).ok())
        .collect();
    all.extend(ours);
    all
}

/// A Pod, or the template of one: `spec` is what the mode says of it.
pub(super) struct Template<'a> {
    pub pool: &'a PoolView<'a>,
    /// Ours, beside [`labels`].
    pub labels: Vec<(&'a str, String)>,
    /// Ours.
    pub annotations: Vec<(&'a str, String)>,
    /// Annotations that users may change.
    pub default_annotations: Vec<(&'a str, &'a str)>,
    pub spec: Value,
    /// The only containers that may see what belongs to the agent.
    pub agent_containers: &'a [&'a str],
    /// Volumes of the agent alone.
    pub agent_volumes: &'a [&'a str],
}

impl Template<'_> {
    /// The `metadata` (labels and annotations only) and `spec` of it all, with what users add.
    pub(super) fn build(self) -> Result<Value, Invalid> {
        let Self { pool, labels: own_labels, annotations, default_annotations, .. } = &self;
        let mut spec = self.spec.clone();
        let agents = &pool.spec.agents;
        schedule(agents, &mut spec);
        let text = |(key, value): (&String, &String)| (key.clone(), Value::from(value.as_str()));
        let user_labels: Map<String, Value> = agents.labels.iter().map(text).collect();
        let mut all_annotations: Map<String, Value> =
            default_annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        all_annotations.extend(agents.annotations.iter().map(text));
        let mut pod = json!({"metadata": {"labels": user_labels, "annotations": all_annotations}, "spec": spec});
        check_overrides(&agents.overrides.0)?;
        merge(&mut pod, &agents.overrides.0, OVERRIDES)?;
        let own = |pairs: &[(&str, String)]| -> Vec<(String, Value)> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_str().into())).collect()
        };
        extend(&mut pod["metadata"]["labels"], labels(pool).into_iter().chain(own(own_labels)));
        extend(&mut pod["metadata"]["annotations"], own(annotations).into_iter());
        pod["spec"]["automountServiceAccountToken"] = false.into();
        pod["spec"]["restartPolicy"] = spec["restartPolicy"].clone();
        self.guard(&pod["spec"])?;
        Ok(pod)
    }

    /// Nothing that belongs to the agent may come into the hands of runs.
    fn guard(&self, spec: &Value) -> Result<(), Invalid> {
        let items = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
        let secret = self.pool.secret;
        for volume in items(&spec["volumes"]) {
            let name = volume["name"].as_str().unwrap_or_default();
            let sources = items(&volume["projected"]["sources"]);
            let refers = volume["secret"]["secretName"] == secret
                || sources.iter().any(|source| source["secret"]["name"] == secret);
            if refers && !self.agent_volumes.contains(&name) {
                let message = format!("the Secret {secret} holds the pool's token: no volume of yours may have it");
                return Err(Invalid::new(format!("{OVERRIDES}.spec.volumes[{name}]"), message));
            }
        }
        for kind in ["containers", "initContainers"] {
            for container in items(&spec[kind]) {
                let name = container["name"].as_str().unwrap_or_default();
                if self.agent_containers.contains(&name) {
                    continue;
                }
                let at = format!("{OVERRIDES}.spec.{kind}[{name}]");
                for mount in items(&container["volumeMounts"]) {
                    let volume = mount["name"].as_str().unwrap_or_default();
                    if self.agent_volumes.contains(&volume) {
                        let message = format!("the volume {volume} is the agent's alone");
                        return Err(Invalid::new(format!("{at}.volumeMounts"), message));
                    }
                }
                let env = items(&container["env"]);
                let from = items(&container["envFrom"]);
                if env.iter().any(|variable| variable["valueFrom"]["secretKeyRef"]["name"] == secret)
                    || from.iter().any(|source| source["secretRef"]["name"] == secret)
                {
                    let message = format!("the Secret {secret} holds the pool's token, which is the agent's alone");
                    return Err(Invalid::new(format!("{at}.env"), message));
                }
            }
        }
        Ok(())
    }
}

/// Where the Pods go and who they are.
fn schedule(agents: &Agents, spec: &mut Value) {
    let Agents { node_selector, tolerations, affinity, image_pull_secrets, service_account_name, .. } = agents;
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec[name] = value;
        }
    };
    set("nodeSelector", (!node_selector.is_empty()).then(|| json!(node_selector)));
    set("tolerations", (!tolerations.is_empty()).then(|| json!(tolerations)));
    set("affinity", affinity.as_ref().map(|affinity| Value::Object(affinity.0.clone())));
    set("imagePullSecrets", (!image_pull_secrets.is_empty()).then(|| json!(image_pull_secrets)));
    set("serviceAccountName", service_account_name.as_ref().map(|name| json!(name)));
}

/// What has a place of its own, or no place at all.
fn check_overrides(overrides: &Map<String, Value>) -> Result<(), Invalid> {
    let refuse = |path: &str, message: &str| Err(Invalid::new(format!("{OVERRIDES}{path}"), message));
    for (name, value) in overrides {
        match name.as_str() {
            "metadata" => {
                let members = value.as_object().into_iter().flat_map(Map::keys);
                if let Some(other) = members.into_iter().find(|name| !matches!(name.as_str(), "labels" | "annotations"))
                {
                    return refuse(&format!(".metadata.{other}"), "only labels and annotations can be added");
                }
            }
            "spec" => {
                if value.get("nodeName").is_some() {
                    return refuse(".spec.nodeName", "it would go past the scheduler: use nodeSelector or affinity");
                }
            }
            other => return refuse(&format!(".{other}"), "only metadata and spec of a Pod can be merged"),
        }
        if !value.is_object() {
            return refuse(&format!(".{name}"), "must be an object");
        }
    }
    Ok(())
}

fn extend(map: &mut Value, members: impl Iterator<Item = (String, Value)>) {
    if !map.is_object() {
        *map = json!({});
    }
    for (key, value) in members {
        map[key] = value;
    }
}

/// The annotation by which autoscalers of nodes may move idle agents, though they have local volumes: busy ones are
/// protected by the disruption budget.
pub(super) const SAFE_TO_EVICT: (&str, &str) = ("cluster-autoscaler.kubernetes.io/safe-to-evict", "true");

/// Says which Pod template a Pod is made from.
pub(super) fn marks(template: &str, image: &str) -> [(&'static str, String); 2] {
    [(mark::TEMPLATE, template.to_owned()), (mark::RUN_IMAGE, image.to_owned())]
}
