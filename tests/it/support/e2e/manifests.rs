//! What is applied to install the product: `deploy/`, as its README says, made to fit a cluster of tests.

use serde_json::{Value, json};

use super::install::{NAMESPACE, SECONDS_BETWEEN_LOOKS};
use crate::support::{cluster::Kubectl, sources::root};

/// What an administrator makes before the rest.
pub(super) struct Own<'a> {
    pub(super) admin_token: &'a str,
    pub(super) ca: &'a str,
    pub(super) certificate: &'a str,
    pub(super) key: &'a str,
}

/// Objects of a file or folder of `deploy/`.
fn deployed(kubectl: &Kubectl, path: &str) -> Vec<Value> {
    let path = root().join("deploy").join(path);
    let text = kubectl.run(&["create", "--dry-run=client", "--output=json", "--filename", path.to_str().unwrap()]);
    let documents = serde_json::Deserializer::from_str(&text).into_iter::<Value>().map(Result::unwrap);
    documents.flat_map(|it| it["items"].as_array().cloned().unwrap_or_else(|| vec![it])).collect()
}

/// The namespace, and the Secrets in it.
pub(super) fn before(kubectl: &Kubectl, own: &Own<'_>) -> Vec<Value> {
    let secret = |name: &str, content: Value| {
        let metadata = json!({"name": name, "namespace": NAMESPACE});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content})
    };
    let mut all = deployed(kubectl, "operator/namespace.yaml");
    all.push(secret("terrapool-admin", json!({"token": own.admin_token})));
    all.push(secret("terrapool-tls", json!({"tls.crt": own.certificate, "tls.key": own.key, "ca.crt": own.ca})));
    all
}

/// Control plane and operator. `run` changes with every installation, so that Pods of an earlier one are replaced.
pub(super) fn programs(kubectl: &Kubectl, run: &str) -> Vec<Value> {
    let mut all = [deployed(kubectl, "server"), deployed(kubectl, "operator")].concat();
    for object in &mut all {
        let kind = object["kind"].as_str().unwrap().to_owned();
        match kind.as_str() {
            // Tests reach it at a node's address.
            "Service" => object["spec"]["type"] = json!("NodePort"),
            "StatefulSet" | "Deployment" => {
                object["spec"]["template"]["metadata"]["annotations"] = json!({"test-run": run});
                adapt(&mut object["spec"]["template"]["spec"]["containers"][0]);
            }
            _ => {}
        }
        if kind == "StatefulSet" {
            // There is nobody who makes volumes, and nothing to keep.
            object["spec"].as_object_mut().unwrap().remove("volumeClaimTemplates");
            let volumes = object["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
            volumes.push(json!({"name": "data", "emptyDir": {}}));
        }
    }
    all
}

/// The image under test; answers that point to where they were asked for; a short patience.
fn adapt(container: &mut Value) {
    container["image"] = json!("terrapool:test");
    container["readinessProbe"]["periodSeconds"] = json!(1);
    let operates = container["name"] == "operator";
    let env = container["env"].as_array_mut().unwrap();
    env.retain(|variable| variable["name"] != "TERRAPOOL_PUBLIC_URL" && variable["name"] != "TERRAPOOL_LOG_FORMAT");
    for variable in env.iter_mut().filter(|variable| variable["name"] == "TERRAPOOL_AGENT_IMAGE") {
        variable["value"] = json!("terrapool:test");
    }
    if operates {
        env.push(json!({"name": "TERRAPOOL_RESYNC_SECONDS", "value": SECONDS_BETWEEN_LOOKS.to_string()}));
    }
}
