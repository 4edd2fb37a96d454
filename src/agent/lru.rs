//! What the caches of an agent have in common: which entries go when there are too many, and how a changed file is
//! noticed without reading it.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::files::write_private;

/// What a job uses is kept for so long beyond the job's own limit: it also waits for its image and its files.
pub(super) const MARGIN: Duration = Duration::from_secs(3600);

/// When an entry was wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Used {
    /// Milliseconds since 1970.
    pub(super) last_ms: i64,
    /// A job that was given it may run until then: milliseconds since 1970.
    pub(super) until_ms: i64,
}

impl Used {
    /// Wanted now, by a job that may take `lasting`. A shorter job does not end what a longer one was promised.
    pub(super) fn again(self, now_ms: i64, lasting: Duration) -> Self {
        let until_ms = now_ms.saturating_add(i64::try_from(lasting.as_millis()).unwrap_or(i64::MAX));
        Self { last_ms: now_ms, until_ms: until_ms.max(self.until_ms) }
    }
}

/// What removal is decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) used: Used,
}

/// The least recently used entries whose removal makes the rest fit. What is in use stays, whatever its size.
pub(super) fn surplus(mut kept: Vec<Kept>, limit: u64, now_ms: i64) -> Vec<String> {
    let mut total: u64 = kept.iter().map(|entry| entry.bytes).sum();
    kept.retain(|entry| entry.used.until_ms <= now_ms);
    kept.sort_by(|a, b| (a.used.last_ms, &a.name).cmp(&(b.used.last_ms, &b.name)));
    let mut gone = Vec::new();
    for entry in kept {
        if total <= limit {
            break;
        }
        total -= entry.bytes;
        gone.push(entry.name);
    }
    gone
}

/// A file that looks like this was not changed by accident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) size: u64,
    modified_s: i64,
    modified_ns: i64,
    inode: u64,
}

impl From<&fs::Metadata> for Stamp {
    fn from(meta: &fs::Metadata) -> Self {
        Self { size: meta.len(), modified_s: meta.mtime(), modified_ns: meta.mtime_nsec(), inode: meta.ino() }
    }
}

/// Removes a directory; one that is not there is as good.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_private(path, &serde_json::to_vec(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, bytes: u64, last_ms: i64, until_ms: i64) -> Kept {
        Kept { name: name.to_owned(), bytes, used: Used { last_ms, until_ms } }
    }

    #[test]
    fn the_least_recently_used_go_first_and_only_as_many_as_needed() {
        let all = || vec![kept("new", 10, 30, 0), kept("old", 10, 10, 0), kept("middle", 10, 20, 0)];
        for (limit, gone) in [
            (30, vec![]),
            (29, vec!["old"]),
            (20, vec!["old"]),
            (19, vec!["old", "middle"]),
            (0, vec!["old", "middle", "new"]),
        ] {
            assert_eq!(surplus(all(), limit, 100), gone, "{limit}");
        }
    }

    #[test]
    fn what_a_job_may_still_use_is_never_removed() {
        let all = vec![kept("running", 10, 10, 101), kept("ended", 10, 20, 100), kept("other", 10, 30, 0)];
        assert_eq!(surplus(all.clone(), 20, 100), ["ended"]);
        assert_eq!(surplus(all, 0, 100), ["ended", "other"]);
    }

    #[test]
    fn a_shorter_use_does_not_end_a_longer_one() {
        let long = Used::default().again(10, Duration::from_millis(50));
        assert_eq!(long, Used { last_ms: 10, until_ms: 60 });
        assert_eq!(long.again(20, Duration::from_millis(5)), Used { last_ms: 20, until_ms: 60 });
    }
}
