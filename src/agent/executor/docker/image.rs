//! Run images: found, pulled, or made of next to nothing.

use std::{
    collections::BTreeSet,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use bollard::{Docker, body_full, errors::Error as Cause, query_parameters::CreateImageOptionsBuilder};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::process::Command;

use super::super::{Error, Result, runner::short_hash};
use crate::{agent::engine::is_static, telemetry::Chain};

/// Repository of the images made here; the tag is a hash of the content.
const REPOSITORY: &str = "terrapool/run";

/// Where a shell for local-exec may be found.
const BUSYBOX: [&str; 4] = ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/local/bin/busybox"];

/// Where this host keeps the certificates that it trusts: Debian, Red Hat, Alpine.
const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How often a pull says that it goes on.
const PROGRESS: Duration = Duration::from_secs(5);

/// An image that can be started.
#[derive(Debug)]
pub(super) struct Image {
    /// Its own id: a tag may mean another image a moment later.
    pub id: String,
    /// What goes into the run's record.
    pub digest: String,
}

/// The image of that name, if the engine has it.
pub(super) async fn find(docker: &Docker, name: &str) -> Result<Option<Image>> {
    match docker.inspect_image(name).await {
        Ok(found) => {
            let id = found.id.unwrap_or_else(|| name.to_owned());
            let digest = found.repo_digests.and_then(|digests| digests.into_iter().next());
            Ok(Some(Image { digest: digest.unwrap_or_else(|| id.clone()), id }))
        }
        Err(Cause::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(Cause::DockerResponseServerError { status_code: 400, message }) => {
            Err(Error::Image { image: name.to_owned(), detail: message })
        }
        Err(error) => Err(super::failed(format!("look for the image {name}"))(error)),
    }
}

/// Has the image of that name: the engine's own, or a fresh one from its registry.
pub(super) async fn obtain(docker: &Docker, name: &str, limit: Duration) -> Result<Image> {
    if let Some(image) = find(docker, name).await? {
        return Ok(image);
    }
    let failed = |detail: String| Error::Image { image: name.to_owned(), detail };
    match tokio::time::timeout(limit, pull(docker, name)).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) if super::is_away(&cause) => return Err(super::failed(format!("pull the image {name}"))(cause)),
        Ok(Err(cause)) => {
            let said = match &cause {
                Cause::DockerResponseServerError { message, .. } => message.clone(),
                Cause::DockerStreamError { error } => error.clone(),
                other => Chain(other).to_string(),
            };
            return Err(failed(format!(
                "it is not on the agent's host, and pulling it failed: {said}. Check its name and the registry, or \
                 load it with `docker load`"
            )));
        }
        Err(_) => return Err(failed(format!("pulling it took longer than {} s", limit.as_secs()))),
    }
    find(docker, name).await?.ok_or_else(|| failed("it was pulled, and yet is not there".to_owned()))
}

async fn pull(docker: &Docker, name: &str) -> Result<(), Cause> {
    let options = CreateImageOptionsBuilder::new().from_image(&with_tag(name)).build();
    let mut progress = docker.create_image(Some(options), None, None);
    let mut told = Instant::now();
    tracing::info!(image = name, "pulling the run image");
    while let Some(step) = progress.next().await {
        let step = step?;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            tracing::info!(image = name, status = step.status.unwrap_or_default(), "pulling the run image");
        }
    }
    Ok(())
}

/// Docker pulls every tag there is when none is named.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

/// An image made of this host's own files, for when there is no registry: users, certificates, and a shell when the
/// host has a static busybox. The engine is mounted into it.
#[derive(Debug)]
pub(super) struct Minimal {
    tag: String,
    content: Bytes,
}

impl Minimal {
    pub(super) async fn new(user: (u32, u32)) -> Result<Self> {
        let busybox = BUSYBOX.into_iter().map(Path::new).find(|path| is_static(path));
        let applets = match busybox {
            Some(path) => applets(path).await,
            None => BTreeSet::new(),
        };
        let made = tokio::task::spawn_blocking(move || content(user, busybox, &applets)).await;
        let content = made.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let content = content.map_err(|source| Error::Io { doing: "make a minimal run image".to_owned(), source })?;
        Ok(Self { tag: short_hash(&content), content: content.into() })
    }

    pub(super) async fn obtain(&self, docker: &Docker) -> Result<Image> {
        let name = format!("{REPOSITORY}:{}", self.tag);
        if let Some(image) = find(docker, &name).await? {
            return Ok(image);
        }
        let options = CreateImageOptionsBuilder::new().from_src("-").repo(REPOSITORY).tag(&self.tag).build();
        let made = docker.create_image(Some(options), Some(body_full(self.content.clone())), None);
        made.try_collect::<Vec<_>>().await.map_err(super::failed(format!("make the image {name}")))?;
        find(docker, &name)
            .await?
            .ok_or_else(|| Error::Image { image: name, detail: "it was made, and yet is not there".to_owned() })
    }
}

/// The commands of a busybox.
async fn applets(busybox: &Path) -> BTreeSet<String> {
    let mut command = Command::new(busybox);
    command.arg("--list").env_clear().stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(Duration::from_secs(10), command.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        // Without the list there is at least the shell.
        _ => "sh".to_owned(),
    };
    let plain = |name: &&str| !name.is_empty() && *name != "busybox" && !name.contains('/');
    output.lines().filter(plain).map(str::to_owned).collect()
}

/// The tar of the image's files. The same files give the same bytes.
fn content(user: (u32, u32), busybox: Option<&Path>, applets: &BTreeSet<String>) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    for (name, mode) in
        [("bin/", 0o755), ("etc/", 0o755), ("etc/ssl/", 0o755), ("etc/ssl/certs/", 0o755), ("tmp/", 0o1777)]
    {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), name, std::io::empty())?;
    }
    let (uid, gid) = user;
    let passwd = format!("root:x:0:0:root:/:/bin/sh\nrun:x:{uid}:{gid}:run:{}/home:/bin/sh\n", super::profile::JOB_DIR);
    let group = format!("root:x:0:\nrun:x:{gid}:\n");
    let mut files = vec![
        ("etc/passwd", 0o644, passwd.into_bytes()),
        ("etc/group", 0o644, group.into_bytes()),
        ("etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec()),
    ];
    if let Some(certificates) = CERTIFICATES.into_iter().find_map(|path| std::fs::read(path).ok()) {
        files.push(("etc/ssl/certs/ca-certificates.crt", 0o644, certificates));
    }
    if let Some(busybox) = busybox {
        files.push(("bin/busybox", 0o755, std::fs::read(busybox)?));
    }
    for (name, mode, content) in files {
        tar.append_data(&mut header(tar::EntryType::Regular, mode, content.len()), name, content.as_slice())?;
    }
    for applet in applets {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), format!("bin/{applet}"), "busybox")?;
    }
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_means_latest() {
        for (name, wanted) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("localhost:5000/busybox", "localhost:5000/busybox:latest"),
            ("localhost:5000/busybox:1", "localhost:5000/busybox:1"),
            ("busybox@sha256:00", "busybox@sha256:00"),
        ] {
            assert_eq!(with_tag(name), wanted);
        }
    }
}
