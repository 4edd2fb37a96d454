//! What one decision leaves to the next. Losing it costs time, never an agent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Longest pause after failures in a row.
const MAX_PAUSE_MS: i64 = 300_000;
/// Pause after the second failure in a row; it doubles from there.
const PAUSE_MS: i64 = 30_000;
/// Pause after a first failure, which may be nobody's fault.
const FIRST_PAUSE_MS: i64 = 1_000;

/// The highest number of agents wanted in the last while: fewer are only right when they were enough all the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// (moment in ms, wanted), from the oldest on; each wants fewer than the one before.
    entries: VecDeque<(i64, u32)>,
    /// What was pushed last: it held until the next push.
    last: Option<u32>,
}

impl Window {
    /// Remembers that `wanted` agents are wanted from `now_ms` on, and forgets what ended `span_ms` ago.
    pub fn push(&mut self, now_ms: i64, wanted: u32, span_ms: i64) {
        if let Some(last) = self.last {
            self.insert(now_ms, last);
        }
        self.insert(now_ms, wanted);
        self.last = Some(wanted);
        while self.entries.len() > 1 && self.entries.front().is_some_and(|(at, _)| now_ms - at >= span_ms) {
            self.entries.pop_front();
        }
    }

    fn insert(&mut self, now_ms: i64, wanted: u32) {
        while self.entries.back().is_some_and(|(_, earlier)| *earlier <= wanted) {
            self.entries.pop_back();
        }
        self.entries.push_back((now_ms, wanted));
    }

    /// The highest number in the window.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.entries.front().map_or(0, |(_, wanted)| *wanted)
    }

    /// Nothing was pushed yet: nobody knows what was wanted before.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the highest number leaves the window, if nothing else is pushed; `None`: it is the present one.
    #[must_use]
    pub fn falls_at(&self, span_ms: i64) -> Option<i64> {
        (self.entries.len() > 1).then(|| self.entries.front().map(|(at, _)| at + span_ms)).flatten()
    }
}

/// What is remembered from one decision to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pub(super) window: Window,
    /// Our agents that have registered once: agent's name → its Pod's uid. Without it an agent that has just left
    /// would look like one that is about to come.
    pub(super) registered: BTreeMap<String, String>,
    failing: Failing,
    /// The API server refused a Pod.
    refused: Option<Refused>,
}

/// Pods that ended without having been of any use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Failing {
    /// They were made from this template; another one starts afresh.
    template: String,
    in_a_row: u32,
    last_ms: i64,
    message: String,
    /// Uids of the Pods that were there at the last failure, it included.
    batch: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    at_ms: i64,
    reason: &'static str,
    message: String,
    /// Refusals in a row.
    in_a_row: u32,
}

/// Why no Pod is created for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pause {
    Refused { reason: &'static str, message: String, until_ms: i64 },
    Failing { in_a_row: u32, message: String, until_ms: i64 },
}

impl Pause {
    pub(super) fn until_ms(&self) -> i64 {
        let (Self::Refused { until_ms, .. } | Self::Failing { until_ms, .. }) = self;
        *until_ms
    }
}

impl Memory {
    /// The API server refused to create a Pod, as with an exceeded quota or a policy: the next decisions wait before
    /// they try again, and say why. `reason` is one of [`crate::crd::conditions::reason`].
    pub fn create_refused(&mut self, now_ms: i64, reason: &'static str, message: String) {
        // Several Pods of one decision are one refusal.
        let in_a_row = match &self.refused {
            Some(refused) if refused.at_ms == now_ms => refused.in_a_row,
            Some(refused) => refused.in_a_row + 1,
            None => 1,
        };
        self.refused = Some(Refused { at_ms: now_ms, reason, message, in_a_row });
    }

    /// The API server created a Pod.
    pub fn created(&mut self) {
        self.refused = None;
    }

    /// Pods (uid, what happened) that were of no use. Those that were `listed` when a failure was counted belong to
    /// it: ten Pods of one moment are one failure, and each Pod is counted once.
    pub(super) fn failed(
        &mut self,
        now_ms: i64,
        template: &str,
        listed: &BTreeSet<&str>,
        pods: impl Iterator<Item = (String, String)>,
    ) {
        self.start_afresh(template);
        let fresh = pods.filter(|(uid, _)| !self.failing.batch.contains(uid));
        if let Some((_, message)) = fresh.last() {
            self.failing.in_a_row += 1;
            self.failing.last_ms = now_ms;
            self.failing.message = message;
            self.failing.batch = listed.iter().map(|uid| (*uid).to_owned()).collect();
        }
    }

    /// A Pod of the template came to use. If it is younger than the last failure, that says nothing any more.
    pub(super) fn worked(&mut self, template: &str, uid: &str) {
        self.start_afresh(template);
        if !self.failing.batch.contains(uid) {
            self.failing.in_a_row = 0;
        }
    }

    fn start_afresh(&mut self, template: &str) {
        if self.failing.template != template {
            self.failing = Failing { template: template.to_owned(), ..Failing::default() };
        }
    }

    /// Forgets Pods that are not listed any more; `agents` are the names that the control plane still has.
    pub(super) fn retain(&mut self, pods: &BTreeSet<&str>, agents: Option<&BTreeSet<&str>>) {
        self.failing.batch.retain(|uid| pods.contains(uid.as_str()));
        self.registered.retain(|name, uid| {
            pods.contains(uid.as_str()) || agents.is_none_or(|agents| agents.contains(name.as_str()))
        });
    }

    /// Why no Pod may be created now, if so.
    pub(super) fn pause(&self, now_ms: i64) -> Option<Pause> {
        let refused = self.refused.as_ref().map(|refused| Pause::Refused {
            reason: refused.reason,
            message: refused.message.clone(),
            until_ms: refused.at_ms + doubled(PAUSE_MS, refused.in_a_row - 1),
        });
        let failing = (self.failing.in_a_row > 0).then(|| Pause::Failing {
            in_a_row: self.failing.in_a_row,
            message: self.failing.message.clone(),
            until_ms: self.failing.last_ms
                + match self.failing.in_a_row {
                    1 => FIRST_PAUSE_MS,
                    more => doubled(PAUSE_MS, more - 2),
                },
        });
        [refused, failing].into_iter().flatten().find(|pause| pause.until_ms() > now_ms)
    }

    /// Something went wrong lately: one Pod at a time shows whether it still does.
    pub(super) fn careful(&self) -> bool {
        self.refused.is_some() || self.failing.in_a_row > 1
    }
}

fn doubled(start_ms: i64, times: u32) -> i64 {
    (start_ms << times.min(8)).min(MAX_PAUSE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_holds_the_highest_number_until_its_time_is_over() {
        let span = 60_000;
        let mut window = Window::default();
        let mut seen = Vec::new();
        // What was wanted holds until something else is: five were wanted until 10 s, so they count until 70 s.
        for (at, wanted) in [(0, 5), (10, 1), (40, 3), (69, 1), (70, 1), (128, 1), (129, 1), (129, 0), (190, 0)] {
            window.push(at * 1000, wanted, span);
            seen.push(window.max());
        }
        assert_eq!(seen, [5, 5, 5, 5, 3, 3, 1, 1, 0]);
    }

    #[test]
    fn the_window_says_when_it_falls() {
        let mut window = Window::default();
        window.push(0, 4, 1000);
        assert_eq!(window.falls_at(1000), None);
        window.push(500, 1, 1000);
        assert_eq!(window.falls_at(1000), Some(1500));
        window.push(1500, 1, 1000);
        assert_eq!((window.falls_at(1000), window.max()), (None, 1));
    }

    #[test]
    fn pauses_grow_with_failures_and_end_with_a_pod_that_works() {
        let mut memory = Memory::default();
        let fail = |memory: &mut Memory, at: i64, uid: &str, listed: &[&str]| {
            let listed = listed.iter().copied().chain([uid]).collect();
            memory.failed(at, "t", &listed, std::iter::once((uid.to_owned(), "exit code 1".to_owned())));
            memory.pause(at).map_or(0, |pause| pause.until_ms() - at)
        };
        let pauses: Vec<i64> = (0..7).map(|n| fail(&mut memory, n * 1_000_000, &format!("u{n}"), &["other"])).collect();
        assert_eq!(pauses, [1000, 30_000, 60_000, 120_000, 240_000, 300_000, 300_000]);
        assert_eq!(fail(&mut memory, 6_100_000, "u6", &[]), 200_000, "the same Pod is counted once");
        assert_eq!(fail(&mut memory, 6_100_000, "other", &[]), 200_000, "a Pod of that time belongs to that failure");
        memory.worked("t", "other");
        assert!(memory.careful(), "a Pod of that time proves nothing");
        memory.worked("t", "younger");
        assert_eq!((memory.pause(6_100_001), memory.careful()), (None, false));
        fail(&mut memory, 8_000_000, "a", &[]);
        fail(&mut memory, 8_000_001, "b", &[]);
        memory.failed(8_000_002, "other", &BTreeSet::new(), std::iter::empty());
        assert_eq!(memory.pause(8_000_003), None, "another template starts afresh");
    }

    #[test]
    fn refused_pods_are_tried_again_at_most_every_thirty_seconds() {
        let mut memory = Memory::default();
        for at in [0, 0, 0] {
            memory.create_refused(at, "QuotaExceeded", "exceeded quota".to_owned());
        }
        assert_eq!(memory.pause(0).unwrap().until_ms(), 30_000);
        assert_eq!(memory.pause(30_000), None);
        assert!(memory.careful());
        memory.create_refused(30_000, "QuotaExceeded", "exceeded quota".to_owned());
        assert_eq!(memory.pause(30_000).unwrap().until_ms(), 90_000);
        memory.created();
        assert_eq!(memory.pause(30_000), None);
    }
}
