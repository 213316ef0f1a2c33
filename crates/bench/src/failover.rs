//! `bench failover`: streams that run on while the processes that compute them are killed, and the coordinator once.
//!
//! Four providers, killed (-9) at random and started again, for a minute; every stream's text is compared with that of an
//! undisturbed run. What a stream's client does is what any client would: read, and with `--coordinator` come back with
//! the answer's id and the last event's when its connection breaks.

mod house;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base::Rng;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::machine::Machine;
use crate::tell::{tell, unless_interrupted};
use house::House;
use stream::{Seen, Stream};

/// Different questions; streams take them by turns.
const QUESTIONS: usize = 16;

/// What to run and how to tell it.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Streams in all.
    #[arg(long, default_value_t = 1000)]
    pub streams: usize,
    /// Streams at a time.
    #[arg(long, default_value_t = 48)]
    pub concurrency: usize,
    /// Tokens of each.
    #[arg(long, default_value_t = 160)]
    pub tokens: u32,
    /// Providers.
    #[arg(long, default_value_t = 4)]
    pub providers: usize,
    /// Between two kills.
    #[arg(long, default_value_t = 1000)]
    pub kill_every_ms: u64,
    /// How long providers are killed.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Kill the coordinator too, once; streams come back to it.
    #[arg(long)]
    pub coordinator: bool,
    /// Which providers are killed when.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The smallest size, without assertions on speed: whether it works at all.
    #[arg(long)]
    pub quick: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    streams: usize,
    completed: usize,
    equal: usize,
    lost_tokens: u64,
    duplicated_tokens: u64,
    gap_p50_ms: f64,
    gap_p99_ms: f64,
    gap_max_ms: f64,
    kills: usize,
    coordinator_kills: usize,
    /// Times that a client came back to its answer, or began again since it was refused before its first token.
    reconnects: usize,
    retries: usize,
    duration_s: f64,
    /// The first few things that went wrong.
    problems: Vec<String>,
    pass: bool,
}

/// Runs it and prints the report; whether every stream is whole and equal, and at full size the gap within its bound.
///
/// # Errors
/// Processes that do not start.
pub async fn run(mut options: Options) -> anyhow::Result<bool> {
    if options.quick {
        options.streams = options.streams.min(24);
        options.concurrency = options.concurrency.min(8);
        options.tokens = options.tokens.min(48);
        options.providers = options.providers.min(2);
        options.seconds = options.seconds.min(4);
    }
    ensure!(options.streams > 0 && options.concurrency > 0 && options.tokens > 1, "nothing to do");
    ensure!(options.providers > 1, "--providers must be at least 2: an answer needs somewhere to go");
    let report = unless_interrupted(measure(&options)).await?;
    tell(options.json, &report, table)?;
    Ok(report.pass)
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let machine = Machine::here();
    let mut house = House::start(options.providers).await?;
    let questions: Vec<String> =
        (0..QUESTIONS).map(|i| crate::scenarios::prompt::prompt(i as u64, 160)).collect();
    eprintln!("undisturbed answers ...");
    let mut expected = Vec::with_capacity(QUESTIONS);
    for question in &questions {
        let stream = Stream::new(&house.client, &house.url, &house.key, question, options.tokens, false);
        let seen = stream.run().await;
        ensure!(seen.completed, "an undisturbed answer failed: {:?}\n{}", seen.problem, house.logs());
        expected.push(seen.text);
    }
    let questions = Arc::new(questions);
    eprintln!("{} streams, {} at a time, providers killed ...", options.streams, options.concurrency);
    let begun = Instant::now();
    let mut workers = clients(&house, options, (questions, begun));
    let mut seen = Vec::with_capacity(options.streams);
    let (mut kills, mut coordinator_kills) = (0, 0);
    let mut rng = Rng::new(options.seed);
    let kill_until = begun + Duration::from_secs(options.seconds);
    let half = begun + Duration::from_secs(options.seconds) / 2;
    let mut kill = tokio::time::interval(Duration::from_millis(options.kill_every_ms.max(1)));
    kill.tick().await;
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                Some(done) => seen.extend(done.context("a client panicked")?),
                None => break,
            },
            _ = kill.tick(), if Instant::now() < kill_until => {
                if options.coordinator && coordinator_kills == 0 && Instant::now() >= half {
                    house.kill_coordinator().await?;
                    coordinator_kills += 1;
                } else {
                    let which = usize::try_from(rng.below(options.providers as u64)).unwrap_or(0);
                    kills += usize::from(house.kill_provider(which).await?);
                }
            }
        }
    }
    let duration_s = begun.elapsed().as_secs_f64();
    let logs = house.end().await;
    let mut report = judge(options, machine, seen, &expected);
    report.kills = kills;
    report.coordinator_kills = coordinator_kills;
    report.duration_s = duration_s;
    report.pass &= !options.coordinator || coordinator_kills > 0 || options.quick;
    if !report.pass {
        eprintln!("{logs}");
    }
    Ok(report)
}

/// The clients, each with one stream after the other.
fn clients(
    house: &House,
    options: &Options,
    (questions, begun): (Arc<Vec<String>>, Instant),
) -> JoinSet<Vec<(usize, Seen)>> {
    let next = Arc::new(AtomicUsize::new(0));
    // Spread over the whole time in which providers are killed, however quick the machine is.
    let each = Duration::from_secs(options.seconds) / u32::try_from(options.streams).unwrap_or(u32::MAX);
    let mut workers = JoinSet::new();
    for _ in 0..options.concurrency {
        let (client, url, key) = (house.client.clone(), house.url.clone(), house.key.clone());
        let (questions, next, options) = (Arc::clone(&questions), Arc::clone(&next), options.clone());
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= options.streams {
                    return done;
                }
                let due = begun + each * u32::try_from(index).unwrap_or(u32::MAX);
                tokio::time::sleep_until(due.into()).await;
                let question = &questions[index % QUESTIONS];
                let stream = Stream::new(&client, &url, &key, question, options.tokens, options.coordinator);
                done.push((index, stream.run().await));
            }
        });
    }
    workers
}

fn judge(options: &Options, machine: Machine, seen: Vec<(usize, Seen)>, expected: &[String]) -> Report {
    let mut report = Report {
        machine,
        streams: seen.len(),
        completed: 0,
        equal: 0,
        lost_tokens: 0,
        duplicated_tokens: 0,
        gap_p50_ms: 0.0,
        gap_p99_ms: 0.0,
        gap_max_ms: 0.0,
        kills: 0,
        coordinator_kills: 0,
        reconnects: 0,
        retries: 0,
        duration_s: 0.0,
        problems: Vec::new(),
        pass: false,
    };
    let mut gaps: Vec<f64> = Vec::with_capacity(seen.len());
    for (index, one) in &seen {
        let expected = &expected[index % QUESTIONS];
        report.completed += usize::from(one.completed);
        report.reconnects += one.reconnects;
        report.retries += one.retries;
        gaps.push(one.gap_max.as_secs_f64() * 1e3);
        if one.completed && one.text == *expected {
            report.equal += 1;
            continue;
        }
        // A token of this model is about so many bytes.
        let bytes_a_token = (expected.len() as f64 / f64::from(options.tokens)).max(1.0);
        let tokens = |bytes: usize| (bytes as f64 / bytes_a_token).ceil() as u64;
        report.lost_tokens += tokens(expected.len().saturating_sub(one.text.len()));
        report.duplicated_tokens += tokens(one.text.len().saturating_sub(expected.len()));
        if report.problems.len() < 8 {
            let why = one.problem.clone().unwrap_or_else(|| "another text".to_owned());
            let same = expected.bytes().zip(one.text.bytes()).take_while(|(a, b)| a == b).count();
            report.problems.push(format!(
                "stream {index}: {why}; {} of {} bytes, the first {same} the same",
                one.text.len(),
                expected.len()
            ));
        }
    }
    gaps.sort_by(f64::total_cmp);
    let at = |q: f64| gaps.get(((gaps.len() as f64 * q) as usize).min(gaps.len().saturating_sub(1)));
    report.gap_p50_ms = at(0.5).copied().unwrap_or(0.0);
    report.gap_p99_ms = at(0.99).copied().unwrap_or(0.0);
    report.gap_max_ms = gaps.last().copied().unwrap_or(0.0);
    let whole = report.completed == report.streams && report.equal == report.streams;
    let quick_enough = options.quick || options.coordinator || report.gap_p99_ms <= 2000.0;
    report.pass = whole && quick_enough;
    report
}

fn table(report: &Report) -> String {
    let mut out = format!("{}\n", report.machine.line());
    let lines = [
        ("streams", report.streams.to_string()),
        ("completed", report.completed.to_string()),
        ("equal", report.equal.to_string()),
        ("lost tokens", report.lost_tokens.to_string()),
        ("duplicated tokens", report.duplicated_tokens.to_string()),
        ("longest gap of a stream, p50", format!("{:.0} ms", report.gap_p50_ms)),
        ("longest gap of a stream, p99", format!("{:.0} ms (goal: at most 2000)", report.gap_p99_ms)),
        ("longest gap of a stream, max", format!("{:.0} ms", report.gap_max_ms)),
        ("providers killed", report.kills.to_string()),
        ("coordinator killed", report.coordinator_kills.to_string()),
        ("came back", report.reconnects.to_string()),
        ("began again", report.retries.to_string()),
        ("duration", format!("{:.1} s", report.duration_s)),
        ("result", if report.pass { "PASS" } else { "FAIL" }.to_owned()),
    ];
    for (name, value) in lines {
        out.push_str(&format!("{name:<30} {value}\n"));
    }
    for problem in &report.problems {
        out.push_str(&format!("  {problem}\n"));
    }
    out
}
