//! Configuration versions.

use sqlx::{AnyConnection, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    ids::{ConfigurationVersionId, WorkspaceId},
    server::domain::model::{ConfigurationStatus, ConfigurationVersion},
};

fn configuration(row: &AnyRow) -> Result<ConfigurationVersion> {
    Ok(ConfigurationVersion {
        id: row.id("id")?,
        workspace_id: row.id("workspace_id")?,
        status: row.word("status", ConfigurationStatus::parse)?,
        source: row.text("source")?,
        speculative: row.flag("speculative")?,
        provisional: row.flag("provisional")?,
        auto_queue_runs: row.flag("auto_queue_runs")?,
        size_bytes: row.int("size_bytes")?,
        error: row.opt_text("error")?,
        error_message: row.opt_text("error_message")?,
        created_at: row.int("created_at")?,
    })
}

pub async fn insert(connection: &mut AnyConnection, configuration: &ConfigurationVersion) -> Result<()> {
    sqlx::query(
        "INSERT INTO configuration_versions (id, workspace_id, status, source, speculative, provisional, \
         auto_queue_runs, size_bytes, error, error_message, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(configuration.id.as_str())
    .bind(configuration.workspace_id.as_str())
    .bind(configuration.status.as_str())
    .bind(&configuration.source)
    .bind(i64::from(configuration.speculative))
    .bind(i64::from(configuration.provisional))
    .bind(i64::from(configuration.auto_queue_runs))
    .bind(configuration.size_bytes)
    .bind(configuration.error.as_deref())
    .bind(configuration.error_message.as_deref())
    .bind(configuration.created_at)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn get(connection: &mut AnyConnection, id: &ConfigurationVersionId) -> Result<Option<ConfigurationVersion>> {
    let row = sqlx::query("SELECT * FROM configuration_versions WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(configuration).transpose()
}

/// The newest one that runs of the workspace can use when none is named: uploaded, and for applying.
pub async fn newest_uploaded(
    connection: &mut AnyConnection,
    workspace: &WorkspaceId,
) -> Result<Option<ConfigurationVersion>> {
    let row = sqlx::query(
        "SELECT * FROM configuration_versions WHERE workspace_id = $1 AND status = 'uploaded' AND speculative = 0 \
         AND provisional = 0 ORDER BY created_at DESC, id DESC LIMIT 1",
    )
    .bind(workspace.as_str())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(configuration).transpose()
}

/// Ids of all of a workspace.
pub async fn ids(connection: &mut AnyConnection, workspace: &WorkspaceId) -> Result<Vec<ConfigurationVersionId>> {
    let rows = sqlx::query("SELECT id FROM configuration_versions WHERE workspace_id = $1")
        .bind(workspace.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| row.id("id")).collect()
}

/// Writes status, size and error of one that is still pending; says whether it was.
pub async fn settle(connection: &mut AnyConnection, configuration: &ConfigurationVersion) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE configuration_versions SET status = $2, size_bytes = $3, error = $4, error_message = $5 \
         WHERE id = $1 AND status = 'pending'",
    )
    .bind(configuration.id.as_str())
    .bind(configuration.status.as_str())
    .bind(configuration.size_bytes)
    .bind(configuration.error.as_deref())
    .bind(configuration.error_message.as_deref())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}
