//! Released engines: from the cache, else downloaded, by one of all who want the same at a time.

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Error,
    cache::{Cache, Lock},
    download::{self, Fetcher},
    find,
    release::{ExactVersion, Origin, Release},
    verify::{self, Keyring},
};
use crate::{agent::lru::MARGIN, api::job::EngineKind, clock::Clock, http, telemetry::Chain};

/// How long a failed download is not tried again for those who can do without.
const FORGIVEN: Duration = Duration::from_secs(300);

/// What releases are obtained with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cache; may be shared with other agents.
    pub cache_dir: PathBuf,
    /// Bytes that the cache may take.
    pub cache_size: u64,
    /// What is not in the cache may be downloaded.
    pub download: bool,
    pub origin: Origin,
    /// Files of OpenPGP keys that are trusted beside the publishers'.
    pub keys: Vec<PathBuf>,
    /// PEM file of certificates trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest time of one download.
    pub deadline: Duration,
}

impl Settings {
    /// The publishers' releases, kept in `cache_dir`.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            cache_dir,
            cache_size: 10 << 30,
            download: true,
            origin: Origin::default(),
            keys: Vec::new(),
            ca_file: None,
            deadline: Duration::from_secs(600),
        }
    }
}

/// Why releases cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error("could not read the key {path}")]
    ReadKey { path: String, source: io::Error },
    #[error("{path} is no key of engines")]
    Key { path: String, source: verify::Error },
    #[error("a key of this program cannot be used")]
    OwnKey { source: verify::Error },
    #[error("could not set up downloads of engines")]
    Http(#[from] http::Error),
}

/// A place that releases are downloaded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Whose releases: `terraform`, or `terraform and tofu`.
    pub programs: String,
    /// As `https://releases.hashicorp.com`.
    pub address: String,
    /// `Err`: why nothing answers there.
    pub answers: Result<(), String>,
}

/// What began it: all around it says no more than that a request was sent.
fn first_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Released engines.
#[derive(Debug)]
pub struct Releases {
    settings: Settings,
    cache: Cache,
    client: reqwest::Client,
    hashicorp: Keyring,
    opentofu: Keyring,
    clock: Clock,
    /// Releases that could not be had, and when.
    failed: Mutex<HashMap<String, Instant>>,
}

impl Releases {
    /// Reads the keys; nothing is fetched yet.
    ///
    /// # Errors
    /// When a key or the certificates cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SetUpError> {
        let ring = |kind| {
            let mut ring = Keyring::of_publisher(kind).map_err(|source| SetUpError::OwnKey { source })?;
            for file in &settings.keys {
                let path = || file.display().to_string();
                let text = fs::read(file).map_err(|source| SetUpError::ReadKey { path: path(), source })?;
                ring.extend(Keyring::parse(&text).map_err(|source| SetUpError::Key { path: path(), source })?);
            }
            Ok::<_, SetUpError>(ring)
        };
        Ok(Self {
            cache: Cache::new(settings.cache_dir.clone(), settings.cache_size),
            client: http::client(settings.ca_file.as_deref())?,
            hashicorp: ring(EngineKind::Terraform)?,
            opentofu: ring(EngineKind::OpenTofu)?,
            clock: Clock::real(),
            failed: Mutex::default(),
            settings,
        })
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Asks the places that releases are downloaded from whether they answer at all, `limit` long; none: nothing is
    /// downloaded. Whether a place has a release, only its download tells.
    pub(super) async fn sources(&self, limit: Duration) -> Vec<Source> {
        if !self.settings.download {
            return Vec::new();
        }
        let mut places: Vec<(String, String)> = Vec::new();
        for kind in [EngineKind::Terraform, EngineKind::OpenTofu] {
            let Some(address) = self.settings.origin.place(kind) else { continue };
            match places.iter_mut().find(|(known, _)| *known == address) {
                Some((_, programs)) => *programs = format!("{programs} and {}", kind.program()),
                None => places.push((address, kind.program().to_owned())),
            }
        }
        let ask = |(address, programs): (String, String)| async move {
            let asked = self.client.head(&address).timeout(limit).send().await;
            let answers = asked.map(drop).map_err(|error| first_cause(&error.without_url()));
            Source { programs, address, answers }
        };
        futures::future::join_all(places.into_iter().map(ask)).await
    }

    /// The program, kept until a job has ended that may take `lasting`; `None`: it is not in the cache, and nothing is
    /// to be downloaded.
    pub(super) async fn obtain(
        &self,
        kind: EngineKind,
        version: &ExactVersion,
        lasting: Duration,
    ) -> Result<Option<PathBuf>, Error> {
        let release = Release { kind, version: version.clone() };
        let limit = self.settings.deadline;
        let url = download::shown(&self.settings.origin.url(&release, &release.archive())?);
        let slow = |_| Error::Slow { release: release.to_string(), url: url.clone(), limit };
        let lock = tokio::time::timeout(limit, self.cache.lock(&release.name())).await.map_err(slow)?;
        let lock = lock.map_err(|source| self.cache_error(source))?;
        let path = match self.on_disk(&lock, Cache::look_up).await? {
            Some(path) => path,
            None if !self.settings.download => return Ok(None),
            None => tokio::time::timeout(limit, self.download(&release, &lock)).await.map_err(slow)??,
        };
        let (now_ms, lasting) = (self.clock.now_ms(), lasting + MARGIN);
        self.on_disk(&lock, move |cache, lock| cache.reserve(lock, now_ms, lasting)).await?;
        self.on_disk(&lock, move |cache, _| cache.trim(now_ms)).await?;
        Ok(Some(path))
    }

    /// As [`Self::obtain`]; what failed lately fails again at once.
    pub(super) async fn try_obtain(
        &self,
        kind: EngineKind,
        version: &ExactVersion,
        lasting: Duration,
    ) -> Option<PathBuf> {
        let name = Release { kind, version: version.clone() }.name();
        let failed = |at: Option<&Instant>| at.is_some_and(|at| at.elapsed() < FORGIVEN);
        if failed(self.failed.lock().unwrap_or_else(PoisonError::into_inner).get(&name)) {
            return None;
        }
        match self.obtain(kind, version, lasting).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the run image's own engine has to do");
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Instant::now());
                None
            }
        }
    }

    async fn download(&self, release: &Release, lock: &Lock) -> Result<PathBuf, Error> {
        let draft = self.on_disk(lock, Cache::draft).await?;
        let keys = match release.kind {
            EngineKind::Terraform => &self.hashicorp,
            EngineKind::OpenTofu => &self.opentofu,
        };
        let Settings { origin, deadline, .. } = &self.settings;
        let fetcher = Fetcher { client: &self.client, origin, keys, deadline: *deadline * 2 };
        let fetched = fetcher.fetch(release, draft.path()).await?;
        let program = release.kind.program();
        let path = draft.path().join(program);
        make_executable(&path).map_err(|source| self.cache_error(source))?;
        let found = find::ask(&path, release.kind).await;
        if found.as_deref() != Some(&release.version.to_string()) {
            let found = match found {
                Some(found) => format!("{program} {found}"),
                None => format!("a program that does not say which version of {program} it is"),
            };
            let source = Box::new(download::Error::OtherVersion { url: fetched.url, found });
            return Err(Error::Download { release: release.to_string(), source });
        }
        let path = self.on_disk(lock, move |cache, _| cache.publish(&draft, program, fetched.sha256)).await?;
        tracing::info!(engine = %release, path = %path.display(), "downloaded and verified");
        Ok(path)
    }

    /// Work on the cache, on a thread that may block. The lock lives as long as the work does.
    async fn on_disk<T: Send + 'static>(
        &self,
        lock: &Lock,
        work: impl FnOnce(&Cache, &Lock) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (cache, lock) = (self.cache.clone(), lock.clone());
        let done = tokio::task::spawn_blocking(move || work(&cache, &lock)).await;
        done.unwrap_or_else(|panicked| Err(io::Error::other(panicked))).map_err(|source| self.cache_error(source))
    }

    fn cache_error(&self, source: io::Error) -> Error {
        Error::Cache { path: self.cache.dir().display().to_string(), source }
    }
}

fn make_executable(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
