//! Packages of providers on this host's disk, for all agents that are given the same directory.
//!
//! ```text
//! <dir>/providers/HOST/NAMESPACE/TYPE/VERSION/PLATFORM/<h1>/
//!     package/     the files, 0555, as runs see them: the name says what is in them, so they never change
//!     entry.json   how large they are, and how they looked when the name was right
//!     used.json    when it was wanted last, and until when it is in use
//! <dir>/providers/.new-…   a package in the making, locked by its maker
//! <dir>/providers/.old-…   one that is being removed
//! <dir>/locks/providers.lock   held by who looks for, makes known or removes packages
//! ```
//!
//! A package appears by a rename, whole and on the disk, or not at all. Runs in containers see `providers/`, read-only;
//! they cannot list it, only find what they know the hash of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::package::{H1, Package, is_file_name};
use crate::{
    agent::{
        lru::{Kept, Stamp, Used, read_json, remove, surplus, write_json},
        random_text,
    },
    hash::{self, hex},
    telemetry::Chain,
};

const ENTRY: &str = "entry.json";
const USED: &str = "used.json";
const FILES: &str = "package";

/// Longest wait for the lock, which is held for some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// How deep files of a package may lie.
pub(super) const DEEPEST: usize = 8;

/// Directories between the store and a package.
const LEVELS: usize = 5;

/// The directory, and how much may be kept there.
#[derive(Debug, Clone)]
pub(super) struct Store {
    root: PathBuf,
    locks: PathBuf,
    /// Bytes of all packages together.
    limit: u64,
}

/// The right to look for, make known and remove packages. Ends with the value or the process.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// A package in the making; removed with the value unless it is made known.
#[derive(Debug)]
pub(super) struct Draft {
    dir: PathBuf,
    /// SHA-256 of each file.
    files: BTreeMap<String, String>,
    bytes: u64,
    /// Says that somebody is at work on it.
    _held: File,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    files: BTreeMap<String, Stamp>,
}

impl Store {
    pub(super) fn new(cache_dir: &Path, limit: u64) -> Self {
        Self { root: cache_dir.join("providers"), locks: cache_dir.join("locks"), limit }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Waits until nobody else has it. For a thread that may block.
    pub(super) fn lock(&self) -> io::Result<Lock> {
        let mut dirs = fs::DirBuilder::new();
        dirs.recursive(true).mode(0o755).create(&self.locks)?;
        make_hidden(&self.root)?;
        let path = self.locks.join("providers.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if start.elapsed() > PATIENCE => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another agent holds its lock for too long"));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(POLL),
            }
        }
    }

    /// The contents of the package that are there.
    pub(super) fn stored(&self, package: &Package) -> io::Result<BTreeSet<H1>> {
        let entries = match fs::read_dir(self.root.join(package.path())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(H1::of_file_name(&entry?.file_name().to_string_lossy())));
        names.filter_map(Result::transpose).collect()
    }

    /// Where the files of a package lie below the store.
    pub(super) fn files_of(package: &Package, h1: H1) -> PathBuf {
        package.path().join(h1.file_name()).join(FILES)
    }

    /// Keeps a package until a job has ended that may take `lasting` from now; `false`: it was damaged, and is gone.
    pub(super) fn reserve(
        &self,
        _lock: &Lock,
        (package, h1): (&Package, H1),
        now_ms: i64,
        lasting: Duration,
    ) -> io::Result<bool> {
        let dir = self.root.join(package.path()).join(h1.file_name());
        if let Err(error) = check(&dir, h1) {
            tracing::warn!(%package, path = %dir.display(), error = %Chain(&error), "the cached provider is damaged and is removed");
            self.remove(&dir)?;
            return Ok(false);
        }
        let used = dir.join(USED);
        let before: Used = read_json(&used).unwrap_or_default();
        write_json(&used, &before.again(now_ms, lasting))?;
        Ok(true)
    }

    /// Room for a new package.
    pub(super) fn draft(&self, _lock: &Lock) -> io::Result<Draft> {
        let dir = self.root.join(format!(".new-{}", random_text()));
        make_hidden(&dir)?;
        let held = File::open(&dir)?;
        held.try_lock()?;
        let draft = Draft { dir, files: BTreeMap::new(), bytes: 0, _held: held };
        make_shown(&draft.dir.join(FILES))?;
        Ok(draft)
    }

    /// Gives the draft its name; `false`: others were faster.
    pub(super) fn publish(&self, _lock: &Lock, draft: &Draft, package: &Package, now_ms: i64) -> io::Result<bool> {
        let h1 = draft.h1();
        let mut parent = self.root.clone();
        for part in &package.path() {
            parent.push(part);
            make_hidden(&parent)?;
        }
        let dir = parent.join(h1.file_name());
        if dir.try_exists()? {
            return Ok(false);
        }
        let files = look(&draft.dir.join(FILES))?;
        write_json(&draft.dir.join(ENTRY), &Entry { bytes: draft.bytes, files })?;
        // The newest is not the first to go.
        write_json(&draft.dir.join(USED), &Used::default().again(now_ms, Duration::ZERO))?;
        fs::rename(&draft.dir, &dir)?;
        File::open(parent)?.sync_all()?;
        Ok(true)
    }

    /// Removes what killed agents left, and packages that were not wanted for longest until the rest fits; how many
    /// packages, and how many bytes are left.
    pub(super) fn trim(&self, _lock: &Lock, now_ms: i64) -> io::Result<(u64, u64)> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let is_left = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
                && File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok());
            if is_left {
                remove(&path)?;
            }
        }
        let mut kept = Vec::new();
        self.entries(&mut PathBuf::new(), &mut kept)?;
        let mut left: u64 = kept.iter().map(|entry| entry.bytes).sum();
        let sizes: BTreeMap<String, u64> = kept.iter().map(|entry| (entry.name.clone(), entry.bytes)).collect();
        let surplus = surplus(kept, self.limit, now_ms);
        for name in &surplus {
            tracing::info!(package = name, "removed from the cache of providers, which is larger than its limit");
            self.remove(&self.root.join(name))?;
            left -= sizes.get(name).copied().unwrap_or_default();
        }
        Ok((surplus.len() as u64, left))
    }

    /// All packages below `path` in the store, by their path there.
    fn entries(&self, path: &mut PathBuf, kept: &mut Vec<Kept>) -> io::Result<()> {
        let level = path.components().count();
        for entry in fs::read_dir(self.root.join(&*path))? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') || !entry.file_type()?.is_dir() {
                continue;
            }
            path.push(&name);
            if level < LEVELS {
                self.entries(path, kept)?;
            } else if let Some(name) = path.to_str() {
                // One without an entry is not whole: of no size, and the first to go.
                let bytes = read_json::<Entry>(&entry.path().join(ENTRY)).map_or(0, |entry| entry.bytes);
                let used = read_json(&entry.path().join(USED)).unwrap_or_default();
                kept.push(Kept { name: name.to_owned(), bytes, used });
            }
            path.pop();
        }
        Ok(())
    }

    /// Removes a package, and the directories above that are empty then. Under its name it is whole to the end.
    fn remove(&self, dir: &Path) -> io::Result<()> {
        let old = self.root.join(format!(".old-{}", random_text()));
        fs::rename(dir, &old)?;
        remove(&old)?;
        // Fails at the first that has something else in it.
        let above = dir.ancestors().skip(1).take_while(|path| *path != self.root);
        above.map(fs::remove_dir).take_while(Result::is_ok).for_each(drop);
        Ok(())
    }
}

impl Draft {
    /// Copies a file into the package, of which `limit` bytes at most may be there then.
    pub(super) fn add(
        &mut self,
        name: &str,
        mut from: impl Read,
        limit: u64,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        if !is_file_name(name) {
            return Err(io::Error::other(format!("it has a file `{}`", name.escape_debug())));
        }
        let mut dir = self.dir.join(FILES);
        let path = dir.join(name);
        for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            make_shown(&dir)?;
        }
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut digest = Sha256::new();
        let mut part = vec![0; 256 << 10];
        loop {
            let read = from.read(&mut part)?;
            if read == 0 {
                break;
            }
            self.bytes += read as u64;
            if self.bytes > limit {
                return Err(too_large(limit));
            }
            if stop.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            digest.update(&part[..read]);
            to.write_all(&part[..read])?;
        }
        // The hash says nothing of modes, so none of them comes from the run.
        to.set_permissions(fs::Permissions::from_mode(0o555))?;
        to.sync_all()?;
        self.files.insert(name.to_owned(), hex(digest.finalize()));
        Ok(())
    }

    pub(super) fn h1(&self) -> H1 {
        H1::of(&self.files)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Has the directories on the disk: the files are. Before it is made known.
    pub(super) fn sync(&self) -> io::Result<()> {
        let folder = self.dir.join(FILES);
        let inner =
            self.files.keys().flat_map(|name| Path::new(name).ancestors().skip(1)).map(|path| folder.join(path));
        let dirs: BTreeSet<PathBuf> = inner.chain([self.dir.clone()]).collect();
        dirs.into_iter().try_for_each(|dir| File::open(dir)?.sync_all())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Made known, it is not there any more; left behind, the next one removes it.
        drop(remove(&self.dir));
    }
}

/// What is said of a package of more than `limit` bytes.
pub(super) fn too_large(limit: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes"))
}

/// A directory in which nobody but the agent sees what there is. It may be there already.
fn make_hidden(path: &Path) -> io::Result<()> {
    make(path, 0o711)
}

/// A directory for all to read.
fn make_shown(path: &Path) -> io::Result<()> {
    make(path, 0o755)
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // Whatever the umask takes away: the runs' user is another one.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A package is as it was when its name was right. Its content is read only when it looks changed.
fn check(dir: &Path, h1: H1) -> io::Result<()> {
    let path = dir.join(ENTRY);
    let mut entry: Entry = read_json(&path)?;
    let folder = dir.join(FILES);
    let now = look(&folder)?;
    if now == entry.files {
        return Ok(());
    }
    let digest = |name: &String| Ok((name.clone(), hash::sha256(File::open(folder.join(name))?)?));
    let found = H1::of(&now.keys().map(digest).collect::<io::Result<_>>()?);
    if found != h1 {
        return Err(io::Error::other(format!("its hash is {found}, and was {h1}")));
    }
    entry.files = now;
    write_json(&path, &entry)
}

/// All files of a package, by their path in it.
fn look(folder: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let meta = entry.path().symlink_metadata()?;
            if meta.is_dir() && name.matches('/').count() < DEEPEST {
                folders.push((entry.path(), format!("{name}/")));
            } else if meta.is_file() {
                found.insert(name, Stamp::from(&meta));
            } else {
                return Err(io::Error::other(format!("{} is no file of a package", entry.path().display())));
            }
        }
    }
    Ok(found)
}
