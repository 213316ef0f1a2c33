//! One model over several ranks against one rank alone: decode, prefill, batches, where a step's time goes, and what a sum
//! over ranks costs.
//!
//! Ranks are processes over sealed links, each with one thread on a core of its own; the single engine has one thread on the
//! leader's core. Runs alternate, so that whatever else the machine does falls on both.

mod reduce;
mod report;

use std::path::PathBuf;

use anyhow::Context;
use base::{ModelName, Rng};
use engine::group::{GroupMode, GroupReport, LocalGroup, StepTimes};
use engine::{Engine, EngineConfig, LoadOptions, ModelSource};

use crate::engine::run::Bench;
use crate::group::report::{Point, Report, Split};
use crate::machine::Machine;
use crate::ranks::{ProcessGroup, Wanted, pin, unpin};
use crate::scenarios::{Assertion, print};
use crate::spread::median;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// A model's folder or file, or `bundled`.
    #[arg(long, default_value = "bundled", value_name = "PATH")]
    pub model: PathBuf,
    /// How many ranks.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub ranks: u32,
    /// tensor, pipeline, auto, or stages x ranks as in 2x2.
    #[arg(long, default_value = "tensor")]
    pub mode: GroupMode,
    /// link: processes over sealed links; memory: threads of this process.
    #[arg(long, default_value = "link", value_parser = ["link", "memory"])]
    pub transport: String,
    /// The batch that is measured beside one request alone.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=256))]
    pub batch: u32,
    /// Tokens of the prompt that prefill is measured with.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: u32,
    /// Tokens that decode is measured over.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..))]
    pub tokens: u32,
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

/// Measures and prints the report; whether every check held.
///
/// # Errors
/// A model that cannot be loaded or divided so, or an answer that does not come.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let options = if options.quick {
        &Options { batch: 2, prompt: 32, tokens: 8, runs: 1, ..options.clone() }
    } else {
        options
    };
    let report = measure(options)?;
    unpin();
    print(&if options.json { serde_json::to_string_pretty(&report)? } else { report.table() })?;
    Ok(report.pass)
}

/// The group, however its ranks speak.
enum Running {
    Processes(ProcessGroup),
    Threads(LocalGroup),
}

impl Running {
    fn engine(&self) -> &Engine {
        match self {
            Self::Processes(group) => group.engine(),
            Self::Threads(group) => group.engine(),
        }
    }

    fn mode(&self) -> String {
        match self {
            Self::Processes(group) => group.map().mode(),
            Self::Threads(group) => group.map().mode(),
        }
    }

    /// Ends it; every rank's account, the leader's first.
    fn stop(self) -> anyhow::Result<Vec<GroupReport>> {
        let leader = self.engine().load_now().group.unwrap_or_default();
        let others: Vec<GroupReport> = match self {
            Self::Processes(group) => {
                let accounts = group.stop().1.into_iter();
                accounts.map(|account| Ok(account?.report)).collect::<anyhow::Result<_>>()?
            }
            Self::Threads(group) => {
                let reports: Vec<_> = group.followers().cloned().collect();
                group.stop();
                reports.iter().map(engine::group::Following::report).collect()
            }
        };
        Ok(std::iter::once(leader).chain(others).collect())
    }
}

/// One of both sides, over all runs.
#[derive(Default)]
struct Side {
    prefill: Vec<f64>,
    decode: Vec<f64>,
    batch: Vec<f64>,
    /// Where rank 0's steps with one request alone went; of a group.
    alone: StepTimes,
}

impl Side {
    fn measure(&mut self, bench: &mut Bench, options: &Options, prompt: u32) -> anyhow::Result<()> {
        self.prefill.push(bench.prefill(prompt)?);
        let decode = |bench: &Bench| bench.engine.load_now().group.unwrap_or_default().decode;
        let before = decode(bench);
        self.decode.push(bench.decode(1, options.tokens)?);
        self.alone.add_all(&decode(bench).since(&before));
        self.batch.push(bench.decode(options.batch, options.tokens)?);
        Ok(())
    }

    fn point(&self) -> Point {
        Point {
            prefill_tokens_per_s: median(&self.prefill),
            decode_tokens_per_s: median(&self.decode),
            batch_tokens_per_s: median(&self.batch),
        }
    }
}

fn start_group(
    options: &Options,
    (source, load): (&ModelSource, &LoadOptions),
    config: EngineConfig,
    name: &ModelName,
) -> anyhow::Result<Running> {
    let (mode, ranks, name) = (options.mode, options.ranks as usize, name.clone());
    if options.transport == "memory" {
        unpin();
        return Ok(Running::Threads(LocalGroup::start(name, (source, load), &config, (mode, ranks))?));
    }
    let options = load.clone();
    let wanted = Wanted { name, source, options, config, mode, ranks, pinned: true };
    Ok(Running::Processes(ProcessGroup::start(&wanted)?))
}

/// Where the steps of every rank went; the leader's without those before `before`, and first those of one request alone.
fn splits(reports: &mut [GroupReport], before: &GroupReport, alone: &StepTimes) -> Vec<Split> {
    reports[0].decode = reports[0].decode.since(&before.decode);
    reports[0].prefill = reports[0].prefill.since(&before.prefill);
    let of = |report: &GroupReport| {
        let split = |times: &StepTimes, phase| Split::of(times, report.rank, phase);
        [split(&report.decode, "decode"), split(&report.prefill, "prefill")]
    };
    let first = Split::of(alone, 0, "decode, one request");
    std::iter::once(first).chain(reports.iter().flat_map(of)).collect()
}

fn measure(options: &Options) -> anyhow::Result<Report> {
    let machine = Machine::here();
    let source = crate::engine::source_of(&options.model);
    let name = ModelName::new("bench");
    let config = EngineConfig {
        threads: Some(1),
        batch_max: options.batch.max(EngineConfig::default().batch_max),
        ..EngineConfig::default()
    };
    let load = LoadOptions::default();
    let model = engine::load(&source, &load).with_context(|| format!("loading {source}"))?;
    let (family, weight_bytes) = (model.spec().family, model.weight_bytes().0);
    let vocabulary = model.spec().vocabulary as u32;
    pin(0);
    let single = Engine::start(name.clone(), model, config.clone()).context("starting one rank alone")?;
    let ranks = options.ranks as usize;
    let group = start_group(options, (&source, &load), config, &name)?;
    let bench = |engine: &Engine| Bench {
        engine: engine.clone(),
        name: name.clone(),
        vocabulary,
        rng: Rng::new(1),
        attempts: 0,
    };
    let (mut alone, mut together) = (bench(&single), bench(group.engine()));
    let limits = together.engine.load_now();
    let prompt = options.prompt.min(limits.context.0.saturating_sub(options.tokens + 1)).max(1);
    let (mut one, mut all) = (Side::default(), Side::default());
    // What the sides' first runs warm up is not measured.
    Side::default().measure(&mut alone, options, prompt)?;
    Side::default().measure(&mut together, options, prompt)?;
    let before = group.engine().load_now().group.unwrap_or_default();
    for _ in 0..options.runs {
        one.measure(&mut alone, options, prompt)?;
        all.measure(&mut together, options, prompt)?;
    }
    let (same, detail) = same_choices(&single, group.engine(), vocabulary)?;
    let mode = group.mode();
    single.stop();
    let mut reports = group.stop()?;
    let steps = splits(&mut reports, &before, &all.alone);
    let (single, group) = (one.point(), all.point());
    let assertions =
        vec![Assertion::new("the group chooses the tokens that one rank alone chooses", same, detail)];
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine,
        model: source.to_string(),
        family,
        weight_bytes,
        ranks,
        mode,
        transport: options.transport.clone(),
        runs: options.runs,
        prompt_tokens: prompt,
        batch: options.batch,
        decode_tokens_per_s: group.decode_tokens_per_s,
        prefill_tokens_per_s: group.prefill_tokens_per_s,
        batch_tokens_per_s: group.batch_tokens_per_s,
        ratio: group.over(&single),
        single,
        steps,
        allreduce: reduce::table(options.quick)?,
        pass: assertions.iter().all(|assertion| assertion.pass),
        assertions,
    })
}

/// Positions whose choices are compared: more than one step.
const GOLDEN_TOKENS: usize = 300;

fn same_choices(alone: &Engine, together: &Engine, vocabulary: u32) -> anyhow::Result<(bool, String)> {
    let context = alone.load_now().context.0.min(together.load_now().context.0) as usize;
    let prompt = engine::group::Golden::prompt(vocabulary as usize, GOLDEN_TOKENS.min(context));
    let golden = engine::group::Golden::record(alone, &prompt)?;
    match golden.check(together) {
        Ok(close) => {
            Ok((true, format!("after each of {GOLDEN_TOKENS} positions; {close} too close to count")))
        }
        Err(differs @ engine::group::GoldenError::Differs { .. }) => Ok((false, differs.to_string())),
        Err(other) => Err(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_model_is_measured_over_threads_at_the_smallest_size() {
        let options = Options {
            model: "bundled".into(),
            ranks: 2,
            mode: GroupMode::Tensor,
            transport: "memory".to_owned(),
            batch: 2,
            prompt: 32,
            tokens: 8,
            runs: 1,
            quick: true,
            json: true,
        };
        let report = measure(&options).unwrap();
        assert!(report.pass, "{:?}", report.assertions);
        let json = serde_json::to_value(&report).unwrap();
        for name in ["decode_tokens_per_s", "prefill_tokens_per_s"] {
            assert!(json[name].as_f64().is_some_and(|value| value > 0.0), "{name}: {}", json[name]);
        }
        assert_eq!((json["ranks"].as_u64(), json["mode"].as_str()), (Some(2), Some("tensor")));
        assert!(json["allreduce"].as_array().is_some_and(|rows| !rows.is_empty()));
        assert!(report.table().contains("decode"));
    }
}
