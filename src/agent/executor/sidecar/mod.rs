//! Stages in a container that stands beside the agent's in one Pod and shares a volume with it ([`crate::api::sidecar`]
//! says what the Pod looks like). The runner waits there; a job is handed over by files and a pipe, so that neither
//! side needs Docker, Kubernetes or any right on the host. A Pod has one job in its life.
//!
//! ```text
//! place-runner   makes runner, wake (a pipe), runner.lock
//! agent          holds wake open, makes agent-here
//! runner         locks runner.lock, makes ready; from now on the agent may claim
//! agent          makes job/ in the volume and fills it; renames go into place; a byte into wake
//! runner         runs the stage in job/ as in any executor, writes job/result, ends
//! ```
//!
//! Each side learns of the other's end from the kernel: the runner by the pipe that nobody holds, the agent by the lock
//! that can be taken. The stage can do what it likes in the volume, and thereby harms only itself: nothing secret
//! lies there but what the stage is given, and whatever the agent reads after the start is opened with care.

mod place;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use rustix::fs::OFlags;

pub use place::place_runner;

use super::{
    Error, Exit, KILL_PATIENCE, POLL, Prepared, Result, Settings, Signal, end::end, runner, set_up_in_place, volume,
};
use crate::{
    agent::{
        engine::{self, Engines},
        jobdir::{JobDir, Placement, RESULT},
    },
    api::{
        agent::{ExecutorKind, JobRef},
        job::JobSpec,
    },
    files::write_private,
    ids::JobId,
};

/// How often it is looked whether the runner of an idle agent still lives.
const LOOK: Duration = Duration::from_millis(250);

/// Longest text that a runner says of itself.
const READY_LIMIT: u64 = 4096;

#[derive(Debug)]
pub struct Sidecar {
    settings: Settings,
    volume: PathBuf,
    engines: Engines,
    /// Its end is what the runner sees of the agent's.
    wake: File,
    runner: OnceLock<Runner>,
}

/// The runner that said that it is ready.
#[derive(Debug)]
struct Runner {
    ready: volume::Ready,
    lock: File,
}

impl Runner {
    fn lives(&self) -> bool {
        runner::holds(&self.lock)
    }
}

fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing: what.into(), source }
}

/// What is there when the run container ends before its time.
fn ended() -> Error {
    Error::Gone(
        "The run container ended before the job was handed to it: see its status in the Pod, and start a new Pod"
            .to_owned(),
    )
}

impl Sidecar {
    /// Tells the runner that its agent is here.
    pub(super) fn connect(settings: Settings) -> Result<Self> {
        let volume = settings.volume.clone();
        let path = volume.join(volume::WAKE);
        if !fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_fifo()) {
            let volume = volume.display();
            return Err(Error::Refused(format!(
                "{volume} is not prepared for a run container: first `terrapool agent place-runner {volume}`"
            )));
        }
        if let Some(mirror) = settings.providers.directory() {
            return Err(Error::Refused(format!(
                "the run container of a Pod does not see the directory {}: name a network mirror (--provider-mirror URL)",
                mirror.display()
            )));
        }
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        // For reading too: thus it can be opened when no runner is there yet.
        let wake = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(&path);
        let wake = wake.map_err(doing(format!("open {}", path.display())))?;
        write_private(&volume.join(volume::HERE), b"").map_err(doing(format!("write to {}", volume.display())))?;
        let engines = Engines::new(settings.engines.dir.clone(), Vec::new());
        Ok(Self { volume, engines, wake, runner: OnceLock::new(), settings })
    }

    /// Waits until the runner stands ready; an error: it does not any more, or never will for this agent.
    pub(super) async fn ready(&self) -> Result<()> {
        let runner = loop {
            if let Some(runner) = self.runner()? {
                break runner;
            }
            tokio::time::sleep(POLL).await;
        };
        let Self { settings, .. } = self;
        let uid = runner.ready.uid;
        if settings.run_as_root != (uid == 0) {
            return Err(Error::Refused(match settings.run_as_root {
                true => format!(
                    "the pool runs its jobs as root, but the run container's user is {uid}: give it `runAsUser: 0`"
                ),
                false => {
                    "the run container's user is root, which the pool does not allow: give it `runAsUser`, or the \
                          agent `--user root`"
                        .to_owned()
                }
            }));
        }
        if runner.lives() { Ok(()) } else { Err(ended()) }
    }

    fn runner(&self) -> Result<Option<&Runner>> {
        if let Some(runner) = self.runner.get() {
            return Ok(Some(runner));
        }
        let path = self.volume.join(volume::READY);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(READY_LIMIT).read_to_string(&mut text)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(doing(format!("read {}", path.display())))?,
        };
        let ready = volume::Ready::parse(&text)
            .map_err(|error| Error::Refused(format!("{} is not a runner's: it {error}", path.display())))?;
        let path = self.volume.join(volume::LOCK);
        let lock = File::open(&path).map_err(doing(format!("open {}", path.display())))?;
        tracing::debug!(?ready, "the run container is ready");
        Ok(Some(self.runner.get_or_init(|| Runner { ready, lock })))
    }

    fn lives(&self) -> bool {
        matches!(self.runner(), Ok(Some(runner)) if runner.lives())
    }

    /// Resolves when the run container has ended.
    pub(super) async fn lost(&self) {
        while self.lives() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The run container's image, when jobs name it.
    pub(super) fn image(&self) -> Option<String> {
        self.settings.run_image.clone()
    }

    fn job_dir(&self) -> PathBuf {
        self.volume.join(volume::JOB)
    }

    fn has_been_handed_over(&self) -> bool {
        self.volume.join(volume::GO).symlink_metadata().is_ok()
    }

    pub(super) fn placement(&self) -> Placement {
        let mut placement = Placement { root: Some(self.job_dir()), ..Placement::of(ExecutorKind::Sidecar) };
        if let Ok(Some(Runner { ready: volume::Ready { uid, gid, .. }, .. })) = self.runner() {
            let own = rustix::process::geteuid();
            match own.is_root() {
                _ if own.as_raw() == *uid => {}
                true => placement.owner = Some((*uid, *gid)),
                // It cannot be given away. Nobody but the two containers sees the volume.
                false => placement.open = true,
            }
        }
        placement
    }

    pub(super) async fn prepare(&self, spec: &JobSpec) -> Result<Prepared> {
        self.ready().await?;
        if spec.run_as_root != self.settings.run_as_root {
            let (wanted, is) = if spec.run_as_root { ("as root", "not") } else { ("not as root", "root") };
            return Err(Error::Refused(format!(
                "the pool runs its jobs {wanted}, but this Pod, which is older than that setting, is {is}; start the run \
                 once more"
            )));
        }
        let image = self.image();
        if spec.image != image {
            let detail = match &image {
                Some(image) => format!("this Pod's run container was made from {image}"),
                None => "this Pod's run container is for jobs that name no image".to_owned(),
            };
            return Err(Error::Image { image: spec.image.clone().unwrap_or_else(|| "of the pool".to_owned()), detail });
        }
        let engine = match self.engines.find(&spec.engine).await {
            Some(found) if engine::is_static(&found) => Some(self.place_engine(&found).await?),
            Some(found) => {
                tracing::warn!(engine = %found.display(), "not statically linked, so it may not run in the run image: not used");
                None
            }
            None => None,
        };
        Ok(Prepared { image, image_digest: None, engine })
    }

    /// The agent's engine, where the run container sees it.
    async fn place_engine(&self, from: &Path) -> Result<PathBuf> {
        let name = from.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (from, to) = (from.to_owned(), self.volume.join(format!("engine-{name}")));
        let placed = to.clone();
        let copied = tokio::task::spawn_blocking(move || place::engine(&from, &to)).await;
        let copied = copied.unwrap_or_else(|error| Err(io::Error::other(error)));
        copied.map_err(doing(format!("put the engine at {}", placed.display())))?;
        Ok(placed)
    }

    pub(super) async fn start(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        if self.has_been_handed_over() || dir.has_begun() {
            return Ok(());
        }
        if !self.lives() {
            return Err(ended());
        }
        if !dir.is_set_up() {
            set_up_in_place(dir, spec, prepared, &self.settings).await?;
        }
        let hand_over = || {
            let draft = self.volume.join("go.tmp");
            fs::write(&draft, format!("{} {}\n", spec.job_id, spec.epoch))?;
            fs::rename(draft, self.volume.join(volume::GO))?;
            (&self.wake).write_all(b"g")
        };
        hand_over().map_err(doing("hand the job to the run container"))
    }

    pub(super) async fn wait(&self, dir: &JobDir) -> Result<Exit> {
        let gone = Exit::Gone { code: None, out_of_memory: false };
        end(dir, &self.settings.watches, || async move { Ok((!self.lives()).then_some(gone)) }).await
    }

    pub(super) fn is_alive(&self) -> bool {
        self.has_been_handed_over() && self.lives()
    }

    /// There is no harder means than the file: no process can reach into another container.
    pub(super) async fn signal(&self, dir: &JobDir, signal: Signal) -> Result<()> {
        match signal {
            Signal::Interrupt => Ok(dir.write_cancel("interrupt").await?),
            Signal::Kill => {
                dir.write_cancel("kill").await?;
                drop(tokio::time::timeout(KILL_PATIENCE, self.wait(dir)).await);
                Ok(())
            }
        }
    }

    pub(super) async fn remove(&self, dir: &JobDir) -> Result<()> {
        if !dir.has_result() && self.is_alive() {
            return self.signal(dir, Signal::Kill).await;
        }
        Ok(())
    }

    /// Kills the stage if its job is not to be kept.
    pub(super) fn sweep(&self, keep: &[JobRef]) -> Result<Vec<JobId>> {
        let mut text = String::new();
        let go = File::open(self.volume.join(volume::GO));
        let Ok(_) = go.and_then(|file| file.take(READY_LIMIT).read_to_string(&mut text)) else { return Ok(Vec::new()) };
        let Some((id, epoch)) = text.trim().split_once(' ') else { return Ok(Vec::new()) };
        let kept = |job: &JobRef| job.job_id.as_str() == id && job.epoch.to_string() == epoch;
        if keep.iter().any(kept) || !self.lives() || self.job_dir().join(RESULT).symlink_metadata().is_ok() {
            return Ok(Vec::new());
        }
        let (draft, cancel) = (self.job_dir().join("cancel.tmp"), self.job_dir().join("cancel"));
        let written = fs::remove_file(&draft).or(Ok(())).and_then(|()| {
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&draft)?.write_all(b"kill")?;
            fs::rename(&draft, cancel)
        });
        written.map_err(doing("kill a stage of an unknown job"))?;
        Ok(id.parse().into_iter().collect())
    }
}
