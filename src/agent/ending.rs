//! When and why a stage is made to end: pure, so that every order of events can be tried.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::api::agent::Order;

/// The executor's own grace time comes first; this is added before the agent kills by itself.
const MARGIN: Duration = Duration::from_secs(5);

/// Who made the stage end. The first one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    /// A person, through the control plane.
    Canceled,
    TimedOut,
    /// The agent was told to stop at once.
    AgentStopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Order(Order),
    /// The agent stops, or its token was revoked.
    AgentStops,
    /// The time that [`Ending::deadline`] named has come.
    Deadline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Interrupt,
    Kill,
    /// Kill it and report nothing: the job is somebody else's.
    Abandon,
}

/// What has been done to end one stage.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) cause: Option<Cause>,
    grace: Duration,
    time_limit: Option<Instant>,
    kill_at: Option<Instant>,
    killed: bool,
}

impl Ending {
    pub(super) fn new(grace: Duration) -> Self {
        Self { cause: None, grace: grace + MARGIN, time_limit: None, kill_at: None, killed: false }
    }

    /// The stage runs, and may until `limit`.
    pub(super) fn limit(&mut self, limit: Instant) {
        self.time_limit = Some(limit + MARGIN);
    }

    /// An earlier process of the agent had asked the stage to end; the grace time starts anew.
    pub(super) fn resume(&mut self, cause: Cause, now: Instant) {
        self.cause = Some(cause);
        self.kill_at = Some(now + self.grace);
    }

    /// When [`Event::Deadline`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.killed { None } else { self.kill_at.or(self.time_limit) }
    }

    pub(super) fn on(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Order(Order::Fenced) => Action::Abandon,
            Event::Order(Order::Cancel) => self.interrupt(Cause::Canceled, now),
            Event::Order(Order::ForceCancel) => self.kill(Cause::Canceled),
            Event::AgentStops => self.interrupt(Cause::AgentStopped, now),
            Event::Deadline if self.kill_at.is_some_and(|at| at <= now) => {
                self.kill(self.cause.unwrap_or(Cause::TimedOut))
            }
            Event::Deadline if self.kill_at.is_none() && self.time_limit.is_some_and(|at| at <= now) => {
                self.interrupt(Cause::TimedOut, now)
            }
            Event::Deadline => Action::Nothing,
        }
    }

    fn interrupt(&mut self, cause: Cause, now: Instant) -> Action {
        // A second SIGINT makes the engine drop its state: one only.
        if self.cause.is_some() {
            return Action::Nothing;
        }
        self.cause = Some(cause);
        self.kill_at = Some(now + self.grace);
        Action::Interrupt
    }

    fn kill(&mut self, cause: Cause) -> Action {
        self.cause.get_or_insert(cause);
        if std::mem::replace(&mut self.killed, true) { Action::Nothing } else { Action::Kill }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn after(seconds: u64, start: Instant) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn events_lead_to_one_interrupt_then_one_kill() {
        use Action::{Abandon, Interrupt, Kill, Nothing};
        let start = Instant::now();
        let cancel = Event::Order(Order::Cancel);
        let force = Event::Order(Order::ForceCancel);
        let fenced = Event::Order(Order::Fenced);
        type Step = (u64, Event, Action);
        let table: &[(&str, &[Step], Option<Cause>)] = &[
            ("cancel, ends in time", &[(1, cancel, Interrupt), (2, cancel, Nothing)], Some(Cause::Canceled)),
            (
                "cancel, hangs",
                &[
                    (1, cancel, Interrupt),
                    (20, Event::Deadline, Nothing),
                    (40, Event::Deadline, Kill),
                    (50, Event::Deadline, Nothing),
                ],
                Some(Cause::Canceled),
            ),
            (
                "cancel, then force",
                &[(1, cancel, Interrupt), (2, force, Kill), (3, force, Nothing)],
                Some(Cause::Canceled),
            ),
            ("force alone", &[(1, force, Kill), (2, cancel, Nothing)], Some(Cause::Canceled)),
            (
                "time limit",
                &[
                    (99, Event::Deadline, Nothing),
                    (105, Event::Deadline, Interrupt),
                    (106, Event::Deadline, Nothing),
                    (140, Event::Deadline, Kill),
                ],
                Some(Cause::TimedOut),
            ),
            (
                "stop, then cancel",
                &[(1, Event::AgentStops, Interrupt), (2, cancel, Nothing)],
                Some(Cause::AgentStopped),
            ),
            ("fenced at any time", &[(1, cancel, Interrupt), (2, fenced, Abandon)], Some(Cause::Canceled)),
        ];
        for (name, events, cause) in table {
            let mut ending = Ending::new(GRACE);
            ending.limit(after(100, start));
            for (second, event, action) in *events {
                assert_eq!(ending.on(*event, after(*second, start)), *action, "{name} at {second} s");
            }
            assert_eq!(ending.cause, *cause, "{name}");
        }
    }

    #[test]
    fn after_a_restart_the_grace_time_goes_on_without_a_second_interrupt() {
        let start = Instant::now();
        let mut ending = Ending::new(GRACE);
        ending.resume(Cause::Canceled, start);
        assert_eq!(ending.on(Event::Order(Order::Cancel), after(1, start)), Action::Nothing);
        assert_eq!(ending.deadline(), Some(after(35, start)));
        assert_eq!(ending.on(Event::Deadline, after(36, start)), Action::Kill);
        assert_eq!(ending.deadline(), None);
    }
}
