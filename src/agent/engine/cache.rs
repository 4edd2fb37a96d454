//! Engines that were downloaded, for all agents and processes that are given the same directory.
//!
//! ```text
//! <dir>/engines/terraform_1.11.4_linux_amd64/terraform   0755
//! <dir>/engines/terraform_1.11.4_linux_amd64/entry.json  its digest, and how the file looked when that was right
//! <dir>/engines/terraform_1.11.4_linux_amd64/used.json   when it was wanted last, and until when it is in use
//! <dir>/engines/.new-terraform_1.11.4_linux_amd64-…      one in the making; left over when nobody holds its lock
//! <dir>/locks/terraform_1.11.4_linux_amd64.lock          held by who makes, checks or removes it
//! ```
//!
//! An entry appears by a rename, whole and on the disk, or not at all. Whoever can write the directory decides what
//! runs: runs in containers see one program of it, read-only.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::{
    agent::lru::{Kept, Stamp, Used, read_json, remove, surplus, write_json},
    hash,
    telemetry::Chain,
};

/// How often a lock is asked for that another one holds.
const LOCK_POLL: Duration = Duration::from_millis(50);

const ENTRY: &str = "entry.json";
const USED: &str = "used.json";

/// The directory, and how much may be kept there.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
    /// Bytes of all entries together.
    limit: u64,
}

/// The right to make, check or remove one entry. Ends with the value or the process.
#[derive(Debug, Clone)]
pub(super) struct Lock {
    name: String,
    _file: Arc<File>,
}

/// An entry in the making; removed with the value unless it is published.
#[derive(Debug)]
pub(super) struct Draft {
    dir: PathBuf,
    lock: Lock,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Name of the file.
    program: String,
    /// SHA-256 of the file, in hexadecimal.
    sha256: String,
    stamp: Stamp,
}

impl Cache {
    pub(super) fn new(dir: PathBuf, limit: u64) -> Self {
        Self { dir, limit }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn engines(&self) -> PathBuf {
        self.dir.join("engines")
    }

    fn entry(&self, name: &str) -> PathBuf {
        self.engines().join(name)
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<Lock>> {
        let mut dirs = fs::DirBuilder::new();
        dirs.recursive(true).mode(0o755);
        dirs.create(self.engines())?;
        let locks = self.dir.join("locks");
        dirs.create(&locks)?;
        let path = locks.join(format!("{name}.lock"));
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { name: name.to_owned(), _file: Arc::new(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits until nobody else works on the entry.
    pub(super) async fn lock(&self, name: &str) -> io::Result<Lock> {
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// The entry's program, if it is there and sound; what is not is removed, and what an interrupted one left too.
    pub(super) fn look_up(&self, lock: &Lock) -> io::Result<Option<PathBuf>> {
        self.sweep(&lock.name)?;
        let dir = self.entry(&lock.name);
        if !dir.try_exists()? {
            return Ok(None);
        }
        match check(&dir) {
            Ok(program) => Ok(Some(program)),
            Err(error) => {
                tracing::warn!(entry = %dir.display(), error = %Chain(&error), "the cached engine is damaged and is removed");
                remove(&dir)?;
                Ok(None)
            }
        }
    }

    /// Removes what interrupted makers of the entry left; its lock is held.
    fn sweep(&self, name: &str) -> io::Result<()> {
        let prefix = format!(".new-{name}-");
        for entry in fs::read_dir(self.engines())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    pub(super) fn draft(&self, lock: &Lock) -> io::Result<Draft> {
        let dir = self.engines().join(format!(".new-{}-{:016x}", lock.name, rand::rng().random::<u64>()));
        fs::DirBuilder::new().mode(0o755).create(&dir)?;
        Ok(Draft { dir, lock: lock.clone() })
    }

    /// Gives the entry its name; its path there. `sha256` is that of the file `program` in the draft.
    pub(super) fn publish(&self, draft: &Draft, program: &str, sha256: String) -> io::Result<PathBuf> {
        let file = draft.dir.join(program);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        File::open(&file)?.sync_all()?;
        let entry = Entry { program: program.to_owned(), sha256, stamp: stamp(&file)? };
        write_json(&draft.dir.join(ENTRY), &entry)?;
        let dir = self.entry(&draft.lock.name);
        remove(&dir)?;
        fs::rename(&draft.dir, &dir)?;
        File::open(self.engines())?.sync_all()?;
        Ok(dir.join(program))
    }

    /// Keeps the entry until a job has ended that may take `lasting` from now.
    pub(super) fn reserve(&self, lock: &Lock, now_ms: i64, lasting: Duration) -> io::Result<()> {
        let path = self.entry(&lock.name).join(USED);
        let before: Used = read_json(&path).unwrap_or_default();
        write_json(&path, &before.again(now_ms, lasting))
    }

    /// Removes what was not wanted for longest until the rest fits, and the leftovers of all entries.
    pub(super) fn trim(&self, now_ms: i64) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(self.engines())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(unfinished) = name.strip_prefix(".new-") {
                let owner = unfinished.rsplit_once('-').map_or(unfinished, |(owner, _)| owner);
                if self.try_lock(owner)?.is_some() {
                    remove(&entry.path())?;
                }
                continue;
            }
            let used = read_json(&entry.path().join(USED)).unwrap_or_default();
            kept.push(Kept { name, bytes: size(&entry.path()), used });
        }
        for name in surplus(kept, self.limit, now_ms) {
            let Some(lock) = self.try_lock(&name)? else { continue };
            let dir = self.entry(&lock.name);
            // Wanted since it was looked at.
            let used: Used = read_json(&dir.join(USED)).unwrap_or_default();
            if used.until_ms <= now_ms {
                tracing::info!(engine = name, "removed from the cache, which is larger than its limit");
                remove(&dir)?;
            }
        }
        Ok(())
    }
}

impl Draft {
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Published, it is not there any more; left behind, the next one removes it.
        drop(remove(&self.dir));
    }
}

/// The program of a sound entry. Its content is read only when the file looks changed.
fn check(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join(ENTRY);
    let mut entry: Entry = read_json(&path)?;
    let program = dir.join(&entry.program);
    let now = stamp(&program)?;
    if now != entry.stamp {
        let found = sha256(&program)?;
        if found != entry.sha256 {
            return Err(io::Error::other(format!("its SHA-256 is {found}, and was {}", entry.sha256)));
        }
        entry.stamp = now;
        write_json(&path, &entry)?;
    }
    Ok(program)
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = path.symlink_metadata()?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Err(io::Error::other(format!("{} is no program", path.display())));
    }
    Ok(Stamp::from(&meta))
}

fn sha256(path: &Path) -> io::Result<String> {
    hash::sha256(File::open(path)?)
}

fn size(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(cache: &Cache, name: &str, content: &str) -> PathBuf {
        let lock = cache.try_lock(name).unwrap().unwrap();
        let draft = cache.draft(&lock).unwrap();
        let file = draft.path().join("tofu");
        fs::write(&file, content).unwrap();
        let digest = sha256(&file).unwrap();
        cache.publish(&draft, "tofu", digest).unwrap()
    }

    #[test]
    fn a_changed_program_is_noticed_and_an_untouched_one_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned(), 0);
        let program = place(&cache, "tofu_1.0.0", "the program");
        let found = || cache.look_up(&cache.try_lock("tofu_1.0.0").unwrap().unwrap()).unwrap();
        assert_eq!(found(), Some(program.clone()));
        let restored = File::options().write(true).open(&program).unwrap();
        restored.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(found(), Some(program.clone()), "the same content at another time");
        let before: Entry = read_json(&program.with_file_name(ENTRY)).unwrap();
        assert_eq!(before.stamp, stamp(&program).unwrap());
        fs::write(&program, "the poison!").unwrap();
        assert_eq!(found(), None);
        assert!(!program.exists());
    }

    #[test]
    fn leftovers_are_removed_unless_somebody_is_at_work_on_them() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned(), 1 << 20);
        let lock = cache.try_lock("a-1").unwrap().unwrap();
        let at_work = cache.draft(&lock).unwrap();
        let crashed = cache.engines().join(".new-b-2-0123");
        fs::create_dir(&crashed).unwrap();
        cache.trim(0).unwrap();
        assert!(!crashed.exists() && at_work.path().exists());
        fs::create_dir(cache.engines().join(".new-a-1-0123")).unwrap();
        let path = at_work.path().to_owned();
        drop(at_work);
        assert!(!path.exists());
        assert_eq!(cache.look_up(&lock).unwrap(), None);
        assert_eq!(fs::read_dir(cache.engines()).unwrap().count(), 0);
    }

    #[test]
    fn entries_beyond_the_limit_go_but_reserved_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned(), 0);
        let (old, new) = (place(&cache, "old", "1"), place(&cache, "new", "2"));
        let reserve = |name: &str, now_ms| {
            cache.reserve(&cache.try_lock(name).unwrap().unwrap(), now_ms, Duration::from_millis(50)).unwrap();
        };
        reserve("old", 100);
        reserve("new", 120);
        cache.trim(149).unwrap();
        assert!(old.exists() && new.exists());
        cache.trim(150).unwrap();
        assert!(!old.exists() && new.exists());
        reserve("new", 10);
        cache.trim(169).unwrap();
        assert!(new.exists(), "a shorter reservation does not end a longer one");
        let held = cache.try_lock("new").unwrap();
        cache.trim(170).unwrap();
        assert!(new.exists(), "somebody is about to use it");
        drop(held);
        cache.trim(170).unwrap();
        assert!(!new.exists());
    }
}
