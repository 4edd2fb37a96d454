//! Floors: what this machine's disk and database take when nothing is around them.

use std::{fs::File, io::Write, path::Path};

use sqlx::{AnyConnection, Connection, Executor};

/// A plain SQLite database, as durable as the control plane's.
pub struct Database(AnyConnection);

impl Database {
    pub async fn open(dir: &Path) -> anyhow::Result<Self> {
        sqlx::any::install_default_drivers();
        let mut connection =
            AnyConnection::connect(&format!("sqlite://{}?mode=rwc", dir.join("floor.db").display())).await?;
        connection
            .execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE chunks (bytes BLOB NOT NULL)")
            .await?;
        Ok(Self(connection))
    }

    /// One row in a transaction of its own.
    pub async fn commit(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut transaction = self.0.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO chunks (bytes) VALUES ($1)").bind(bytes).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// Appends each piece to a file and has it on the disk before the next.
pub fn write_file(path: &Path, piece: &[u8], pieces: usize) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..pieces {
        file.write_all(piece)?;
        file.sync_data()?;
    }
    Ok(())
}
