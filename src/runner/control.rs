//! When a stage has to end early, and how: SIGINT first, SIGKILL after the grace time or on the second demand.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{sys, wait::Agent};

/// How often the file `cancel` is looked at.
pub const LOOK: Duration = Duration::from_millis(100);

/// Longest time for killed processes to vanish.
const VANISH: Duration = Duration::from_secs(5);

/// Why the stage ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Canceled,
    TimedOut,
    /// A hook reached its own limit.
    HookTimedOut,
    /// Nobody watches over it any more.
    Abandoned,
    /// Its memory is about to run out.
    OutOfMemory,
}

/// What is to be done to the running step now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Interrupt(Cause),
    Kill(Cause),
}

/// Remembers what was demanded. Pure: time and demands come in by argument.
#[derive(Debug)]
pub struct Control {
    deadline: Instant,
    grace: Duration,
    /// When the hook that runs now has taken too long.
    hook_deadline: Option<Instant>,
    cause: Option<Cause>,
    /// When the step that runs now was interrupted.
    interrupted: Option<Instant>,
    killed: bool,
}

/// What the outside asked for since the last look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demand {
    pub interrupt: bool,
    pub kill: bool,
    /// SIGINT or SIGTERM came: the first interrupts, the second kills.
    pub signal: bool,
    /// The agent is lost.
    pub abandoned: bool,
    /// The container's memory is about to run out.
    pub out_of_memory: bool,
}

impl Control {
    pub fn new(deadline: Instant, grace: Duration) -> Self {
        Self { deadline, grace, hook_deadline: None, cause: None, interrupted: None, killed: false }
    }

    /// A hook begins that may take so long; `None`: it is over.
    pub fn limit_hook(&mut self, deadline: Option<Instant>) {
        self.hook_deadline = deadline;
    }

    /// There is time for a hook that comes after a step. One that took too long had it.
    pub fn leaves_time(&self) -> bool {
        !self.killed && self.cause != Some(Cause::HookTimedOut)
    }

    /// Why the stage ends early, if it does.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    pub fn decide(&mut self, now: Instant, demand: Demand) -> Option<Act> {
        let second = demand.signal && self.interrupted.is_some();
        let wanted = match self.cause {
            Some(cause) => Some(cause),
            None if demand.interrupt || demand.kill || demand.signal => Some(Cause::Canceled),
            None if demand.abandoned => Some(Cause::Abandoned),
            None if demand.out_of_memory => Some(Cause::OutOfMemory),
            None if now >= self.deadline => Some(Cause::TimedOut),
            None if self.hook_deadline.is_some_and(|deadline| now >= deadline) => Some(Cause::HookTimedOut),
            None => None,
        }?;
        self.cause = Some(wanted);
        let overdue = self.interrupted.is_some_and(|since| now.duration_since(since) >= self.grace);
        if demand.kill || second || overdue {
            return (!std::mem::replace(&mut self.killed, true)).then_some(Act::Kill(wanted));
        }
        if self.interrupted.is_none() {
            self.interrupted = Some(now);
            return Some(Act::Interrupt(wanted));
        }
        None
    }
}

/// Where demands come from.
#[derive(Debug, Default)]
pub struct Outside {
    /// Absent: the stage goes on whether its agent lives or not.
    pub agent: Option<Agent>,
}

impl Outside {
    /// Reads what the agent wrote into `cancel`, and looks whether there is an agent.
    pub fn look(&mut self, now: Instant) -> Demand {
        let text = fs::read_to_string("cancel").unwrap_or_default();
        Demand {
            interrupt: text.trim() == "interrupt",
            kill: text.trim() == "kill",
            abandoned: self.agent.as_mut().is_some_and(|agent| agent.is_lost(now)),
            ..Demand::default()
        }
    }

    /// A Pod's end is told to both containers at once: then it is the agent that decides, if there is one.
    pub fn heeds_signals(&self) -> bool {
        self.agent.as_ref().is_none_or(Agent::is_gone)
    }
}

/// Kills every process below this one and waits until they are gone: nothing that a stage started may go on.
pub fn kill_all_others() {
    let until = Instant::now() + VANISH;
    loop {
        while sys::reap().is_some() {}
        let below = descendants(std::process::id() as i32);
        if below.is_empty() || Instant::now() >= until {
            return;
        }
        for pid in below {
            // An error means that it is gone already.
            let _ = sys::send(pid, sys::SIGKILL);
        }
        sys::next_signal(Duration::from_millis(20));
    }
}

/// Interrupts a process and all below it: a shell may heed its interruption only when the program that it waits for ends.
/// From the top down: a shell whose program ends before it is interrupted itself would go on with the next one.
pub fn interrupt_all(pid: i32) {
    let below = descendants(pid);
    for pid in std::iter::once(pid).chain(below) {
        // An error means that it is gone already.
        let _ = sys::send(pid, sys::SIGINT);
    }
}

/// Living processes below one, from `/proc`. Orphans are below this one, because they are handed to us.
fn descendants(of: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let processes: Vec<(i32, i32)> = entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // `pid (name) state parent …`; the name may hold anything.
            let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
            let state = rest.next()?;
            let parent = rest.next()?.parse().ok()?;
            (state != "Z" && state != "X").then_some((pid, parent))
        })
        .collect();
    let mut below = vec![of];
    let mut at = 0;
    while at < below.len() {
        let parent = below[at];
        below.extend(processes.iter().filter(|(pid, p)| *p == parent && *pid != parent).map(|(pid, _)| *pid));
        at += 1;
    }
    below.remove(0);
    below
}
