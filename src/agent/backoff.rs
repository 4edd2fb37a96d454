//! How long to wait before a call is tried again: exponential, full jitter, so that a thousand agents
//! do not come back to a restarted server in the same instant.

use std::time::Duration;

use rand::RngExt;

/// Upper bound of the first wait.
const FIRST: Duration = Duration::from_millis(200);

/// Upper bound of every wait: an agent notices within this time that the server is back.
const LONGEST: Duration = Duration::from_secs(8);

/// A wait is never shorter: jitter must not become a hot loop.
const SHORTEST: Duration = Duration::from_millis(20);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a success: the next failure waits shortly again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// The wait after one more failure; at least `asked` when the server named a time.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let bound = bound(self.failures);
        self.failures = self.failures.saturating_add(1);
        let jittered = bound.mul_f64(rand::rng().random::<f64>()).max(SHORTEST);
        jittered.max(asked.unwrap_or_default().min(LONGEST))
    }
}

fn bound(failures: u32) -> Duration {
    FIRST.saturating_mul(2u32.saturating_pow(failures)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_never_vanish() {
        assert_eq!(bound(0), FIRST);
        assert_eq!(bound(2), FIRST * 4);
        assert_eq!(bound(u32::MAX), LONGEST);
        let mut backoff = Backoff::default();
        for _ in 0..200 {
            let wait = backoff.next(None);
            assert!((SHORTEST..=LONGEST).contains(&wait), "{wait:?}");
        }
        assert!(backoff.next(Some(Duration::from_secs(2))) >= Duration::from_secs(2));
        assert!(backoff.next(Some(Duration::from_secs(3600))) <= LONGEST);
    }
}
