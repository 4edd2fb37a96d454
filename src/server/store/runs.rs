//! Runs and their stages.

use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    api::{agent::ResourceChanges, job::Stage, run_state::RunState},
    ids::{ConfigurationVersionId, PoolId, RunId, UserId, WorkspaceId},
    server::domain::model::{Cancel, Run, StageRow, StageStatus},
};

pub(super) fn run(row: &AnyRow) -> Result<Run> {
    Ok(Run {
        id: row.id("id")?,
        workspace_id: row.id("workspace_id")?,
        configuration_version_id: row.id("configuration_version_id")?,
        plan_id: row.id("plan_id")?,
        apply_id: row.id("apply_id")?,
        status: row.word("status", RunState::parse)?,
        sequence: row.int("sequence")?,
        message: row.text("message")?,
        source: row.text("source")?,
        options: row.json("options")?,
        plan_only: row.flag("plan_only")?,
        has_changes: row.flag("has_changes")?,
        engine: row.word("engine", super::rows::engine)?,
        engine_version: row.text("engine_version")?,
        pool_id: row.opt_id("pool_id")?,
        waiting_for: row.opt_text("waiting_for")?,
        error_code: row.opt_text("error_code")?,
        error_message: row.opt_text("error_message")?,
        cancel: match row.int("cancel")? {
            0 => Cancel::No,
            1 => Cancel::Asked,
            _ => Cancel::Forced,
        },
        cancel_requested_at: row.opt_int("cancel_requested_at")?,
        plan_attempts: row.int("plan_attempts")?,
        created_by: row.opt_id("created_by")?,
        created_at: row.int("created_at")?,
        timestamps: row.json("timestamps")?,
    })
}

fn stage(row: &AnyRow) -> Result<StageRow> {
    Ok(StageRow {
        id: row.text("id")?,
        run_id: row.id("run_id")?,
        kind: row.word("kind", super::rows::stage)?,
        status: row.word("status", StageStatus::parse)?,
        changes: ResourceChanges {
            additions: row.int("additions")?,
            changes: row.int("changes")?,
            destructions: row.int("destructions")?,
            imports: row.int("imports")?,
        },
        log_bytes: row.int("log_bytes")?,
        log_complete: row.flag("log_complete")?,
        log_archived: row.flag("log_archived")?,
        image_digest: row.opt_text("image_digest")?,
        queued_at: row.opt_int("queued_at")?,
        started_at: row.opt_int("started_at")?,
        finished_at: row.opt_int("finished_at")?,
    })
}

/// The next number in the order of all runs.
pub async fn next_sequence(connection: &mut AnyConnection) -> Result<i64> {
    let row = sqlx::query(
        "UPDATE settings SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE name = 'run_sequence' \
         RETURNING CAST(value AS BIGINT) AS sequence",
    )
    .fetch_one(connection)
    .await?;
    Ok(row.try_get("sequence")?)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    // Maps with text keys and plain structs always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

/// Stores a new run with its two stages.
pub async fn insert(connection: &mut AnyConnection, run: &Run) -> Result<()> {
    sqlx::query(
        "INSERT INTO runs (id, workspace_id, configuration_version_id, plan_id, apply_id, status, sequence, message, \
         source, options, plan_only, has_changes, engine, engine_version, cancel, plan_attempts, created_by, created_at, \
         timestamps) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12, $13, 0, 0, $14, $15, $16)",
    )
    .bind(run.id.as_str())
    .bind(run.workspace_id.as_str())
    .bind(run.configuration_version_id.as_str())
    .bind(run.plan_id.as_str())
    .bind(run.apply_id.as_str())
    .bind(run.status.as_str())
    .bind(run.sequence)
    .bind(&run.message)
    .bind(&run.source)
    .bind(json(&run.options))
    .bind(i64::from(run.plan_only))
    .bind(run.engine.as_str())
    .bind(&run.engine_version)
    .bind(run.created_by.as_ref().map(UserId::as_str))
    .bind(run.created_at)
    .bind(json(&run.timestamps))
    .execute(&mut *connection)
    .await?;
    for (id, kind) in [(run.plan_id.as_str(), Stage::Plan), (run.apply_id.as_str(), Stage::Apply)] {
        sqlx::query(
            "INSERT INTO stages (id, run_id, kind, status, additions, changes, destructions, imports, log_bytes, \
             log_complete, log_archived) VALUES ($1, $2, $3, 'pending', 0, 0, 0, 0, 0, 0, 0)",
        )
        .bind(id)
        .bind(run.id.as_str())
        .bind(kind.as_str())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Writes back what may change in a run's life.
pub async fn update(connection: &mut AnyConnection, run: &Run) -> Result<()> {
    sqlx::query(
        "UPDATE runs SET status = $2, has_changes = $3, pool_id = $4, waiting_for = $5, error_code = $6, \
         error_message = $7, cancel = $8, cancel_requested_at = $9, plan_attempts = $10, timestamps = $11 WHERE id = $1",
    )
    .bind(run.id.as_str())
    .bind(run.status.as_str())
    .bind(i64::from(run.has_changes))
    .bind(run.pool_id.as_ref().map(PoolId::as_str))
    .bind(run.waiting_for.as_deref())
    .bind(run.error_code.as_deref())
    .bind(run.error_message.as_deref())
    .bind(match run.cancel {
        Cancel::No => 0_i64,
        Cancel::Asked => 1,
        Cancel::Forced => 2,
    })
    .bind(run.cancel_requested_at)
    .bind(run.plan_attempts)
    .bind(json(&run.timestamps))
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn get(connection: &mut AnyConnection, id: &RunId) -> Result<Option<Run>> {
    let row = sqlx::query("SELECT * FROM runs WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(run).transpose()
}

/// Runs of a workspace, newest first.
pub async fn of_workspace(
    connection: &mut AnyConnection,
    workspace: &WorkspaceId,
    limit: i64,
    offset: i64,
) -> Result<Vec<Run>> {
    let rows = sqlx::query("SELECT * FROM runs WHERE workspace_id = $1 ORDER BY sequence DESC LIMIT $2 OFFSET $3")
        .bind(workspace.as_str())
        .bind(limit)
        .bind(offset)
        .fetch_all(connection)
        .await?;
    rows.iter().map(run).collect()
}

pub async fn count_of_workspace(connection: &mut AnyConnection, workspace: &WorkspaceId) -> Result<i64> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM runs WHERE workspace_id = $1")
        .bind(workspace.as_str())
        .fetch_one(connection)
        .await?;
    Ok(row.try_get("n")?)
}

/// Newest runs of all workspaces.
pub async fn newest(connection: &mut AnyConnection, limit: i64) -> Result<Vec<Run>> {
    let rows =
        sqlx::query("SELECT * FROM runs ORDER BY sequence DESC LIMIT $1").bind(limit).fetch_all(connection).await?;
    rows.iter().map(run).collect()
}

/// Pending runs of a workspace, oldest first.
pub async fn pending(connection: &mut AnyConnection, workspace: &WorkspaceId) -> Result<Vec<Run>> {
    let rows = sqlx::query("SELECT * FROM runs WHERE workspace_id = $1 AND status = 'pending' ORDER BY sequence")
        .bind(workspace.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(run).collect()
}

/// Workspaces with a run that waits to be queued.
pub async fn workspaces_with_pending(connection: &mut AnyConnection) -> Result<Vec<WorkspaceId>> {
    let rows =
        sqlx::query("SELECT DISTINCT workspace_id FROM runs WHERE status = 'pending'").fetch_all(connection).await?;
    rows.iter().map(|row| row.id("workspace_id")).collect()
}

/// Runs of an environment that are queued for a plan or apply, first come first.
pub async fn queued_in_environment(connection: &mut AnyConnection, environment: &str) -> Result<Vec<Run>> {
    let rows = sqlx::query(
        "SELECT runs.* FROM runs JOIN workspaces ON workspaces.id = runs.workspace_id \
         WHERE runs.status IN ('pending', 'plan_queued', 'apply_queued') AND workspaces.environment_id = $1 \
         ORDER BY runs.sequence",
    )
    .bind(environment)
    .fetch_all(connection)
    .await?;
    rows.iter().map(run).collect()
}

/// How many runs of an environment wait (`pending`) and how many an agent works on (`running`).
pub async fn capacity(connection: &mut AnyConnection, environment: &str) -> Result<(i64, i64)> {
    let row = sqlx::query(
        "SELECT COALESCE(SUM(CASE WHEN runs.status IN ('planning', 'applying') THEN 0 ELSE 1 END), 0) AS pending, \
         COALESCE(SUM(CASE WHEN runs.status IN ('planning', 'applying') THEN 1 ELSE 0 END), 0) AS running \
         FROM runs JOIN workspaces ON workspaces.id = runs.workspace_id \
         WHERE runs.status IN ('pending', 'plan_queued', 'planning', 'apply_queued', 'applying') \
         AND workspaces.environment_id = $1",
    )
    .bind(environment)
    .fetch_one(connection)
    .await?;
    Ok((row.try_get("pending")?, row.try_get("running")?))
}

/// The pending runs that use the configuration version.
pub async fn waiting_for_configuration(
    connection: &mut AnyConnection,
    id: &ConfigurationVersionId,
) -> Result<Vec<Run>> {
    let rows =
        sqlx::query("SELECT * FROM runs WHERE configuration_version_id = $1 AND status = 'pending' ORDER BY sequence")
            .bind(id.as_str())
            .fetch_all(connection)
            .await?;
    rows.iter().map(run).collect()
}

pub async fn stage_by_id(connection: &mut AnyConnection, id: &str) -> Result<Option<StageRow>> {
    let row = sqlx::query("SELECT * FROM stages WHERE id = $1").bind(id).fetch_optional(connection).await?;
    row.as_ref().map(stage).transpose()
}

pub async fn update_stage(connection: &mut AnyConnection, stage: &StageRow) -> Result<()> {
    sqlx::query(
        "UPDATE stages SET status = $2, additions = $3, changes = $4, destructions = $5, imports = $6, log_bytes = $7, \
         log_complete = $8, log_archived = $9, image_digest = $10, queued_at = $11, started_at = $12, finished_at = $13 \
         WHERE id = $1",
    )
    .bind(&stage.id)
    .bind(stage.status.as_str())
    .bind(stage.changes.additions)
    .bind(stage.changes.changes)
    .bind(stage.changes.destructions)
    .bind(stage.changes.imports)
    .bind(stage.log_bytes)
    .bind(i64::from(stage.log_complete))
    .bind(i64::from(stage.log_archived))
    .bind(stage.image_digest.as_deref())
    .bind(stage.queued_at)
    .bind(stage.started_at)
    .bind(stage.finished_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives the workspace to the run; says whether it was free.
pub async fn hold_workspace(connection: &mut AnyConnection, workspace: &WorkspaceId, run: &RunId) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE workspaces SET lock_kind = 'run', lock_holder = $2, lock_reason = NULL, current_run_id = $2 \
         WHERE id = $1 AND (lock_kind = '' OR (lock_kind = 'run' AND lock_holder = $2))",
    )
    .bind(workspace.as_str())
    .bind(run.as_str())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes the workspace from the run, if it holds it.
pub async fn release_workspace(connection: &mut AnyConnection, workspace: &WorkspaceId, run: &RunId) -> Result<()> {
    sqlx::query(
        "UPDATE workspaces SET lock_kind = '', lock_holder = NULL WHERE id = $1 AND lock_kind = 'run' AND lock_holder = $2",
    )
    .bind(workspace.as_str())
    .bind(run.as_str())
    .execute(connection)
    .await?;
    Ok(())
}
