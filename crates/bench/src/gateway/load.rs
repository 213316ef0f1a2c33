//! Load that comes when its time has come, and load that comes as fast as it is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::client::Target;

/// Tokens of each answer while the most tokens a second are looked for.
const SATURATION_TOKENS: u32 = 256;

/// One rate.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) rate_rps: u32,
    pub(super) streaming: bool,
    pub(super) overhead_p50_us: f64,
    pub(super) overhead_p99_us: f64,
    pub(super) overhead_max_us: f64,
    pub(super) errors: u64,
    pub(super) requests: u64,
    /// How late the generator was itself: where this is large, the machine is too small for the rate.
    pub(super) sent_late_p99_us: f64,
    /// Answered a second, over the whole time.
    pub(super) achieved_rps: f64,
    /// The first thing that went wrong.
    pub(super) problem: Option<String>,
}

#[derive(Default)]
struct Tally {
    overheads: Vec<u64>,
    late: Vec<u64>,
    errors: u64,
    problem: Option<String>,
}

/// Sends `rate` requests a second for `span`, each at its own time, and waits for all answers.
pub(super) async fn hold(
    target: &Target,
    (rate, span): (u32, Duration),
    tokens: u32,
    (streaming, cadence): (bool, Duration),
) -> Row {
    let count = u64::from(rate) * span.as_secs().max(1);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let tracker = TaskTracker::new();
    let runtime = Handle::current();
    let begun = Instant::now();
    let (target, tally_of_thread, tracker_of_thread) = (target.clone(), Arc::clone(&tally), tracker.clone());
    // A thread of its own: the runtime's timers are as fine as a millisecond, which is more than what is measured.
    let sender = tokio::task::spawn_blocking(move || {
        for index in 0..count {
            let due = begun + Duration::from_secs_f64(index as f64 / f64::from(rate));
            while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                std::thread::park_timeout(left);
            }
            let (target, tally) = (target.clone(), Arc::clone(&tally_of_thread));
            let ask = async move {
                let late = due.elapsed();
                let answer = target.ask(tokens, streaming).await;
                let mut tally = tally.lock();
                tally.late.push(micros(late));
                match answer {
                    Ok(answer) if answer.text_bytes == tokens as usize => {
                        tally.overheads.push(micros(answer.took.saturating_sub(cadence)));
                    }
                    Ok(answer) => tally.fail(format!("{} of {tokens} tokens came", answer.text_bytes)),
                    Err(problem) => tally.fail(problem),
                }
            };
            tracker_of_thread.spawn_on(ask, &runtime);
        }
    });
    let sent = sender.await;
    tracker.close();
    tracker.wait().await;
    let took = begun.elapsed();
    let mut tally = std::mem::take(&mut *tally.lock());
    if sent.is_err() {
        tally.fail("the generator panicked".to_owned());
    }
    tally.overheads.sort_unstable();
    tally.late.sort_unstable();
    Row {
        rate_rps: rate,
        streaming,
        overhead_p50_us: at(&tally.overheads, 0.5),
        overhead_p99_us: at(&tally.overheads, 0.99),
        overhead_max_us: at(&tally.overheads, 1.0),
        errors: tally.errors,
        requests: count,
        sent_late_p99_us: at(&tally.late, 0.99),
        achieved_rps: tally.overheads.len() as f64 / took.as_secs_f64(),
        problem: tally.problem,
    }
}

impl Tally {
    fn fail(&mut self, problem: String) {
        self.errors += 1;
        self.problem.get_or_insert(problem);
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Of sorted numbers the one at a quantile; not a number where there are none.
fn at(sorted: &[u64], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = ((sorted.len() as f64 * quantile) as usize).min(last);
    sorted.get(index).map_or(f64::NAN, |value| *value as f64)
}

/// The most tokens a second.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Saturation {
    pub(super) streams: usize,
    pub(super) tokens_per_s: f64,
    pub(super) answers: u64,
    pub(super) errors: u64,
    pub(super) answer_p99_us: f64,
}

/// Keeps `streams` streams running for `span`; tokens of answers that ended in it, over the time that they took.
pub(super) async fn saturate(target: &Target, streams: usize, span: Duration) -> Saturation {
    let (tokens, errors) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let times = Arc::new(Mutex::new(
        Histogram::<u64>::new_with_max(600_000_000, 2).expect("the bounds are those that it allows"),
    ));
    let over = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..streams {
        let (target, tokens, errors) = (target.clone(), Arc::clone(&tokens), Arc::clone(&errors));
        let (times, over) = (Arc::clone(&times), Arc::clone(&over));
        workers.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                match target.ask(SATURATION_TOKENS, true).await {
                    Ok(answer) if answer.text_bytes == SATURATION_TOKENS as usize => {
                        tokens.fetch_add(u64::from(SATURATION_TOKENS), Ordering::Relaxed);
                        times.lock().saturating_record(micros(answer.took));
                    }
                    Ok(_) | Err(_) => {
                        errors.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }
    tokio::time::sleep(span).await;
    over.store(true, Ordering::Relaxed);
    // What runs is finished and counted: the time is that of all answers.
    while workers.join_next().await.is_some() {}
    let took = begun.elapsed();
    let times = times.lock();
    Saturation {
        streams,
        tokens_per_s: tokens.load(Ordering::Relaxed) as f64 / took.as_secs_f64(),
        answers: times.len(),
        errors: errors.load(Ordering::Relaxed),
        answer_p99_us: times.value_at_quantile(0.99) as f64,
    }
}
