//! Variables of workspaces.

use sqlx::{AnyConnection, any::AnyRow};

use super::{Result, rows::Columns};
use crate::{
    api::job::Category,
    ids::{VariableId, WorkspaceId},
    server::domain::model::VariableRow,
};

/// The name of a category, as the TFE API has it.
#[must_use]
pub fn category_name(category: Category) -> &'static str {
    match category {
        Category::Terraform => "terraform",
        Category::Env => "env",
    }
}

/// The category of that name.
#[must_use]
pub fn category(name: &str) -> Option<Category> {
    [Category::Terraform, Category::Env].into_iter().find(|category| category_name(*category) == name)
}

fn variable(row: &AnyRow) -> Result<VariableRow> {
    Ok(VariableRow {
        id: row.id("id")?,
        workspace_id: row.id("workspace_id")?,
        key: row.text("key")?,
        value: row.bytes("value")?,
        category: row.word("category", category)?,
        hcl: row.flag("hcl")?,
        sensitive: row.flag("sensitive")?,
        description: row.opt_text("description")?,
        updated_at: row.int("updated_at")?,
    })
}

/// All of a workspace, by key.
pub async fn of_workspace(connection: &mut AnyConnection, workspace: &WorkspaceId) -> Result<Vec<VariableRow>> {
    let rows = sqlx::query("SELECT * FROM variables WHERE workspace_id = $1 ORDER BY key, category")
        .bind(workspace.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(variable).collect()
}

pub async fn get(connection: &mut AnyConnection, id: &VariableId) -> Result<Option<VariableRow>> {
    let row = sqlx::query("SELECT * FROM variables WHERE id = $1").bind(id.as_str()).fetch_optional(connection).await?;
    row.as_ref().map(variable).transpose()
}

pub async fn insert(connection: &mut AnyConnection, variable: &VariableRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO variables (id, workspace_id, key, value, category, hcl, sensitive, description, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(variable.id.as_str())
    .bind(variable.workspace_id.as_str())
    .bind(&variable.key)
    .bind(variable.value.as_slice())
    .bind(category_name(variable.category))
    .bind(i64::from(variable.hcl))
    .bind(i64::from(variable.sensitive))
    .bind(variable.description.as_deref())
    .bind(variable.updated_at)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn update(connection: &mut AnyConnection, variable: &VariableRow) -> Result<()> {
    sqlx::query(
        "UPDATE variables SET key = $2, value = $3, category = $4, hcl = $5, sensitive = $6, description = $7, \
         updated_at = $8 WHERE id = $1",
    )
    .bind(variable.id.as_str())
    .bind(&variable.key)
    .bind(variable.value.as_slice())
    .bind(category_name(variable.category))
    .bind(i64::from(variable.hcl))
    .bind(i64::from(variable.sensitive))
    .bind(variable.description.as_deref())
    .bind(variable.updated_at)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn delete(connection: &mut AnyConnection, id: &VariableId) -> Result<()> {
    sqlx::query("DELETE FROM variables WHERE id = $1").bind(id.as_str()).execute(connection).await?;
    Ok(())
}
