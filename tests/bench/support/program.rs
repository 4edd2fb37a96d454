//! Programs that are started for a measure and end with it.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest time for a program to be ready, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program in the background, with what it says in a file.
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    pub fn start(name: &'static str, mut command: Command, log: PathBuf) -> anyhow::Result<Self> {
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("could not start {command:?}"))?;
        Ok(Self { name, child, log })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until a line holds `text`; gives what follows it there.
    pub async fn until(&mut self, text: &str) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let said = self.said();
            // A line counts when its end is there.
            let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some((_, rest)) = lines.filter_map(|line| line.split_once(text)).next() {
                return Ok(rest.trim().to_owned());
            }
            if self.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                bail!("{} does not say `{text}`:\n{said}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // An error means that it is gone already.
        _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                drop(self.child.kill());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
