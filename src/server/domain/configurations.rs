//! Configuration versions: uploads of a workspace's configuration, checked before anybody uses them.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, stream::BoxStream};
use sqlx::AnyConnection;
use tokio::sync::mpsc;

use super::{
    model::{ConfigurationStatus, ConfigurationVersion},
    runs::{self, NewRun},
    slug::{self, Refused},
    unit::Unit,
    workspaces,
};
use crate::{
    ids::{AccountId, ConfigurationVersionId, RunId, WorkspaceId},
    server::{
        app::AppState,
        blobs,
        error::{Error, Result},
        store,
    },
    telemetry::Chain,
};

/// The class in error texts.
pub const CLASS: &str = "Configuration version";

/// Where a configuration lies.
pub(super) fn blob_key(id: &ConfigurationVersionId) -> String {
    format!("configurations/{id}")
}

/// Length and bytes (tar.gz) of a configuration.
pub type Content = (u64, BoxStream<'static, Result<Bytes, blobs::Error>>);

/// What a client says of a configuration before it uploads it.
#[derive(Debug, Clone)]
pub struct NewConfiguration {
    pub source: String,
    pub speculative: bool,
    pub provisional: bool,
    pub auto_queue_runs: bool,
}

/// Makes room for an upload.
///
/// # Errors
/// [`Error::NotFound`] for the workspace.
pub async fn create(
    app: &AppState,
    account: &AccountId,
    workspace: &WorkspaceId,
    new: NewConfiguration,
) -> Result<ConfigurationVersion> {
    let mut unit = Unit::begin(app).await?;
    workspaces::find(&mut unit, account, workspace).await?;
    let configuration = ConfigurationVersion {
        id: ConfigurationVersionId::random(),
        workspace_id: workspace.clone(),
        status: ConfigurationStatus::Pending,
        source: new.source,
        speculative: new.speculative,
        provisional: new.provisional,
        auto_queue_runs: new.auto_queue_runs,
        size_bytes: 0,
        error: None,
        error_message: None,
        created_at: unit.now,
    };
    store::configurations::insert(&mut unit, &configuration).await?;
    unit.commit().await?;
    Ok(configuration)
}

/// The configuration version `id`, when it is the account's.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn find(
    connection: &mut AnyConnection,
    account: &AccountId,
    id: &ConfigurationVersionId,
) -> Result<ConfigurationVersion> {
    let hidden = || Error::not_found(CLASS, id);
    let configuration = store::configurations::get(connection, id).await?.ok_or_else(hidden)?;
    let workspace = store::workspaces::placed_by_id(connection, account, &configuration.workspace_id).await?;
    workspace.map(|_| configuration).ok_or_else(hidden)
}

/// Takes the upload of a configuration: stored, checked, and only then `uploaded`. Runs that waited for it
/// may start. `length` is what the client announced.
///
/// # Errors
/// [`Error::Conflict`] when it was uploaded before; [`Error::TooLarge`] and [`Error::Unprocessable`] for what
/// cannot be used: nothing of it is kept then, and the version is `errored`.
pub async fn upload<S, E>(app: &AppState, id: &ConfigurationVersionId, length: Option<u64>, content: S) -> Result<()>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut configuration = {
        let mut connection = app.store.read().await?;
        store::configurations::get(&mut connection, id).await?.ok_or_else(|| Error::not_found(CLASS, id))?
    };
    if configuration.status != ConfigurationStatus::Pending {
        return Err(settled(id));
    }
    // Under a name of its own until it counts: an upload that comes second cannot replace what was checked.
    let incoming = format!("uploads/{id}-{}", RunId::random());
    let failure = match receive(app, &incoming, length, content).await {
        Ok(size) => {
            configuration.size_bytes = i64::try_from(size).unwrap_or(i64::MAX);
            None
        }
        Err(error @ (Error::TooLarge(_) | Error::Unprocessable(_))) => Some(error),
        // The client or the disk failed: the client may try again.
        Err(error) => return Err(error),
    };
    configuration.status = if failure.is_none() { ConfigurationStatus::Uploaded } else { ConfigurationStatus::Errored };
    configuration.error = failure.as_ref().map(|_| "invalid_configuration".to_owned());
    configuration.error_message = failure.as_ref().map(ToString::to_string);
    let mut unit = Unit::begin(app).await?;
    if !store::configurations::settle(&mut unit, &configuration).await? {
        drop(unit);
        app.blobs.delete(&incoming).await?;
        return Err(settled(id));
    }
    if failure.is_none() {
        app.blobs.rename(&incoming, &blob_key(id)).await?;
    }
    runs::configuration_settled(&mut unit, &configuration).await?;
    unit.commit().await?;
    if let Some(error) = failure {
        tracing::info!(configuration = %id, %error, "configuration refused");
        return Err(error);
    }
    if configuration.auto_queue_runs {
        queue_run(app, &configuration).await?;
    }
    Ok(())
}

fn settled(id: &ConfigurationVersionId) -> Error {
    Error::Conflict(format!("{id} has had its upload: create another configuration version."))
}

/// Stores as `key` and checks; says how many bytes there were. Nothing stays when it fails.
async fn receive<S, E>(app: &AppState, key: &str, length: Option<u64>, content: S) -> Result<u64>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limit = app.policy.max_configuration_bytes;
    let too_large = || Error::TooLarge(format!("The configuration is larger than {limit} bytes, packed."));
    if length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let size = match app.blobs.put_stream(key, content, limit).await {
        Ok(size) => size,
        Err(blobs::Error::TooLarge { .. }) => return Err(too_large()),
        Err(error @ blobs::Error::Upload { .. }) => return Err(Error::Malformed(Chain(&error).to_string())),
        Err(error) => return Err(error.into()),
    };
    if let Err(refused) = check(app, key).await? {
        app.blobs.delete(key).await?;
        let text = Chain(&refused).to_string();
        return Err(match refused {
            Refused::TooLarge { .. } | Refused::TooMany => Error::TooLarge(text),
            _ => Error::Unprocessable(text),
        });
    }
    Ok(size)
}

/// Reads the stored archive through the check, on a thread where blocking is fine.
async fn check(app: &AppState, key: &str) -> Result<Result<slug::Summary, Refused>> {
    let (_, mut content) = app.blobs.stream(key).await?;
    let (sender, receiver) = mpsc::channel(4);
    let max_unpacked = app.policy.max_unpacked_bytes;
    let check =
        tokio::task::spawn_blocking(move || slug::check(Chunks { receiver, current: Bytes::new() }, max_unpacked));
    while let Some(chunk) = content.next().await {
        // The check has made up its mind when it does not listen any more.
        if sender.send(chunk?).await.is_err() {
            break;
        }
    }
    drop(sender);
    check.await.map_err(|_| Error::Internal("the check of a configuration panicked"))
}

/// Chunks that arrive by a channel, as a blocking reader.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..length]);
        Ok(length)
    }
}

/// The run that a client wanted as soon as its upload is there.
async fn queue_run(app: &AppState, configuration: &ConfigurationVersion) -> Result<()> {
    runs::create(
        app,
        NewRun {
            workspace_id: configuration.workspace_id.clone(),
            configuration_version_id: Some(configuration.id.clone()),
            message: "Queued by an upload".to_owned(),
            source: configuration.source.clone(),
            options: Default::default(),
            plan_only: None,
            engine_version: None,
            created_by: None,
        },
    )
    .await?;
    Ok(())
}

/// The bytes of an uploaded configuration.
///
/// # Errors
/// [`Error::NotFound`] when there are none.
pub async fn content(app: &AppState, configuration: &ConfigurationVersion) -> Result<Content> {
    if configuration.status != ConfigurationStatus::Uploaded {
        return Err(Error::NoSuch(format!("{} has no content.", configuration.id)));
    }
    Ok(app.blobs.stream(&blob_key(&configuration.id)).await?)
}

/// The configuration that a run uses.
///
/// # Errors
/// [`Error::NotFound`] when the run is not there, and those of database and blob store.
pub async fn content_for_run(app: &AppState, run: &RunId) -> Result<Content> {
    let mut connection = app.store.read().await?;
    let run = store::runs::get(&mut connection, run).await?.ok_or_else(|| Error::not_found("Run", run))?;
    let id = run.configuration_version_id;
    let configuration = store::configurations::get(&mut connection, &id).await?;
    content(app, &configuration.ok_or_else(|| Error::not_found(CLASS, &id))?).await
}
