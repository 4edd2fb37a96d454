//! The definitions' CEL expressions and their twins in Rust refuse the same manifests, for the same reasons.

use kube_cel::Validator;
use serde_json::{Value, json};
use terrapool::crd::{self, AgentPool, WorkspaceLink, rules};

fn schema(kind: &str) -> Value {
    let definition = crd::all().unwrap().into_iter().find(|definition| definition.spec.names.kind == kind).unwrap();
    let version = definition.spec.versions.into_iter().next().unwrap();
    serde_json::to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap()
}

fn object(kind: &str, spec: &Value) -> Value {
    let manifest = json!({"apiVersion": crd::API_VERSION, "kind": kind, "metadata": {"name": "x"}, "spec": spec});
    // Through the types, which fill in the defaults as an API server does.
    match kind {
        "AgentPool" => serde_json::to_value(serde_json::from_value::<AgentPool>(manifest).unwrap()).unwrap(),
        _ => serde_json::to_value(serde_json::from_value::<WorkspaceLink>(manifest).unwrap()).unwrap(),
    }
}

/// What CEL says, and what the rules in Rust say; of a change when there is an `old` spec.
fn verdicts(kind: &str, spec: &Value, old: Option<&Value>) -> (Vec<String>, Vec<String>) {
    let (new, old) = (object(kind, spec), old.map(|old| object(kind, old)));
    let cel = match Validator::new().validate(&schema(kind), &new, old.as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    };
    let specs = |value: &Value| value["spec"].clone();
    let mut found = if kind == "AgentPool" {
        let new = serde_json::from_value(specs(&new)).unwrap();
        let mut found = rules::pool(&new);
        if let Some(old) = &old {
            found.extend(rules::pool_change(&serde_json::from_value(specs(old)).unwrap(), &new));
        }
        found
    } else {
        let new = serde_json::from_value(specs(&new)).unwrap();
        let mut found = rules::link(&new);
        if let Some(old) = &old {
            found.extend(rules::link_change(&serde_json::from_value(specs(old)).unwrap(), &new));
        }
        found
    };
    (cel, found.drain(..).map(|violation| violation.message).collect())
}

#[test]
fn accepted_manifests_are_accepted_by_both() {
    let link = json!({"poolRef": {"name": "p"}, "workspace": {"environment": "e", "name": "w"}});
    let table = [
        ("AgentPool", json!({})),
        ("AgentPool", json!({"scope": {"type": "Environment", "environment": "e"}})),
        ("AgentPool", json!({"default": true, "allowedEnvironments": ["*"]})),
        ("AgentPool", json!({"agents": {"mode": "Node", "concurrency": 3, "nodeSelector": {"a": "b"}}})),
        ("AgentPool", json!({"agents": {"mode": "Deployment", "preset": "Scalr", "replicas": 0}})),
        ("AgentPool", json!({"agents": {"mode": "External"}})),
        ("AgentPool", json!({"runs": {"user": "Root", "acknowledgeRoot": true}})),
        ("AgentPool", json!({"controlPlane": {"url": "https://example.com"}})),
        ("WorkspaceLink", link),
        ("WorkspaceLink", json!({"pool": {"id": "apool-1"}, "workspace": {"id": "ws-1"}})),
    ];
    for (kind, spec) in table {
        assert_eq!(verdicts(kind, &spec, None), (vec![], vec![]), "{spec}");
        assert_eq!(verdicts(kind, &spec, Some(&spec)), (vec![], vec![]), "{spec} unchanged");
    }
}

#[test]
fn refused_manifests_are_refused_by_both_in_the_same_words() {
    let workspace = json!({"environment": "e", "name": "w"});
    let external = |field: &str, value: Value| json!({"agents": {"mode": "External", field: value}});
    let table = [
        ("AgentPool", json!({"agents": {"minIdle": 3, "maxAgents": 2}})),
        ("AgentPool", json!({"agents": {"minIdle": 21}})),
        ("AgentPool", json!({"agents": {"mode": "Node", "nodeSelector": {"a": "b"}, "maxAgents": 3}})),
        ("AgentPool", json!({"agents": {"mode": "Node"}})),
        ("AgentPool", json!({"agents": {"concurrency": 2}})),
        ("AgentPool", json!({"agents": {"mode": "External", "replicas": 1}})),
        ("AgentPool", json!({"agents": {"preset": "Scalr"}})),
        ("AgentPool", json!({"agents": {"mode": "Deployment"}})),
        ("AgentPool", json!({"agents": {"drainTimeout": "200h"}})),
        ("AgentPool", json!({"agents": {"scaleDown": {"stabilization": "25h"}}})),
        ("AgentPool", external("nodeSelector", json!({"a": "b"}))),
        ("AgentPool", external("image", json!("a:1"))),
        ("AgentPool", external("env", json!([{"name": "A", "value": "b"}]))),
        ("AgentPool", external("overrides", json!({"spec": {}}))),
        ("AgentPool", json!({"scope": {"type": "Environment"}})),
        ("AgentPool", json!({"scope": {"environment": "e"}})),
        ("AgentPool", json!({"scope": {"type": "Environment", "environment": "e"}, "allowedEnvironments": ["e"]})),
        ("AgentPool", json!({"scope": {"type": "Environment", "environment": "e"}, "default": true})),
        ("AgentPool", json!({"default": true, "allowedEnvironments": ["e"]})),
        ("AgentPool", json!({"token": {"ttl": "24h"}})),
        ("AgentPool", json!({"token": {"ttl": "2h", "rotateBefore": "1m", "overlap": "2h"}})),
        ("AgentPool", json!({"token": {"ttl": "9000h"}})),
        ("AgentPool", json!({"runs": {"user": "Root"}})),
        ("AgentPool", json!({"runs": {"timeouts": {"plan": "5s"}}})),
        ("AgentPool", json!({"controlPlane": {}})),
        ("AgentPool", json!({"controlPlane": {"urlFrom": {}}})),
        ("WorkspaceLink", json!({"workspace": workspace})),
        ("WorkspaceLink", json!({"poolRef": {"name": "p"}, "pool": {"name": "p"}, "workspace": workspace})),
        ("WorkspaceLink", json!({"pool": {}, "workspace": workspace})),
        ("WorkspaceLink", json!({"poolRef": {"name": "p"}, "workspace": {"name": "w"}})),
        ("WorkspaceLink", json!({"poolRef": {"name": "p"}, "workspace": {"id": "ws-1", "name": "w"}})),
        (
            "WorkspaceLink",
            json!({"poolRef": {"name": "p"}, "workspace": workspace, "controlPlane": {"url": "https://a"}}),
        ),
    ];
    for (kind, spec) in table {
        let (cel, rust) = verdicts(kind, &spec, None);
        assert!(!cel.is_empty() && !rust.is_empty(), "{spec}: CEL {cel:?}, Rust {rust:?}");
        for message in &rust {
            assert!(cel.iter().any(|text| text.contains(message)), "{spec}: {message:?} is not among {cel:?}");
        }
    }
}

#[test]
fn immutable_fields_are_refused_by_both() {
    let link =
        |pool: &str, name: &str| json!({"poolRef": {"name": pool}, "workspace": {"environment": "e", "name": name}});
    let by_id = json!({"pool": {"id": "apool-1"}, "workspace": {"environment": "e", "name": "w"}});
    let table = [
        ("AgentPool", json!({}), json!({"scope": {"type": "Environment", "environment": "e"}})),
        ("WorkspaceLink", link("p", "w"), link("q", "w")),
        ("WorkspaceLink", link("p", "w"), link("p", "v")),
        ("WorkspaceLink", link("p", "w"), by_id),
    ];
    for (kind, old, new) in table {
        let (cel, rust) = verdicts(kind, &new, Some(&old));
        assert!(!cel.is_empty() && !rust.is_empty(), "{old} to {new}: CEL {cel:?}, Rust {rust:?}");
        for message in &rust {
            assert!(cel.iter().any(|text| text.contains(message)), "{new}: {message:?} is not among {cel:?}");
        }
    }
}
