//! What a whole organization (environment) is asked: its queue and how busy it is.

use sqlx::AnyConnection;

use super::model::{Environment, Run, User};
use crate::{
    ids::{AccountId, EnvironmentId, UserId},
    server::{error::Result, store},
};

/// Runs that wait, and runs that agents work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub pending: i64,
    pub running: i64,
}

/// All of an account, by name.
///
/// # Errors
/// Those of the database.
pub async fn list(connection: &mut AnyConnection, account: &AccountId) -> Result<Vec<Environment>> {
    Ok(store::environments::of_account(connection, account).await?)
}

/// # Errors
/// Those of the database.
pub async fn capacity(connection: &mut AnyConnection, id: &EnvironmentId) -> Result<Capacity> {
    let (pending, running) = store::runs::capacity(connection, id.as_str()).await?;
    Ok(Capacity { pending, running })
}

/// The runs that wait, first come first, each with its position: how many are before it, those that agents
/// work on included. The first has 0, whatever is running: the CLI says nothing then.
///
/// # Errors
/// Those of the database.
pub async fn queue(connection: &mut AnyConnection, id: &EnvironmentId) -> Result<Vec<(Run, i64)>> {
    let running = capacity(connection, id).await?.running;
    let runs = store::runs::queued_in_environment(connection, id.as_str()).await?;
    let positions = (0..).map(|index| if index == 0 { 0 } else { running + index });
    Ok(runs.into_iter().zip(positions).collect())
}

/// # Errors
/// Those of the database.
pub async fn user(connection: &mut AnyConnection, id: &UserId) -> Result<Option<User>> {
    Ok(store::tokens::user(connection, id).await?)
}
