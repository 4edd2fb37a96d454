//! State versions and outputs.

use serde_json::Value;

use super::super::addresses::Addresses;
use crate::{
    clock::rfc3339,
    ids::StateVersionId,
    jsonapi::Resource,
    server::domain::{
        model::{StateOutput, StateStatus, StateVersion},
        states::{Form, output_id},
    },
};

/// A state version with `outputs` outputs.
pub(in super::super) fn state(state: &StateVersion, outputs: usize, addresses: Addresses<'_>) -> Resource {
    let id = &state.id;
    let json = state.json_blob.as_ref().map(|_| addresses.state_download(id, Form::Json));
    Resource::new("state-versions", id.as_str())
        .attribute("serial", state.serial)
        .attribute("lineage", state.lineage.as_str())
        .attribute("md5", state.md5.as_str())
        .attribute("size", state.size_bytes)
        .attribute("status", state.status.as_str())
        .attribute("created-at", rfc3339(state.created_at))
        .attribute("state-version", 4)
        .attribute("terraform-version", state.engine_version.as_str())
        // outputs and counts are read while the state is stored
        .attribute("resources-processed", state.status == StateStatus::Finalized)
        .attribute("hosted-state-upload-url", addresses.state_upload(id, Form::Raw))
        .attribute("hosted-json-state-upload-url", addresses.state_upload(id, Form::Json))
        .attribute("hosted-state-download-url", addresses.state_download(id, Form::Raw))
        .attribute("hosted-json-state-download-url", json)
        .to_one("run", "runs", state.run_id.as_ref().map(AsRef::as_ref))
        .to_one("created-by", "users", state.created_by.as_ref().map(AsRef::as_ref))
        .to_one("workspace", "workspaces", Some(state.workspace_id.as_str()))
        .to_many("outputs", "state-version-outputs", (0..outputs).map(|index| output_id(id, index)))
        .link("self", format!("/api/v2/state-versions/{id}"))
}

/// The outputs of a state; sensitive ones without their value.
pub(in super::super) fn outputs(state: &StateVersionId, outputs: &[StateOutput]) -> Vec<Resource> {
    outputs.iter().enumerate().map(|(index, found)| output(&output_id(state, index), found, false)).collect()
}

/// One output; a sensitive one's value only when `reveal`.
pub(in super::super) fn output(id: &str, output: &StateOutput, reveal: bool) -> Resource {
    let value = if output.sensitive && !reveal { Value::Null } else { output.value.clone() };
    Resource::new("state-version-outputs", id)
        .attribute("name", output.name.as_str())
        .attribute("sensitive", output.sensitive)
        .attribute("type", short_type(&output.detailed_type))
        .attribute("detailed-type", output.detailed_type.clone())
        .attribute("value", value)
}

/// The type in one word.
fn short_type(detailed: &Value) -> &str {
    match detailed {
        Value::String(name) if name == "bool" => "boolean",
        Value::String(name) => name,
        Value::Array(parts) => match parts.first().and_then(Value::as_str) {
            Some("list" | "set" | "tuple") => "array",
            _ => "object",
        },
        _ => "string",
    }
}
