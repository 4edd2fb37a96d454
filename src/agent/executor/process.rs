//! Stages as child processes of this user: no isolation. Each has a process group of its own and outlives the agent;
//! the next agent finds it by its command line, which names the job directory and the epoch.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, kill_process_group};
use serde::{Deserialize, Serialize};

use super::{Error, Exit, KILL_PATIENCE, POLL, Prepared, Result, Settings, Signal, end::end, runner, set_up_in_place};
use crate::{
    agent::{jobdir::JobDir, provider_cache::ProviderCache},
    api::{agent::JobRef, job::JobSpec},
    files::write_private,
    ids::JobId,
};

#[derive(Debug)]
pub struct Process {
    settings: Settings,
    runner: PathBuf,
}

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    pid: i32,
    /// In ticks since the machine's start.
    started: u64,
}

/// What `/proc/<pid>/stat` tells.
struct Stat {
    zombie: bool,
    group: i32,
    started: u64,
}

impl Process {
    pub(super) fn new(settings: Settings) -> Result<Self> {
        let runner = runner::install(&settings.data)?;
        Ok(Self { settings, runner })
    }

    pub(super) fn provider_cache(&self) -> Option<&ProviderCache> {
        self.settings.provider_cache.as_deref()
    }

    pub(super) async fn prepare(&self, spec: &JobSpec) -> Result<Prepared> {
        let lasting = Duration::from_secs(spec.timeout_seconds);
        let engine = self.settings.engines.obtain(&spec.engine, lasting).await?;
        Ok(Prepared { image: None, image_digest: None, engine: Some(engine) })
    }

    pub(super) async fn start(&self, dir: &JobDir, spec: &JobSpec, prepared: &Prepared) -> Result<()> {
        if dir.has_begun() || self.find(dir, spec).is_some() {
            return Ok(());
        }
        if !dir.is_set_up() {
            set_up_in_place(dir, spec, prepared, &self.settings).await?;
        }
        let mut command = Command::new(&self.runner);
        command.arg(dir.path()).arg(spec.epoch.to_string()).current_dir(dir.path()).process_group(0);
        // Nothing of the agent's environment reaches a stage but the search path.
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let path = std::env::join_paths(&self.settings.engines.path).unwrap_or_default();
        if !path.is_empty() {
            command.env("PATH", path);
        }
        let doing = |source| Error::Io { doing: format!("start the runner {}", self.runner.display()), source };
        // tokio reaps it when it ends; nobody waits on the handle, since a later agent could not either.
        let child = tokio::process::Command::from(command).spawn().map_err(doing)?;
        let running = child.id().and_then(|pid| Some((pid as i32, stat(pid as i32)?)));
        if let Some((pid, stat)) = running {
            let record = Running { pid, started: stat.started };
            let text = serde_json::to_vec(&record).map_err(|error| doing(error.into()))?;
            write_private(&dir.beside("pid"), &text).map_err(doing)?;
        }
        Ok(())
    }

    pub(super) async fn wait(&self, dir: &JobDir, spec: &JobSpec) -> Result<Exit> {
        let gone = Exit::Gone { code: None, out_of_memory: false };
        end(dir, &self.settings.watches, || async move { Ok(self.find(dir, spec).is_none().then_some(gone)) }).await
    }

    pub(super) fn is_alive(&self, dir: &JobDir, spec: &JobSpec) -> bool {
        self.find(dir, spec).is_some()
    }

    pub(super) async fn signal(&self, dir: &JobDir, spec: &JobSpec, signal: Signal) -> Result<()> {
        match signal {
            Signal::Interrupt => Ok(dir.write_cancel("interrupt").await?),
            Signal::Kill => {
                // The runner kills everything below it, even what has left the process group.
                let asked = dir.write_cancel("kill").await;
                let killed = tokio::time::timeout(KILL_PATIENCE, self.wait(dir, spec)).await;
                if asked.is_err() || killed.is_err() {
                    self.kill(dir, spec).await;
                }
                Ok(())
            }
        }
    }

    pub(super) async fn remove(&self, dir: &JobDir, spec: &JobSpec) -> Result<()> {
        if !dir.has_result() && self.find(dir, spec).is_some() {
            return self.signal(dir, spec, Signal::Kill).await;
        }
        self.kill(dir, spec).await;
        Ok(())
    }

    pub(super) fn sweep(&self, keep: &[JobRef]) -> Vec<JobId> {
        let mut swept = Vec::new();
        for (pid, dir, epoch) in self.runners() {
            let Some(job) = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<JobId>().ok())
            else {
                continue;
            };
            if keep.iter().any(|kept| kept.job_id == job && kept.epoch == epoch) {
                continue;
            }
            kill_group(pid);
            swept.push(job);
        }
        swept
    }

    /// Returns when the runner is gone: a signal only starts its end, and the caller removes the directory next.
    async fn kill(&self, dir: &JobDir, spec: &JobSpec) {
        let Some(pid) = self.find(dir, spec) else { return };
        kill_group(pid);
        let gone = async {
            while self.find(dir, spec).is_some() {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(KILL_PATIENCE, gone).await.is_err() {
            tracing::warn!(job = %spec.job_id, pid, "the runner does not end although it was killed");
        }
    }

    /// The job's runner, if it lives: as recorded, or else found by its command line (the agent may have died between
    /// starting it and writing that down).
    fn find(&self, dir: &JobDir, spec: &JobSpec) -> Option<i32> {
        let recorded = fs::read(dir.beside("pid")).ok().and_then(|text| serde_json::from_slice::<Running>(&text).ok());
        if let Some(Running { pid, started }) = recorded {
            return stat(pid).filter(|stat| !stat.zombie && stat.started == started).map(|_| pid);
        }
        self.runners()
            .into_iter()
            .find(|(_, path, epoch)| path == dir.path() && *epoch == spec.epoch)
            .map(|(pid, ..)| pid)
    }

    /// Living runners of this data directory: process, job directory, epoch.
    fn runners(&self) -> Vec<(i32, PathBuf, i64)> {
        let jobs = self.settings.data.join("jobs");
        let bin = self.settings.data.join("bin");
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                let mut words = line.split(|byte| *byte == 0);
                let program = Path::new(std::ffi::OsStr::from_bytes(words.next()?));
                let dir = PathBuf::from(std::ffi::OsStr::from_bytes(words.next()?));
                let epoch = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
                let ours = program.starts_with(&bin) && dir.starts_with(&jobs);
                (ours && stat(pid).is_some_and(|stat| !stat.zombie && stat.group == pid)).then_some((pid, dir, epoch))
            })
            .collect()
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `pid (name) state parent group …`; the name may hold anything. Field 22 is the start.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// The runner and all that has stayed in its group; the engine dies with the runner in any case.
fn kill_group(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // An error means that it is gone already.
        _ = kill_process_group(pid, rustix::process::Signal::KILL);
    }
}
