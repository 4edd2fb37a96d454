//! What the other tests stand on. When one of these fails, look here first: each names what is missing, with the mend.

use std::{fs, process};

use tempfile::tempdir;

use crate::support::{
    cli::{Access, Cli, Engine, TERRAFORM_VERSION, TOFU_VERSION},
    cluster::KUBERNETES_VERSION,
    docker::{Image, containers, docker},
};

async fn version_of(engine: Engine) -> String {
    let access = Access { host: "localhost:1".to_owned(), token: "none".to_owned(), ca: None };
    Cli::new(engine, &access).succeed(&["version"]).await.all
}

#[tokio::test]
async fn terraform_is_there() {
    let version = version_of(Engine::Terraform).await;
    assert!(version.contains(&format!("Terraform v{TERRAFORM_VERSION}\n")), "wanted {TERRAFORM_VERSION}:\n{version}");
}

#[tokio::test]
async fn tofu_is_there() {
    let version = version_of(Engine::Tofu).await;
    assert!(version.contains(&format!("OpenTofu v{TOFU_VERSION}\n")), "wanted {TOFU_VERSION}:\n{version}");
}

/// The scripts that build the engines and the tests that look for them agree.
#[test]
fn versions_are_those_that_are_built() {
    let script = include_str!("../prepare.sh");
    for (name, version) in [("TOFU", TOFU_VERSION), ("TERRAFORM", TERRAFORM_VERSION)] {
        assert!(script.contains(&format!("{name}_VERSION={version}\n")), "{name} {version}");
    }
    assert!(include_str!("../cluster/versions.sh").contains(&format!("KUBERNETES_VERSION={KUBERNETES_VERSION}\n")));
    assert!(include_str!("../cluster/go.mod").contains(&format!("k8s.io/kubernetes v{KUBERNETES_VERSION}\n")));
    assert!(include_str!("../tofu/go.mod").contains(&format!("opentofu/opentofu v{TOFU_VERSION}\n")));
    assert!(include_str!("../terraform/go.mod").contains(&format!("hashicorp/terraform v{TERRAFORM_VERSION}\n")));
}

#[test]
fn containers_run_from_an_image_of_one_static_program() {
    let busybox = fs::read("/bin/busybox")
        .unwrap_or_else(|error| panic!("/bin/busybox ({error}): install busybox-static, or let tests/run do it"));
    let name = format!("terrapool-test-busybox:{}", process::id());
    let image = Image::of(&name, &[("bin/busybox", &busybox), ("bin/sh", &busybox)]);
    let label = format!("terrapool.test={}", process::id());
    let said =
        docker(&["run", "--label", &label, "--name", &name.replace(':', "-"), &image.name, "sh", "-c", "echo hello"]);
    assert_eq!(said, "hello");
    let left = containers(&label);
    assert_eq!(left.len(), 1);
    docker(&["rm", &left[0]]);
    assert_eq!(containers(&label), Vec::<String>::new());
}

/// Tests put their files where programs can be started from.
#[test]
fn programs_can_be_started_from_the_temporary_directory() {
    let dir = tempdir().unwrap();
    let copy = dir.path().join("true");
    fs::copy("/bin/true", &copy).unwrap();
    let status = process::Command::new(&copy).status();
    assert!(status.is_ok_and(|status| status.success()), "{} is mounted noexec: set TMPDIR", dir.path().display());
}
