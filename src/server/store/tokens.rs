//! Tokens and their users.

use sqlx::{AnyConnection, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    ids::{AgentId, PoolId, TokenId, UserId},
    server::domain::model::{Token, TokenKind, User},
};

fn token(row: &AnyRow) -> Result<Token> {
    Ok(Token {
        id: row.id("id")?,
        kind: row.word("kind", TokenKind::parse)?,
        user_id: row.opt_id("user_id")?,
        pool_id: row.opt_id("pool_id")?,
        agent_id: row.opt_id("agent_id")?,
        parent_id: row.opt_id("parent_id")?,
        name: row.opt_text("name")?,
        description: row.opt_text("description")?,
        external_id: row.opt_text("external_id")?,
        created_at: row.int("created_at")?,
        expires_at: row.opt_int("expires_at")?,
        last_used_at: row.opt_int("last_used_at")?,
    })
}

/// Stores a token by the hash of its secret.
pub async fn insert(connection: &mut AnyConnection, token: &Token, hash: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO tokens (id, kind, hash, user_id, pool_id, agent_id, parent_id, name, description, external_id, \
         created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(token.id.as_str())
    .bind(token.kind.as_str())
    .bind(hash)
    .bind(token.user_id.as_ref().map(UserId::as_str))
    .bind(token.pool_id.as_ref().map(PoolId::as_str))
    .bind(token.agent_id.as_ref().map(AgentId::as_str))
    .bind(token.parent_id.as_ref().map(TokenId::as_str))
    .bind(token.name.as_deref())
    .bind(token.description.as_deref())
    .bind(token.external_id.as_deref())
    .bind(token.created_at)
    .bind(token.expires_at)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn by_hash(connection: &mut AnyConnection, hash: &str) -> Result<Option<Token>> {
    let row = sqlx::query("SELECT * FROM tokens WHERE hash = $1").bind(hash).fetch_optional(connection).await?;
    row.as_ref().map(token).transpose()
}

pub async fn get(connection: &mut AnyConnection, id: &TokenId) -> Result<Option<Token>> {
    let row = sqlx::query("SELECT * FROM tokens WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(token).transpose()
}

/// The pool tokens of a pool, oldest first; not the tokens of its agents.
pub async fn of_pool(connection: &mut AnyConnection, pool_id: &PoolId) -> Result<Vec<Token>> {
    let rows = sqlx::query("SELECT * FROM tokens WHERE pool_id = $1 AND kind = 'pool' ORDER BY created_at, id")
        .bind(pool_id.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(token).collect()
}

/// A user's own tokens, oldest first.
pub async fn of_user(connection: &mut AnyConnection, user_id: &UserId) -> Result<Vec<Token>> {
    let rows = sqlx::query("SELECT * FROM tokens WHERE user_id = $1 AND kind = 'user' ORDER BY created_at, id")
        .bind(user_id.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(token).collect()
}

/// Writes name and description.
pub async fn rename(connection: &mut AnyConnection, token: &Token) -> Result<()> {
    sqlx::query("UPDATE tokens SET name = $1, description = $2 WHERE id = $3")
        .bind(token.name.as_deref())
        .bind(token.description.as_deref())
        .bind(token.id.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes down that the token was used.
pub async fn touch(connection: &mut AnyConnection, id: &TokenId, now: i64) -> Result<()> {
    sqlx::query("UPDATE tokens SET last_used_at = $1 WHERE id = $2")
        .bind(now)
        .bind(id.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether the token is there.
pub async fn exists(connection: &mut AnyConnection, id: &TokenId) -> Result<bool> {
    let row =
        sqlx::query("SELECT 1 AS found FROM tokens WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    Ok(row.is_some())
}

/// The agents that registered with a pool token.
pub async fn agents_of(connection: &mut AnyConnection, parent: &TokenId) -> Result<Vec<AgentId>> {
    let rows = sqlx::query("SELECT DISTINCT agent_id FROM tokens WHERE parent_id = $1 AND agent_id IS NOT NULL")
        .bind(parent.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| row.id("agent_id")).collect()
}

/// Puts the agents' tokens of one pool token under another one; says how many.
pub async fn move_children(connection: &mut AnyConnection, from: &TokenId, to: &TokenId) -> Result<u64> {
    let done = sqlx::query("UPDATE tokens SET parent_id = $2 WHERE parent_id = $1")
        .bind(from.as_str())
        .bind(to.as_str())
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Ends a token, and with a pool token those of the agents that it registered.
pub async fn delete(connection: &mut AnyConnection, id: &TokenId) -> Result<()> {
    sqlx::query("DELETE FROM tokens WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

pub async fn user(connection: &mut AnyConnection, id: &UserId) -> Result<Option<User>> {
    let row = sqlx::query("SELECT * FROM users WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(user_row).transpose()
}

pub async fn user_by_name(connection: &mut AnyConnection, username: &str) -> Result<Option<User>> {
    let row = sqlx::query("SELECT * FROM users WHERE username = $1").bind(username).fetch_optional(connection).await?;
    row.as_ref().map(user_row).transpose()
}

fn user_row(row: &AnyRow) -> Result<User> {
    Ok(User {
        id: row.id("id")?,
        account_id: row.id("account_id")?,
        username: row.text("username")?,
        email: row.text("email")?,
        is_admin: row.flag("is_admin")?,
        is_service_account: row.flag("is_service_account")?,
    })
}

pub async fn insert_user(connection: &mut AnyConnection, user: &User, now: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO users (id, account_id, username, email, is_admin, is_service_account, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(user.id.as_str())
    .bind(user.account_id.as_str())
    .bind(&user.username)
    .bind(&user.email)
    .bind(i64::from(user.is_admin))
    .bind(i64::from(user.is_service_account))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends an agent's tokens.
pub async fn delete_of_agent(connection: &mut AnyConnection, id: &AgentId) -> Result<()> {
    sqlx::query("DELETE FROM tokens WHERE agent_id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}
