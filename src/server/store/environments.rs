//! Environments.

use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    ids::{AccountId, EnvironmentId, PoolId},
    server::domain::model::Environment,
};

pub(super) fn environment(row: &AnyRow) -> Result<Environment> {
    Ok(Environment {
        id: row.id("id")?,
        account_id: row.id("account_id")?,
        name: row.text("name")?,
        default_pool_id: row.opt_id("default_pool_id")?,
        created_at: row.int("created_at")?,
    })
}

pub async fn get(connection: &mut AnyConnection, id: &EnvironmentId) -> Result<Option<Environment>> {
    let row =
        sqlx::query("SELECT * FROM environments WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(environment).transpose()
}

pub async fn by_name(
    connection: &mut AnyConnection,
    account_id: &AccountId,
    name: &str,
) -> Result<Option<Environment>> {
    let row = sqlx::query("SELECT * FROM environments WHERE account_id = $1 AND name = $2")
        .bind(account_id.as_str())
        .bind(name)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(environment).transpose()
}

/// All of an account, by name.
pub async fn of_account(connection: &mut AnyConnection, account_id: &AccountId) -> Result<Vec<Environment>> {
    let rows = sqlx::query("SELECT * FROM environments WHERE account_id = $1 ORDER BY name, id")
        .bind(account_id.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(environment).collect()
}

pub async fn insert(connection: &mut AnyConnection, environment: &Environment) -> Result<()> {
    sqlx::query(
        "INSERT INTO environments (id, account_id, name, default_pool_id, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(environment.id.as_str())
    .bind(environment.account_id.as_str())
    .bind(&environment.name)
    .bind(environment.default_pool_id.as_ref().map(PoolId::as_str))
    .bind(environment.created_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes name and default pool.
pub async fn update(connection: &mut AnyConnection, environment: &Environment) -> Result<()> {
    sqlx::query("UPDATE environments SET name = $1, default_pool_id = $2 WHERE id = $3")
        .bind(&environment.name)
        .bind(environment.default_pool_id.as_ref().map(PoolId::as_str))
        .bind(environment.id.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes it; its access to shared pools goes with it.
pub async fn delete(connection: &mut AnyConnection, id: &EnvironmentId) -> Result<()> {
    sqlx::query("DELETE FROM environments WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

/// How many workspaces it has.
pub async fn count_workspaces(connection: &mut AnyConnection, id: &EnvironmentId) -> Result<i64> {
    let row = sqlx::query("SELECT COUNT(*) FROM workspaces WHERE environment_id = $1")
        .bind(id.as_str())
        .fetch_one(connection)
        .await?;
    Ok(row.try_get(0)?)
}
