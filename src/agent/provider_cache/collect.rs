//! Finds the packages that a run has fetched. Its directory may be full of traps: nothing is followed, only regular
//! files are read, and there is an end to everything.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use tokio_util::sync::CancellationToken;

use super::{
    package::{Package, is_host, is_name, is_version, platform},
    store::{DEEPEST, Draft, too_large},
};

/// Most names that are looked at, in all of a run's directory.
const MOST_NAMES: usize = 20_000;

/// Most packages of one run, and files of one package.
const MOST_PACKAGES: usize = 256;
const MOST_FILES: usize = 4096;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Without blocking: opening a pipe must not wait for its other end.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// A package as it lies in the run's directory.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) package: Package,
    dir: OwnedFd,
}

/// A name in a directory, and what it is the name of; links are links.
struct Name {
    name: String,
    kind: FileType,
}

/// All packages for this platform below the directory; what was linked from the store is no package here.
pub(super) fn find(dir: &OwnedFd) -> io::Result<Vec<Fetched>> {
    let mut budget = MOST_NAMES;
    let mut found = Vec::new();
    for (host, dir) in directories(dir.as_fd(), is_host, &mut budget)? {
        for (namespace, dir) in directories(dir.as_fd(), is_name, &mut budget)? {
            for (kind, dir) in directories(dir.as_fd(), is_name, &mut budget)? {
                for (version, dir) in directories(dir.as_fd(), is_version, &mut budget)? {
                    let package = Package::new(&host, &namespace, &kind, &version);
                    if let Some(package) = package
                        && found.len() < MOST_PACKAGES
                        && let Ok(dir) = openat(&dir, platform(), DIRECTORY, Mode::empty())
                    {
                        found.push(Fetched { package, dir });
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Directories that have such names and can be entered.
fn directories(
    dir: BorrowedFd<'_>,
    is_valid: impl Fn(&str) -> bool,
    budget: &mut usize,
) -> io::Result<Vec<(String, OwnedFd)>> {
    let names = names(dir, budget)?.into_iter();
    let names = names.filter(|Name { name, kind }| *kind == FileType::Directory && is_valid(name));
    let opened = names.map(|Name { name, .. }| (openat(dir, &name, DIRECTORY, Mode::empty()), name));
    Ok(opened.filter_map(|(dir, name)| Some((name, dir.ok()?))).collect())
}

/// What there is in a directory. Names that are no text are none of ours.
fn names(dir: BorrowedFd<'_>, budget: &mut usize) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        *budget = budget.checked_sub(1).ok_or_else(|| io::Error::other("it has too many files"))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        names.push(Name { name: name.to_owned(), kind: FileType::from_raw_mode(stat.st_mode) });
    }
    Ok(names)
}

impl Fetched {
    /// Copies all files into the draft, which then has `limit` bytes at most. What is no regular file spoils the whole.
    pub(super) fn copy(&self, draft: &mut Draft, limit: u64, stop: &CancellationToken) -> io::Result<()> {
        let mut budget = MOST_FILES;
        copy(self.dir.as_fd(), "", draft, (limit, stop), &mut budget)
    }
}

fn copy(
    dir: BorrowedFd<'_>,
    prefix: &str,
    draft: &mut Draft,
    (limit, stop): (u64, &CancellationToken),
    budget: &mut usize,
) -> io::Result<()> {
    for Name { name, kind } in names(dir, budget)? {
        let path = format!("{prefix}{name}");
        match kind {
            FileType::Directory if path.matches('/').count() < DEEPEST => {
                let below = openat(dir, &name, DIRECTORY, Mode::empty())?;
                copy(below.as_fd(), &format!("{path}/"), draft, (limit, stop), budget)?;
            }
            FileType::RegularFile => {
                let file = File::from(openat(dir, &name, READ, Mode::empty())?);
                // It may have become something else since it was looked at.
                let meta = file.metadata()?;
                if !meta.is_file() {
                    return Err(io::Error::other(format!("`{}` is no regular file", path.escape_debug())));
                }
                if meta.len() > limit {
                    return Err(too_large(limit));
                }
                draft.add(&path, file, limit, stop)?;
            }
            _ => return Err(io::Error::other(format!("`{}` is no regular file", path.escape_debug()))),
        }
    }
    Ok(())
}
