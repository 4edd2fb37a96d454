//! Environments (organizations in the TFE API).

use sqlx::AnyConnection;

use super::{model::Environment, pools, unit::Unit};
use crate::{
    ids::{AccountId, EnvironmentId},
    server::{
        error::{Error, Result},
        store,
    },
};

/// The class in error texts.
pub const CLASS: &str = "Environment";

/// Longest name, in bytes.
const MAX_NAME: usize = 90;

/// The environment, whoever asks.
///
/// # Errors
/// When the database fails.
pub async fn get(connection: &mut AnyConnection, id: &EnvironmentId) -> Result<Option<Environment>> {
    Ok(store::environments::get(connection, id).await?)
}

/// The environment that a caller of `account` names by `id`.
///
/// # Errors
/// [`Error::NotFound`] when there is none, or it belongs to somebody else.
pub async fn find(connection: &mut AnyConnection, account: &AccountId, id: &str) -> Result<Environment> {
    let missing = || Error::not_found(CLASS, id);
    let parsed: EnvironmentId = id.parse().map_err(|_| missing())?;
    get(connection, &parsed).await?.filter(|environment| environment.account_id == *account).ok_or_else(missing)
}

/// The environment of that name in `account`.
///
/// # Errors
/// When the database fails.
pub async fn by_name(connection: &mut AnyConnection, account: &AccountId, name: &str) -> Result<Option<Environment>> {
    Ok(store::environments::by_name(connection, account, name).await?)
}

/// Creates an environment.
///
/// # Errors
/// When the name cannot be used or is taken.
pub async fn create(connection: &mut AnyConnection, account: &AccountId, name: &str, now: i64) -> Result<Environment> {
    check_name(name)?;
    if by_name(connection, account, name).await?.is_some() {
        return Err(name_taken(name));
    }
    let environment = Environment {
        id: EnvironmentId::random(),
        account_id: account.clone(),
        name: name.to_owned(),
        default_pool_id: None,
        created_at: now,
    };
    store::environments::insert(connection, &environment).await?;
    Ok(environment)
}

/// What a client changes; `None` leaves what there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub name: Option<String>,
    /// The id of the new default pool, or `Some(None)` for none.
    pub default_pool: Option<Option<String>>,
}

/// Changes an environment.
///
/// # Errors
/// 422 for a name or pool that cannot be, 404 for an unknown pool.
pub async fn update(
    connection: &mut AnyConnection,
    mut environment: Environment,
    change: Change,
) -> Result<Environment> {
    const RELATION: &str = "default-workspace-agent-pool";
    if let Some(name) = change.name.filter(|name| *name != environment.name) {
        check_name(&name)?;
        if by_name(connection, &environment.account_id, &name).await?.is_some() {
            return Err(name_taken(&name));
        }
        environment.name = name;
    }
    match change.default_pool {
        None => {}
        Some(None) => environment.default_pool_id = None,
        Some(Some(id)) => {
            let unknown = |_| Error::missing_relation(RELATION, pools::CLASS, &id);
            let pool = pools::find(connection, &environment.account_id, &id).await.map_err(unknown)?;
            if !pools::may_serve(&pool, &environment.id) {
                let detail = format!("The agent pool `{}` does not serve this environment.", pool.name);
                return Err(Error::Relationship { name: RELATION, detail, missing: false });
            }
            environment.default_pool_id = Some(pool.id);
        }
    }
    store::environments::update(connection, &environment).await?;
    Ok(environment)
}

/// Deletes an environment, and with it the pools that belong to it alone.
///
/// # Errors
/// 409 while it has workspaces.
pub async fn delete(unit: &mut Unit<'_>, mut environment: Environment) -> Result<()> {
    let workspaces = store::environments::count_workspaces(unit, &environment.id).await?;
    if workspaces > 0 {
        return Err(Error::Conflict(format!(
            "The environment `{}` cannot be deleted: it has {workspaces} workspaces. Delete or move them first.",
            environment.name
        )));
    }
    // its default may be one of the pools that go with it
    environment.default_pool_id = None;
    store::environments::update(unit, &environment).await?;
    for pool in store::pools::of_account(unit, &environment.account_id).await? {
        if pool.environment_id.as_ref() == Some(&environment.id) {
            pools::delete(unit, &pool).await?;
        }
    }
    Ok(store::environments::delete(unit, &environment.id).await?)
}

fn name_taken(name: &str) -> Error {
    Error::attribute("name", format!("Name has already been taken: the account has an environment `{name}`."))
}

/// The name is part of addresses and of users' `cloud` blocks.
fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::attribute("name", "Name cannot be empty."));
    }
    let usable = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !usable || name.starts_with('.') || name.len() > MAX_NAME {
        return Err(Error::attribute(
            "name",
            format!("Name can only hold letters, digits, `-`, `_` and `.`, and at most {MAX_NAME} of them."),
        ));
    }
    Ok(())
}
