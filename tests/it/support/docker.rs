//! The Docker engine beside the product: images for tests, and a look at what is left, through the `docker` command,
//! so that nothing is believed because our own client says so.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Runs `docker`; its output. When the engine does not answer, that is what is said.
pub fn docker(arguments: &[&str]) -> String {
    run(arguments, &[])
}

fn run(arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("the `docker` command does not start ({error}): install docker.io, or let tests/run do it")
    });
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
    assert!(output.status.success(), "docker {}: {complaint}", arguments.join(" "));
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
        // Not through `docker`: a panic in a destructor would hide the test's own.
        drop(Command::new("docker").args(["image", "rm", "--force", &self.name]).output());
    }
}
