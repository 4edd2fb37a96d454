//! Environments (organizations in the TFE API).

use sqlx::AnyConnection;

use super::model::Environment;
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

fn name_taken(name: &str) -> Error {
    Error::attribute("name", format!("Name has already been taken: the account has an environment `{name}`."))
}

/// The name is part of addresses and of users' `cloud` blocks.
pub(super) fn check_name(name: &str) -> Result<()> {
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
