//! Configuration versions: uploads of a workspace's configuration.

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{
    ids::{ConfigurationVersionId, RunId},
    server::{
        app::AppState,
        blobs,
        error::{Error, Result},
        store,
    },
};

/// The class in error texts.
const CLASS: &str = "Configuration version";

/// Where a configuration lies.
fn blob_key(id: &ConfigurationVersionId) -> String {
    format!("configurations/{id}")
}

/// Length and bytes (tar.gz) of a configuration.
pub type Content = (u64, BoxStream<'static, Result<Bytes, blobs::Error>>);

/// The configuration that a run uses.
///
/// # Errors
/// [`Error::NotFound`] when the run is not there, and those of database and blob store.
pub async fn content_for_run(app: &AppState, run: &RunId) -> Result<Content> {
    let mut connection = app.store.read().await?;
    let run = store::runs::get(&mut connection, run).await?.ok_or_else(|| Error::not_found("Run", run))?;
    let id = run.configuration_version_id;
    store::configurations::get(&mut connection, &id).await?.ok_or_else(|| Error::not_found(CLASS, &id))?;
    Ok(app.blobs.stream(&blob_key(&id)).await?)
}
