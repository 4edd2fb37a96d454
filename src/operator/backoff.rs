//! How long an object that could not be brought into line is left alone: longer with each failure, up to a bound,
//! never at the same moment as all the others.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::RngExt;

/// Failures in a row, by object.
#[derive(Debug)]
pub(super) struct Failures<K> {
    first: Duration,
    longest: Duration,
    counts: Mutex<HashMap<K, u32>>,
}

impl<K: Eq + Hash> Failures<K> {
    /// Pauses from `first` to `longest`.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<K, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more failure; how long to wait.
    pub(super) fn failed(&self, key: K) -> Duration {
        let mut counts = self.counts();
        let count = counts.entry(key).or_default();
        *count = count.saturating_add(1);
        let pause = self.first.saturating_mul(1 << (*count - 1).min(16)).min(self.longest);
        drop(counts);
        jittered(pause)
    }

    /// It worked.
    pub(super) fn succeeded(&self, key: &K) {
        self.counts().remove(key);
    }
}

/// Between three quarters and all of `time`: what was started together does not stay together.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(0.75..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_are_forgotten() {
        let failures = Failures::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<_> = (0..70).map(|_| failures.failed("a")).collect();
        assert!(pauses[0] <= Duration::from_millis(100) && pauses[2] >= Duration::from_millis(300), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(1)), "{pauses:?}");
        assert!(failures.failed("b") <= Duration::from_millis(100), "objects do not wait for each other");
        failures.succeeded(&"a");
        assert!(failures.failed("a") <= Duration::from_millis(100));
    }
}
