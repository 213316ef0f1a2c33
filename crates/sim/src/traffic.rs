//! What a policy would do with given traffic: pools of machines for each model against all models on all machines.
//!
//! Both ways run the same requests through the real pools. On a machine of its own a model's steps follow each other; where
//! two models compute on one machine, their steps alternate, so that each token waits for a step of the other model,
//! however slow that is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use base::{Epoch, InstanceId, MachineId, Micros, ModelName, RequestId, Rng, Tokens};
use fleet::{Ask, Effect, Enqueue, Input, Outcome, Policy, Pool, Priority};
use serde::{Deserialize, Serialize};

use crate::world;

/// Each further request in a batch slows the others by so much.
const BATCH_SLOWS: f64 = 0.27;
/// Machines and models at most.
const MACHINES_MAX: u32 = 1000;
const MODELS_MAX: usize = 16;
/// Requests at most.
const REQUESTS_MAX: f64 = 2e6;

/// A fleet of like machines, and its traffic.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficFile {
    /// How many.
    pub machines: u32,
    /// What is served on them.
    pub models: Vec<TrafficModel>,
    /// Requests in all.
    pub requests_per_s: f64,
    /// How long [default: 1].
    pub hours: Option<f64>,
    /// What all chance follows from [default: 1].
    pub seed: Option<u64>,
}

/// A model and its traffic.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficModel {
    /// Under which name.
    pub name: String,
    /// Share of all requests; shares are taken against each other.
    pub share: f64,
    /// One request alone on a machine of its own.
    pub decode_tokens_per_s: f64,
    /// One prompt alone [default: 20 times the decode].
    pub prefill_tokens_per_s: Option<f64>,
    /// Of a prompt [default: 256].
    pub prompt_tokens: Option<u32>,
    /// Of an answer [default: 64].
    pub answer_tokens: Option<u32>,
    /// Machines of its pool [default: after its share of the work].
    pub machines: Option<u32>,
}

/// How one model fared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Which.
    pub model: String,
    /// Machines that served it.
    pub machines: u32,
    /// Requests that came.
    pub requests: u64,
    /// Of these, refused.
    pub refused: u64,
    /// From arrival to the first token.
    pub ttft_s_p50: f64,
    /// The same.
    pub ttft_s_p95: f64,
    /// From arrival to the last token.
    pub latency_s_p50: f64,
    /// The same.
    pub latency_s_p95: f64,
}

/// The same traffic both ways.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Each machine holds one model.
    pub pools: Vec<Row>,
    /// Each machine holds all.
    pub co_resident: Vec<Row>,
    /// Things that happened.
    pub events: u64,
}

/// Runs it both ways.
///
/// # Errors
/// A number is out of bounds; which, and what would be right.
pub fn compare(file: &TrafficFile) -> Result<Comparison, String> {
    check(file)?;
    let homes = homes(file)?;
    let everywhere: Vec<Vec<u32>> = file.models.iter().map(|_| (0..file.machines).collect()).collect();
    let (pools, some) = Run::new(file, &homes).run();
    let (co_resident, more) = Run::new(file, &everywhere).run();
    Ok(Comparison { pools, co_resident, events: some + more })
}

fn check(file: &TrafficFile) -> Result<(), String> {
    let models = file.models.len();
    if !(1..=MODELS_MAX).contains(&models) {
        return Err(format!("models: {models}; 1 to {MODELS_MAX} are allowed"));
    }
    if !(models as u32..=MACHINES_MAX).contains(&file.machines) {
        return Err(format!(
            "machines: {}; {models} (one for each model) to {MACHINES_MAX} are allowed",
            file.machines
        ));
    }
    let requests = file.requests_per_s * file.hours.unwrap_or(1.0) * 3600.0;
    if !(requests > 0.0 && requests <= REQUESTS_MAX) {
        return Err(format!(
            "requests_per_s x hours: {requests} requests; more than 0, {REQUESTS_MAX} at most"
        ));
    }
    for model in &file.models {
        let speeds = [model.decode_tokens_per_s, model.prefill_tokens_per_s.unwrap_or(1.0), model.share];
        if speeds.iter().any(|&speed| !(speed > 0.0 && speed < 1e9)) {
            return Err(format!("models.{}: shares and speeds are above 0", model.name));
        }
        let tokens = [model.prompt_tokens.unwrap_or(1), model.answer_tokens.unwrap_or(1)];
        if tokens.iter().any(|tokens| !(1..=100_000).contains(tokens)) {
            return Err(format!("models.{}: 1 to 100000 tokens are allowed", model.name));
        }
    }
    Ok(())
}

/// Machines of each model's pool: as said, or after its share of the work, one at least.
fn homes(file: &TrafficFile) -> Result<Vec<Vec<u32>>, String> {
    let work = |m: &TrafficModel| m.share * seconds(m);
    let all: f64 = file.models.iter().map(work).sum();
    let mut counts: Vec<u32> = file
        .models
        .iter()
        .map(|m| m.machines.unwrap_or(((work(m) / all) * f64::from(file.machines)).round() as u32).max(1))
        .collect();
    let is_fixed = |at: usize| file.models[at].machines.is_some();
    while counts.iter().sum::<u32>() != file.machines {
        let more = counts.iter().sum::<u32>() < file.machines;
        let free = (0..counts.len()).filter(|&at| !is_fixed(at) && (more || counts[at] > 1));
        let load = |at: usize| work(&file.models[at]) / f64::from(counts[at]);
        let next = if more {
            free.max_by(|&a, &b| load(a).total_cmp(&load(b)))
        } else {
            free.min_by(|&a, &b| load(a).total_cmp(&load(b)))
        };
        let Some(at) = next else {
            return Err(format!("models' machines do not add up to {}", file.machines));
        };
        counts[at] = if more { counts[at] + 1 } else { counts[at] - 1 };
    }
    let mut next = 0;
    Ok(counts
        .into_iter()
        .map(|count| {
            next += count;
            (next - count..next).collect()
        })
        .collect())
}

fn prefill_s(model: &TrafficModel) -> f64 {
    let speed = model.prefill_tokens_per_s.unwrap_or(20.0 * model.decode_tokens_per_s);
    f64::from(model.prompt_tokens.unwrap_or(256)) / speed
}

fn seconds(model: &TrafficModel) -> f64 {
    prefill_s(model) + f64::from(model.answer_tokens.unwrap_or(64)) / model.decode_tokens_per_s
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    /// The work of a machine was planned anew since, where the number is older.
    Progress(u32, u64),
    Pool(usize),
}

/// A request that computes.
struct Flight {
    request: RequestId,
    model: usize,
    instance: InstanceId,
    /// Seconds of prefill, then tokens, that are left at full speed.
    prefill_s: f64,
    tokens: f64,
    first: bool,
}

struct Run<'a> {
    file: &'a TrafficFile,
    rng: Rng,
    now: Micros,
    end: Micros,
    sequence: u64,
    queue: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    pools: Vec<Pool>,
    machines: Vec<Vec<Flight>>,
    /// When each machine's flights were brought up to date, and the number of its plan.
    touched: Vec<(Micros, u64)>,
    arrived: BTreeMap<RequestId, Micros>,
    rows: Vec<Row>,
    first: Vec<Vec<f64>>,
    last: Vec<Vec<f64>>,
    events: u64,
}

impl<'a> Run<'a> {
    fn new(file: &'a TrafficFile, homes: &[Vec<u32>]) -> Self {
        let mut rng = Rng::new(file.seed.unwrap_or(1));
        let policy = Policy { explained_max: 0, ..Policy::default() };
        let pool = |m: &TrafficModel| Pool::new(ModelName::new(m.name.as_str()), policy, rng.fork(5));
        let pools = file.models.iter().map(pool).collect();
        let count = file.machines as usize;
        let mut run = Self {
            rng: Rng::new(file.seed.unwrap_or(1) ^ 0x7072),
            now: Micros::from_secs(1),
            end: Micros::from_secs_f64(file.hours.unwrap_or(1.0) * 3600.0),
            sequence: 0,
            queue: BinaryHeap::new(),
            pools,
            machines: (0..count).map(|_| Vec::new()).collect(),
            touched: vec![(Micros::ZERO, 0); count],
            arrived: BTreeMap::new(),
            rows: Vec::new(),
            first: vec![Vec::new(); file.models.len()],
            last: vec![Vec::new(); file.models.len()],
            events: 0,
            file,
        };
        for (model, of) in file.models.iter().enumerate() {
            let empty = Row {
                model: of.name.clone(),
                machines: homes[model].len() as u32,
                requests: 0,
                refused: 0,
                ttft_s_p50: 0.0,
                ttft_s_p95: 0.0,
                latency_s_p50: 0.0,
                latency_s_p95: 0.0,
            };
            run.rows.push(empty);
            for &machine in &homes[model] {
                let instance = InstanceId(u128::from(machine) * 64 + model as u128 + 1);
                let about = (instance, Epoch(1), 1);
                let offer = world::offer((&of.name, of.decode_tokens_per_s), about, run.now);
                let machine = MachineId(u128::from(machine) + 1);
                run.pool(model, Input::InstanceUp { machine, owner: None, offer: Box::new(offer) });
            }
        }
        run.after(Micros(1), Event::Arrival);
        run
    }

    fn after(&mut self, span: Micros, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + span, self.sequence, event)));
    }

    fn run(mut self) -> (Vec<Row>, u64) {
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            self.now = at;
            self.events += 1;
            match event {
                Event::Arrival if at < self.end => self.arrival(),
                Event::Arrival => {}
                Event::Pool(model) => {
                    if self.pools[model].next_deadline().is_some_and(|due| due <= at) {
                        self.pool(model, Input::Tick);
                    }
                }
                Event::Progress(machine, plan) => {
                    if self.touched[machine as usize].1 == plan {
                        self.progress(machine);
                    }
                }
            }
        }
        for (model, row) in self.rows.iter_mut().enumerate() {
            (row.ttft_s_p50, row.ttft_s_p95) = quantiles(&mut self.first[model]);
            (row.latency_s_p50, row.latency_s_p95) = quantiles(&mut self.last[model]);
        }
        (self.rows, self.events)
    }

    fn arrival(&mut self) {
        let all: f64 = self.file.models.iter().map(|m| m.share).sum();
        let mut drawn = self.rng.next_f64() * all;
        let mut model = 0;
        while model + 1 < self.file.models.len() && drawn >= self.file.models[model].share {
            drawn -= self.file.models[model].share;
            model += 1;
        }
        let of = &self.file.models[model];
        let (prompt, answer) = (of.prompt_tokens.unwrap_or(256), of.answer_tokens.unwrap_or(64));
        self.rows[model].requests += 1;
        let request = RequestId(u128::from(self.sequence) + 1);
        self.arrived.insert(request, self.now);
        let asked = Enqueue {
            ask: Ask::new(request, Tokens(prompt.min(1500)), Tokens(answer.min(500))),
            account: base::AccountId(u128::from(self.rng.below(16))),
            weight: 1,
            priority: Priority::Normal,
            deadline: None,
            again: false,
            tried: 0,
            prefixes: fleet::prefixes(&[], 0),
        };
        self.pool(model, Input::Enqueue(asked));
        let gap = -(1.0 - self.rng.next_f64()).ln() / self.file.requests_per_s;
        self.after(Micros::from_secs_f64(gap), Event::Arrival);
    }

    fn pool(&mut self, model: usize, input: Input) {
        let mut effects = Vec::new();
        self.pools[model].handle(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Dispatch { request, instance, machine, .. } => {
                    let number = (machine.0 - 1) as u32;
                    self.advance(number);
                    let of = &self.file.models[model];
                    let tokens = f64::from(of.answer_tokens.unwrap_or(64));
                    let flight =
                        Flight { request, model, instance, prefill_s: prefill_s(of), tokens, first: false };
                    self.machines[number as usize].push(flight);
                    self.plan_next(number);
                }
                Effect::Refuse { request, .. } => {
                    self.rows[model].refused += 1;
                    self.arrived.remove(&request);
                }
                _ => {}
            }
        }
        if let Some(at) = self.pools[model].next_deadline() {
            self.after(at.saturating_sub(self.now) + Micros(1), Event::Pool(model));
        }
    }

    /// Tokens a second, and how much of full speed a prefill has, of one flight: its own model's batch, and a step of every
    /// other model between two of its own.
    fn speed(&self, machine: u32, model: usize) -> (f64, f64) {
        let flights = &self.machines[machine as usize];
        let step = |model: usize| {
            let others = flights.iter().filter(|f| f.model == model).count();
            let batch = (others as f64 - 1.0).max(0.0);
            (others > 0).then(|| (1.0 + BATCH_SLOWS * batch) / self.file.models[model].decode_tokens_per_s)
        };
        let own = step(model).unwrap_or(f64::INFINITY);
        let all: f64 = (0..self.file.models.len()).filter_map(step).sum();
        (1.0 / all, own / all)
    }

    /// Brings a machine's flights up to now.
    fn advance(&mut self, machine: u32) {
        let spent = self.now.saturating_sub(self.touched[machine as usize].0).as_secs_f64();
        self.touched[machine as usize].0 = self.now;
        if spent <= 0.0 {
            return;
        }
        let speeds: Vec<(f64, f64)> = (0..self.file.models.len()).map(|m| self.speed(machine, m)).collect();
        for flight in &mut self.machines[machine as usize] {
            let (tokens_per_s, prefill) = speeds[flight.model];
            let needed = flight.prefill_s / prefill;
            if spent < needed {
                flight.prefill_s -= spent * prefill;
            } else {
                flight.prefill_s = 0.0;
                flight.tokens -= (spent - needed) * tokens_per_s;
            }
        }
    }

    /// The next first or last token on a machine.
    fn plan_next(&mut self, machine: u32) {
        self.touched[machine as usize].1 += 1;
        let plan = self.touched[machine as usize].1;
        let due = self.machines[machine as usize].iter().map(|flight| {
            let (tokens_per_s, prefill) = self.speed(machine, flight.model);
            let whole = f64::from(self.file.models[flight.model].answer_tokens.unwrap_or(64));
            let left = if flight.first { flight.tokens } else { (flight.tokens - (whole - 1.0)).max(0.0) };
            flight.prefill_s / prefill + left / tokens_per_s
        });
        let next = due.fold(f64::INFINITY, f64::min);
        if next.is_finite() {
            self.after(Micros(Micros::from_secs_f64(next).0 + 1), Event::Progress(machine, plan));
        }
    }

    fn progress(&mut self, machine: u32) {
        self.advance(machine);
        let (mut firsts, mut done) = (Vec::new(), Vec::new());
        for flight in &mut self.machines[machine as usize] {
            let whole = f64::from(self.file.models[flight.model].answer_tokens.unwrap_or(64));
            if !flight.first && flight.prefill_s <= 0.0 && flight.tokens <= whole - 1.0 + 1e-9 {
                flight.first = true;
                firsts.push((flight.model, flight.request));
            }
            if flight.first && flight.tokens <= 1e-9 {
                done.push((flight.model, flight.request, flight.instance));
            }
        }
        self.machines[machine as usize].retain(|flight| !done.iter().any(|(_, r, _)| *r == flight.request));
        for (model, request) in firsts {
            if let Some(&since) = self.arrived.get(&request) {
                self.first[model].push((self.now - since).as_secs_f64());
            }
            self.pool(model, Input::FirstToken { request });
        }
        for (model, request, instance) in done {
            if let Some(since) = self.arrived.remove(&request) {
                self.last[model].push((self.now - since).as_secs_f64());
            }
            let generated = Tokens(self.file.models[model].answer_tokens.unwrap_or(64));
            let outcome = Outcome::Completed;
            self.pool(model, Input::AttemptEnded { request, instance, outcome, generated });
        }
        self.plan_next(machine);
    }
}

fn quantiles(samples: &mut [f64]) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let at = ((samples.len() as f64 * share).ceil() as usize).max(1) - 1;
        samples.get(at).copied().unwrap_or(0.0)
    };
    (at(0.5), at(0.95))
}
