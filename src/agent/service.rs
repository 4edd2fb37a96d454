//! What systemd is told of a running agent: that it takes jobs, what it does, and that it is not stuck.

use std::{convert::Infallible, sync::PoisonError, time::Duration};

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

use super::Agent;

/// Longest time between two turns of the heartbeat, which waits for at most one held call, one registration and one
/// backoff in a turn. After this it is stuck, and so is the agent.
const LONGEST_TURN: Duration = Duration::from_secs(90);

/// How often systemd is told that a draining agent still has work.
const EXTENSION: Duration = Duration::from_secs(10);

/// What an extension asks for on top, so that a busy machine may be late with the next one.
const EXTENSION_MARGIN: Duration = Duration::from_secs(50);

/// The agent takes jobs.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// Tells systemd of every change, and pings its watchdog where it has one, as long as the heartbeat goes on.
pub(super) async fn tell(agent: &Agent) -> Infallible {
    let period = sd_notify::watchdog_enabled().map_or(EXTENSION, |limit| EXTENSION.min(limit / 3));
    let mut ping = tokio::time::interval(period.max(Duration::from_millis(100)));
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut changes, mut registered) = (agent.jobs.changes(), agent.registered.subscribe());
    let mut said = Situation::default();
    loop {
        let now = Situation::of(agent);
        if now != said {
            send(&[NotifyState::Status(&now.text())]);
            if now.ending && !said.ending {
                send(&[NotifyState::Stopping]);
            }
            said = now;
        }
        tokio::select! {
            _ = ping.tick() => {}
            _ = changes.changed() => continue,
            _ = registered.changed() => continue,
            () = agent.shutdown.drain.cancelled(), if !said.draining => continue,
            () = agent.shutdown.stop.cancelled(), if !said.ending => continue,
            () = agent.done.cancelled(), if !said.ending => continue,
        }
        let beat = *agent.beat.lock().unwrap_or_else(PoisonError::into_inner);
        if said.draining {
            send(&[NotifyState::ExtendTimeoutUsec(micros(EXTENSION + EXTENSION_MARGIN))]);
        }
        if !is_stuck(beat.elapsed(), agent.done.is_cancelled()) {
            send(&[NotifyState::Watchdog]);
        }
    }
}

/// Whether the heartbeat does not go on although it should.
fn is_stuck(silent: Duration, over: bool) -> bool {
    silent > LONGEST_TURN && !over
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn send(states: &[NotifyState<'_>]) {
    // No socket any more: systemd notices by the missing pings.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// What the line `Status:` of `systemctl status` is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Situation {
    registered: bool,
    draining: bool,
    /// Not before systemd's own signal has come: told that the service stops, it would send none, and nobody could make
    /// a drain a stop any more.
    ending: bool,
    cordoned: bool,
    jobs: usize,
    slots: usize,
    trouble: Option<String>,
}

impl Situation {
    fn of(agent: &Agent) -> Self {
        Self {
            registered: *agent.registered.borrow(),
            draining: agent.shutdown.drain.is_cancelled(),
            ending: agent.shutdown.stop.is_cancelled() || agent.done.is_cancelled(),
            cordoned: *agent.cordoned.borrow(),
            jobs: agent.jobs.count(),
            slots: agent.slots(),
            trouble: agent.trouble(),
        }
    }

    fn text(&self) -> String {
        let jobs = match self.jobs {
            1 => "1 job".to_owned(),
            jobs => format!("{jobs} jobs"),
        };
        let Self { registered, draining, cordoned, slots, trouble, .. } = self;
        match (draining, registered, trouble) {
            (true, ..) => format!("Takes no new jobs and ends after the last; {jobs} left"),
            (false, false, _) => "Not registered at the control plane yet; the log says why".to_owned(),
            (false, true, Some(trouble)) => format!("{jobs} of at most {slots}; {trouble}"),
            (false, true, None) if *cordoned => format!("{jobs}; the control plane wants no new jobs here"),
            (false, true, None) => format!("{jobs} of at most {slots}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_what_the_agent_does_and_why_it_takes_nothing() {
        let idle = Situation { registered: true, slots: 5, ..Situation::default() };
        assert_eq!(idle.text(), "0 jobs of at most 5");
        assert_eq!(Situation { jobs: 1, ..idle.clone() }.text(), "1 job of at most 5");
        let full = Situation { trouble: Some("takes no jobs: the disk is full".to_owned()), ..idle.clone() };
        assert_eq!(full.text(), "0 jobs of at most 5; takes no jobs: the disk is full");
        let draining = Situation { draining: true, jobs: 2, ..idle.clone() };
        assert_eq!(draining.text(), "Takes no new jobs and ends after the last; 2 jobs left");
        assert!(Situation { registered: false, ..idle.clone() }.text().starts_with("Not registered"));
        assert!(Situation { cordoned: true, ..idle }.text().contains("wants no new jobs"));
    }

    #[test]
    fn a_heartbeat_that_does_not_go_on_is_stuck_unless_the_work_is_over() {
        assert!(!is_stuck(LONGEST_TURN, false));
        assert!(is_stuck(LONGEST_TURN + Duration::from_secs(1), false));
        assert!(!is_stuck(LONGEST_TURN * 9, true));
    }

    #[test]
    fn an_extension_is_longer_than_the_time_to_the_next() {
        assert!(Duration::from_micros(micros(EXTENSION + EXTENSION_MARGIN).into()) > EXTENSION);
    }
}
