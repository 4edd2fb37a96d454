//! Time enters here, so that leases and backoffs can be tested without waiting.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};

/// The wall clock, or one that a test moves.
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    Real,
    Manual(Arc<AtomicI64>),
    Shifted(Arc<AtomicI64>),
}

impl Clock {
    #[must_use]
    pub fn real() -> Self {
        Self(Source::Real)
    }

    /// A clock that stands still at `millis` until [`Self::advance`] moves it.
    #[must_use]
    pub fn manual(millis: i64) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(millis))))
    }

    /// A clock that goes by itself and that [`Self::advance`] puts forward.
    #[must_use]
    pub fn shifted() -> Self {
        Self(Source::Shifted(Arc::default()))
    }

    /// Moves a clock that a test has made; the wall clock cannot be moved.
    pub fn advance(&self, millis: i64) {
        if let Source::Manual(time) | Source::Shifted(time) = &self.0 {
            time.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Source::Real => Timestamp::now().as_millisecond(),
            Source::Manual(now) => now.load(Ordering::SeqCst),
            Source::Shifted(by) => Timestamp::now().as_millisecond() + by.load(Ordering::SeqCst),
        }
    }
}

/// RFC 3339 with milliseconds and the letter `Z`: the only form that the terraform CLI's decoder takes.
#[must_use]
pub fn rfc3339(millis: i64) -> String {
    let timestamp = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
    DateTimePrinter::new().precision(Some(3)).timestamp_to_string(&timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_end_in_the_letter_z() {
        assert_eq!(rfc3339(1_767_323_045_000), "2026-01-02T03:04:05.000Z");
        assert_eq!(rfc3339(7), "1970-01-01T00:00:00.007Z");
    }
}
