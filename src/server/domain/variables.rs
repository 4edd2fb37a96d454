//! Variables of workspaces. Sensitive values are sealed in the store and never leave by the API.

use sqlx::AnyConnection;

use super::{
    model::{VariableRow, Workspace},
    unit::Unit,
    workspaces,
};
use crate::{
    api::job::{Category, Variable},
    ids::{AccountId, VariableId, WorkspaceId},
    server::{
        app::AppState,
        error::{Error, Result},
        store,
    },
};

/// The class in error texts.
const CLASS: &str = "Variable";

/// Longest value in bytes.
const MAX_VALUE: usize = 256 << 10;

/// What a sensitive value is sealed for.
fn owner(id: &VariableId) -> String {
    format!("variables/{id}")
}

/// What a client sets; absent: as it is, or the default.
#[derive(Clone, Default)]
pub struct Settings {
    pub key: Option<String>,
    pub value: Option<String>,
    pub category: Option<Category>,
    pub hcl: Option<bool>,
    pub sensitive: Option<bool>,
    pub description: Option<Option<String>>,
}

/// A variable as its readers see it.
pub struct Shown {
    pub row: VariableRow,
    /// `None` for a sensitive one.
    pub value: Option<String>,
}

fn shown(app: &AppState, row: VariableRow) -> Result<Shown> {
    let value = if row.sensitive { None } else { Some(value(app, &row)?) };
    Ok(Shown { row, value })
}

/// All variables of a workspace, by key.
///
/// # Errors
/// [`Error::NotFound`] for the workspace.
pub async fn list(app: &AppState, account: &AccountId, workspace: &WorkspaceId) -> Result<Vec<Shown>> {
    let mut connection = app.store.read().await?;
    workspaces::find(&mut connection, account, workspace).await?;
    let rows = store::variables::of_workspace(&mut connection, workspace).await?;
    rows.into_iter().map(|row| shown(app, row)).collect()
}

/// One variable of the workspace.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn get(app: &AppState, account: &AccountId, workspace: &WorkspaceId, id: &VariableId) -> Result<Shown> {
    let mut connection = app.store.read().await?;
    shown(app, find(&mut connection, account, workspace, id).await?)
}

async fn find(
    connection: &mut AnyConnection,
    account: &AccountId,
    workspace: &WorkspaceId,
    id: &VariableId,
) -> Result<VariableRow> {
    workspaces::find(connection, account, workspace).await?;
    let row = store::variables::get(connection, id).await?.filter(|row| row.workspace_id == *workspace);
    row.ok_or_else(|| Error::not_found(CLASS, id))
}

/// Adds a variable to a workspace.
///
/// # Errors
/// 422 for one that cannot be used, or whose key is taken in its category.
pub async fn create(app: &AppState, account: &AccountId, workspace: &WorkspaceId, settings: Settings) -> Result<Shown> {
    let mut unit = Unit::begin(app).await?;
    workspaces::find(&mut unit, account, workspace).await?;
    let category =
        settings.category.ok_or_else(|| Error::attribute("category", "The category must be `terraform` or `env`."))?;
    let mut row = VariableRow {
        id: VariableId::random(),
        workspace_id: workspace.clone(),
        key: String::new(),
        value: Vec::new(),
        category,
        hcl: false,
        sensitive: false,
        description: None,
        updated_at: unit.now,
    };
    change(app, &mut row, settings, String::new())?;
    store::variables::insert(&mut unit, &row).await.map_err(|error| taken(error, &row))?;
    unit.commit().await?;
    shown(app, row)
}

/// Changes a variable.
///
/// # Errors
/// [`Error::NotFound`], and 422 for what cannot be used.
pub async fn update(
    app: &AppState,
    account: &AccountId,
    workspace: &WorkspaceId,
    id: &VariableId,
    settings: Settings,
) -> Result<Shown> {
    let mut unit = Unit::begin(app).await?;
    let mut row = find(&mut unit, account, workspace, id).await?;
    if row.sensitive && settings.sensitive == Some(false) && settings.value.is_none() {
        return Err(Error::attribute(
            "sensitive",
            "A sensitive variable can only be made readable together with a new value.",
        ));
    }
    let old = value(app, &row)?;
    row.updated_at = unit.now;
    change(app, &mut row, settings, old)?;
    store::variables::update(&mut unit, &row).await.map_err(|error| taken(error, &row))?;
    unit.commit().await?;
    shown(app, row)
}

/// Removes a variable.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn delete(app: &AppState, account: &AccountId, workspace: &WorkspaceId, id: &VariableId) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    find(&mut unit, account, workspace, id).await?;
    store::variables::delete(&mut unit, id).await?;
    unit.commit().await
}

/// Applies the settings; `value` is what the variable has now.
fn change(app: &AppState, row: &mut VariableRow, settings: Settings, value: String) -> Result<()> {
    row.key = settings.key.unwrap_or_else(|| std::mem::take(&mut row.key));
    row.category = settings.category.unwrap_or(row.category);
    row.hcl = settings.hcl.unwrap_or(row.hcl);
    row.sensitive = settings.sensitive.unwrap_or(row.sensitive);
    row.description = settings.description.unwrap_or_else(|| row.description.take());
    let value = settings.value.unwrap_or(value);
    check(row, &value)?;
    row.value = if row.sensitive { app.vault.seal(&owner(&row.id), value.as_bytes())? } else { value.into_bytes() };
    Ok(())
}

fn check(row: &VariableRow, value: &str) -> Result<()> {
    let usable = !row.key.is_empty()
        && row.key.len() <= 255
        && row.key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if !usable {
        return Err(Error::attribute(
            "key",
            "The key can only hold letters, digits, `_` and `-`, and cannot be empty.",
        ));
    }
    if row.hcl && row.category == Category::Env {
        return Err(Error::attribute("hcl", "Only variables of the category `terraform` can be HCL."));
    }
    if value.len() > MAX_VALUE || (row.category == Category::Env && value.contains('\0')) {
        return Err(Error::attribute("value", format!("The value is longer than {MAX_VALUE} bytes, or holds a NUL.")));
    }
    Ok(())
}

fn taken(error: store::Error, row: &VariableRow) -> Error {
    if error.is_unique_violation() {
        return Error::attribute(
            "key",
            format!("Key has already been taken: the workspace has a variable `{}`.", row.key),
        );
    }
    error.into()
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
