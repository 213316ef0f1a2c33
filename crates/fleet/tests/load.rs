//! Pools under load, in simulated time: fair shares, honest `Retry-After`, and predictions that come true.

#![allow(clippy::unwrap_used, reason = "clippy sees tests only inside #[test] functions")]

#[path = "world/fixture.rs"]
mod fixture;

use std::collections::{BTreeMap, BTreeSet};

use base::{InstanceId, MachineId, Micros, RequestId, Rng, Tokens};
use fixture::{Shape, enqueue, machine, model, offer, request};
use fleet::{Effect, Enqueue, Input, Outcome, Policy, Pool, Refusal};

/// What is to happen in the simulation, in order of time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(u64),
    FirstToken(RequestId),
    End(RequestId, InstanceId),
}

/// One pool in simulated time: attempts take what the pool's instances really take.
struct Simulation {
    pool: Pool,
    now: Micros,
    events: BTreeSet<(Micros, Event)>,
    wanted: BTreeMap<u64, Enqueue>,
    /// Prompt speed and token seconds alone, by machine: the truth, which the reports need not be.
    speeds: BTreeMap<MachineId, (f64, f64)>,
    slope: f64,
    deadline: Micros,
    refusals: BTreeMap<u64, Vec<Refusal>>,
    completed: BTreeMap<u64, (Micros, u64)>,
    retry: bool,
}

impl Simulation {
    fn new(policy: Policy) -> Self {
        Self {
            pool: Pool::new(model(), policy, Rng::new(5)),
            now: Micros::ZERO,
            events: BTreeSet::new(),
            wanted: BTreeMap::new(),
            speeds: BTreeMap::new(),
            slope: 0.27,
            deadline: Micros::from_secs(60),
            refusals: BTreeMap::new(),
            completed: BTreeMap::new(),
            retry: false,
        }
    }

    fn machine(&mut self, of: u64, reported: &Shape, truth: (f64, f64)) {
        self.speeds.insert(machine(of), truth);
        self.give(Input::InstanceUp { machine: machine(of), owner: None, offer: offer(of, reported) });
    }

    fn arrive(&mut self, at: Micros, n: u64, account: u64) {
        self.wanted.insert(n, enqueue(n, account, 100, 50));
        self.events.insert((at, Event::Arrive(n)));
    }

    fn give(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.pool.handle(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Dispatch { request, instance, machine, .. } => {
                    let (prefill, token) = self.speeds[&machine];
                    let batch = self.pool.instance(instance).unwrap().attempts.len() as f64;
                    let token = token * (1.0 + self.slope * (batch - 1.0));
                    let first = Micros::from_secs_f64(100.0 / prefill + token);
                    let end = first + Micros::from_secs_f64(49.0 * token);
                    self.events.insert((self.now + first, Event::FirstToken(request)));
                    self.events.insert((self.now + end, Event::End(request, instance)));
                }
                Effect::Refuse { request, refusal } => {
                    let n = request.0 as u64;
                    self.refusals.entry(n).or_default().push(refusal);
                    if self.retry {
                        let at = self.now + refusal.retry_after().expect("time cures overload");
                        self.events.insert((at, Event::Arrive(n)));
                    }
                }
                Effect::Standing { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn run(&mut self, until: Micros) {
        loop {
            let timer = self.pool.next_deadline();
            let event = self.events.first().map(|(at, _)| *at);
            let Some(at) = [timer, event].into_iter().flatten().min().filter(|at| *at <= until) else {
                break;
            };
            self.now = at;
            if event != Some(at) {
                self.give(Input::Tick);
                continue;
            }
            match self.events.pop_first().unwrap().1 {
                Event::Arrive(n) => {
                    let mut wanted = self.wanted[&n].clone();
                    wanted.deadline = Some(self.now + self.deadline);
                    self.give(Input::Enqueue(wanted));
                }
                Event::FirstToken(request) => self.give(Input::FirstToken { request }),
                Event::End(request, instance) => {
                    let account = self.wanted[&(request.0 as u64)].account.0 as u64;
                    self.completed.insert(request.0 as u64, (self.now, account));
                    let (outcome, generated) = (Outcome::Completed, Tokens(50));
                    self.give(Input::AttemptEnded { request, instance, outcome, generated });
                }
            }
        }
        self.now = until;
    }
}

/// Jain's index: 1 is perfectly even.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|s| s * s).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn accounts_with_unlike_bursts_get_like_shares_while_all_want_more() {
    let mut simulation = Simulation::new(Policy::default());
    simulation.machine(1, &Shape { slots: 4, ..Shape::default() }, (1000.0, 0.01));
    simulation.deadline = Micros::from_secs(3600);
    let mut n = 0;
    for (account, burst) in [(1, 300), (2, 60), (3, 60), (4, 60)] {
        for _ in 0..burst {
            n += 1;
            simulation.arrive(Micros::from_millis(account), n, account);
        }
    }
    // 240 requests: the time in which four accounts that each want at least sixty are all served sixty.
    simulation.run(Micros::from_secs(1000));
    let mut order: Vec<(Micros, u64)> = simulation.completed.values().copied().collect();
    order.sort_unstable();
    assert_eq!(order.len(), 480);
    let mut shares = [0.0; 4];
    for (_, account) in &order[..200] {
        shares[*account as usize - 1] += 1.0;
    }
    assert!(jain(&shares) >= 0.99, "{shares:?}");
}

#[test]
fn under_ten_times_the_load_every_refused_request_succeeds_when_it_comes_back_as_told() {
    let policy = Policy { queue_max: 32, ..Policy::default() };
    let mut simulation = Simulation::new(policy);
    simulation.machine(1, &Shape { slots: 4, ..Shape::default() }, (1000.0, 0.01));
    simulation.deadline = Micros::from_secs(10);
    simulation.retry = true;
    // About 3.7 requests a second can be served; forty a second come, for ten seconds.
    for n in 0..400 {
        simulation.arrive(Micros::from_millis(25 * n), n, n % 10);
    }
    simulation.run(Micros::from_secs(2000));
    assert_eq!(simulation.completed.len(), 400, "every request succeeds in the end");
    let refused: Vec<usize> = simulation.refusals.values().map(Vec::len).collect();
    assert!(refused.len() > 200, "{} were refused: this is an overload", refused.len());
    // Who is told to come back while the burst still lasts meets it again; everybody later is served.
    let again = refused.iter().filter(|times| **times > 1).count();
    assert!(again * 100 <= 20 * refused.len(), "{again} of {} were refused twice", refused.len());
    let thrice = refused.iter().filter(|times| **times > 2).count();
    assert!(thrice * 100 <= refused.len(), "{thrice} of {} were refused three times", refused.len());
    let expired = simulation.refusals.values().flatten().filter(|r| matches!(r, Refusal::Expired { .. }));
    let expired = expired.count();
    assert!(expired * 100 <= 4 * 400, "{expired} of 400 were let in and not served in time");
    // The machine was busy all the while: promises are not made too far out.
    let last = simulation.completed.values().map(|(at, _)| *at).max().unwrap();
    assert!(last < Micros::from_secs(180), "{last:?}");
}

#[test]
fn one_accounts_burst_of_refusals_does_not_take_all_the_places_to_come() {
    let mut simulation = Simulation::new(Policy { queue_max: 8, ..Policy::default() });
    simulation.machine(1, &Shape { slots: 4, ..Shape::default() }, (1000.0, 0.01));
    simulation.retry = true;
    for n in 0..200 {
        simulation.arrive(Micros::ZERO, n, 1);
    }
    for n in 200..280 {
        simulation.arrive(Micros::from_millis(10), n, 2 + n % 4);
    }
    simulation.run(Micros::from_secs(2000));
    assert_eq!(simulation.completed.len(), 280);
    let mut order: Vec<(Micros, u64)> = simulation.completed.values().copied().collect();
    order.sort_unstable();
    let mut shares = [0.0; 5];
    for (_, account) in &order[..80] {
        shares[*account as usize - 1] += 1.0;
    }
    // A fair share is sixteen. Places promised before the others came stay promised.
    assert!(shares.iter().all(|share| *share >= 8.0), "{shares:?}");
}

#[test]
fn predictions_learn_what_a_machine_really_does() {
    let mut simulation = Simulation::new(Policy::default());
    // It says that it is four times as fast as it is.
    simulation.machine(
        1,
        &Shape { slots: 2, prefill: 4000.0, decode: 400.0, ..Shape::default() },
        (1000.0, 0.01),
    );
    for n in 0..200 {
        simulation.arrive(Micros::from_secs(2 * n), n, 1);
    }
    simulation.run(Micros::from_secs(500));
    let verdicts = simulation.pool.explain(simulation.now, &enqueue(999, 1, 100, 50).ask);
    let predicted = verdicts[0].verdict.unwrap();
    // 0.1 s of prefill and 50 tokens of 10 ms.
    assert!((0.08..0.14).contains(&predicted.first_token_s), "{predicted:?}");
    assert!((0.5..0.75).contains(&predicted.total_s), "{predicted:?}");
    let error = simulation.pool.instances().next().unwrap().learnt.calibration_error;
    assert!(error < 0.1, "{error}");
}

#[test]
fn a_long_prompt_among_a_steady_stream_of_short_ones_is_served() {
    let mut simulation = Simulation::new(Policy::default());
    let shape = Shape { slots: 8, kv: 1000, context: 1000, ..Shape::default() };
    simulation.machine(1, &shape, (1000.0, 0.01));
    for n in 0..400 {
        simulation.arrive(Micros::from_millis(100 * n), n, 1);
    }
    simulation.arrive(Micros::from_secs(5), 1000, 2);
    simulation.wanted.get_mut(&1000).unwrap().ask.prompt_tokens = Tokens(900);
    simulation.run(Micros::from_secs(20));
    assert!(simulation.completed.contains_key(&1000), "it was overtaken for ever");
}

#[test]
fn of_two_like_machines_each_gets_its_share_of_idle_time_requests() {
    let mut simulation = Simulation::new(Policy::default());
    for of in [1, 2] {
        simulation.machine(of, &Shape::default(), (1000.0, 0.01));
    }
    let mut first = [0; 2];
    for n in 0..100 {
        let input = Input::Enqueue(enqueue(n, 1, 10, 10));
        let mut effects = Vec::new();
        let mut pool = simulation.pool.clone();
        pool.handle(simulation.now, input, &mut effects);
        // Draw on, so that the next decision draws anew.
        let Effect::Dispatch { instance, .. } = effects[0] else { panic!("{effects:?}") };
        pool.handle(simulation.now, Input::Withdraw { request: request(n) }, &mut effects);
        first[instance.0 as usize - 1] += 1;
        simulation.pool = pool;
    }
    assert!(first.iter().all(|count| *count >= 25), "{first:?}");
}
