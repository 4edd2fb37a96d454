//! States that agents write while a run goes on.

use sqlx::AnyConnection;

use super::{content, current_bytes, save};
use crate::{
    ids::{RunId, StateVersionId, WorkspaceId},
    server::{
        app::AppState,
        domain::model::{StateStatus, StateVersion},
        error::{Error, Result},
        store,
    },
};

/// Stores the state that a run's agent has now; the workspace's current one from the commit on. `None` when
/// it is what is stored already. The caller has checked the epoch in the same transaction.
///
/// # Errors
/// [`Error::Unprocessable`] when it is no state, [`Error::Conflict`] when it is older than the current one.
pub async fn record_run_snapshot(
    app: &AppState,
    connection: &mut AnyConnection,
    workspace: &WorkspaceId,
    run: &RunId,
    epoch: i64,
    bytes: &[u8],
) -> Result<Option<StateVersion>> {
    let content = content::read(bytes).map_err(|error| Error::Unprocessable(error.to_string()))?;
    let md5 = super::md5_hex(bytes);
    if let Some(current) = store::states::current(connection, workspace).await? {
        if current.md5 == md5 {
            return Ok(None);
        }
        if current.lineage == content.lineage && content.serial < current.serial {
            return Err(Error::Conflict(format!(
                "The state with serial {} is older than the workspace's, which has serial {}.",
                content.serial, current.serial
            )));
        }
    }
    let state = StateVersion {
        id: StateVersionId::random(),
        workspace_id: workspace.clone(),
        status: StateStatus::Pending,
        serial: content.serial,
        lineage: content.lineage.clone(),
        md5,
        size_bytes: 0,
        blob: None,
        json_blob: None,
        outputs: None,
        resource_count: 0,
        engine_version: String::new(),
        run_id: Some(run.clone()),
        epoch: Some(epoch),
        created_by: None,
        created_at: app.clock.now_ms(),
    };
    let state = save(app, state, &content, bytes).await?;
    store::states::insert(connection, &state).await?;
    store::workspaces::set_current_state(connection, workspace, &state.id, state.created_at).await?;
    Ok(Some(state))
}

/// The current state of the run's workspace.
///
/// # Errors
/// [`Error::NotFound`] when the run is not there, and those of database and blob store.
pub async fn current_for_run(app: &AppState, run: &RunId) -> Result<Option<Vec<u8>>> {
    let mut connection = app.store.read().await?;
    let run = store::runs::get(&mut connection, run).await?.ok_or_else(|| Error::not_found("Run", run))?;
    current_bytes(app, &mut connection, &run.workspace_id).await
}
