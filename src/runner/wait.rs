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
    let failed = |what: &str| {
        let what = format!("{} in {}", what, place.display());
        move |error: io::Error| format!("{what} cannot be used: {error}")
    };
    // What the stage makes must be readable for an agent that is another user.
    sys::set_umask(0o022);
    let lock = File::open(place.join(volume::LOCK)).map_err(failed(volume::LOCK))?;
    lock.lock().map_err(failed(volume::LOCK))?;
    let wake = OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(place.join(volume::WAKE));
    let mut agent = Agent { wake: wake.map_err(failed(volume::WAKE))?, gone_since: None, _lock: lock };
    let job = place.join(volume::JOB);
    if ["result.tmp", "result"].into_iter().any(|name| job.join(name).symlink_metadata().is_ok()) {
        return Ok(None);
    }
    announce(place).map_err(failed(volume::READY))?;
    let signals = sys::signal_file().map_err(|error| format!("signals cannot be waited for: {error}"))?;
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
        sys::wait_readable(&[agent.wake.as_raw_fd(), signals.as_raw_fd()], None)
            .map_err(|error| format!("the agent cannot be waited for: {error}"))?;
        while let Some(signal) = sys::next_signal(Duration::ZERO) {
            asked_to_end |= matches!(signal, sys::SIGINT | sys::SIGTERM);
        }
        // Left behind by somebody who looked into the container.
        while sys::reap().is_some() {}
    }
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
