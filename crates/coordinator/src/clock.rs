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

/// A time in seconds since 1970, as RFC 3339 writes it.
pub(crate) fn rfc3339(unix_s: u64) -> String {
    let (days, rest) = (unix_s / 86_400, unix_s % 86_400);
    // Howard Hinnant's `civil_from_days`: eras of 400 years, years from March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Now, as RFC 3339 writes it.
pub(crate) fn now_rfc3339() -> String {
    rfc3339(unix_s())
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn days_become_dates_leap_years_included() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
    }
}
