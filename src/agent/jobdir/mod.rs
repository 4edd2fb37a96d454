//! The job directory: all that a stage gets and gives. Lives below `<data>/jobs/`.
//!
//! The stage may be hostile, and it owns the directory while it runs: whatever this module reads after the start is
//! opened without following links, must be a regular file, and has a limit on its size.
//!
//! ```text
//! <data>/jobs/<job>.json       the job and its placement; 0600; never in reach of the stage
//! <data>/jobs/<job>.plan.tgz   the plan artifact, made after the end
//! <data>/jobs/<job>.pid        Process executor: who runs it
//! <data>/jobs/<job>/           (Sidecar executor: in the common volume) 0700, owned by the stage's user: steps, config/, log, masks, artifacts/, home/, tmp/, provider-cache/, cancel, result; hooks/ stays the agent's
//! <data>/work/<run>/           Process executor: what config/ leads to, so that plan and apply see the same path
//! <data>/work/<run>.job        Process executor: the job that it belongs to now
//! ```

mod beneath;
mod files;
pub mod unpack;
mod work;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::steps::{
    self,
    format::{MASKS, Mask, Report},
};
use crate::{
    api::{
        agent::{ExecutorKind, reason},
        job::JobSpec,
    },
    files::write_private,
    telemetry::Chain,
};

/// Where the runner writes what the stage says.
pub(super) const LOG: &str = "log";

/// What the runner makes, whole, as its last act.
pub(super) const RESULT: &str = "result";

/// Longest `result` that is read.
const RESULT_LIMIT: u64 = 64 * 1024;

/// Longest `masks` that is read, and the most of them: more than the runner writes, so what is beyond is a stage's mischief.
const MASKS_LIMIT: u64 = 1 << 20;
const MOST_MASKS: usize = 400;

/// Longest state that is read.
const STATE_LIMIT: u64 = 512 << 20;

/// Less room than this on the disk counts as full.
const FULL: u64 = 1 << 20;

/// Where a job's files lie and whose they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub kind: ExecutorKind,
    /// User and group that the stage runs as and to whom the files are given; absent: the agent's own.
    pub owner: Option<(u32, u32)>,
    /// The directory itself, when it does not lie below the agent's data. It has one job at a time.
    #[serde(default)]
    pub root: Option<PathBuf>,
    /// The stage's user is another one, to whom nothing can be given: everybody who sees the directory may write it.
    #[serde(default)]
    pub open: bool,
}

impl Placement {
    /// Below the agent's data, and the agent's own.
    #[must_use]
    pub fn of(kind: ExecutorKind) -> Self {
        Self { kind, owner: None, root: None, open: false }
    }
}

/// A configuration or plan bundle: tar.gz.
#[derive(Debug, Clone)]
pub enum Archive {
    Bytes(Bytes),
    File(PathBuf),
}

/// One job's directory.
#[derive(Debug, Clone)]
pub struct JobDir {
    data: PathBuf,
    /// What the names of the files beside the directory begin with.
    base: PathBuf,
    root: PathBuf,
    spec: std::sync::Arc<JobSpec>,
    placement: Placement,
    /// The stage's working directory below `config/`.
    working_directory: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration cannot be used: {0}")]
    Configuration(String),
    #[error("could not {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Steps(#[from] steps::Error),
    #[error("the result of the stage cannot be understood: {0}")]
    Result(String),
    #[error("the secrets that hooks declared cannot be understood: {0}")]
    Masks(String),
    #[error(
        "the saved plan is not the one that was made: its SHA-256 is {is} and was {was}; nothing was applied. Look into \
         the control plane's storage, and start another run"
    )]
    OtherPlan { is: String, was: String },
}

impl Error {
    /// Value of [`crate::api::agent::FinishRequest::reason`] for a job that ended with this error.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Configuration(_) | Self::Steps(_) => reason::BAD_CONFIGURATION,
            Self::Io { source, .. } => reason_of_io(source),
            Self::Result(_) | Self::Masks(_) | Self::OtherPlan { .. } => reason::AGENT_ERROR,
        }
    }

    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing: doing.into(), source }
    }
}

/// A full disk has a reason of its own.
#[must_use]
pub fn reason_of_io(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => reason::OUT_OF_SPACE,
        _ => reason::AGENT_ERROR,
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// Runs file work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::io("finish work on the job directory")(io::Error::other(error))),
    }
}

/// What is stored beside the directory.
#[derive(Serialize, Deserialize)]
struct Stored {
    placement: Placement,
    spec: JobSpec,
}

impl JobDir {
    fn at(data: &Path, spec: &JobSpec, placement: Placement) -> Result<Self> {
        let base = data.join("jobs").join(spec.job_id.as_str());
        Ok(Self {
            data: data.to_owned(),
            root: placement.root.clone().unwrap_or_else(|| base.clone()),
            base,
            working_directory: steps::working_directory(&spec.workspace.working_directory)?,
            spec: std::sync::Arc::new(spec.clone()),
            placement,
        })
    }

    /// Makes the directory of a job and stores its spec beside it; what an earlier epoch left there is removed.
    /// The caller has made sure that nothing runs there any more ([`super::executor::Executor::remove`]).
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub async fn create(data: &Path, spec: &JobSpec, placement: Placement) -> Result<Self> {
        let dir = Self::at(data, spec, placement)?;
        let made = dir.clone();
        // On a full disk the half of it would stay in the way of what is there.
        blocking(move || dir.create_now().inspect_err(|_| drop(dir.remove_now()))).await?;
        Ok(made)
    }

    fn create_now(&self) -> Result<()> {
        let doing = || Error::io(format!("make the job directory {}", self.root.display()));
        let mut private = fs::DirBuilder::new();
        private.mode(0o700).recursive(true);
        private.create(self.data.join("jobs")).map_err(doing())?;
        self.remove_now()?;
        private.recursive(false);
        for dir in [self.root.clone(), self.root.join("artifacts"), self.root.join("home"), self.root.join("tmp")] {
            private.create(dir).map_err(doing())?;
        }
        if self.placement.kind == ExecutorKind::Process {
            work::take(&self.data, &self.spec.run.id, &self.spec.job_id).map_err(doing())?;
            symlink(self.work(), self.root.join("config")).map_err(doing())?;
        } else {
            private.create(self.root.join("config")).map_err(doing())?;
        }
        let stored = Stored { placement: self.placement.clone(), spec: (*self.spec).clone() };
        let text = serde_json::to_vec(&stored).map_err(|error| doing()(error.into()))?;
        write_private(&self.beside("json"), &text).map_err(doing())
    }

    /// The jobs that an earlier process of this agent left below `data`. Directories of jobs that were never stored
    /// whole, or whose removal was interrupted, are removed.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub async fn scan(data: &Path) -> Result<Vec<(JobSpec, Self)>> {
        let data = data.to_owned();
        blocking(move || Self::scan_now(&data)).await
    }

    fn scan_now(data: &Path) -> Result<Vec<(JobSpec, Self)>> {
        let jobs = data.join("jobs");
        let doing = || Error::io(format!("look for jobs in {}", jobs.display()));
        let entries = match fs::read_dir(&jobs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(doing()(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(doing())?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read(&path).map_err(doing())?;
                match serde_json::from_slice::<Stored>(&text) {
                    Ok(Stored { placement, spec }) => {
                        let dir = Self::at(data, &spec, placement)?;
                        found.push((spec, dir));
                    }
                    Err(error) => {
                        tracing::warn!(file = %path.display(), error = %Chain(&error), "a stored job cannot be read");
                    }
                }
            } else if path.is_dir() && !path.with_added_extension("json").exists() {
                beneath::remove_any(&path).map_err(doing())?;
            }
        }
        Ok(found)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// A file beside the directory, out of the stage's reach.
    pub(super) fn beside(&self, extension: &str) -> PathBuf {
        self.base.with_added_extension(extension)
    }

    fn work(&self) -> PathBuf {
        work::path(&self.data, &self.spec.run.id)
    }

    /// Everything has been written that the stage needs: [`super::executor::Executor::start`] may be called (again).
    /// Otherwise the work on the directory was interrupted, and begins anew with [`Self::create`].
    #[must_use]
    pub fn is_set_up(&self) -> bool {
        self.beside("ready").exists()
    }

    /// The runner has begun: the stage must not be started again.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        ["result.tmp", RESULT].into_iter().any(|name| self.root.join(name).symlink_metadata().is_ok())
    }

    /// The runner has written its result.
    #[must_use]
    pub fn has_result(&self) -> bool {
        self.root.join(RESULT).symlink_metadata().is_ok()
    }

    /// Unpacks the configuration into `config/`. What would be taken for the state, a plan or settings of another
    /// place is left out.
    ///
    /// # Errors
    /// [`Error::Configuration`] names what is wrong with the archive.
    pub async fn unpack_configuration(&self, archive: Archive) -> Result<()> {
        let dir = self.clone();
        blocking(move || dir.unpack_configuration_now(&archive)).await
    }

    /// Puts what the plan stage made ([`Self::pack_plan`]) over the configuration.
    ///
    /// # Errors
    /// As [`Self::unpack_configuration`].
    pub async fn unpack_plan(&self, archive: Archive) -> Result<()> {
        let dir = self.clone();
        blocking(move || dir.unpack_plan_now(&archive)).await
    }

    /// Writes the workspace's state, or with `None` removes what the configuration brought in its place.
    /// After [`Self::unpack_configuration`].
    ///
    /// # Errors
    /// [`Error::Configuration`] when the working directory is not in the configuration.
    pub async fn put_state(&self, state: Option<Bytes>) -> Result<()> {
        let dir = self.clone();
        blocking(move || dir.put_state_now(state.as_deref())).await
    }

    /// The state as the engine wrote it last; `None`: there is none. Half-written ones are the caller's to notice.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub async fn state(&self) -> Result<Option<Bytes>> {
        self.read_in_config("terraform.tfstate", STATE_LIMIT).await
    }

    /// Changes whenever the state file does: cheap enough to be asked ten times a second. `None`: there is none.
    #[must_use]
    pub fn state_stamp(&self) -> Option<(std::time::SystemTime, u64)> {
        let file = self.open_in_config("terraform.tfstate").ok()??;
        let meta = file.metadata().ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }

    /// The `errored.tfstate` that the engine leaves when it could not write its state.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn errored_state(&self) -> Result<Option<Bytes>> {
        self.read_in_config("errored.tfstate", STATE_LIMIT).await
    }

    /// The dependency lock file, of `limit` bytes at most; `None`: there is none.
    ///
    /// # Errors
    /// When it is longer, no regular file, or cannot be read.
    pub(super) async fn lock_file(&self, limit: u64) -> Result<Option<Bytes>> {
        self.read_in_config(steps::LOCK_FILE, limit).await
    }

    /// A folder of the directory, to look at what the stage left in it; `None`: there is none.
    ///
    /// # Errors
    /// When it is something else, or cannot be opened.
    pub(super) async fn open_folder(&self, name: &'static str) -> Result<Option<OwnedFd>> {
        let root = self.root.clone();
        blocking(move || beneath::open_dir(&root, name).map_err(Error::io(format!("open {name} of the stage")))).await
    }

    async fn read_in_config(&self, name: &'static str, limit: u64) -> Result<Option<Bytes>> {
        let dir = self.clone();
        blocking(move || {
            let (base, path) = dir.in_config(name);
            let read = beneath::read(&base, &path, limit);
            Ok(read.map_err(Error::io(format!("read {name} of the stage")))?.map(Bytes::from))
        })
        .await
    }

    fn open_in_config(&self, name: &str) -> Result<Option<File>> {
        let (base, path) = self.in_config(name);
        beneath::open(&base, &path).map_err(Error::io(format!("open {name} of the stage")))
    }

    /// A file of the working directory: where to begin without following links, and the way from there.
    fn in_config(&self, name: &str) -> (PathBuf, PathBuf) {
        let below = Path::new(&self.working_directory).join(name);
        match self.placement.kind {
            ExecutorKind::Process => (self.work(), below),
            ExecutorKind::Docker | ExecutorKind::Sidecar => (self.root.clone(), Path::new("config").join(below)),
        }
    }

    /// What the runner wrote at its end; `None`: it has not.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub async fn result(&self) -> Result<Option<Report>> {
        let root = self.root.clone();
        blocking(move || {
            let read = beneath::read(&root, Path::new(RESULT), RESULT_LIMIT);
            let Some(text) = read.map_err(Error::io("read the result of the stage"))? else { return Ok(None) };
            Report::parse(&String::from_utf8_lossy(&text)).map(Some).map_err(Error::Result)
        })
        .await
    }

    /// The log, positioned at `offset`; `None`: there is none yet. For use on a blocking thread or through
    /// `tokio::fs::File::from_std`.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub fn open_log(&self, offset: u64) -> Result<Option<File>> {
        let doing = || Error::io("read the log of the stage");
        let Some(mut file) = beneath::open(&self.root, Path::new(LOG)).map_err(doing())? else { return Ok(None) };
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(doing())?;
        }
        Ok(Some(file))
    }

    /// Bytes of the log, by one system call. What is no file has more than can be read: whoever opens it learns why.
    pub(super) fn log_length(&self) -> u64 {
        match self.root.join(LOG).symlink_metadata() {
            Ok(found) if found.is_file() => found.len(),
            Ok(_) => u64::MAX,
            Err(_) => 0,
        }
    }

    /// What hooks declared to be secret. Read after a part of the log, it has all that was known before that part.
    ///
    /// # Errors
    /// When it cannot be read or understood: then nothing more of the log may be shown.
    pub(super) fn masks(&self) -> Result<Vec<Mask>> {
        let read = beneath::read(&self.root, Path::new(MASKS), MASKS_LIMIT);
        let Some(text) = read.map_err(Error::io("read the secrets that hooks declared"))? else {
            return Ok(Vec::new());
        };
        // A character may be written in half, as may be its line.
        let masks = Mask::parse_all(&String::from_utf8_lossy(&text)).map_err(Error::Masks)?;
        if masks.len() > MOST_MASKS { Err(Error::Masks("there are too many".to_owned())) } else { Ok(masks) }
    }

    /// Appends a line of the agent's own to the log: for what happens before the runner starts or after it ended.
    /// A stage that runs has exactly three lines before its first word, so nothing is appended before it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn append_log(&self, text: &str) -> Result<()> {
        let (root, line) = (self.root.clone(), format!("{text}\n"));
        blocking(move || {
            beneath::append(&root, Path::new(LOG))
                .and_then(|mut log| log.write_all(line.as_bytes()))
                .map_err(Error::io("write to the log of the stage"))
        })
        .await
    }

    /// Makes the artifact that an apply needs from its plan; `None`: there is no plan file. Only after the stage has
    /// ended.
    ///
    /// # Errors
    /// When a part is not a regular file or cannot be read.
    pub async fn pack_plan(&self) -> Result<Option<PathBuf>> {
        let dir = self.clone();
        blocking(move || dir.pack_plan_now()).await
    }

    /// The plan as JSON; `None`: there is none. Only after the stage has ended.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub fn open_plan_json(&self) -> Result<Option<File>> {
        beneath::open(&self.root, Path::new(steps::PLAN_JSON)).map_err(Error::io("read the plan as JSON"))
    }

    /// There is no room on the disk any more.
    #[must_use]
    pub fn disk_full(&self) -> bool {
        let full = |path| {
            rustix::fs::statvfs(path)
                .is_ok_and(|disk: rustix::fs::StatVfs| disk.f_bavail.saturating_mul(disk.f_frsize) < FULL)
        };
        full(&self.data) || full(&self.root)
    }

    /// Tells the runner to end the stage: `interrupt` or `kill`.
    pub(super) async fn write_cancel(&self, word: &'static str) -> Result<()> {
        let root = self.root.clone();
        blocking(move || {
            // The name appears with its content: the runner may look at any moment.
            let doing = || Error::io("ask the stage to end");
            let tmp = root.join("cancel.tmp");
            beneath::remove_any(&tmp).map_err(doing())?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&tmp).map_err(doing())?;
            file.write_all(word.as_bytes()).map_err(doing())?;
            fs::rename(&tmp, root.join("cancel")).map_err(doing())
        })
        .await
    }

    /// Removes the directory and the stored spec. Harmless when repeated.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub async fn remove(&self) -> Result<()> {
        let dir = self.clone();
        blocking(move || dir.remove_now()).await
    }

    fn remove_now(&self) -> Result<()> {
        let doing = || Error::io(format!("remove the job directory {}", self.root.display()));
        // The spec first: a directory without one is what scan() clears away.
        for extension in ["json", "json.tmp", "ready", "moving", "pid", "plan.tgz"] {
            beneath::remove_any(&self.beside(extension)).map_err(doing())?;
        }
        if self.placement.kind == ExecutorKind::Process {
            work::give_up(&self.data, &self.spec.run.id, &self.spec.job_id).map_err(doing())?;
        }
        match beneath::remove_any(&self.root) {
            // Made by the stage's user, which is neither this one nor inferior to it. The volume goes with its Pod.
            Err(error) if self.placement.open && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            removed => removed.map_err(doing()),
        }
    }
}
