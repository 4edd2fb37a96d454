//! State versions: who may write one, in which order, and what is read from them. States and their
//! outputs are sealed by the vault before they are stored.

pub mod content;
mod read;
mod snapshot;
mod write;

pub use read::{Form, bytes, current, find, list, output, output_id};
pub use snapshot::{current_for_run, record_run_snapshot};
pub use write::{NewState, create, upload, upload_json};

use md5::{Digest, Md5};
use sqlx::AnyConnection;

use super::{
    access::hex,
    model::{StateOutput, StateStatus, StateVersion},
};
use crate::{
    ids::{StateVersionId, WorkspaceId},
    server::{
        app::AppState,
        error::{Error, Result},
        store,
    },
};
use content::Content;

/// The class in error texts.
pub const CLASS: &str = "State version";

/// MD5 as the TFE API has it: lower-case hexadecimal.
#[must_use]
pub fn md5_hex(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// Where a state's bytes lie; also what they are sealed for.
fn blob_key(workspace: &WorkspaceId, id: &StateVersionId) -> String {
    format!("states/{workspace}/{id}")
}

/// What a state's outputs are sealed for.
fn outputs_owner(id: &StateVersionId) -> String {
    format!("state_versions/{id}/outputs")
}

/// Stores the bytes of a state that becomes finalized; the row is the caller's to write, afterwards.
async fn save(app: &AppState, mut state: StateVersion, content: &Content, bytes: &[u8]) -> Result<StateVersion> {
    let key = blob_key(&state.workspace_id, &state.id);
    app.blobs.put(&key, app.vault.seal(&key, bytes)?).await?;
    let outputs =
        serde_json::to_vec(&content.outputs).map_err(|_| Error::Internal("outputs of a state do not serialise"))?;
    state.status = StateStatus::Finalized;
    state.size_bytes = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    state.blob = Some(key);
    state.outputs = Some(app.vault.seal(&outputs_owner(&state.id), &outputs)?);
    state.resource_count = content.resource_count;
    state.engine_version.clone_from(&content.engine_version);
    if state.lineage.is_empty() {
        state.lineage.clone_from(&content.lineage);
    }
    Ok(state)
}

/// The state's outputs, by name; none while it has no content.
///
/// # Errors
/// When they cannot be opened.
pub fn outputs(app: &AppState, state: &StateVersion) -> Result<Vec<StateOutput>> {
    let Some(sealed) = &state.outputs else { return Ok(Vec::new()) };
    let plain = app.vault.open(&outputs_owner(&state.id), sealed)?;
    serde_json::from_slice(&plain).map_err(|_| Error::Internal("stored outputs of a state cannot be read"))
}

async fn open_blob(app: &AppState, key: &str) -> Result<Vec<u8>> {
    Ok(app.vault.open(key, &app.blobs.get(key).await?)?)
}

/// The bytes of the workspace's current state.
///
/// # Errors
/// Those of database, blob store and vault.
pub async fn current_bytes(
    app: &AppState,
    connection: &mut AnyConnection,
    workspace: &WorkspaceId,
) -> Result<Option<Vec<u8>>> {
    match store::states::current(connection, workspace).await?.and_then(|state| state.blob) {
        Some(key) => open_blob(app, &key).await.map(Some),
        None => Ok(None),
    }
}
