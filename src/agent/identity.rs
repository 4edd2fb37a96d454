//! Who this agent is, kept in its data directory: a restarted agent is the same one, and two agents cannot share
//! a directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record;
use crate::{api::agent::RegisterResponse, hash::hex, ids::AgentId};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not use the data directory {path}")]
    Data { path: String, source: std::io::Error },
    #[error("another agent runs with the data directory {path}; give this one another (--data)")]
    Locked { path: String },
    #[error(transparent)]
    Record(#[from] record::Error),
}

/// The lock on a data directory, held as long as the value lives (and never longer than the process).
#[derive(Debug)]
pub(super) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Makes the directory (0700) and takes it for this process.
    pub(super) fn take(data: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Data { path: data.display().to_string(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(failed)?;
        let path = data.join("agent.lock");
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: data.display().to_string() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// The file `agent.json`, 0600.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Identity {
    /// Made once; tells a restarted agent from another of the same name.
    pub(super) instance: String,
    /// Absent before the first registration and after signing off.
    pub(super) registration: Option<Registration>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Registration {
    /// What was registered, and with which token: another one registers anew.
    pub(super) fingerprint: String,
    pub(super) agent_id: AgentId,
    #[serde(serialize_with = "expose")]
    pub(super) agent_token: SecretString,
    pub(super) pool_name: String,
    pub(super) heartbeat_ms: u64,
    pub(super) lease_ms: u64,
}

fn expose<S: serde::Serializer>(token: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(token.expose_secret())
}

impl Registration {
    pub(super) fn new(fingerprint: String, answer: RegisterResponse) -> Self {
        let RegisterResponse { agent_id, agent_token, pool_id: _, pool_name, heartbeat_ms, lease_ms } = answer;
        Self { fingerprint, agent_id, agent_token: agent_token.into(), pool_name, heartbeat_ms, lease_ms }
    }
}

impl Identity {
    fn path(data: &Path) -> PathBuf {
        data.join("agent.json")
    }

    /// Reads the identity, or makes one and stores it before anybody hears of it.
    pub(super) async fn load(data: &Path) -> Result<Self, Error> {
        if let Some(identity) = record::read::<Self>(Self::path(data)).await?
            && !identity.instance.is_empty()
        {
            return Ok(identity);
        }
        let instance = super::random_text();
        let identity = Self { instance, registration: None };
        identity.store(data).await?;
        Ok(identity)
    }

    pub(super) async fn store(&self, data: &Path) -> Result<(), Error> {
        Ok(record::write(Self::path(data), self).await?)
    }
}

/// A short text that changes with each of `parts`; secrets in it cannot be read back.
pub(super) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize()[..16])
}

/// `ID_VERSION` of os-release text, as `centos_8`.
pub(super) fn os_name(os_release: &str) -> String {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    match (value("ID"), value("VERSION_ID")) {
        (Some(id), Some(version)) => format!("{id}_{version}"),
        (Some(id), None) => id,
        (None, _) => "linux".to_owned(),
    }
}

/// `linux_amd64` and the like.
pub(super) fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}_{architecture}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn os_names_are_read_from_os_release() {
        assert_eq!(os_name("NAME=x\nID=\"centos\"\nVERSION_ID=\"8\"\n"), "centos_8");
        assert_eq!(os_name("VERSION_ID=12\nID=debian\n"), "debian_12");
        assert_eq!(os_name("ID=arch\n"), "arch");
        assert_eq!(os_name(""), "linux");
    }

    #[tokio::test]
    async fn an_identity_is_made_once_and_is_private() {
        let data = tempfile::tempdir().unwrap();
        let first = Identity::load(data.path()).await.unwrap();
        assert_eq!(Identity::load(data.path()).await.unwrap().instance, first.instance);
        let mode = std::fs::metadata(data.path().join("agent.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_data_directory_has_one_agent() {
        let data = tempfile::tempdir().unwrap();
        let held = DataLock::take(data.path()).unwrap();
        assert!(matches!(DataLock::take(data.path()), Err(Error::Locked { .. })));
        drop(held);
        DataLock::take(data.path()).unwrap();
    }

    #[test]
    fn fingerprints_tell_parts_apart() {
        assert_ne!(fingerprint(["ab", "c"]), fingerprint(["a", "bc"]));
    }
}
