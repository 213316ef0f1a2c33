//! The report: as JSON for programs, as tables for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use wire::admin::{SegmentReport, SegmentStats};

use super::assertion::{Assertion, SEGMENTS};
use super::load::Outcome;
use super::plan::Scenario;
use crate::machine::Machine;
use crate::spread::Spread;

/// Failures told in full, a scenario; the rest are counted.
const FAILURES_SHOWN: usize = 5;

/// All scenarios.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) quick: bool,
    /// Of the ten together.
    pub(crate) requests: usize,
    pub(crate) success: usize,
    pub(crate) pass: bool,
    pub(crate) scenarios: Vec<ScenarioReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overload: Option<ScenarioReport>,
}

/// One scenario.
#[derive(Debug, Serialize)]
pub(crate) struct ScenarioReport {
    pub(crate) name: &'static str,
    pub(crate) providers: usize,
    pub(crate) users: usize,
    pub(crate) concurrency: usize,
    pub(crate) streaming: bool,
    pub(crate) requests: usize,
    pub(crate) success: usize,
    /// By HTTP status, or by word where there was none.
    pub(crate) errors: BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) error_details: Vec<String>,
    /// Refusals after which clients came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refusals: Option<u64>,
    /// From the first request's first byte to the last answer's last.
    pub(crate) duration_s: f64,
    /// Right answers a second.
    pub(crate) throughput_rps: f64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) completion_tokens_per_s: f64,
    /// From nothing to every provider eligible.
    pub(crate) start_s: f64,
    /// As clients saw it.
    pub(crate) first_token: Spread,
    pub(crate) last_byte: Spread,
    pub(crate) segments: BTreeMap<String, SegmentStats>,
    pub(crate) assertions: Vec<Assertion>,
    /// What the processes last wrote, where an assertion failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logs: Option<String>,
}

impl ScenarioReport {
    pub(crate) fn new(
        scenario: &Scenario,
        outcome: &Outcome,
        segments: SegmentReport,
        assertions: Vec<Assertion>,
        started: Duration,
    ) -> Self {
        let right: Vec<_> = outcome.answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
        let failures: Vec<_> = outcome.answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        let mut errors = BTreeMap::new();
        for failure in &failures {
            *errors.entry(failure.code.clone()).or_default() += 1;
        }
        let completion_tokens: u64 = right.iter().map(|answer| answer.completion_tokens).sum();
        let duration_s = outcome.duration_s.max(1e-9);
        Self {
            name: scenario.name,
            providers: scenario.providers.len(),
            users: scenario.users,
            concurrency: scenario.concurrency,
            streaming: scenario.stream,
            requests: scenario.requests,
            success: right.len(),
            errors,
            error_details: failures
                .iter()
                .take(FAILURES_SHOWN)
                .map(|failure| format!("{}: {}", failure.code, failure.detail))
                .collect(),
            refusals: None,
            duration_s,
            throughput_rps: right.len() as f64 / duration_s,
            prompt_tokens: right.iter().map(|answer| answer.prompt_tokens).sum(),
            completion_tokens,
            completion_tokens_per_s: completion_tokens as f64 / duration_s,
            start_s: started.as_secs_f64(),
            first_token: Spread::of(right.iter().map(|answer| answer.first_token_s)),
            last_byte: Spread::of(right.iter().map(|answer| answer.total_s)),
            segments: segments.segments,
            assertions,
            logs: None,
        }
    }

    pub(crate) fn pass(&self) -> bool {
        self.assertions.iter().all(|assertion| assertion.pass)
    }

    /// For progress.
    pub(crate) fn line(&self) -> String {
        let verdict = if self.pass() { "PASS" } else { "FAIL" };
        format!("{verdict}: {}/{} in {:.1} s", self.success, self.requests, self.duration_s)
    }

    fn table(&self) -> String {
        let mut out = String::new();
        let kind = if self.streaming { "streaming" } else { "whole" };
        let head = format!(
            "{}  ({} providers, {} users, {} requests, {} at a time, {kind})",
            self.name, self.providers, self.users, self.requests, self.concurrency
        );
        let errors: Vec<String> =
            self.errors.iter().map(|(code, count)| format!("{code}: {count}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        let refusals = self.refusals.map(|n| format!("   refused and come back {n}")).unwrap_or_default();
        let facts = [
            format!("requests {}   success {}   errors {errors}{refusals}", self.requests, self.success),
            format!(
                "duration {:.2} s (cold start before it {:.2} s)   throughput {:.2} requests/s, {:.0} tokens/s",
                self.duration_s, self.start_s, self.throughput_rps, self.completion_tokens_per_s
            ),
            format!(
                "first token p50 {:.0} p99 {:.0} ms   last byte p50 {:.0} p99 {:.0} ms",
                self.first_token.p50_ms,
                self.first_token.p99_ms,
                self.last_byte.p50_ms,
                self.last_byte.p99_ms
            ),
        ];
        write!(out, "\n{head}\n  {}\n{}\n", facts.join("\n  "), self.segment_table())
            .expect("writing to a string succeeds");
        for assertion in &self.assertions {
            let verdict = if assertion.pass { "pass" } else { "FAIL" };
            writeln!(out, "  {verdict}  {}: {}", assertion.name, assertion.detail)
                .expect("writing to a string succeeds");
        }
        for detail in &self.error_details {
            writeln!(out, "  error {detail}").expect("writing to a string succeeds");
        }
        if let Some(logs) = &self.logs {
            writeln!(out, "  the processes last wrote:\n{logs}").expect("writing to a string succeeds");
        }
        out
    }

    fn segment_table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_style(UTF8_BORDERS_ONLY)
            .set_header(["segment", "count", "mean us", "p50 us", "p95 us", "p99 us", "max us"]);
        let others = self.segments.keys().map(String::as_str).filter(|name| !SEGMENTS.contains(name));
        for name in SEGMENTS.into_iter().chain(others) {
            let cells = match self.segments.get(name) {
                Some(s) => {
                    let spread =
                        [s.mean_us, s.p50_us, s.p95_us, s.p99_us, s.max_us].map(|us| format!("{us:.1}"));
                    [vec![name.to_owned(), s.count.to_string()], spread.to_vec()].concat()
                }
                None => vec![name.to_owned(), "missing".to_owned()],
            };
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl Report {
    pub(crate) fn new(machine: Machine, quick: bool) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            machine,
            quick,
            requests: 0,
            success: 0,
            pass: false,
            scenarios: Vec::new(),
            overload: None,
        }
    }

    /// Sums up.
    pub(crate) fn finish(&mut self) {
        self.requests = self.scenarios.iter().map(|s| s.requests).sum();
        self.success = self.scenarios.iter().map(|s| s.success).sum();
        self.pass = self.scenarios.iter().chain(&self.overload).all(ScenarioReport::pass);
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let all: Vec<&ScenarioReport> = self.scenarios.iter().chain(&self.overload).collect();
        let mut out = format!("Phalanx {} on {}\n", self.version, self.machine.line());
        for scenario in &all {
            out.push_str(&scenario.table());
        }
        let mut summary = Table::new();
        summary.load_style(UTF8_BORDERS_ONLY).set_header([
            "scenario",
            "success",
            "duration s",
            "requests/s",
            "first token p50 ms",
            "route mean us",
            "verdict",
        ]);
        for scenario in &all {
            let route = scenario.segments.get("route").map_or(f64::NAN, |stats| stats.mean_us);
            summary.add_row([
                scenario.name.to_owned(),
                format!("{}/{}", scenario.success, scenario.requests),
                format!("{:.2}", scenario.duration_s),
                format!("{:.2}", scenario.throughput_rps),
                format!("{:.0}", scenario.first_token.p50_ms),
                format!("{route:.1}"),
                if scenario.pass() { "PASS" } else { "FAIL" }.to_owned(),
            ]);
        }
        for column in summary.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let verdict = if self.pass { "PASS" } else { "FAIL" };
        let quick = if self.quick { " (quick: no assertions on speed)" } else { "" };
        write!(
            out,
            "\n{summary}\n{verdict}: {} of {} requests succeeded{quick}",
            self.success, self.requests
        )
        .expect("writing to a string succeeds");
        out
    }
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
