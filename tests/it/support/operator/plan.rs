//! What goes wrong in a schedule, as data. A schedule's id says all of it and is enough to play it again.

use std::fmt;

/// A write of the operator, counted within a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Point {
    /// The nth (from 1) write of that label, as `cluster PATCH agentpools/status`.
    Write { label: String, nth: usize },
    /// The nth write after the operator was started again.
    AfterRestart(usize),
}

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The operator dies; the write does not happen.
    CrashBefore,
    /// The write happens; the operator dies before it hears of that.
    CrashAfter,
    /// Refused with this status.
    Answer(u16),
    /// No answer; the write did not happen.
    TimeoutBefore,
    /// No answer; the write has happened.
    TimeoutAfter,
    /// The whole process stands still for so many milliseconds just before the write goes out.
    Freeze(u64),
}

impl Failure {
    pub const CRASHES: [Self; 2] = [Self::CrashBefore, Self::CrashAfter];
    pub const ERRORS: [Self; 6] = [
        Self::Answer(409),
        Self::Answer(429),
        Self::Answer(500),
        Self::Answer(503),
        Self::TimeoutBefore,
        Self::TimeoutAfter,
    ];
}

/// What happens to the watches of all kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    /// Only the last state of each object in every window of so many milliseconds arrives.
    Coalesce(u64),
    /// The nth event of the schedule is lost; soon after, the watch is refused with 410.
    Drop(usize),
    Twice,
    /// Every stream ends after so many events.
    Cut(usize),
    /// Every stream says 410 Gone after so many events, so often.
    Gone(usize),
    /// Bookmarks between late events.
    Bookmarks,
    /// Kinds overtake each other.
    Reorder,
    /// Events are held back until so many newer ones, or a while.
    Lag(usize),
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trouble {
    Write {
        at: Point,
        failure: Failure,
    },
    Sight(Sight),
    /// After a restart, lists are of so many revisions ago.
    Stale(usize),
    /// From that write on no call of the operator arrives anywhere, for so many milliseconds.
    Down {
        side: Side,
        at: Point,
        ms: u64,
    },
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    Cluster,
    ControlPlane,
}

/// A scenario and what goes wrong in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// `F1` to `F13`; `clean` for a run without faults.
    pub class: &'static str,
    /// Name of the scenario.
    pub scenario: String,
    /// What somebody does when the scenario is over.
    pub title: String,
    pub troubles: Vec<Trouble>,
    /// What randomness starts from.
    pub seed: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { label, nth } => write!(f, "{label}#{nth}"),
            Self::AfterRestart(nth) => write!(f, "restart#{nth}"),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { at, failure } => write!(f, "{failure:?} at {at}"),
            Self::Sight(sight) => write!(f, "{sight:?}"),
            Self::Stale(back) => write!(f, "Stale({back})"),
            Self::Down { side, at, ms } => write!(f, "{side:?} down for {ms} ms at {at}"),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.class, self.scenario)?;
        if !self.title.is_empty() {
            write!(f, "/{}", self.title)?;
        }
        for trouble in &self.troubles {
            write!(f, "/{trouble}")?;
        }
        if self.seed != 0 {
            write!(f, "/seed={}", self.seed)?;
        }
        Ok(())
    }
}

/// Small deterministic numbers.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        // Not the seed itself: sequences of neighbours would be one sequence.
        Self(mix(seed ^ 0x5eed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to `end` - 1.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }

    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// The last step of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
