//! Changes of an AgentPool made from the schema of its definition: good values, values at and beyond the bounds,
//! nonsense, and some that only a running system can tell from good ones.

use serde_json::{Value, json};
use terrapool::crd;

use super::plan::Dice;

/// One change: a merge patch of the spec.
#[derive(Debug, Clone)]
pub struct Change {
    /// `agents.minIdle`
    pub path: String,
    pub patch: Value,
}

/// Words that strings are made of: some fit here, some there, some nowhere.
const WORDS: [&str; 22] = [
    "5m",
    "90s",
    "720h",
    "0s",
    "9999999h",
    "registry.test/image:1",
    "registry.test/image",
    "10.0.0.0/8",
    "fe80::/10",
    "$NS",
    "nowhere",
    "$NS-other",
    "HTTPS_PROXY",
    "512Mi",
    "250m",
    "1e99",
    "NoSchedule",
    "Exists",
    "docker.io/library/*",
    "%%%",
    "ünicode",
    "",
];

/// Fields with what is in them.
fn leaves(schema: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Value)>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            path.push(name.clone());
            leaves(property, path, found);
            path.pop();
        }
    }
    if !path.is_empty() {
        found.push((path.clone(), schema.clone()));
    }
}

fn word(dice: &mut Dice) -> Value {
    if dice.below(20) == 0 { json!("x".repeat(3_000)) } else { json!(*dice.one(&WORDS)) }
}

/// Any value of about that type.
fn value(schema: &Value, dice: &mut Dice, depth: usize) -> Value {
    if dice.below(12) == 0 {
        return Value::Null;
    }
    if let Some(words) = schema["enum"].as_array()
        && dice.below(6) > 0
    {
        return dice.one(words).clone();
    }
    match schema["type"].as_str() {
        Some("boolean") => json!(dice.below(2) == 0),
        Some("integer") => {
            let bound = |name: &str, other: i64| schema[name].as_f64().map_or(other, |bound| bound as i64);
            let (low, high) = (bound("minimum", 0), bound("maximum", 10));
            json!(*dice.one(&[low - 1, low, low + 1, 3, high, high + 1, i64::MAX]))
        }
        Some("array") => {
            let count = dice.below(3);
            Value::Array((0..count).map(|_| value(&schema["items"], dice, depth + 1)).collect())
        }
        Some("object") if schema["properties"].is_object() && depth < 4 => {
            let properties = schema["properties"].as_object().unwrap();
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let chosen = properties.iter().filter(|(name, _)| required.contains(&name.as_str()) || dice.below(3) == 0);
            let chosen: Vec<_> = chosen.collect();
            Value::Object(
                chosen.into_iter().map(|(name, inner)| (name.clone(), value(inner, dice, depth + 1))).collect(),
            )
        }
        Some("object") if schema["additionalProperties"].is_object() => {
            let key = dice.one(&["key", "terrapool.dev/pool", "app.kubernetes.io/name", "no spaces please"]);
            json!({*key: value(&schema["additionalProperties"], dice, depth + 1)})
        }
        Some("object") => dice
            .one(&[
                json!({}),
                json!({"spec": {"hostNetwork": true}}),
                json!({"spec": {"containers": []}}),
                json!({"spec": 3}),
                json!({"metadata": {"labels": {"terrapool.dev/pool": "another"}}}),
                json!({"metadata": {"annotations": {"a": "b"}}}),
            ])
            .clone(),
        _ => word(dice),
    }
}

/// So many changes of an AgentPool's spec, from a seed.
pub fn changes(seed: u64, count: usize) -> Vec<Change> {
    let definition =
        crd::all().unwrap().into_iter().find(|definition| definition.spec.names.kind == "AgentPool").unwrap();
    let definition = serde_json::to_value(definition).unwrap();
    let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut found = Vec::new();
    leaves(spec, &mut Vec::new(), &mut found);
    let mut dice = Dice::new(seed);
    let generated = (0..count).map(|_| {
        let (path, schema) = dice.one(&found).clone();
        let value = value(&schema, &mut dice, 0);
        let patch = path.iter().rev().fold(value, |inner, name| json!({name: inner}));
        Change { path: path.join("."), patch }
    });
    generated.collect()
}

/// Accepted by any schema, and wrong.
pub fn wrong_ones() -> Vec<Change> {
    let change = |path: &str, patch: Value| Change { path: path.to_owned(), patch };
    vec![
        change("agents.serviceAccountName", json!({"agents": {"serviceAccountName": "nobody-here"}})),
        change("controlPlane", json!({"controlPlane": {"url": "http://127.0.0.1:9"}})),
        change(
            "controlPlane",
            json!({"controlPlane": {"url": "http://127.0.0.1:9", "tokenSecretRef": {"name": "none", "key": "k"}}}),
        ),
        change("controlPlane", json!({"controlPlane": {"urlFrom": {"configMapKeyRef": {"name": "none", "key": "k"}}}})),
        change("controlPlane", json!({"controlPlane": {"url": "http://example.com"}})),
        change("allowedEnvironments", json!({"allowedEnvironments": ["nowhere"]})),
        change(
            "agents.overrides",
            json!({"agents": {"overrides": {"spec": {"containers": [{"name": "agent", "image": 7}]}}}}),
        ),
        change("agents.overrides", json!({"agents": {"overrides": {"spec": {"restartPolicy": "Always"}}}})),
        change("agents.affinity", json!({"agents": {"affinity": {"nodeAffinity": "none"}}})),
        change("agents.labels", json!({"agents": {"labels": {"terrapool.dev/pool": "another"}}})),
        change("agents.labels", json!({"agents": {"labels": {"not a label": "x"}}})),
        change("agents.resources", json!({"agents": {"resources": {"limits": {"memory": "many"}}}})),
        change(
            "agents.resources",
            json!({"agents": {"resources": {"limits": {"memory": "1Mi"}, "requests": {"memory": "2Mi"}}}}),
        ),
        change("token.secretName", json!({"token": {"secretName": "another"}})),
        change("token.ttl", json!({"token": {"ttl": "2h", "rotateBefore": "1h"}})),
        change("name", json!({"name": "$NS-renamed"})),
        change("default", json!({"default": true})),
        change("runs.image", json!({"runs": {"image": "registry.test/other:2"}})),
        change("runs.user", json!({"runs": {"user": "Root", "acknowledgeRoot": true}})),
        change(
            "agents.mode",
            json!({"agents": {"mode": "External", "minIdle": null, "maxAgents": null, "scaleDown": null}}),
        ),
    ]
}
