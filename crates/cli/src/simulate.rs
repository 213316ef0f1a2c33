//! `phalanx simulate`: what a policy would do with traffic, or many fleets' lives with faults, from seeds.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;
use sim::{Comparison, Options as LifeOptions, Row, TrafficFile, Violation};

use crate::declared;
use crate::terminal::{say, say_json, say_table};

const FILES: &str = "\
FILE (YAML or JSON): traffic on like machines, with pools and with all models on all machines.

  machines: 8
  requests_per_s: 1.5
  hours: 2
  models:
  - {name: fast, share: 83, decode_tokens_per_s: 57}
  - {name: slow, share: 17, decode_tokens_per_s: 2.6, answer_tokens: 64, machines: 6}

Without FILE: --seeds lives of fleets with faults (loss, freeze, restart, slowness, late and repeated messages, lies; machines
cut off from the coordinator and from each other; the coordinator killed and started again), each checked after every event;
--seed replays one and prints it. Exit code 1: an invariant broke.";

#[derive(clap::Args)]
#[command(after_long_help = FILES)]
pub(crate) struct Options {
    /// Traffic to compare pools and co-residency with.
    #[arg(value_name = "FILE", conflicts_with_all = ["seeds", "seed"])]
    file: Option<PathBuf>,
    /// Live so many lives, from seed 0 (or --from) on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    from: u64,
    /// Replay this one and print its life.
    #[arg(long, conflicts_with = "seeds", value_name = "SEED")]
    seed: Option<u64>,
    /// Hours of each life.
    #[arg(long, default_value_t = 2.0)]
    hours: f64,
    /// Machines of each fleet, at most.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=10_000))]
    machines: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    seeds: u64,
    machine_hours: f64,
    events: u64,
    violations: Vec<Violation>,
    wall_s: f64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if let Some(file) = &options.file {
        let traffic: TrafficFile = declared::read(file)?;
        let compared =
            sim::compare(&traffic).map_err(|detail| anyhow::anyhow!("{}: {detail}", file.display()))?;
        show(&compared, options.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !(options.hours > 0.0 && options.hours <= 10_000.0) {
        bail!("--hours {}: more than 0, 10000 at most", options.hours);
    }
    let (first, count) = match (options.seed, options.seeds) {
        (Some(seed), _) => (seed, 1),
        (None, Some(seeds)) => (options.from, seeds),
        (None, None) => bail!("say a FILE, --seeds N or --seed SEED"),
    };
    let told = options.seed.is_some();
    let start = Instant::now();
    let mut report =
        Report { seeds: count, machine_hours: 0.0, events: 0, violations: Vec::new(), wall_s: 0.0 };
    let mut requests = (0, 0);
    for seed in first..first.checked_add(count).context("the last seed is too large")? {
        let lived = sim::life(seed, LifeOptions { hours: options.hours, machines: options.machines, told });
        report.machine_hours += lived.machine_hours;
        report.events += lived.events;
        report.violations.extend(lived.violations);
        requests = (requests.0 + lived.requests.0, requests.1 + lived.requests.1);
        if !options.json {
            lived.lines.iter().try_for_each(say)?;
        }
    }
    report.wall_s = start.elapsed().as_secs_f64();
    if options.json {
        say_json(&report)?;
    } else {
        say(format!(
            "{} lives, {:.0} machine-hours, {} events in {:.1} s ({:.0} a second); {} of {} requests answered",
            report.seeds,
            report.machine_hours,
            report.events,
            report.wall_s,
            report.events as f64 / report.wall_s.max(1e-9),
            requests.1,
            requests.0
        ))?;
        for broken in &report.violations {
            say(format!(
                "BROKEN seed {} at {} s: {}: {} (phalanx simulate --seed {} --hours {} --machines {})",
                broken.seed,
                broken.at_s,
                broken.invariant,
                broken.what,
                broken.seed,
                options.hours,
                options.machines
            ))?;
        }
    }
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(compared: &Comparison, json: bool) -> anyhow::Result<()> {
    if json {
        return say_json(compared);
    }
    let row = |how: &str, row: &Row| {
        vec![
            how.to_owned(),
            row.model.clone(),
            row.machines.to_string(),
            row.requests.to_string(),
            row.refused.to_string(),
            format!("{:.2}", row.ttft_s_p50),
            format!("{:.2}", row.ttft_s_p95),
            format!("{:.2}", row.latency_s_p50),
            format!("{:.2}", row.latency_s_p95),
        ]
    };
    let pools = compared.pools.iter().map(|of| row("pools", of));
    let together = compared.co_resident.iter().map(|of| row("co-resident", of));
    say_table(
        &["POLICY", "MODEL", "MACHINES", "REQUESTS", "REFUSED", "TTFT P50", "P95", "LATENCY P50", "P95"],
        pools.chain(together).collect(),
    )
}
