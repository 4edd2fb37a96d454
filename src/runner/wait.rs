//! The waiting form: the runner stands ready in a container of its own and gets its job later, through the volume that
//! it shares with its agent. It sleeps in the kernel until the agent wakes it, ends, or a signal comes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use super::{sys, volume};

/// How long an agent may be gone while its stage runs: one that starts again goes on with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The agent at the other end of the volume.
#[derive(Debug)]
pub struct Agent {
    wake: File,
    gone_since: Option<Instant>,
    /// Held until the end of this process: the agent sees by it that the runner lives.
    _lock: File,
}

/// Waits until the job directory has been handed over; `None`: no job will come, or there has been one already.
pub fn wait(place: &Path) -> Result<Option<Agent>, String> {
    // What the stage makes must be readable for an agent that is another user.
    sys::set_umask(0o022);
    let mut agent = Agent::meet(place)?;
    if has_begun(&place.join(volume::JOB)) {
        return Ok(None);
    }
    announce(place).map_err(failed(place, volume::READY))?;
    let signals = signals()?;
    let mut asked_to_end = false;
    loop {
        // In this order: whoever is announced has the pipe open, or had.
        let announced = place.join(volume::HERE).exists();
        let there = agent.take_alarms();
        if !there && (announced || agent.is_gone()) {
            // A job that nobody watches is not begun.
            return Ok(None);
        }
        if there && place.join(volume::GO).exists() {
            return Ok(Some(agent));
        }
        // An agent that is there decides: it may hold a job that it is about to hand over.
        if asked_to_end && !there {
            return Ok(None);
        }
        asked_to_end |= agent.sleep(&signals)?;
    }
}

/// Waits until the job directory `job` has been filled and the agent says so in `line`, which this side only reads; `None`:
/// no job will come, or there has been one already. The agent was there before this process, and may be gone as soon as
/// there is a job: what it did before its end counts.
pub fn stand_by(line: &Path, job: &Path) -> Result<Option<Agent>, String> {
    let mut agent = Agent::meet(line)?;
    if has_begun(job) {
        return Ok(None);
    }
    let signals = signals()?;
    loop {
        // In this order: whoever is gone has said before what there was to say.
        let there = agent.take_alarms();
        if line.join(volume::GO).exists() {
            return Ok(Some(agent));
        }
        if !there || agent.sleep(&signals)? {
            return Ok(None);
        }
    }
}

fn failed(place: &Path, what: &str) -> impl FnOnce(io::Error) -> String + use<> {
    let what = format!("{} in {}", what, place.display());
    move |error| format!("{what} cannot be used: {error}")
}

fn has_begun(job: &Path) -> bool {
    ["result.tmp", "result"].into_iter().any(|name| job.join(name).symlink_metadata().is_ok())
}

fn signals() -> Result<File, String> {
    sys::signal_file().map_err(|error| format!("signals cannot be waited for: {error}"))
}

/// The name appears with its whole content.
fn announce(place: &Path) -> io::Result<()> {
    let (uid, gid) = sys::user();
    let text = volume::Ready { uid, gid, pid: std::process::id() }.to_text();
    let draft = place.join("ready.tmp");
    fs::write(&draft, text)?;
    fs::rename(draft, place.join(volume::READY))
}

impl Agent {
    /// Takes the lock, and this side's end of the pipe.
    fn meet(place: &Path) -> Result<Self, String> {
        let lock = File::open(place.join(volume::LOCK)).map_err(failed(place, volume::LOCK))?;
        lock.lock().map_err(failed(place, volume::LOCK))?;
        let wake = OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(place.join(volume::WAKE));
        Ok(Self { wake: wake.map_err(failed(place, volume::WAKE))?, gone_since: None, _lock: lock })
    }

    /// Until something happens; says whether this process was asked to end.
    fn sleep(&self, signals: &File) -> Result<bool, String> {
        sys::wait_readable(&[self.wake.as_raw_fd(), signals.as_raw_fd()], None)
            .map_err(|error| format!("the agent cannot be waited for: {error}"))?;
        let mut asked_to_end = false;
        while let Some(signal) = sys::next_signal(Duration::ZERO) {
            asked_to_end |= matches!(signal, sys::SIGINT | sys::SIGTERM);
        }
        // Left behind by somebody who looked into the container.
        while sys::reap().is_some() {}
        Ok(asked_to_end)
    }

    /// Reads what has come; says whether the agent is there.
    fn take_alarms(&mut self) -> bool {
        let mut bytes = [0; 64];
        loop {
            match self.wake.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // WouldBlock: somebody holds the other end.
                Err(_) => return true,
            }
        }
    }

    /// It was there and is not any more.
    pub fn is_gone(&self) -> bool {
        sys::is_hung_up(self.wake.as_raw_fd())
    }

    /// It has been gone for too long.
    pub fn is_lost(&mut self, now: Instant) -> bool {
        if !self.is_gone() {
            self.gone_since = None;
            return false;
        }
        now.duration_since(*self.gone_since.get_or_insert(now)) >= PATIENCE
    }
}
