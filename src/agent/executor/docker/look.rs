//! How the engine looks to somebody who asks before a run does.

use std::{io, os::unix::fs::MetadataExt, path::Path};

use tokio::net::UnixStream;

use super::{
    super::{
        Isolation,
        settings::{CALL, DEFAULT_HOST},
    },
    ANSWER, image,
};
use crate::telemetry::Chain;

/// The engine, as far as it can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    Answers(Engine),
    /// There is no socket, or nobody listens at it.
    Absent {
        host: String,
    },
    /// This user may not use the socket.
    Forbidden {
        host: String,
        /// The group that may.
        group: Option<String>,
    },
    /// Something listens and does not answer as an engine does.
    Silent {
        host: String,
        detail: String,
    },
}

/// What an engine says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Engine {
    pub version: String,
    /// 1 or 2.
    pub cgroup_version: Option<String>,
    /// Run containers get their limits.
    pub limits_memory: bool,
    pub limits_processes: bool,
}

/// The image of runs that name none, as far as this host and its engine can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultImage {
    /// None is configured: one is made of this host's files.
    Minimal {
        /// With the commands of a busybox.
        shell: bool,
    },
    /// The engine has it.
    Here { image: String },
    /// Its registry has it.
    InRegistry { image: String },
    /// It cannot be had, or not be used.
    Unusable { image: String, detail: String },
}

/// Looks for the image `name` as a run would that names none; pulls nothing. Absent: no engine answers. Takes ten seconds
/// at most, twice.
pub async fn look_for_image(host: Option<&str>, name: Option<&str>, isolation: &Isolation) -> Option<DefaultImage> {
    let shown = name.unwrap_or_default().to_owned();
    let wanted = match image::wanted(name, None, &isolation.allowed_images) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => return Some(DefaultImage::Minimal { shell: image::busybox().is_some() }),
        Err(error) => return Some(DefaultImage::Unusable { image: shown, detail: Chain(&error).to_string() }),
    };
    let engine = tokio::time::timeout(ANSWER, super::open(host.unwrap_or(DEFAULT_HOST), CALL)).await.ok()?.ok()?;
    let asked = async {
        if !wanted.is_renewed(isolation.pull)
            && let Some(_found) =
                image::find(&engine, &wanted.reference).await.map_err(|error| Chain(&error).to_string())?
        {
            return Ok(DefaultImage::Here { image: shown.clone() });
        }
        match engine.inspect_registry_image(&wanted.reference, None).await {
            Ok(_) => Ok(DefaultImage::InRegistry { image: shown.clone() }),
            Err(cause) => {
                Err(format!("it is to be pulled, and its registry does not give it: {}", image::said(&cause)))
            }
        }
    };
    let found = match tokio::time::timeout(ANSWER, asked).await {
        Ok(found) => found,
        Err(_) => Err("it is to be pulled, and its registry has not answered in ten seconds".to_owned()),
    };
    Some(found.unwrap_or_else(|detail| DefaultImage::Unusable { image: shown, detail }))
}

/// Looks at the engine at `host`; absent: at its usual place. Takes ten seconds at most, twice.
pub async fn look(host: Option<&str>) -> Sight {
    let host = host.unwrap_or(DEFAULT_HOST).to_owned();
    if let Some(path) = host.strip_prefix("unix://") {
        // The engine's client does not tell these apart.
        match tokio::time::timeout(ANSWER, UnixStream::connect(path)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                let group = group_of(Path::new(path));
                return Sight::Forbidden { host, group };
            }
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Sight::Absent { host };
            }
            Ok(Err(error)) => return Sight::Silent { host, detail: error.to_string() },
            Err(_) => return Sight::Silent { host, detail: "no connection in ten seconds".to_owned() },
        }
    }
    match tokio::time::timeout(ANSWER, ask(&host)).await {
        Ok(Ok(engine)) => Sight::Answers(engine),
        Ok(Err(error)) => Sight::Silent { host, detail: error.to_string() },
        Err(_) => Sight::Silent { host, detail: "no answer in ten seconds".to_owned() },
    }
}

async fn ask(host: &str) -> Result<Engine, super::Cause> {
    let info = super::open(host, CALL).await?.info().await?;
    Ok(Engine {
        version: info.server_version.unwrap_or_default(),
        cgroup_version: info.cgroup_version.map(|version| version.to_string()),
        limits_memory: info.memory_limit.unwrap_or_default(),
        limits_processes: info.pids_limit.unwrap_or_default(),
    })
}

fn group_of(socket: &Path) -> Option<String> {
    let gid = std::fs::metadata(socket).ok()?.gid().to_string();
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2) == Some(&gid.as_str())).then(|| fields[0].to_owned())
    })
}
