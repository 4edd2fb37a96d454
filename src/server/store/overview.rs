//! What the overview pages show: runs with the names around them, and who works on what.

use sqlx::{AnyConnection, any::AnyRow};

use super::{Result, rows::Columns, runs};
use crate::{
    api::job::Stage,
    ids::{AccountId, AgentId, RunId, WorkspaceId},
    server::domain::model::Run,
};

/// A run and the names around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub run: Run,
    pub workspace: String,
    pub environment: String,
    /// Name of the pool that runs it; `None`: it has none yet, or the pool is gone.
    pub pool: Option<String>,
}

fn shown(row: &AnyRow) -> Result<Shown> {
    Ok(Shown {
        run: runs::run(row)?,
        workspace: row.text("workspace_name")?,
        environment: row.text("environment_name")?,
        pool: row.opt_text("pool_name")?,
    })
}

/// The account's newest runs.
pub async fn newest(connection: &mut AnyConnection, account: &AccountId, limit: i64) -> Result<Vec<Shown>> {
    let rows = sqlx::query(
        "SELECT r.*, w.name AS workspace_name, e.name AS environment_name, p.name AS pool_name FROM runs r \
         JOIN workspaces w ON w.id = r.workspace_id JOIN environments e ON e.id = w.environment_id \
         LEFT JOIN pools p ON p.id = r.pool_id WHERE e.account_id = $1 ORDER BY r.sequence DESC LIMIT $2",
    )
    .bind(account.as_str())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(shown).collect()
}

/// The workspace's newest runs.
pub async fn of_workspace(connection: &mut AnyConnection, workspace: &WorkspaceId, limit: i64) -> Result<Vec<Shown>> {
    let rows = sqlx::query(
        "SELECT r.*, w.name AS workspace_name, e.name AS environment_name, p.name AS pool_name FROM runs r \
         JOIN workspaces w ON w.id = r.workspace_id JOIN environments e ON e.id = w.environment_id \
         LEFT JOIN pools p ON p.id = r.pool_id WHERE r.workspace_id = $1 ORDER BY r.sequence DESC LIMIT $2",
    )
    .bind(workspace.as_str())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(shown).collect()
}

/// One run of the account.
pub async fn one(connection: &mut AnyConnection, account: &AccountId, run: &RunId) -> Result<Option<Shown>> {
    let row = sqlx::query(
        "SELECT r.*, w.name AS workspace_name, e.name AS environment_name, p.name AS pool_name FROM runs r \
         JOIN workspaces w ON w.id = r.workspace_id JOIN environments e ON e.id = w.environment_id \
         LEFT JOIN pools p ON p.id = r.pool_id WHERE r.id = $1 AND e.account_id = $2",
    )
    .bind(run.as_str())
    .bind(account.as_str())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(shown).transpose()
}

/// A job that an agent works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    pub agent_id: AgentId,
    pub run_id: RunId,
    pub stage: Stage,
    pub workspace: String,
    pub environment: String,
}

/// What the account's agents work on now.
pub async fn work(connection: &mut AnyConnection, account: &AccountId) -> Result<Vec<Work>> {
    let rows = sqlx::query(
        "SELECT j.agent_id AS agent_id, j.run_id AS run_id, j.kind AS kind, w.name AS workspace, e.name AS environment \
         FROM jobs j JOIN runs r ON r.id = j.run_id JOIN workspaces w ON w.id = r.workspace_id \
         JOIN environments e ON e.id = w.environment_id \
         WHERE j.state = 'claimed' AND j.agent_id IS NOT NULL AND e.account_id = $1 ORDER BY j.claimed_at",
    )
    .bind(account.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Work {
                agent_id: row.id("agent_id")?,
                run_id: row.id("run_id")?,
                stage: row.word("kind", super::rows::stage)?,
                workspace: row.text("workspace")?,
                environment: row.text("environment")?,
            })
        })
        .collect()
}

/// An agent that was given a stage of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub stage_id: String,
    pub agent_id: AgentId,
    pub agent: String,
    /// Of its claim: raised by each, so that of two it is the latter's word that counts.
    pub epoch: i64,
    /// It has the stage now.
    pub holds: bool,
}

/// The agents that worked on the run, those of earlier attempts first.
pub async fn workers(connection: &mut AnyConnection, run: &RunId) -> Result<Vec<Worker>> {
    let rows = sqlx::query(
        "SELECT w.stage_id AS stage_id, w.agent_id AS agent_id, a.name AS name, w.epoch AS epoch, w.holds AS holds FROM \
         (SELECT stage_id, agent_id, epoch, 0 AS holds FROM job_history WHERE run_id = $1 \
         UNION SELECT stage_id, agent_id, epoch, 1 AS holds FROM jobs WHERE run_id = $1 AND state = 'claimed') w \
         JOIN agents a ON a.id = w.agent_id ORDER BY w.epoch",
    )
    .bind(run.as_str())
    .fetch_all(connection)
    .await?;
    let worker = |row: &AnyRow| {
        Ok(Worker {
            stage_id: row.text("stage_id")?,
            agent_id: row.id("agent_id")?,
            agent: row.text("name")?,
            epoch: row.int("epoch")?,
            holds: row.flag("holds")?,
        })
    };
    rows.iter().map(worker).collect()
}
