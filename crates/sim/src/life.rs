//! One fleet's life: events in the order of their times, faults, and what is checked after each.

mod declared;
mod faults;
mod machines;
mod network;
mod plant;
mod requests;
mod restart;
mod witness;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use base::{Epoch, Incarnation, InstanceId, MachineId, Micros, RequestId, Rng, Tokens};
use fleet::deployment::Spec;
use fleet::plan::PlanPolicy;
use fleet::reconcile::{Controller, Effect as Order, Input as News, World};
use fleet::{Effect, Input, Outcome, Pool};

use crate::world::{self, Provider};
use network::Network;
pub use plant::Plant;
use restart::Coordinator;
pub(crate) use witness::SLOTS;
use witness::Witness;

/// How long a life is, and how large.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Hours with faults; a quiet end comes after them.
    pub hours: f64,
    /// Machines at most; a seed has between a half and all.
    pub machines: u64,
    /// Whether readable lines are kept.
    pub told: bool,
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// In which life.
    pub seed: u64,
    /// Seconds after its begin.
    pub at_s: u64,
    /// Which invariant, in a word.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// What became of a life.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// Things that happened.
    pub events: u64,
    /// Machines times hours.
    pub machine_hours: f64,
    /// What broke.
    pub violations: Vec<Violation>,
    /// Readable lines, where they were asked for.
    pub lines: Vec<String>,
    /// Requests that came, and that were answered.
    pub requests: (u64, u64),
}

/// The quiet end: long enough for cool-downs, pauses and loads to pass.
const QUIET: Micros = Micros::from_secs(1800);
const MODELS: [(&str, f64); 2] = [("fast", 57.0), ("slow", 2.6)];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrival,
    Fault,
    Tick,
    Pool(usize),
    Connect(MachineId, u64),
    Silent(MachineId, u64),
    Told(MachineId, Incarnation, InstanceId, Epoch, u32, bool),
    Loaded(MachineId, InstanceId, Epoch, u64),
    Says(MachineId, InstanceId, Epoch, u32, u8),
    First(RequestId, InstanceId),
    Done(RequestId, InstanceId),
    Declare(usize),
    /// Machines try each other.
    Tries,
    /// A cut between machines is over.
    Mended(u64),
    /// The coordinator starts again.
    Starts,
    /// What ran before its start has had the time to be taken on.
    TakenOn,
}

struct Running {
    model: usize,
    instance: Option<InstanceId>,
}

struct Sim {
    seed: u64,
    options: Options,
    rng: Rng,
    now: Micros,
    sequence: u64,
    queue: BinaryHeap<Reverse<(Micros, u64, Happening)>>,
    controller: Controller,
    world: World,
    pools: Vec<Pool>,
    providers: BTreeMap<MachineId, Provider>,
    requests: BTreeMap<RequestId, Running>,
    offered: BTreeMap<InstanceId, (usize, MachineId)>,
    life: Life,
    faults_end: Micros,
    largest: Epoch,
    next_request: u64,
    /// What should run, by model; and whether it was declared and not deleted.
    specs: Vec<Spec>,
    declared: Vec<bool>,
    /// What is taken back in this look, one after the other: what moves from the first may pass by the next.
    leaving: Vec<InstanceId>,
    /// How far the clock of the code that decides is ahead of the world's.
    skew: Micros,
    witness: Witness,
    plant: Option<Plant>,
    network: Network,
    coordinator: Coordinator,
}

/// Lives one life.
pub fn life(seed: u64, options: Options) -> Life {
    life_with(seed, options, None)
}

/// Lives one life with a mistake in it: its checkers must find it.
pub fn life_with(seed: u64, options: Options, plant: Option<Plant>) -> Life {
    let mut sim = Sim::new(seed, options, plant);
    sim.run();
    sim.finish()
}

impl Sim {
    fn new(seed: u64, options: Options, plant: Option<Plant>) -> Self {
        let mut rng = Rng::new(seed);
        let most = options.machines.max(2);
        let machines = most.div_ceil(2) + rng.below(most / 2 + 1);
        let world = world::world(machines as usize, &mut rng);
        let providers = world.machines.iter().map(|(id, machine)| (*id, Provider::new(machine))).collect();
        let pools = restart::pools(&mut rng);
        let mut sim = Self {
            seed,
            options,
            now: Micros::from_secs(1),
            sequence: 0,
            queue: BinaryHeap::new(),
            controller: Controller::new(PlanPolicy::default(), Epoch(0), rng.fork(1)),
            pools,
            providers,
            requests: BTreeMap::new(),
            offered: BTreeMap::new(),
            life: Life::default(),
            faults_end: Micros::from_secs_f64(options.hours.max(0.01) * 3600.0),
            largest: Epoch(0),
            next_request: 0,
            specs: declared::specs(machines, &mut rng),
            declared: vec![false; MODELS.len()],
            leaving: Vec::new(),
            skew: Micros(0),
            witness: Witness::default(),
            plant,
            network: Network::of(&world),
            coordinator: Coordinator::of(&world),
            world,
            rng,
        };
        for model in 0..MODELS.len() {
            sim.declare(model);
        }
        for machine in sim.providers.keys().copied().collect::<Vec<_>>() {
            let late = sim.rng.below(5_000_000);
            sim.after(Micros(late), Happening::Connect(machine, 0));
        }
        sim.after(Micros(1), Happening::Arrival);
        sim.after(Micros::from_secs(60), Happening::Fault);
        sim.after(Micros::from_secs(1), Happening::Tick);
        sim
    }

    /// What the code that decides takes for now.
    fn clock(&self) -> Micros {
        self.now + self.skew
    }

    fn after(&mut self, span: Micros, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + span, self.sequence, happening)));
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if self.options.told {
            let line = format!("{:>9.1} s  {}", self.now.as_secs_f64(), line());
            self.life.lines.push(line);
        }
    }

    fn violate(&mut self, invariant: &'static str, what: String) {
        let at_s = self.now.0 / 1_000_000;
        self.say(|| format!("BROKEN {invariant}: {what}"));
        if self.life.violations.len() < 16 {
            self.life.violations.push(Violation { seed: self.seed, at_s, invariant, what });
        }
    }

    fn run(&mut self) {
        let end = self.faults_end + QUIET;
        let mut settled_at = None;
        while let Some(Reverse((at, _, happening))) = self.queue.pop() {
            if at > end {
                break;
            }
            self.now = at;
            self.life.events += 1;
            self.happen(happening);
            self.check();
            // Two thirds of the quiet end are enough to settle; in the last third nothing may move any more.
            if settled_at.is_none() && at > self.faults_end + Micros(QUIET.0 / 3 * 2) {
                settled_at = Some(self.controller.epoch());
            }
        }
        self.now = end;
        self.witness.close();
        self.say_broken();
        if settled_at.is_some_and(|epoch| epoch != self.controller.epoch()) {
            self.violate("flapping", "assignments changed after everything was quiet".to_owned());
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrival => self.arrival(),
            Happening::Fault => self.fault(),
            // Its start begins to tick again.
            Happening::Tick if self.is_down() => {}
            Happening::Tick => {
                self.see_world();
                self.look();
                let next = self.controller.next_deadline().saturating_sub(self.clock());
                self.after(Micros(next.0.clamp(100_000, 1_000_000)), Happening::Tick);
            }
            Happening::Pool(model) => {
                if !self.is_down() && self.pools[model].next_deadline().is_some_and(|at| at <= self.clock()) {
                    self.pool(model, Input::Tick);
                }
            }
            Happening::Declare(model) if self.is_down() => {
                self.after(Micros::from_secs(1), Happening::Declare(model));
            }
            Happening::Declare(model) => self.declare(model),
            Happening::Tries => self.tries(),
            Happening::Mended(cut) => self.mended(cut),
            Happening::Starts => self.starts(),
            Happening::TakenOn => self.taken_on(),
            Happening::Connect(machine, life) => self.connect(machine, life),
            Happening::Silent(machine, life) => self.silent(machine, life),
            Happening::Told(machine, start, instance, epoch, rank, assign) => {
                // No message reaches another process than the one that it was sent to.
                if self.providers[&machine].incarnation == start {
                    self.told(machine, (instance, epoch, rank), assign);
                }
            }
            Happening::Loaded(machine, instance, epoch, start) => {
                self.loaded(machine, instance, epoch, start)
            }
            Happening::Says(machine, instance, epoch, rank, phase) => {
                self.says(machine, (instance, epoch, rank), phase);
            }
            Happening::First(request, instance) => {
                if let Some(model) = self.on(request, instance) {
                    self.pool(model, Input::FirstToken { request });
                }
            }
            Happening::Done(request, instance) => {
                if let Some(model) = self.on(request, instance) {
                    let generated = Tokens(64);
                    self.witness.left(request, instance);
                    self.over(request, true);
                    if self.is_planted(Plant::EndsTwice) {
                        self.over(request, true);
                    }
                    let outcome = Outcome::Completed;
                    self.pool(model, Input::AttemptEnded { request, instance, outcome, generated });
                }
            }
        }
    }

    fn pool(&mut self, model: usize, input: Input) {
        let mut effects = Vec::new();
        let clock = self.clock();
        self.pools[model].handle(clock, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Dispatch { request, instance, machine, .. } => {
                    self.dispatch(model, request, instance, machine);
                }
                Effect::Refuse { .. } if self.is_planted(Plant::ForgetsARefusal) => {}
                Effect::Refuse { request, .. } => self.over(request, false),
                _ => {}
            }
        }
        if let Some(at) = self.pools[model].next_deadline() {
            self.after(at.saturating_sub(clock) + Micros(1), Happening::Pool(model));
        }
    }

    fn dispatch(&mut self, model: usize, request: RequestId, instance: InstanceId, machine: MachineId) {
        let Some(of) = self.controller.instance(instance) else {
            if self.leaving.contains(&instance) {
                return self.sent(request, instance);
            }
            return self.violate("capacity truth", format!("{request} went to {instance}, which is no more"));
        };
        let places = of.places.clone();
        let broken = if of.deployment != MODELS[model].0 {
            Some("no spill-over")
        } else if of.places[0].0 != machine {
            Some("ranks above 0 are never routed")
        } else if !of.is_ready() {
            Some("capacity truth")
        } else {
            None
        };
        if let Some(broken) = broken {
            self.violate(broken, format!("{request} of {} went to {instance} on {machine}", MODELS[model].0));
        }
        self.check_links(request, instance, &places);
        self.sent(request, instance);
        let slow = self.providers[&machine].slow;
        let seconds = 64.0 / MODELS[model].1 * slow * (0.5 + self.rng.next_f64());
        self.after(Micros::from_secs_f64(seconds / 20.0), Happening::First(request, instance));
        self.after(Micros::from_secs_f64(seconds), Happening::Done(request, instance));
    }

    /// What a machine had in flight moves.
    fn withdraw(&mut self, instance: InstanceId) {
        let Some((model, _)) = self.offered.remove(&instance) else { return };
        self.pool(model, Input::InstanceGone { instance, lost: false });
        let on = |(_, running): &(&RequestId, &mut Running)| running.instance == Some(instance);
        let moved: Vec<RequestId> = self
            .requests
            .iter_mut()
            .filter(on)
            .map(|(request, running)| {
                running.instance = None;
                *request
            })
            .collect();
        for request in moved {
            self.witness.left(request, instance);
            if !self.is_planted(Plant::ForgetsAMove) {
                self.enqueue(request, model, true);
            }
        }
    }

    fn lose(&mut self, machine: MachineId) {
        let of: Vec<InstanceId> =
            self.offered.iter().filter(|(_, (_, at))| *at == machine).map(|(id, _)| *id).collect();
        for instance in of {
            self.withdraw(instance);
        }
    }

    fn news(&mut self, news: News) {
        let mut orders = Vec::new();
        let clock = self.clock();
        self.controller.handle(clock, news, &mut orders);
        self.controller.reconcile(clock, &self.world, &mut orders);
        self.carry_out(orders);
    }

    fn look(&mut self) {
        let mut orders = Vec::new();
        self.controller.reconcile(self.clock(), &self.world, &mut orders);
        self.carry_out(orders);
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        let orders = self.garbled(orders);
        let withdrawn = |order: &Order| match order {
            Order::Withdraw { instance, .. } => Some(*instance),
            _ => None,
        };
        self.leaving = orders.iter().filter_map(withdrawn).collect();
        let mut groups = Vec::new();
        for order in orders {
            let (machine, instance, epoch, rank, assign) = match order {
                Order::Assign { machine, instance, epoch, rank } => {
                    self.witness.assigned(machine, instance, epoch);
                    if rank > 0 {
                        groups.push((instance, epoch));
                    }
                    (machine, instance, epoch, rank, true)
                }
                Order::Unassign { machine, instance, epoch, .. } => {
                    self.witness.unassigned(machine, instance);
                    (machine, instance, epoch, 0, false)
                }
                Order::Withdraw { instance, .. } => {
                    self.withdraw(instance);
                    continue;
                }
                Order::Store(_) | Order::Stray { .. } => continue,
            };
            self.check_told(machine);
            let what = if assign { "assign" } else { "un-assign" };
            self.say(|| format!("{what} {instance} (epoch {epoch}, rank {rank}) on {machine}"));
            if !self.providers.get(&machine).is_some_and(|provider| provider.linked) {
                continue;
            }
            let start = self.providers[&machine].incarnation;
            let told = Happening::Told(machine, start, instance, epoch, rank, assign);
            self.after(Micros(1000), told.clone());
            // A message may come a second time, and late.
            if self.now < self.faults_end && self.rng.below(20) == 0 {
                let late = self.rng.below(30_000_000);
                self.after(Micros(2000 + late), told);
            }
        }
        self.leaving.clear();
        self.check_groups(&groups);
        self.offer_what_is_ready();
    }

    /// Rank 0 of what is ready is what requests are routed to.
    fn offer_what_is_ready(&mut self) {
        let ready: Vec<(InstanceId, usize, MachineId, Epoch, usize)> = self
            .controller
            .instances()
            .filter(|instance| instance.is_ready() && !self.offered.contains_key(&instance.id))
            .filter(|instance| self.providers[&instance.places[0].0].linked)
            .filter_map(|instance| {
                let model = MODELS.iter().position(|(name, _)| *name == instance.deployment)?;
                Some((instance.id, model, instance.places[0].0, instance.epoch, instance.places.len()))
            })
            .collect();
        for (instance, model, machine, epoch, ranks) in ready {
            let (model, machine) = self.misplaced((model, instance), machine);
            self.say(|| format!("{instance} of {} takes requests on {machine}", MODELS[model].0));
            self.offered.insert(instance, (model, machine));
            let mut offer = world::offer(MODELS[model], (instance, epoch, ranks), self.clock());
            if self.is_planted(Plant::PromisesTooMuch) {
                (offer.report.slots, offer.report.kv_tokens_free) = (64, 64 * 2048);
                offer.report.kv_tokens = offer.report.kv_tokens_free;
            }
            self.pool(model, Input::InstanceUp { machine, owner: None, offer: Box::new(offer) });
        }
    }
}
