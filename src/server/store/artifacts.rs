//! What a stage of a run leaves for later: its rows; the bytes are blobs.

use sqlx::{AnyConnection, Row};

use super::Result;
use crate::ids::RunId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    pub blob: String,
    /// Of the content, hex.
    pub sha256: String,
    pub size_bytes: i64,
}

pub async fn upsert(
    connection: &mut AnyConnection,
    run: &RunId,
    name: &str,
    artifact: &Artifact,
    epoch: i64,
    now: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO artifacts (run_id, name, blob, sha256, size_bytes, epoch, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (run_id, name) DO UPDATE SET blob = $3, sha256 = $4, \
         size_bytes = $5, epoch = $6, created_at = $7",
    )
    .bind(run.as_str())
    .bind(name)
    .bind(&artifact.blob)
    .bind(&artifact.sha256)
    .bind(artifact.size_bytes)
    .bind(epoch)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn get(connection: &mut AnyConnection, run: &RunId, name: &str) -> Result<Option<Artifact>> {
    let row = sqlx::query("SELECT blob, sha256, size_bytes FROM artifacts WHERE run_id = $1 AND name = $2")
        .bind(run.as_str())
        .bind(name)
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(Artifact {
            blob: row.try_get("blob")?,
            sha256: row.try_get("sha256")?,
            size_bytes: row.try_get("size_bytes")?,
        })
    })
    .transpose()
}
