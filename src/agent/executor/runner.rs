//! The embedded runner, written out where containers and processes can be started from.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Error, Result};
use crate::hash::hex;

/// The program of `src/runner`.
pub(super) static RUNNER: &[u8] = include_bytes!(env!("TERRAPOOL_RUNNER"));

/// Puts the runner below `data`, under a name made of its content: containers of an older agent go on with theirs.
pub(super) fn install(data: &Path) -> Result<PathBuf> {
    let dir = data.join("bin");
    let path = dir.join(format!("runner-{}", short_hash(RUNNER)));
    let doing = |source| Error::Io { doing: format!("write the runner to {}", path.display()), source };
    if fs::metadata(&path).is_ok_and(|meta| meta.len() == RUNNER.len() as u64 && meta.permissions().mode() & 0o111 != 0)
    {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(doing)?;
    let tmp = dir.join(format!("runner.{}.tmp", std::process::id()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&tmp)?;
        file.write_all(RUNNER)?;
        // Whatever the umask took away: the container's user must be able to start it.
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
        fs::rename(&tmp, &path)
    };
    write().map_err(doing)?;
    Ok(path)
}

/// A runner that waits, or has waited, lives: it holds this lock, from which the kernel parts it at its end only.
pub(super) fn holds(lock: &File) -> bool {
    match lock.try_lock_shared() {
        Ok(()) => {
            // Held on, it would be in the way of a runner that is about to take it.
            drop(lock.unlock());
            false
        }
        Err(_) => true,
    }
}

/// Sixteen hexadecimal digits of the SHA-256.
pub(super) fn short_hash(content: &[u8]) -> String {
    hex(&Sha256::digest(content)[..8])
}
