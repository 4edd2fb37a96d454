//! What the API server has recorded of our service accounts' calls, where this is a cluster of ours.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use serde_json::Value;

use super::World;

/// One call. Empty where the API has none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    pub verb: String,
    pub group: String,
    /// With its subresource, as `agentpools/status`.
    pub resource: String,
    pub namespace: String,
}

/// Where the cluster lives, if `tests/cluster` has started it.
fn log() -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("TERRAPOOL_TEST_CLUSTER_DIR")?).join("logs/audit.log");
    path.is_file().then_some(path)
}

fn call(record: &Value) -> Option<Call> {
    let object = &record["objectRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sub = text(&object["subresource"]);
    let resource = text(&object["resource"]);
    (!resource.is_empty()).then(|| Call {
        verb: text(&record["verb"]),
        group: text(&object["apiGroup"]),
        resource: if sub.is_empty() { resource } else { format!("{resource}/{sub}") },
        namespace: text(&object["namespace"]),
    })
}

/// All calls, with the status of their answers; `None`: this cluster does not record them.
pub fn calls() -> Option<Vec<(Call, u64)>> {
    let text = fs::read_to_string(log()?).unwrap();
    // The last line may not be whole yet.
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Some(records.filter_map(|it| Some((call(&it)?, it["responseStatus"]["code"].as_u64().unwrap_or(0)))).collect())
}

/// What was asked for and not allowed.
pub fn denied() -> BTreeSet<Call> {
    let Some(path) = log() else { return BTreeSet::new() };
    let text = fs::read_to_string(path).unwrap();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records
        .filter(|it| it["annotations"]["authorization.k8s.io/decision"] == "forbid")
        .filter_map(|it| call(&it))
        .collect()
}

impl World {
    /// How often a call in this namespace was answered so; 0 in a cluster that does not record calls.
    pub fn calls(&self, verb: &str, resource: &str, status: u64) -> usize {
        let of = |call: &Call| call.verb == verb && call.resource == resource && call.namespace == self.name();
        calls().into_iter().flatten().filter(|(call, code)| of(call) && *code == status).count()
    }
}
