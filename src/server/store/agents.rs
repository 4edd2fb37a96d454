//! Agents of the pools.

use std::collections::BTreeMap;

use sqlx::{AnyConnection, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    api::agent::ExecutorKind,
    ids::{AgentId, PoolId},
    server::domain::model::Agent,
};

/// Agents as they are read. One without a token is one whose token was revoked.
macro_rules! select {
    () => {
        "SELECT a.*, (SELECT COUNT(*) FROM tokens t WHERE t.agent_id = a.id) AS tokens FROM agents a "
    };
}

/// The same, before conditions and order.
pub(super) const SELECT: &str = select!();

macro_rules! read {
    ($rest:literal) => {
        sqlx::query(concat!(select!(), $rest))
    };
}

fn executor(text: &str) -> Option<ExecutorKind> {
    [ExecutorKind::Docker, ExecutorKind::Sidecar, ExecutorKind::Process].into_iter().find(|kind| kind.as_str() == text)
}

pub(super) fn agent(row: &AnyRow) -> Result<Agent> {
    Ok(Agent {
        id: row.id("id")?,
        pool_id: row.id("pool_id")?,
        name: row.text("name")?,
        instance: row.text("instance")?,
        version: row.text("version")?,
        os: row.text("os")?,
        platform: row.text("platform")?,
        executor: row.word("executor", executor)?,
        run_as_root: row.flag("run_as_root")?,
        slots: row.int("slots")?,
        labels: row.json::<BTreeMap<String, String>>("labels")?,
        reported_status: row.text("status")?,
        error_message: row.opt_text("error_message")?,
        draining: row.flag("draining")?,
        cordoned: row.flag("cordoned")?,
        revoked: row.int("tokens")? == 0,
        created_at: row.int("created_at")?,
        last_seen_at: row.int("last_seen_at")?,
    })
}

/// Stores a new agent, or what a returning one says of itself.
pub async fn upsert(connection: &mut AnyConnection, agent: &Agent) -> Result<()> {
    sqlx::query(
        "INSERT INTO agents (id, pool_id, name, instance, version, os, platform, executor, run_as_root, slots, labels, \
         status, error_message, draining, cordoned, created_at, last_seen_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 0, 0, $14, $15) \
         ON CONFLICT (id) DO UPDATE SET instance = $4, version = $5, os = $6, platform = $7, executor = $8, \
         run_as_root = $9, slots = $10, labels = $11, status = $12, error_message = $13, draining = 0, last_seen_at = $15",
    )
    .bind(agent.id.as_str())
    .bind(agent.pool_id.as_str())
    .bind(&agent.name)
    .bind(&agent.instance)
    .bind(&agent.version)
    .bind(&agent.os)
    .bind(&agent.platform)
    .bind(agent.executor.as_str())
    .bind(i64::from(agent.run_as_root))
    .bind(agent.slots)
    .bind(serde_json::to_string(&agent.labels).unwrap_or_default())
    .bind(&agent.reported_status)
    .bind(agent.error_message.as_deref())
    .bind(agent.created_at)
    .bind(agent.last_seen_at)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn get(connection: &mut AnyConnection, id: &AgentId) -> Result<Option<Agent>> {
    let row = read!("WHERE a.id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(agent).transpose()
}

pub async fn by_name(connection: &mut AnyConnection, pool: &PoolId, name: &str) -> Result<Option<Agent>> {
    let query = read!("WHERE a.pool_id = $1 AND a.name = $2").bind(pool.as_str()).bind(name);
    let row = query.fetch_optional(connection).await?;
    row.as_ref().map(agent).transpose()
}

/// Agents of a pool, by name.
pub async fn of_pool(connection: &mut AnyConnection, pool: &PoolId) -> Result<Vec<Agent>> {
    let rows = read!("WHERE a.pool_id = $1 ORDER BY a.name").bind(pool.as_str()).fetch_all(connection).await?;
    rows.iter().map(agent).collect()
}

/// Agents of all pools, by name.
pub async fn all(connection: &mut AnyConnection) -> Result<Vec<Agent>> {
    let rows = read!("ORDER BY a.name, a.id").fetch_all(connection).await?;
    rows.iter().map(agent).collect()
}

/// Writes down what a heartbeat says.
pub async fn seen(
    connection: &mut AnyConnection,
    id: &AgentId,
    status: &str,
    error_message: Option<&str>,
    draining: bool,
    now: i64,
) -> Result<()> {
    sqlx::query("UPDATE agents SET status = $2, error_message = $3, draining = $4, last_seen_at = $5 WHERE id = $1")
        .bind(id.as_str())
        .bind(status)
        .bind(error_message)
        .bind(i64::from(draining))
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}

/// The agent takes no new jobs from now on.
pub async fn drain(connection: &mut AnyConnection, id: &AgentId) -> Result<()> {
    sqlx::query("UPDATE agents SET draining = 1 WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

/// Removes an agent and its tokens. Its claimed jobs must be gone before.
pub async fn delete(connection: &mut AnyConnection, id: &AgentId) -> Result<()> {
    sqlx::query("UPDATE jobs SET agent_id = NULL WHERE agent_id = $1 AND state <> 'claimed'")
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM agents WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

/// Makes every other transaction that would lock or cordon this agent wait for this one, on databases with more than
/// one writer at a time.
pub async fn lock(connection: &mut AnyConnection, id: &AgentId) -> Result<()> {
    sqlx::query("UPDATE agents SET cordoned = cordoned WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

/// Writes down whether the agent gets jobs.
pub async fn set_cordoned(connection: &mut AnyConnection, id: &AgentId, cordoned: bool) -> Result<()> {
    sqlx::query("UPDATE agents SET cordoned = $2 WHERE id = $1")
        .bind(id.as_str())
        .bind(i64::from(cordoned))
        .execute(connection)
        .await?;
    Ok(())
}

/// Pools of agents that were last heard of after `after` and not after `up_to`.
pub async fn pools_last_seen(connection: &mut AnyConnection, after: i64, up_to: i64) -> Result<Vec<PoolId>> {
    let rows = sqlx::query("SELECT DISTINCT pool_id FROM agents WHERE last_seen_at > $1 AND last_seen_at <= $2")
        .bind(after)
        .bind(up_to)
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| row.id("pool_id")).collect()
}

/// Agents not heard of since `before` that hold no job, and their pools.
pub async fn unseen_since(connection: &mut AnyConnection, before: i64) -> Result<Vec<(AgentId, PoolId)>> {
    let rows = sqlx::query(
        "SELECT id, pool_id FROM agents WHERE last_seen_at < $1 AND NOT EXISTS \
         (SELECT 1 FROM jobs WHERE jobs.agent_id = agents.id AND jobs.state = 'claimed')",
    )
    .bind(before)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.id("id")?, row.id("pool_id")?))).collect()
}
