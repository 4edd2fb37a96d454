//! The generated CustomResourceDefinitions, and the check of a manifest against their schema: what
//! an API server does structurally (unknown fields, types, enums, required fields), each finding
//! with the path of its field.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{AgentPool, WorkspaceLink};

/// What is wrong with one field of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, as `spec.agents.minIdle` or `spec.runs.env[0].name`.
    pub path: String,
    /// What is wrong, for people; does not repeat the path.
    pub message: String,
}

impl Violation {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// The definitions of all our kinds, ready to be applied.
///
/// # Errors
/// Never in a program that passed its tests: when the definitions do not serialise.
pub fn all() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    [AgentPool::crd(), WorkspaceLink::crd()].into_iter().map(finish).collect()
}

/// What the derive cannot say: a brand-new object is "not yet visited", so that tools that read
/// kstatus do not take it for finished; and an explicit null is no value, since `has()` in a rule would
/// take it for one.
fn finish(definition: CustomResourceDefinition) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut value = serde_json::to_value(definition)?;
    refuse_nulls(&mut value);
    if let Some(status) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status") {
        status["default"] = json!({"observedGeneration": -1});
    }
    serde_json::from_value(value)
}

fn refuse_nulls(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // A field may be called so; then it is no boolean.
            map.retain(|name, value| name != "nullable" || !value.is_boolean());
            map.values_mut().for_each(refuse_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(refuse_nulls),
        _ => {}
    }
}

/// Checks `manifest` against the schema of its kind. Kinds that are not ours give one violation.
#[must_use]
pub fn violations(manifest: &Value) -> Vec<Violation> {
    let kind = manifest["kind"].as_str().unwrap_or_default();
    if manifest["apiVersion"] != super::API_VERSION {
        return vec![Violation::new("apiVersion", format!("must be {}", super::API_VERSION))];
    }
    let schema = all().ok().and_then(|definitions| {
        let definition = definitions.into_iter().find(|definition| definition.spec.names.kind == kind)?;
        serde_json::to_value(definition.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?).ok()
    });
    let Some(schema) = schema else {
        return vec![Violation::new("kind", format!("`{kind}` is not one of AgentPool, WorkspaceLink"))];
    };
    let mut found = Vec::new();
    check_metadata(&manifest["metadata"], &mut found);
    check(&schema, manifest, "", &mut found);
    found
}

fn check_metadata(metadata: &Value, found: &mut Vec<Violation>) {
    const LABEL_MAX: usize = 63;
    for field in ["name", "namespace"] {
        match &metadata[field] {
            Value::Null if field == "name" => found.push(Violation::new("metadata.name", "is required")),
            Value::Null => {}
            Value::String(name) => {
                let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
                let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let valid = name.bytes().all(inner)
                    && edge(name.bytes().next())
                    && edge(name.bytes().last())
                    && name.len() <= LABEL_MAX;
                if !valid {
                    found.push(Violation::new(
                        format!("metadata.{field}"),
                        format!("`{name}` must be at most {LABEL_MAX} lowercase letters, digits, `-` and `.`"),
                    ));
                }
            }
            _ => found.push(Violation::new(format!("metadata.{field}"), "must be a string")),
        }
    }
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    if schema["x-kubernetes-int-or-string"] == true {
        if !value.is_number() && !value.is_string() {
            found.push(Violation::new(path, "must be a number or a string"));
        }
        return;
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        let wanted = schema["type"].as_str().unwrap_or_default();
        found.push(Violation::new(path, format!("must be of type {wanted}, not {}", type_name(value))));
        return;
    }
    check_bounds(schema, value, path, found);
    match value {
        Value::Object(map) => check_object(schema, map, path, found),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

fn check_object(schema: &Value, map: &serde_json::Map<String, Value>, path: &str, found: &mut Vec<Violation>) {
    let join = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(required) {
            found.push(Violation::new(join(required), "is required"));
        }
    }
    for (field, value) in map {
        // Implicit in every definition, so not in the schema; metadata has a check of its own.
        if path.is_empty() && matches!(field.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        if let Some(property) = schema["properties"].get(field) {
            check(property, value, &join(field), found);
        } else if schema["additionalProperties"].is_object() {
            check(&schema["additionalProperties"], value, &join(field), found);
        } else if schema["x-kubernetes-preserve-unknown-fields"] != true {
            let known: Vec<&str> =
                schema["properties"].as_object().into_iter().flat_map(|p| p.keys()).map(String::as_str).collect();
            found.push(Violation::new(join(field), format!("unknown field; known here: {}", known.join(", "))));
        }
    }
}

fn check_bounds(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        found.push(Violation::new(path, format!("must be one of {}", names.join(", "))));
    }
    let size = match value {
        Value::String(text) => Some((text.chars().count() as f64, "Length", "characters")),
        Value::Array(items) => Some((items.len() as f64, "Items", "items")),
        _ => None,
    };
    let bound = |name: &str| schema[name].as_f64();
    if let Some((size, suffix, unit)) = size {
        if let Some(min) = bound(&format!("min{suffix}")).filter(|min| size < *min) {
            found.push(Violation::new(path, format!("must have at least {min} {unit}")));
        }
        if let Some(max) = bound(&format!("max{suffix}")).filter(|max| size > *max) {
            found.push(Violation::new(path, format!("must have at most {max} {unit}")));
        }
    }
    if let Some(number) = value.as_f64() {
        if let Some(min) = bound("minimum").filter(|min| number < *min) {
            found.push(Violation::new(path, format!("must be at least {min}")));
        }
        if let Some(max) = bound("maximum").filter(|max| number > *max) {
            found.push(Violation::new(path, format!("must be at most {max}")));
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
