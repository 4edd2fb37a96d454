//! The pool that a workspace names itself.

use sqlx::AnyConnection;

use super::{Result, rows::Columns};
use crate::ids::{AccountId, EnvironmentId, JobId, PoolId, RunId, WorkspaceId};

/// What linking needs to know of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linkable {
    pub id: WorkspaceId,
    pub name: String,
    pub environment_id: EnvironmentId,
    pub environment: String,
    pub account_id: AccountId,
    pub pool_id: Option<PoolId>,
}

pub async fn workspace(connection: &mut AnyConnection, id: &WorkspaceId) -> Result<Option<Linkable>> {
    let row = sqlx::query(
        "SELECT w.id AS id, w.name AS name, w.pool_id AS pool_id, e.id AS environment_id, e.name AS environment, \
         e.account_id AS account_id FROM workspaces w JOIN environments e ON e.id = w.environment_id WHERE w.id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(Linkable {
            id: row.id("id")?,
            name: row.text("name")?,
            environment_id: row.id("environment_id")?,
            environment: row.text("environment")?,
            account_id: row.id("account_id")?,
            pool_id: row.opt_id("pool_id")?,
        })
    })
    .transpose()
}

/// Links the workspace to the pool, or to none.
pub async fn set(
    connection: &mut AnyConnection,
    workspace: &WorkspaceId,
    pool: Option<&PoolId>,
    now: i64,
) -> Result<()> {
    sqlx::query("UPDATE workspaces SET pool_id = $1, updated_at = $2 WHERE id = $3")
        .bind(pool.map(PoolId::as_str))
        .bind(now)
        .bind(workspace.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// A job that no agent has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    pub id: JobId,
    pub run: RunId,
    pub workspace: WorkspaceId,
    pub pool: PoolId,
}

/// Jobs that no agent has claimed.
pub async fn queued_jobs(connection: &mut AnyConnection) -> Result<Vec<QueuedJob>> {
    let rows = sqlx::query(
        "SELECT j.id AS id, j.run_id AS run_id, j.pool_id AS pool_id, r.workspace_id AS workspace_id FROM jobs j \
         JOIN runs r ON r.id = j.run_id WHERE j.state = 'queued' ORDER BY j.sequence",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(QueuedJob {
                id: row.id("id")?,
                run: row.id("run_id")?,
                workspace: row.id("workspace_id")?,
                pool: row.id("pool_id")?,
            })
        })
        .collect()
}

/// Puts a queued job and its run into another pool; says whether that changed anything.
pub async fn move_job(connection: &mut AnyConnection, job: &JobId, run: &RunId, pool: &PoolId) -> Result<bool> {
    let done = sqlx::query("UPDATE jobs SET pool_id = $1 WHERE id = $2 AND state = 'queued' AND pool_id <> $1")
        .bind(pool.as_str())
        .bind(job.as_str())
        .execute(&mut *connection)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("UPDATE runs SET pool_id = $1 WHERE id = $2")
        .bind(pool.as_str())
        .bind(run.as_str())
        .execute(connection)
        .await?;
    Ok(true)
}
