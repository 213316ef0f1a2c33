//! The shell's clock: the one place that asks the machine for the time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base::Micros;

/// Time since the coordinator's start, monotone, and wall time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Since the start: what deciding code takes as `now`.
    pub(crate) fn now(&self) -> Micros {
        Micros::from(self.origin.elapsed())
    }

    /// The instant that `at` stands for.
    pub(crate) fn instant(&self, at: Micros) -> tokio::time::Instant {
        // A deadline beyond what an instant can hold is one that never comes: a year stands for it.
        let span = std::time::Duration::from(at).min(std::time::Duration::from_secs(365 * 24 * 3600));
        (self.origin + span).into()
    }
}

/// Microseconds since 1970.
pub(crate) fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    unix_us() / 1_000_000
}
