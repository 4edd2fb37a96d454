//! The objects of every example, as they are applied; what Pod Security says of them; what users cannot change.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};
use terrapool::{
    crd::{AgentPool, AgentPoolSpec, agent_pool::RunUser, agents::AgentMode},
    operator::workloads::{NewPod, OwnedKind, PoolView, mark, objects, pod, template_hash},
};

use crate::support::pod_security::{baseline, restricted};

const TOKEN: &str = "at-0000000000000001";

fn view<'a>(name: &'a str, spec: &'a AgentPoolSpec) -> PoolView<'a> {
    PoolView {
        namespace: "team",
        name,
        uid: "11111111-2222-3333-4444-555555555555",
        spec,
        url: "https://terrapool.terrapool-system.svc:8443",
        secret: "pool-token",
        has_ca: true,
        token_id: TOKEN,
        agent_image: "registry.example.com/terrapool:0.1.0",
    }
}

fn spec(value: &Value) -> AgentPoolSpec {
    serde_json::from_value(value.clone()).unwrap()
}

/// Everything that is made for a pool: its objects, and one of its Pods.
fn everything(view: &PoolView<'_>) -> Vec<Value> {
    let mut all: Vec<Value> = objects(view).unwrap().into_iter().map(|owned| owned.manifest).collect();
    if view.spec.agents.mode == AgentMode::Ephemeral {
        all.push(pod(view, &NewPod { name: "example-22222222", image: None }).unwrap());
    }
    all
}

/// Spec of the Pod in or of an object.
fn pod_spec(manifest: &Value) -> Option<&Value> {
    match manifest["kind"].as_str().unwrap() {
        "Pod" => Some(&manifest["spec"]),
        "DaemonSet" | "Deployment" => Some(&manifest["spec"]["template"]["spec"]),
        _ => None,
    }
}

fn made_pod(spec: &AgentPoolSpec) -> Value {
    pod(&view("p", spec), &NewPod { name: "p-22222222", image: None }).unwrap()
}

/// File stem and pool of every AgentPool in examples/.
fn examples() -> Vec<(String, AgentPool)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut files: Vec<_> = [folder.clone(), folder.join("demo/manifests")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut pools = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value = serde_json::to_value(serde_yaml::Value::deserialize(document).unwrap()).unwrap();
            if value["kind"] == "AgentPool" {
                let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
                pools.push((stem, serde_json::from_value(value).unwrap()));
            }
        }
    }
    pools
}

#[test]
fn the_objects_of_every_example_are_those_that_are_kept() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden/operator");
    let update = std::env::var_os("TERRAPOOL_UPDATE_GOLDEN").is_some();
    let mut kept: Vec<String> = Vec::new();
    for (file, pool) in examples() {
        let name = pool.metadata.name.unwrap();
        let made = serde_json::to_string_pretty(&everything(&view(&name, &pool.spec))).unwrap() + "\n";
        let path = folder.join(format!("{file}.{name}.json"));
        kept.push(format!("{file}.{name}.json"));
        if update {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &made).unwrap();
        }
        let known = fs::read_to_string(&path).unwrap_or_default();
        let different = known.lines().zip(made.lines()).enumerate().find(|(_, (known, made))| known != made);
        assert!(
            known == made,
            "{} is out of date at {different:?}: TERRAPOOL_UPDATE_GOLDEN=1 cargo test --test it operator_workloads",
            path.display()
        );
    }
    assert!(kept.len() >= 9, "{kept:?}");
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(kept.contains(&name), "{name} belongs to no example");
    }
}

#[test]
fn every_pod_passes_pod_security_but_where_somebody_chose_otherwise() {
    for (file, pool) in examples() {
        let view = view("p", &pool.spec);
        for manifest in everything(&view) {
            let Some(spec) = pod_spec(&manifest) else { continue };
            let (found, mode) = (restricted(spec), pool.spec.agents.mode);
            match (mode, pool.spec.runs.user) {
                (AgentMode::Node, _) => {
                    // The socket and the data of the node, root to open the one, and SELinux' leave.
                    let about = ["hostPath", "runAsNonRoot", "runAsUser 0", "seLinuxOptions", "capabilities.add"];
                    assert!(found.iter().all(|text| about.iter().any(|word| text.contains(word))), "{file}: {found:?}");
                }
                (_, RunUser::Root) => {
                    assert!(found.iter().all(|text| text.starts_with("run: ")), "{file}: {found:?}");
                    assert_eq!(baseline(spec), Vec::<String>::new(), "{file}");
                }
                _ => assert_eq!(found, Vec::<String>::new(), "{file}"),
            }
        }
    }
}

#[test]
fn pods_of_all_kinds_of_specs_are_restricted() {
    let full = json!({
        "labels": {"team": "a", "terrapool.dev/pool": "stolen", "terrapool.dev/run-image": "stolen"},
        "annotations": {"note": "b", "terrapool.dev/template": "stolen"},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "nodeSelector": {"os": "centos"},
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {}},
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountName": "agents",
        "image": "other:1",
        "drainTimeout": "1h",
        "resources": {"limits": {"memory": "1Gi"}},
        "overrides": {
            "metadata": {"labels": {"terrapool.dev/pool": "stolen", "cost": "c"}},
            "spec": {
                "priorityClassName": "high", "automountServiceAccountToken": true, "restartPolicy": "Always",
                "containers": [{"name": "run", "env": [{"name": "A", "value": "b"}]}],
            },
        },
    });
    for agents in [json!({}), full] {
        let spec = spec(&json!({"agents": agents, "runs": {"image": "run:1", "resources": {"limits": {"cpu": "1"}}}}));
        let pod = made_pod(&spec);
        assert_eq!(restricted(&pod["spec"]), Vec::<String>::new());
        assert_eq!(pod["metadata"]["labels"]["terrapool.dev/pool"], "p");
        assert_ne!(pod["metadata"]["labels"][mark::RUN_IMAGE], "stolen");
        assert_eq!(pod["metadata"]["annotations"][mark::TEMPLATE], template_hash(&view("p", &spec)).unwrap());
        assert_eq!(pod["metadata"]["ownerReferences"][0]["controller"], true);
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
        for container in pod["spec"]["containers"].as_array().unwrap() {
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
            assert_eq!(container["imagePullPolicy"], "IfNotPresent");
            assert!(container["resources"]["limits"].is_object());
        }
        if !spec.agents.labels.is_empty() {
            let labels = &pod["metadata"]["labels"];
            assert_eq!((&labels["team"], &labels["cost"]), (&json!("a"), &json!("c")));
            assert_eq!(pod["metadata"]["annotations"]["note"], "b");
            assert_eq!(pod["spec"]["priorityClassName"], "high");
            assert_eq!(pod["spec"]["serviceAccountName"], "agents");
            assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 3700);
            assert_eq!(pod["spec"]["containers"][0]["image"], "other:1");
        }
    }
}

#[test]
fn bad_pods_are_found() {
    let good = made_pod(&spec(&json!({})))["spec"].clone();
    let table = [
        ("/hostNetwork", json!(true), "hostNetwork"),
        ("/volumes/0", json!({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
        ("/volumes/0", json!({"name": "x", "nfs": {}}), "nfs"),
        ("/containers/1/securityContext/privileged", json!(true), "privileged"),
        ("/containers/1/securityContext/allowPrivilegeEscalation", json!(true), "allowPrivilegeEscalation"),
        ("/containers/1/securityContext/runAsNonRoot", json!(false), "runAsNonRoot"),
        ("/containers/1/securityContext/runAsUser", json!(0), "runAsUser 0"),
        ("/containers/1/securityContext/capabilities", json!({"drop": ["NET_RAW"]}), "capabilities.drop"),
        ("/containers/1/securityContext/capabilities", json!({"drop": ["ALL"], "add": ["CHOWN"]}), "capabilities.add"),
        ("/containers/1/ports", json!([{"hostPort": 80}]), "hostPort"),
        ("/initContainers/0/securityContext", json!({}), "capabilities.drop"),
        ("/securityContext/seccompProfile", json!({"type": "Unconfined"}), "seccompProfile"),
        ("/securityContext/sysctls", json!([{"name": "a"}]), "sysctls"),
    ];
    assert_eq!(restricted(&good), Vec::<String>::new());
    for (pointer, value, wanted) in table {
        let mut bad = good.clone();
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        match bad.pointer_mut(parent).unwrap() {
            Value::Array(items) => items[member.parse::<usize>().unwrap()] = value,
            other => other[member] = value,
        }
        assert!(restricted(&bad).iter().any(|text| text.contains(wanted)), "{pointer}: {:?}", restricted(&bad));
    }
}

#[test]
fn the_token_is_the_agents_alone_and_in_no_variable_of_our_agents() {
    for (file, pool) in examples().into_iter().filter(|(_, pool)| pool.spec.agents.mode != AgentMode::Deployment) {
        for manifest in everything(&view("p", &pool.spec)) {
            let Some(spec) = pod_spec(&manifest) else { continue };
            for kind in ["containers", "initContainers"] {
                for container in spec[kind].as_array().into_iter().flatten() {
                    let mounts = container["volumeMounts"].to_string();
                    assert_eq!(mounts.contains("pool-token"), container["name"] == "agent", "{file}");
                    assert!(!container["env"].to_string().contains("secretKeyRef"), "{file}");
                }
            }
        }
    }
}

#[test]
fn overrides_cannot_hand_the_agents_secrets_to_runs() {
    let table = [
        (
            json!({"spec": {"containers": [{"name": "run", "volumeMounts": [{"name": "pool-token", "mountPath": "/x"}]}]}}),
            "pool-token",
        ),
        (
            json!({"spec": {"containers": [{"name": "new", "volumeMounts": [{"name": "agent-data", "mountPath": "/x"}]}]}}),
            "agent-data",
        ),
        (
            json!({"spec": {"initContainers": [{"name": "i", "volumeMounts": [{"name": "agent-data", "mountPath": "/x"}]}]}}),
            "agent-data",
        ),
        (json!({"spec": {"volumes": [{"name": "mine", "secret": {"secretName": "pool-token"}}]}}), "volumes[mine]"),
        (
            json!({"spec": {"volumes": [{"name": "mine", "projected": {"sources": [{"secret": {"name": "pool-token"}}]}}]}}),
            "volumes[mine]",
        ),
        (
            json!({"spec": {"containers": [{"name": "run", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "pool-token", "key": "token"}}}]}]}}),
            "containers[run].env",
        ),
        (
            json!({"spec": {"containers": [{"name": "run", "envFrom": [{"secretRef": {"name": "pool-token"}}]}]}}),
            "containers[run].env",
        ),
        (json!({"spec": {"nodeName": "n"}}), "nodeName"),
        (json!({"metadata": {"ownerReferences": []}}), "metadata.ownerReferences"),
        (json!({"kind": "Pod"}), "kind"),
        (json!({"spec": []}), "spec"),
    ];
    for (overrides, wanted) in table {
        let spec = spec(&json!({"agents": {"overrides": overrides}}));
        let error = pod(&view("p", &spec), &NewPod { name: "p-2", image: None }).unwrap_err();
        assert!(error.to_string().contains(wanted), "{wanted}: {error}");
        assert!(error.path.starts_with("spec.agents.overrides"), "{error}");
    }
}

#[test]
fn p15_pod_settings_come_from_the_pool_only() {
    // What a workspace chooses is one of the pool's images, and that changes the run container's image alone.
    let spec = spec(&json!({"runs": {"image": "a:1", "allowedImages": ["b:1", "c/*"]}}));
    let view = view("p", &spec);
    let of = |image| pod(&view, &NewPod { name: "p-22222222", image });
    let plain = of(None).unwrap();
    for image in ["b:1", "c/d:2"] {
        let mut other = of(Some(image)).unwrap();
        assert_eq!(other["spec"]["containers"][1]["image"], image);
        assert!(other["spec"]["containers"][0]["args"].to_string().contains(&format!("--run-image={image}")));
        for pointer in
            ["/spec/containers/1/image", "/spec/containers/0/args", "/metadata/labels", "/metadata/annotations"]
        {
            *other.pointer_mut(pointer).unwrap() = plain.pointer(pointer).unwrap().clone();
        }
        assert_eq!(other, plain, "{image}");
    }
    assert_eq!(of(Some("d:1")).unwrap_err().path, "spec.runs.allowedImages");
}

#[test]
fn an_edit_outdates_pods_and_a_rotation_does_not() {
    let hash = |value: Value, change: fn(&mut PoolView<'_>)| {
        let spec = spec(&value);
        let mut view = view("p", &spec);
        change(&mut view);
        template_hash(&view).unwrap()
    };
    let plain = hash(json!({}), |_| {});
    assert_eq!(plain, hash(json!({"agents": {"minIdle": 5}}), |_| {}), "numbers are no part of a Pod");
    assert_eq!(plain, hash(json!({"runs": {"image": "x:1"}}), |_| {}), "the run image is compared by itself");
    assert_eq!(plain, hash(json!({}), |view| view.token_id = "at-2"), "the mounted token follows by itself");
    let others = [
        hash(json!({"agents": {"nodeSelector": {"a": "b"}}}), |_| {}),
        hash(json!({"agents": {"labels": {"a": "b"}}}), |_| {}),
        hash(json!({"runs": {"user": "Root", "acknowledgeRoot": true}}), |_| {}),
        hash(json!({}), |view| view.agent_image = "terrapool:2"),
        hash(json!({}), |view| view.url = "https://other:1"),
        hash(json!({}), |view| view.has_ca = false),
    ];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(plain, *other, "{index}");
    }
}

#[test]
fn a_rotation_replaces_foreign_agents() {
    let spec = spec(&json!({"agents": {"mode": "Deployment", "preset": "Scalr", "env": [
        {"name": "SCALR_AGENT_TOKEN", "value": "stolen"}, {"name": "SCALR_AGENT_CONCURRENCY", "value": "3"}]}}));
    let view = view("p", &spec);
    let objects = objects(&view).unwrap();
    let deployment = objects.iter().find(|owned| owned.kind == OwnedKind::Deployment).unwrap();
    let template = &deployment.manifest["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"][mark::TOKEN], TOKEN);
    let env = template["spec"]["containers"][0]["env"].as_array().unwrap();
    let of = |name: &str| env.iter().filter(|variable| variable["name"] == name).collect::<Vec<_>>();
    assert_eq!(of("SCALR_AGENT_TOKEN").len(), 1);
    assert_eq!(of("SCALR_AGENT_TOKEN")[0]["valueFrom"]["secretKeyRef"]["name"], "pool-token");
    assert_eq!(of("SCALR_AGENT_CONCURRENCY"), [&json!({"name": "SCALR_AGENT_CONCURRENCY", "value": "3"})]);
}

#[test]
fn policies_keep_runs_away_from_metadata_and_let_them_reach_what_is_listed() {
    let egress = |network: Value, url: &'static str| -> Result<Vec<Value>, String> {
        let spec = spec(&json!({"runs": {"network": network}}));
        let view = PoolView { url, ..view("p", &spec) };
        let objects = objects(&view).map_err(|error| error.to_string())?;
        let policy = objects.iter().find(|owned| owned.kind == OwnedKind::NetworkPolicy).unwrap();
        assert_eq!(policy.manifest["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert!(policy.manifest["spec"]["ingress"].is_null(), "nothing comes in");
        Ok(policy.manifest["spec"]["egress"].as_array().unwrap().clone())
    };
    let url = "https://192.0.2.7:8443";
    let all = egress(json!({}), url).unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(
        all[1],
        json!({"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"protocol": "TCP", "port": 8443}]})
    );
    let peers = json!([
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16", "168.63.129.16/32"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::254/128", "fe80::/10"]}},
    ]);
    assert_eq!(all[2]["to"], peers);
    assert_eq!(egress(json!({"blockMetadata": false}), url).unwrap(), [json!({})]);
    let some = egress(json!({"egress": ["10.0.0.0/8", "168.0.0.0/8"]}), url).unwrap();
    let listed = json!([
        {"ipBlock": {"cidr": "10.0.0.0/8"}},
        {"ipBlock": {"cidr": "168.0.0.0/8", "except": ["168.63.129.16/32"]}},
    ]);
    assert_eq!(some[2]["to"], listed);
    assert_eq!(egress(json!({"egress": []}), url).unwrap().len(), 2, "names and the control plane alone");
    let service = egress(json!({"egress": []}), "https://terrapool.system.svc.cluster.local").unwrap();
    assert_eq!(service[1]["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "system");
    let outside = egress(json!({"egress": []}), "https://terrapool.example.com").unwrap();
    assert_eq!(outside[1]["ports"], json!([{"protocol": "TCP", "port": 443}]));
    for (network, wanted) in [
        (json!({"egress": ["169.254.169.254/32"]}), "spec.runs.network.egress[0]: 169.254.169.254/32 is a metadata"),
        (json!({"egress": ["10.0.0.0/8", "10.0.0.0/99"]}), "spec.runs.network.egress[1]: `10.0.0.0/99` is not"),
    ] {
        let error = egress(network, url).unwrap_err();
        assert!(error.starts_with(wanted), "{error}");
    }
}
