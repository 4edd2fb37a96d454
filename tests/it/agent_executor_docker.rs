//! What is true of run containers only: their hardening, their images. Needs a Docker engine and its command.

use std::{collections::BTreeSet, process::Command};

use serde_json::{Value, json};
use terrapool::{
    agent::executor::{Choice, Exit},
    api::{
        agent::{Outcome, reason},
        job::{Category, Stage},
    },
};

use crate::support::jobs::{self, Host, chain, log, log_has, slug, spec, variable};

const PLAIN: &str = "resource \"terraform_data\" \"a\" { input = 1 }\n";

/// Output of the docker command.
fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().expect("these tests need the docker command");
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

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

#[tokio::test]
async fn every_field_of_the_hardening_is_set() {
    let host = Host::with(Choice::Docker, |settings| settings.limits.pids = Some(300)).await;
    let mut spec = spec(Stage::Plan);
    spec.limits.memory_bytes = Some(512 << 20);
    spec.variables = vec![variable("SECRET", "canary-5c0ffee", Category::Env, false)];
    let dir = host.create(&spec, &slug(&[("main.tf", PLAIN)])).await;
    host.start(&dir, &spec).await;
    let name = format!("terrapool-{}-1", spec.job_id);
    let inspected: Vec<Value> = serde_json::from_str(&docker(&["inspect", &name])).unwrap();
    let (container, config, limits) = (&inspected[0], &inspected[0]["Config"], &inspected[0]["HostConfig"]);
    for (field, wanted) in [
        ("CapDrop", json!(["ALL"])),
        ("CapAdd", Value::Null),
        ("SecurityOpt", json!(["no-new-privileges"])),
        ("Privileged", json!(false)),
        ("ReadonlyRootfs", json!(true)),
        ("Memory", json!(512 << 20)),
        ("MemorySwap", json!(512 << 20)),
        ("PidsLimit", json!(300)),
        ("NanoCpus", json!(2_000_000_000_i64)),
        ("IpcMode", json!("private")),
        ("PidMode", json!("")),
        ("UTSMode", json!("")),
        ("AutoRemove", json!(false)),
        ("Devices", json!([])),
        ("PortBindings", json!({})),
        ("LogConfig", json!({"Type": "none", "Config": {}})),
        ("Tmpfs", json!({"/tmp": "rw,nosuid,nodev,exec,size=512m,mode=1777"})),
    ] {
        let seen = &limits[field];
        let nothing = |value: &Value| value.is_null() || *value == json!([]) || *value == json!({});
        assert!(*seen == wanted || (nothing(seen) && nothing(&wanted)), "{field} is {seen}, not {wanted}");
    }
    assert_ne!(limits["NetworkMode"], "host");
    assert_eq!(config["User"], "65532:65532");
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
    assert!(!inspected[0].to_string().contains("canary-5c0ffee"), "a secret is in the container's description");
    assert_eq!(host.wait(&dir, &spec).await, Exit::Result);
    host.executor.remove(&dir, &spec).await.unwrap();
    assert!(!docker(&["ps", "-a", "--format", "{{.Names}}"]).contains(spec.job_id.as_str()));
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
    assert_eq!(finished.reason.as_deref(), Some(reason::CONTAINER_LOST), "{finished:?}\n{}", log(&dir));
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
