//! How long it takes to seal and open an attempt and its chunks: `cargo bench -p trust`.
#![allow(clippy::print_stdout, reason = "a bench prints what it measured")]
#![allow(missing_docs, reason = "a program, not a library")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use base::AttemptId;
use trust::{MachineKeys, PreparedAttempt, open_attempt, seal_attempt};

/// Repeats `work`: mean and 99th percentile, in microseconds.
fn measure(name: &str, times: usize, mut work: impl FnMut()) {
    let mut spans: Vec<Duration> = (0..times)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    spans.sort();
    let mean = spans.iter().sum::<Duration>().as_secs_f64() * 1e6 / times as f64;
    let p99 = spans[times * 99 / 100].as_secs_f64() * 1e6;
    println!("{name:<28} mean {mean:7.2} us   p99 {p99:7.2} us");
}

fn main() {
    let keys = MachineKeys::generate();
    let sealing_key = keys.sealing_key();
    let attempt = AttemptId(7);
    for round in 0..3 {
        println!("round {round}");
        for bytes in [1 << 10, 16 << 10, 128 << 10] {
            let job = vec![round; bytes];
            measure(&format!("seal attempt, {} KiB", bytes >> 10), 2000, || {
                black_box(seal_attempt(&sealing_key, attempt, black_box(&job)).expect("a good key"));
            });
            let prepared = (0..500).map(|_| PreparedAttempt::new(&sealing_key).expect("a good key"));
            let mut prepared = prepared.collect::<Vec<_>>();
            measure(&format!("seal prepared, {} KiB", bytes >> 10), 500, || {
                black_box(prepared.pop().expect("as many as are used").seal(attempt, black_box(&job)));
            });
            let (sealed, _) = seal_attempt(&sealing_key, attempt, &job).expect("a good key");
            measure(&format!("open attempt, {} KiB", bytes >> 10), 2000, || {
                let opened = open_attempt(&keys, attempt, &sealed.encapsulated, &sealed.ciphertext);
                assert_eq!(opened.expect("sealed to these keys").0.len(), bytes);
            });
        }
        let (sealed, mut opener) = seal_attempt(&sealing_key, attempt, b"job").expect("a good key");
        let (_, mut sealer) = open_attempt(&keys, attempt, &sealed.encapsulated, &sealed.ciphertext)
            .expect("sealed to these keys");
        let mut chunks = Vec::new();
        measure("seal chunk, 64 B", 20_000, || chunks.push(sealer.seal(black_box(&[7; 64]))));
        let mut chunks = chunks.iter();
        measure("open chunk, 64 B", 20_000, || {
            let (counter, ciphertext) = chunks.next().expect("as many as were sealed");
            black_box(opener.open(*counter, ciphertext).expect("in order"));
        });
    }
}
