//! What is true of run containers only: their hardening, their images. Needs a Docker engine and its command.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use terrapool::{
    agent::executor::{Choice, Exit},
    api::{
        agent::{Outcome, reason},
        job::{Category, Stage, Variable},
    },
};

use crate::support::{
    docker::docker,
    jobs::{self, Host, chain, log, log_has, slug, spec, variable},
    metadata::Cloud,
};

const PLAIN: &str = "resource \"terraform_data\" \"a\" { input = 1 }\n";

/// An image with nothing but one empty file.
fn empty_image() -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    tar.append_data(&mut header, "nothing", std::io::empty()).unwrap();
    tar.finish().unwrap();
    docker(&["import", path.to_str().unwrap(), "terrapool-test/empty:1"]);
    "terrapool-test/empty:1".to_owned()
}

/// A secret of a workspace, which no description of anything may show.
const CANARY: &str = "canary-5c0ffee";

/// What Docker says about the container of a started job, and the job.
async fn inspected(host: &Host, root: bool) -> (Value, terrapool::api::job::JobSpec, terrapool::agent::jobdir::JobDir) {
    let mut spec = spec(Stage::Plan);
    spec.limits.memory_bytes = Some(512 << 20);
    spec.run_as_root = root;
    spec.variables = vec![
        Variable { sensitive: true, ..variable("SECRET", CANARY, Category::Env, false) },
        Variable { sensitive: true, ..variable("password", CANARY, Category::Terraform, false) },
    ];
    let dir = host.create(&spec, &slug(&[("main.tf", PLAIN)])).await;
    host.start(&dir, &spec).await;
    let name = format!("terrapool-{}-1", spec.job_id);
    let found: Vec<Value> = serde_json::from_str(&docker(&["inspect", &name])).unwrap();
    let [container] = <[Value; 1]>::try_from(found).unwrap();
    (container, spec, dir)
}

/// All that differs between a run as root and another is in the arguments.
fn assert_hardened(container: &Value, root: bool, read_only: bool, added: Value, user: &str) {
    let (config, limits) = (&container["Config"], &container["HostConfig"]);
    for (field, wanted) in [
        ("CapDrop", json!(["ALL"])),
        ("CapAdd", added),
        ("SecurityOpt", json!(["no-new-privileges"])),
        ("Privileged", json!(false)),
        ("ReadonlyRootfs", json!(read_only)),
        ("Memory", json!(512 << 20)),
        ("MemorySwap", json!(512 << 20)),
        ("PidsLimit", json!(300)),
        ("NanoCpus", json!(2_000_000_000_i64)),
        ("IpcMode", json!("private")),
        ("PidMode", json!("")),
        ("UTSMode", json!("")),
        ("UsernsMode", json!("")),
        ("CgroupParent", json!("")),
        ("AutoRemove", json!(false)),
        ("PublishAllPorts", json!(false)),
        ("Devices", json!([])),
        ("DeviceRequests", Value::Null),
        ("DeviceCgroupRules", Value::Null),
        ("GroupAdd", Value::Null),
        ("VolumesFrom", Value::Null),
        ("ExtraHosts", Value::Null),
        ("Links", Value::Null),
        ("Sysctls", Value::Null),
        ("PortBindings", json!({})),
        ("LogConfig", json!({"Type": "none", "Config": {}})),
        ("Tmpfs", json!({"/tmp": format!("rw,nosuid,nodev,exec,size={},mode=1777", 512 << 20)})),
    ] {
        let seen = &limits[field];
        let nothing = |value: &Value| value.is_null() || *value == json!([]) || *value == json!({});
        assert!(*seen == wanted || (nothing(seen) && nothing(&wanted)), "{field} is {seen}, not {wanted}");
    }
    let network = limits["NetworkMode"].as_str().unwrap();
    let name = docker(&["network", "inspect", "--format", "{{.Name}} {{.Driver}}", network]);
    assert_eq!(name, "terrapool bridge");
    assert!(limits["MaskedPaths"].as_array().unwrap().contains(&json!("/proc/kcore")));
    assert!(limits["ReadonlyPaths"].as_array().unwrap().contains(&json!("/proc/sys")));
    assert_eq!(config["User"], user);
    assert_eq!(config["Labels"]["terrapool.dev/run-as-root"], root.to_string());
    assert!(!container.to_string().contains(CANARY), "a secret is in the container's description");
}

#[tokio::test]
async fn every_field_of_the_hardening_is_set() {
    let host = Host::with(Choice::Docker, |settings| settings.limits.pids = Some(300)).await;
    let (container, spec, dir) = inspected(&host, false).await;
    assert_hardened(&container, false, true, Value::Null, "65532:65532");
    let config = &container["Config"];
    assert_eq!(config["Labels"]["terrapool.dev/job"], spec.job_id.as_str());
    assert_eq!(config["Labels"]["terrapool.dev/epoch"], "1");
    assert_eq!(config["Labels"]["terrapool.dev/agent"], host.instance.as_str());
    let mounts: BTreeSet<_> = container["Mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| (mount["Destination"].as_str().unwrap().to_owned(), mount["RW"].as_bool().unwrap()))
        .collect();
    let wanted = [("/terrapool/engine/terraform", false), ("/terrapool/job", true), ("/terrapool/runner", false)];
    assert_eq!(mounts, wanted.map(|(path, writable)| (path.to_owned(), writable)).into());
    assert_eq!(host.wait(&dir, &spec).await, Exit::Result);
    host.executor.remove(&dir, &spec).await.unwrap();
    assert!(!docker(&["ps", "-a", "--format", "{{.Names}}"]).contains(spec.job_id.as_str()));
}

#[tokio::test]
async fn a_run_as_root_is_as_hardened_but_for_what_installing_packages_takes() {
    let added = || json!(["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"]);
    for (pool, agent) in [(true, false), (false, true)] {
        let host = Host::with(Choice::Docker, |settings| {
            settings.limits.pids = Some(300);
            settings.run_as_root = agent;
        })
        .await;
        let (container, spec, dir) = inspected(&host, pool).await;
        assert_hardened(&container, true, false, added(), "0:0");
        assert_eq!(host.wait(&dir, &spec).await, Exit::Result);
        host.executor.remove(&dir, &spec).await.unwrap();
    }
}

/// Environment and command line of a process of this host.
fn shown(pid: u32) -> String {
    ["environ", "cmdline"]
        .map(|file| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

#[tokio::test]
async fn no_secret_is_in_the_environment_or_the_arguments_of_the_containers_first_process() {
    let cloud = Cloud::without_metadata();
    let host = Host::with(Choice::Docker, |settings| settings.engines.dir = Some(cloud.engines())).await;
    let mut spec = spec(Stage::Plan);
    spec.variables = vec![Variable { sensitive: true, ..variable("SECRET", CANARY, Category::Env, false) }];
    let wait = "echo \"it has ${#SECRET} bytes\"; while [ ! -e stop ]; do sleep 0.1; done\n";
    let dir = host.create(&spec, &slug(&[("main.tf", ""), ("plan.sh", wait)])).await;
    let prepared = host.start(&dir, &spec).await;
    // That the stage has it.
    log_has(&dir, &format!("it has {} bytes", CANARY.len())).await;
    let name = format!("terrapool-{}-1", spec.job_id);
    let pid: u32 = docker(&["inspect", "--format", "{{.State.Pid}}", &name]).parse().unwrap();
    let first = shown(pid);
    assert!(first.contains("/terrapool/runner"), "{first}");
    assert!(!first.contains(CANARY), "{first}");
    assert!(!shown(std::process::id()).contains(CANARY));
    std::fs::write(dir.path().join("config/stop"), "").unwrap();
    host.finish(&dir, &spec, &prepared, false).await;
}

#[tokio::test]
async fn an_oci_runtime_that_the_engine_has_not_is_named_at_the_start() {
    use terrapool::agent::executor::{Executor, Settings};
    for choice in [Choice::Docker, Choice::Auto] {
        let data = tempfile::tempdir().unwrap();
        let mut settings = Settings::new(data.path().to_owned(), "i".to_owned());
        settings.choice = choice;
        settings.isolation.runtime = Some("no-such-runtime".to_owned());
        let error = Executor::connect(settings).await.unwrap_err();
        assert!(error.to_string().contains("`no-such-runtime`") && error.to_string().contains("runc"), "{error}");
    }
    let host = Host::with(Choice::Docker, |settings| settings.isolation.runtime = Some("runc".to_owned())).await;
    let (container, spec, dir) = inspected(&host, false).await;
    assert_eq!(container["HostConfig"]["Runtime"], "runc");
    host.executor.remove(&dir, &spec).await.unwrap();
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_named() {
    let host = Host::new(Choice::Docker).await;
    let mut spec = spec(Stage::Plan);
    for image in ["localhost:9/nobody/nothing:1", "Not An Image"] {
        spec.image = Some(image.to_owned());
        let error = host.executor.prepare(&spec).await.unwrap_err();
        assert_eq!(error.reason(), reason::IMAGE_UNAVAILABLE, "{}", chain(&error));
        assert!(error.to_string().contains(image), "{error}");
    }
}

#[tokio::test]
async fn the_runner_works_in_an_empty_image() {
    let host = Host::new(Choice::Docker).await;
    let mut spec = spec(Stage::Plan);
    spec.image = Some(empty_image());
    let (dir, finished) = host.run(&spec, &slug(&[("main.tf", PLAIN)])).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{}", log(&dir));
    assert!(finished.image_digest.unwrap().contains("sha256:"));
}

#[tokio::test]
async fn an_image_without_the_engine_says_so() {
    let host = Host::with(Choice::Docker, |settings| settings.engines = Default::default()).await;
    let mut spec = spec(Stage::Plan);
    spec.image = Some(empty_image());
    let (dir, finished) = host.run(&spec, &slug(&[("main.tf", PLAIN)])).await;
    assert_eq!(finished.reason.as_deref(), Some(reason::ENGINE_UNAVAILABLE), "{finished:?}");
    assert!(log(&dir).contains("`terraform` is neither on the agent's host nor in the image"), "{}", log(&dir));
}

#[tokio::test]
async fn more_memory_than_the_limit_ends_a_stage_with_that_reason() {
    let host = Host::new(Choice::Docker).await;
    let mut spec = spec(Stage::Plan);
    spec.limits.memory_bytes = Some(10 << 20);
    let (dir, finished) = host.run(&spec, &slug(&[("main.tf", PLAIN)])).await;
    assert_eq!(finished.outcome, Outcome::Errored, "{finished:?}\n{}", log(&dir));
    assert_eq!(finished.reason.as_deref(), Some(reason::OUT_OF_MEMORY), "{finished:?}\n{}", log(&dir));
    assert!(finished.message.unwrap().contains("memory"));
}

#[tokio::test]
async fn a_run_sees_neither_the_host_nor_a_way_to_more_rights() {
    let host = Host::new(Choice::Docker).await;
    let planned = spec(Stage::Plan);
    let script = "id -u; touch /root-is-writable; ls /var/run/docker.sock; grep -E 'CapEff|NoNewPrivs' /proc/self/status; \
                  cat /proc/1/cmdline; echo; echo the end";
    let main =
        format!("resource \"terraform_data\" \"a\" {{\n  provisioner \"local-exec\" {{ command = {script:?} }}\n}}\n");
    let files = slug(&[("main.tf", &main)]);
    let (dir, finished) = host.run(&planned, &files).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{}", log(&dir));
    let bundle = terrapool::agent::jobdir::Archive::File(dir.pack_plan().await.unwrap().unwrap());
    let apply = jobs::apply_of(&planned);
    let dir = host.create(&apply, &files).await;
    dir.unpack_plan(bundle).await.unwrap();
    let prepared = host.start(&dir, &apply).await;
    log_has(&dir, "(local-exec): the end").await;
    host.finish(&dir, &apply, &prepared, false).await;
    let text = log(&dir);
    for wanted in [
        "(local-exec): 65532",
        "touch: /root-is-writable: Read-only file system",
        "docker.sock: No such file or directory",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(text.contains(wanted), "no `{wanted}` in\n{text}");
    }
}

#[tokio::test]
async fn a_silent_engine_is_an_error_or_a_plain_warning() {
    use terrapool::agent::executor::{Executor, Settings};
    let data = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(data.path().to_owned(), "i".to_owned());
    settings.docker_host = Some("unix:///nowhere/docker.sock".to_owned());
    settings.choice = Choice::Docker;
    let error = Executor::connect(settings.clone()).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/docker.sock"), "{error}");
    settings.choice = Choice::Auto;
    let connected = Executor::connect(settings).await.unwrap();
    assert_eq!(connected.executor.kind().as_str(), "process");
    assert!(connected.warning.unwrap().contains("without isolation"));
}
