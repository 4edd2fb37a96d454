//! Opening the control plane and serving it, until it is asked to stop.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum_server::Handle;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::{
    accept::Speaks,
    app::{App, AppState, Policy},
    blobs::{self, Blobs},
    changes::Changes,
    domain::{queue, setup},
    held::HeldClaims,
    metrics::Metrics,
    router::router,
    sign::Signer,
    store::{self, Store},
    tasks,
    vault::{self, Vault},
    wake::Wakes,
};
use crate::{clock::Clock, shutdown::Shutdown, trace::Tracer};

/// Requests that run when the server stops have this long to end.
const GRACE: Duration = Duration::from_secs(10);

/// A client must have sent its headers by then: idle connections cannot fill the table.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not create the data directory {path}")]
    Data { path: String, source: io::Error },
    #[error("another server uses the data directory {path}: stop it, or give this one another directory (--data)")]
    InUse { path: String },
    #[error("could not listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("could not open the database")]
    Store(#[from] store::Error),
    #[error("could not open the blob store")]
    Blobs(#[from] blobs::Error),
    #[error("could not open the key file")]
    Vault(#[from] vault::Error),
    #[error("could not set up the server")]
    Setup(#[from] super::error::Error),
    #[error("the listener failed")]
    Serve { source: io::Error },
}

/// How a server is opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Database (unless given), blobs and key file lie here.
    pub data: PathBuf,
    /// `sqlite://…`; absent: in the data directory.
    pub database: Option<String>,
    /// Start of addresses in answers; absent: what requests are sent to.
    pub public_url: Option<String>,
    /// Token of the administrator.
    pub admin_token: Option<SecretString>,
    pub policy: Policy,
    /// Where spans of runs go.
    pub trace: Tracer,
}

/// Opens (at the first time: makes) the control plane in `config.data`.
///
/// # Errors
/// When the directory, the database or the key cannot be used, or another server uses them.
pub async fn open(config: Config, clock: Clock) -> Result<App, Error> {
    make_private_dir(&config.data)?;
    let lock = lock(&config.data)?;
    let database = config.database.unwrap_or_else(|| Store::sqlite_url(&config.data.join("terrapool.db")));
    let store = Store::open(&database).await?;
    let vault = Vault::from_file(&config.data.join("secret.key"))?;
    let app = Arc::new(AppState {
        store,
        blobs: Blobs::local(&config.data.join("blobs"))?,
        wakes: Wakes::default(),
        changes: Changes::default(),
        held: HeldClaims::default(),
        signer: Signer::new(vault.signing_key()),
        vault,
        clock,
        policy: config.policy,
        metrics: Metrics::default(),
        trace: config.trace,
        public_url: config.public_url,
        closing: CancellationToken::new(),
        unrecorded_heartbeat: std::sync::atomic::AtomicI64::new(0),
        lock,
    });
    if let Some(token) = &config.admin_token {
        setup::ensure_admin(&app, token).await?;
    }
    queue::extend_after_restart(&app).await?;
    Ok(app)
}

fn make_private_dir(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Data { path: path.display().to_string(), source })
}

/// Keeps a second server out of the directory; the kernel gives the lock back when the process ends, however it ends.
fn lock(data: &Path) -> Result<File, Error> {
    use rustix::fs::{FlockOperation, flock};
    let path = data.join("lock");
    let fail = |source| Error::Data { path: path.display().to_string(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: data.display().to_string() }),
        Err(errno) => Err(fail(errno.into())),
    }
}

/// A bound address, and what is spoken there.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    speaks: Speaks,
}

impl Listener {
    /// Binds `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is taken or not this host's.
    pub fn bind(address: SocketAddr, speaks: Speaks) -> Result<Self, Error> {
        let fail = |source| Error::Listen { address: address.to_string(), source };
        let socket = TcpListener::bind(address).map_err(fail)?;
        socket.set_nonblocking(true).map_err(fail)?;
        let address = socket.local_addr().map_err(fail)?;
        Ok(Self { socket, address, speaks })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves until `shutdown.drain`: then long polls end, and running requests have a short while.
///
/// # Errors
/// When a listener fails.
pub async fn serve(app: App, listeners: Vec<Listener>, shutdown: &Shutdown) -> Result<(), Error> {
    tasks::spawn(&app, shutdown);
    let handle = Handle::new();
    let stopper = {
        let (handle, app, drain) = (handle.clone(), app.clone(), shutdown.drain.clone());
        async move {
            drain.cancelled().await;
            app.closing.cancel();
            handle.graceful_shutdown(Some(GRACE));
        }
    };
    let servers =
        futures::future::try_join_all(listeners.into_iter().map(|listener| one(&app, listener, handle.clone())));
    tokio::pin!(servers);
    let result = tokio::select! {
        result = &mut servers => result,
        () = stopper => servers.await,
    };
    app.closing.cancel();
    shutdown.drain.cancel();
    result.map_err(|source| Error::Serve { source })?;
    app.store.close().await;
    Ok(())
}

async fn one(app: &App, listener: Listener, handle: Handle<SocketAddr>) -> io::Result<()> {
    let service = router(app.clone()).into_make_service_with_connect_info::<SocketAddr>();
    let mut server = axum_server::from_tcp(listener.socket)?.acceptor(listener.speaks).handle(handle);
    server.http_builder().http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    server.serve(service).await
}
