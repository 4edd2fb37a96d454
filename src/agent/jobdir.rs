//! The job directory: all that a stage gets and gives. Lives below `<data>/jobs/`.
//!
//! The stage may be hostile, and it owns the directory while it runs: whatever this module reads after the start is
//! opened without following links, must be a regular file, and has a limit on its size.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::result::RunnerResult;
use crate::api::{
    agent::{ExecutorKind, reason},
    job::JobSpec,
};

/// Where a job's files lie and whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub kind: ExecutorKind,
    /// User and group that the stage runs as; absent: the agent's own.
    pub owner: Option<(u32, u32)>,
}

/// A configuration or plan bundle: tar.gz.
#[derive(Debug, Clone)]
pub enum Archive {
    Bytes(Bytes),
    File(PathBuf),
}

/// One job's directory.
#[derive(Debug, Clone)]
pub struct JobDir {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration cannot be used: {0}")]
    Configuration(String),
    #[error("could not {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Value of [`crate::api::agent::FinishRequest::reason`] for a job that ended with this error.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Configuration(_) => reason::BAD_CONFIGURATION,
            Self::Io { source, .. } => reason_of_io(source),
        }
    }
}

/// A full disk has a reason of its own.
#[must_use]
pub fn reason_of_io(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => reason::OUT_OF_SPACE,
        _ => reason::AGENT_ERROR,
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

fn unfinished<T>() -> Result<T> {
    Err(Error::Configuration("not there yet".to_owned()))
}

impl JobDir {
    /// Makes the directory of a job and stores its spec beside it; what an earlier epoch left there is removed.
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub async fn create(_data: &Path, _spec: &JobSpec, _placement: Placement) -> Result<Self> {
        unfinished()
    }

    /// The jobs that an earlier process of this agent left below `data`. Remains of jobs that were never stored whole are removed.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub async fn scan(_data: &Path) -> Result<Vec<(JobSpec, Self)>> {
        unfinished()
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Unpacks the configuration into an empty `config/`.
    ///
    /// # Errors
    /// [`Error::Configuration`] names what is wrong with the archive.
    pub async fn unpack_configuration(&self, _archive: Archive) -> Result<()> {
        unfinished()
    }

    /// Puts what the plan stage made ([`Self::pack_plan`]) over the configuration.
    ///
    /// # Errors
    /// As [`Self::unpack_configuration`].
    pub async fn unpack_plan(&self, _archive: Archive) -> Result<()> {
        unfinished()
    }

    /// Writes the workspace's state, or with `None` removes what the configuration brought in its place.
    ///
    /// # Errors
    /// [`Error::Configuration`] when the working directory is not in the configuration.
    pub async fn put_state(&self, _state: Option<Bytes>) -> Result<()> {
        unfinished()
    }

    /// The state as the engine wrote it last; `None`: there is none. Half-written ones are the caller's to notice.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub async fn state(&self) -> Result<Option<Bytes>> {
        unfinished()
    }

    /// The `errored.tfstate` that the engine leaves when it could not write its state.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn errored_state(&self) -> Result<Option<Bytes>> {
        unfinished()
    }

    /// What the runner wrote at its end; `None`: it has not.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub async fn result(&self) -> Result<Option<RunnerResult>> {
        unfinished()
    }

    /// The log, positioned at `offset`; `None`: there is none yet. For use on a blocking thread or through `tokio::fs::File::from_std`.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub fn open_log(&self, _offset: u64) -> Result<Option<File>> {
        unfinished()
    }

    /// Appends a line of the agent's own to the log: for what happens before the runner starts or after it ended.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn append_log(&self, _text: &str) -> Result<()> {
        unfinished()
    }

    /// Makes the artifact that an apply needs from its plan; `None`: there is no plan file. Only after the stage has ended.
    ///
    /// # Errors
    /// When a part is not a regular file or cannot be read.
    pub async fn pack_plan(&self) -> Result<Option<PathBuf>> {
        unfinished()
    }

    /// The plan as JSON; `None`: there is none. Only after the stage has ended.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub fn open_plan_json(&self) -> Result<Option<File>> {
        unfinished()
    }

    /// Removes the directory and the stored spec. Harmless when repeated.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub async fn remove(&self) -> Result<()> {
        unfinished()
    }
}
