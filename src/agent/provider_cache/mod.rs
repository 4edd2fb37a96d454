//! A cache of providers that fills itself with what runs have fetched.
//!
//! Each run has a plugin cache directory of its own, in its job directory. Before the start the agent puts links there,
//! to packages of the [`store`] whose content the run's dependency lock file names; after the end it looks what the run
//! has fetched, and copies what is new. So nothing that one run brought can reach another one that did not ask for just
//! these bytes: a package is found by its hash, and the engine compares that once more.

mod collect;
mod lock;
mod package;
mod plan;
mod store;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use self::{collect::Fetched, lock::Locked, store::Store};
use super::{jobdir::JobDir, lru::MARGIN};
use crate::{
    api::job::{Category, JobSpec},
    clock::Clock,
    telemetry::Chain,
};

/// The run's plugin cache directory, in its job directory.
const FOLDER: &str = "provider-cache";

/// What names the plugin cache directory to engines.
const VARIABLE: &str = "TF_PLUGIN_CACHE_DIR";

/// Settings of the engine that a run may bring, with a plugin cache directory or without.
const CLI_CONFIG: &str = "TF_CLI_CONFIG_FILE";

/// Largest package, in bytes: the largest known ones have a good half of a GiB.
const LARGEST: u64 = 4 << 30;

/// Packages that runs have fetched, for later runs.
#[derive(Debug)]
pub struct ProviderCache {
    store: Store,
    clock: Clock,
    /// One job's packages at a time are copied: the next one's may be the same.
    filling: tokio::sync::Mutex<()>,
    linked: AtomicU64,
    kept: AtomicU64,
    removed: AtomicU64,
    bytes: AtomicU64,
}

/// What this process has done with its cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packages that runs need not fetch.
    pub linked: u64,
    /// Packages that were new.
    pub kept: u64,
    /// Packages that were removed for those.
    pub removed: u64,
    /// Bytes of all packages, when it was last looked.
    pub bytes: u64,
}

/// Names the plugin cache directory to an engine that sees the job directory at `dir`.
pub(super) fn variable(dir: &str) -> (String, String) {
    (VARIABLE.to_owned(), format!("{dir}/{FOLDER}"))
}

/// The workspace or pool has settings of its own for the plugin cache directory.
fn has_its_own(spec: &JobSpec) -> bool {
    let is_ours = |key: &str| key == VARIABLE || key == CLI_CONFIG;
    let of_workspace = spec.variables.iter().filter(|variable| variable.category == Category::Env);
    spec.env.keys().chain(of_workspace.map(|variable| &variable.key)).any(|key| is_ours(key))
}

impl ProviderCache {
    /// Of packages below `cache_dir`, which is absolute and may be shared by the agents of one user; they may take `limit`
    /// bytes.
    #[must_use]
    pub fn new(cache_dir: &Path, limit: u64) -> Self {
        Self {
            store: Store::new(cache_dir, limit),
            clock: Clock::real(),
            filling: tokio::sync::Mutex::default(),
            linked: AtomicU64::default(),
            kept: AtomicU64::default(),
            removed: AtomicU64::default(),
            bytes: AtomicU64::default(),
        }
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What runs must see, read-only.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.store.root()
    }

    #[must_use]
    pub fn figures(&self) -> Figures {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Figures { linked: of(&self.linked), kept: of(&self.kept), removed: of(&self.removed), bytes: of(&self.bytes) }
    }

    /// Makes the directory, and removes what killed agents left in it.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn open(&self) -> io::Result<()> {
        let (store, now_ms) = (self.store.clone(), self.clock.now_ms());
        let trimmed = blocking(move || store.trim(&store.lock()?, now_ms)).await?;
        self.note_trimmed(trimmed);
        Ok(())
    }

    /// Gives a job its plugin cache directory, with links to the packages that its lock file names; the run sees the store at
    /// `seen`. Says whether there is such a directory: without it, the run goes on as if there was no cache. After the
    /// configuration is there and before the directory is given to the stage's user; may be repeated.
    pub(super) async fn link(&self, dir: &JobDir, spec: &JobSpec, seen: &str) -> bool {
        if has_its_own(spec) {
            return false;
        }
        let locked = locked(dir).await;
        let (store, now_ms) = (self.store.clone(), self.clock.now_ms());
        let lasting = Duration::from_secs(spec.timeout_seconds) + MARGIN;
        let (folder, seen) = (dir.path().join(FOLDER), seen.to_owned());
        let linked = blocking(move || {
            make_empty(&folder)?;
            link(&store, &locked, (&folder, Path::new(&seen)), now_ms, lasting)
        })
        .await;
        match linked {
            Ok(linked) => {
                self.linked.fetch_add(linked, Ordering::Relaxed);
                true
            }
            Err(error) => {
                tracing::warn!(job = %spec.job_id, path = %self.dir().display(), error = %Chain(&error), "the run gets nothing from the cache of providers");
                dir.path().join(FOLDER).is_dir()
            }
        }
    }

    /// Copies what the job has fetched and what is new here, when nothing of the stage runs any more. What fails is told in the
    /// agent's log, and harms nobody. May be given up at any moment: half a package is never seen.
    pub async fn fill(&self, dir: &JobDir) {
        let fetched = match dir.open_folder(FOLDER).await {
            Ok(Some(folder)) => blocking(move || collect::find(&folder)).await,
            Ok(None) => return,
            Err(error) => Err(io::Error::other(error)),
        };
        let fetched = match fetched {
            Ok(fetched) if fetched.is_empty() => return,
            Ok(fetched) => fetched,
            Err(error) => {
                tracing::warn!(path = %dir.path().display(), error = %Chain(&error), "what a run has fetched is not kept for others");
                return;
            }
        };
        let locked = locked(dir).await;
        let _turn = self.filling.lock().await;
        let (store, now_ms, stop) = (self.store.clone(), self.clock.now_ms(), CancellationToken::new());
        // When the caller gives up, the thread does too.
        let _given_up = stop.clone().drop_guard();
        let done = blocking(move || Ok(keep_all(&store, &fetched, &locked, now_ms, &stop))).await;
        match done {
            Ok(done) => {
                self.kept.fetch_add(done.len() as u64, Ordering::Relaxed);
                done.into_iter().for_each(|kept| self.note_trimmed(kept.trimmed));
            }
            Err(error) => {
                tracing::warn!(path = %self.dir().display(), error = %Chain(&error), "the cache of providers is not filled");
            }
        }
    }

    fn note_trimmed(&self, (removed, bytes): (u64, u64)) {
        self.removed.fetch_add(removed, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// What the lock file of the job's working directory says. One that cannot be read says nothing.
async fn locked(dir: &JobDir) -> Locked {
    match dir.lock_file(lock::LIMIT).await {
        Ok(Some(text)) => lock::read(&text),
        Ok(None) => Locked::new(),
        Err(error) => {
            tracing::debug!(path = %dir.path().display(), error = %Chain(&error), "the dependency lock file cannot be read");
            Locked::new()
        }
    }
}

/// A directory for the stage's user alone, with nothing in it.
fn make_empty(folder: &Path) -> io::Result<()> {
    super::lru::remove(folder)?;
    fs::DirBuilder::new().mode(0o700).create(folder)
}

/// Puts links into the folder, to the store as the run sees it; how many.
fn link(
    store: &Store,
    locked: &Locked,
    (folder, seen): (&Path, &Path),
    now_ms: i64,
    lasting: Duration,
) -> io::Result<u64> {
    let mut linked = 0;
    if locked.is_empty() {
        return Ok(linked);
    }
    let lock = store.lock()?;
    for (package, hashes) in locked {
        let Some(h1) = plan::given(hashes, &store.stored(package)?) else { continue };
        if !store.reserve(&lock, (package, h1), now_ms, lasting)? {
            continue;
        }
        let place = folder.join(package.path());
        if let Some(parent) = place.parent() {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(parent)?;
        }
        symlink(seen.join(Store::files_of(package, h1)), place)?;
        linked += 1;
    }
    Ok(linked)
}

/// A package that was new.
struct Kept {
    bytes: u64,
    /// What was removed for it, and what is left.
    trimmed: (u64, u64),
}

/// Copies what is new of the packages; all of it together is no larger than the store may be.
fn keep_all(store: &Store, fetched: &[Fetched], locked: &Locked, now_ms: i64, stop: &CancellationToken) -> Vec<Kept> {
    let mut done = Vec::new();
    let mut room = store.limit();
    for fetched in fetched {
        match keep(store, fetched, locked, (room.min(LARGEST), now_ms), stop) {
            Ok(None) => {}
            Ok(Some(kept)) => {
                room = room.saturating_sub(kept.bytes);
                done.push(kept);
            }
            Err(_) if stop.is_cancelled() => break,
            Err(error) => {
                tracing::warn!(package = %fetched.package, error = %Chain(&error), "a provider that a run has fetched is not kept for others");
            }
        }
    }
    done
}

/// Copies a package of `limit` bytes at most, if it is new.
fn keep(
    store: &Store,
    fetched: &Fetched,
    locked: &Locked,
    (limit, now_ms): (u64, i64),
    stop: &CancellationToken,
) -> io::Result<Option<Kept>> {
    let package = &fetched.package;
    let nothing = Default::default();
    let locked = locked.get(package).unwrap_or(&nothing);
    let mut draft = {
        let lock = store.lock()?;
        if !plan::is_news(locked, &store.stored(package)?) {
            return Ok(None);
        }
        store.draft(&lock)?
    };
    fetched.copy(&mut draft, limit, stop)?;
    let h1 = draft.h1();
    if draft.is_empty() || !plan::is_as_locked(locked, h1) {
        tracing::debug!(%package, %h1, "a provider is not the one that the run has locked");
        return Ok(None);
    }
    draft.sync()?;
    let lock = store.lock()?;
    if !store.publish(&lock, &draft, package, now_ms)? {
        return Ok(None);
    }
    let bytes = draft.bytes();
    tracing::info!(%package, %h1, bytes, "a provider is kept for later runs");
    Ok(Some(Kept { bytes, trimmed: store.trim(&lock, now_ms)? }))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
}

#[cfg(test)]
mod tests;
