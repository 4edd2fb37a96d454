//! Mode Deployment: a plain Deployment of an agent image that is not ours, as Scalr's.

use serde_json::{Value, json};

use super::{
    Invalid, Owned, OwnedKind, PoolView, drain_seconds, mark,
    parts::{
        SAFE_TO_EVICT, TOKEN_VOLUME, Template, container_security, env, metadata, object_name, pod_security, resources,
        selector, token_mount,
    },
    secret_key,
};
use crate::{
    api::sidecar::{AGENT_DATA, CA_FILE, STOP_SECONDS, USER, container},
    crd::{agent_pool::RunUser, agents::AgentPreset},
};

/// Time that Scalr's agent gives a run between SIGTERM and SIGKILL, in seconds.
const GRACE_SECONDS: i64 = 60;

/// What a kind of foreign agent wants.
struct Kind {
    image: &'static str,
    data: &'static str,
    user: i64,
    url: &'static str,
    token: &'static str,
    name: &'static str,
    ca: &'static str,
    /// More variables, which users may change.
    defaults: Vec<(&'static str, String)>,
}

impl Kind {
    fn of(pool: &PoolView<'_>) -> Self {
        let drain = drain_seconds(&pool.spec.agents);
        match pool.spec.agents.preset {
            Some(AgentPreset::Scalr) => Self {
                image: "docker.io/scalr/agent:1.4.0",
                data: "/var/lib/scalr-agent",
                user: 1000,
                url: "SCALR_URL",
                token: "SCALR_AGENT_TOKEN",
                name: "SCALR_AGENT_NAME",
                ca: "SCALR_AGENT_CA_CERT",
                // Runs in the agent's own container: its other drivers want the rights to make Pods.
                defaults: vec![
                    ("SCALR_AGENT_DRIVER", "local".to_owned()),
                    ("SCALR_AGENT_CONCURRENCY", "1".to_owned()),
                    ("SCALR_AGENT_DATA_DIR", "/var/lib/scalr-agent".to_owned()),
                    ("SCALR_AGENT_DISCONNECT_ON_STOP", "true".to_owned()),
                    ("SCALR_AGENT_WORKER_ON_STOP_ACTION", "drain".to_owned()),
                    ("SCALR_AGENT_WORKER_DRAIN_TIMEOUT", drain.to_string()),
                    ("SCALR_AGENT_WORKER_GRACE_SHUTDOWN_TIMEOUT", GRACE_SECONDS.to_string()),
                ],
            },
            None => Self {
                image: "",
                data: AGENT_DATA,
                user: USER,
                url: "TERRAPOOL_URL",
                token: "TERRAPOOL_POOL_TOKEN",
                name: "TERRAPOOL_AGENT_NAME",
                ca: "TERRAPOOL_CA_FILE",
                defaults: Vec::new(),
            },
        }
    }
}

pub(super) fn deployment(pool: &PoolView<'_>) -> Result<Owned, Invalid> {
    let name = object_name(pool.name);
    let agents = &pool.spec.agents;
    let kind = Kind::of(pool);
    let image = agents.image.as_ref().map_or(kind.image, |image| image.as_str());
    if image.is_empty() {
        return Err(Invalid::new("spec.agents.image", "mode Deployment needs a preset or an image"));
    }
    let root = pool.spec.runs.user == RunUser::Root;
    let user = if root { 0 } else { kind.user };
    let mut security = pod_security();
    for member in ["runAsUser", "runAsGroup", "fsGroup"] {
        security[member] = user.into();
    }
    security["runAsNonRoot"] = (!root).into();
    let mut volumes = vec![json!({"name": "data", "emptyDir": {}}), json!({"name": "tmp", "emptyDir": {}})];
    if pool.has_ca {
        let items = [json!({"key": secret_key::CA, "path": secret_key::CA})];
        let secret = json!({"secretName": pool.secret, "defaultMode": 0o440, "items": items});
        volumes.push(json!({"name": TOKEN_VOLUME, "secret": secret}));
    }
    let template = Template {
        pool,
        labels: Vec::new(),
        // A foreign agent reads its token once: a new token means new Pods.
        annotations: vec![(mark::TOKEN, pool.token_id.to_owned())],
        default_annotations: vec![SAFE_TO_EVICT],
        spec: json!({
            "restartPolicy": "Always",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": drain_seconds(agents) + STOP_SECONDS,
            "securityContext": security,
            "containers": [agent(pool, &kind, image, root)],
            "volumes": volumes,
        }),
        agent_containers: &[container::AGENT],
        agent_volumes: &[TOKEN_VOLUME],
    };
    let manifest = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(pool, &name),
        "spec": {
            "replicas": agents.replicas.unwrap_or(1),
            "selector": selector(pool),
            "strategy": {"type": "RollingUpdate"},
            "template": template.build()?,
        },
    });
    Ok(Owned { kind: OwnedKind::Deployment, name, manifest })
}

fn agent(pool: &PoolView<'_>, kind: &Kind, image: &str, root: bool) -> Value {
    let agents = &pool.spec.agents;
    let mut ours = vec![
        json!({"name": kind.url, "value": pool.url}),
        json!({"name": kind.token, "valueFrom": {"secretKeyRef": {"name": pool.secret, "key": secret_key::TOKEN}}}),
        json!({"name": kind.name, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
    ];
    let mut mounts = vec![json!({"name": "data", "mountPath": kind.data}), json!({"name": "tmp", "mountPath": "/tmp"})];
    if pool.has_ca {
        ours.push(json!({"name": kind.ca, "value": CA_FILE}));
        mounts.push(token_mount());
    }
    let set = |name: &str| agents.env.iter().any(|variable| variable.name == name);
    let defaults = kind.defaults.iter().filter(|(name, _)| !set(name));
    ours.extend(defaults.map(|(name, value)| json!({"name": name, "value": value})));
    let mut security = container_security();
    // What an image that we do not know writes to is not known either.
    security["readOnlyRootFilesystem"] = false.into();
    security["runAsNonRoot"] = (!root).into();
    let default = json!({"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}});
    json!({
        "name": container::AGENT,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": env(&agents.env, ours),
        "resources": resources(agents.resources.as_ref(), default),
        "securityContext": security,
        "volumeMounts": mounts,
    })
}
