//! The files of a container that waits:
//!
//! ```text
//! <data>/warm/<id>/            0700, the agent's; named as the container from the hand-over on
//! <data>/warm/<id>/job/        becomes the job's directory; job/hooks/ stays the agent's
//! <data>/warm/<id>/line/       wake, runner.lock, then go: read-only in the container
//! <data>/warm/<id>/engine/     empty until the hand-over: read-only in the container
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::super::super::volume;
use crate::agent::hooks::FOLDER;

/// The directory of one container.
#[derive(Debug, Clone)]
pub(super) struct Place(PathBuf);

/// The agent's ends of what it has in common with a runner that waits.
#[derive(Debug)]
pub(super) struct Line {
    /// The runner sees when it is closed: then there is a job, or there never will be.
    _wake: File,
    /// Held by the runner as long as it lives.
    pub(super) lock: File,
}

impl Place {
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn job(&self) -> PathBuf {
        self.0.join("job")
    }

    pub(super) fn hooks(&self) -> PathBuf {
        self.job().join(FOLDER)
    }

    pub(super) fn line(&self) -> PathBuf {
        self.0.join("line")
    }

    pub(super) fn engines(&self) -> PathBuf {
        self.0.join("engine")
    }

    /// Makes everything; `owner` is whose the job's files will be, and `jobs` where those of jobs lie.
    pub(super) fn make(&self, owner: Option<(u32, u32)>, jobs: &Path) -> io::Result<Line> {
        let mut private = fs::DirBuilder::new();
        private.mode(0o700).recursive(true).create(&self.0)?;
        // Before there is a job whose files could get stuck half-way.
        if fs::metadata(jobs).is_ok_and(|jobs| fs::metadata(&self.0).is_ok_and(|own| own.dev() != jobs.dev())) {
            let why = format!("{} and {} are not on one file system", jobs.display(), self.0.display());
            return Err(io::Error::new(io::ErrorKind::CrossesDevices, why));
        }
        private.recursive(false).create(self.job())?;
        let shown = |path: PathBuf| {
            fs::create_dir(&path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        };
        for path in [self.hooks(), self.line(), self.engines()] {
            shown(path)?;
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(self.job(), Some(uid), Some(gid))?;
        }
        // The runner, whoever it is, reads; nobody else than the agent writes.
        let (wake, lock) = (self.line().join(volume::WAKE), self.line().join(volume::LOCK));
        mknodat(CWD, &wake, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        // For reading too: thus it can be opened when no runner is there yet.
        let open = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(&wake)?;
        OpenOptions::new().write(true).create_new(true).open(&lock)?;
        for path in [&wake, &lock] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
        }
        Ok(Line { _wake: open, lock: File::open(&lock)? })
    }

    /// Shows an engine of the host to the container under this name: a second name of the same file, or a copy where
    /// there can be none.
    pub(super) fn put_engine(&self, from: &Path, name: &str) -> io::Result<()> {
        let to = self.engines().join(name);
        if fs::hard_link(from, &to).is_ok() {
            return Ok(());
        }
        fs::copy(from, &to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o555))
    }

    /// The job is the runner's from now on, whatever becomes of the agent.
    pub(super) fn go(&self) -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(self.line().join(volume::GO)).map(drop)
    }

    pub(super) fn has_gone(&self) -> bool {
        self.line().join(volume::GO).symlink_metadata().is_ok()
    }

    pub(super) fn exists(&self) -> bool {
        self.0.symlink_metadata().is_ok()
    }

    /// Moves it to another name; what is mounted of it stays mounted.
    pub(super) fn rename(&self, to: &Self) -> io::Result<()> {
        fs::rename(&self.0, &to.0)
    }

    /// Harmless when it is not there.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_agents_alone_and_shows_an_engine_without_a_second_copy() {
        let data = tempfile::tempdir().unwrap();
        let [first, second] = ["0a", "terrapool-job-1"].map(|name| Place::at(data.path().join("warm").join(name)));
        let line = first.make(None, data.path()).unwrap();
        assert_eq!(fs::metadata(data.path().join("warm")).unwrap().mode() & 0o777, 0o700);
        assert_eq!(line.lock.metadata().unwrap().mode() & 0o777, 0o444);
        let engine = data.path().join("terraform");
        fs::write(&engine, "an engine").unwrap();
        first.put_engine(&engine, "terraform").unwrap();
        assert_eq!(fs::metadata(first.engines().join("terraform")).unwrap().ino(), fs::metadata(engine).unwrap().ino());
        first.rename(&second).unwrap();
        assert!(second.exists() && !second.has_gone());
        second.go().unwrap();
        assert!(second.has_gone());
        // Twice is once too often.
        second.go().unwrap_err();
        second.remove().unwrap();
        second.remove().unwrap();
        assert!(!second.exists());
    }

    #[test]
    fn jobs_of_another_file_system_could_not_move_there() {
        let data = tempfile::tempdir().unwrap();
        let error = Place::at(data.path().join("0a")).make(None, Path::new("/proc")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::CrossesDevices);
    }

    #[test]
    fn an_engine_that_cannot_have_a_second_name_is_copied() {
        let data = tempfile::tempdir().unwrap();
        let place = Place::at(data.path().join("0a"));
        place.make(None, data.path()).unwrap();
        // Of another file system.
        place.put_engine(Path::new("/proc/self/cmdline"), "terraform").unwrap();
        assert_eq!(fs::metadata(place.engines().join("terraform")).unwrap().mode() & 0o777, 0o555);
    }
}
