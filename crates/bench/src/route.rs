//! `phalanx bench route`: how long a decision of the pool takes, at 10 to 100,000 instances.
//!
//! The pool is the one that the coordinator runs (`fleet::Pool`), filled with machines of eight kinds whose speeds vary
//! by a third, three fifths of all slots taken. A decision is a request that arrives and is sent (`Enqueue` to
//! `Dispatch`: eligibility, cost, prefix affinity, the record for `phalanx explain`); beside it, a report of a random
//! instance, and the end of an answer with a full queue behind it, which sends the next (`drain`).

use std::collections::VecDeque;
use std::time::Instant;

use base::{AccountId, Bytes, Epoch, InstanceId, MachineId, Micros, ModelName, RequestId, Rng, Tokens};
use fleet::{Ask, Effect, Enqueue, Input, Outcome, Policy, Pool, Priority};
use serde::Serialize;
use wire::control::{InstanceOffer, InstancePhase, InstanceReport, ModelDescriptor};

use crate::scenarios::print;

/// The goal: at every size.
const P99_NS_MAX: u64 = 20_000;
/// What a choice may cost over the best there is: searches of large pools end before they have seen all of them.
const WORST_MAX: f64 = 1.05;
/// Requests of so many accounts.
const ACCOUNTS: u64 = 1000;
/// Requests that wait while the drain is measured.
const QUEUE: u64 = 10_000;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Pool sizes.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000, 100_000])]
    instances: Vec<u64>,
    /// Decisions at each size.
    #[arg(long, default_value_t = 50_000)]
    decisions: usize,
    /// A tenth of the decisions, sizes up to 1,000, no assertion.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    instances: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    /// A report of one instance.
    report_p99_ns: u64,
    /// An answer that ends with a queue behind it.
    drain_p50_ns: u64,
    drain_p99_ns: u64,
    /// Predicted cost of what was chosen over that of the best by a scan: 1 is exact.
    worst_over_best: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    p99_ns_max: u64,
    passed: bool,
}

/// Measures, prints, and says whether the assertion holds.
///
/// # Errors
/// Standard output is closed.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let mut sizes = options.instances.clone();
    let mut decisions = options.decisions.max(100);
    if options.quick {
        sizes.retain(|size| *size <= 1000);
        decisions = decisions.min(5000);
    }
    let rows: Vec<Row> = sizes.into_iter().map(|size| measure(size.max(1), decisions)).collect();
    let quick = |row: &Row| row.p99_ns <= P99_NS_MAX && row.drain_p99_ns <= P99_NS_MAX;
    let held = rows.iter().all(|row| quick(row) && row.worst_over_best <= WORST_MAX);
    let report = Report { rows, p99_ns_max: P99_NS_MAX, passed: held || options.quick };
    let text =
        if options.json { serde_json::to_string_pretty(&report)? } else { table(&report, options.quick) };
    print(&text)?;
    Ok(report.passed)
}

fn table(report: &Report, quick: bool) -> String {
    let mut out = String::from(
        "A decision of the pool, in microseconds (one core; the pool is the coordinator's own)\n\n\
         instances      p50      p99      max   report p99   drain p50   drain p99   worst/best\n",
    );
    for row in &report.rows {
        let us = |ns: u64| ns as f64 / 1e3;
        out.push_str(&format!(
            "{:>9} {:>8.1} {:>8.1} {:>8.1} {:>12.1} {:>11.1} {:>11.1} {:>12.3}\n",
            row.instances,
            us(row.p50_ns),
            us(row.p99_ns),
            us(row.max_ns),
            us(row.report_p99_ns),
            us(row.drain_p50_ns),
            us(row.drain_p99_ns),
            row.worst_over_best
        ));
    }
    let goal = report.p99_ns_max / 1000;
    out.push_str(&match (quick, report.passed) {
        (true, _) => "\nquick: nothing is asserted".to_owned(),
        (false, true) => {
            format!("\nPASS p99 <= {goal} us at every size, decision and drain; worst/best <= {WORST_MAX}")
        }
        (false, false) => {
            format!("\nFAIL p99 <= {goal} us at every size, decision and drain; worst/best <= {WORST_MAX}")
        }
    });
    out
}

/// A pool of `instances`, and what runs in it.
struct World {
    pool: Pool,
    rng: Rng,
    now: Micros,
    instances: u64,
    running: VecDeque<(RequestId, InstanceId)>,
    next: u64,
    effects: Vec<Effect>,
}

fn measure(instances: u64, decisions: usize) -> Row {
    let mut world = World::new(instances);
    let slots = world.fill();
    let mut decided = Vec::with_capacity(decisions);
    let mut reported = Vec::with_capacity(decisions / 4);
    // Comparing with a scan takes long: a few dozen at the large sizes.
    let compare = (decisions * 20 / instances as usize).clamp(20, decisions);
    let mut worst = 1.0f64;
    for n in 0..decisions {
        world.now += Micros(100);
        let asked = world.request();
        let best = (n % (decisions / compare).max(1) == 0).then(|| world.best(&asked.ask));
        let (took, cost) = world.enqueue(asked);
        decided.push(took);
        if let (Some(best), Some(cost)) = (best, cost) {
            worst = worst.max(cost / best);
        }
        if n % 4 == 0 {
            reported.push(world.report());
        }
        if world.running.len() as u64 > slots * 3 / 5 {
            world.end();
        }
    }
    let drained = world.drain(decisions / 10);
    Row {
        instances,
        p50_ns: quantile(&mut decided, 0.5),
        p99_ns: quantile(&mut decided, 0.99),
        max_ns: quantile(&mut decided, 1.0),
        report_p99_ns: quantile(&mut reported, 0.99),
        drain_p50_ns: quantile(&mut drained.clone(), 0.5),
        drain_p99_ns: quantile(&mut drained.clone(), 0.99),
        worst_over_best: worst,
    }
}

fn quantile(samples: &mut [u64], share: f64) -> u64 {
    samples.sort_unstable();
    let at = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len().max(1)) - 1;
    samples.get(at).copied().unwrap_or_default()
}

impl World {
    fn new(instances: u64) -> Self {
        let policy = Policy { queue_max: QUEUE as u32 * 2, wait_us_max: Micros::ZERO, ..Policy::default() };
        let pool = Pool::new(ModelName::new("bench"), policy, Rng::new(1));
        let (rng, now) = (Rng::new(2), Micros::from_secs(1));
        Self { pool, rng, now, instances, running: VecDeque::new(), next: 0, effects: Vec::new() }
    }

    /// Joins all machines and takes three fifths of their slots; gives how many slots there are.
    fn fill(&mut self) -> u64 {
        let mut slots = 0;
        for n in 0..self.instances {
            let report = self.report_of(n, 0);
            slots += u64::from(report.slots);
            let offer = InstanceOffer {
                instance: InstanceId(u128::from(n) + 1),
                epoch: Epoch(1),
                rank: 0,
                ranks: 1,
                model: descriptor(8192 << (n % 3)),
                report,
            };
            let up = Input::InstanceUp {
                machine: MachineId(u128::from(n) + 1),
                owner: None,
                offer: Box::new(offer),
            };
            self.pool.handle(self.now, up, &mut self.effects);
        }
        while (self.running.len() as u64) < slots * 3 / 5 {
            let asked = self.request();
            self.enqueue(asked);
        }
        slots
    }

    /// One of eight kinds of machine, each within a third of its kind's speed.
    fn report_of(&mut self, n: u64, generation: u64) -> InstanceReport {
        let kind = n % 8;
        let spread = 0.67 + 0.66 * self.rng.below(1000) as f32 / 1000.0;
        let kv = 16_384 << (kind % 4);
        InstanceReport {
            instance: InstanceId(u128::from(n) + 1),
            generation,
            phase: InstancePhase::Ready,
            detail: String::new(),
            slots: 4 << (kind % 3),
            running: 0,
            waiting: 0,
            kv_tokens: kv,
            kv_tokens_free: kv,
            prefill_tokens_waiting: 0,
            prefill_tokens_per_s: [100.0, 250.0, 600.0, 1500.0, 3000.0, 5000.0, 8000.0, 400.0][kind as usize]
                * spread,
            decode_tokens_per_s: [5.0, 12.0, 20.0, 35.0, 50.0, 80.0, 120.0, 15.0][kind as usize] * spread,
        }
    }

    fn request(&mut self) -> Enqueue {
        self.next += 1;
        let prompt = 16 + (self.rng.below(100) * self.rng.below(100) / 4) as u32;
        let max = 32 + self.rng.below(480) as u32;
        // A third of all prompts begin as one of a hundred others did.
        let begins = if self.rng.below(3) == 0 { self.rng.below(100) as u32 } else { self.next as u32 + 100 };
        let prefixes = fleet::prefixes(&vec![begins; prompt as usize], 3);
        Enqueue {
            ask: Ask::new(RequestId(u128::from(self.next)), Tokens(prompt), Tokens(max)),
            account: AccountId(u128::from(self.rng.below(ACCOUNTS))),
            weight: 1,
            priority: Priority::Normal,
            deadline: None,
            again: false,
            tried: 0,
            prefixes,
        }
    }

    /// The least cost of all, by a scan.
    fn best(&self, ask: &Ask) -> f64 {
        let verdicts = self.pool.explain(self.now, ask);
        verdicts.iter().filter_map(|v| v.verdict.ok()).map(|p| p.cost_s).fold(f64::INFINITY, f64::min)
    }

    /// Nanoseconds that it took, and what the chosen instance is predicted to cost.
    fn enqueue(&mut self, asked: Enqueue) -> (u64, Option<f64>) {
        self.effects.clear();
        let start = Instant::now();
        self.pool.handle(self.now, Input::Enqueue(asked), &mut self.effects);
        let took = start.elapsed().as_nanos() as u64;
        (took, self.take())
    }

    fn take(&mut self) -> Option<f64> {
        let mut cost = None;
        for effect in &self.effects {
            if let Effect::Dispatch { request, instance, predicted, .. } = effect {
                self.running.push_back((*request, *instance));
                cost = Some(predicted.cost_s);
            }
        }
        cost
    }

    fn report(&mut self) -> u64 {
        let n = self.rng.below(self.instances);
        let mut report = self.report_of(n, self.now.0);
        // What it has free is what was not given to it: the engine's own count.
        if let Some(instance) = self.pool.instance(report.instance) {
            report.kv_tokens_free = report.kv_tokens.saturating_sub(instance.kv_committed);
            report.running = instance.attempts.len() as u32;
        }
        self.effects.clear();
        let start = Instant::now();
        let machine = MachineId(u128::from(n) + 1);
        self.pool.handle(self.now, Input::InstanceReport { machine, report }, &mut self.effects);
        start.elapsed().as_nanos() as u64
    }

    fn end(&mut self) -> u64 {
        // Not the oldest always: answers end in any order.
        let at = self.rng.below(self.running.len() as u64) as usize;
        self.running.swap(0, at);
        let Some((request, instance)) = self.running.pop_front() else { return 0 };
        self.pool.handle(self.now, Input::FirstToken { request }, &mut Vec::new());
        let (outcome, generated) = (Outcome::Completed, Tokens(100));
        self.effects.clear();
        let start = Instant::now();
        self.pool.handle(
            self.now,
            Input::AttemptEnded { request, instance, outcome, generated },
            &mut self.effects,
        );
        start.elapsed().as_nanos() as u64
    }

    /// Fills every slot and the queue, then ends answers one by one: each end sends what waits next.
    fn drain(&mut self, count: usize) -> Vec<u64> {
        while (self.pool.queued() as u64) < QUEUE {
            let asked = self.request();
            self.enqueue(asked);
        }
        let mut took = Vec::with_capacity(count);
        for _ in 0..count.min(self.running.len()) {
            self.now += Micros(100);
            took.push(self.end());
            self.take();
            let asked = self.request();
            self.enqueue(asked);
        }
        took
    }
}

fn descriptor(context: u32) -> ModelDescriptor {
    ModelDescriptor {
        name: ModelName::new("bench"),
        family: "llama".to_owned(),
        parameters: 1_000_000,
        weight_bytes: Bytes(2_000_000),
        context: Tokens(context),
        vocabulary: 32_000,
        weights_sha256: "0".repeat(64),
        kit_sha256: "0".repeat(64),
        kit_bytes: Bytes(1000),
    }
}
