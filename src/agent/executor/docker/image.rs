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

use super::super::{Error, Pull, Result, runner::short_hash};
use crate::{
    agent::engine::is_static,
    api::image_name::{ImageName, Pattern, is_id},
    telemetry::Chain,
};

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

/// The image that a job is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// As people know it.
    pub shown: String,
    /// What the engine is asked for: a name in full, or an id.
    pub reference: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// May mean another image tomorrow.
    Named,
    /// Names its content.
    Fixed,
    /// Known to this engine, or to nobody.
    Id,
}

impl Wanted {
    /// It is fetched anew, although the engine has one of that name.
    pub(super) fn is_renewed(&self, pull: Pull) -> bool {
        self.kind == Kind::Named && pull == Pull::Always
    }
}

/// The engine's own words.
pub(super) fn said(cause: &Cause) -> String {
    match cause {
        Cause::DockerResponseServerError { message, .. } => message.clone(),
        Cause::DockerStreamError { error } => error.clone(),
        other => Chain(other).to_string(),
    }
}

/// Which image a job gets that names `name` and whose plan ran in `planned`; `None`: a minimal one. An apply runs in its
/// plan's image, whatever the name means by now. Pure.
///
/// # Errors
/// [`Error::Image`] when a name is none, [`Error::ImageNotAllowed`] when the agent may not use it.
pub(super) fn wanted(name: Option<&str>, planned: Option<&str>, allowed: &[Pattern]) -> Result<Option<Wanted>> {
    let parse = |text: &str| {
        let detail = "it is not an image reference, as registry/name:tag".to_owned();
        ImageName::parse(text).ok_or_else(|| Error::Image { image: text.to_owned(), detail })
    };
    let allow = |image: &ImageName| {
        if allowed.is_empty() || allowed.iter().any(|pattern| pattern.allows(image)) {
            return Ok(());
        }
        let allowed = allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Error::ImageNotAllowed { image: image.to_string(), allowed })
    };
    let name = name.map(|text| Ok::<_, Error>((text, parse(text)?))).transpose()?;
    let planned_id = planned.filter(|planned| is_id(planned));
    let planned_name = planned.filter(|planned| !is_id(planned)).map(parse).transpose()?;
    let of = |shown: &str, reference: String, kind| Ok(Some(Wanted { shown: shown.to_owned(), reference, kind }));
    match (name, planned_name, planned_id) {
        (None, None, None) => Ok(None),
        // What the agent makes itself needs nobody's leave, and another agent may make it anew.
        (None, None, Some(_)) => Ok(None),
        (Some((shown, image)), None, None) => {
            allow(&image)?;
            of(shown, image.to_string(), if image.is_fixed() { Kind::Fixed } else { Kind::Named })
        }
        (Some((shown, image)), None, Some(id)) => {
            allow(&image)?;
            of(shown, id.to_owned(), Kind::Id)
        }
        (name, Some(planned), _) => {
            match &name {
                // The tag was allowed, and the plan says what it meant.
                Some((_, image)) if image.same_repository(&planned) => allow(image)?,
                _ => allow(&planned)?,
            }
            let full = planned.to_string();
            of(&full, full.clone(), if planned.is_fixed() { Kind::Fixed } else { Kind::Named })
        }
    }
}

/// The image of that name, if the engine has it.
pub(super) async fn find(docker: &Docker, reference: &str) -> Result<Option<Image>> {
    match docker.inspect_image(reference).await {
        Ok(found) => {
            let id = found.id.unwrap_or_else(|| reference.to_owned());
            let digest = digest_of(reference, &found.repo_digests.unwrap_or_default());
            Ok(Some(Image { digest: digest.unwrap_or_else(|| id.clone()), id }))
        }
        Err(Cause::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(Cause::DockerResponseServerError { status_code: 400, message }) => {
            Err(Error::Image { image: reference.to_owned(), detail: message })
        }
        Err(error) => Err(super::failed(format!("look for the image {reference}"))(error)),
    }
}

/// An image that was pulled from several registries has a digest in each: the one of the name by which it was found.
fn digest_of(reference: &str, digests: &[String]) -> Option<String> {
    let image = ImageName::parse(reference);
    let own = |digest: &&String| match (&image, ImageName::parse(digest)) {
        (Some(image), Some(digest)) => image.same_repository(&digest),
        _ => false,
    };
    digests.iter().find(own).or(digests.first()).cloned()
}

/// Has the image at hand: the engine's own, or a fresh one from its registry.
pub(super) async fn obtain(docker: &Docker, wanted: &Wanted, pull: Pull, limit: Duration) -> Result<Image> {
    let Wanted { shown, reference, kind } = wanted;
    let fresh = wanted.is_renewed(pull);
    let found = if fresh { None } else { find(docker, reference).await? };
    if let Some(image) = found {
        return Ok(image);
    }
    let failed = |detail: String| Error::Image { image: shown.clone(), detail };
    if *kind == Kind::Id {
        return Err(failed(format!(
            "the plan ran in the image {reference}, which came from no registry and is not on this agent's host, and an \
             apply runs in its plan's image: load it here with `docker load`, or start another run"
        )));
    }
    match tokio::time::timeout(limit, fetch(docker, reference)).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) if super::is_away(&cause) => {
            return Err(super::failed(format!("pull the image {shown}"))(cause));
        }
        Ok(Err(cause)) => {
            let said = said(&cause);
            let why = if fresh { "it is to be pulled before every run" } else { "it is not on the agent's host" };
            return Err(failed(format!(
                "{why}, and pulling it failed: {said}. Check its name and the registry, or load it with `docker load`"
            )));
        }
        Err(_) => return Err(failed(format!("pulling it took longer than {} s", limit.as_secs()))),
    }
    find(docker, reference).await?.ok_or_else(|| failed("it was pulled, and yet is not there".to_owned()))
}

async fn fetch(docker: &Docker, reference: &str) -> Result<(), Cause> {
    let options = CreateImageOptionsBuilder::new().from_image(reference).build();
    let mut progress = docker.create_image(Some(options), None, None);
    let mut told = Instant::now();
    tracing::info!(image = reference, "pulling the run image");
    while let Some(step) = progress.next().await {
        let step = step?;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            tracing::info!(image = reference, status = step.status.unwrap_or_default(), "pulling the run image");
        }
    }
    Ok(())
}

/// An image made of this host's own files, for when there is no registry: users, certificates, and a shell when the
/// host has a static busybox. The engine is mounted into it.
#[derive(Debug)]
pub(super) struct Minimal {
    tag: String,
    content: Bytes,
}

/// A program of this host that gives a minimal image its shell.
pub(super) fn busybox() -> Option<&'static Path> {
    BUSYBOX.into_iter().map(Path::new).find(|path| is_static(path))
}

impl Minimal {
    pub(super) async fn new(user: (u32, u32)) -> Result<Self> {
        let busybox = busybox();
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

    fn pattern(text: &str) -> Vec<Pattern> {
        vec![text.parse().unwrap()]
    }

    fn sha(c: char) -> String {
        format!("sha256:{}", String::from(c).repeat(64))
    }

    #[test]
    fn an_apply_gets_the_image_of_its_plan() {
        let fixed = format!("docker.io/library/alpine@{}", sha('a'));
        let short = format!("alpine@{}", sha('a'));
        let id = sha('b');
        let get = |name, planned, allowed: &[Pattern]| wanted(name, planned, allowed).unwrap();
        let reference = |wanted: Option<Wanted>| wanted.unwrap().reference;
        assert_eq!(get(None, None, &[]), None);
        assert_eq!(reference(get(Some("alpine"), None, &[])), "docker.io/library/alpine:latest");
        // The tag may have moved.
        assert_eq!(reference(get(Some("alpine:3"), Some(&short), &[])), fixed);
        // The workspace may have got another image.
        assert_eq!(reference(get(Some("busybox"), Some(&short), &[])), fixed);
        assert_eq!(reference(get(None, Some(&short), &[])), fixed);
        // It came from no registry.
        assert_eq!(reference(get(Some("own:1"), Some(&id), &[])), id);
        // A minimal image is made where it is needed.
        assert_eq!(get(None, Some(&id), &pattern("own")), None);
        assert_eq!(reference(get(Some("alpine:3"), Some(&short), &pattern("alpine:3"))), fixed);
    }

    #[test]
    fn what_is_not_allowed_is_refused_as_a_plans_image_too() {
        let (evil, id) = (format!("evil/x@{}", sha('a')), sha('b'));
        for (name, planned) in [
            (Some("evil/x"), None),
            (Some("alpine:3.1"), None),
            (Some("alpine:3"), Some(&evil)),
            (None, Some(&evil)),
            (Some("evil/x"), Some(&id)),
        ] {
            let refused = wanted(name, planned.map(String::as_str), &pattern("alpine:3"));
            assert!(matches!(&refused, Err(Error::ImageNotAllowed { .. })), "{name:?} {planned:?}: {refused:?}");
        }
        for name in ["", "Alpine", "a b", "--privileged", &id, "../x", "http://a/b"] {
            assert!(matches!(wanted(Some(name), None, &[]), Err(Error::Image { .. })), "{name}");
        }
        assert!(matches!(wanted(None, Some("not a digest"), &[]), Err(Error::Image { .. })));
    }

    #[test]
    fn the_digest_is_that_of_the_names_own_registry() {
        let digests = [format!("a.b/x@{}", sha('1')), format!("alpine@{}", sha('2'))];
        assert_eq!(digest_of("docker.io/library/alpine:3", &digests).as_ref(), Some(&digests[1]));
        assert_eq!(digest_of(&sha('3'), &digests).as_ref(), Some(&digests[0]));
        assert_eq!(digest_of("alpine", &[]), None);
    }
}
