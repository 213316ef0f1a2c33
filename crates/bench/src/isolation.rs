//! `bench isolation`: two models of unlike speed on two machines, once with a machine for each and once with both on both:
//! what the slow one costs those who ask the fast one (A7).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::machine::Machine;
use crate::managed::{LOOK_EVERY, Managed, STEP_MAX};
use crate::scenarios::answer::{Question, ask};
use crate::spread::Spread;
use crate::tell::{tell, unless_interrupted};

const FAST: &str = "phalanx-bundled";
const SLOW: &str = "slow";
/// Of a hundred requests so many are for the fast model, as in the simulator's traffic.
const FAST_OF_100: u64 = 83;
/// Machines, and models.
const MACHINES: usize = 2;

/// What to run and how to tell it.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Requests a second, of both models together.
    #[arg(long, default_value_t = 6.0)]
    pub rate: f64,
    /// Seconds of traffic in each arrangement.
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// The same seed makes the same arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A few seconds, without an assertion on latency: whether it works at all.
    #[arg(long)]
    pub quick: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// One model's requests in one arrangement.
#[derive(Debug, Serialize)]
struct Served {
    requests: usize,
    first_token: Spread,
    whole: Spread,
}

/// One arrangement.
#[derive(Debug, Serialize)]
struct Arrangement {
    fast: Served,
    slow: Served,
    errors: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rate_rps: f64,
    /// A machine for each model.
    pools: Arrangement,
    /// Both models on both machines.
    coresident: Arrangement,
    pass: bool,
}

/// Runs it and prints the report; whether no request failed and, at full size, the fast model's first tokens came sooner
/// (95th percentile) with a machine for each model.
///
/// # Errors
/// Processes that do not start, or deployments that are not ready within two minutes.
pub async fn run(mut options: Options) -> anyhow::Result<bool> {
    if options.quick {
        options.seconds = options.seconds.min(3);
    }
    ensure!(options.rate > 0.0 && options.rate <= 1000.0, "--rate must be above 0 and at most 1000");
    ensure!(options.seconds > 0, "--seconds must be at least 1");
    let report = unless_interrupted(measure(&options)).await?;
    tell(options.json, &report, table)?;
    Ok(report.pass)
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let machine = Machine::here();
    let models = tempfile::Builder::new().prefix("phalanx-isolation-").tempdir()?;
    write_slow_model(&models.path().join(SLOW)).await?;
    eprintln!("a machine for each model ...");
    let pools = arrangement(options, models.path(), true).await?;
    eprintln!("both models on both machines ...");
    let coresident = arrangement(options, models.path(), false).await?;
    let isolated = pools.fast.first_token.p95_ms < coresident.fast.first_token.p95_ms;
    let pass = pools.errors + coresident.errors == 0 && (options.quick || isolated);
    Ok(Report { machine, rate_rps: options.rate, pools, coresident, pass })
}

/// Random weights, some seven times the bundled model's.
async fn write_slow_model(folder: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(["models", "synth", "--hidden", "512", "--layers", "8"]);
    command.args(["--feed-forward", "1536", "--out"]).arg(folder);
    let made = command.output().await.context("making the slow model")?;
    ensure!(made.status.success(), "making the slow model: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

async fn arrangement(options: &Options, models: &Path, exclusive: bool) -> anyhow::Result<Arrangement> {
    let folder = models.to_str().context("a folder whose name is no text")?;
    let fleet = Managed::start(MACHINES, &["--model", "bundled", "--models-dir", folder]).await?;
    let replicas = if exclusive { 1 } else { MACHINES };
    for model in [FAST, SLOW] {
        let spec = json!({"name": model, "model": model, "replicas": replicas, "exclusive": exclusive,
            "context": 1024});
        fleet.post("/api/deployments", &spec).await?;
    }
    for model in [FAST, SLOW] {
        serves(&fleet, model, replicas).await?;
    }
    // The first requests teach the coordinator how fast each is.
    for model in [FAST, SLOW, FAST, SLOW] {
        let _ = ask(&fleet.client, &question(&fleet, model, 0)).await;
    }
    let asked = traffic(options, &fleet).await?;
    fleet.end().await;
    let errors = asked.iter().filter(|(_, answer)| answer.is_none()).count();
    let served = |model: &str| {
        let of: Vec<(f64, f64)> =
            asked.iter().filter(|(asked, _)| *asked == model).filter_map(|(_, answer)| *answer).collect();
        Served {
            requests: of.len(),
            first_token: Spread::of(of.iter().map(|(first, _)| *first)),
            whole: Spread::of(of.iter().map(|(_, whole)| *whole)),
        }
    };
    Ok(Arrangement { fast: served(FAST), slow: served(SLOW), errors })
}

async fn serves(fleet: &Managed, model: &str, replicas: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP_MAX;
    loop {
        let now = fleet.get(&format!("/api/deployments/{model}")).await?;
        let serving = now["instances"].as_array().into_iter().flatten().filter(|i| i["serves"] == true);
        if serving.count() == replicas {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{model} is not ready: {now:#}\n{}", fleet.logs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn question(fleet: &Managed, model: &'static str, number: usize) -> Question {
    let (words, max_tokens) = if model == FAST { (30, 24) } else { (60, 32) };
    Question {
        url: fleet.url.clone(),
        key: fleet.key.clone(),
        model: model.to_owned(),
        // No two begin alike: what is measured is not the prefix cache.
        prompt: format!("{number} ") + &"tell me more ".repeat(words / 3),
        max_tokens,
        stream: true,
        exact: true,
    }
}

/// Requests at random moments, whatever becomes of those before: the model asked, and seconds to the first token and to
/// the last byte.
async fn traffic(
    options: &Options,
    fleet: &Managed,
) -> anyhow::Result<Vec<(&'static str, Option<(f64, f64)>)>> {
    let mut rng = base::Rng::new(options.seed);
    let (begun, mut at) = (Instant::now(), 0.0);
    let mut running = JoinSet::new();
    let mut number = 0;
    loop {
        at += -(1.0 - rng.next_f64()).ln() / options.rate;
        if at > options.seconds as f64 {
            break;
        }
        number += 1;
        let model = if rng.below(100) < FAST_OF_100 { FAST } else { SLOW };
        let (client, question) = (fleet.client.clone(), question(fleet, model, number));
        tokio::time::sleep_until((begun + Duration::from_secs_f64(at)).into()).await;
        running.spawn(async move {
            let answer = ask(&client, &question).await;
            if let Err(failure) = &answer {
                eprintln!("a request failed: {} {}", failure.code, failure.detail);
            }
            (model, answer.ok().map(|answer| (answer.first_token_s, answer.total_s)))
        });
    }
    let mut asked = Vec::with_capacity(number);
    while let Some(one) = running.join_next().await {
        asked.push(one?);
    }
    Ok(asked)
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{}\n{:.1} requests/s, {FAST_OF_100} of 100 for the fast model; milliseconds\n\n\
         arrangement            model  requests  first token p50 / p95 / p99      whole p50 / p95\n",
        report.machine.line(),
        report.rate_rps
    );
    for (name, arrangement) in [("a machine for each", &report.pools), ("both on both", &report.coresident)] {
        for (model, served) in [("fast", &arrangement.fast), ("slow", &arrangement.slow)] {
            let (first, whole) = (&served.first_token, &served.whole);
            text += &format!(
                "{name:<22} {model:<6} {:>8}  {:>8.1} / {:.1} / {:.1}  {:>12.1} / {:.1}\n",
                served.requests, first.p50_ms, first.p95_ms, first.p99_ms, whole.p50_ms, whole.p95_ms
            );
        }
    }
    let errors = report.pools.errors + report.coresident.errors;
    text + &format!("{errors} failed\n{}", if report.pass { "PASS" } else { "FAIL" })
}
