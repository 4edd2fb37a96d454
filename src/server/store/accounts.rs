//! Accounts.

use sqlx::{AnyConnection, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    ids::{AccountId, PoolId},
    server::domain::model::Account,
};

fn account(row: &AnyRow) -> Result<Account> {
    Ok(Account {
        id: row.id("id")?,
        name: row.text("name")?,
        default_pool_id: row.opt_id("default_pool_id")?,
        created_at: row.int("created_at")?,
    })
}

pub async fn get(connection: &mut AnyConnection, id: &AccountId) -> Result<Option<Account>> {
    let row = sqlx::query("SELECT * FROM accounts WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(account).transpose()
}

pub async fn insert(connection: &mut AnyConnection, account: &Account) -> Result<()> {
    sqlx::query("INSERT INTO accounts (id, name, default_pool_id, created_at) VALUES ($1, $2, $3, $4)")
        .bind(account.id.as_str())
        .bind(&account.name)
        .bind(account.default_pool_id.as_ref().map(PoolId::as_str))
        .bind(account.created_at)
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn set_default_pool(connection: &mut AnyConnection, id: &AccountId, pool: Option<&PoolId>) -> Result<()> {
    sqlx::query("UPDATE accounts SET default_pool_id = $1 WHERE id = $2")
        .bind(pool.map(PoolId::as_str))
        .bind(id.as_str())
        .execute(connection)
        .await?;
    Ok(())
}
