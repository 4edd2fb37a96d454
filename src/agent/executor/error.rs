//! Why a stage cannot be run, or what runs cannot be asked.

use std::time::{Duration, Instant};

use super::super::{backoff::Backoff, engine, hooks, jobdir, steps};
use crate::{api::agent::reason, telemetry::Chain};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Docker does not answer at {host}; start it, name another address, or choose the process executor")]
    NoDocker {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the image {image} cannot be used: {detail}")]
    Image { image: String, detail: String },
    #[error(
        "this agent may not use the image {image}: its administrator allows {allowed} only (--allowed-image); let the \
         workspace use one of these, or have the image added"
    )]
    ImageNotAllowed { image: String, allowed: String },
    #[error("Docker could not {doing}")]
    Docker {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer at all: the engine of containers is stopped, or starts again.
    #[error("Docker does not answer now, and could not {doing}")]
    Away {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{0}")]
    Refused(String),
    /// What was to run the stage is not there any more.
    #[error("{0}")]
    Gone(String),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    JobDir(#[from] jobdir::Error),
    #[error(transparent)]
    Steps(#[from] steps::Error),
    #[error(transparent)]
    Hooks(#[from] hooks::Error),
    #[error("could not {doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Value of [`crate::api::agent::FinishRequest::reason`] for a job that ended with this error.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Image { .. } => reason::IMAGE_UNAVAILABLE,
            Self::ImageNotAllowed { .. } => reason::IMAGE_NOT_ALLOWED,
            Self::Engine(_) => reason::ENGINE_UNAVAILABLE,
            Self::JobDir(error) => error.reason(),
            Self::Steps(_) => reason::BAD_CONFIGURATION,
            Self::Gone(_) => reason::CONTAINER_LOST,
            Self::NoDocker { .. } | Self::Docker { .. } | Self::Away { .. } | Self::Refused(_) | Self::Hooks(_) => {
                reason::AGENT_ERROR
            }
            Self::Io { source, .. } => jobdir::reason_of_io(source),
        }
    }
}

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// Repeats `call` while the engine of containers is away, for `limit` at most: most are back after some seconds.
///
/// # Errors
/// Its error, when that is another one, or the last one.
pub(in crate::agent) async fn patiently<T, F>(limit: Duration, call: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let start = Instant::now();
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Err(error @ Error::Away { .. }) if start.elapsed() < limit => {
                tracing::warn!(error = %Chain(&error), "trying again");
                tokio::time::sleep(backoff.next(None)).await;
            }
            answer => return answer,
        }
    }
}
