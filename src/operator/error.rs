//! Why a pass over an object did not get to its end.

use super::cluster;
use crate::{
    client::iacp,
    crd::conditions::reason,
    sync::{self, Waiting},
    telemetry::Chain,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    #[error(transparent)]
    Sync(#[from] sync::Error),
    #[error("the control plane could not be asked what the pool needs")]
    Demand { source: Box<iacp::Error> },
    #[error("the pool has no token that could be kept; the next pass makes one")]
    NoToken,
    #[error("{}", .0.message)]
    Waiting(Waiting),
}

impl Error {
    /// The condition reason that tells of this error.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Sync(error) => error.reason(),
            Self::Demand { .. } | Self::NoToken => reason::CONTROL_PLANE_UNREACHABLE,
            Self::Cluster(error) => error.refusal().unwrap_or(reason::API_SERVER_UNREACHABLE),
            Self::Waiting(waiting) => waiting.reason,
        }
    }

    /// With all causes.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            // What the API server writes is meant for people; the chain repeats it.
            Self::Cluster(error) => match error.detail() {
                Some(detail) => format!("{error}: {detail}"),
                None => Chain(self).to_string(),
            },
            _ => Chain(self).to_string(),
        }
    }

    /// Somebody else wrote first: the next pass is in a moment, and nobody needs to hear of it.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Cluster(error) if error.is_conflict())
    }

    /// A pass was cut short by a dry run, not by a fault.
    #[must_use]
    pub fn planned(&self) -> Option<sync::WriteKind> {
        match self {
            Self::Sync(sync::Error::Planned { kind }) => Some(*kind),
            _ => None,
        }
    }
}
