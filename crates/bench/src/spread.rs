//! How measurements spread: mean and percentiles of durations.

use hdrhistogram::Histogram;
use serde::Serialize;

/// A distribution of durations, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Spread {
    /// Of durations in seconds; zeros where there are none.
    pub(crate) fn of(seconds: impl IntoIterator<Item = f64>) -> Self {
        // Three digits: a microsecond in a second is noise here.
        let mut histogram = Histogram::<u64>::new(3).expect("three digits are allowed");
        for second in seconds {
            histogram.record((second * 1e6) as u64).expect("it grows with what it records");
        }
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            mean_ms: histogram.mean() / 1e3,
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: histogram.max() as f64 / 1e3,
        }
    }
}

/// The middle of some measurements (the lower of two middles); zero where there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// Jain's fairness index of shares: 1 is perfectly even, 1/n is one taking all.
pub(crate) fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares > 0.0 { sum * sum / (shares.len() as f64 * squares) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_tells_mean_and_percentiles_in_milliseconds() {
        let spread = Spread::of((1..=100).map(|n| f64::from(n) / 1000.0));
        assert!((spread.mean_ms - 50.5).abs() < 0.1, "{spread:?}");
        assert!((spread.p50_ms - 50.0).abs() < 0.2, "{spread:?}");
        assert!((spread.p99_ms - 99.0).abs() < 0.2, "{spread:?}");
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn the_median_is_a_measured_value() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 1.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn even_shares_are_fair_and_one_taking_all_is_not() {
        assert_eq!(jain(&[2.0, 2.0, 2.0]), 1.0);
        assert!((jain(&[3.0, 0.0, 0.0]) - 1.0 / 3.0).abs() < 1e-9);
    }
}
