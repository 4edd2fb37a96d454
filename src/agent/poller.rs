//! Takes jobs while there are free slots. The claim's id is on the disk before the call is made: whatever is cut,
//! the same id gets the same job again.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Agent, backoff::Backoff, job, record};
use crate::{
    api::{
        agent::{ClaimRequest, Directive, JobRef, MAX_WAIT_MS, Order},
        job::{JobSpec, Stage},
    },
    client::agent::Error,
    telemetry::Chain,
};

/// Failures in a row after which the log speaks of them.
const LOUD_AFTER: u32 = 3;

/// How long a claim waits before the executor is watched.
const BEFORE_WATCH: Duration = Duration::from_secs(1);

/// How long a full or broken data directory, or an engine that is away, is left alone.
const AFTER_TROUBLE: Duration = Duration::from_secs(5);

/// Less room in the data directory, in bytes, and no job is taken.
pub(super) const MIN_FREE: u64 = 16 << 20;

/// How many times an unresolved claim is asked for while the agent drains.
const LAST_ASKS: u32 = 5;

/// The file `claim.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    claim_id: String,
}

fn file(agent: &Agent) -> PathBuf {
    agent.config.data.join("claim.json")
}

/// Runs until the agent drains.
pub(super) async fn run(agent: &Arc<Agent>) {
    tokio::select! {
        () = take_jobs(agent) => {}
        never = leave_without_job(agent) => match never {},
    }
}

/// An agent that is not to wait for a job any more drains. A claim under way is brought to its end by that, and what it
/// brings is worked on.
async fn leave_without_job(agent: &Agent) -> Infallible {
    let mut cordoned = agent.cordoned.subscribe();
    let why = tokio::select! {
        () = idle(agent) => "it has waited long enough",
        () = agent.executor.lost(), if agent.config.once => "the run container has ended",
        _ = cordoned.wait_for(|cordoned| *cordoned), if agent.config.once => "the control plane wants no new jobs here",
    };
    tracing::info!(why, "the agent leaves without a job");
    agent.shutdown.drain.cancel();
    std::future::pending().await
}

/// Resolves when the agent has had no job for its idle time-out.
async fn idle(agent: &Agent) {
    let Some(limit) = agent.config.idle_timeout else { return std::future::pending().await };
    loop {
        agent.jobs.until(|count| count == 0).await;
        tokio::select! {
            () = tokio::time::sleep(limit) => return,
            () = agent.jobs.until(|count| count > 0) => {}
        }
    }
}

async fn take_jobs(agent: &Arc<Agent>) {
    let mut backoff = Backoff::default();
    let mut cordoned = agent.cordoned.subscribe();
    loop {
        if agent.config.once && agent.jobs.count() > 0 {
            // The job of an earlier process, or of a claim that was cut, is the one.
            agent.shutdown.drain.cancel();
        }
        let ready = async {
            agent.jobs.until(|count| count < agent.slots()).await;
            // Err: the agent is gone, which cannot be while it is borrowed.
            drop(cordoned.wait_for(|cordoned| !cordoned).await);
        };
        tokio::select! {
            biased;
            () = agent.shutdown.drain.cancelled() => return,
            () = ready => {}
        }
        let Some(claim_id) = claim_id(agent).await else { continue };
        let stages = agent.config.stages.clone();
        let answer = tokio::select! {
            answer = claim(agent, &claim_id, stages, MAX_WAIT_MS) => answer,
            () = agent.shutdown.drain.cancelled() => return resolve(agent, &claim_id).await,
            () = executor_away(agent) => {
                resolve(agent, &claim_id).await;
                continue;
            }
        };
        match answer {
            Ok(job) => {
                backoff.reset();
                if let Some(spec) = job {
                    accept(agent, spec).await;
                    if agent.config.once {
                        agent.shutdown.drain.cancel();
                    }
                }
            }
            Err(error) => {
                agent.metrics.claim_failed();
                let wait = backoff.next(error.retry_after());
                if backoff.failures() >= LOUD_AFTER || !error.is_unavailable() {
                    tracing::warn!(error = %Chain(&error), "no job could be asked for; trying again");
                }
                agent.sleep_or_drain(wait).await;
            }
        }
    }
}

async fn claim(agent: &Agent, id: &str, stages: Vec<Stage>, wait_ms: u64) -> Result<Option<JobSpec>, Error> {
    agent
        .client
        .claim(&ClaimRequest { claim_id: id.to_owned(), stages, wait_ms, images: agent.executor.images() })
        .await
}

/// Resolves when the executor cannot start a job any more, as far as is known.
async fn executor_away(agent: &Agent) {
    // Most claims bring a job before that, or the agent is idle.
    tokio::time::sleep(BEFORE_WATCH).await;
    agent.executor.until_away().await;
}

/// The claim was cut: had it got a job? No stages are accepted, so it gets no new one.
async fn resolve(agent: &Arc<Agent>, id: &str) {
    let mut backoff = Backoff::default();
    for _ in 0..LAST_ASKS {
        match claim(agent, id, Vec::new(), 0).await {
            Ok(Some(spec)) => return accept(agent, spec).await,
            Ok(None) => return,
            Err(error) => tracing::debug!(error = %Chain(&error), "the last claim is not resolved yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next(None)) => {}
            () = agent.shutdown.stop.cancelled() => return,
            () = agent.halt.cancelled() => return,
        }
    }
}

/// The id of the claim under way, or a fresh one; `None` when a job would fail here, whatever it is. Every waiting run
/// would, one after the other.
async fn claim_id(agent: &Agent) -> Option<String> {
    let claim_id = id_if_able(agent).await.map_err(|why| format!("takes no jobs: {why}"));
    let trouble = claim_id.as_ref().err().cloned();
    if agent.set_trouble(trouble.clone()) {
        match &trouble {
            Some(trouble) => tracing::error!("the agent {trouble}"),
            None => tracing::info!("the agent takes jobs again"),
        }
    }
    if trouble.is_some() {
        agent.sleep_or_drain(AFTER_TROUBLE).await;
    }
    claim_id.ok()
}

async fn id_if_able(agent: &Agent) -> Result<String, String> {
    room(&agent.config.data)?;
    agent.executor.answers().await.map_err(|error| Chain(&error).to_string())?;
    stored_claim_id(agent).await.map_err(|error| Chain(&error).to_string())
}

fn room(data: &Path) -> Result<(), String> {
    match rustix::fs::statvfs(data) {
        Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < MIN_FREE => {
            Err(format!("less than {} MiB are free in {}; make room there", MIN_FREE >> 20, data.display()))
        }
        // A file system that does not say: the jobs will tell.
        _ => Ok(()),
    }
}

async fn stored_claim_id(agent: &Agent) -> Result<String, record::Error> {
    let path = file(agent);
    if let Ok(Some(Claim { claim_id })) = record::read::<Claim>(path.clone()).await {
        return Ok(claim_id);
    }
    let claim_id = super::random_text();
    record::write(path, &Claim { claim_id: claim_id.clone() }).await?;
    Ok(claim_id)
}

async fn accept(agent: &Arc<Agent>, spec: JobSpec) {
    let job = JobRef { job_id: spec.job_id.clone(), epoch: spec.epoch };
    match agent.jobs.epoch_of(&job.job_id) {
        // The answer to a claim that an earlier process made, and stored.
        Some(epoch) if epoch == job.epoch => {}
        Some(epoch) => {
            // We lost the job and got it again: first its earlier life ends.
            agent.jobs.order(&Directive { job_id: job.job_id.clone(), epoch, order: Order::Fenced });
            let mut changes = agent.jobs.changes();
            while agent.jobs.epoch_of(&job.job_id).is_some() && changes.changed().await.is_ok() {}
            job::take(agent, spec).await;
        }
        None => job::take(agent, spec).await,
    }
    // Only now: the job is on the disk, or its failure is being reported.
    if let Err(error) = record::remove(&file(agent)).await {
        tracing::error!(error = %Chain(&error), "the claim could not be forgotten");
    }
}
