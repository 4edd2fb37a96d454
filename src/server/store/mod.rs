//! All SQL. One text for SQLite and PostgreSQL through sqlx `Any`; one file per aggregate, each a set of
//! functions over a connection, so that they compose inside one transaction. No rule lives here.
//!
//! Every write goes through [`Store::begin`]: `BEGIN IMMEDIATE` and one writer at a time on SQLite, durable
//! when [`WriteTx::commit`] returns (`synchronous = FULL`).

use std::{path::Path, sync::Arc, time::Duration};

use sqlx::{
    AnyConnection, AnyPool, Connection, Executor, SqlSafeStr,
    any::AnyPoolOptions,
    migrate::{Migration, MigrationType, Migrator},
    pool::PoolConnection,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

pub mod accounts;
pub mod agents;
pub mod around;
pub mod artifacts;
pub mod configurations;
pub mod environments;
pub mod jobs;
pub mod links;
pub mod lists;
pub mod logs;
pub mod overview;
pub mod pools;
pub mod rows;
pub mod runs;
pub mod states;
pub mod tokens;
pub mod variables;
pub mod workspaces;

/// Connections for reading; SQLite's readers never block the writer in WAL mode.
const READERS: u32 = 8;

/// How long a caller waits for a connection before the request fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not open the database {url}")]
    Open { url: String, source: sqlx::Error },
    #[error("could not bring the database's schema up to date")]
    Migrate { source: sqlx::migrate::MigrateError },
    #[error("a database statement failed")]
    Statement {
        #[from]
        source: sqlx::Error,
    },
    #[error("the database holds `{value}` as {what}, which this version does not know")]
    Unknown { what: &'static str, value: String },
}

impl Error {
    /// A row with that unique value exists already.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Statement { source: sqlx::Error::Database(error) } if error.is_unique_violation())
    }

    /// The server is stopping: its database is closed already.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Statement { source: sqlx::Error::PoolClosed })
    }

    /// The database's disk is full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Statement { source: sqlx::Error::Database(error) }
            if error.message().contains("disk is full") || error.message().contains("disk I/O error"))
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    readers: AnyPool,
    writer: AnyPool,
    /// SQLite knows no queue of writers, only busy errors: this is the queue.
    turn: Arc<Mutex<()>>,
    begin: &'static str,
}

impl Store {
    /// Opens `sqlite://path` or `postgres://…` and migrates it.
    ///
    /// # Errors
    /// When the database cannot be reached or migrated.
    pub async fn open(url: &str) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let sqlite = url.starts_with("sqlite:");
        let options = |max| {
            AnyPoolOptions::new().max_connections(max).acquire_timeout(ACQUIRE_TIMEOUT).after_connect(
                move |connection, _| {
                    Box::pin(async move {
                        if sqlite {
                            connection
                                .execute(
                                    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
                                 PRAGMA busy_timeout = 10000; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -4000;",
                                )
                                .await?;
                        }
                        Ok(())
                    })
                },
            )
        };
        let open = |source| Error::Open { url: without_password(url), source };
        let writer = options(if sqlite { 1 } else { READERS }).before_acquire(|connection, _| {
            // A full disk makes SQLite undo a transaction by itself, and the driver believes for ever that it goes on.
            Box::pin(async move { Ok(!connection.is_in_transaction()) })
        });
        let writer = writer.connect(url).await.map_err(open)?;
        migrator().run(&writer).await.map_err(|source| Error::Migrate { source })?;
        let readers = options(READERS).connect(url).await.map_err(open)?;
        let begin = if sqlite { "BEGIN IMMEDIATE" } else { "BEGIN" };
        Ok(Self { readers, writer, turn: Arc::default(), begin })
    }

    /// The address of the embedded database in `path`.
    #[must_use]
    pub fn sqlite_url(path: &Path) -> String {
        format!("sqlite://{}?mode=rwc", path.display())
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// When none comes free in time.
    pub async fn read(&self) -> Result<PoolConnection<sqlx::Any>> {
        Ok(self.readers.acquire().await?)
    }

    /// A transaction for reading: on SQLite all that is read in it is of one moment.
    ///
    /// # Errors
    /// When none comes free in time.
    pub async fn snapshot(&self) -> Result<sqlx::Transaction<'static, sqlx::Any>> {
        Ok(self.readers.begin().await?)
    }

    /// A transaction for writing; undone when dropped.
    ///
    /// # Errors
    /// When the database is not reachable.
    pub async fn begin(&self) -> Result<WriteTx> {
        let turn = if self.begin == "BEGIN" { None } else { Some(self.turn.clone().lock_owned().await) };
        Ok(WriteTx { tx: self.writer.begin_with(self.begin).await?, _turn: turn })
    }

    /// Asks the database for a sign of life.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn ping(&self) -> Result<()> {
        self.readers.acquire().await?.execute("SELECT 1").await?;
        Ok(())
    }

    /// Finishes open statements and closes the files.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// A transaction that writes.
pub struct WriteTx {
    tx: sqlx::Transaction<'static, sqlx::Any>,
    // dropped after `tx`: the next writer starts when this one has ended
    _turn: Option<OwnedMutexGuard<()>>,
}

impl WriteTx {
    /// Makes it durable.
    ///
    /// # Errors
    /// When the database refuses; nothing was written then.
    pub async fn commit(self) -> Result<()> {
        Ok(self.tx.commit().await?)
    }
}

impl std::ops::Deref for WriteTx {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.tx
    }
}

impl std::ops::DerefMut for WriteTx {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.tx
    }
}

fn migrator() -> Migrator {
    let texts = [
        (1, "initial", include_str!("migrations/0001_initial.sql")),
        (2, "demand", include_str!("migrations/0002_demand.sql")),
    ];
    let migration = |(version, name, text): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(texts.into_iter().map(migration).collect())
}

fn without_password(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) if parsed.password().is_some() => match parsed.set_password(Some("…")) {
            Ok(()) => parsed.to_string(),
            Err(()) => parsed.scheme().to_owned(),
        },
        _ => url.to_owned(),
    }
}
