//! Mode Node: one agent on each labelled node, which alone holds the node's Docker socket.

use serde_json::{Value, json};

use super::{
    Invalid, Owned, OwnedKind, PoolView, drain_seconds,
    parts::{
        TOKEN_VOLUME, Template, agent_resources, container_security, env, metadata, object_name, pod_security,
        selector, token_mount, token_volume,
    },
};
use crate::{
    api::sidecar::{AGENT_DATA, CA_FILE, STOP_SECONDS, TOKEN_FILE, container},
    crd::agent_pool::RunUser,
};

const SOCKET: &str = "/var/run/docker.sock";
const SOCKET_VOLUME: &str = "docker-socket";
const DATA_VOLUME: &str = "agent-data";

/// What root needs to hand job directories to the run containers' user and to read them back.
const CAPABILITIES: [&str; 3] = ["CHOWN", "DAC_OVERRIDE", "FOWNER"];

pub(super) fn daemon_set(pool: &PoolView<'_>) -> Result<Owned, Invalid> {
    let name = object_name(pool.name);
    // The engine mounts job directories by the node's paths: they have to be the container's as well. Each pool has
    // a folder of its own, for several agents may be on one node.
    let data = format!("{AGENT_DATA}/{}/{}", pool.namespace, pool.name);
    let mut security = pod_security();
    security["runAsNonRoot"] = false.into();
    security["runAsUser"] = 0.into();
    security["runAsGroup"] = 0.into();
    let spec = json!({
        "restartPolicy": "Always",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": drain_seconds(&pool.spec.agents) + STOP_SECONDS,
        "securityContext": security,
        "containers": [agent(pool, &data)],
        "volumes": [
            {"name": SOCKET_VOLUME, "hostPath": {"path": SOCKET, "type": "Socket"}},
            {"name": DATA_VOLUME, "hostPath": {"path": data, "type": "DirectoryOrCreate"}},
            {"name": "tmp", "emptyDir": {}},
            token_volume(pool),
        ],
    });
    let template = Template {
        pool,
        labels: Vec::new(),
        annotations: Vec::new(),
        default_annotations: Vec::new(),
        spec,
        agent_containers: &[container::AGENT],
        agent_volumes: &[TOKEN_VOLUME, DATA_VOLUME, SOCKET_VOLUME],
    };
    let manifest = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata(pool, &name),
        "spec": {
            "selector": selector(pool),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": template.build()?,
        },
    });
    Ok(Owned { kind: OwnedKind::DaemonSet, name, manifest })
}

fn agent(pool: &PoolView<'_>, data: &str) -> Value {
    let agents = &pool.spec.agents;
    let mut args: Vec<String> = ["agent", "run", "--executor", "docker"].map(str::to_owned).to_vec();
    let mut flag = |flag: &str, value: &str| args.push(format!("--{flag}={value}"));
    flag("token-file", TOKEN_FILE);
    flag("data", data);
    flag("concurrency", &agents.slots().to_string());
    flag("drain-timeout", &format!("{}s", drain_seconds(agents)));
    if pool.has_ca {
        flag("ca-file", CA_FILE);
    }
    if pool.spec.runs.user == RunUser::Root {
        flag("user", "root");
    }
    let variables = vec![
        json!({"name": "TERRAPOOL_URL", "value": pool.url}),
        json!({"name": "TERRAPOOL_AGENT_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}),
    ];
    let mut security = container_security();
    // The socket belongs to root.
    security["runAsNonRoot"] = false.into();
    security["capabilities"]["add"] = json!(CAPABILITIES);
    // Where SELinux is enforced, as on CentOS, no other type may talk to the engine. Elsewhere it means nothing.
    security["seLinuxOptions"] = json!({"type": "spc_t"});
    json!({
        "name": container::AGENT,
        "image": agents.image.as_ref().map_or(pool.agent_image, |image| image.as_str()),
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "env": env(&agents.env, variables),
        "resources": agent_resources(agents),
        "securityContext": security,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": SOCKET_VOLUME, "mountPath": SOCKET},
            {"name": DATA_VOLUME, "mountPath": data},
            {"name": "tmp", "mountPath": "/tmp"},
            token_mount(),
        ],
    })
}
