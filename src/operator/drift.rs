//! Whether an object has to be applied again: what we want is sealed with its hash, and must be found in the live
//! object, in which defaults and others' fields may stand beside it. Pure.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{crd::quantity, hash::hex};

/// Annotation with the hash of the manifest that was applied last: tells that something was taken out of it.
const APPLIED: &str = "/metadata/annotations/terrapool.dev~1applied";

fn hash(manifest: &Value) -> String {
    // Maps of serde_json are sorted by key: the same manifest is the same text.
    hex(&Sha256::digest(manifest.to_string())[..12])
}

/// The manifest as it is applied: with its seal.
pub(super) fn sealed(manifest: &Value) -> Value {
    let mut sealed = manifest.clone();
    sealed["metadata"]["annotations"]["terrapool.dev/applied"] = json!(hash(manifest));
    sealed
}

/// Whether the live object is not what the manifest asks for.
pub(super) fn needs_apply(manifest: &Value, live: Option<&Value>) -> bool {
    let Some(live) = live else { return true };
    live.pointer(APPLIED).and_then(Value::as_str) != Some(&hash(manifest)) || !contains(live, manifest)
}

/// Whether everything in `wanted` is in `live`. Lists have the length and order that was applied; a list of maps may
/// have more in each element. What is empty may be left out.
fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| match live.get(key) {
            Some(live) => contains(live, wanted),
            None => is_empty(wanted),
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        (Value::String(live), Value::String(wanted)) => live == wanted || same_quantity(live, wanted),
        _ => live == wanted || (live.is_null() && is_empty(wanted)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::String(_) | Value::Number(_) | Value::Bool(true) => false,
    }
}

/// The API server writes quantities in its own way: 1000m becomes 1.
fn same_quantity(a: &str, b: &str) -> bool {
    quantity::thousandths(a).is_some_and(|a| Some(a) == quantity::thousandths(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Value {
        json!({"metadata": {"name": "a", "labels": {"l": "1"}}, "spec": {
            "containers": [{"name": "x", "resources": {"limits": {"cpu": "1000m"}}, "env": []}], "hostNetwork": false,
        }})
    }

    /// As the API server gives it back: with defaults and others' fields.
    fn live() -> Value {
        let mut live = sealed(&manifest());
        live["metadata"]["labels"]["theirs"] = json!("2");
        live["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("1");
        live["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
        live["spec"]["containers"][0].as_object_mut().unwrap().remove("env");
        live["spec"].as_object_mut().unwrap().remove("hostNetwork");
        live
    }

    #[test]
    fn defaults_and_fields_of_others_are_no_drift() {
        assert!(!needs_apply(&manifest(), Some(&live())));
        assert!(needs_apply(&manifest(), None));
    }

    #[test]
    fn an_edit_of_ours_is_drift() {
        for (path, value) in [
            ("/metadata/labels/l", json!("other")),
            ("/spec/containers/0/name", json!("y")),
            ("/spec/containers/0/resources/limits/cpu", json!("2")),
            ("/spec/containers", json!([])),
            ("/metadata/annotations", json!({})),
        ] {
            let mut live = live();
            *live.pointer_mut(path).unwrap() = value;
            assert!(needs_apply(&manifest(), Some(&live)), "{path}");
        }
    }

    #[test]
    fn what_is_taken_out_of_the_manifest_is_applied() {
        let mut smaller = manifest();
        smaller["metadata"]["labels"] = json!({});
        assert!(needs_apply(&smaller, Some(&live())));
    }
}
