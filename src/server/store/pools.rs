//! Agent pools, which environments may use them, and which workspaces do.

use std::collections::BTreeMap;

use sqlx::{AnyConnection, any::AnyRow};

use super::{Error, Result, rows::Columns};
use crate::{
    ids::{AccountId, EnvironmentId, PoolId, WorkspaceId},
    server::domain::model::Pool,
};

/// A workspace that is linked to a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    pub id: WorkspaceId,
    pub name: String,
    pub environment_id: EnvironmentId,
    pub environment: String,
}

/// Without its environments: those are rows of their own.
pub(super) fn pool(row: &AnyRow) -> Result<Pool> {
    Ok(Pool {
        id: row.id("id")?,
        account_id: row.id("account_id")?,
        environment_id: row.opt_id("environment_id")?,
        name: row.text("name")?,
        is_shared: row.flag("is_shared")?,
        environments: Vec::new(),
        external_id: row.opt_text("external_id")?,
        run_settings: row.json("run_settings")?,
        created_at: row.int("created_at")?,
    })
}

pub async fn get(connection: &mut AnyConnection, id: &PoolId) -> Result<Option<Pool>> {
    let row =
        sqlx::query("SELECT * FROM pools WHERE id = $1").bind(id.as_str()).fetch_optional(&mut *connection).await?;
    let Some(row) = row else { return Ok(None) };
    let mut found = pool(&row)?;
    found.environments = environments(connection, id).await?;
    Ok(Some(found))
}

async fn environments(connection: &mut AnyConnection, id: &PoolId) -> Result<Vec<EnvironmentId>> {
    let rows = sqlx::query("SELECT environment_id FROM pool_environments WHERE pool_id = $1 ORDER BY environment_id")
        .bind(id.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| row.id("environment_id")).collect()
}

/// Other pools that have the name of this one in its scope, or its external id; without their environments.
pub async fn rivals(connection: &mut AnyConnection, wanted: &Pool) -> Result<Vec<Pool>> {
    let rows = sqlx::query(
        "SELECT * FROM pools WHERE account_id = $1 AND scope_key = $2 AND name = $3 AND id <> $4 \
         UNION SELECT * FROM pools WHERE account_id = $1 AND external_id = $5 AND id <> $4",
    )
    .bind(wanted.account_id.as_str())
    .bind(wanted.environment_id.as_ref().map_or("", EnvironmentId::as_str))
    .bind(&wanted.name)
    .bind(wanted.id.as_str())
    .bind(wanted.external_id.as_deref())
    .fetch_all(connection)
    .await?;
    rows.iter().map(pool).collect()
}

/// All of an account, by name.
pub async fn of_account(connection: &mut AnyConnection, account_id: &AccountId) -> Result<Vec<Pool>> {
    let rows = sqlx::query("SELECT * FROM pools WHERE account_id = $1 ORDER BY name, id")
        .bind(account_id.as_str())
        .fetch_all(&mut *connection)
        .await?;
    let mut access: BTreeMap<String, Vec<EnvironmentId>> = BTreeMap::new();
    let links = sqlx::query(
        "SELECT pe.pool_id, pe.environment_id FROM pool_environments pe JOIN pools p ON p.id = pe.pool_id \
         WHERE p.account_id = $1 ORDER BY pe.environment_id",
    )
    .bind(account_id.as_str())
    .fetch_all(connection)
    .await?;
    for link in &links {
        access.entry(link.text("pool_id")?).or_default().push(link.id("environment_id")?);
    }
    rows.iter()
        .map(|row| {
            let mut found = pool(row)?;
            found.environments = access.remove(found.id.as_str()).unwrap_or_default();
            Ok(found)
        })
        .collect()
}

fn settings(pool: &Pool) -> Result<String> {
    serde_json::to_string(&pool.run_settings)
        .map_err(|error| Error::Unknown { what: "run_settings", value: error.to_string() })
}

pub async fn insert(connection: &mut AnyConnection, pool: &Pool) -> Result<()> {
    sqlx::query(
        "INSERT INTO pools (id, account_id, environment_id, scope_key, name, is_shared, external_id, run_settings, \
         created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(pool.id.as_str())
    .bind(pool.account_id.as_str())
    .bind(pool.environment_id.as_ref().map(EnvironmentId::as_str))
    .bind(pool.environment_id.as_ref().map_or("", EnvironmentId::as_str))
    .bind(&pool.name)
    .bind(i64::from(pool.is_shared))
    .bind(pool.external_id.as_deref())
    .bind(settings(pool)?)
    .bind(pool.created_at)
    .execute(&mut *connection)
    .await?;
    insert_environments(connection, pool).await
}

/// Writes everything that may change: not the scope.
pub async fn update(connection: &mut AnyConnection, pool: &Pool) -> Result<()> {
    sqlx::query("UPDATE pools SET name = $1, is_shared = $2, external_id = $3, run_settings = $4 WHERE id = $5")
        .bind(&pool.name)
        .bind(i64::from(pool.is_shared))
        .bind(pool.external_id.as_deref())
        .bind(settings(pool)?)
        .bind(pool.id.as_str())
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM pool_environments WHERE pool_id = $1")
        .bind(pool.id.as_str())
        .execute(&mut *connection)
        .await?;
    insert_environments(connection, pool).await
}

async fn insert_environments(connection: &mut AnyConnection, pool: &Pool) -> Result<()> {
    for environment in &pool.environments {
        sqlx::query("INSERT INTO pool_environments (pool_id, environment_id) VALUES ($1, $2)")
            .bind(pool.id.as_str())
            .bind(environment.as_str())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Removes it with its tokens and agents.
pub async fn delete(connection: &mut AnyConnection, id: &PoolId) -> Result<()> {
    sqlx::query("DELETE FROM pools WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

/// The workspaces linked to the pool, by environment and name.
pub async fn linked(connection: &mut AnyConnection, id: &PoolId) -> Result<Vec<Linked>> {
    let rows = sqlx::query(
        "SELECT w.id AS id, w.name AS name, e.id AS environment_id, e.name AS environment FROM workspaces w \
         JOIN environments e ON e.id = w.environment_id WHERE w.pool_id = $1 ORDER BY e.name, w.name",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Linked {
                id: row.id("id")?,
                name: row.text("name")?,
                environment_id: row.id("environment_id")?,
                environment: row.text("environment")?,
            })
        })
        .collect()
}

/// How many workspaces are linked to it.
pub async fn count_linked(connection: &mut AnyConnection, id: &PoolId) -> Result<i64> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM workspaces WHERE pool_id = $1")
        .bind(id.as_str())
        .fetch_one(connection)
        .await?;
    row.int("n")
}

/// The environments whose default pool it is.
pub async fn default_of(connection: &mut AnyConnection, id: &PoolId) -> Result<Vec<EnvironmentId>> {
    let rows = sqlx::query("SELECT id FROM environments WHERE default_pool_id = $1 ORDER BY name")
        .bind(id.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| row.id("id")).collect()
}

/// Queued jobs of one pool and priority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    pub pool_id: PoolId,
    pub priority: i64,
    pub count: i64,
    /// When the first of them was queued.
    pub oldest: i64,
}

/// What waits in the queue, by pool and priority.
pub async fn queued(connection: &mut AnyConnection) -> Result<Vec<Queued>> {
    let rows = sqlx::query(
        "SELECT pool_id, priority, COUNT(*) AS n, MIN(queued_at) AS oldest FROM jobs WHERE state = 'queued' \
         GROUP BY pool_id, priority",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Queued {
                pool_id: row.id("pool_id")?,
                priority: row.int("priority")?,
                count: row.int("n")?,
                oldest: row.int("oldest")?,
            })
        })
        .collect()
}

/// Jobs of the pool, waiting or running.
pub async fn count_jobs(connection: &mut AnyConnection, id: &PoolId) -> Result<i64> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM jobs WHERE pool_id = $1")
        .bind(id.as_str())
        .fetch_one(connection)
        .await?;
    row.int("n")
}

/// How many agents have ever registered.
pub async fn registrations(connection: &mut AnyConnection, id: &PoolId) -> Result<i64> {
    let row = sqlx::query("SELECT registrations FROM pools WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(connection)
        .await?;
    row.map_or(Ok(0), |row| row.int("registrations"))
}

/// One more agent has registered.
pub async fn count_registration(connection: &mut AnyConnection, id: &PoolId) -> Result<()> {
    sqlx::query("UPDATE pools SET registrations = registrations + 1 WHERE id = $1")
        .bind(id.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn account_of(connection: &mut AnyConnection, id: &PoolId) -> Result<Option<AccountId>> {
    let row =
        sqlx::query("SELECT account_id FROM pools WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.map(|row| row.id("account_id")).transpose()
}

/// Every pool's id and name, by name.
pub async fn names(connection: &mut AnyConnection) -> Result<Vec<(PoolId, String)>> {
    let rows = sqlx::query("SELECT id, name FROM pools ORDER BY name, id").fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.id("id")?, row.text("name")?))).collect()
}
