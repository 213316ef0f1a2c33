//! The controller over every order of events that a seed makes: what must hold after each, and that it settles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{Epoch, Incarnation, InstanceId, MachineId, Micros, Rng};
use fleet::deployment::{ConditionType, Division, Machines, Replicas, Spec};
use fleet::plan::file::ShapeEntry;
use fleet::plan::{PlanPolicy, Shape};
use fleet::reconcile::{Controller, Effect, Held, Input, RankReport, World};
use fleet::topology::{Device, Link, LinkKind, LinkState, Links, Machine};

#[path = "reconcile/moods.rs"]
mod moods;

fn shape() -> Arc<Shape> {
    let entry = ShapeEntry {
        layers: 16,
        hidden: 2048,
        heads: 32,
        kv_heads: Some(8),
        head_dim: None,
        feed_forward: 8192,
        vocabulary: 32_000,
        context: None,
        tied_head: true,
        experts: None,
        experts_per_token: None,
    };
    let text = entry.config().to_string();
    let spec = model::family::spec_from_config(text.as_bytes(), None).expect("a model");
    Arc::new(Shape::new(Arc::new(spec), 16.0, 1))
}

fn world(machines: usize) -> World {
    let lan = Link {
        kind: LinkKind::Ethernet,
        state: LinkState::Up,
        rtt_s: 3e-4,
        bandwidth: 1.25e9,
        rdma: false,
        private: true,
    };
    let mut links = Links::new(machines);
    links.add_network((0..machines as u32).collect(), lan);
    let machine = |at: usize| Machine {
        name: format!("m{at}"),
        online: true,
        managed: true,
        resting: None,
        labels: BTreeMap::new(),
        devices: vec![Device {
            name: "cpu0".to_owned(),
            memory: 8 << 30,
            bandwidth: 5e10,
            flops: 1e12,
            host_bandwidth: 0.0,
        }],
        on_disk: vec!["a".to_owned(), "b".to_owned()],
        loaded: Vec::new(),
        disk: 2e9,
        download: 0.0,
        lends: Vec::new(),
        fetch_room: 0,
        measured: BTreeMap::new(),
    };
    let shapes = BTreeMap::from([("a".to_owned(), shape()), ("b".to_owned(), shape())]);
    let machines = (0..machines).map(|at| (MachineId(at as u128 + 1), machine(at))).collect();
    World { machines, links, shapes, demand: BTreeMap::new() }
}

/// A provider as the controller sees one: it holds what it was told last, unless it is down.
#[derive(Default, Clone)]
struct Provider {
    up: bool,
    incarnation: u64,
    holds: BTreeMap<InstanceId, (Epoch, u32, bool)>,
}

struct Play {
    controller: Controller,
    world: World,
    providers: BTreeMap<MachineId, Provider>,
    now: Micros,
    rng: Rng,
    epochs: BTreeMap<InstanceId, Epoch>,
    largest: Epoch,
    /// Which machines fail whatever they are told.
    broken: BTreeSet<MachineId>,
}

impl Play {
    fn new(seed: u64, machines: usize) -> Self {
        let world = world(machines);
        let providers = world.machines.iter().map(|(id, _)| (*id, Provider::default())).collect();
        Self {
            controller: Controller::new(PlanPolicy::default(), Epoch(0), Rng::new(seed)),
            world,
            providers,
            now: Micros::from_secs(1),
            rng: Rng::new(seed ^ 77),
            epochs: BTreeMap::new(),
            largest: Epoch(0),
            broken: BTreeSet::new(),
        }
    }

    fn input(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.controller.handle(self.now, input, &mut effects);
        self.controller.reconcile(self.now, &self.world, &mut effects);
        self.carry_out(effects);
        self.hold();
    }

    fn tick(&mut self, seconds: u64) {
        self.now += Micros::from_secs(seconds);
        let twin = self.controller.clone();
        let mut effects = Vec::new();
        self.controller.reconcile(self.now, &self.world, &mut effects);
        self.looks_as_closely(twin, &effects);
        self.carry_out(effects);
        self.hold();
    }

    /// A look that finds that there is nothing to see has missed nothing: one that was told something, if only what is not
    /// so, looks at everything and finds the same.
    fn looks_as_closely(&self, mut twin: Controller, effects: &[Effect]) {
        let (machine, instance, epoch) = (MachineId(u128::MAX), InstanceId(u128::MAX), Epoch(0));
        let stray = Input::Report { machine, instance, epoch, rank: 0, report: RankReport::Gone };
        twin.handle(self.now, stray, &mut Vec::new());
        let mut found = Vec::new();
        twin.reconcile(self.now, &self.world, &mut found);
        assert_eq!(found, effects);
        let all = |of: &Controller| {
            let instances: Vec<_> = of.instances().cloned().collect();
            let deployments: Vec<_> = of.deployments().map(|(_, of)| of.clone()).collect();
            format!("{instances:?} {deployments:?} {:?}", of.next_deadline())
        };
        assert_eq!(all(&twin), all(&self.controller));
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Assign { machine, instance, epoch, rank } => {
                    assert!(epoch <= self.controller.epoch());
                    let last = self.epochs.entry(instance).or_insert(epoch);
                    assert!(*last <= epoch, "epochs of one instance only grow");
                    *last = epoch;
                    let provider = self.providers.get_mut(&machine).expect("it is known");
                    if provider.up {
                        provider.holds.insert(instance, (epoch, rank, false));
                    }
                }
                Effect::Unassign { machine, instance, epoch, .. } => {
                    let provider = self.providers.get_mut(&machine).expect("it is known");
                    if provider.up && provider.holds.get(&instance).is_some_and(|held| held.0 <= epoch) {
                        provider.holds.remove(&instance);
                    }
                }
                Effect::Withdraw { .. } | Effect::Store(_) | Effect::Stray { .. } => {}
            }
        }
        assert!(self.controller.epoch() >= self.largest, "epochs only grow");
        self.largest = self.controller.epoch();
    }

    /// What holds at every moment.
    fn hold(&self) {
        assert!(self.controller.next_deadline() > self.now, "nobody looks again for nothing");
        let mut seen: BTreeMap<MachineId, InstanceId> = BTreeMap::new();
        for instance in self.controller.instances() {
            assert!(
                self.controller.deployment(&instance.deployment).is_some(),
                "no instance without deployment"
            );
            for (machine, _) in &instance.places {
                assert!(seen.insert(*machine, instance.id).is_none(), "a machine holds one model");
            }
        }
        for (machine, _) in &self.world.machines {
            for (instance, _, rank) in self.controller.told(*machine) {
                let of = self.controller.instance(*instance).expect("nobody is told of what is not");
                assert_eq!(of.places[*rank as usize].0, *machine);
            }
            assert!(self.controller.told(*machine).len() <= 1);
        }
        for (_, deployment) in self.controller.deployments() {
            for condition in deployment.conditions.iter() {
                assert!(
                    condition.observed_generation <= deployment.generation
                        && condition.last_transition <= self.now
                );
            }
        }
    }

    fn connect(&mut self, machine: MachineId) {
        let provider = self.providers.get_mut(&machine).expect("it is known");
        provider.up = true;
        let holds = provider.holds.iter().map(|(&instance, &(epoch, rank, ready))| Held {
            instance,
            epoch,
            rank,
            ready,
        });
        let (holds, incarnation) = (holds.collect(), Incarnation(provider.incarnation));
        let name = format!("m{}", machine.0 - 1);
        self.input(Input::MachineUp { machine, name, incarnation, fresh: true, holds });
    }

    fn disconnect(&mut self, machine: MachineId, dies: bool) {
        let provider = self.providers.get_mut(&machine).expect("it is known");
        provider.up = false;
        if dies {
            provider.holds.clear();
            provider.incarnation += 1;
        }
        self.input(Input::MachineGone(machine));
    }

    /// Everybody says how far it is.
    fn everybody_reports(&mut self) {
        for (machine, provider) in self.providers.clone() {
            for (instance, (epoch, rank, ready)) in provider.holds.clone() {
                if !provider.up || ready {
                    continue;
                }
                let report = if self.broken.contains(&machine) {
                    RankReport::Failed("out of memory".to_owned())
                } else {
                    RankReport::Ready
                };
                let told = self.providers.get_mut(&machine).expect("it is known");
                if report == RankReport::Ready {
                    told.holds.insert(instance, (epoch, rank, true));
                } else {
                    told.holds.remove(&instance);
                }
                self.input(Input::Report { machine, instance, epoch, rank, report });
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..400 {
            self.everybody_reports();
            self.tick(2);
        }
    }

    fn machines(&self) -> Vec<MachineId> {
        self.providers.keys().copied().collect()
    }

    fn step(&mut self) {
        let machines = self.machines();
        let machine = machines[self.rng.below(machines.len() as u64) as usize];
        match self.rng.below(12) {
            0 => self.connect(machine),
            1 => self.disconnect(machine, false),
            2 => self.disconnect(machine, true),
            3 | 4 => self.everybody_reports(),
            5 => {
                // A lie: about something that it was not told.
                let instance = InstanceId(self.rng.next_u64().into());
                let before: Vec<_> = self.controller.instances().map(|i| (i.id, i.phase)).collect();
                let (epoch, rank) = (Epoch(self.rng.below(50)), self.rng.below(3) as u32);
                let strays = self.controller.strays();
                let mut effects = Vec::new();
                let report = RankReport::Ready;
                self.controller.handle(
                    self.now,
                    Input::Report { machine, instance, epoch, rank, report },
                    &mut effects,
                );
                assert_eq!(self.controller.strays(), strays + 1);
                assert_eq!(before, self.controller.instances().map(|i| (i.id, i.phase)).collect::<Vec<_>>());
            }
            6 => {
                let mut spec = Spec::new(
                    ["x", "y", "z"][self.rng.below(3) as usize],
                    ["a", "b"][self.rng.below(2) as usize],
                );
                spec.replicas = Replicas::Fixed(self.rng.below(4) as u32);
                spec.shape =
                    [Division::Auto, Division::Single, Division::Pipeline(2)][self.rng.below(3) as usize];
                if self.rng.below(3) == 0 {
                    spec.machines = Machines::Pinned(vec![format!("m{}", machine.0 - 1)]);
                }
                self.input(Input::Apply(Box::new(spec)));
            }
            7 if self.rng.below(3) == 0 => {
                let name = ["x", "y", "z"][self.rng.below(3) as usize];
                self.input(Input::Delete(name.to_owned()));
            }
            8 => {
                if !self.broken.remove(&machine) {
                    self.broken.insert(machine);
                }
            }
            _ => {
                let seconds = self.rng.below(20);
                self.tick(seconds);
            }
        }
    }
}

#[test]
fn whatever_happens_in_whatever_order_the_invariants_hold_and_it_settles_when_faults_stop() {
    for seed in 0..60 {
        let mut play = Play::new(seed, 6);
        for _ in 0..150 {
            play.step();
        }
        play.broken.clear();
        for machine in play.machines() {
            play.connect(machine);
        }
        play.settle();
        for (name, deployment) in play.controller.deployments() {
            let of: Vec<_> = play.controller.instances().filter(|i| i.deployment == *name).collect();
            assert!(of.iter().all(|instance| instance.is_ready()), "seed {seed}: {name} settles");
            let placed = deployment.conditions.is(ConditionType::Placed);
            assert_eq!(
                placed,
                of.len() as u32 == deployment.spec.replicas.floor(),
                "seed {seed}: {name} {of:?} {:?}",
                deployment.conditions
            );
            let condition = deployment.conditions.get(ConditionType::Placed).expect("it is said");
            assert_eq!(condition.observed_generation, deployment.generation);
        }
        for (machine, provider) in &play.providers {
            let told = play.controller.told(*machine);
            let holds: Vec<_> = provider.holds.iter().map(|(i, (e, r, _))| (*i, *e, *r)).collect();
            assert_eq!(told, holds, "seed {seed}: what a machine holds is what it was told");
        }
        // Silent when nothing changes.
        let mut effects = Vec::new();
        for second in 1..60 {
            let now = play.now + Micros::from_secs(second);
            play.controller.reconcile(now, &play.world, &mut effects);
        }
        assert_eq!(effects, [], "seed {seed}: nothing happens, nothing is said");
    }
}

fn ready(machines: usize, spec: Spec) -> Play {
    let mut play = Play::new(1, machines);
    for machine in play.machines() {
        play.connect(machine);
    }
    play.input(Input::Apply(Box::new(spec)));
    play.everybody_reports();
    play
}

#[test]
fn a_failing_instance_is_tried_in_place_three_times_then_elsewhere_with_every_error_named() {
    let mut play = ready(3, Spec::new("d", "a"));
    let first = play.controller.instances().next().expect("it was placed").clone();
    assert!(first.is_ready());
    let machine = first.places[0].0;
    play.broken.insert(machine);
    play.disconnect(machine, true);
    play.connect(machine);
    let mut epochs = Vec::new();
    for _ in 0..120 {
        play.everybody_reports();
        play.tick(1);
        epochs.extend(play.controller.instance(first.id).map(|i| i.epoch));
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 3, "three tries in place after its own life: {epochs:?}");
    let now = play.controller.instances().next().expect("it was placed elsewhere");
    assert!(now.id != first.id && now.places[0].0 != machine && now.is_ready());
    let errors = &play.controller.deployment("d").expect("it is there").errors;
    assert!(
        errors.iter().filter(|e| e.contains("out of memory") && e.starts_with('m')).count() >= 3,
        "{errors:?}"
    );
}

#[test]
fn what_fails_everywhere_is_tried_with_pauses_that_grow() {
    let mut play = Play::new(2, 2);
    for machine in play.machines() {
        play.broken.insert(machine);
        play.connect(machine);
    }
    play.input(Input::Apply(Box::new(Spec::new("d", "a"))));
    let mut tries = BTreeSet::new();
    for _ in 0..3600 {
        play.everybody_reports();
        play.tick(1);
        tries.extend(play.controller.instances().map(|i| (i.id, i.epoch)));
    }
    assert!((8..90).contains(&tries.len()), "an hour of failing: {} tries", tries.len());
    let condition =
        play.controller.deployment("d").and_then(|d| d.conditions.get(ConditionType::Placed)).cloned();
    assert!(condition.is_some());
}

#[test]
fn a_restarted_coordinator_takes_on_what_machines_hold_and_nothing_is_torn_down() {
    let mut play = ready(3, Spec::new("d", "a"));
    let held = play.controller.instances().next().expect("it was placed").clone();
    let mut again = Controller::new(PlanPolicy::default(), Epoch(0), Rng::new(9));
    again.restore(Spec::new("d", "a"), 1, []);
    again.adopt(held.clone(), &["m".to_owned()]);
    play.controller = again;
    play.largest = Epoch(0);
    for machine in play.machines() {
        play.connect(machine);
    }
    play.settle();
    let now: Vec<_> = play.controller.instances().collect();
    assert_eq!((now.len(), now[0].id, now[0].epoch), (1, held.id, held.epoch));
    assert!(play.controller.epoch() >= held.epoch);
}

#[test]
fn a_deleted_deployment_leaves_nothing_behind_and_deleting_again_is_harmless() {
    for at in 0..4 {
        let mut play = Play::new(3, 2);
        for machine in play.machines() {
            play.connect(machine);
        }
        let mut spec = Spec::new("d", "a");
        spec.shape = Division::Pipeline(2);
        play.input(Input::Apply(Box::new(spec)));
        match at {
            0 => {}
            1 => play.everybody_reports(),
            2 => play.disconnect(MachineId(1), true),
            _ => play.disconnect(MachineId(1), false),
        }
        play.input(Input::Delete("d".to_owned()));
        play.input(Input::Delete("d".to_owned()));
        assert_eq!(play.controller.instances().count(), 0);
        play.connect(MachineId(1));
        play.settle();
        assert!(play.providers.values().all(|provider| provider.holds.is_empty()));
    }
}
