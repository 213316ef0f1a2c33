//! One engine alone: loading, prefill, decode at growing batches, a long prompt beside running streams, memory, and
//! what part of the machine's read bandwidth decode reaches.

mod measure;
mod report;
pub(crate) mod run;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use base::{ModelName, Rng};
use engine::{ActivationFormat, Engine, EngineConfig, LoadOptions, ModelSource};

use crate::engine::report::{BatchPoint, EngineReport, Mixed, Prefix, Repetition};
use crate::engine::run::{Bench, Start};
use crate::machine::Machine;
use crate::scenarios::{Assertion, print};
use crate::spread::median;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// A folder with a model in the Hugging Face layout, or `bundled`.
    #[arg(long, default_value = "bundled", value_name = "PATH")]
    pub model: PathBuf,
    /// Threads that compute [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// The largest batch of the sweep.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch: u32,
    /// Tokens of the prompt that prefill is measured with.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: u32,
    /// Tokens that decode is measured over.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    pub tokens: u32,
    /// Multiply quantised and bf16 weights with activations as they are, in f32, instead of rounded.
    #[arg(long)]
    pub exact: bool,
    /// Multiply bf16 weights with activations rounded to bf16, as llama.cpp does.
    #[arg(long, conflicts_with = "exact")]
    pub rounded: bool,
    /// Compute with this instruction set: amx, avx512bf16, avx512vnni, avx512, avx2 or portable [default: the best there is].
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
    /// Guess up to N tokens ahead, as --speculate does elsewhere.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=32))]
    pub speculate: u32,
    /// Measure one request and the largest batch only, and leave out a long prompt beside running streams, beginnings
    /// that are known and text that repeats itself.
    #[arg(long)]
    pub brief: bool,
    /// How often each is measured; the median is reported.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// The smallest size: whether it works at all.
    #[arg(long)]
    pub quick: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Measures and prints the report; whether every check held. Computes on the calling thread's time: keep it off an
/// async runtime.
///
/// # Errors
/// A model that cannot be loaded, an engine that does not start, or an answer that does not come.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let report = measure(&if options.quick { options.smallest() } else { options.clone() })?;
    print(&if options.json { serde_json::to_string_pretty(&report)? } else { report.table() })?;
    Ok(report.pass)
}

impl Options {
    fn smallest(&self) -> Self {
        Self { batch: 2, prompt: 32, tokens: 8, runs: 1, ..self.clone() }
    }

    fn source(&self) -> ModelSource {
        source_of(&self.model)
    }
}

/// `bundled`, or where a model is.
pub(crate) fn source_of(model: &Path) -> ModelSource {
    match model.to_str() {
        Some("bundled") => ModelSource::Bundled,
        _ => ModelSource::Folder(model.to_owned()),
    }
}

fn measure(options: &Options) -> anyhow::Result<EngineReport> {
    let machine = Machine::here();
    let source = options.source();
    let name = ModelName::new("bench");
    let config = config(options);
    let begun = Instant::now();
    let model =
        engine::load(&source, &LoadOptions::default()).with_context(|| format!("loading {source}"))?;
    let load_s = begun.elapsed().as_secs_f64();
    let (family, parameters) = (model.spec().family, model.parameters());
    let (weight_bytes, vocabulary) = (model.weight_bytes().0, model.spec().vocabulary as u32);
    let engine = Engine::start(name.clone(), model, config).with_context(|| format!("starting {source}"))?;
    let start_s = begun.elapsed().as_secs_f64() - load_s;
    let mut bench = Bench { engine, name, vocabulary, rng: Rng::new(1), attempts: 0 };
    bench.answers(vec![Start::new(4, 1)])?;
    let first_token_s = begun.elapsed().as_secs_f64();

    let limits = bench.engine.load_now();
    // Room for the answer beside the prompt.
    let prompt = options.prompt.min(limits.context.0.saturating_sub(options.tokens + 1)).max(1);
    let prefills = prefills(&mut bench, options.runs, prompt)?;
    let batches = decode_sweep(&mut bench, options)?;
    let equal = bench.equal_at_any_batch(options.batch, options.tokens)?;
    let (mixed, prefix, repetition) = beside_speed(&mut bench, options)?;
    bench.engine.stop();

    // Before the buffer of the bandwidth's measurement is there.
    let peak_rss_bytes = measure::peak_rss_bytes();
    let threads = options.threads.map_or(machine.cores, |threads| threads as usize);
    let ceilings = engine::machine::ceilings(threads, if options.quick { 16 << 20 } else { 512 << 20 });
    let prefill_tokens_per_s = median(&prefills);
    // Every weight but the embedding, which is looked up, meets every token of a prompt; all but a head that is needed
    // for the last one only. Counting them all overstates by less than a tenth for models of a billion parameters.
    let products_per_s = prefill_tokens_per_s * parameters as f64;
    let decode_tokens_per_s = batches.first().map_or(0.0, |point| point.tokens_per_s);
    let assertions = assertions(options, equal, mixed.as_ref(), prefix.as_ref());
    Ok(EngineReport {
        version: env!("CARGO_PKG_VERSION"),
        machine,
        model: source.to_string(),
        family,
        parameters,
        weight_bytes,
        threads,
        runs: options.runs,
        load_s,
        start_s,
        first_token_s,
        prompt_tokens: prompt,
        prefill_tokens_per_s,
        decode_tokens_per_s,
        batches,
        mixed,
        prefix,
        repetition,
        context: limits.context.0,
        kv_tokens: limits.kv_tokens,
        peak_rss_bytes,
        read_bandwidth_bytes_per_s: ceilings.read_bytes_per_s,
        f32_multiply_adds_per_s: ceilings.f32_per_s,
        int8_multiply_adds_per_s: ceilings.int8_per_s,
        prefill_f32_part: products_per_s / ceilings.f32_per_s,
        prefill_int8_part: products_per_s / ceilings.int8_per_s,
        decode_bandwidth_part: decode_tokens_per_s * weight_bytes as f64 / ceilings.read_bytes_per_s,
        pass: assertions.iter().all(|assertion| assertion.pass),
        assertions,
    })
}

/// What is no plain speed, where it is asked for.
type BesideSpeed = (Option<Mixed>, Option<Prefix>, Option<Repetition>);

fn beside_speed(bench: &mut Bench, options: &Options) -> anyhow::Result<BesideSpeed> {
    if options.brief {
        return Ok((None, None, None));
    }
    let (mixed, prefix) = (mixed(bench, options)?, prefix(bench, options)?);
    Ok((Some(mixed), Some(prefix), Some(repetition(bench, options)?)))
}

fn config(options: &Options) -> EngineConfig {
    EngineConfig {
        threads: options.threads.map(|threads| threads as usize),
        batch_max: options.batch.max(EngineConfig::default().batch_max),
        activations: match (options.exact, options.rounded) {
            (true, _) => ActivationFormat::F32,
            (false, true) => ActivationFormat::Bf16,
            (false, false) => ActivationFormat::Int8,
        },
        instruction_set: options.isa.clone(),
        speculate: options.speculate,
        ..EngineConfig::default()
    }
}

fn prefills(bench: &mut Bench, runs: u32, prompt: u32) -> anyhow::Result<Vec<f64>> {
    (0..runs).map(|_| bench.prefill(prompt)).collect()
}

/// What must hold. Speeds are no part of the smallest size: it only says whether things work.
fn assertions(
    options: &Options,
    equal: bool,
    mixed: Option<&Mixed>,
    prefix: Option<&Prefix>,
) -> Vec<Assertion> {
    let mut assertions = vec![Assertion::new(
        "the same tokens in a batch as alone",
        equal,
        format!("greedy, alone and among {}", options.batch),
    )];
    if let (Some(mixed), false) = (mixed, options.quick) {
        let ratio = mixed.disturbed.p99_ms / mixed.alone.p99_ms.max(1e-3);
        assertions.push(Assertion::new(
            "between tokens p99 beside a long prompt at most twice that without",
            ratio <= 2.0,
            format!("{ratio:.2} times, {} prompt tokens", mixed.long_prompt_tokens),
        ));
    }
    if let Some(prefix) = prefix {
        assertions.push(Assertion::new(
            "a prompt that begins as an earlier one reuses what was computed",
            prefix.reused_tokens > 0,
            format!("{} of {} tokens", prefix.reused_tokens, prefix.prompt_tokens),
        ));
    }
    assertions
}

fn decode_sweep(bench: &mut Bench, options: &Options) -> anyhow::Result<Vec<BatchPoint>> {
    let mut points = Vec::new();
    let batches = if options.brief { vec![1, options.batch.max(1)] } else { sweep(options.batch) };
    for batch in batches {
        let runs: anyhow::Result<Vec<f64>> =
            (0..options.runs).map(|_| bench.decode(batch, options.tokens)).collect();
        let tokens_per_s = median(&runs?);
        points.push(BatchPoint { batch, tokens_per_s, per_request: tokens_per_s / f64::from(batch) });
    }
    Ok(points)
}

/// 1, 2, 4, ... up to and including `max`.
fn sweep(max: u32) -> Vec<u32> {
    let mut batches: Vec<u32> = std::iter::successors(Some(1u32), |batch| batch.checked_mul(2))
        .take_while(|batch| *batch < max)
        .collect();
    batches.push(max);
    batches
}

/// Time between tokens of running streams, undisturbed and while a long prompt is prefilled.
fn mixed(bench: &mut Bench, options: &Options) -> anyhow::Result<Mixed> {
    let limits = bench.engine.load_now();
    let streams = options.batch.min(4);
    // As long as the context allows beside an answer.
    let long = (8 * options.prompt).min(4000).min(limits.context.0.saturating_sub(8)).max(1);
    let (alone, _) = bench.between_tokens(streams, options.tokens, None)?;
    let (disturbed, long_prompt) = bench.between_tokens(streams, options.tokens, Some(long))?;
    let long_prompt_s = long_prompt.as_secs_f64();
    Ok(Mixed { streams, long_prompt_tokens: long, alone, disturbed, long_prompt_s })
}

/// Time to the first token of a prompt, and of one that begins the same and ends otherwise.
fn prefix(bench: &mut Bench, options: &Options) -> anyhow::Result<Prefix> {
    let limits = bench.engine.load_now();
    let prompt_tokens = (4 * options.prompt).min(2048).min(limits.context.0 / 2).max(32);
    let (first, _) = bench.first_token(prompt_tokens, prompt_tokens)?;
    let (again, reused_tokens) = bench.first_token(prompt_tokens, prompt_tokens - 16)?;
    Ok(Prefix { prompt_tokens, reused_tokens, first_ms: first * 1e3, again_ms: again * 1e3 })
}

/// Decode after a prompt that says the same again and again: where guessing ahead shows what it can do.
fn repetition(bench: &mut Bench, options: &Options) -> anyhow::Result<Repetition> {
    let before = bench.engine.load_now();
    let runs: anyhow::Result<Vec<f64>> =
        (0..options.runs).map(|_| bench.decode_repeated(options.tokens)).collect();
    let tokens_per_s = median(&runs?);
    let after = bench.engine.load_now();
    Ok(Repetition {
        speculate: options.speculate,
        tokens_per_s,
        guessed_tokens: after.guessed_tokens - before.guessed_tokens,
        guessed_right: after.guessed_right - before.guessed_right,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_doubles_up_to_its_end() {
        assert_eq!(sweep(1), [1]);
        assert_eq!(sweep(8), [1, 2, 4, 8]);
        assert_eq!(sweep(6), [1, 2, 4, 6]);
    }

    #[test]
    fn the_bundled_model_is_measured_at_the_smallest_size() {
        let options = Options {
            model: "bundled".into(),
            threads: Some(1),
            batch: 8,
            prompt: 512,
            tokens: 64,
            exact: false,
            rounded: false,
            isa: None,
            speculate: 4,
            brief: false,
            runs: 5,
            quick: true,
            json: true,
        };
        let report = measure(&options.smallest()).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        for name in
            ["decode_tokens_per_s", "prefill_tokens_per_s", "peak_rss_bytes", "read_bandwidth_bytes_per_s"]
        {
            assert!(json[name].as_f64().is_some_and(|value| value > 0.0), "{name}: {}", json[name]);
        }
        assert!(report.pass, "{:?}", report.assertions);
        assert!(report.table().contains("prefill"));
    }
}
