//! Merges what a user writes into `overrides` into a Pod, by the rules of server-side apply: maps member by member,
//! lists of named things by their key, all other lists as a whole. A null takes a member away.

use serde_json::{Map, Value};

use super::Invalid;

/// Members by which the items of a list are told apart, by the list's place in a Pod (list items left out).
const KEYED: &[(&[&str], &[&str])] = &[
    (&["spec", "containers"], &["name"]),
    (&["spec", "initContainers"], &["name"]),
    (&["spec", "*", "env"], &["name"]),
    (&["spec", "*", "ports"], &["containerPort", "protocol"]),
    (&["spec", "*", "volumeMounts"], &["mountPath"]),
    (&["spec", "*", "volumeDevices"], &["devicePath"]),
    (&["spec", "*", "resources", "claims"], &["name"]),
    (&["spec", "volumes"], &["name"]),
    (&["spec", "imagePullSecrets"], &["name"]),
    (&["spec", "hostAliases"], &["ip"]),
    (&["spec", "topologySpreadConstraints"], &["topologyKey", "whenUnsatisfiable"]),
    (&["spec", "resourceClaims"], &["name"]),
    (&["spec", "schedulingGates"], &["name"]),
];

/// Maps that are replaced as a whole.
const ATOMIC: &[&[&str]] = &[&["spec", "nodeSelector"]];

/// Values that an absent key member stands for.
const KEY_DEFAULTS: &[(&str, &str)] = &[("protocol", "TCP")];

/// Merges `overlay` (metadata and spec of a Pod, in parts) into `base`. `at` is the overlay's path for messages.
///
/// # Errors
/// [`Invalid`] when an item of a keyed list has no key.
pub(super) fn merge(base: &mut Value, overlay: &Map<String, Value>, at: &str) -> Result<(), Invalid> {
    merge_map(base, overlay, &mut Vec::new(), at)
}

fn merge_map<'a>(
    base: &mut Value,
    overlay: &'a Map<String, Value>,
    place: &mut Vec<&'a str>,
    at: &str,
) -> Result<(), Invalid> {
    if !base.is_object() {
        *base = Value::Object(Map::new());
    }
    let Value::Object(members) = base else { return Ok(()) };
    for (name, value) in overlay {
        let at = format!("{at}.{name}");
        place.push(name);
        match value {
            Value::Null => {
                members.remove(name);
            }
            Value::Object(inner) if !is_atomic(place) => {
                merge_map(members.entry(name).or_insert(Value::Null), inner, place, &at)?;
            }
            Value::Array(items) if let Some(keys) = keys_of(place) => {
                merge_list(members.entry(name).or_insert(Value::Null), items, keys, place, &at)?;
            }
            _ => {
                members.insert(name.clone(), value.clone());
            }
        }
        place.pop();
    }
    Ok(())
}

fn merge_list<'a>(
    base: &mut Value,
    overlay: &'a [Value],
    keys: &[&str],
    place: &mut Vec<&'a str>,
    at: &str,
) -> Result<(), Invalid> {
    if !base.is_array() {
        *base = Value::Array(Vec::new());
    }
    let Value::Array(items) = base else { return Ok(()) };
    for (index, item) in overlay.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let Value::Object(inner) = item else { return Err(Invalid::new(at, "must be an object")) };
        let key = |item: &Value| -> Vec<Option<Value>> { keys.iter().map(|name| key_member(item, name)).collect() };
        let wanted = key(item);
        if let Some(missing) = wanted.iter().position(Option::is_none) {
            let message = format!("needs `{}`, which says what it is merged with", keys[missing]);
            return Err(Invalid::new(at, message));
        }
        let found = items.iter().position(|other| key(other) == wanted);
        let index = found.unwrap_or_else(|| {
            items.push(Value::Null);
            items.len() - 1
        });
        merge_map(&mut items[index], inner, place, &at)?;
    }
    Ok(())
}

fn key_member(item: &Value, name: &str) -> Option<Value> {
    let default = || KEY_DEFAULTS.iter().find(|(key, _)| *key == name).map(|(_, value)| Value::from(*value));
    item.get(name).filter(|value| !value.is_null()).cloned().or_else(default)
}

fn keys_of(place: &[&str]) -> Option<&'static [&'static str]> {
    let fits = |pattern: &[&str]| {
        pattern.len() == place.len()
            && pattern.iter().zip(place).all(|(pattern, name)| match *pattern {
                "*" => matches!(*name, "containers" | "initContainers"),
                pattern => pattern == *name,
            })
    };
    KEYED.iter().find(|(pattern, _)| fits(pattern)).map(|(_, keys)| *keys)
}

/// References and selectors mean something only as a whole.
fn is_atomic(place: &[&str]) -> bool {
    let last = place.last().copied().unwrap_or_default();
    ATOMIC.contains(&place)
        || matches!(
            last,
            "configMapKeyRef"
                | "secretKeyRef"
                | "fieldRef"
                | "resourceFieldRef"
                | "labelSelector"
                | "namespaceSelector"
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "metadata": {"labels": {"a": "1", "b": "2"}},
            "spec": {
                "nodeSelector": {"os": "linux"},
                "tolerations": [{"key": "a"}],
                "containers": [
                    {"name": "agent", "args": ["x", "y"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                     "volumeMounts": [{"mountPath": "/tmp", "name": "tmp"}],
                     "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                     "securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsUser": 1}},
                    {"name": "run"},
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        })
    }

    fn merged(overlay: &Value) -> Result<Value, String> {
        let mut merged = base();
        let Value::Object(overlay) = overlay else { panic!("{overlay}") };
        merge(&mut merged, overlay, "spec.agents.overrides").map_err(|error| error.to_string())?;
        Ok(merged)
    }

    #[test]
    fn overrides_are_merged_by_the_rules_of_server_side_apply() {
        let table = [
            (
                "maps merge",
                json!({"metadata": {"labels": {"b": "3", "c": "4"}}}),
                "/metadata/labels",
                json!({"a": "1", "b": "3", "c": "4"}),
            ),
            ("null removes", json!({"metadata": {"labels": {"b": null}}}), "/metadata/labels", json!({"a": "1"})),
            ("new members", json!({"spec": {"priorityClassName": "high"}}), "/spec/priorityClassName", json!("high")),
            (
                "atomic map",
                json!({"spec": {"nodeSelector": {"zone": "a"}}}),
                "/spec/nodeSelector",
                json!({"zone": "a"}),
            ),
            (
                "atomic list",
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                "/spec/tolerations",
                json!([{"key": "b"}]),
            ),
            (
                "containers by name",
                json!({"spec": {"containers": [{"name": "run", "stdin": true}]}}),
                "/spec/containers/1",
                json!({"name": "run", "stdin": true}),
            ),
            (
                "a new container",
                json!({"spec": {"containers": [{"name": "proxy", "image": "p:1"}]}}),
                "/spec/containers/2",
                json!({"name": "proxy", "image": "p:1"}),
            ),
            (
                "env by name",
                json!({"spec": {"containers": [{"name": "agent", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}]}}),
                "/spec/containers/0/env",
                json!([{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}]),
            ),
            (
                "args as a whole",
                json!({"spec": {"containers": [{"name": "agent", "args": ["z"]}]}}),
                "/spec/containers/0/args",
                json!(["z"]),
            ),
            (
                "mounts by path",
                json!({"spec": {"containers": [{"name": "agent", "volumeMounts": [{"mountPath": "/tmp", "readOnly": true}, {"mountPath": "/x", "name": "x"}]}]}}),
                "/spec/containers/0/volumeMounts",
                json!([{"mountPath": "/tmp", "name": "tmp", "readOnly": true}, {"mountPath": "/x", "name": "x"}]),
            ),
            (
                "limits one by one",
                json!({"spec": {"containers": [{"name": "agent", "resources": {"limits": {"memory": "2Gi", "cpu": null}}}]}}),
                "/spec/containers/0/resources/limits",
                json!({"memory": "2Gi"}),
            ),
            (
                "capabilities as a whole",
                json!({"spec": {"containers": [{"name": "agent", "securityContext": {"capabilities": {"drop": ["NET_RAW"]}}}]}}),
                "/spec/containers/0/securityContext",
                json!({"capabilities": {"drop": ["NET_RAW"]}, "runAsUser": 1}),
            ),
            (
                "volumes by name",
                json!({"spec": {"volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}, {"name": "x", "emptyDir": {}}]}}),
                "/spec/volumes",
                json!([{"name": "tmp", "emptyDir": {"medium": "Memory"}}, {"name": "x", "emptyDir": {}}]),
            ),
            (
                "spread by key and what to do",
                json!({"spec": {"topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1}]}}),
                "/spec/topologySpreadConstraints/0/maxSkew",
                json!(1),
            ),
            (
                "ports with the default protocol",
                json!({"spec": {"containers": [{"name": "run", "ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP", "name": "p"}]}]}}),
                "/spec/containers/1/ports",
                json!([{"containerPort": 1, "protocol": "TCP", "name": "p"}]),
            ),
            (
                "references as a whole",
                json!({"spec": {"containers": [{"name": "agent", "env": [{"name": "A", "value": null, "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}}),
                "/spec/containers/0/env/0",
                json!({"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
            ),
        ];
        for (what, overlay, pointer, wanted) in table {
            let found = merged(&overlay).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(found.pointer(pointer), Some(&wanted), "{what}");
        }
        assert_eq!(merged(&json!({})).unwrap(), base());
    }

    #[test]
    fn items_without_their_key_are_refused_with_their_path() {
        let table = [
            (
                json!({"spec": {"containers": [{"image": "x"}]}}),
                "spec.agents.overrides.spec.containers[0]: needs `name`",
            ),
            (
                json!({"spec": {"containers": [{"name": "run", "volumeMounts": [{"name": "x"}]}]}}),
                "spec.agents.overrides.spec.containers[0].volumeMounts[0]: needs `mountPath`",
            ),
            (json!({"spec": {"volumes": ["x"]}}), "spec.agents.overrides.spec.volumes[0]: must be an object"),
        ];
        for (overlay, wanted) in table {
            let error = merged(&overlay).unwrap_err();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
