//! Containers that were started before their job is known and wait for it, so that a claimed job need not wait for them.
//! Each has one job in its life. The hand-over, step by step, and what an agent's end after each step leaves:
//!
//! ```text
//!   the container's place is renamed after the job   a container that waits in vain and ends; removed at the next start
//!   the job's files move into its directory          the same; a plan begins anew, an apply has failed
//!   the container is renamed after the job           the same
//!   the file `go` appears                            the stage runs: never started again, only waited for
//!   the pipe is closed                               the runner wakes, looks for `go`, and begins
//! ```
//!
//! The kernel closes the pipe of an agent that dies, so its containers end by themselves: no runner waits for nobody, and
//! none that was told its job misses it.

mod place;
mod plan;

use std::{
    collections::HashSet,
    fs, io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bollard::{models::ContainerCreateBody, query_parameters::RenameContainerOptionsBuilder};
use tokio::sync::Notify;

pub use plan::Room;

use self::{
    place::{Line, Place},
    plan::{Idle, Plan, decide},
};
use super::{
    Content, Docker, Outside, POLL, Way, failed, image, is_caused, is_status,
    profile::{self, essence},
};
use crate::{
    agent::{
        backoff::Backoff,
        executor::{Error, Prepared, Result, Settings, runner},
        jobdir::JobDir,
        random_text,
    },
    api::job::{JobSpec, Limits},
    telemetry::Chain,
};

/// Longest time for the runner of a started container to come to its wait.
const TO_WAIT: Duration = Duration::from_secs(30);

/// What a job wants of its container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// Id of the image.
    pub(super) image: String,
    /// The pool asks for root.
    pub(super) root: bool,
    /// The job's own.
    pub(super) limits: Limits,
}

impl Wish {
    pub(super) fn of(spec: &JobSpec, prepared: &Prepared) -> Self {
        Self { image: prepared.image.clone().unwrap_or_default(), root: spec.run_as_root, limits: spec.limits.clone() }
    }
}

/// The containers of one agent that wait.
#[derive(Debug)]
pub(super) struct Warm {
    /// How many are to wait.
    wanted: usize,
    /// Their places.
    dir: PathBuf,
    list: Mutex<List>,
    /// One was taken, or others are wanted.
    changed: Notify,
}

#[derive(Debug, Default)]
struct List {
    waiting: Vec<Waiting>,
    /// To be removed: of no use any more, or not finished.
    condemned: Vec<String>,
    /// What the last job wanted; absent: what a job wants that names nothing.
    wish: Option<Wish>,
    backoff: Backoff,
    /// None is made before.
    not_before: Option<Instant>,
}

/// A container that waits.
#[derive(Debug)]
struct Waiting {
    id: String,
    wish: Wish,
    essence: ContainerCreateBody,
    line: Line,
}

impl Waiting {
    fn lives(&self) -> bool {
        runner::holds(&self.line.lock)
    }
}

impl Warm {
    pub(super) fn new(settings: &Settings, selinux: bool) -> Self {
        if settings.warm > 0 && selinux {
            // Files that move keep the label of the place where they were made, and the run could not read them.
            tracing::warn!("no containers wait for jobs (--warm): the Docker engine labels files for SELinux");
        }
        let wanted = if selinux { 0 } else { settings.warm };
        Self { wanted, dir: settings.data.join("warm"), list: Mutex::default(), changed: Notify::new() }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, name: &str) -> Place {
        Place::at(self.dir.join(name))
    }

    /// A job was about to be handed over to the container of that name, which has not begun, and must not.
    pub(super) fn is_cut_short(&self, name: &str) -> bool {
        let place = self.place(name);
        place.exists() && !place.has_gone()
    }

    /// Removes the place of a container that is gone.
    pub(super) async fn forget(&self, name: &str) -> Result<()> {
        let place = self.place(name);
        blocking("remove what a container had", move || place.remove()).await
    }

    /// Removes the places of all but these containers.
    pub(super) async fn sweep(&self, keep: HashSet<String>) -> Result<()> {
        let dir = self.dir.clone();
        blocking("remove what old containers had", move || {
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                let path = entry?.path();
                let kept = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| keep.contains(name));
                let place = Place::at(path);
                if !(kept && place.has_gone()) {
                    place.remove()?;
                }
            }
            Ok(())
        })
        .await
    }

    /// One that is just what the job would get, if there is one. From now on such ones are to wait.
    fn take(&self, wish: &Wish, essence: &ContainerCreateBody) -> Option<Waiting> {
        let mut list = self.list();
        let taken = loop {
            let fits = |waiting: &Waiting| waiting.wish == *wish;
            let Some(position) = list.waiting.iter().position(fits) else { break None };
            let waiting = list.waiting.swap_remove(position);
            if waiting.essence == *essence && waiting.lives() {
                break Some(waiting);
            }
            // Its network is another one, or it is dead.
            list.condemned.push(waiting.id);
        };
        list.wish = Some(wish.clone());
        self.changed.notify_one();
        taken
    }

    /// Puts those that are to go on the list of the condemned; says whether one is to be made.
    fn plan(&self, room: Room, busy: usize) -> bool {
        let mut list = self.list();
        let wish = list.wish.clone();
        let idle = |waiting: &Waiting| Idle { lives: waiting.lives(), fits: wish.as_ref() == Some(&waiting.wish) };
        let idle: Vec<Idle> = list.waiting.iter().map(idle).collect();
        let Plan { remove, create } = decide(self.wanted, room, busy, &idle);
        for position in remove.into_iter().rev() {
            let Waiting { id, .. } = list.waiting.swap_remove(position);
            if !idle[position].lives {
                tracing::warn!(container = profile::warm_name(&id), "a container that waited for a job has ended");
                list.put_off();
            }
            list.condemned.push(id);
        }
        create && list.not_before.is_none_or(|at| at <= Instant::now())
    }
}

impl List {
    /// The next one is not made at once.
    fn put_off(&mut self) {
        self.not_before = Some(Instant::now() + self.backoff.next(None));
    }
}

impl Docker {
    /// Containers that wait now.
    pub(in crate::agent::executor) fn waiting(&self) -> usize {
        self.warm.list().waiting.len()
    }

    /// Resolves when a container was taken, or others are to wait.
    pub(in crate::agent::executor) async fn warm_changed(&self) {
        self.warm.changed.notified().await;
    }

    /// Makes and removes containers that wait, as there is room; says whether there is more to do at once.
    pub(in crate::agent::executor) async fn keep_warm(&self, room: Room) -> Result<bool> {
        if self.warm.wanted == 0 {
            return Ok(false);
        }
        self.reach.renew().await;
        let busy = match room.slots {
            0 => 0,
            _ => self.containers().await?.iter().filter(|found| found.job.is_some()).count(),
        };
        let create = self.warm.plan(room, busy);
        let condemned = self.warm.list().condemned.clone();
        for id in condemned {
            self.discard(&id).await?;
        }
        if !create {
            return Ok(false);
        }
        let made = self.make_one().await;
        self.health.note(&self.engine, &made);
        if let Err(error) = &made {
            let mut list = self.warm.list();
            list.put_off();
            if is_caused(error, |cause| is_status(cause, 404)) {
                // The image of the last job is gone.
                list.wish = None;
            }
        }
        made.map(|()| true)
    }

    /// Removes one that has no job.
    async fn discard(&self, id: &str) -> Result<()> {
        self.remove_container(&profile::warm_name(id)).await?;
        self.warm.forget(id).await?;
        self.warm.list().condemned.retain(|condemned| condemned != id);
        tracing::debug!(container = profile::warm_name(id), "removed a container that waited for a job");
        Ok(())
    }

    /// What a job wants that names nothing.
    async fn default_wish(&self) -> Result<Wish> {
        let Settings { isolation, default_image, .. } = &self.settings;
        let image = match image::wanted(default_image.as_deref(), None, &isolation.allowed_images)? {
            Some(wanted) => self.obtain(&wanted, isolation.pull).await?,
            None => self.obtain_minimal().await?,
        };
        Ok(Wish { image: image.id, root: false, limits: Limits::default() })
    }

    async fn make_one(&self) -> Result<()> {
        let begun = Instant::now();
        let known = self.warm.list().wish.clone();
        let wish = match known {
            Some(wish) => wish,
            None => self.default_wish().await?,
        };
        let id = random_text();
        // Whatever comes between, it is removed, unless it waits in the end.
        self.warm.list().condemned.push(id.clone());
        let _hold = self.reach.hold().await;
        let way = self.reach.make(&self.engine).await?;
        let (place, owner) = (self.warm.place(&id), self.user(self.is_root(wish.root)).1);
        let (made, jobs) = (place.clone(), self.settings.data.join("jobs"));
        let line = blocking("make room for a container that waits", move || made.make(owner, &jobs)).await?;
        let (job, hooks, line_dir, engines) = (place.job(), place.hooks(), place.line(), place.engines());
        let outside = Outside { job_dir: &job, hooks: Some(&hooks), way: &way };
        let body = self.body(&wish, Content::Warm { id: &id, line: &line_dir, engines: &engines }, outside)?;
        let waiting = Waiting { essence: essence(body.clone()), wish, line, id };
        let name = profile::warm_name(&waiting.id);
        self.create_container(&name, body).await?;
        self.engine.start_container(&name, None).await.map_err(failed("start a container that waits for a job"))?;
        while !waiting.lives() {
            if begun.elapsed() > TO_WAIT {
                return Err(Error::Refused(format!("the runner in {name} does not come to its wait")));
            }
            tokio::time::sleep(POLL).await;
        }
        tracing::debug!(container = name, image = waiting.wish.image, took = ?begun.elapsed(), "a container waits for a job");
        let mut list = self.warm.list();
        list.wish.get_or_insert_with(|| waiting.wish.clone());
        list.condemned.retain(|condemned| *condemned != waiting.id);
        list.waiting.push(waiting);
        Ok(())
    }

    /// Gives a job whose directory is filled to a container that waits; `false`: none took it, and the directory is as it
    /// was.
    pub(super) async fn hand_over(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared, way: &Way) -> Result<bool> {
        if self.warm.wanted == 0 {
            return Ok(false);
        }
        let wish = Wish::of(spec, prepared);
        let outside = Outside { job_dir: dir.path(), hooks: None, way };
        let wanted = essence(self.body(&wish, Content::Job { spec, engine: None }, outside)?);
        let Some(waiting) = self.warm.take(&wish, &wanted) else { return Ok(false) };
        let id = waiting.id.clone();
        let given = self.give(waiting, dir, spec, prepared).await;
        if !matches!(given, Ok(Ok(()))) {
            // Whatever can be done about it now, it is not to stay.
            self.warm.list().condemned.push(id.clone());
        }
        match given? {
            Ok(()) => {
                let mut list = self.warm.list();
                list.backoff.reset();
                list.not_before = None;
                tracing::debug!(job = %spec.job_id, container = profile::warm_name(&id), "the job was handed over");
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(job = %spec.job_id, error = %Chain(&error), "no waiting container could take the job: it gets one of its own");
                self.remove(spec).await?;
                self.discard(&id).await?;
                Ok(false)
            }
        }
    }

    /// An error inside: the container cannot take the job, whose directory is whole. Outside: it is not.
    async fn give(&self, waiting: Waiting, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<Result<()>> {
        let name = profile::name(spec);
        let (from, place) = (self.warm.place(&waiting.id), self.warm.place(&name));
        let to = place.clone();
        if let Err(error) = blocking("name a container's place after its job", move || from.rename(&to)).await {
            return Ok(Err(error));
        }
        let options = RenameContainerOptionsBuilder::new().name(&name).build();
        let old = profile::warm_name(&waiting.id);
        let filled = async {
            dir.move_to(place.job()).await?;
            Ok::<_, Error>(match prepared.engine.clone() {
                Some(engine) => self.put_engine(&place, engine, spec).await,
                None => Ok(()),
            })
        };
        // Together: a half of either is no reason to leave the other in the middle.
        let (renamed, filled) = tokio::join!(self.engine.rename_container(&old, options), filled);
        let ready = filled?.and(renamed.map_err(failed("name a container after its job")));
        if ready.is_err() || !waiting.lives() {
            return Ok(ready.and(Err(Error::Gone(format!("the container {old} has ended")))));
        }
        let went = place.go().map_err(|source| Error::Io { doing: "tell a container of its job".to_owned(), source });
        // With the value, the pipe is closed, and the runner wakes.
        drop(waiting);
        Ok(went)
    }

    async fn put_engine(&self, place: &Place, from: PathBuf, spec: &JobSpec) -> Result<()> {
        let (place, name) = (place.clone(), spec.engine.kind.program());
        let doing = format!("show the engine {} to a container", from.display());
        blocking(doing, move || place.put_engine(&from, name)).await
    }
}

async fn blocking<T: Send + 'static>(
    doing: impl Into<String>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|source| Error::Io { doing: doing.into(), source })
}
