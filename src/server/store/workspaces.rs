//! Workspaces.

use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{
    Result,
    rows::{self, Columns},
};
use crate::{
    ids::{AccountId, EnvironmentId, PoolId, StateVersionId, WorkspaceId},
    jsonapi::Page,
    server::domain::model::{Lock, Workspace},
};

/// A workspace with what its readers want beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub workspace: Workspace,
    /// Name of its environment (organization).
    pub organization: String,
    /// Resources in its current state.
    pub resource_count: i64,
}

/// Kinds of `lock_kind`.
const LOCKED_BY_USER: &str = "user";
const LOCKED_BY_RUN: &str = "run";

fn lock(row: &AnyRow) -> Result<Lock> {
    let kind = row.text("lock_kind")?;
    match kind.as_str() {
        "" => Ok(Lock::Unlocked),
        LOCKED_BY_USER => Ok(Lock::User { id: row.id("lock_holder")?, reason: row.opt_text("lock_reason")? }),
        LOCKED_BY_RUN => Ok(Lock::Run { id: row.id("lock_holder")? }),
        _ => Err(super::Error::Unknown { what: "lock_kind", value: kind }),
    }
}

pub(super) fn workspace(row: &AnyRow) -> Result<Workspace> {
    Ok(Workspace {
        id: row.id("id")?,
        environment_id: row.id("environment_id")?,
        name: row.text("name")?,
        description: row.opt_text("description")?,
        pool_id: row.opt_id("pool_id")?,
        remote: row.text("execution_mode")? == "remote",
        auto_apply: row.flag("auto_apply")?,
        engine: row.word("engine", rows::engine)?,
        engine_version: row.text("engine_version")?,
        working_directory: row.text("working_directory")?,
        run_image: row.opt_text("run_image")?,
        lock: lock(row)?,
        current_run_id: row.opt_id("current_run_id")?,
        current_state_id: row.opt_id("current_state_id")?,
        created_at: row.int("created_at")?,
        updated_at: row.int("updated_at")?,
    })
}

/// Workspaces with what their readers want beside them, before conditions and order.
macro_rules! placed {
    () => {
        "SELECT w.*, e.name AS organization, e.account_id AS account_id, s.resource_count AS resource_count \
         FROM workspaces w JOIN environments e ON e.id = w.environment_id \
         LEFT JOIN state_versions s ON s.id = w.current_state_id "
    };
}

pub(super) const PLACED: &str = placed!();

pub(super) fn placed(row: &AnyRow) -> Result<Placed> {
    Ok(Placed {
        workspace: workspace(row)?,
        organization: row.text("organization")?,
        resource_count: row.opt_int("resource_count")?.unwrap_or_default(),
    })
}

pub async fn get(connection: &mut AnyConnection, id: &WorkspaceId) -> Result<Option<Workspace>> {
    let row =
        sqlx::query("SELECT * FROM workspaces WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(workspace).transpose()
}

/// The workspace `id`, when it is the account's.
pub async fn placed_by_id(
    connection: &mut AnyConnection,
    account: &AccountId,
    id: &WorkspaceId,
) -> Result<Option<Placed>> {
    let row = sqlx::query(concat!(placed!(), "WHERE e.account_id = $1 AND w.id = $2"))
        .bind(account.as_str())
        .bind(id.as_str())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(placed).transpose()
}

/// The workspace of that name in the account's organization of that name.
pub async fn placed_by_name(
    connection: &mut AnyConnection,
    account: &AccountId,
    organization: &str,
    name: &str,
) -> Result<Option<Placed>> {
    let row = sqlx::query(concat!(placed!(), "WHERE e.account_id = $1 AND e.name = $2 AND w.name = $3"))
        .bind(account.as_str())
        .bind(organization)
        .bind(name)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(placed).transpose()
}

/// A page of the environment's workspaces whose names contain `search`, by name; and how many there are.
pub async fn placed_of_environment(
    connection: &mut AnyConnection,
    environment: &EnvironmentId,
    search: &str,
    page: Page,
) -> Result<(Vec<Placed>, i64)> {
    let pattern = contains(search);
    let total =
        sqlx::query("SELECT COUNT(*) AS total FROM workspaces WHERE environment_id = $1 AND name LIKE $2 ESCAPE '!'")
            .bind(environment.as_str())
            .bind(&pattern)
            .fetch_one(&mut *connection)
            .await?
            .try_get("total")?;
    let rows = sqlx::query(concat!(
        placed!(),
        "WHERE w.environment_id = $1 AND w.name LIKE $2 ESCAPE '!' ORDER BY w.name, w.id LIMIT $3 OFFSET $4"
    ))
    .bind(environment.as_str())
    .bind(&pattern)
    .bind(i64::from(page.size))
    .bind(page.offset())
    .fetch_all(connection)
    .await?;
    Ok((rows.iter().map(placed).collect::<Result<_>>()?, total))
}

/// The LIKE pattern for "contains `text`", with `!` as its escape.
fn contains(text: &str) -> String {
    let mut pattern = String::from("%");
    for letter in text.chars() {
        if matches!(letter, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}

/// An unlocked workspace without runs and state.
pub async fn insert(connection: &mut AnyConnection, workspace: &Workspace) -> Result<()> {
    sqlx::query(
        "INSERT INTO workspaces (id, environment_id, name, description, pool_id, execution_mode, auto_apply, engine, \
         engine_version, working_directory, lock_kind, created_at, updated_at, run_image) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, '', $11, $12, $13)",
    )
    .bind(workspace.id.as_str())
    .bind(workspace.environment_id.as_str())
    .bind(&workspace.name)
    .bind(workspace.description.as_deref())
    .bind(workspace.pool_id.as_ref().map(PoolId::as_str))
    .bind(mode(workspace))
    .bind(i64::from(workspace.auto_apply))
    .bind(workspace.engine.as_str())
    .bind(&workspace.engine_version)
    .bind(&workspace.working_directory)
    .bind(workspace.created_at)
    .bind(workspace.updated_at)
    .bind(workspace.run_image.as_deref())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the settings; neither lock, run nor state.
pub async fn update(connection: &mut AnyConnection, workspace: &Workspace) -> Result<()> {
    sqlx::query(
        "UPDATE workspaces SET name = $2, description = $3, pool_id = $4, execution_mode = $5, auto_apply = $6, \
         engine = $7, engine_version = $8, working_directory = $9, updated_at = $10, run_image = $11 WHERE id = $1",
    )
    .bind(workspace.id.as_str())
    .bind(&workspace.name)
    .bind(workspace.description.as_deref())
    .bind(workspace.pool_id.as_ref().map(PoolId::as_str))
    .bind(mode(workspace))
    .bind(i64::from(workspace.auto_apply))
    .bind(workspace.engine.as_str())
    .bind(&workspace.engine_version)
    .bind(&workspace.working_directory)
    .bind(workspace.updated_at)
    .bind(workspace.run_image.as_deref())
    .execute(connection)
    .await?;
    Ok(())
}

fn mode(workspace: &Workspace) -> &'static str {
    if workspace.remote { "remote" } else { "local" }
}

/// Locks or unlocks it.
pub async fn set_lock(connection: &mut AnyConnection, id: &WorkspaceId, lock: &Lock) -> Result<()> {
    let (kind, holder, reason) = match lock {
        Lock::Unlocked => ("", None, None),
        Lock::User { id, reason } => (LOCKED_BY_USER, Some(id.as_str()), reason.as_deref()),
        Lock::Run { id } => (LOCKED_BY_RUN, Some(id.as_str()), None),
    };
    sqlx::query("UPDATE workspaces SET lock_kind = $2, lock_holder = $3, lock_reason = $4 WHERE id = $1")
        .bind(id.as_str())
        .bind(kind)
        .bind(holder)
        .bind(reason)
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn set_current_state(
    connection: &mut AnyConnection,
    id: &WorkspaceId,
    state: &StateVersionId,
    now: i64,
) -> Result<()> {
    sqlx::query("UPDATE workspaces SET current_state_id = $2, updated_at = $3 WHERE id = $1")
        .bind(id.as_str())
        .bind(state.as_str())
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes it with everything below it.
pub async fn delete(connection: &mut AnyConnection, id: &WorkspaceId) -> Result<()> {
    sqlx::query("DELETE FROM workspaces WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}

/// Blobs that only rows of this workspace refer to: states, artifacts.
pub async fn blobs(connection: &mut AnyConnection, id: &WorkspaceId) -> Result<Vec<String>> {
    let rows = sqlx::query(
        "SELECT blob AS name FROM state_versions WHERE workspace_id = $1 AND blob IS NOT NULL \
         UNION ALL SELECT json_blob AS name FROM state_versions WHERE workspace_id = $1 AND json_blob IS NOT NULL \
         UNION ALL SELECT a.blob AS name FROM artifacts a JOIN runs r ON r.id = a.run_id WHERE r.workspace_id = $1",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| row.text("name")).collect()
}

/// How many runs of it have not ended.
pub async fn open_runs(connection: &mut AnyConnection, id: &WorkspaceId) -> Result<i64> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS total FROM runs WHERE workspace_id = $1 AND status NOT IN ('planned_and_finished', \
         'planned_and_saved', 'applied', 'discarded', 'errored', 'canceled', 'force_canceled')",
    )
    .bind(id.as_str())
    .fetch_one(connection)
    .await?;
    Ok(row.try_get("total")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_in_a_search_are_plain_letters() {
        assert_eq!(contains("a_b%c!"), "%a!_b!%c!!%");
        assert_eq!(contains(""), "%%");
    }
}
