//! The report on one engine: as JSON for programs, as a table for people.

use base::Bytes;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

use crate::machine::Machine;
use crate::scenarios::Assertion;
use crate::spread::Spread;

/// Decode at one batch size.
#[derive(Debug, Serialize)]
pub(crate) struct BatchPoint {
    pub(crate) batch: u32,
    /// All requests together.
    pub(crate) tokens_per_s: f64,
    pub(crate) per_request: f64,
}

/// Running streams beside a long prompt.
#[derive(Debug, Serialize)]
pub(crate) struct Mixed {
    pub(crate) streams: u32,
    pub(crate) long_prompt_tokens: u32,
    /// Time between tokens, undisturbed.
    pub(crate) alone: Spread,
    /// The same while the long prompt was prefilled.
    pub(crate) disturbed: Spread,
    /// How long that prompt took beside them, as far as they lasted.
    pub(crate) long_prompt_s: f64,
}

/// A prompt, and another that begins like it.
#[derive(Debug, Serialize)]
pub(crate) struct Prefix {
    pub(crate) prompt_tokens: u32,
    /// Of the second, found computed.
    pub(crate) reused_tokens: u32,
    /// Time to the first token of the first one.
    pub(crate) first_ms: f64,
    /// Of the second one.
    pub(crate) again_ms: f64,
}

/// Decode after a prompt that repeats itself.
#[derive(Debug, Serialize)]
pub(crate) struct Repetition {
    /// Tokens guessed ahead at most.
    pub(crate) speculate: u32,
    /// One request alone.
    pub(crate) tokens_per_s: f64,
    /// Guesses that were computed in all runs together.
    pub(crate) guessed_tokens: u64,
    /// Of these, right.
    pub(crate) guessed_right: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct EngineReport {
    pub(crate) version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) model: String,
    pub(crate) family: &'static str,
    pub(crate) parameters: u64,
    pub(crate) weight_bytes: u64,
    pub(crate) threads: usize,
    /// Medians of so many.
    pub(crate) runs: u32,
    /// Files found and checked.
    pub(crate) load_s: f64,
    /// Weights repacked, speed measured.
    pub(crate) start_s: f64,
    /// From nothing to the first token.
    pub(crate) first_token_s: f64,
    pub(crate) prompt_tokens: u32,
    pub(crate) prefill_tokens_per_s: f64,
    /// One request alone.
    pub(crate) decode_tokens_per_s: f64,
    pub(crate) batches: Vec<BatchPoint>,
    /// Absent where only speed is measured.
    pub(crate) mixed: Option<Mixed>,
    pub(crate) prefix: Option<Prefix>,
    pub(crate) repetition: Option<Repetition>,
    pub(crate) context: u32,
    pub(crate) kv_tokens: u64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) read_bandwidth_bytes_per_s: f64,
    /// Multiply-adds of f32 that the threads do from registers.
    pub(crate) f32_multiply_adds_per_s: f64,
    /// Multiply-adds of bytes into 32-bit integers, likewise.
    pub(crate) int8_multiply_adds_per_s: f64,
    /// What part of each prefill takes, were every weight used once for every token.
    pub(crate) prefill_f32_part: f64,
    pub(crate) prefill_int8_part: f64,
    /// What part of the read bandwidth decode alone would take, if it read every weight as stored once a token.
    pub(crate) decode_bandwidth_part: f64,
    pub(crate) assertions: Vec<Assertion>,
    pub(crate) pass: bool,
}

impl EngineReport {
    /// What is no plain speed.
    fn beside_others(&self, row: &mut impl FnMut(&str, String, String)) {
        if let Some(mixed) = &self.mixed {
            row(
                "between tokens p99",
                format!("{:.1} ms", mixed.alone.p99_ms),
                format!("{} streams, undisturbed", mixed.streams),
            );
            row(
                "beside a long prompt",
                format!("{:.1} ms", mixed.disturbed.p99_ms),
                format!(
                    "p99, {} prompt tokens, which took {:.1} s",
                    mixed.long_prompt_tokens, mixed.long_prompt_s
                ),
            );
        }
        if let Some(prefix) = &self.prefix {
            row(
                "first token",
                format!("{:.0} ms", prefix.first_ms),
                format!("{} prompt tokens", prefix.prompt_tokens),
            );
            row(
                "after a known beginning",
                format!("{:.0} ms", prefix.again_ms),
                format!("{} of them found", prefix.reused_tokens),
            );
        }
        if let Some(repetition) = &self.repetition {
            row(
                "decode, repeating text",
                format!("{:.1} tokens/s", repetition.tokens_per_s),
                match repetition.speculate {
                    0 => "no guesses (--speculate)".to_owned(),
                    _ => {
                        format!("{} of {} guesses right", repetition.guessed_right, repetition.guessed_tokens)
                    }
                },
            );
        }
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_header(["measured", "value", "how"]);
        let mut row = |what: &str, value: String, how: String| {
            table.add_row([what.to_owned(), value, how]);
        };
        row("load", format!("{:.3} s", self.load_s), "files found and checked".to_owned());
        row("start", format!("{:.3} s", self.start_s), "weights repacked, speed measured".to_owned());
        row("first token", format!("{:.3} s", self.first_token_s), "from nothing".to_owned());
        row(
            "prefill",
            format!("{:.0} tokens/s", self.prefill_tokens_per_s),
            format!("{} tokens, median of {}", self.prompt_tokens, self.runs),
        );
        for point in &self.batches {
            row(
                &format!("decode, batch {}", point.batch),
                format!("{:.1} tokens/s", point.tokens_per_s),
                format!("{:.1} each, median of {}", point.per_request, self.runs),
            );
        }
        self.beside_others(&mut row);
        row("peak memory", Bytes(self.peak_rss_bytes).to_string(), "resident".to_owned());
        row(
            "read bandwidth",
            format!("{:.1} GB/s", self.read_bandwidth_bytes_per_s / 1e9),
            format!("{} threads; decode takes {:.0} %", self.threads, 100.0 * self.decode_bandwidth_part),
        );
        let ceiling = |per_s: f64, part: f64| {
            (format!("{:.0} G/s", per_s / 1e9), format!("multiply-adds; prefill takes {:.0} %", 100.0 * part))
        };
        let (value, how) = ceiling(self.f32_multiply_adds_per_s, self.prefill_f32_part);
        row("f32 arithmetic", value, how);
        let (value, how) = ceiling(self.int8_multiply_adds_per_s, self.prefill_int8_part);
        row("int8 arithmetic", value, how);
        let assertions: Vec<String> = self
            .assertions
            .iter()
            .map(|a| format!("  {}  {}: {}", if a.pass { "pass" } else { "FAIL" }, a.name, a.detail))
            .collect();
        format!(
            "Phalanx {} on {}\n{}: {}, {} parameters, {} of weights, context {}, room for {} tokens\n{table}\n{}",
            self.version,
            self.machine.line(),
            self.model,
            self.family,
            self.parameters,
            Bytes(self.weight_bytes),
            self.context,
            self.kv_tokens,
            assertions.join("\n")
        )
    }
}
