//! Carries the state of a running apply to the control plane: the engine writes its state file after every
//! resource, and each version is uploaded as soon as it is whole.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    jobdir::{self, JobDir},
    remote::{CallError, Remote, Stop},
};
use crate::{client, telemetry::Chain};

/// How often the state file is looked at: a created resource is to be recorded within a second.
const TICK: Duration = Duration::from_millis(100);

/// Wait after a refused or unreadable state.
const AFTER_TROUBLE: Duration = Duration::from_secs(2);

/// Changes whenever the file does; only a hint when to read it.
type Stamp = (std::time::SystemTime, u64);

/// What every whole state has. A half-written one does not parse.
#[derive(Deserialize)]
struct Head {
    #[expect(dead_code, reason = "its presence is what is checked")]
    serial: u64,
    #[expect(dead_code, reason = "its presence is what is checked")]
    lineage: String,
}

/// Uploads the states of one job.
#[derive(Debug)]
pub(super) struct Snapshots {
    dir: JobDir,
    /// The file when it was last uploaded, or found not to be worth it.
    settled: Option<Stamp>,
    /// Of the content that the server has.
    delivered: Option<[u8; 32]>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Stop(#[from] Stop),
    #[error("could not read the state")]
    Read { source: jobdir::Error },
    #[error("the control plane does not take the state")]
    Refused { source: client::agent::Error },
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Stop(stop) => Self::Stop(stop),
            CallError::Failed(source) => Self::Refused { source },
        }
    }
}

/// Whether `state` is a whole state file.
pub(super) fn is_whole(state: &[u8]) -> bool {
    serde_json::from_slice::<Head>(state).is_ok()
}

impl Snapshots {
    pub(super) fn new(dir: JobDir) -> Self {
        Self { dir, settled: None, delivered: None }
    }

    /// Uploads every version that appears, for ever; returns when the job is not ours any more. Cancel-safe.
    pub(super) async fn follow(&mut self, remote: &Remote) -> Stop {
        loop {
            let wait = match self.upload_changed(remote).await {
                Ok(()) => TICK,
                Err(Error::Stop(stop)) => return stop,
                Err(error) => {
                    tracing::warn!(job = %remote.job.job_id, error = %Chain(&error), "this state is not recorded");
                    AFTER_TROUBLE
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// The stage is over: the last state, and the one that the engine could not write, are uploaded.
    pub(super) async fn close(&mut self, remote: &Remote) -> Result<(), Error> {
        if let Some(state) = self.dir.state().await.map_err(|source| Error::Read { source })? {
            if is_whole(&state) {
                self.deliver(remote, state).await?;
            } else {
                tracing::warn!(job = %remote.job.job_id, "the engine left a broken state file; the last whole one stays recorded");
            }
        }
        if let Some(state) = self.errored_state().await? {
            self.deliver(remote, state).await?;
        }
        Ok(())
    }

    /// The `errored.tfstate`, when there is a whole one.
    pub(super) async fn errored_state(&self) -> Result<Option<Bytes>, Error> {
        let state = self.dir.errored_state().await.map_err(|source| Error::Read { source })?;
        Ok(state.filter(|state| is_whole(state)))
    }

    /// What the server does not have yet of what the stage left, when the agent must not or cannot deliver it.
    pub(super) async fn undelivered(&self) -> Option<Bytes> {
        let errored = self.errored_state().await.ok().flatten();
        let state = match errored {
            Some(state) => Some(state),
            None => self.dir.state().await.ok().flatten(),
        };
        state.filter(|state| self.delivered != Some(digest(state)))
    }

    async fn upload_changed(&mut self, remote: &Remote) -> Result<(), Error> {
        let stamp = self.stamp().await;
        if stamp.is_none() || stamp == self.settled {
            return Ok(());
        }
        let Some(state) = self.dir.state().await.map_err(|source| Error::Read { source })? else { return Ok(()) };
        // Half-written: the next look sees the rest.
        if !is_whole(&state) {
            return Ok(());
        }
        let delivered = self.deliver(remote, state).await;
        // Taken before the content: a change in between is seen as one.
        self.settled = stamp;
        delivered
    }

    async fn stamp(&self) -> Option<Stamp> {
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || dir.state_stamp()).await.ok().flatten()
    }

    async fn deliver(&mut self, remote: &Remote, state: Bytes) -> Result<(), Error> {
        let digest = digest(&state);
        if self.delivered == Some(digest) {
            return Ok(());
        }
        remote.call(|| remote.client.put_state(&remote.job, state.clone())).await?;
        self.delivered = Some(digest);
        Ok(())
    }
}

fn digest(state: &[u8]) -> [u8; 32] {
    Sha256::digest(state).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_states_count() {
        let whole = r#"{"version":4,"serial":3,"lineage":"x","outputs":{},"resources":[]}"#;
        assert!(is_whole(whole.as_bytes()));
        for length in 0..whole.len() {
            assert!(!is_whole(&whole.as_bytes()[..length]), "{length}");
        }
        assert!(!is_whole(b"{}"));
        assert!(!is_whole(b"null"));
    }
}
