//! How long a durable reservation takes under many callers: `cargo bench -p store`.
#![allow(clippy::print_stdout, reason = "a bench prints what it measured")]
#![allow(missing_docs, reason = "a program, not a library")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{AccountId, KeyId, RequestId, Rng};
use store::{Outcome, Price, Reservation, Settlement, SqliteOptions, SqliteStore, Store};

const REQUESTS_EACH: usize = 50;

fn reservation(rng: &mut Rng) -> Reservation {
    Reservation {
        request: RequestId::random(rng),
        account: AccountId(u128::from(rng.below(20))),
        key: KeyId(1),
        model: "phalanx-mini".into(),
        prompt_tokens: 100,
        max_tokens: 200,
        price: Price::default(),
        at_unix_us: 1_700_000_000_000_000,
    }
}

fn settlement(request: RequestId) -> Settlement {
    Settlement {
        request,
        prompt_tokens: 100,
        generated_tokens: 57,
        outcome: Outcome::Completed,
        at_unix_us: 1_700_000_000_500_000,
        evidence: String::new(),
        named: None,
    }
}

fn show(name: &str, mut spans: Vec<Duration>, wall: Duration) {
    spans.sort();
    let us = |at: usize| spans[(spans.len() * at / 100).min(spans.len() - 1)].as_secs_f64() * 1e6;
    let mean = spans.iter().sum::<Duration>().as_secs_f64() * 1e6 / spans.len() as f64;
    let rate = spans.len() as f64 / wall.as_secs_f64();
    println!(
        "{name:<24} mean {mean:8.1} us   p50 {:8.1}   p99 {:8.1}   max {:8.1}   {rate:7.0}/s",
        us(50),
        us(99),
        us(100)
    );
}

/// `callers` tasks, each reserving and settling one request after the other.
async fn round(store: &Arc<SqliteStore>, callers: usize, seed: u64) {
    let start = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut rng = Rng::new(seed * 1_000_003 + caller as u64);
                let mut spans = Vec::with_capacity(2 * REQUESTS_EACH);
                for _ in 0..REQUESTS_EACH {
                    let reservation = reservation(&mut rng);
                    let request = reservation.request;
                    let begin = Instant::now();
                    store.reserve(reservation).await.expect("there is room");
                    let reserved = begin.elapsed();
                    let begin = Instant::now();
                    store.settle(settlement(request)).await.expect("it is open");
                    spans.push((reserved, begin.elapsed()));
                }
                spans
            })
        })
        .collect();
    let mut spans = Vec::new();
    for task in tasks {
        spans.extend(task.await.expect("no caller panics"));
    }
    let wall = start.elapsed();
    println!("{callers} callers");
    show("  reserve", spans.iter().map(|span| span.0).collect(), wall);
    show("  settle", spans.iter().map(|span| span.1).collect(), wall);
}

/// `callers` requests at once, `REQUESTS_EACH` times: what a burst of clients meets.
async fn bursts(store: &Arc<SqliteStore>, callers: usize, rng: &mut Rng) {
    let mut spans = Vec::new();
    let mut wall = Duration::ZERO;
    for _ in 0..REQUESTS_EACH {
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (store, reservation) = (Arc::clone(store), reservation(rng));
                tokio::spawn(async move {
                    let begin = Instant::now();
                    let request = reservation.request;
                    store.reserve(reservation).await.expect("there is room");
                    (request, begin.elapsed())
                })
            })
            .collect();
        let mut requests = Vec::new();
        for task in tasks {
            let (request, span) = task.await.expect("no caller panics");
            requests.push(request);
            spans.push(span);
        }
        wall += start.elapsed();
        for request in requests {
            store.settle(settlement(request)).await.expect("it is open");
        }
    }
    show(&format!("{callers} at once: reserve"), spans, wall);
}

#[tokio::main]
async fn main() {
    let folder =
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on the disk, not in memory");
    let options = SqliteOptions::new(folder.path().join("store.sqlite"));
    let store = Arc::new(SqliteStore::open(&options, 1).await.expect("a fresh store"));
    for seed in 1..=3 {
        for callers in [1, 10, 100] {
            round(&store, callers, seed).await;
        }
        let mut rng = Rng::new(1 << 40 | seed);
        for callers in [10, 100] {
            bursts(&store, callers, &mut rng).await;
        }
    }
    store.close().await.expect("it closes");
}
