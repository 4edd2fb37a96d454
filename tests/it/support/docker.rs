//! The Docker engine beside the product: images for tests, and a look at what is left, through the `docker` command,
//! so that nothing is believed because our own client says so.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Longest time of one command, in seconds. An engine that hangs would otherwise hold a test for ever.
const DEADLINE: &str = "150";

/// A `docker` command that ends: with the status 124 when it took too long.
pub fn command() -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", DEADLINE, "docker"]);
    command
}

/// Runs `docker`; its output. When the engine does not answer, that is what is said.
pub fn docker(arguments: &[&str]) -> String {
    run(arguments, &[])
}

/// For destructors, where a panic would hide the test's own.
pub fn quietly(arguments: &[&str]) {
    drop(command().args(arguments).output());
}

fn run(arguments: &[&str], input: &[u8]) -> String {
    let mut command = command();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("`timeout`, of coreutils");
    let mut stdin = child.stdin.take().unwrap();
    // What Docker does not read, it complains about itself.
    drop(stdin.write_all(input));
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        !complaint.contains("Cannot connect to the Docker daemon"),
        "no Docker engine answers: start it, or let tests/run do it"
    );
    let arguments = arguments.join(" ");
    assert_ne!(output.status.code(), Some(124), "docker {arguments}: the engine has not answered for {DEADLINE} s");
    assert!(output.status.success(), "docker {arguments}: {complaint}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Ids of all containers, running or not, with the label `key` or `key=value`.
pub fn containers(label: &str) -> Vec<String> {
    let filter = format!("label={label}");
    docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).lines().map(str::to_owned).collect()
}

/// An image that is removed with the value, with what was made from it.
pub struct Image {
    pub name: String,
}

impl Image {
    /// An image of these programs alone: (path, bytes).
    pub fn of(name: &str, files: &[(&str, &[u8])]) -> Self {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o755);
            archive.append_data(&mut header, path, *bytes).unwrap();
        }
        run(&["import", "--change", "ENV PATH=/bin", "-", name], &archive.into_inner().unwrap());
        Self { name: name.to_owned() }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        quietly(&["image", "rm", "--force", &self.name]);
    }
}
