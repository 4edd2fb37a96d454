//! Opens files in a tree that somebody hostile may be changing: no link is followed on the way, and only a regular
//! file comes out.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Component, Path},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Without blocking: opening a pipe must not wait for its other end.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

const APPEND: OFlags = OFlags::WRONLY
    .union(OFlags::APPEND)
    .union(OFlags::CREATE)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// Opens `path` below `base` for reading; `None`: there is no such file.
pub(super) fn open(base: &Path, path: &Path) -> io::Result<Option<File>> {
    match open_with(base, path, READ) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the directory `name` in `base`; `None`: there is no such directory.
pub(super) fn open_dir(base: &Path, name: &str) -> io::Result<Option<OwnedFd>> {
    match openat(openat(CWD, base, DIRECTORY, Mode::empty())?, name, DIRECTORY, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens `path` below `base` for appending, and makes it when it is not there.
pub(super) fn append(base: &Path, path: &Path) -> io::Result<File> {
    open_with(base, path, APPEND)
}

fn open_with(base: &Path, path: &Path, flags: OFlags) -> io::Result<File> {
    let mut dir: OwnedFd = openat(CWD, base, DIRECTORY, Mode::empty())?;
    let mut names = path.components().peekable();
    while let Some(component) = names.next() {
        let Component::Normal(name) = component else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below the job directory"));
        };
        if names.peek().is_none() {
            let file = File::from(openat(&dir, name, flags, Mode::from_raw_mode(0o600))?);
            return match file.metadata()?.is_file() {
                true => Ok(file),
                false => Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file")),
            };
        }
        dir = openat(&dir, name, DIRECTORY, Mode::empty())?;
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "an empty path"))
}

/// The whole file, if it is no longer than `limit` bytes.
pub(super) fn read(base: &Path, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(base, path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes"))),
        false => Ok(Some(bytes)),
    }
}

/// Removes whatever is at `path`; nothing there is as good.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(error),
        _ => Ok(()),
    }
}

/// Gives `path` and everything below it to `owner`. Links themselves, never what they lead to.
pub(super) fn give(path: &Path, owner: (u32, u32)) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

/// Lets everybody read, write and enter `path` and everything below it. Not what links lead to. Only before the start:
/// nobody changes the tree then.
pub(super) fn open_to_all(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Ok(());
    }
    let executable = meta.is_dir() || meta.permissions().mode() & 0o100 != 0;
    fs::set_permissions(path, fs::Permissions::from_mode(if executable { 0o777 } else { 0o666 }))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}
