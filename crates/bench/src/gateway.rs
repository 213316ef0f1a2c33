//! `bench gateway`: what the way from a client to an engine and back adds to the engine's own time.
//!
//! A stand-in takes the engine's place in a real provider: it answers at a fixed pace (first token after 20 ms, then one
//! every 5 ms), so that whatever a client waits beyond that is ours: HTTP, JSON, template, tokenizer, ledger, queue,
//! sealing, sockets, and the load generator itself, which shares the cores. Load is open-loop: a request is sent when
//! its time has come, whatever became of those before. With `--url`, another gateway is measured the same way.

mod client;
mod load;
mod pace;
mod report;
mod sessions;

use std::time::Duration;

use anyhow::ensure;
use tokio::process::Command;

use crate::machine::Machine;
use crate::scenarios::fleet::Fleet;
use crate::tell::{tell, unless_interrupted};
use client::Target;
use load::Row;
pub use pace::StandInOptions;
use report::Report;

/// Requests that the stand-in answers together: more than any of the rates asks for.
const SLOTS: &str = "4096";

/// What to run and how to tell it.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Requests a second.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500, 1000, 2000])]
    rates: Vec<u32>,
    /// How long each rate is held.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 16)]
    tokens: u32,
    /// The stand-in's pace, in milliseconds to the first token and between two.
    #[arg(long, value_name = "FIRST,EACH", default_value = "20,5")]
    pace: String,
    /// Streams at a time while the most tokens a second are looked for; 0 leaves that out.
    #[arg(long, default_value_t = 512)]
    saturation: usize,
    /// Machines that are connected and idle, whose cost is measured; 0 leaves that out.
    #[arg(long, default_value_t = 10_000)]
    sessions: usize,
    /// Measure this gateway, which is there already, in front of a `bench stand-in` with the same pace.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Its key.
    #[arg(long, default_value = "sk-none", requires = "url")]
    key: String,
    /// Its name for the model.
    #[arg(long, default_value = "phalanx-bundled", requires = "url")]
    model: String,
    /// Send the gateway's sealed way over an OpenAI-compatible server at this address, instead of the stand-in in the
    /// provider itself.
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    upstream: Option<String>,
    /// The folder with the kit of the model that the server stands for.
    #[arg(long, value_name = "PATH", requires = "upstream")]
    kit: Option<std::path::PathBuf>,
    /// The smallest size, without assertions on speed: whether it works at all.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Measures, prints, and says whether what is asserted holds.
///
/// # Errors
/// Processes that do not start, or a gateway that does not answer at all.
pub async fn run(mut options: Options) -> anyhow::Result<bool> {
    if options.quick {
        options.rates = vec![50];
        options.seconds = 1;
        options.saturation = options.saturation.min(16);
        options.sessions = options.sessions.min(50);
    }
    ensure!(options.tokens > 1 && options.seconds > 0, "nothing to do");
    let report = unless_interrupted(measure(&options)).await?;
    tell(options.json, &report, Report::table)?;
    Ok(report.pass)
}

/// Serves as the server behind gateways until it is interrupted.
///
/// # Errors
/// Its address is taken.
pub async fn stand_in(options: StandInOptions) -> anyhow::Result<bool> {
    pace::serve(options).await
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let machine = Machine::here();
    let (first, each) = pace::parse(&options.pace).map_err(anyhow::Error::msg)?;
    let cadence = first + each * (options.tokens - 1);
    let (fleet, target) = match &options.url {
        Some(url) => (None, Target::new(url, &options.key, &options.model)?),
        None => {
            let fleet = start(options).await?;
            let keys = fleet.user_keys(1).await?;
            let target = Target::new(&fleet.url, &keys[0], "phalanx-bundled")?;
            (Some(fleet), target)
        }
    };
    // Connections, caches and estimates as they are after the first second of a day.
    eprintln!("warming up ...");
    let warm = load::hold(&target, (50, Duration::from_secs(1)), options.tokens, (true, cadence)).await;
    ensure!(warm.errors * 2 < warm.requests, "the gateway does not answer: {:?}", warm.problem);
    let mut rows: Vec<Row> = Vec::new();
    for &rate in &options.rates {
        for streaming in [true, false] {
            eprintln!("{rate} requests/s, {} ...", if streaming { "streaming" } else { "whole answers" });
            let span = Duration::from_secs(options.seconds);
            rows.push(load::hold(&target, (rate, span), options.tokens, (streaming, cadence)).await);
        }
    }
    let saturation = match options.saturation {
        0 => None,
        streams => {
            eprintln!("{streams} streams at a time ...");
            Some(load::saturate(&target, streams, Duration::from_secs(options.seconds.min(10))).await)
        }
    };
    let mut idle = None;
    if let Some(fleet) = fleet {
        if options.sessions > 0 {
            eprintln!("{} idle machines ...", options.sessions);
            idle = Some(sessions::measure(&fleet, options.sessions).await?);
        }
        let logs = fleet.end().await;
        tracing_of(&logs);
    }
    Ok(Report::new(machine, rows, saturation, idle, options.quick || options.url.is_some()))
}

/// What processes said at their end, where somebody looks for it.
fn tracing_of(logs: &str) {
    if std::env::var_os("PHALANX_BENCH_LOGS").is_some() {
        eprintln!("{logs}");
    }
}

/// A coordinator and a provider whose engine is the stand-in.
async fn start(options: &Options) -> anyhow::Result<Fleet> {
    let pace = options.pace.clone();
    let upstream = options.upstream.clone().zip(options.kit.clone());
    // The oldest explanations would be all that is kept otherwise; and nobody asks for them here.
    let settings: [&str; 1] = ["pool.queue_max=4096"];
    Fleet::with_provider(&settings, move |command: &mut Command| {
        match upstream {
            Some((url, kit)) => {
                command.args(["--model", "phalanx-bundled=stand-in", "--engine", &format!("openai={url}")]);
                command.arg("--kit").arg(kit);
            }
            None => {
                command.args(["--model", "phalanx-bundled=bundled", "--stand-in", &pace]);
            }
        }
        command.args(["--batch-max", SLOTS]);
    })
    .await
}
