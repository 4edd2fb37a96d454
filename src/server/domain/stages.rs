//! Plans and applies as objects of their own.

use sqlx::AnyConnection;

use super::{
    logs,
    model::{Run, StageRow},
    runs,
};
use crate::{
    ids::AccountId,
    server::error::{Error, Result},
};

/// The plan or apply `id`, whoever asks.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn get(connection: &mut AnyConnection, id: &str) -> Result<StageRow> {
    logs::stage(connection, id).await
}

/// The plan or apply `id` that the account may see, with its run.
///
/// # Errors
/// [`Error::NotFound`] when there is none, or it is another account's.
pub async fn get_visible(connection: &mut AnyConnection, account: &AccountId, id: &str) -> Result<(StageRow, Run)> {
    let stage = get(connection, id).await?;
    let class = if id.starts_with("apply-") { "Apply" } else { "Plan" };
    match runs::get_visible(connection, account, &stage.run_id).await {
        Ok((run, _)) => Ok((stage, run)),
        Err(Error::NotFound { .. }) => Err(Error::not_found(class, id)),
        Err(error) => Err(error),
    }
}
