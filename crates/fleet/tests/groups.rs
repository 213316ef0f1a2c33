//! The life of a group over every order of events: it always comes to stand when its machines let it, under a new epoch
//! each time, and no word of another life changes anything.

use base::{Epoch, Incarnation, InstanceId, MachineId, Micros, Rng};
use fleet::group::{Effect, Group, Input, Phase};
use wire::control::{GroupPhase, GroupReport};

/// A provider that does what it is told, when the test lets it.
#[derive(Default, Clone)]
struct Provider {
    incarnation: u64,
    connected: bool,
    /// Its rank's life, and how far it is: 0 assigned, 1 port said, 2 roster known, 3 ready.
    rank: Option<(Epoch, u8)>,
}

struct World {
    group: Group,
    providers: Vec<Provider>,
    now: Micros,
    lives: Vec<Epoch>,
    withdrawn: bool,
}

fn machine(rank: usize) -> MachineId {
    MachineId(rank as u128 + 1)
}

fn report(epoch: Epoch, rank: usize, phase: GroupPhase, culprit: Option<u32>) -> GroupReport {
    let detail = "lost".to_owned();
    let (instance, rank) = (InstanceId(1), rank as u32);
    GroupReport { instance, epoch, rank, phase, culprit, detail, telemetry: None, standing: None }
}

impl World {
    fn new(ranks: usize) -> Self {
        let machines: Vec<MachineId> = (0..ranks).map(machine).collect();
        Self {
            group: Group::new(&machines, Micros::ZERO),
            providers: vec![Provider::default(); ranks],
            now: Micros::ZERO,
            lives: Vec::new(),
            withdrawn: true,
        }
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        let was_ready = self.group.is_ready();
        self.group.handle(self.now, input, &mut effects);
        for effect in &effects {
            match effect {
                Effect::Assign { machine: to, rank } => {
                    assert_eq!(*to, machine(*rank as usize), "a rank stays on its machine");
                    let provider = &mut self.providers[*rank as usize];
                    assert!(provider.connected, "nobody is assigned who is not there");
                    provider.rank = Some((self.group.epoch(), 0));
                    if *rank == 0 {
                        self.lives.push(self.group.epoch());
                    }
                }
                Effect::Roster => {
                    for provider in &mut self.providers {
                        provider.rank = provider.rank.map(|(epoch, far)| (epoch, far.max(2)));
                    }
                }
                Effect::Unassign { machine: to, epoch, .. } => {
                    let provider = &mut self.providers[to.0 as usize - 1];
                    // Who is away does not hear it: it is told when it comes back, or its links end.
                    if provider.rank.is_some_and(|(own, _)| own <= *epoch) {
                        provider.rank = None;
                    }
                }
                Effect::Withdraw => self.withdrawn = true,
                Effect::Faulted { .. } | Effect::Stray { .. } => {}
            }
        }
        if was_ready && !self.group.is_ready() {
            assert!(self.withdrawn, "what a lost life served is withdrawn");
        }
        if self.group.is_ready() {
            self.withdrawn = false;
            let whole = |p: &Provider| p.rank == Some((self.group.epoch(), 3));
            assert!(self.providers.iter().all(whole), "ready means that every rank of this life is");
        }
        assert!(self.lives.windows(2).all(|w| w[0] < w[1]), "epochs only grow");
        effects
    }

    fn connect(&mut self, rank: usize, again: bool) {
        let provider = &mut self.providers[rank];
        if again || provider.incarnation == 0 {
            provider.incarnation += 1;
            provider.rank = None;
        }
        provider.connected = true;
        let incarnation = Incarnation(provider.incarnation);
        self.give(Input::MachineUp { machine: machine(rank), incarnation });
    }

    /// The next thing that a provider does by itself, if any.
    fn go_on(&mut self, rank: usize) -> bool {
        let provider = &mut self.providers[rank];
        let Some((epoch, far)) = provider.rank.filter(|_| provider.connected) else { return false };
        let input = match far {
            0 => Input::Ports { machine: machine(rank), epoch, rank: rank as u32, addresses: Vec::new() },
            2 => {
                let report = report(epoch, rank, GroupPhase::Ready, None);
                Input::Report { machine: machine(rank), report }
            }
            _ => return false,
        };
        provider.rank = Some((epoch, far + 1));
        self.give(input);
        true
    }

    /// Lets everything happen that is due, until nothing more is.
    fn settle(&mut self) {
        for _ in 0..200 {
            for rank in 0..self.providers.len() {
                if !self.providers[rank].connected {
                    self.connect(rank, rank % 2 == 0);
                }
            }
            let moved = (0..self.providers.len()).any(|rank| self.go_on(rank));
            if !moved {
                match self.group.next_deadline().filter(|_| !self.group.is_ready()) {
                    Some(at) => {
                        self.now = self.now.max(at);
                        self.give(Input::Tick);
                    }
                    None => break,
                }
            }
        }
    }
}

#[test]
fn whatever_happens_in_whatever_order_the_group_comes_to_stand_again() {
    for seed in 0..3_000u64 {
        let mut rng = Rng::new(seed);
        let ranks = 2 + rng.below(4) as usize;
        let mut world = World::new(ranks);
        for _ in 0..rng.below(60) {
            let rank = rng.below(ranks as u64) as usize;
            let epoch = Epoch(rng.below(world.group.epoch().0 + 3));
            world.now += Micros(rng.below(3_000_000));
            match rng.below(10) {
                0 => world.connect(rank, false),
                1 => world.connect(rank, true),
                2 if world.providers[rank].connected => {
                    world.providers[rank].connected = false;
                    world.give(Input::MachineGone { machine: machine(rank) });
                }
                3 => {
                    // A fault in whatever life it believes to be in, blaming anyone, even nobody there is.
                    let culprit = Some(rng.below(ranks as u64 + 2) as u32);
                    if world.providers[rank].rank.is_some_and(|(own, _)| own == epoch) {
                        world.providers[rank].rank = None;
                    }
                    let report = report(epoch, rank, GroupPhase::Ended, culprit);
                    world.give(Input::Report { machine: machine(rank), report });
                }
                4 => {
                    // A word about a life that is not this one must change nothing.
                    let due = world.group.next_deadline().is_some_and(|at| at <= world.now);
                    let before = (world.group.epoch(), world.group.phase().clone());
                    let other = Epoch(world.group.epoch().0 + 1 + rng.below(3));
                    let report = report(other, rank, GroupPhase::Ready, None);
                    let effects = world.give(Input::Report { machine: machine(rank), report });
                    assert!(effects.iter().any(|e| matches!(e, Effect::Stray { .. })));
                    let after = (world.group.epoch(), world.group.phase().clone());
                    assert!(before == after || due, "only time may change it");
                }
                5 => drop(world.give(Input::Tick)),
                _ => drop(world.go_on(rank)),
            }
        }
        world.settle();
        assert!(world.group.is_ready(), "seed {seed}: {:?} {}", world.group.phase(), world.group.detail());
        assert_eq!(world.group.detail(), "");
    }
}

fn ready_world(ranks: usize) -> World {
    let mut world = World::new(ranks);
    world.settle();
    assert!(world.group.is_ready());
    world
}

#[test]
fn only_rank_0_of_the_life_that_stands_may_be_offered() {
    let world = ready_world(3);
    let epoch = world.group.epoch();
    assert_eq!(world.group.admits(machine(0), epoch, 0, 3), Ok(()));
    assert!(world.group.admits(machine(1), epoch, 1, 3).unwrap_err().contains("only rank 0"));
    assert!(world.group.admits(machine(1), epoch, 0, 3).unwrap_err().contains("rank is not the one"));
    assert!(world.group.admits(machine(0), epoch, 0, 2).unwrap_err().contains("number of ranks"));
    assert!(world.group.admits(machine(0), Epoch(epoch.0 - 1), 0, 3).unwrap_err().contains("epoch"));
    assert!(world.group.admits(machine(9), epoch, 0, 3).unwrap_err().contains("rank is not the one"));
}

#[test]
fn a_lost_rank_is_named_everybody_is_told_and_pauses_grow_until_a_life_was_healthy() {
    let mut world = ready_world(2);
    let mut pauses = Vec::new();
    for round in 0..12 {
        let epoch = world.group.epoch();
        world.providers[1].rank = None;
        let report = report(epoch, 0, GroupPhase::Ended, Some(1));
        let effects = world.give(Input::Report { machine: machine(0), report });
        let fault = Effect::Faulted { epoch, culprit: Some(1), is_loss: true, detail: "lost".into() };
        assert!(effects.contains(&fault), "whom others name went without a word: {effects:?}");
        let told = effects.iter().filter(|e| matches!(e, Effect::Unassign { .. })).count();
        assert_eq!(told, 2, "round {round}");
        assert!(world.group.detail().contains("rank 1: lost"), "{}", world.group.detail());
        pauses.push(world.group.next_deadline().unwrap().saturating_sub(world.now).0);
        world.settle();
        assert!(world.group.is_ready() && world.group.epoch() > epoch);
    }
    assert_eq!(pauses[..3], [100_000, 200_000, 400_000]);
    assert_eq!(pauses[11], 30_000_000);
    world.now += Micros::from_secs(60);
    let epoch = world.group.epoch();
    let report = report(epoch, 0, GroupPhase::Ended, Some(1));
    world.give(Input::Report { machine: machine(0), report });
    assert_eq!(world.group.next_deadline().unwrap().saturating_sub(world.now), Micros::from_millis(100));
}

#[test]
fn ranks_that_never_answer_are_named_and_tried_again() {
    let mut world = World::new(3);
    (0..3).for_each(|rank| world.connect(rank, true));
    world.go_on(0);
    world.go_on(2);
    assert_eq!(world.group.detail(), "ranks 1 have not answered");
    world.now = world.group.next_deadline().unwrap();
    let effects = world.give(Input::Tick);
    assert!(effects.iter().any(|e| matches!(e, Effect::Faulted { culprit: Some(1), .. })), "{effects:?}");
    world.settle();
    assert!(world.group.is_ready());
}

#[test]
fn a_removed_group_frees_every_rank_and_stays_down() {
    let mut world = ready_world(4);
    let effects = world.give(Input::Remove);
    assert_eq!(effects.iter().filter(|e| matches!(e, Effect::Unassign { .. })).count(), 4);
    assert!(effects.contains(&Effect::Withdraw));
    world.connect(2, true);
    assert!(world.give(Input::Remove).is_empty(), "repeated removals are harmless");
    assert_eq!(world.group.phase(), &Phase::Down);
}

#[test]
fn a_machine_whose_connection_breaks_for_a_moment_keeps_its_rank_and_one_that_stays_away_loses_it() {
    let mut world = ready_world(2);
    let epoch = world.group.epoch();
    world.providers[1].connected = false;
    world.give(Input::MachineGone { machine: machine(1) });
    assert_eq!((world.group.phase_name(), world.group.epoch()), ("degraded", epoch));
    world.now += Micros::from_secs(2);
    world.connect(1, false);
    assert_eq!((world.group.phase_name(), world.group.epoch()), ("ready", epoch));

    world.providers[1].connected = false;
    world.give(Input::MachineGone { machine: machine(1) });
    world.now = world.group.next_deadline().unwrap();
    let effects = world.give(Input::Tick);
    assert!(effects.iter().any(|e| matches!(e, Effect::Faulted { culprit: Some(1), .. })), "{effects:?}");

    let mut world = ready_world(2);
    world.connect(0, true);
    assert_eq!(world.group.phase_name(), "re-forming", "a provider that started again is no rank any more");
}
