//! What a stage left reaches the control plane: state first, then artifacts and log, the result last.

use bytes::Bytes;

use super::{Supervisor, failed, remote, trouble::Trouble};
use crate::{
    agent::{
        Agent, logs,
        record::Failure,
        redact::Secrets,
        remote::{CallError, Stop},
        state,
    },
    api::{
        agent::{FinishRequest, JobRef, Outcome, artifact, reason},
        job::{JobSpec, Stage},
    },
    client::agent::{Error, Upload},
    telemetry::Chain,
};

/// How often a result is sent again because the logs' lengths differ.
const FINISH_ATTEMPTS: u32 = 4;

/// Where states are put that the control plane does not take.
const UNDELIVERED: &str = "undelivered";

impl Supervisor {
    /// Delivers everything, then the result.
    pub(super) async fn deliver(&mut self, mut finish: FinishRequest) -> Result<(), Stop> {
        if let Some(failure) = self.deliver_state().await? {
            blame(&mut finish, failure);
        }
        // The log's rest goes beside the artifacts: both can be large.
        let Self { shipper, remote, .. } = self;
        drop(shipper.drain(remote).await);
        if let Err(trouble) = self.deliver_artifacts(&finish).await {
            match trouble {
                Trouble::Stop(stop) => return Err(stop),
                Trouble::Failed(failure) => blame(&mut finish, failure),
            }
        }
        self.report(finish).await
    }

    /// `Some`: the state could not be recorded, which must not look like success.
    async fn deliver_state(&mut self) -> Result<Option<Failure>, Stop> {
        if self.spec.stage != Stage::Apply || self.record.starting_at.is_none() {
            return Ok(None);
        }
        let error = match self.snapshots.close(&self.remote).await {
            Ok(()) => return Ok(None),
            Err(state::Error::Stop(stop)) => return Err(stop),
            Err(error) => error,
        };
        self.keep_undelivered_state().await;
        let message = format!(
            "The last state could not be recorded: {}. It is kept on the agent's host in {}.",
            Chain(&error),
            self.agent.config.data.join(UNDELIVERED).display()
        );
        Ok(Some(Failure { reason: reason::AGENT_ERROR.to_owned(), message }))
    }

    async fn deliver_artifacts(&self, finish: &FinishRequest) -> Result<(), Trouble> {
        match self.spec.stage {
            Stage::Plan if finish.outcome == Outcome::Finished => {
                if let Some(bundle) = self.dir.pack_plan().await? {
                    let file = std::fs::File::open(&bundle).map_err(|source| CallError::Failed(local(source)))?;
                    self.put(artifact::PLAN, Upload::File(file)).await?;
                }
                if let Some(json) = self.dir.open_plan_json()? {
                    self.put(artifact::PLAN_JSON, Upload::File(json)).await?;
                }
                Ok(())
            }
            Stage::Apply => match self.snapshots.errored_state().await {
                Ok(Some(state)) => self.put(artifact::ERRORED_STATE, Upload::Bytes(state)).await,
                _ => Ok(()),
            },
            Stage::Plan => Ok(()),
        }
    }

    async fn put(&self, name: &str, content: Upload) -> Result<(), Trouble> {
        let remote = &self.remote;
        Ok(remote.call(|| remote.client.put_artifact(&remote.job, name, &content)).await?)
    }

    async fn report(&mut self, mut finish: FinishRequest) -> Result<(), Stop> {
        let id = self.spec.job_id.clone();
        for _ in 0..FINISH_ATTEMPTS {
            // It may quote what a program of the stage said.
            if let Some(message) = &finish.message {
                finish.message = Some(self.shipper.redact(message).await);
            }
            let epilogue = epilogue(&finish, self.log_is_empty());
            finish.log_bytes = match self.shipper.close(&self.remote, &epilogue).await {
                Ok(length) => length,
                Err(logs::Error::Stop(stop)) => return Err(stop),
                Err(error) => {
                    tracing::warn!(job = %id, error = %Chain(&error), "the log stays incomplete");
                    self.shipper.shipped()
                }
            };
            let sent = self.remote.call(|| self.remote.client.finish(&self.remote.job, &finish)).await;
            match sent {
                Ok(()) => {
                    tracing::info!(job = %id, outcome = ?finish.outcome, reason = finish.reason, "reported the job's result");
                    self.agent.metrics.reported(self.spec.stage, &finish);
                    return Ok(());
                }
                Err(CallError::Stop(stop)) => return Err(stop),
                Err(CallError::Failed(Error::LogGap { end })) => self.shipper.resynchronise(end),
                Err(CallError::Failed(error)) if finish.outcome == Outcome::Finished => {
                    // Better a run that says why than one whose agent seems lost.
                    let message = format!("The result was not accepted: {}", Chain(&error));
                    finish = failed(Failure { reason: reason::AGENT_ERROR.to_owned(), message });
                    self.shipper.resynchronise(0);
                }
                Err(CallError::Failed(error)) => {
                    tracing::error!(job = %id, error = %Chain(&error), "the result was not accepted");
                    return Ok(());
                }
            }
        }
        tracing::error!(job = %id, "the control plane has another log than this agent; the result was not accepted");
        Ok(())
    }

    fn log_is_empty(&self) -> bool {
        let length = self.dir.open_log(0).ok().flatten().and_then(|file| file.metadata().ok()).map(|meta| meta.len());
        length.unwrap_or(0) == 0
    }

    /// A state that must not or cannot be delivered describes real resources all the same: a person may want it.
    pub(super) async fn keep_undelivered_state(&self) {
        if self.spec.stage != Stage::Apply || self.record.starting_at.is_none() {
            return;
        }
        let Some(state) = self.snapshots.undelivered().await else { return };
        let name = format!("{}-{}.tfstate", self.spec.workspace.name, self.spec.run.id);
        match keep(&self.agent.config.data.join(UNDELIVERED), &name, &state).await {
            Ok(()) => tracing::warn!(job = %self.spec.job_id, file = name, "a state that was not recorded is kept"),
            Err(error) => tracing::error!(job = %self.spec.job_id, %error, "a state that was not recorded is lost"),
        }
    }
}

async fn keep(folder: &std::path::Path, name: &str, state: &[u8]) -> std::io::Result<()> {
    tokio::fs::create_dir_all(folder).await?;
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(folder.join(name)).await?;
    tokio::io::AsyncWriteExt::write_all(&mut file, state).await?;
    file.sync_all().await
}

fn local(source: std::io::Error) -> Error {
    Error::LocalFile { action: "store an artifact", path: "the plan's bundle".to_owned(), source }
}

/// A stage that did its work, but whose fruits could not be delivered, failed.
fn blame(finish: &mut FinishRequest, failure: Failure) {
    if finish.outcome == Outcome::Finished {
        let image_digest = finish.image_digest.take();
        *finish = FinishRequest { image_digest, ..failed(failure) };
    } else {
        tracing::warn!(message = failure.message, "and more went wrong");
    }
}

/// What the agent adds to the log: why the stage ended, where the engine did not say it.
fn epilogue(finish: &FinishRequest, log_is_empty: bool) -> String {
    let told_by_engine = [reason::ENGINE_FAILED, reason::CANCELED];
    let message = match (&finish.reason, &finish.message) {
        (Some(reason), Some(message)) if log_is_empty || !told_by_engine.contains(&reason.as_str()) => message,
        _ => return String::new(),
    };
    // The terraform CLI leaves out the first three lines of an apply's log: there the runner writes its heading.
    let heading = if log_is_empty { "Terrapool\nthe stage was not started\n\n" } else { "" };
    format!("{heading}\n\x1b[31mError:\x1b[0m {message}\n")
}

/// Reports a job that could not even be stored on this host.
pub(super) async fn refuse(agent: &Agent, spec: &JobSpec, failure: Failure) {
    tracing::error!(job = %spec.job_id, reason = failure.reason, message = failure.message, "the job could not be stored");
    let remote = remote(agent, spec);
    let secrets = Secrets::of_job(spec, &agent.config.token);
    let mut finish = failed(Failure { message: secrets.redact(&failure.message), ..failure });
    let text = Bytes::from(epilogue(&finish, true));
    finish.log_bytes = text.len() as u64;
    let JobRef { job_id, .. } = &remote.job;
    let reported = async {
        remote.call(|| remote.client.append_log(&remote.job, 0, text.clone())).await?;
        remote.call(|| remote.client.finish(&remote.job, &finish)).await
    };
    if let Err(error) = reported.await {
        tracing::warn!(job = %job_id, error = %Chain(&error), "the failure of the job could not be reported");
    }
    agent.jobs.remove(job_id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_why_a_stage_ended_unless_the_engine_did() {
        let finish = |reason: &str| failed(Failure { reason: reason.to_owned(), message: "why".to_owned() });
        assert!(epilogue(&finish(reason::CONTAINER_LOST), false).ends_with("Error:\x1b[0m why\n"));
        assert_eq!(epilogue(&finish(reason::ENGINE_FAILED), false), "");
        let before_start = epilogue(&finish(reason::IMAGE_UNAVAILABLE), true);
        assert!(before_start.lines().skip(3).any(|line| line.ends_with("why")), "{before_start}");
    }
}
