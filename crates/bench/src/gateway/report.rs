//! What `bench gateway` found, and what is asserted of it.

use serde::Serialize;

use super::load::{Row, Saturation};
use super::sessions::Idle;
use crate::machine::Machine;

/// The goals, at this rate.
const GOAL_RPS: u32 = 1000;
const P50_US_MAX: f64 = 500.0;
const P99_US_MAX: f64 = 1500.0;
const TOKENS_PER_S_MIN: f64 = 50_000.0;
/// For ten thousand; in proportion for fewer.
const IDLE_BYTES_MAX: u64 = 400 << 20;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    rows: Vec<Row>,
    saturation_tokens_per_s: Option<f64>,
    saturation: Option<Saturation>,
    idle: Option<Idle>,
    assertions: Vec<Assertion>,
    pub(super) pass: bool,
}

#[derive(Debug, Serialize)]
struct Assertion {
    name: String,
    pass: bool,
}

impl Report {
    /// `free`: nothing is asserted of speed.
    pub(super) fn new(
        machine: Machine,
        rows: Vec<Row>,
        saturation: Option<Saturation>,
        idle: Option<Idle>,
        free: bool,
    ) -> Self {
        let mut assertions = Vec::new();
        let mut assert = |name: String, pass: bool| assertions.push(Assertion { name, pass });
        let errors: u64 = rows.iter().filter(|row| row.rate_rps <= GOAL_RPS).map(|row| row.errors).sum();
        assert(format!("no error up to {GOAL_RPS} requests/s"), errors == 0);
        for row in rows.iter().filter(|row| row.rate_rps == GOAL_RPS && !free) {
            let kind = if row.streaming { "streaming" } else { "whole answers" };
            let (p50, p99) = (row.overhead_p50_us, row.overhead_p99_us);
            assert(format!("{GOAL_RPS}/s, {kind}: p50 <= {P50_US_MAX} us"), p50 <= P50_US_MAX);
            assert(format!("{GOAL_RPS}/s, {kind}: p99 <= {P99_US_MAX} us"), p99 <= P99_US_MAX);
        }
        if let Some(found) = saturation.as_ref().filter(|_| !free) {
            let enough = found.tokens_per_s >= TOKENS_PER_S_MIN && found.errors == 0;
            assert(format!("at least {TOKENS_PER_S_MIN} tokens/s relayed"), enough);
        }
        if let Some(idle) = &idle {
            let most = IDLE_BYTES_MAX.max(IDLE_BYTES_MAX / 10_000 * idle.sessions as u64);
            assert(format!("{} idle machines in 400 MB", idle.sessions), idle.rss_bytes <= most);
        }
        let pass = assertions.iter().all(|assertion| assertion.pass);
        let saturation_tokens_per_s = saturation.as_ref().map(|found| found.tokens_per_s);
        Self { machine, rows, saturation_tokens_per_s, saturation, idle, assertions, pass }
    }

    pub(super) fn table(&self) -> String {
        let mut out = format!("{}\n", self.machine.line());
        out.push_str("What the way there and back adds to the engine's own time, in microseconds\n\n");
        out.push_str(
            "requests/s  answers       p50      p99       max   errors   answered/s   sent late p99\n",
        );
        for row in &self.rows {
            let kind = if row.streaming { "streamed" } else { "whole" };
            out.push_str(&format!(
                "{:>10}  {kind:<8} {:>8.0} {:>8.0} {:>9.0} {:>8} {:>12.0} {:>15.0}\n",
                row.rate_rps,
                row.overhead_p50_us,
                row.overhead_p99_us,
                row.overhead_max_us,
                row.errors,
                row.achieved_rps,
                row.sent_late_p99_us,
            ));
        }
        if let Some(found) = &self.saturation {
            let (streams, tokens) = (found.streams, found.tokens_per_s);
            out.push_str(&format!("\n{tokens:.0} tokens/s at {streams} streams, {} errors\n", found.errors));
        }
        if let Some(idle) = &self.idle {
            out.push_str(&format!(
                "{} idle machines: {} MB ({} bytes each), {:.3} cores, joined at {:.0}/s\n",
                idle.sessions,
                idle.rss_bytes >> 20,
                idle.bytes_per_session,
                idle.idle_cpu,
                idle.joined_per_s
            ));
        }
        for problem in self.rows.iter().filter_map(|row| row.problem.as_ref()) {
            out.push_str(&format!("  {problem}\n"));
        }
        for assertion in &self.assertions {
            out.push_str(&format!("{} {}\n", if assertion.pass { "PASS" } else { "FAIL" }, assertion.name));
        }
        out
    }
}
