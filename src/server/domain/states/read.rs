//! Reading states: versions, outputs, bytes.

use sqlx::AnyConnection;

use super::{CLASS, open_blob, outputs};
use crate::{
    ids::{AccountId, OutputId, StateVersionId, WorkspaceId},
    jsonapi::Page,
    server::{
        app::AppState,
        domain::{
            model::{StateOutput, StateVersion},
            workspaces,
        },
        error::{Error, Result},
        store,
    },
};

/// The class of outputs in error texts.
const OUTPUT_CLASS: &str = "State version output";

/// The state version `id`, when it is the account's.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn find(connection: &mut AnyConnection, account: &AccountId, id: &StateVersionId) -> Result<StateVersion> {
    let hidden = || Error::not_found(CLASS, id);
    let state = store::states::get(connection, id).await?.ok_or_else(hidden)?;
    let workspace = store::workspaces::placed_by_id(connection, account, &state.workspace_id).await?;
    workspace.map(|_| state).ok_or_else(hidden)
}

/// The workspace's current state.
///
/// # Errors
/// [`Error::NotFound`] for the workspace, [`Error::NoSuch`] when it has no state yet.
pub async fn current(
    connection: &mut AnyConnection,
    account: &AccountId,
    workspace: &WorkspaceId,
) -> Result<StateVersion> {
    let workspace = workspaces::find(connection, account, workspace).await?.workspace;
    let state = store::states::current(connection, &workspace.id).await?;
    state.ok_or_else(|| Error::NoSuch(format!("Workspace {} has no state yet.", workspace.name)))
}

/// A page of a workspace's states, newest first; and how many there are.
///
/// # Errors
/// Those of the database.
pub async fn list(
    connection: &mut AnyConnection,
    workspace: &WorkspaceId,
    page: Page,
) -> Result<(Vec<StateVersion>, i64)> {
    Ok(store::states::of_workspace(connection, workspace, page).await?)
}

/// Which form of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As the engine writes it.
    Raw,
    /// As `show -json` prints it.
    Json,
}

/// The bytes of a state; whoever asks.
///
/// # Errors
/// [`Error::NotFound`] when it is not there or has no content in that form.
pub async fn bytes(app: &AppState, id: &StateVersionId, form: Form) -> Result<Vec<u8>> {
    let hidden = || Error::not_found(CLASS, id);
    let mut connection = app.store.read().await?;
    let state = store::states::get(&mut connection, id).await?.ok_or_else(hidden)?;
    drop(connection);
    let key = match form {
        Form::Raw => state.blob,
        Form::Json => state.json_blob,
    };
    open_blob(app, &key.ok_or_else(hidden)?).await
}

/// Identifier of the output at `index`: the state's own letters, then the index. So an output is found
/// without a table of outputs, whose names would lie open.
#[must_use]
pub fn output_id(state: &StateVersionId, index: usize) -> String {
    let letters = state.as_str().trim_start_matches(StateVersionId::PREFIX).trim_start_matches('-');
    format!("{}-{letters}{index:05}", OutputId::PREFIX)
}

/// The inverse of [`output_id`].
fn locate(id: &OutputId) -> Option<(StateVersionId, usize)> {
    let letters = id.as_str().strip_prefix(OutputId::PREFIX)?.strip_prefix('-')?;
    let (state, index) = letters.split_at_checked(letters.len().checked_sub(5)?)?;
    Some((format!("{}-{state}", StateVersionId::PREFIX).parse().ok()?, index.parse().ok()?))
}

/// One output with its value.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn output(app: &AppState, account: &AccountId, id: &OutputId) -> Result<StateOutput> {
    let hidden = || Error::not_found(OUTPUT_CLASS, id);
    let (state, index) = locate(id).ok_or_else(hidden)?;
    let mut connection = app.store.read().await?;
    let state = find(&mut connection, account, &state).await.map_err(|error| match error {
        Error::NotFound { .. } => hidden(),
        other => other,
    })?;
    outputs(app, &state)?.into_iter().nth(index).ok_or_else(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_id_leads_back_to_its_state() {
        let state = StateVersionId::random();
        let id: OutputId = output_id(&state, 17).parse().unwrap();
        assert_eq!(locate(&id), Some((state, 17)));
        for text in ["wsout-1", "wsout-12345", "wsout-abcde"] {
            assert_eq!(locate(&text.parse().unwrap()), None, "{text}");
        }
    }
}
