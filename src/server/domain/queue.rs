//! The queue's leases: claimed by one agent at a time, renewed by heartbeats, fenced by epochs, ended by a
//! result or by the server's clock. Agents' clocks play no part.

use std::{sync::atomic::Ordering, time::Duration};

use sqlx::AnyConnection;

use super::{
    access, agents, demand, job_spec, logs,
    model::{Agent, Cancel, Job},
    run_settings, runs, spans,
    unit::Unit,
};
use crate::{
    api::{
        agent::{
            AgentStatus, ClaimRequest, Directive, FinishRequest, HeartbeatRequest, HeartbeatResponse, JobRef,
            MAX_WAIT_MS, Order, Outcome, artifact, code, reason,
        },
        job::{JobSpec, Stage},
    },
    ids::{AgentId, JobId, PoolId, TokenId},
    server::{
        app::AppState,
        domain::model::StageStatus,
        error::{Error, Result},
        held::HeldClaim,
        store::{
            self,
            jobs::{Ended, Wish},
        },
        wake::Topic,
    },
};

fn lease_until(app: &AppState, now: i64) -> i64 {
    now + i64::try_from(app.policy.lease.as_millis()).unwrap_or(i64::MAX)
}

fn since(now: i64, then: i64) -> Duration {
    Duration::from_millis(u64::try_from(now - then).unwrap_or_default())
}

fn wait(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms.min(MAX_WAIT_MS))
}

/// The agent that calls.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    pub agent: &'a AgentId,
    pub pool: &'a PoolId,
    /// What it showed: a call that is held must not outlive it.
    pub token: &'a TokenId,
}

impl Caller<'_> {
    async fn check(&self, connection: &mut AnyConnection) -> Result<()> {
        if store::tokens::exists(connection, self.token).await? { Ok(()) } else { Err(access::UNKNOWN) }
    }
}

/// The next job of the agent's pool, waiting for one until `gone`; `None` when none came. The same claim id gets
/// the same job again.
///
/// # Errors
/// Those of the database.
pub async fn claim(
    app: &AppState,
    caller: &Caller<'_>,
    request: &ClaimRequest,
    gone: impl Future<Output = ()>,
) -> Result<Option<JobSpec>> {
    let held = app.held.begin(caller.agent, &request.claim_id);
    if request.stages.is_empty() {
        return last_claim(app, caller, request).await;
    }
    let look = || async {
        let mut connection = app.store.read().await?;
        let worth = store::jobs::by_claim(&mut connection, caller.agent, &request.claim_id).await?.is_some()
            || store::jobs::any_queued(&mut connection, caller.pool).await?;
        if !worth {
            caller.check(&mut connection).await?;
            return Ok(None);
        }
        drop(connection);
        try_claim(app, caller, request, &held).await
    };
    let end = async {
        tokio::select! {
            () = tokio::time::sleep(wait(request.wait_ms)) => {}
            () = app.closing.cancelled() => {}
            () = gone => {}
        }
    };
    Ok(app.wakes.wait_until(Topic::Queue(caller.pool.clone()), end, look).await?.flatten())
}

/// The agent leaves and wants to know whether its last claim got a job. Afterwards that claim gets none any more,
/// even if a call that the agent has given up is still waiting here.
async fn last_claim(app: &AppState, caller: &Caller<'_>, request: &ClaimRequest) -> Result<Option<JobSpec>> {
    let mut unit = Unit::begin(app).await?;
    store::agents::lock(&mut unit, caller.agent).await?;
    if let Some(job) = store::jobs::by_claim(&mut unit, caller.agent, &request.claim_id).await? {
        return job_spec::build(&mut unit, &job).await.map(Some);
    }
    store::agents::drain(&mut unit, caller.agent).await?;
    unit.changed(caller.pool);
    unit.commit().await?;
    Ok(None)
}

/// A job; `Some(None)`: there will never be one for this call; `None`: not yet.
async fn try_claim(
    app: &AppState,
    caller: &Caller<'_>,
    request: &ClaimRequest,
    held: &HeldClaim,
) -> Result<Option<Option<JobSpec>>> {
    let &Caller { agent, pool, .. } = caller;
    loop {
        let mut unit = Unit::begin(app).await?;
        store::agents::lock(&mut unit, agent).await?;
        caller.check(&mut unit).await?;
        if let Some(job) = store::jobs::by_claim(&mut unit, agent, &request.claim_id).await? {
            return job_spec::build(&mut unit, &job).await.map(|spec| Some(Some(spec)));
        }
        let known = store::agents::get(&mut unit, agent).await?.ok_or_else(|| Error::not_found("Agent", agent))?;
        // Here, not before: whoever was told that the agent has no job and gets none must be right.
        if !held.is_newest() {
            return Ok(Some(None));
        }
        if known.cordoned || known.draining {
            return Ok(None);
        }
        let now = unit.now;
        let run_images = match &request.images {
            None => None,
            Some(images) => {
                let pool = super::pools::get(&mut unit, pool).await?;
                let pool = pool.ok_or(Error::Internal("an agent's pool is not there"))?;
                Some(demand::wishes_for(&mut unit, &pool, images).await?)
            }
        };
        let wish = Wish {
            pool,
            agent,
            claim_id: &request.claim_id,
            plans: request.stages.contains(&Stage::Plan),
            applies: request.stages.contains(&Stage::Apply),
            run_images: run_images.as_deref(),
        };
        let Some(job) = store::jobs::claim(&mut unit, &wish, now, lease_until(app, now)).await? else {
            return Ok(None);
        };
        unit.changed(pool);
        unit.record(|now| spans::of_wait(&job, now));
        let spec = start(&mut unit, &job, &known).await?;
        unit.commit().await?;
        if let Some(spec) = spec {
            app.metrics.claimed(since(now, job.queued_at));
            tracing::info!(job = %job.id, epoch = job.epoch, run = %job.run_id, agent = %agent, waited_ms = now - job.queued_at, "job claimed");
            return Ok(Some(Some(spec)));
        }
    }
}

/// Starts a claimed job's stage; `None` when the pool may not serve its workspace any more, which ends the run.
async fn start(unit: &mut Unit<'_>, job: &Job, agent: &Agent) -> Result<Option<JobSpec>> {
    let mut run = runs::get(unit, &job.run_id).await?;
    let workspace = store::workspaces::get(unit, &run.workspace_id)
        .await?
        .ok_or(Error::Internal("a run's workspace is not there"))?;
    let pool = super::pools::get(unit, &job.pool_id).await?.ok_or(Error::Internal("a job's pool is not there"))?;
    if !super::pools::may_serve(&pool, &workspace.environment_id) {
        let message =
            format!("agent pool {} may not serve the environment of workspace {} any more", pool.name, workspace.name);
        runs::fail(unit, &mut run, reason::POOL_NOT_ALLOWED, message).await?;
        return Ok(None);
    }
    if let Some(image) = workspace.run_image.as_ref().filter(|image| !run_settings::allows(&pool.run_settings, image)) {
        let message = format!(
            "workspace {} asks for the image {image}, which agent pool {} does not allow: choose another one, or add \
             it to the pool's allowed images",
            workspace.name, pool.name
        );
        runs::fail(unit, &mut run, reason::IMAGE_NOT_ALLOWED, message).await?;
        return Ok(None);
    }
    let mut row = logs::stage(unit, &job.stage_id).await?;
    row.status = StageStatus::Running;
    row.started_at = row.started_at.or(Some(unit.now));
    store::runs::update_stage(unit, &row).await?;
    unit.wake(Topic::Log(row.id));
    runs::start_stage(unit, &mut run, job.kind).await?;
    tracing::debug!(agent = %agent.id, job = %job.id, "stage started");
    job_spec::build(unit, job).await.map(Some)
}

/// The job that (id, epoch) names, when it is the agent's now.
///
/// # Errors
/// [`Error::fenced`]
pub async fn current(unit: &mut Unit<'_>, agent: &AgentId, id: &JobId, epoch: i64) -> Result<Job> {
    let job = store::jobs::get(unit, id).await?;
    job.filter(|job| job.claimed && job.epoch == epoch && job.agent_id.as_ref() == Some(agent)).ok_or_else(|| {
        unit.app.metrics.fenced_write();
        Error::fenced()
    })
}

/// Renews the leases of the jobs that the agent names, then waits until there is an order that it does not know.
///
/// # Errors
/// Those of the database.
pub async fn heartbeat(app: &AppState, caller: &Caller<'_>, request: &HeartbeatRequest) -> Result<HeartbeatResponse> {
    let agent = caller.agent;
    if let Err(error) = record_heartbeat(app, agent, request).await {
        app.unrecorded_heartbeat.store(app.clock.now_ms(), Ordering::Relaxed);
        return Err(error);
    }

    let look = || async {
        let answer = orders(app, caller, &request.jobs).await?;
        let news = answer.directives.iter().any(|directive| !request.known.contains(directive));
        let drain = request.cordoned.map_or(answer.drain && !request.draining, |known| known != answer.drain);
        Ok::<_, Error>((news || drain).then_some(answer))
    };
    let found = tokio::select! {
        found = app.wakes.wait_for(Topic::Agent(agent.clone()), wait(request.wait_ms), look) => found?,
        () = app.closing.cancelled() => None,
    };
    match found {
        Some(answer) => Ok(answer),
        None => orders(app, caller, &request.jobs).await,
    }
}

async fn record_heartbeat(app: &AppState, agent: &AgentId, request: &HeartbeatRequest) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let now = unit.now;
    let status = request.status.as_str();
    if let Some(before) = store::agents::get(&mut unit, agent).await? {
        let offline = agents::status(&before, now, app.policy.offline_after) == AgentStatus::Offline;
        let same = before.reported_status == status
            && before.error_message == request.error_message
            && before.draining == request.draining;
        if offline || !same {
            unit.changed(&before.pool_id);
        }
        if before.draining && !request.draining {
            // A claim that it holds may get something now.
            unit.wake(Topic::Queue(before.pool_id));
        }
    }
    store::agents::seen(&mut unit, agent, status, request.error_message.as_deref(), request.draining, now).await?;
    for job in &request.jobs {
        let lease = lease_until(app, now);
        store::jobs::renew(&mut unit, &job.job_id, job.epoch, agent, lease).await?;
    }
    unit.commit().await
}

/// What the agent is to do about the jobs that it names.
async fn orders(app: &AppState, caller: &Caller<'_>, jobs: &[JobRef]) -> Result<HeartbeatResponse> {
    let agent = caller.agent;
    let mut connection = app.store.read().await?;
    caller.check(&mut connection).await?;
    let drain = store::agents::get(&mut connection, agent).await?.is_some_and(|agent| agent.cordoned);
    let mut directives = Vec::new();
    for JobRef { job_id, epoch } in jobs {
        let job = store::jobs::get(&mut connection, job_id).await?;
        let order = match job.filter(|job| job.claimed && job.epoch == *epoch && job.agent_id.as_ref() == Some(agent)) {
            None => Some(Order::Fenced),
            Some(job) => match runs::get(&mut connection, &job.run_id).await?.cancel {
                Cancel::No => None,
                Cancel::Asked => Some(Order::Cancel),
                Cancel::Forced => Some(Order::ForceCancel),
            },
        };
        directives.extend(order.map(|order| Directive { job_id: job_id.clone(), epoch: *epoch, order }));
    }
    Ok(HeartbeatResponse { directives, drain })
}

/// Ends a job with its agent's result; the same result twice is one result.
///
/// # Errors
/// [`Error::fenced`], `log_gap` when the log is not complete, and a conflict when an applicable plan has no bundle.
pub async fn finish(app: &AppState, agent: &AgentId, id: &JobId, epoch: i64, result: &FinishRequest) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let text = serde_json::to_string(result).map_err(|_| Error::Internal("a result does not serialise"))?;
    if let Some(known) = store::jobs::ended_result(&mut unit, id, epoch, agent).await? {
        return if known == text { Ok(()) } else { Err(Error::fenced()) };
    }
    let job = current(&mut unit, agent, id, epoch).await?;
    let row = logs::stage(&mut unit, &job.stage_id).await?;
    let end = u64::try_from(row.log_bytes - job.log_base).unwrap_or_default();
    if end != result.log_bytes {
        return Err(Error::ConflictCode {
            code: code::LOG_GAP,
            detail: format!("The log here has {end} bytes, the result speaks of {}.", result.log_bytes),
            meta: Some(serde_json::json!({ "end": end })),
        });
    }
    if job.kind == Stage::Plan
        && result.outcome == Outcome::Finished
        && result.has_changes
        && !super::artifacts::exists(&mut unit, &job.run_id, artifact::PLAN).await?
    {
        return Err(Error::Conflict("A plan with changes needs its bundle: put the artifact `plan` first.".to_owned()));
    }
    let ended = Ended {
        job_id: job.id.clone(),
        epoch,
        run_id: job.run_id.clone(),
        stage_id: job.stage_id.clone(),
        agent_id: Some(agent.clone()),
        outcome: match result.outcome {
            Outcome::Finished => "finished",
            Outcome::Errored => "errored",
            Outcome::Canceled => "canceled",
        },
        result: Some(text),
        claimed_at: job.claimed_at,
        ended_at: unit.now,
    };
    store::jobs::insert_ended(&mut unit, &ended).await?;
    unit.record(|now| spans::of_stage(&job, ended.outcome, result.reason.as_deref(), now));
    runs::end_stage(&mut unit, &job, result).await?;
    let took = since(unit.now, job.claimed_at.unwrap_or(unit.now));
    unit.commit().await?;
    app.metrics.stage_ended(job.kind.as_str(), took);
    tracing::info!(job = %id, epoch, run = %job.run_id, outcome = ended.outcome, "job ended");
    Ok(())
}

/// Ends the leases that are over: a lost plan is planned again, a lost apply never. Says how many.
///
/// # Errors
/// Those of the database.
pub async fn expire(app: &AppState) -> Result<usize> {
    let now = app.clock.now_ms();
    let mut connection = app.store.read().await?;
    let expired = store::jobs::expired(&mut connection, now).await?;
    drop(connection);
    if !expired.is_empty() && app.unrecorded_heartbeat.load(Ordering::Relaxed) > now - lease_until(app, 0) {
        // The silence was ours: as after a restart, agents get time to be heard.
        extend_after_restart(app).await?;
        app.unrecorded_heartbeat.store(0, Ordering::Relaxed);
        return Ok(0);
    }
    for job in &expired {
        let mut unit = Unit::begin(app).await?;
        // A heartbeat may have been faster.
        let still = store::jobs::get(&mut unit, &job.id).await?;
        let Some(job) =
            still.filter(|j| j.claimed && j.epoch == job.epoch && j.lease_until.is_some_and(|at| at <= now))
        else {
            continue;
        };
        lose(&mut unit, &job).await?;
        unit.commit().await?;
        app.metrics.lease_expired(job.kind.as_str());
    }
    Ok(expired.len())
}

async fn lose(unit: &mut Unit<'_>, job: &Job) -> Result<()> {
    let mut run = runs::get(unit, &job.run_id).await?;
    let agent = match &job.agent_id {
        Some(id) => store::agents::get(unit, id).await?.map_or_else(|| id.to_string(), |agent| agent.name),
        None => "its agent".to_owned(),
    };
    tracing::warn!(job = %job.id, epoch = job.epoch, run = %run.id, agent, "lease over: the agent is lost");
    runs::abandon(unit, job, "lost").await?;
    let silence = unit.app.policy.lease.as_secs();
    let again =
        job.kind == Stage::Plan && run.cancel == Cancel::No && run.plan_attempts < unit.app.policy.plan_attempts;
    if !again {
        let message = format!(
            "agent {agent} has not been heard of for {silence} s, so this {} was given up. {}",
            job.kind.as_str(),
            match job.kind {
                Stage::Plan => "Start a new run.",
                Stage::Apply => "The last state that it sent is kept; plan again to see what is left to do.",
            }
        );
        return runs::fail(unit, &mut run, reason::AGENT_LOST, message).await;
    }
    let mut row = logs::stage(unit, &job.stage_id).await?;
    let note = format!(
        "agent {agent} has not been heard of for {silence} s; planning again (attempt {} of {}).",
        run.plan_attempts + 1,
        unit.app.policy.plan_attempts
    );
    logs::append_note(unit, &mut row, &note).await?;
    row.status = StageStatus::Queued;
    store::runs::update_stage(unit, &row).await?;
    runs::requeue_plan(unit, &mut run).await?;
    let now = unit.now;
    // The epoch goes on counting: the lost agent can never write again.
    let queued = Job { claimed: false, queued_at: now, ..job.clone() };
    store::jobs::insert(unit, &queued).await?;
    unit.changed(&job.pool_id);
    unit.wake(Topic::Queue(job.pool_id.clone()));
    Ok(())
}

/// After a restart: nobody could send a heartbeat, so every lease gets its full length again.
///
/// # Errors
/// Those of the database.
pub async fn extend_after_restart(app: &AppState) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let lease = lease_until(app, unit.now);
    store::jobs::extend_all(&mut unit, lease).await?;
    unit.commit().await
}

/// The run container of the job has been asked for.
///
/// # Errors
/// [`Error::fenced`]
pub async fn started(app: &AppState, agent: &AgentId, id: &JobId, epoch: i64) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let job = current(&mut unit, agent, id, epoch).await?;
    store::jobs::set_started(&mut unit, &job.id).await?;
    let after = since(unit.now, job.claimed_at.unwrap_or(unit.now));
    unit.commit().await?;
    app.metrics.started(after);
    Ok(())
}
