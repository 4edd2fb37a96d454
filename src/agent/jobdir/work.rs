//! The directory that the stages of one run share in the Process executor. An apply may be claimed while its plan is
//! still being cleared away, so the directory belongs to the job that took it last, and others leave it alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::beneath;
use crate::ids::{JobId, RunId};

/// `<data>/work/<run>`
pub(super) fn path(data: &Path, run: &RunId) -> PathBuf {
    data.join("work").join(run.as_str())
}

/// Makes the directory, empty, and `job` its owner.
pub(super) fn take(data: &Path, run: &RunId, job: &JobId) -> io::Result<()> {
    let _turn = turn(data)?;
    let path = path(data, run);
    beneath::remove_any(&path)?;
    DirBuilder::new().mode(0o700).create(&path)?;
    crate::files::write_private(&owner(&path), job.as_str().as_bytes())
}

/// Removes the directory if it is the job's. Harmless when repeated.
pub(super) fn give_up(data: &Path, run: &RunId, job: &JobId) -> io::Result<()> {
    let _turn = turn(data)?;
    let path = path(data, run);
    if fs::read(owner(&path)).is_ok_and(|owner| owner == job.as_str().as_bytes()) {
        beneath::remove_any(&path)?;
        beneath::remove_any(&owner(&path))?;
    }
    Ok(())
}

fn owner(path: &Path) -> PathBuf {
    path.with_added_extension("job")
}

/// One at a time, until the file is closed.
fn turn(data: &Path) -> io::Result<File> {
    let work = data.join("work");
    DirBuilder::new().mode(0o700).recursive(true).create(&work)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(work.join("lock"))?;
    file.lock()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_is_cleared_away_leaves_its_runs_apply_alone() {
        let data = tempfile::tempdir().unwrap();
        let (run, plan, apply) = (RunId::random(), JobId::random(), JobId::random());
        take(data.path(), &run, &plan).unwrap();
        fs::write(path(data.path(), &run).join("of-the-plan"), "").unwrap();
        take(data.path(), &run, &apply).unwrap();
        assert!(!path(data.path(), &run).join("of-the-plan").exists());
        give_up(data.path(), &run, &plan).unwrap();
        assert!(path(data.path(), &run).is_dir());
        for _ in 0..2 {
            give_up(data.path(), &run, &apply).unwrap();
            let left: Vec<_> =
                fs::read_dir(data.path().join("work")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["lock"]);
        }
    }
}
