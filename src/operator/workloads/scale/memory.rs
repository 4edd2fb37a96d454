//! What one decision leaves to the next. Losing it costs time, never an agent.

use std::collections::{BTreeSet, VecDeque};

/// The highest number of agents wanted in the last while: fewer are only right when they were enough all the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// (moment in ms, wanted), from the oldest on; each wants fewer than the one before.
    entries: VecDeque<(i64, u32)>,
}

impl Window {
    /// Remembers that `wanted` agents were wanted at `now_ms`, and forgets what is older than `span_ms`.
    pub fn push(&mut self, now_ms: i64, wanted: u32, span_ms: i64) {
        while self.entries.back().is_some_and(|(_, last)| *last <= wanted) {
            self.entries.pop_back();
        }
        self.entries.push_back((now_ms, wanted));
        while self.entries.len() > 1 && self.entries.front().is_some_and(|(at, _)| now_ms - at >= span_ms) {
            self.entries.pop_front();
        }
    }

    /// The highest number in the window.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.entries.front().map_or(0, |(_, wanted)| *wanted)
    }
}

/// What is remembered from one decision to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    window: Window,
    /// Uids of Pods whose agents have registered once.
    registered: BTreeSet<String>,
    /// The API server refused a Pod.
    refused: Option<Refused>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    at_ms: i64,
    reason: &'static str,
    message: String,
}

impl Memory {
    /// The API server refused to create a Pod, as with an exceeded quota or a policy: the next decisions wait before
    /// they try again, and say why. `reason` is one of [`crate::crd::conditions::reason`].
    pub fn create_refused(&mut self, now_ms: i64, reason: &'static str, message: String) {
        self.refused = Some(Refused { at_ms: now_ms, reason, message });
    }

    /// The API server created a Pod.
    pub fn created(&mut self) {
        self.refused = None;
    }
}
