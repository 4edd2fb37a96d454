//! Every example is valid as it stands: schema, rules, types.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Value, json};
use terrapool::crd::{AgentPool, WorkspaceLink, agents::AgentMode, rules, schema::violations};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn manifests(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(manifests(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The documents of a file. A repeated key is an error.
fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| {
            let value = serde_yaml::Value::deserialize(document).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            serde_json::to_value(value).unwrap()
        })
        .collect()
}

/// What an API server would say of a manifest.
fn complaints(manifest: &Value) -> Vec<String> {
    let mut found = violations(manifest);
    if found.is_empty() {
        found = match manifest["kind"].as_str() {
            Some("AgentPool") => rules::pool(&serde_json::from_value::<AgentPool>(manifest.clone()).unwrap().spec),
            _ => rules::link(&serde_json::from_value::<WorkspaceLink>(manifest.clone()).unwrap().spec),
        };
    }
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn every_example_is_valid() {
    let files = manifests(&root());
    assert!(files.len() >= 10, "{files:?}");
    let mut modes = BTreeMap::new();
    for file in files {
        let documents = documents(&file);
        assert!(!documents.is_empty(), "{file:?} is empty");
        for manifest in documents {
            assert_eq!(complaints(&manifest), Vec::<String>::new(), "{file:?}");
            if manifest["kind"] == "AgentPool" {
                let pool: AgentPool = serde_json::from_value(manifest).unwrap();
                *modes.entry(format!("{:?}", pool.spec.agents.mode)).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(modes.len(), 4, "an example for each mode: {modes:?}");
}

#[test]
fn the_readme_lists_every_example() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for file in manifests(&root()) {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        assert!(name.starts_with("demo/") || readme.contains(&format!("({name})")), "{name} is not in the README");
    }
}

#[test]
fn the_demo_needs_no_node_image_or_provider() {
    let pool = documents(&root().join("demo/manifests/agent-pool.yaml")).remove(0);
    let pool: AgentPool = serde_json::from_value(pool).unwrap();
    assert_eq!((pool.spec.agents.mode, pool.spec.runs.image.is_none()), (AgentMode::Ephemeral, true));
    let configuration = fs::read_to_string(root().join("demo/configuration/main.tf")).unwrap();
    assert!(configuration.contains("cloud {"));
    for needs in ["required_providers", "provisioner", "http"] {
        assert!(!configuration.contains(needs), "the demo's configuration has {needs}");
    }
}

fn pool(spec: &Value) -> Value {
    json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "p"}, "spec": spec})
}

fn link(spec: &Value) -> Value {
    json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": "l"}, "spec": spec})
}

#[test]
fn what_is_wrong_is_named_with_its_path() {
    let good_link = json!({"poolRef": {"name": "p"}, "workspace": {"environment": "e", "name": "w"}});
    assert_eq!(complaints(&link(&good_link)), Vec::<String>::new());
    assert_eq!(complaints(&pool(&json!({}))), Vec::<String>::new());
    let table = [
        (pool(&json!({"agents": {"minIdel": 1}})), "spec.agents.minIdel: unknown field"),
        (pool(&json!({"agents": {"minIdle": "1"}})), "spec.agents.minIdle: must be of type integer"),
        (pool(&json!({"agents": {"mode": "Pods"}})), "spec.agents.mode: must be one of"),
        (pool(&json!({"agents": {"maxAgents": 0}})), "spec.agents.maxAgents: must be at least 1"),
        (pool(&json!({"agents": {"minIdle": 3, "maxAgents": 2}})), "spec.agents.minIdle: minIdle must not exceed"),
        (pool(&json!({"agents": {"minIdle": 21}})), "spec.agents.minIdle: minIdle must not exceed"),
        (pool(&json!({"agents": {"mode": "Node"}})), "spec.agents.nodeSelector: mode Node needs"),
        (pool(&json!({"agents": {"concurrency": 2}})), "spec.agents.concurrency: concurrency belongs to mode Node"),
        (pool(&json!({"agents": {"mode": "Deployment"}})), "spec.agents.image: mode Deployment needs"),
        (pool(&json!({"agents": {"mode": "External", "env": [{"name": "A", "value": "b"}]}})), "spec.agents.env: "),
        (pool(&json!({"scope": {"type": "Environment"}})), "spec.scope.environment: environment is required"),
        (pool(&json!({"scope": {"environment": "e"}})), "spec.scope.environment: environment is required"),
        (
            pool(&json!({"scope": {"type": "Environment", "environment": "e"}, "allowedEnvironments": ["e"]})),
            "spec.allowedEnvironments: ",
        ),
        (pool(&json!({"default": true, "allowedEnvironments": ["e"]})), "spec.default: "),
        (pool(&json!({"token": {"ttl": "1h", "overlap": "1h", "rotateBefore": "1m"}})), "spec.token.overlap: "),
        (pool(&json!({"token": {"ttl": "24h"}})), "spec.token.rotateBefore: "),
        (pool(&json!({"runs": {"user": "Root"}})), "spec.runs.user: user Root weakens"),
        (pool(&json!({"runs": {"env": [{"name": "A"}]}})), "spec.runs.env[0].value: is required"),
        (pool(&json!({"controlPlane": {}})), "spec.controlPlane: set exactly one"),
        (link(&json!({"poolRef": {"name": "p"}})), "spec.workspace: is required"),
        (link(&json!({"workspace": {"environment": "e", "name": "w"}})), "spec.poolRef: set exactly one"),
        (link(&json!({"poolRef": {"name": "p"}, "workspace": {"name": "w"}})), "spec.workspace: set either id"),
    ];
    for (manifest, wanted) in table {
        let found = complaints(&manifest);
        assert!(found.iter().any(|text| text.starts_with(wanted)), "{wanted}: {found:?} for {}", manifest["spec"]);
    }
    let mut foreign = pool(&json!({}));
    foreign["kind"] = json!("Pool");
    assert!(complaints(&foreign)[0].starts_with("kind: "));
}

#[test]
fn immutable_fields_cannot_change() {
    let spec = |scope: Value| serde_json::from_value(json!({ "scope": scope })).unwrap();
    let account = spec(json!({"type": "Account"}));
    let environment = spec(json!({"type": "Environment", "environment": "e"}));
    assert!(rules::pool_change(&account, &account).is_empty());
    assert_eq!(rules::pool_change(&account, &environment)[0].path, "spec.scope");
    let link = |pool: &str, name: &str| {
        let spec = json!({"poolRef": {"name": pool}, "workspace": {"environment": "e", "name": name}});
        serde_json::from_value(spec).unwrap()
    };
    assert!(rules::link_change(&link("p", "w"), &link("p", "w")).is_empty());
    assert_eq!(rules::link_change(&link("p", "w"), &link("q", "w"))[0].path, "spec.poolRef");
    assert_eq!(rules::link_change(&link("p", "w"), &link("p", "v"))[0].path, "spec.workspace");
}
