//! Variables of workspaces. Sensitive values are sealed in the store and never leave by the API.

use sqlx::AnyConnection;

use super::model::{VariableRow, Workspace};
use crate::{
    api::job::Variable,
    ids::VariableId,
    server::{
        app::AppState,
        error::{Error, Result},
        store,
    },
};

/// What a sensitive value is sealed for.
fn owner(id: &VariableId) -> String {
    format!("variables/{id}")
}

/// The value in the clear.
fn value(app: &AppState, row: &VariableRow) -> Result<String> {
    let plain = if row.sensitive { app.vault.open(&owner(&row.id), &row.value)? } else { row.value.clone() };
    String::from_utf8(plain).map_err(|_| Error::Internal("a stored variable is not UTF-8"))
}

/// What a job of the workspace gets.
///
/// # Errors
/// Those of database and vault.
pub async fn for_job(app: &AppState, connection: &mut AnyConnection, workspace: &Workspace) -> Result<Vec<Variable>> {
    let rows = store::variables::of_workspace(connection, &workspace.id).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Variable {
                value: value(app, &row)?,
                key: row.key,
                category: row.category,
                hcl: row.hcl,
                sensitive: row.sensitive,
            })
        })
        .collect()
}
