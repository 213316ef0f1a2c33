//! What is asserted of a scenario, and by how much each assertion holds or misses.

use serde::Serialize;
use wire::admin::{SegmentReport, SegmentStats};

use super::load::Outcome;
use super::plan::Scenario;

/// The nine segments of a request.
pub(crate) const SEGMENTS: [&str; 9] =
    ["parse", "reserve", "queue", "route", "encrypt", "dispatch", "first_token", "stream", "settle"];

/// One assertion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Assertion {
    pub(crate) name: String,
    pub(crate) pass: bool,
    pub(crate) detail: String,
}

impl Assertion {
    pub(crate) fn new(name: impl Into<String>, pass: bool, detail: impl Into<String>) -> Self {
        Self { name: name.into(), pass, detail: detail.into() }
    }

    /// That `value` is at most `limit`.
    fn at_most(name: &str, value_us: f64, limit_us: f64) -> Self {
        Self::new(
            format!("{name} <= {limit_us} us"),
            // Not a number passes nothing.
            value_us <= limit_us,
            format!("{value_us:.1} us"),
        )
    }
}

/// Everything that is asserted of a scenario; without `quick`, speed too.
pub(crate) fn of_scenario(
    scenario: &Scenario,
    outcome: &Outcome,
    segments: &SegmentReport,
    quick: bool,
) -> Vec<Assertion> {
    let mut assertions = vec![success(outcome, scenario.requests), equal_answers(outcome)];
    assertions.push(segments_present(segments, scenario.requests as u64));
    if !quick {
        assertions.extend(speed(scenario, segments));
    }
    assertions
}

fn success(outcome: &Outcome, requests: usize) -> Assertion {
    let right = outcome.answers.iter().filter(|answer| answer.is_ok()).count();
    let name = "every request gets a right answer, to its last byte";
    Assertion::new(name, right == requests, format!("{right} of {requests}"))
}

fn equal_answers(outcome: &Outcome) -> Assertion {
    let (repeated, unequal) = (outcome.repeated, outcome.unequal);
    let detail = format!("{} of {repeated} repeated questions", repeated - unequal);
    Assertion::new("equal questions get equal answers", unequal == 0, detail)
}

/// That each of the nine was measured for every request.
pub(crate) fn segments_present(segments: &SegmentReport, requests: u64) -> Assertion {
    let count = |name: &str| segments.segments.get(name).map_or(0, |stats| stats.count);
    let missing: Vec<String> = SEGMENTS
        .iter()
        .filter(|name| count(name) != requests)
        .map(|name| format!("{name} {}", count(name)))
        .collect();
    let detail = match missing.as_slice() {
        [] => format!("9 segments of {requests} requests"),
        missing => format!("of {requests} requests: {}", missing.join(", ")),
    };
    Assertion::new("every segment is measured for every request", missing.is_empty(), detail)
}

fn speed(scenario: &Scenario, segments: &SegmentReport) -> Vec<Assertion> {
    let absent = SegmentStats { mean_us: f64::NAN, p99_us: f64::NAN, ..SegmentStats::default() };
    let stats = |name: &str| segments.segments.get(name).copied().unwrap_or(absent);
    let parse_limit_us = if scenario.prompt_bytes > 1024 { 100.0 } else { 20.0 };
    let mut assertions = vec![
        Assertion::at_most("parse mean", stats("parse").mean_us, parse_limit_us),
        Assertion::at_most("reserve mean", stats("reserve").mean_us, 500.0),
        Assertion::at_most("route mean", stats("route").mean_us, 50.0),
        Assertion::at_most("encrypt mean", stats("encrypt").mean_us, 50.0),
        Assertion::at_most("dispatch mean", stats("dispatch").mean_us, 200.0),
    ];
    if scenario.concurrency >= 100 {
        assertions.push(Assertion::at_most("route p99", stats("route").p99_us, 200.0));
    }
    assertions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(mean_us: f64, count: u64) -> SegmentReport {
        let stats = SegmentStats { count, mean_us, p99_us: mean_us, ..SegmentStats::default() };
        let segments = SEGMENTS.iter().map(|name| ((*name).to_owned(), stats)).collect();
        SegmentReport { window_us: 1, completed: count, other: 0, segments }
    }

    #[test]
    fn a_segment_that_is_missing_for_one_request_fails_by_name() {
        assert!(segments_present(&report(1.0, 30), 30).pass);
        let mut missing = report(1.0, 30);
        missing.segments.get_mut("dispatch").unwrap().count = 29;
        missing.segments.remove("encrypt");
        let assertion = segments_present(&missing, 30);
        assert!(!assertion.pass);
        assert_eq!(assertion.detail, "of 30 requests: encrypt 0, dispatch 29");
    }

    #[test]
    fn speed_is_asserted_with_its_limits_and_absence_is_no_speed() {
        let heavy = &super::super::plan::scenarios()[9];
        assert!(speed(heavy, &report(20.0, 1)).iter().all(|a| a.pass));
        let slow: Vec<String> =
            speed(heavy, &report(90.0, 1)).into_iter().filter(|a| !a.pass).map(|a| a.name).collect();
        assert_eq!(slow, ["route mean <= 50 us", "encrypt mean <= 50 us"]);
        let mut absent = report(1.0, 1);
        absent.segments.clear();
        assert!(speed(heavy, &absent).iter().all(|a| !a.pass));
    }
}
