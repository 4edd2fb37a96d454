//! The queue: jobs that wait or run. History lies in a table of its own and is never scanned to claim.

use std::collections::HashMap;

use sqlx::{AnyConnection, AssertSqlSafe, Row, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    api::job::Stage,
    ids::{AgentId, JobId, PoolId, RunId},
    server::domain::model::Job,
};

/// A row of the history: what became of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub job_id: JobId,
    pub epoch: i64,
    pub run_id: RunId,
    pub stage_id: String,
    pub agent_id: Option<AgentId>,
    /// finished, errored, canceled, lost, abandoned
    pub outcome: &'static str,
    /// The agent's result as JSON, for `finished`, `errored` and `canceled`.
    pub result: Option<String>,
    pub claimed_at: Option<i64>,
    pub ended_at: i64,
}

fn job(row: &AnyRow) -> Result<Job> {
    Ok(Job {
        id: row.id("id")?,
        run_id: row.id("run_id")?,
        stage_id: row.text("stage_id")?,
        kind: row.word("kind", super::rows::stage)?,
        pool_id: row.id("pool_id")?,
        claimed: row.text("state")? == "claimed",
        priority: row.int("priority")?,
        sequence: row.int("sequence")?,
        epoch: row.int("epoch")?,
        agent_id: row.opt_id("agent_id")?,
        claim_id: row.opt_text("claim_id")?,
        started: row.flag("started")?,
        log_base: row.int("log_base")?,
        lease_until: row.opt_int("lease_until")?,
        queued_at: row.int("queued_at")?,
        claimed_at: row.opt_int("claimed_at")?,
    })
}

/// Puts a job into the queue.
pub async fn insert(connection: &mut AnyConnection, job: &Job) -> Result<()> {
    sqlx::query(
        "INSERT INTO jobs (id, run_id, stage_id, kind, pool_id, state, priority, sequence, epoch, started, log_base, queued_at) \
         VALUES ($1, $2, $3, $4, $5, 'queued', $6, $7, $8, 0, 0, $9)",
    )
    .bind(job.id.as_str())
    .bind(job.run_id.as_str())
    .bind(&job.stage_id)
    .bind(job.kind.as_str())
    .bind(job.pool_id.as_str())
    .bind(job.priority)
    .bind(job.sequence)
    .bind(job.epoch)
    .bind(job.queued_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// What an agent asks for with a claim.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub pool: &'a PoolId,
    pub agent: &'a AgentId,
    pub claim_id: &'a str,
    pub plans: bool,
    pub applies: bool,
    /// Only jobs of workspaces that ask for one of these images; `None` among them: for none.
    pub run_images: Option<&'a [Option<String>]>,
}

/// Gives the first queued job that fits to the agent, with a new epoch.
///
/// Safe by construction: the outer condition is checked again under the row's lock.
pub async fn claim(connection: &mut AnyConnection, wish: &Wish<'_>, now: i64, lease_until: i64) -> Result<Option<Job>> {
    let images = wish.run_images.map(|images| asks_for(images.len(), 8)).unwrap_or_default();
    let text = format!(
        "UPDATE jobs SET state = 'claimed', epoch = epoch + 1, agent_id = $1, claim_id = $2, claimed_at = $3, \
         lease_until = $4, started = 0, log_base = (SELECT log_bytes FROM stages WHERE stages.id = jobs.stage_id) \
         WHERE id = (SELECT id FROM jobs WHERE pool_id = $5 AND state = 'queued' \
         AND ((kind = 'plan' AND $6 = 1) OR (kind = 'apply' AND $7 = 1)){images} ORDER BY priority, sequence LIMIT 1) \
         AND state = 'queued' RETURNING *"
    );
    let mut query = sqlx::query(AssertSqlSafe(text))
        .bind(wish.agent.as_str())
        .bind(wish.claim_id)
        .bind(now)
        .bind(lease_until)
        .bind(wish.pool.as_str())
        .bind(i64::from(wish.plans))
        .bind(i64::from(wish.applies));
    for image in wish.run_images.unwrap_or_default() {
        query = query.bind(image.as_deref().unwrap_or_default());
    }
    query.fetch_optional(connection).await?.as_ref().map(job).transpose()
}

/// The condition that a job's workspace asks for one of `count` images, which are bound from `$first` on; the empty
/// text stands for none.
fn asks_for(count: usize, first: usize) -> String {
    let places: Vec<String> = (first..first + count).map(|place| format!("${place}")).collect();
    if places.is_empty() {
        return " AND 1 = 0".to_owned();
    }
    format!(
        " AND COALESCE((SELECT w.run_image FROM runs r JOIN workspaces w ON w.id = r.workspace_id \
         WHERE r.id = jobs.run_id), '') IN ({})",
        places.join(", ")
    )
}

/// Queued jobs whose workspaces ask for the same image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// `None`: they ask for none.
    pub run_image: Option<String>,
    pub count: i64,
    /// When the first of them was queued.
    pub oldest: i64,
}

/// The pool's queued jobs by the image that their workspaces ask for.
pub async fn waiting(connection: &mut AnyConnection, pool: &PoolId) -> Result<Vec<Waiting>> {
    let rows = sqlx::query(
        "SELECT w.run_image AS run_image, COUNT(*) AS n, MIN(j.queued_at) AS oldest FROM jobs j \
         JOIN runs r ON r.id = j.run_id JOIN workspaces w ON w.id = r.workspace_id \
         WHERE j.pool_id = $1 AND j.state = 'queued' GROUP BY w.run_image",
    )
    .bind(pool.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting { run_image: row.opt_text("run_image")?, count: row.int("n")?, oldest: row.int("oldest")? })
        })
        .collect()
}

/// The pool's queued jobs whose workspaces ask for one of these images, `None` for none; in the queue's order.
pub async fn queued_with(
    connection: &mut AnyConnection,
    pool: &PoolId,
    run_images: &[Option<String>],
) -> Result<Vec<JobId>> {
    let text = format!(
        "SELECT id FROM jobs WHERE pool_id = $1 AND state = 'queued'{} ORDER BY priority, sequence",
        asks_for(run_images.len(), 2)
    );
    let mut query = sqlx::query(AssertSqlSafe(text)).bind(pool.as_str());
    for image in run_images {
        query = query.bind(image.as_deref().unwrap_or_default());
    }
    query.fetch_all(connection).await?.iter().map(|row| row.id("id")).collect()
}

/// How many jobs the pool's agents have; those without are left out.
pub async fn held(connection: &mut AnyConnection, pool: &PoolId) -> Result<HashMap<AgentId, i64>> {
    let rows = sqlx::query(
        "SELECT agent_id, COUNT(*) AS n FROM jobs WHERE pool_id = $1 AND state = 'claimed' AND agent_id IS NOT NULL \
         GROUP BY agent_id",
    )
    .bind(pool.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.id("agent_id")?, row.int("n")?))).collect()
}

/// Whether the pool has a queued job: a cheap look before a claim opens a write transaction.
pub async fn any_queued(connection: &mut AnyConnection, pool: &PoolId) -> Result<bool> {
    let row = sqlx::query("SELECT 1 AS found FROM jobs WHERE pool_id = $1 AND state = 'queued' LIMIT 1")
        .bind(pool.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.is_some())
}

pub async fn by_claim(connection: &mut AnyConnection, agent: &AgentId, claim_id: &str) -> Result<Option<Job>> {
    let row = sqlx::query("SELECT * FROM jobs WHERE agent_id = $1 AND claim_id = $2 AND state = 'claimed'")
        .bind(agent.as_str())
        .bind(claim_id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(job).transpose()
}

pub async fn get(connection: &mut AnyConnection, id: &JobId) -> Result<Option<Job>> {
    let row = sqlx::query("SELECT * FROM jobs WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(job).transpose()
}

pub async fn of_run(connection: &mut AnyConnection, run: &RunId) -> Result<Vec<Job>> {
    let rows = sqlx::query("SELECT * FROM jobs WHERE run_id = $1").bind(run.as_str()).fetch_all(connection).await?;
    rows.iter().map(job).collect()
}

/// Jobs that an agent holds.
pub async fn of_agent(connection: &mut AnyConnection, agent: &AgentId) -> Result<Vec<Job>> {
    let rows = sqlx::query("SELECT * FROM jobs WHERE agent_id = $1 AND state = 'claimed' ORDER BY claimed_at")
        .bind(agent.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(job).collect()
}

/// Jobs whose lease is over.
pub async fn expired(connection: &mut AnyConnection, now: i64) -> Result<Vec<Job>> {
    let rows = sqlx::query("SELECT * FROM jobs WHERE state = 'claimed' AND lease_until <= $1 ORDER BY lease_until")
        .bind(now)
        .fetch_all(connection)
        .await?;
    rows.iter().map(job).collect()
}

/// Extends the lease of a job that the agent holds with this epoch; says whether it does.
pub async fn renew(
    connection: &mut AnyConnection,
    id: &JobId,
    epoch: i64,
    agent: &AgentId,
    lease_until: i64,
) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE jobs SET lease_until = $4 WHERE id = $1 AND epoch = $2 AND agent_id = $3 AND state = 'claimed'",
    )
    .bind(id.as_str())
    .bind(epoch)
    .bind(agent.as_str())
    .bind(lease_until)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn set_started(connection: &mut AnyConnection, id: &JobId) -> Result<()> {
    sqlx::query("UPDATE jobs SET started = 1 WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

/// Gives every claimed job at least until `lease_until`: after a restart, when no heartbeat could arrive.
pub async fn extend_all(connection: &mut AnyConnection, lease_until: i64) -> Result<u64> {
    let done = sqlx::query("UPDATE jobs SET lease_until = $1 WHERE state = 'claimed' AND lease_until < $1")
        .bind(lease_until)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Ends the leases of an agent's jobs now.
pub async fn end_leases(connection: &mut AnyConnection, agent: &AgentId, now: i64) -> Result<u64> {
    let done = sqlx::query("UPDATE jobs SET lease_until = $2 WHERE agent_id = $1 AND state = 'claimed'")
        .bind(agent.as_str())
        .bind(now)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Takes a job out of the queue for good.
pub async fn delete(connection: &mut AnyConnection, id: &JobId) -> Result<()> {
    sqlx::query("DELETE FROM jobs WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

pub async fn insert_ended(connection: &mut AnyConnection, ended: &Ended) -> Result<()> {
    sqlx::query(
        "INSERT INTO job_history (job_id, epoch, run_id, stage_id, agent_id, outcome, result, claimed_at, ended_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(ended.job_id.as_str())
    .bind(ended.epoch)
    .bind(ended.run_id.as_str())
    .bind(&ended.stage_id)
    .bind(ended.agent_id.as_ref().map(AgentId::as_str))
    .bind(ended.outcome)
    .bind(ended.result.as_deref())
    .bind(ended.claimed_at)
    .bind(ended.ended_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// The result that an agent reported for (job, epoch), when it ended that way.
pub async fn ended_result(
    connection: &mut AnyConnection,
    id: &JobId,
    epoch: i64,
    agent: &AgentId,
) -> Result<Option<String>> {
    let row = sqlx::query("SELECT result FROM job_history WHERE job_id = $1 AND epoch = $2 AND agent_id = $3")
        .bind(id.as_str())
        .bind(epoch)
        .bind(agent.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|row| row.try_get("result")).transpose()?.flatten())
}

/// Queued jobs of a pool, and since when the oldest waits.
pub async fn depth(connection: &mut AnyConnection, pool: &PoolId) -> Result<(i64, Option<i64>)> {
    let row =
        sqlx::query("SELECT COUNT(*) AS n, MIN(queued_at) AS oldest FROM jobs WHERE pool_id = $1 AND state = 'queued'")
            .bind(pool.as_str())
            .fetch_one(connection)
            .await?;
    Ok((row.try_get("n")?, row.try_get("oldest")?))
}

/// What the priority of a job is: apply before plan before speculative plan.
#[must_use]
pub fn priority(stage: Stage, plan_only: bool) -> i64 {
    match (stage, plan_only) {
        (Stage::Apply, _) => 0,
        (Stage::Plan, false) => 1,
        (Stage::Plan, true) => 2,
    }
}
