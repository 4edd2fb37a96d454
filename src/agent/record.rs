//! Small files that the agent must find again after a crash: written whole, to the disk, or not at all.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ending::Cause, executor::Prepared};
use crate::{files::write_private, ids::JobId};

/// Folder of [`JobRecord`]s in the data directory; not mounted into any run container.
const FOLDER: &str = "supervised";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not write {path}")]
    Write { path: String, source: io::Error },
    #[error("could not read {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} is damaged; remove it when no agent uses this data directory")]
    Parse { path: String, source: serde_json::Error },
}

impl Error {
    /// The I/O error behind it, when there is one.
    pub(super) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Write { source, .. } | Self::Read { source, .. } => Some(source),
            Self::Parse { .. } => None,
        }
    }
}

/// How far a job came, as far as its directory does not show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct JobRecord {
    /// Written before the executor is asked to start: milliseconds since 1970. An apply with it is never started again.
    pub(super) starting_at: Option<i64>,
    /// The executor answered that the stage runs.
    pub(super) running: bool,
    pub(super) image: Option<String>,
    pub(super) image_digest: Option<String>,
    pub(super) engine: Option<PathBuf>,
    /// Who asked the stage to end; written before it is told.
    pub(super) cause: Option<Cause>,
    /// It failed before it ran: the verdict is final.
    pub(super) failure: Option<Failure>,
}

/// A failure of the agent's side, for [`crate::api::agent::FinishRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) message: String,
}

impl JobRecord {
    pub(super) fn prepared(&self) -> Prepared {
        Prepared { image: self.image.clone(), image_digest: self.image_digest.clone(), engine: self.engine.clone() }
    }

    pub(super) fn set_prepared(&mut self, prepared: &Prepared) {
        let Prepared { image, image_digest, engine } = prepared.clone();
        (self.image, self.image_digest, self.engine) = (image, image_digest, engine);
    }

    pub(super) async fn load(data: &Path, job: &JobId) -> Result<Self, Error> {
        Ok(read(Self::path(data, job)).await?.unwrap_or_default())
    }

    pub(super) async fn store(&self, data: &Path, job: &JobId) -> Result<(), Error> {
        write(Self::path(data, job), self).await
    }

    pub(super) async fn remove(data: &Path, job: &JobId) -> Result<(), Error> {
        remove(&Self::path(data, job)).await
    }

    /// Removes the records of all jobs but those that `keep` names.
    pub(super) async fn sweep(data: &Path, keep: impl Fn(&str) -> bool) -> io::Result<()> {
        let mut entries = match tokio::fs::read_dir(data.join(FOLDER)).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            if !path.file_stem().and_then(|stem| stem.to_str()).is_some_and(&keep) {
                tokio::fs::remove_file(path).await?;
            }
        }
        Ok(())
    }

    fn path(data: &Path, job: &JobId) -> PathBuf {
        data.join(FOLDER).join(format!("{job}.json"))
    }
}

/// The file as a value; `None` when there is none.
pub(super) async fn read<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>, Error> {
    let name = || path.display().to_string();
    let bytes = match tokio::fs::read(&path).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: name(), source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Parse { path: name(), source })
}

/// Replaces the file (mode 0600); when this returns it survives a power cut.
pub(super) async fn write<T: Serialize>(path: PathBuf, value: &T) -> Result<(), Error> {
    let name = path.display().to_string();
    let bytes = serde_json::to_vec(value).map_err(|source| Error::Parse { path: name.clone(), source })?;
    let write = move || {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        write_private(&path, &bytes)
    };
    tokio::task::spawn_blocking(write)
        .await
        .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
        .map_err(|source| Error::Write { path: name, source })
}

/// Removes the file; harmless when there is none.
pub(super) async fn remove(path: &Path) -> Result<(), Error> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Write { path: path.display().to_string(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_survive_and_strangers_are_swept() {
        let data = tempfile::tempdir().unwrap();
        let (mine, other) = (JobId::random(), JobId::random());
        let record = JobRecord { starting_at: Some(7), cause: Some(Cause::TimedOut), ..JobRecord::default() };
        record.store(data.path(), &mine).await.unwrap();
        record.store(data.path(), &other).await.unwrap();
        JobRecord::sweep(data.path(), |id| id == mine.as_str()).await.unwrap();
        assert_eq!(JobRecord::load(data.path(), &mine).await.unwrap(), record);
        assert_eq!(JobRecord::load(data.path(), &other).await.unwrap(), JobRecord::default());
        JobRecord::remove(data.path(), &mine).await.unwrap();
        JobRecord::remove(data.path(), &mine).await.unwrap();
    }
}
