//! Names in the volume that an agent's container and its run container share, and what the runner says of itself
//! there. Compiled into both, so that they cannot disagree.

/// The runner's program.
pub const RUNNER: &str = "runner";

/// A named pipe that the agent holds open as long as it lives: the kernel tells the runner of its end. A byte in it
/// says that there is something to see.
pub const WAKE: &str = "wake";

/// The agent has come: it has [`WAKE`] open. Without this, a pipe that nobody holds means an agent yet to come.
pub const HERE: &str = "agent-here";

/// Locked by the runner as long as it lives: the kernel frees it at its end.
pub const LOCK: &str = "runner.lock";

/// The runner waits for a job; a [`Ready`].
pub const READY: &str = "ready";

/// The job directory is whole and the runner's. Appears once, for a volume has one job.
pub const GO: &str = "go";

/// The job directory.
pub const JOB: &str = "job";

/// First line of [`READY`].
const HEADER: &str = "terrapool-runner 1";

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub uid: u32,
    pub gid: u32,
    /// In the run container's own numbers: 1, unless its processes are shared.
    pub pid: u32,
}

impl Ready {
    /// As text for [`Self::parse`].
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { uid, gid, pid } = self;
        format!("{HEADER}\nuid {uid}\ngid {gid}\npid {pid}\n")
    }

    /// # Errors
    /// A sentence about what is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(format!("does not begin with {HEADER:?}"));
        }
        let mut number = |word: &str| {
            let line = lines.next().unwrap_or_default();
            let value = line.strip_prefix(word).and_then(|rest| rest.trim_start().parse().ok());
            value.ok_or_else(|| format!("`{line}` does not tell the {word}"))
        };
        Ok(Self { uid: number("uid")?, gid: number("gid")?, pid: number("pid")? })
    }
}
