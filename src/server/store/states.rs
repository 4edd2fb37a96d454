//! State versions.

use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    ids::{RunId, StateVersionId, UserId, WorkspaceId},
    jsonapi::Page,
    server::domain::model::{StateStatus, StateVersion},
};

fn state(row: &AnyRow) -> Result<StateVersion> {
    Ok(StateVersion {
        id: row.id("id")?,
        workspace_id: row.id("workspace_id")?,
        status: row.word("status", StateStatus::parse)?,
        serial: row.int("serial")?,
        lineage: row.text("lineage")?,
        md5: row.text("md5")?,
        size_bytes: row.int("size_bytes")?,
        blob: row.opt_text("blob")?,
        json_blob: row.opt_text("json_blob")?,
        outputs: row.opt_bytes("outputs")?,
        resource_count: row.int("resource_count")?,
        engine_version: row.text("engine_version")?,
        run_id: row.opt_id("run_id")?,
        epoch: row.opt_int("epoch")?,
        created_by: row.opt_id("created_by")?,
        created_at: row.int("created_at")?,
    })
}

pub async fn insert(connection: &mut AnyConnection, state: &StateVersion) -> Result<()> {
    sqlx::query(
        "INSERT INTO state_versions (id, workspace_id, status, serial, lineage, md5, size_bytes, blob, json_blob, \
         outputs, resource_count, engine_version, run_id, epoch, created_by, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
    )
    .bind(state.id.as_str())
    .bind(state.workspace_id.as_str())
    .bind(state.status.as_str())
    .bind(state.serial)
    .bind(&state.lineage)
    .bind(&state.md5)
    .bind(state.size_bytes)
    .bind(state.blob.as_deref())
    .bind(state.json_blob.as_deref())
    .bind(state.outputs.as_deref())
    .bind(state.resource_count)
    .bind(&state.engine_version)
    .bind(state.run_id.as_ref().map(RunId::as_str))
    .bind(state.epoch)
    .bind(state.created_by.as_ref().map(UserId::as_str))
    .bind(state.created_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes what an upload changes.
pub async fn update(connection: &mut AnyConnection, state: &StateVersion) -> Result<()> {
    sqlx::query(
        "UPDATE state_versions SET status = $2, lineage = $3, size_bytes = $4, blob = $5, json_blob = $6, \
         outputs = $7, resource_count = $8, engine_version = $9 WHERE id = $1",
    )
    .bind(state.id.as_str())
    .bind(state.status.as_str())
    .bind(&state.lineage)
    .bind(state.size_bytes)
    .bind(state.blob.as_deref())
    .bind(state.json_blob.as_deref())
    .bind(state.outputs.as_deref())
    .bind(state.resource_count)
    .bind(&state.engine_version)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn get(connection: &mut AnyConnection, id: &StateVersionId) -> Result<Option<StateVersion>> {
    let row =
        sqlx::query("SELECT * FROM state_versions WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(state).transpose()
}

/// The workspace's current state.
pub async fn current(connection: &mut AnyConnection, workspace: &WorkspaceId) -> Result<Option<StateVersion>> {
    let row =
        sqlx::query("SELECT s.* FROM state_versions s JOIN workspaces w ON w.current_state_id = s.id WHERE w.id = $1")
            .bind(workspace.as_str())
            .fetch_optional(connection)
            .await?;
    row.as_ref().map(state).transpose()
}

/// A page of a workspace's finalized states, newest first; and how many there are.
pub async fn of_workspace(
    connection: &mut AnyConnection,
    workspace: &WorkspaceId,
    page: Page,
) -> Result<(Vec<StateVersion>, i64)> {
    let total =
        sqlx::query("SELECT COUNT(*) AS total FROM state_versions WHERE workspace_id = $1 AND status = 'finalized'")
            .bind(workspace.as_str())
            .fetch_one(&mut *connection)
            .await?
            .try_get("total")?;
    let rows = sqlx::query(
        "SELECT * FROM state_versions WHERE workspace_id = $1 AND status = 'finalized' \
         ORDER BY created_at DESC, serial DESC, id LIMIT $2 OFFSET $3",
    )
    .bind(workspace.as_str())
    .bind(i64::from(page.size))
    .bind(page.offset())
    .fetch_all(connection)
    .await?;
    Ok((rows.iter().map(state).collect::<Result<_>>()?, total))
}
