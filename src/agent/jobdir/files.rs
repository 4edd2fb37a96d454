//! The files of a stage that the agent writes before its start and collects after its end.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

use super::{Archive, Error, JobDir, LOG, Result, beneath, unpack};
use crate::{
    agent::{
        hooks::{FOLDER, Hook},
        steps::{self, CLI_CONFIG, GENERATED, LOCK_FILE, OVERRIDE, PLAN_FILE, VARIABLES, format::Stage as Steps},
    },
    api::{agent::ExecutorKind, job::Stage},
    files::write_private,
    hash,
};

/// What a plan hands to its apply. The variables with which it was made among them: an apply uses the same.
const BUNDLE: [&str; 4] = [PLAN_FILE, LOCK_FILE, GENERATED, VARIABLES];

/// Longest single file of a bundle.
const BUNDLE_LIMIT: u64 = 1 << 30;

/// Names in the working directory that belong to the agent or to another place's runs; a configuration that brings
/// them has been worked with locally.
const NOT_FROM_OUTSIDE: [&str; 10] = [
    "terraform.tfstate",
    "terraform.tfstate.backup",
    "terraform.tfstate.d",
    ".terraform.tfstate.lock.info",
    "errored.tfstate",
    ".terraform/environment",
    ".terraform/terraform.tfstate",
    PLAN_FILE,
    VARIABLES,
    "zz_terrapool_override.tf",
];

impl Archive {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(bytes.as_ref()),
            Self::File(path) => Box::new(io::BufReader::new(File::open(path)?)),
        })
    }

    /// 64 hexadecimal digits.
    fn sha256(&self) -> io::Result<String> {
        hash::sha256(self.open()?)
    }
}

impl JobDir {
    /// `config/` itself.
    fn config(&self) -> PathBuf {
        match self.placement.kind {
            ExecutorKind::Process => self.work(),
            ExecutorKind::Docker | ExecutorKind::Sidecar => self.root.join("config"),
        }
    }

    /// The working directory, of which every part is a real directory. Only before the start: nobody changes it then.
    fn existing_working_directory(&self) -> Result<PathBuf> {
        let mut path = self.config();
        for part in Path::new(&self.working_directory).components() {
            path.push(part);
            if !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                let wanted = &self.working_directory;
                return Err(Error::Configuration(format!("it has no working directory `{wanted}`")));
            }
        }
        Ok(path)
    }

    pub(super) fn unpack_configuration_now(&self, archive: &Archive) -> Result<()> {
        let config = self.config();
        let reader = archive.open().map_err(Error::io("read the configuration"))?;
        unpack::unpack(reader, &config, unpack::Limits::default(), None)?;
        let working = self.existing_working_directory()?;
        for name in NOT_FROM_OUTSIDE {
            beneath::remove_any(&working.join(name)).map_err(Error::io(format!("remove {name}")))?;
        }
        Ok(())
    }

    pub(super) fn unpack_plan_now(&self, archive: &Archive) -> Result<()> {
        let working = self.existing_working_directory()?;
        if let Some(was) = &self.spec.planned.sha256 {
            let is = archive.sha256().map_err(Error::io("read the plan"))?;
            if !is.eq_ignore_ascii_case(was) {
                return Err(Error::OtherPlan { is, was: was.clone() });
            }
        }
        for name in BUNDLE {
            beneath::remove_any(&working.join(name)).map_err(Error::io(format!("remove {name}")))?;
        }
        let limits = unpack::Limits { entries: 16, ..unpack::Limits::default() };
        unpack::unpack(archive.open().map_err(Error::io("read the plan"))?, &working, limits, Some(&BUNDLE))
    }

    pub(super) fn put_state_now(&self, state: Option<&[u8]>) -> Result<()> {
        let path = self.existing_working_directory()?.join("terraform.tfstate");
        match state {
            Some(state) => replace(&path, state).map_err(Error::io("write the state")),
            None => beneath::remove_any(&path).map_err(Error::io("remove a state")),
        }
    }

    /// Writes the engine's own configuration. Before [`Self::set_up`].
    pub(in crate::agent) async fn put_cli_config(&self, text: &str) -> Result<()> {
        let (path, text) = (self.root.join(CLI_CONFIG), text.to_owned());
        let write = move || replace(&path, text.as_bytes()).map_err(Error::io("write the engine's configuration"));
        super::blocking(write).await
    }

    /// The last thing before the start: the generated files and the steps, then everything goes to the stage's user.
    /// The hooks stay the agent's.
    pub(in crate::agent) async fn set_up(&self, steps: Steps, hooks: Vec<Hook>) -> Result<()> {
        let dir = self.clone();
        super::blocking(move || dir.set_up_now(&steps, &hooks)).await
    }

    fn set_up_now(&self, steps: &Steps, hooks: &[Hook]) -> Result<()> {
        let doing = || Error::io(format!("fill the job directory {}", self.root.display()));
        let working = self.existing_working_directory()?;
        let name = steps::override_file(self.spec.engine.kind);
        replace(&working.join(name), OVERRIDE.as_bytes()).map_err(doing())?;
        let variables = working.join(VARIABLES);
        let from_plan = self.spec.stage == Stage::Apply && variables.exists();
        if let Some(text) = steps::variables(&self.spec)?.filter(|_| !from_plan) {
            replace(&variables, text.as_bytes()).map_err(doing())?;
        }
        replace(&self.root.join("steps"), steps.to_text().as_bytes()).map_err(doing())?;
        if let Some(owner) = self.placement.owner {
            beneath::give(&self.root, owner).map_err(doing())?;
        }
        if self.placement.open {
            // Made by the runner, the agent could not append to it.
            beneath::append(&self.root, Path::new(LOG)).map_err(doing())?;
            beneath::open_to_all(&self.root).map_err(doing())?;
        }
        self.put_hooks(hooks)?;
        write_private(&self.beside("ready"), b"").map_err(doing())
    }

    fn put_hooks(&self, hooks: &[Hook]) -> Result<()> {
        let folder = self.root.join(FOLDER);
        beneath::remove_any(&folder).map_err(Error::io("remove old hooks"))?;
        if hooks.is_empty() {
            return Ok(());
        }
        // Whatever the umask takes away: the stage's user may be another one, and is to read and start them.
        let mode = |mode| fs::Permissions::from_mode(mode);
        let made = fs::create_dir(&folder).and_then(|()| fs::set_permissions(&folder, mode(0o755)));
        made.map_err(Error::io("make a folder for hooks"))?;
        for Hook { name, path, .. } in hooks {
            let copy = || {
                let mut to = OpenOptions::new().write(true).create_new(true).open(folder.join(name))?;
                io::copy(&mut File::open(path)?, &mut to)?;
                to.set_permissions(mode(0o555))
            };
            copy().map_err(Error::io(format!("copy the hook {}", path.display())))?;
        }
        Ok(())
    }

    /// The folder of hooks, when there is one. Only before the start: the stage can make whatever it likes.
    pub(in crate::agent) fn hooks(&self) -> Option<PathBuf> {
        Some(self.root.join(FOLDER)).filter(|folder| folder.is_dir())
    }

    /// Makes `place` the job's directory: all that is here moves there, and then it takes this one's name. What is mounted
    /// of `place` stays mounted. It has nothing in it but a folder of hooks, which stays the one it is, and lies on the same
    /// file system. Only for a directory that is set up, before the start.
    ///
    /// # Errors
    /// When it was interrupted, and the directory is not set up any more.
    pub(in crate::agent) async fn move_to(&self, place: PathBuf) -> Result<()> {
        let dir = self.clone();
        super::blocking(move || dir.move_to_now(&place)).await
    }

    fn move_to_now(&self, place: &Path) -> Result<()> {
        let doing = || Error::io(format!("move the job directory {}", self.root.display()));
        // A half of a configuration would be another configuration: until all is moved, nothing can be started here.
        let (ready, moving) = (self.beside("ready"), self.beside("moving"));
        fs::rename(&ready, &moving).map_err(doing())?;
        let move_all = |from: &Path, to: &Path| {
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                if from == self.root && entry.file_name() == FOLDER {
                    continue;
                }
                fs::rename(entry.path(), to.join(entry.file_name()))?;
            }
            Ok(())
        };
        if self.hooks().is_some() {
            let folder = self.root.join(FOLDER);
            let moved = move_all(&folder, &place.join(FOLDER)).and_then(|()| fs::remove_dir(&folder));
            moved.map_err(doing())?;
        }
        move_all(&self.root, place).and_then(|()| fs::rename(place, &self.root)).map_err(doing())?;
        fs::rename(moving, ready).map_err(doing())
    }

    pub(super) fn pack_plan_now(&self) -> Result<Option<PathBuf>> {
        let doing = || Error::io("pack the plan");
        let Some(plan) = self.open_in_config(PLAN_FILE)? else { return Ok(None) };
        let path = self.beside("plan.tgz");
        beneath::remove_any(&path).map_err(doing())?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(doing())?;
        // The plan file is a zip of its own: more effort would find nothing.
        let mut bundle = tar::Builder::new(GzEncoder::new(io::BufWriter::new(file), Compression::fast()));
        add(&mut bundle, PLAN_FILE, &plan).map_err(doing())?;
        for name in &BUNDLE[1..] {
            if let Some(part) = self.open_in_config(name)? {
                add(&mut bundle, name, &part).map_err(doing())?;
            }
        }
        let written = bundle.into_inner().and_then(GzEncoder::finish).and_then(|mut file| file.flush());
        written.map_err(doing())?;
        Ok(Some(path))
    }
}

fn add(bundle: &mut tar::Builder<impl Write>, name: &str, file: &File) -> io::Result<()> {
    let size = file.metadata()?.len();
    if size > BUNDLE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{name} is longer than {BUNDLE_LIMIT} bytes")));
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    bundle.append_data(&mut header, name, file.take(size))
}

/// Puts a file in the place of whatever is there; a link is replaced, not followed.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    beneath::remove_any(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}
