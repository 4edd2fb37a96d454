//! What a state file says of itself. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::server::domain::model::StateOutput;

/// The one format that terraform ≥ 0.12 and tofu write.
const FORMAT: u64 = 4;

/// Bytes that are no state.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    #[error("The state is not JSON of the expected shape: {0}.")]
    Json(serde_json::Error),
    #[error("The state has format version {0}; only version 4 (terraform 0.12 and later, OpenTofu) is understood.")]
    Format(u64),
}

/// What the control plane reads from a state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    pub serial: i64,
    pub lineage: String,
    /// Version of the engine that wrote it.
    pub engine_version: String,
    pub outputs: Vec<StateOutput>,
    /// Instances of managed resources.
    pub resource_count: i64,
}

#[derive(Deserialize)]
struct File {
    version: Option<u64>,
    #[serde(default)]
    serial: i64,
    #[serde(default)]
    lineage: String,
    #[serde(default)]
    terraform_version: String,
    outputs: Option<BTreeMap<String, Output>>,
    resources: Option<Vec<Resource>>,
    /// Present when tofu encrypts its state: outputs and resources are hidden then.
    encrypted_data: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Output {
    #[serde(default)]
    value: Value,
    #[serde(rename = "type", default)]
    kind: Value,
    #[serde(default)]
    sensitive: bool,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default)]
    mode: String,
    #[serde(default)]
    instances: Vec<serde::de::IgnoredAny>,
}

/// Reads a state file.
///
/// # Errors
/// When it is not JSON, or no state in a known format.
pub fn read(bytes: &[u8]) -> Result<Content, Invalid> {
    let file: File = serde_json::from_slice(bytes).map_err(Invalid::Json)?;
    let version = file.version.unwrap_or_default();
    if version != FORMAT && file.encrypted_data.is_none() {
        return Err(Invalid::Format(version));
    }
    let outputs = file.outputs.unwrap_or_default().into_iter().map(|(name, output)| StateOutput {
        name,
        sensitive: output.sensitive,
        detailed_type: output.kind,
        value: output.value,
    });
    let managed = file.resources.iter().flatten().filter(|resource| resource.mode == "managed");
    Ok(Content {
        serial: file.serial,
        lineage: file.lineage,
        engine_version: file.terraform_version,
        outputs: outputs.collect(),
        resource_count: managed.map(|resource| i64::try_from(resource.instances.len()).unwrap_or(i64::MAX)).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_lineage_outputs_and_resources_are_read() {
        let state = br#"{"version":4,"terraform_version":"1.11.4","serial":7,"lineage":"l-1",
            "outputs":{"secret":{"value":"x","type":"string","sensitive":true},"list":{"value":["a"],"type":["list","string"]}},
            "resources":[{"mode":"managed","instances":[{},{}]},{"mode":"data","instances":[{}]}],"check_results":null}"#;
        let content = read(state).unwrap();
        assert_eq!((content.serial, content.lineage.as_str(), content.resource_count), (7, "l-1", 2));
        assert_eq!(content.engine_version, "1.11.4");
        assert_eq!(content.outputs[0].name, "list");
        assert_eq!(content.outputs[0].detailed_type, serde_json::json!(["list", "string"]));
        assert!(content.outputs[1].sensitive);
    }

    #[test]
    fn an_encrypted_state_keeps_its_serial_and_hides_the_rest() {
        let content =
            read(br#"{"serial":3,"lineage":"l","meta":{},"encrypted_data":"AAAA","encryption_version":"v0"}"#);
        assert_eq!(content.unwrap(), Content { serial: 3, lineage: "l".to_owned(), ..Content::default() });
    }

    #[test]
    fn garbage_is_refused() {
        for bad in ["", "null", "[]", "{}", r#"{"version":3}"#, r#"{"version":4,"serial":"x"}"#, "{\"version\":4"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
