//! What holds of turns for every fleet and every order of events (Q2): classes before one another, accounts by their
//! weights, each account's own requests in order, and nobody starved by another's burst.

#![allow(clippy::unwrap_used, reason = "clippy sees tests only inside #[test] functions")]

#[path = "world/fixture.rs"]
mod fixture;

use std::collections::BTreeMap;

use base::{InstanceId, MachineId, Micros, RequestId, Rng, Tokens};
use fixture::{Shape, enqueue, instance, machine, model, offer, report};
use fleet::{Effect, Enqueue, Input, Outcome, Policy, Pool, Priority};
use proptest::prelude::*;
use wire::control::{AttemptRefusal, InstancePhase};

/// Random fleets and orders of events that each property is held to.
const CASES: u32 = 10_000;
const CLASSES: [Priority; 3] = [Priority::Urgent, Priority::Normal, Priority::Background];
/// An account in a class.
type Flow = (Priority, u128);

/// What is known of a flow while it has something waiting.
#[derive(Debug, Clone, Copy, Default)]
struct Backlog {
    waiting: u32,
    /// Work that left the queue unserved since the backlog began: its account is made good for it later.
    withdrawn: u64,
}

/// A pool with room for any request's tokens, so that turns alone decide, and what was served to whom.
struct World {
    pool: Pool,
    now: Micros,
    rng: Rng,
    weights: Vec<u32>,
    waiting: BTreeMap<RequestId, Enqueue>,
    running: BTreeMap<RequestId, (InstanceId, MachineId, Enqueue)>,
    orphans: Vec<(MachineId, Enqueue)>,
    backlogs: BTreeMap<Flow, Backlog>,
    served: BTreeMap<Flow, i128>,
    largest: BTreeMap<Flow, u64>,
    /// The least and the most that one of two flows was ahead of the other, while both had something waiting.
    apart: BTreeMap<(Flow, Flow), (i128, i128)>,
    requests: u64,
    compared: u64,
}

/// What the queue charges: thousandths of generated tokens by weight, an eighth for a prompt's.
fn cost(enqueue: &Enqueue) -> u64 {
    let (prompt, answer) = (u64::from(enqueue.ask.prompt_tokens.0), u64::from(enqueue.ask.max_tokens.0));
    (1 + prompt / 8 + answer) * 1000 / u64::from(enqueue.weight)
}

fn flow(enqueue: &Enqueue) -> Flow {
    (enqueue.priority, enqueue.account.0)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let policy = Policy {
            queue_max: [0, 12, 1000][rng.below(3) as usize],
            wait_us_max: Micros::from_secs([0, 5][rng.below(2) as usize]),
            ..Policy::default()
        };
        let weights = (0..2 + rng.below(4)).map(|_| 1 + rng.below(8) as u32).collect();
        Self {
            pool: Pool::new(model(), policy, Rng::new(seed ^ 1)),
            now: Micros::ZERO,
            rng,
            weights,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            orphans: Vec::new(),
            backlogs: BTreeMap::new(),
            served: BTreeMap::new(),
            largest: BTreeMap::new(),
            apart: BTreeMap::new(),
            requests: 0,
            compared: 0,
        }
    }

    fn give(&mut self, input: Input) {
        for input in [Input::Tick, input] {
            let arriving = match &input {
                Input::Enqueue(enqueue) => Some(enqueue.clone()),
                _ => None,
            };
            if let Some(enqueue) = &arriving {
                self.waits(enqueue);
            }
            if let Input::InstanceGone { instance, .. } = &input {
                let gone: Vec<_> =
                    self.running.iter().filter(|(_, (at, ..))| at == instance).map(|(id, _)| *id).collect();
                for request in gone {
                    let (_, machine, enqueue) = self.running.remove(&request).unwrap();
                    self.orphans.push((machine, enqueue));
                }
            }
            let mut effects = Vec::new();
            self.pool.handle(self.now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Dispatch { request, instance, machine, .. } => {
                        self.dispatched(request, instance, machine);
                    }
                    Effect::Refuse { request, .. } => {
                        let new = arriving.as_ref().is_some_and(|a| a.ask.request == request);
                        self.left(request, new);
                    }
                    _ => {}
                }
            }
        }
    }

    fn waits(&mut self, enqueue: &Enqueue) {
        if !enqueue.again {
            self.backlogs.entry(flow(enqueue)).or_default().waiting += 1;
            let largest = self.largest.entry(flow(enqueue)).or_default();
            *largest = cost(enqueue).max(*largest);
        }
        self.waiting.insert(enqueue.ask.request, enqueue.clone());
        self.compare();
    }

    fn no_longer_waits(&mut self, enqueue: &Enqueue, withdrawn: u64) {
        if enqueue.again {
            return;
        }
        let backlog = self.backlogs.get_mut(&flow(enqueue)).unwrap();
        backlog.waiting -= 1;
        backlog.withdrawn += withdrawn;
        if backlog.waiting == 0 {
            self.backlogs.remove(&flow(enqueue));
        }
    }

    fn left(&mut self, request: RequestId, as_it_came: bool) {
        let enqueue = self.waiting.remove(&request).expect("only what waits leaves");
        self.no_longer_waits(&enqueue, if as_it_came { 0 } else { cost(&enqueue) });
        self.compare();
    }

    fn dispatched(&mut self, request: RequestId, instance: InstanceId, machine: MachineId) {
        let enqueue = self.waiting.remove(&request).expect("only what waits is dispatched");
        for other in self.waiting.values().filter(|other| !other.ask.excluded.contains(&machine)) {
            let before = other.again && !enqueue.again;
            assert!(!before, "a retry that could have gone waits still");
            if other.again || enqueue.again {
                continue;
            }
            assert!(
                other.priority >= enqueue.priority,
                "{:?} went before {:?}",
                enqueue.priority,
                other.priority
            );
            if flow(other) == flow(&enqueue) {
                assert!(
                    other.ask.request > request,
                    "an account's requests go in the order in which they came"
                );
            }
        }
        self.no_longer_waits(&enqueue, 0);
        if !enqueue.again {
            *self.served.entry(flow(&enqueue)).or_default() += i128::from(cost(&enqueue));
        }
        self.running.insert(request, (instance, machine, enqueue));
        self.compare();
    }

    /// Of two accounts that both have something waiting in a class, neither is served more than the other, by weight, but
    /// for one request of each: the bound of start-time fair queueing.
    fn compare(&mut self) {
        let flows: Vec<Flow> = self.backlogs.keys().copied().collect();
        let both = |pair: &(Flow, Flow)| flows.contains(&pair.0) && flows.contains(&pair.1);
        self.apart.retain(|pair, _| both(pair));
        for (at, one) in flows.iter().enumerate() {
            for other in flows[at + 1..].iter().filter(|other| other.0 == one.0) {
                let served = |flow: &Flow| self.served.get(flow).copied().unwrap_or(0);
                let ahead = served(one) - served(other);
                let (least, most) = self.apart.entry((*one, *other)).or_insert((ahead, ahead));
                (*least, *most) = (ahead.min(*least), ahead.max(*most));
                let bound: u64 = [one, other]
                    .map(|flow| self.largest[flow] + self.backlogs[flow].withdrawn)
                    .into_iter()
                    .sum();
                assert!(
                    *most - *least <= i128::from(bound),
                    "{one:?} and {other:?} are {} apart",
                    *most - *least
                );
                self.compared += u64::from(*most > *least);
            }
        }
    }

    fn arrives(&mut self, account: u64, class: Priority) {
        self.requests += 1;
        let (prompt, max) = (1 + self.rng.below(400) as u32, 1 + self.rng.below(60) as u32);
        let mut fresh = enqueue(self.requests, account, prompt, max);
        fresh.weight = self.weights[account as usize];
        fresh.priority = class;
        self.give(Input::Enqueue(fresh));
    }

    fn shape(&mut self) -> Shape {
        let phases =
            [InstancePhase::Ready, InstancePhase::Ready, InstancePhase::Ready, InstancePhase::Loading];
        Shape {
            slots: self.rng.below(4) as u32,
            kv: 1 << 40,
            context: 1 << 20,
            rank: u32::from(self.rng.below(10) == 0),
            phase: phases[self.rng.below(4) as usize],
            ..Shape::default()
        }
    }

    fn step(&mut self) {
        self.now += Micros::from_millis(self.rng.below(200));
        let (of, account) = (self.rng.below(5), self.rng.below(self.weights.len() as u64));
        let class = CLASSES[self.rng.below(3) as usize];
        match self.rng.below(14) {
            0 => {
                let shape = self.shape();
                self.give(Input::InstanceUp {
                    machine: machine(of % 3),
                    owner: None,
                    offer: offer(of, &shape),
                });
            }
            1 => {
                let shape = self.shape();
                let report = report(of, self.now.0, &shape);
                self.give(Input::InstanceReport { machine: machine(of % 3), report });
            }
            2 => {
                let lost = self.rng.below(2) == 0;
                self.give(Input::InstanceGone { instance: instance(of), lost });
            }
            3 | 4 => {
                for _ in 0..2 + self.rng.below(12) {
                    self.arrives(account, class);
                }
            }
            5..=7 => self.arrives(account, class),
            8 => {
                let known: Vec<RequestId> = self.waiting.keys().copied().collect();
                if let Some(request) = self.pick(&known) {
                    self.give(Input::Tick);
                    if self.waiting.contains_key(&request) {
                        self.left(request, false);
                        self.give(Input::Withdraw { request });
                    }
                }
            }
            9 => {
                if let Some((machine, mut again)) = self.orphans.pop() {
                    again.ask.excluded.push(machine);
                    (again.again, again.tried) = (true, again.tried + 1);
                    self.give(Input::Enqueue(again));
                }
            }
            _ => self.end_one(),
        }
    }

    fn pick(&mut self, from: &[RequestId]) -> Option<RequestId> {
        from.get(self.rng.below(from.len() as u64) as usize).copied()
    }

    fn end_one(&mut self) {
        let running: Vec<RequestId> = self.running.keys().copied().collect();
        let Some(request) = self.pick(&running) else { return };
        let (at, machine, enqueue) = self.running.remove(&request).unwrap();
        let outcome = [
            Outcome::Completed,
            Outcome::Completed,
            Outcome::Completed,
            Outcome::Cancelled,
            Outcome::Refused(AttemptRefusal::NoSlot),
            Outcome::Faulted,
        ][self.rng.below(6) as usize];
        // Answers are long: what is asked for is what is charged.
        self.give(Input::AttemptEnded { request, instance: at, outcome, generated: Tokens(300) });
        if !matches!(outcome, Outcome::Completed | Outcome::Cancelled) {
            self.orphans.push((machine, enqueue));
        }
    }

    fn live(&mut self, steps: u32) {
        for of in 0..2 {
            let shape = Shape { slots: 1 + of as u32, kv: 1 << 40, context: 1 << 20, ..Shape::default() };
            self.give(Input::InstanceUp { machine: machine(of), owner: None, offer: offer(of, &shape) });
        }
        for _ in 0..steps {
            self.step();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_ten_thousand_fleets_accounts_take_turns_by_weight_and_classes_go_first(seed: u64) {
        World::new(seed).live(60);
    }

    #[test]
    fn in_ten_thousand_fleets_a_burst_of_small_requests_does_not_starve_a_large_one(seed: u64) {
        starved_by_nobody(seed);
    }
}

#[test]
fn what_left_the_queue_costs_its_account_nothing_later() {
    // Requests that were withdrawn kept their account's next ones back, even after all of them were gone.
    World::new(7_789_447_893_290_812_898).live(60);
}

/// The longest that an attempt runs here.
const RUNS_MS_MAX: u64 = 1500;

/// One account asks without a pause for little, and another once for much: as soon as what ran has ended and patience is
/// over, it goes, though small ones would always fit before.
fn starved_by_nobody(seed: u64) {
    let mut rng = Rng::new(seed);
    let policy = Policy { wait_us_max: Micros::ZERO, ..Policy::default() };
    let mut pool = Pool::new(model(), policy, Rng::new(seed));
    let (mut now, mut effects) = (Micros::ZERO, Vec::new());
    for of in 0..1 + rng.below(3) {
        let shape = Shape { slots: 2 + rng.below(6) as u32, kv: 600, context: 600, ..Shape::default() };
        pool.handle(
            now,
            Input::InstanceUp { machine: machine(of), owner: None, offer: offer(of, &shape) },
            &mut effects,
        );
    }
    let (large, mut ends, mut n) = (RequestId(1_000_000), BTreeMap::new(), 0);
    let arrival = Micros::from_millis(500 + rng.below(2000));
    let (mut arrived, mut went) = (None, None);
    while went.is_none() {
        now += Micros::from_millis(1 + rng.below(40));
        while pool.queued() < 6 {
            n += 1;
            let small = enqueue(n, 1, 10 + rng.below(80) as u32, 10 + rng.below(30) as u32);
            pool.handle(now, Input::Enqueue(small), &mut effects);
        }
        if arrived.is_none() && now >= arrival {
            arrived = Some(now);
            let max = 20 + rng.below(60) as u32;
            let wanted = enqueue(1_000_000, 2, 400 + rng.below(100) as u32, max);
            pool.handle(now, Input::Enqueue(wanted), &mut effects);
        }
        pool.handle(now, Input::Tick, &mut effects);
        let over: Vec<Micros> = ends.range(..=now).map(|(at, _)| *at).collect();
        for at in over {
            for (request, instance) in ends.remove(&at).unwrap_or_else(Vec::new) {
                let generated = Tokens(1 + rng.below(40) as u32);
                let outcome = Outcome::Completed;
                pool.handle(now, Input::AttemptEnded { request, instance, outcome, generated }, &mut effects);
            }
        }
        for effect in effects.drain(..) {
            match effect {
                Effect::Dispatch { request, .. } if request == large => went = Some(now),
                Effect::Dispatch { request, instance, .. } => {
                    let end = now + Micros::from_millis(1 + rng.below(RUNS_MS_MAX));
                    ends.entry(end).or_insert_with(Vec::new).push((request, instance));
                }
                Effect::Refuse { request, refusal } => panic!("{request:?} is refused: {refusal:?}"),
                _ => {}
            }
        }
        let since = now.saturating_sub(arrived.unwrap_or(now));
        assert!(since < Micros::from_secs(10), "it waits for {since:?}");
    }
}

#[test]
fn the_worlds_of_the_properties_do_compare_accounts() {
    // They would hold where nobody ever waits: this counts that many do.
    let compared: u64 = (0..50)
        .map(|seed| {
            let mut world = World::new(seed);
            world.live(60);
            world.compared
        })
        .sum();
    assert!(compared > 2000, "{compared}");
}

#[test]
fn what_one_class_is_served_puts_nobody_back_in_another() {
    // With one virtual time for all classes, who came after much urgent work stood behind everybody's whole backlog.
    let mut pool = Pool::new(model(), Policy::default(), Rng::new(1));
    let (now, mut effects) = (Micros::ZERO, Vec::new());
    let shape = Shape { slots: 1, ..Shape::default() };
    pool.handle(
        now,
        Input::InstanceUp { machine: machine(1), owner: None, offer: offer(1, &shape) },
        &mut effects,
    );
    let ask = |pool: &mut Pool, n: u64, account: u64, priority: Priority| {
        let wanted = Enqueue { priority, ..enqueue(n, account, 8, 20) };
        let mut effects = Vec::new();
        pool.handle(now, Input::Enqueue(wanted), &mut effects);
    };
    for n in 0..100 {
        ask(&mut pool, n, 1, Priority::Urgent);
    }
    for n in 100..200 {
        ask(&mut pool, n, 2, Priority::Normal);
    }
    let mut order = Vec::new();
    let mut next = RequestId(0);
    for n in 0..150 {
        if n == 100 {
            ask(&mut pool, 500, 3, Priority::Normal);
        }
        effects.clear();
        let (outcome, generated) = (Outcome::Completed, Tokens(20));
        let ended = Input::AttemptEnded { request: next, instance: instance(1), outcome, generated };
        pool.handle(now, ended, &mut effects);
        next = effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Dispatch { request, .. } => Some(*request),
                _ => None,
            })
            .unwrap();
        order.push(next.0);
    }
    let place = order.iter().position(|n| *n == 500).expect("it is served");
    assert!(place <= 102, "it was served as number {place}");
}
