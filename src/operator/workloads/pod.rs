//! One single-use agent Pod of mode Ephemeral: an agent container, and a run container that waits for its job.
//! [`crate::api::sidecar`] is the contract of the two.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    DEFAULT_RUN_IMAGE, Invalid, PoolView, allows_image, drain_seconds, job_image, mark,
    parts::{
        SAFE_TO_EVICT, TOKEN_VOLUME, Template, agent_resources, container_security, env, marks, metadata, pod_security,
        resources, token_mount, token_volume,
    },
};
use crate::{
    api::sidecar::{
        AGENT_DATA, AgentArguments, CA_FILE, STOP_SECONDS, VOLUME, container, place_arguments, run_command,
    },
    crd::agent_pool::RunUser,
};

/// What apt and yum need of root to install packages. Pod Security "baseline" allows all of them.
const ROOT_CAPABILITIES: [&str; 7] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"];

const SHARED_VOLUME: &str = "terrapool";
const AGENT_VOLUME: &str = "agent-data";
const AGENT_TMP: &str = "agent-tmp";
const RUN_TMP: &str = "run-tmp";

/// Longest name of a Pod that is also its host name.
const MAX_NAME: usize = 63;
/// Characters of a name that come from its salt: 40 bits.
const SALT: usize = 8;
/// Lower case and digits, without those that are taken for each other.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A Pod to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPod<'a> {
    pub name: &'a str,
    /// Image of the run container, one that the pool allows; `None`: the pool's default one.
    pub image: Option<&'a str>,
}

/// What makes the name of a Pod. The same view of the world makes the same name, so that of two controllers with one
/// view the second gets "already exists"; any change of it makes another name.
#[derive(Debug, Clone)]
pub struct NameSalt<'a> {
    pub pool_uid: &'a str,
    /// Agents that ever registered in the pool; 0 while that is not known.
    pub registrations: i64,
    /// Uids of the pool's Pods, in any order.
    pub pods: Vec<&'a str>,
    /// Image of the run container; `None`: the pool's default one.
    pub image: Option<&'a str>,
    /// Tells the Pods of one decision apart.
    pub index: u32,
}

/// The name of a new Pod of the pool called `pool_name`: a DNS label of at most 63 characters.
#[must_use]
pub fn pod_name(pool_name: &str, salt: &NameSalt<'_>) -> String {
    let NameSalt { pool_uid, registrations, pods, image, index } = salt;
    let mut pods = pods.clone();
    pods.sort_unstable();
    let image = image.unwrap_or_default();
    let hash = Sha256::digest(format!("{pool_uid}|{registrations}|{}|{image}|{index}", pods.join(",")));
    let salt: String = hash.iter().take(SALT).map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    // A dot of the pool's name would make a host name of two labels.
    let name: String = pool_name.replace('.', "-").chars().take(MAX_NAME - SALT - 1).collect();
    format!("{}-{salt}", name.trim_end_matches('-'))
}

/// Hash of everything that the spec says about a Pod, except for what differs from Pod to Pod (name, run image). A
/// Pod with another one in its annotation is outdated.
///
/// # Errors
/// As [`pod`].
pub fn template_hash(pool: &PoolView<'_>) -> Result<String, Invalid> {
    let (template, _) = build(pool, "", None, "")?;
    // The members of an object are sorted: the same content is the same text.
    Ok(hex(&template.to_string(), 16))
}

/// The manifest of a Pod, to be created as it is.
///
/// # Errors
/// [`Invalid`] when the image is not allowed in the pool, or the overrides break what keeps runs and agent apart.
pub fn pod(pool: &PoolView<'_>, new: &NewPod<'_>) -> Result<Value, Invalid> {
    if let Some(image) = new.image
        && !allows_image(pool.spec, image)
    {
        return Err(Invalid::new("spec.runs.allowedImages", format!("the image {image} is not allowed in this pool")));
    }
    let (template, _) = build(pool, new.name, new.image, &template_hash(pool)?)?;
    let mut own = metadata(pool, new.name);
    own["labels"] = template["metadata"]["labels"].clone();
    own["annotations"] = template["metadata"]["annotations"].clone();
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": own, "spec": template["spec"]}))
}

/// The Pod without what identifies it. An empty name stands for all: then the run image is left open as well.
fn build(pool: &PoolView<'_>, name: &str, image: Option<&str>, template: &str) -> Result<(Value, String), Invalid> {
    let named = image.unwrap_or_else(|| job_image(pool.spec));
    let run_image = match (name.is_empty(), named) {
        (true, _) => "",
        (false, "") => DEFAULT_RUN_IMAGE,
        (false, named) => named,
    };
    let seconds = drain_seconds(&pool.spec.agents);
    let spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "shareProcessNamespace": false,
        "terminationGracePeriodSeconds": seconds + STOP_SECONDS,
        "securityContext": pod_security(),
        "initContainers": [place_runner(pool)],
        "containers": [agent(pool, name, (!name.is_empty()).then_some(named), seconds), run(pool, run_image)],
        "volumes": [
            {"name": SHARED_VOLUME, "emptyDir": {}},
            {"name": AGENT_VOLUME, "emptyDir": {}},
            {"name": AGENT_TMP, "emptyDir": {}},
            {"name": RUN_TMP, "emptyDir": {}},
            token_volume(pool),
        ],
    });
    let hash = hex(named, 10);
    let own: &[(&str, String)] = if name.is_empty() { &[] } else { &marks(template, named) };
    let labels = if name.is_empty() { Vec::new() } else { vec![(mark::RUN_IMAGE, hash.clone())] };
    let built = Template {
        pool,
        labels,
        annotations: own.to_vec(),
        default_annotations: vec![SAFE_TO_EVICT],
        spec,
        agent_containers: &[container::AGENT],
        agent_volumes: &[TOKEN_VOLUME, AGENT_VOLUME],
    };
    Ok((built.build()?, hash))
}

fn agent_image<'a>(pool: &PoolView<'a>) -> &'a str {
    pool.spec.agents.image.as_ref().map_or(pool.agent_image, |image| image.as_str())
}

fn place_runner(pool: &PoolView<'_>) -> Value {
    json!({
        "name": container::PLACE_RUNNER,
        "image": agent_image(pool),
        "imagePullPolicy": "IfNotPresent",
        "args": place_arguments(),
        "resources": agent_resources(&pool.spec.agents),
        "securityContext": container_security(),
        "volumeMounts": [{"name": SHARED_VOLUME, "mountPath": VOLUME}],
    })
}

/// `named`: the run image as jobs name it, empty for those that name none; `None` leaves it open.
fn agent(pool: &PoolView<'_>, name: &str, named: Option<&str>, drain_seconds: i64) -> Value {
    let arguments = AgentArguments {
        url: pool.url.to_owned(),
        name: name.to_owned(),
        run_image: named.filter(|named| !named.is_empty()).map(str::to_owned),
        root: pool.spec.runs.user == RunUser::Root,
        drain_timeout: Some(Duration::from_secs(drain_seconds.unsigned_abs())),
        ca_file: pool.has_ca.then(|| CA_FILE.to_owned()),
        ..AgentArguments::default()
    };
    json!({
        "name": container::AGENT,
        "image": agent_image(pool),
        "imagePullPolicy": "IfNotPresent",
        "args": arguments.to_vec(),
        "env": env(&pool.spec.agents.env, Vec::new()),
        "resources": agent_resources(&pool.spec.agents),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": SHARED_VOLUME, "mountPath": VOLUME},
            {"name": AGENT_VOLUME, "mountPath": AGENT_DATA},
            {"name": AGENT_TMP, "mountPath": "/tmp"},
            token_mount(),
        ],
    })
}

fn run(pool: &PoolView<'_>, image: &str) -> Value {
    let runs = &pool.spec.runs;
    let mut security = container_security();
    if runs.user == RunUser::Root {
        security["runAsUser"] = 0.into();
        security["runAsGroup"] = 0.into();
        security["runAsNonRoot"] = false.into();
        security["capabilities"]["add"] = json!(ROOT_CAPABILITIES);
        // Packages can only be installed where there is something to write to.
        security["readOnlyRootFilesystem"] = false.into();
    }
    let default = json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "2Gi"}});
    json!({
        "name": container::RUN,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": run_command(),
        "resources": resources(runs.resources.as_ref(), default),
        "securityContext": security,
        "volumeMounts": [
            {"name": SHARED_VOLUME, "mountPath": VOLUME},
            {"name": RUN_TMP, "mountPath": "/tmp"},
        ],
    })
}

/// The first `length` hexadecimal digits of the text's hash.
fn hex(text: &str, length: usize) -> String {
    let mut digits = crate::hash::hex(Sha256::digest(text));
    digits.truncate(length);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salt<'a>() -> NameSalt<'a> {
        NameSalt { pool_uid: "uid", registrations: 3, pods: vec!["b", "a"], image: None, index: 0 }
    }

    #[test]
    fn one_view_makes_one_name_and_any_change_another() {
        let name = pod_name("network", &salt());
        assert!(name.starts_with("network-") && name.len() == "network-".len() + SALT, "{name}");
        assert_eq!(name, pod_name("network", &NameSalt { pods: vec!["a", "b"], ..salt() }), "in any order");
        let others = [
            NameSalt { pool_uid: "other", ..salt() },
            NameSalt { registrations: 4, ..salt() },
            NameSalt { pods: vec!["a"], ..salt() },
            NameSalt { image: Some("x:1"), ..salt() },
            NameSalt { index: 1, ..salt() },
        ];
        for other in others {
            assert_ne!(name, pod_name("network", &other), "{other:?}");
        }
    }

    #[test]
    fn names_are_labels_of_at_most_63_characters() {
        for pool in ["a", "a.b.c", &"x".repeat(63), &format!("{}-{}", "x".repeat(53), "y".repeat(9))] {
            let name = pod_name(pool, &salt());
            assert!(name.len() <= 63, "{name}");
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.chars().all(good) && !name.contains("--"), "{name}");
        }
    }
}
