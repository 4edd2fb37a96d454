//! Calls about one job, repeated until they get through: the control plane may be away for minutes while the
//! work goes on.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use crate::{
    api::agent::JobRef,
    client::agent::{AgentClient, Error},
    telemetry::Chain,
};

/// Failures in a row after which the log speaks of them.
const LOUD_AFTER: u32 = 3;

/// The control plane, as one job sees it.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) client: AgentClient,
    pub(super) job: JobRef,
    /// Nothing can be delivered any more: the token was revoked, or the agent has to end.
    pub(super) halt: CancellationToken,
}

/// Why a job is not to be worked on any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stop {
    #[error("the job is not this agent's any more")]
    Fenced,
    #[error("the agent ends without the control plane")]
    Halted,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Stop(#[from] Stop),
    /// Trying again does not help.
    #[error(transparent)]
    Failed(Error),
}

impl Remote {
    /// Repeats `call` with backoff until there is an answer that is one.
    pub(super) async fn call<T, F, Answer>(&self, call: F) -> Result<T, CallError>
    where
        F: Fn() -> Answer,
        Answer: Future<Output = Result<T, Error>>,
    {
        let mut backoff = Backoff::default();
        loop {
            let answer = tokio::select! {
                answer = call() => answer,
                () = self.halt.cancelled() => return Err(Stop::Halted.into()),
            };
            let error = match answer {
                Ok(value) => return Ok(value),
                Err(Error::Fenced) => return Err(Stop::Fenced.into()),
                // The heartbeat gets a new token, or ends the agent.
                Err(error @ (Error::Unauthorized { .. } | Error::Upgrade { .. })) => error,
                Err(error) if error.is_unavailable() => error,
                Err(error) => return Err(CallError::Failed(error)),
            };
            let wait = backoff.next(error.retry_after());
            if backoff.failures() >= LOUD_AFTER {
                tracing::warn!(job = %self.job.job_id, error = %Chain(&error), "trying again");
            }
            self.pause(wait).await?;
        }
    }

    async fn pause(&self, wait: Duration) -> Result<(), Stop> {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.halt.cancelled() => Err(Stop::Halted),
        }
    }
}
