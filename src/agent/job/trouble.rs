//! Why a job cannot be worked on, in words for the user and a code for the control plane.

use super::super::{
    executor, jobdir,
    record::{self, Failure},
    remote::{CallError, Stop},
};
use crate::{api::agent::reason, client, telemetry::Chain};

/// What spans say of a job that could not be worked on to its end: it is somebody else's, or the agent ends.
pub(super) const UNDELIVERED: &str = "undelivered";

/// Why a stage could not be started, or a job not be worked on.
pub(super) enum Trouble {
    Stop(Stop),
    Failed(Failure),
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Stop(stop) => Self::Stop(stop),
            CallError::Failed(error) => {
                let reason = match &error {
                    client::agent::Error::LocalFile { source, .. } => jobdir::reason_of_io(source),
                    _ => reason::AGENT_ERROR,
                };
                Self::failed(reason, &error)
            }
        }
    }
}

impl From<jobdir::Error> for Trouble {
    fn from(error: jobdir::Error) -> Self {
        Self::failed(error.reason(), &error)
    }
}

impl From<executor::Error> for Trouble {
    fn from(error: executor::Error) -> Self {
        Self::failed(error.reason(), &error)
    }
}

impl From<record::Error> for Trouble {
    fn from(error: record::Error) -> Self {
        Self::failed(error.io().map_or(reason::AGENT_ERROR, jobdir::reason_of_io), &error)
    }
}

impl Trouble {
    /// What spans say of it.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Stop(_) => UNDELIVERED,
            Self::Failed(failure) => &failure.reason,
        }
    }

    pub(super) fn failed(reason: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed(Failure { reason: reason.to_owned(), message: Chain(error).to_string() })
    }
}
