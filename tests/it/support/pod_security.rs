//! Pod Security Standards as the API server's admission reads them, in so far as they are about what we make.

use serde_json::Value;

const RESTRICTED_VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];

const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| items(&spec[kind]))
}

/// What "baseline" refuses in the spec of a Pod.
pub fn baseline(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[field] == true {
            found.push(field.to_owned());
        }
    }
    for volume in items(&spec["volumes"]).filter(|volume| !volume["hostPath"].is_null()) {
        found.push(format!("volume {}: hostPath", volume["name"]));
    }
    let pod = &spec["securityContext"];
    let named = containers(spec).map(|container| (container["name"].as_str().unwrap(), &container["securityContext"]));
    for (name, security) in named.chain([("pod", pod)]) {
        if security["privileged"] == true {
            found.push(format!("{name}: privileged"));
        }
        for added in items(&security["capabilities"]["add"]) {
            if !BASELINE_CAPABILITIES.iter().any(|allowed| added == allowed) {
                found.push(format!("{name}: capability {added}"));
            }
        }
        if security["seccompProfile"]["type"] == "Unconfined" {
            found.push(format!("{name}: seccompProfile Unconfined"));
        }
        if !security["procMount"].is_null() && security["procMount"] != "Default" {
            found.push(format!("{name}: procMount"));
        }
        let selinux = &security["seLinuxOptions"];
        let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
        if !types.contains(&selinux["type"].as_str().unwrap_or_default())
            || ["user", "role"].iter().any(|member| !selinux[member].is_null())
        {
            found.push(format!("{name}: seLinuxOptions"));
        }
        if security["appArmorProfile"]["type"] == "Unconfined" {
            found.push(format!("{name}: appArmorProfile Unconfined"));
        }
        if items(&security["sysctls"]).next().is_some() {
            found.push(format!("{name}: sysctls"));
        }
    }
    for container in containers(spec) {
        for port in items(&container["ports"]).filter(|port| port["hostPort"].as_i64().unwrap_or(0) != 0) {
            found.push(format!("{}: hostPort {}", container["name"], port["hostPort"]));
        }
    }
    found
}

/// What "restricted" refuses in the spec of a Pod.
pub fn restricted(spec: &Value) -> Vec<String> {
    let mut found = baseline(spec);
    for volume in items(&spec["volumes"]) {
        let kinds = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        for kind in kinds.filter(|kind| !RESTRICTED_VOLUMES.contains(&kind.as_str()) && *kind != "hostPath") {
            found.push(format!("volume {}: {kind}", volume["name"]));
        }
    }
    let pod = &spec["securityContext"];
    if pod["runAsUser"] == 0 {
        found.push("pod: runAsUser 0".to_owned());
    }
    for container in containers(spec) {
        let (name, security) = (container["name"].as_str().unwrap(), &container["securityContext"]);
        let mut refuse = |broken: bool, what: &str| {
            if broken {
                found.push(format!("{name}: {what}"));
            }
        };
        let of = |member: &str| if security[member].is_null() { &pod[member] } else { &security[member] };
        refuse(security["allowPrivilegeEscalation"] != false, "allowPrivilegeEscalation");
        refuse(of("runAsNonRoot") != true, "runAsNonRoot");
        refuse(security["runAsUser"] == 0, "runAsUser 0");
        let seccomp = &of("seccompProfile")["type"];
        refuse(seccomp != "RuntimeDefault" && seccomp != "Localhost", "seccompProfile");
        refuse(!items(&security["capabilities"]["drop"]).any(|dropped| dropped == "ALL"), "capabilities.drop");
        for added in items(&security["capabilities"]["add"]).filter(|added| *added != "NET_BIND_SERVICE") {
            refuse(true, &format!("capabilities.add {}", added.as_str().unwrap_or_default()));
        }
    }
    found
}
