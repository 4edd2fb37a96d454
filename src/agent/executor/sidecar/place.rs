//! Fills the common volume: the runner before both containers start, an engine before a job.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{doing, volume};
use crate::agent::executor::{Result, runner::RUNNER};

/// Puts the runner into a volume, with all that agent and runner need to meet there. May be repeated.
///
/// # Errors
/// When the volume cannot be written.
pub fn place_runner(volume: &Path) -> Result<()> {
    let write = || {
        put(&volume.join(volume::RUNNER), 0o555, |file| file.write_all(RUNNER))?;
        let wake = volume.join(volume::WAKE);
        match mknodat(CWD, &wake, FileType::Fifo, Mode::from_raw_mode(0o666), 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // Whatever the umask took away: the containers may be of different users.
        fs::set_permissions(&wake, fs::Permissions::from_mode(0o666))?;
        let lock = volume.join(volume::LOCK);
        OpenOptions::new().write(true).create(true).truncate(false).open(&lock)?;
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644))
    };
    write().map_err(doing(format!("put the runner into {}", volume.display())))
}

/// Copies an engine, unless it is there.
pub(super) fn engine(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let size = source.metadata()?.len();
    if fs::metadata(to).is_ok_and(|meta| meta.len() == size) {
        return Ok(());
    }
    put(to, 0o555, |file| io::copy(&mut source, file).map(drop))
}

/// The name appears with its whole content, for everybody.
fn put(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let draft = path.with_added_extension("tmp");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&draft)?;
    fill(&mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    drop(file);
    fs::rename(draft, path)
}
