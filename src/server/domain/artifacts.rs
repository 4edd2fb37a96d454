//! What a stage leaves for later stages and readers: the plan bundle, the plan as JSON.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use sha2::{Digest, Sha256};
use sqlx::AnyConnection;

use super::{access::hex, model::Job, unit::Unit};
use crate::{
    api::agent::artifact,
    ids::RunId,
    server::{
        app::AppState,
        blobs,
        error::{Error, Result},
        store::{self, artifacts::Artifact},
    },
};

/// Names that an agent may write.
const NAMES: [&str; 3] = [artifact::PLAN, artifact::PLAN_JSON, artifact::ERRORED_STATE];

/// Stores the artifact `name` of the job's run; the last one wins. `current` checks again, in the transaction
/// that makes it visible, that the job is still the caller's.
///
/// # Errors
/// When the upload breaks off or is too large, and those of `current`.
pub async fn put<S, E>(app: &AppState, job: &Job, name: &str, content: S) -> Result<Stored>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !NAMES.contains(&name) {
        return Err(Error::NoSuch(format!("There is no artifact `{name}`; there are {}.", NAMES.join(", "))));
    }
    let key = format!("artifacts/{}/{name}-{}-{}", job.run_id, job.id, job.epoch);
    let mut digest = Sha256::new();
    let hashed = content.inspect(|chunk| {
        if let Ok(bytes) = chunk {
            digest.update(bytes);
        }
    });
    let limit = app.policy.max_artifact_bytes;
    let size = match app.blobs.put_stream(&key, hashed, limit).await {
        Err(blobs::Error::TooLarge { .. }) => {
            return Err(Error::TooLarge(format!("The artifact `{name}` is larger than {limit} bytes.")));
        }
        other => other?,
    };
    let sha256 = hex(&digest.finalize());
    Ok(Stored { artifact: Artifact { blob: key, sha256, size_bytes: size.cast_signed() }, name: name.to_owned() })
}

/// Bytes that are stored, but that nothing refers to yet.
pub struct Stored {
    artifact: Artifact,
    name: String,
}

impl Stored {
    /// Makes the artifact the run's.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn attach(self, unit: &mut Unit<'_>, job: &Job) -> Result<()> {
        let now = unit.now;
        store::artifacts::upsert(unit, &job.run_id, &self.name, &self.artifact, job.epoch, now).await?;
        Ok(())
    }

    /// Removes bytes that will not be attached.
    pub async fn drop_bytes(&self, app: &AppState) {
        if let Err(error) = app.blobs.delete(&self.artifact.blob).await {
            tracing::warn!(%error, blob = self.artifact.blob, "could not remove an artifact that nobody refers to");
        }
    }
}

/// Whether the run has the artifact.
///
/// # Errors
/// Those of the database.
pub async fn exists(connection: &mut AnyConnection, run: &RunId, name: &str) -> Result<bool> {
    Ok(store::artifacts::get(connection, run, name).await?.is_some())
}

/// The artifact's length and bytes; `None` when the run has none of that name.
///
/// # Errors
/// Those of the database and the blob store.
pub async fn get(
    app: &AppState,
    run: &RunId,
    name: &str,
) -> Result<Option<(u64, BoxStream<'static, Result<Bytes, blobs::Error>>)>> {
    let mut connection = app.store.read().await?;
    match store::artifacts::get(&mut connection, run, name).await? {
        Some(artifact) => Ok(Some(app.blobs.stream(&artifact.blob).await?)),
        None => Ok(None),
    }
}
