//! Logs of stages: append-only text, offset-idempotent appends, long-polled reads.
//!
//! Readers see one byte STX before the text and, once nothing more can come, one byte ETX after it; the
//! terraform CLI recognises the log's end by it, and offsets count both.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sqlx::AnyConnection;

use super::{
    model::{Job, StageRow},
    unit::Unit,
};
use crate::{
    api::agent::code,
    server::{
        app::AppState,
        error::{Error, Result},
        store,
        wake::Topic,
    },
};

const STX: u8 = 0x02;
const ETX: u8 = 0x03;

/// Longest answer to one read: the terraform CLI throws the rest of a larger one away with its connection.
pub const MAX_READ: usize = 16 * 1024;

/// Longest time that a read waits for bytes.
pub const MAX_WAIT: Duration = Duration::from_secs(10);

/// Appends what the agent of `job` has from `offset` on; says where its log ends now. What is there
/// already is skipped.
///
/// # Errors
/// `log_gap` when `offset` lies beyond the end.
pub async fn append(unit: &mut Unit<'_>, job: &Job, offset: u64, bytes: &[u8]) -> Result<u64> {
    let mut row = stage(unit, &job.stage_id).await?;
    let end = u64::try_from(row.log_bytes - job.log_base).unwrap_or_default();
    let Some(known) = end.checked_sub(offset) else {
        return Err(Error::ConflictCode {
            code: code::LOG_GAP,
            detail: format!("The log ends at byte {end}; an append at {offset} would leave a gap."),
            meta: Some(serde_json::json!({ "end": end })),
        });
    };
    let new = bytes.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
    if new.is_empty() {
        return Ok(end);
    }
    push(unit, &mut row, new).await?;
    Ok(end + new.len() as u64)
}

/// Appends a line of the control plane's own, as when an agent was lost. The caller stores `row`.
pub async fn append_note(unit: &mut Unit<'_>, row: &mut StageRow, note: &str) -> Result<()> {
    push(unit, row, format!("\n\x1b[31mTerrapool: {note}\x1b[0m\n").as_bytes()).await
}

async fn push(unit: &mut Unit<'_>, row: &mut StageRow, bytes: &[u8]) -> Result<()> {
    store::logs::insert(unit, &row.id, row.log_bytes, bytes).await?;
    row.log_bytes += i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    store::runs::update_stage(unit, row).await?;
    unit.wake(Topic::Log(row.id.clone()));
    Ok(())
}

/// # Errors
/// [`Error::NotFound`]
pub async fn stage(connection: &mut AnyConnection, id: &str) -> Result<StageRow> {
    let class = if id.starts_with("apply-") { "Apply" } else { "Plan" };
    store::runs::stage_by_id(connection, id).await?.ok_or_else(|| Error::not_found(class, id))
}

/// Up to `limit` (at most [`MAX_READ`]) bytes of a stage's log from `offset`, marks included. Waits up to
/// `wait` (at most [`MAX_WAIT`]) while there are none; empty when none came.
///
/// # Errors
/// [`Error::NotFound`], and those of the database.
pub async fn read(app: &AppState, stage_id: &str, offset: u64, limit: usize, wait: Duration) -> Result<Bytes> {
    let limit = limit.clamp(1, MAX_READ);
    let look = || async {
        let mut connection = app.store.read().await?;
        let row = stage(&mut connection, stage_id).await?;
        if offset < readable(&row) {
            return slice(app, &mut connection, &row, offset, limit).await.map(Some);
        }
        // At the end of a complete log, and in a server that stops, there is nothing to wait for.
        Ok((row.log_complete || app.closing.is_cancelled()).then(Bytes::new))
    };
    let found = tokio::select! {
        found = app.wakes.wait_for(Topic::Log(stage_id.to_owned()), wait.min(MAX_WAIT), look) => found?,
        () = app.closing.cancelled(), if !wait.is_zero() => None,
    };
    Ok(found.unwrap_or_default())
}

/// Bytes that readers can see, marks included.
fn readable(row: &StageRow) -> u64 {
    let text = u64::try_from(row.log_bytes).unwrap_or_default();
    // A stage that has not begun shows nothing, so that a reader waits for it.
    if row.started_at.is_none() && !row.log_complete && text == 0 {
        return 0;
    }
    1 + text + u64::from(row.log_complete)
}

async fn slice(
    app: &AppState,
    connection: &mut AnyConnection,
    row: &StageRow,
    offset: u64,
    limit: usize,
) -> Result<Bytes> {
    let mut out = BytesMut::with_capacity(limit.min(4096));
    if offset == 0 {
        out.extend_from_slice(&[STX]);
    }
    let text_end = u64::try_from(row.log_bytes).unwrap_or_default();
    let start = offset.saturating_sub(1);
    let length = ((limit - out.len()) as u64).min(text_end.saturating_sub(start));
    if length > 0 {
        out.extend_from_slice(&text(app, connection, row, start, length).await?);
    }
    let next = offset + out.len() as u64;
    if row.log_complete && next == 1 + text_end && out.len() < limit {
        out.extend_from_slice(&[ETX]);
    }
    Ok(out.freeze())
}

/// `length` bytes of a stage's text, which has them.
async fn text(
    app: &AppState,
    connection: &mut AnyConnection,
    row: &StageRow,
    start: u64,
    length: u64,
) -> Result<Vec<u8>> {
    if !row.log_archived {
        let text = store::logs::read(connection, &row.id, start.cast_signed(), length.cast_signed()).await?;
        // Short: the rows were archived after `row` was read. An empty answer would be the end of the log to the CLI.
        if text.len() as u64 == length || !stage(connection, &row.id).await?.log_archived {
            return Ok(text);
        }
    }
    Ok(app.blobs.get_range(&archive_key(&row.id), start, length).await?.into())
}

/// Where the log of a stage that has ended lies.
fn archive_key(stage_id: &str) -> String {
    format!("logs/{stage_id}")
}

/// Moves the text of ended stages from rows into blobs; says how many were moved.
///
/// # Errors
/// Those of the database and the blob store; what was moved stays moved.
pub async fn archive(app: &AppState) -> Result<usize> {
    const BATCH: i64 = 16;
    const PART: i64 = 1 << 20;
    let mut connection = app.store.read().await?;
    let stages = store::logs::to_archive(&mut connection, BATCH).await?;
    for id in &stages {
        let length = stage(&mut connection, id).await?.log_bytes;
        let parts = futures::stream::unfold((0, app.store.clone()), move |(offset, store)| async move {
            if offset >= length {
                return None;
            }
            let part = async {
                let mut connection = store.read().await?;
                store::logs::read(&mut connection, id, offset, PART).await
            };
            match part.await {
                Ok(part) => {
                    let next = offset + i64::try_from(part.len()).unwrap_or(PART).max(1);
                    Some((Ok(Bytes::from(part)), (next, store)))
                }
                Err(error) => Some((Err(error), (length, store))),
            }
        });
        app.blobs.put_stream(&archive_key(id), Box::pin(parts), u64::MAX).await?;
        let mut unit = Unit::begin(app).await?;
        let mut row = stage(&mut unit, id).await?;
        row.log_archived = true;
        store::runs::update_stage(&mut unit, &row).await?;
        store::logs::delete(&mut unit, id).await?;
        unit.commit().await?;
    }
    Ok(stages.len())
}
