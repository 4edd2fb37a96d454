//! What the other tests on a cluster stand on: nodes, images, names, logs. When one of these fails, look here first.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    cluster::{CENTOS, Namespace, cluster},
    poll::eventually,
};

/// Starting a container takes two seconds where nothing else runs.
const DEADLINE: Duration = Duration::from_secs(120);

/// A Pod of the *restricted* profile that runs `script` once.
fn pod(name: &str, image: &str, script: &[&str], node: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": node,
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": script,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
    .to_string()
}

/// The Pod once it has ended.
async fn ended(namespace: &Namespace, name: &str) -> Value {
    eventually("the Pod has ended", DEADLINE, async || {
        let pod = namespace.kubectl.get(&["pod", name]);
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") { Ok(pod) } else { Err(pod["status"].clone()) }
    })
    .await
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().unwrap();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

#[tokio::test]
async fn a_node_is_labelled_as_centos_and_one_is_not() {
    let namespace = Namespace::restricted(cluster());
    let nodes = namespace.kubectl.get(&["nodes"])["items"].as_array().unwrap().clone();
    let (labelled, others): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|node| node["metadata"]["labels"][CENTOS.0] == CENTOS.1);
    assert!(labelled.iter().any(is_ready), "no node that is ready has the label {}={}", CENTOS.0, CENTOS.1);
    assert!(others.iter().any(is_ready), "no node that is ready lacks the label {}={}", CENTOS.0, CENTOS.1);
}

#[tokio::test]
async fn terraform_runs_in_a_restricted_pod_on_the_labelled_node() {
    let namespace = Namespace::restricted(cluster());
    let node = json!({CENTOS.0: CENTOS.1});
    namespace.kubectl.apply(&pod("version", "terraform:test", &["sh", "-c", "terraform version && id -u"], &node));
    let pod = ended(&namespace, "version").await;
    let log = namespace.kubectl.run(&["logs", "version"]);
    assert_eq!(pod["status"]["phase"], "Succeeded", "{log}\n{}", pod["status"]);
    assert!(log.starts_with("Terraform v") && log.ends_with("\n65532\n"), "{log}");
    let node = namespace.kubectl.get(&["node", pod["spec"]["nodeName"].as_str().unwrap()]);
    assert_eq!(node["metadata"]["labels"][CENTOS.0], CENTOS.1);
}

#[tokio::test]
async fn the_product_runs_in_a_restricted_pod() {
    let namespace = Namespace::restricted(cluster());
    namespace.kubectl.apply(&pod("version", "terrapool:test", &["--version"], &json!({})));
    let pod = ended(&namespace, "version").await;
    let log = namespace.kubectl.run(&["logs", "version"]);
    assert_eq!(pod["status"]["phase"], "Succeeded", "{log}\n{}", pod["status"]);
    assert_eq!(log.trim(), format!("terrapool {}", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn pods_find_services_by_name() {
    let namespace = Namespace::restricted(cluster());
    let script =
        "nslookup kubernetes.default.svc.cluster.local && nc -w 10 kubernetes.default 443 </dev/null && echo reached";
    for os in [json!({CENTOS.0: CENTOS.1}), json!({})] {
        let name = if os == json!({}) { "anywhere" } else { "centos" };
        namespace.kubectl.apply(&pod(name, "terraform:test", &["sh", "-c", script], &os));
    }
    for name in ["anywhere", "centos"] {
        let pod = ended(&namespace, name).await;
        let log = namespace.kubectl.run(&["logs", name]);
        assert!(log.ends_with("reached\n"), "{name}: {log}\n{}", pod["status"]);
    }
}
