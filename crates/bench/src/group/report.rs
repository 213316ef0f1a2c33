//! The report on a group: as JSON for programs, as a table for people.

use base::Bytes;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use engine::group::StepTimes;
use serde::Serialize;

use super::reduce::Row;
use crate::machine::Machine;
use crate::scenarios::Assertion;

/// Speeds of one side, or their ratios.
#[derive(Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) prefill_tokens_per_s: f64,
    /// One request alone.
    pub(crate) decode_tokens_per_s: f64,
    /// All requests of the batch together.
    pub(crate) batch_tokens_per_s: f64,
}

impl Point {
    /// How many times another's.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self {
            prefill_tokens_per_s: self.prefill_tokens_per_s / other.prefill_tokens_per_s,
            decode_tokens_per_s: self.decode_tokens_per_s / other.decode_tokens_per_s,
            batch_tokens_per_s: self.batch_tokens_per_s / other.batch_tokens_per_s,
        }
    }
}

/// Where a rank's steps go, as means.
#[derive(Debug, Serialize)]
pub(crate) struct Split {
    pub(crate) rank: usize,
    pub(crate) phase: &'static str,
    pub(crate) steps: u64,
    pub(crate) step_us: f64,
    pub(crate) compute_us: f64,
    pub(crate) seal_us: f64,
    pub(crate) wire_us: f64,
    pub(crate) wait_us: f64,
    /// Seal, wire and wait against the whole.
    pub(crate) communication_part: f64,
    pub(crate) bytes_sent: f64,
    pub(crate) messages_sent: f64,
}

impl Split {
    pub(crate) fn of(times: &StepTimes, rank: usize, phase: &'static str) -> Self {
        let steps = times.steps.max(1) as f64;
        let us = |ns: u64| ns as f64 / 1e3 / steps;
        let others = times.seal_ns + times.wire_ns + times.wait_ns;
        Self {
            rank,
            phase,
            steps: times.steps,
            step_us: us(times.total_ns),
            compute_us: us(times.compute_ns()),
            seal_us: us(times.seal_ns),
            wire_us: us(times.wire_ns),
            wait_us: us(times.wait_ns),
            communication_part: others as f64 / times.total_ns.max(1) as f64,
            bytes_sent: times.bytes_sent as f64 / steps,
            messages_sent: times.messages_sent as f64 / steps,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) model: String,
    pub(crate) family: &'static str,
    pub(crate) weight_bytes: u64,
    pub(crate) ranks: usize,
    pub(crate) mode: String,
    pub(crate) transport: String,
    /// Medians of so many.
    pub(crate) runs: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) batch: u32,
    pub(crate) decode_tokens_per_s: f64,
    pub(crate) prefill_tokens_per_s: f64,
    pub(crate) batch_tokens_per_s: f64,
    /// One rank alone, one thread on one core.
    pub(crate) single: Point,
    /// The group against it.
    pub(crate) ratio: Point,
    pub(crate) steps: Vec<Split>,
    pub(crate) allreduce: Vec<Row>,
    pub(crate) assertions: Vec<Assertion>,
    pub(crate) pass: bool,
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let new = |header: [&str; 5]| {
            let mut table = Table::new();
            table.load_style(UTF8_BORDERS_ONLY).set_header(header);
            table
        };
        let mut speeds = new(["tokens/s", "one rank", "the group", "ratio", "how"]);
        let prefill = format!("{} tokens, median of {}", self.prompt_tokens, self.runs);
        let batch = format!("batch {}", self.batch);
        for (what, of, how) in [
            ("prefill", (|p| p.prefill_tokens_per_s) as fn(&Point) -> f64, prefill),
            ("decode", |p| p.decode_tokens_per_s, "one request".to_owned()),
            ("decode", |p| p.batch_tokens_per_s, batch),
        ] {
            let (single, ratio) = (of(&self.single), of(&self.ratio));
            speeds.add_row([
                what.to_owned(),
                format!("{single:.1}"),
                format!("{:.1}", single * ratio),
                format!("{ratio:.2}"),
                how,
            ]);
        }
        let mut steps = new(["a step of", "compute", "seal + wire", "wait", "in all"]);
        for split in &self.steps {
            steps.add_row([
                format!("rank {}, {}", split.rank, split.phase),
                format!("{:.0} us", split.compute_us),
                format!("{:.0} + {:.0} us", split.seal_us, split.wire_us),
                format!("{:.0} us", split.wait_us),
                format!("{:.0} us, {:.1} % not computing", split.step_us, 100.0 * split.communication_part),
            ]);
        }
        let mut sums = new(["a sum over", "bytes", "p50", "p99", ""]);
        for row in &self.allreduce {
            sums.add_row([
                format!("{} ranks, {}", row.ranks, row.transport),
                row.bytes.to_string(),
                format!("{:.1} us", row.p50_us),
                format!("{:.1} us", row.p99_us),
                String::new(),
            ]);
        }
        let assertions: Vec<String> = self
            .assertions
            .iter()
            .map(|a| format!("  {}  {}: {}", if a.pass { "pass" } else { "FAIL" }, a.name, a.detail))
            .collect();
        format!(
            "Phalanx {} on {}\n{}: {}, {} of weights, {} ranks ({}), over {}\n{speeds}\n{steps}\n{sums}\n{}",
            self.version,
            self.machine.line(),
            self.model,
            self.family,
            Bytes(self.weight_bytes),
            self.ranks,
            self.mode,
            self.transport,
            assertions.join("\n")
        )
    }
}
