//! Log text in rows, while a stage runs.

use sqlx::{AnyConnection, Row};

use super::Result;

pub async fn insert(connection: &mut AnyConnection, stage: &str, start: i64, bytes: &[u8]) -> Result<()> {
    sqlx::query("INSERT INTO log_chunks (stage_id, start, bytes) VALUES ($1, $2, $3)")
        .bind(stage)
        .bind(start)
        .bind(bytes)
        .execute(connection)
        .await?;
    Ok(())
}

/// Up to `limit` bytes of the text from `offset`; only what lies in rows.
pub async fn read(connection: &mut AnyConnection, stage: &str, offset: i64, limit: i64) -> Result<Vec<u8>> {
    let rows = sqlx::query(
        "SELECT start, substr(bytes, CAST(CASE WHEN start < $2 THEN $2 - start ELSE 0 END + 1 AS INTEGER), \
         CAST($3 AS INTEGER)) AS part FROM log_chunks WHERE stage_id = $1 AND start < $2 + $3 AND start >= \
         COALESCE((SELECT MAX(start) FROM log_chunks WHERE stage_id = $1 AND start <= $2), 0) ORDER BY start",
    )
    .bind(stage)
    .bind(offset)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let limit = usize::try_from(limit).unwrap_or_default();
    let mut text = Vec::new();
    for row in rows {
        let part: Vec<u8> = row.try_get("part")?;
        text.extend_from_slice(&part);
        if text.len() >= limit {
            break;
        }
    }
    text.truncate(limit);
    Ok(text)
}

pub async fn delete(connection: &mut AnyConnection, stage: &str) -> Result<()> {
    sqlx::query("DELETE FROM log_chunks WHERE stage_id = $1").bind(stage).execute(connection).await?;
    Ok(())
}

/// Stages whose log is complete but still lies in rows.
pub async fn to_archive(connection: &mut AnyConnection, limit: i64) -> Result<Vec<String>> {
    let rows = sqlx::query(
        "SELECT id FROM stages WHERE log_complete = 1 AND log_archived = 0 AND log_bytes > 0 ORDER BY finished_at LIMIT $1",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}
