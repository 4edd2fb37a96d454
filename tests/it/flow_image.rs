//! The image that `deploy/` is installed from, as a user makes it and an engine runs it.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{
    docker::{docker, quietly},
    sources::root,
};

/// Removed with the value.
struct Loaded(String);

impl Drop for Loaded {
    fn drop(&mut self) {
        quietly(&["rmi", "--force", &self.0]);
    }
}

#[test]
fn the_image_is_built_from_the_program_and_runs_every_role_as_an_ordinary_user() {
    let place = tempfile::tempdir().unwrap();
    let archive = place.path().join("terrapool.tar");
    let archive = archive.to_str().unwrap();
    let image = Loaded(format!("terrapool-image-test:{}", std::process::id()));
    let program = env!("CARGO_BIN_EXE_terrapool");
    let build = || {
        let mut build = Command::new(root().join("deploy/image/build"));
        build.args(["--program", program, "--name", &image.0, archive]).output().unwrap()
    };
    let built = build();
    assert!(built.status.success(), "{built:?}");
    docker(&["load", "--input", archive]);
    let id = || docker(&["image", "inspect", "--format", "{{.Id}}", &image.0]);
    let first = id();

    let config: Value =
        serde_json::from_str(&docker(&["image", "inspect", "--format", "{{json .Config}}", &image.0])).unwrap();
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/usr/local/bin/terrapool"]));
    let env = config["Env"].to_string();
    assert!(env.contains("MALLOC_MMAP_THRESHOLD_=") && env.contains("MALLOC_TRIM_THRESHOLD_="), "{env}");
    // As in a restricted Pod.
    let run = |arguments: &[&str]| {
        let hardened = ["run", "--rm", "--read-only", "--cap-drop=ALL", "--network=none", &image.0];
        docker(&[&hardened, arguments].concat())
    };
    assert_eq!(run(&["--version"]), format!("terrapool {}", env!("CARGO_PKG_VERSION")));
    for role in [&["server"][..], &["operator"], &["agent", "run"]] {
        assert!(run(&[role, &["--help"]].concat()).contains("TERRAPOOL_"), "{role:?}");
    }
    // The runner is in the program, and what it needs to trust a control plane beside it.
    let placed = ["run", "--rm", "--read-only", "--tmpfs=/terrapool:mode=1777", &image.0, "agent", "place-runner"];
    docker(&[&placed[..], &["/terrapool"]].concat());
    let container = docker(&["create", &image.0]);
    let trusted = docker(&["cp", &format!("{container}:/etc/ssl/certs/ca-certificates.crt"), "-"]);
    docker(&["rm", &container]);
    assert!(trusted.contains("BEGIN CERTIFICATE"), "{trusted}");

    // The same program makes the same image.
    assert!(build().status.success());
    docker(&["load", "--input", archive]);
    assert_eq!(id(), first);
}
