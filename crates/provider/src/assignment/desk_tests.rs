//! Orders of events that a managed machine must survive, one by one and at random.

use std::collections::{BTreeMap, HashMap};

use base::{ModelName, Rng};
use wire::control::{Lease, Leases};

use super::*;

const A: InstanceId = InstanceId(1);
const B: InstanceId = InstanceId(2);
const LIMIT: Bytes = Bytes(1000);
const MINUTE: Micros = Micros::from_secs(60);

fn asked(instance: InstanceId, epoch: u64, model: &str) -> Assignment {
    Assignment {
        instance,
        epoch: Epoch(epoch),
        rank: 0,
        model: ModelName::new(model),
        context: 0,
        max_batch: 0,
        exclusive: true,
        lease_us: 0,
    }
}

fn shared(instance: InstanceId, epoch: u64, model: &str) -> Assignment {
    Assignment { exclusive: false, ..asked(instance, epoch, model) }
}

/// A desk, and what it said.
struct Table {
    desk: Desk,
    now: Micros,
}

impl Table {
    fn new() -> Self {
        Self { desk: Desk::new(LIMIT), now: Micros::from_secs(1) }
    }

    fn on(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.desk.handle(self.now, input, &mut effects);
        effects
    }

    fn assign(&mut self, assignment: Assignment) -> Vec<Effect> {
        self.on(Input::Assign { assignment, needs: Ok(Bytes(400)) })
    }

    fn unassign(&mut self, instance: InstanceId, epoch: u64) -> Vec<Effect> {
        self.on(Input::Unassign { instance, epoch: Epoch(epoch), drain: MINUTE })
    }

    fn after(&mut self, span: Micros) -> Vec<Effect> {
        self.now = self.now.saturating_add(span);
        self.on(Input::Tick)
    }

    /// Assigns, and loads.
    fn hold(&mut self, assignment: Assignment) -> Life {
        let life = loads(&self.assign(assignment))[0];
        self.on(Input::Loaded { life });
        life
    }
}

fn loads(effects: &[Effect]) -> Vec<Life> {
    let load = |effect: &Effect| match effect {
        Effect::Load { life, .. } => Some(*life),
        _ => None,
    };
    effects.iter().filter_map(load).collect()
}

fn phases(effects: &[Effect]) -> Vec<(InstanceId, u64, AssignmentPhase)> {
    let report = |effect: &Effect| match effect {
        Effect::Report(report) => Some((report.instance, report.epoch.0, report.phase)),
        _ => None,
    };
    effects.iter().filter_map(report).collect()
}

fn why(effects: &[Effect]) -> String {
    let report = |effect: &Effect| match effect {
        Effect::Report(report) if !report.detail.is_empty() => Some(report.detail.clone()),
        _ => None,
    };
    effects.iter().find_map(report).unwrap_or_default()
}

#[test]
fn a_model_is_loaded_served_drained_and_given_back() {
    let mut table = Table::new();
    let effects = table.assign(asked(A, 1, "a"));
    assert_eq!(phases(&effects), [(A, 1, AssignmentPhase::Loading)]);
    let life = loads(&effects)[0];
    assert_eq!(phases(&table.on(Input::Progress { life, percent: 40 })), [(A, 1, AssignmentPhase::Loading)]);
    assert_eq!(phases(&table.on(Input::Progress { life, percent: 40 })), []);
    assert_eq!(phases(&table.on(Input::Loaded { life })), [(A, 1, AssignmentPhase::Ready)]);
    assert!(table.desk.holds()[0].ready);

    let effects = table.unassign(A, 1);
    assert!(effects.contains(&Effect::Drain { life }), "{effects:?}");
    assert_eq!(table.desk.holds(), []);
    assert_eq!(table.on(Input::InFlight { life, attempts: 4 }).len(), 0);
    let effects = table.on(Input::InFlight { life, attempts: 1 });
    let Effect::Report(report) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!((report.phase, report.percent), (AssignmentPhase::Draining, 75));
    let effects = table.on(Input::InFlight { life, attempts: 0 });
    assert_eq!(effects[0], Effect::Unload { life });
    assert_eq!(phases(&table.on(Input::Unloaded { life })), [(A, 1, AssignmentPhase::Gone)]);
}

#[test]
fn a_second_model_is_refused_rather_than_swapped_and_taken_once_the_first_is_gone() {
    let mut table = Table::new();
    let life = table.hold(asked(A, 1, "a"));
    let effects = table.assign(asked(B, 2, "b"));
    assert_eq!(phases(&effects), [(B, 2, AssignmentPhase::Refused)]);
    assert!(why(&effects).contains("holds a alone"), "{}", why(&effects));
    // One that may share is refused for the one that may not, too.
    assert_eq!(phases(&table.assign(shared(B, 3, "b"))), [(B, 3, AssignmentPhase::Refused)]);
    assert!(table.desk.holds()[0].ready, "the first is untouched");

    table.unassign(A, 1);
    let effects = table.assign(asked(B, 4, "b"));
    assert_eq!(phases(&effects), [(B, 4, AssignmentPhase::Draining)], "it waits for the first to end");
    assert!(loads(&effects).is_empty());
    table.on(Input::InFlight { life, attempts: 0 });
    let effects = table.on(Input::Unloaded { life });
    assert_eq!(phases(&effects), [(A, 1, AssignmentPhase::Gone), (B, 4, AssignmentPhase::Loading)]);
    assert_eq!(loads(&effects).len(), 1);
}

#[test]
fn several_share_a_machine_as_far_as_its_memory_goes_and_each_model_once() {
    let mut table = Table::new();
    table.hold(shared(A, 1, "a"));
    assert!(why(&table.assign(shared(B, 2, "a"))).contains("a is held here already"));
    assert!(why(&table.assign(asked(B, 3, "b"))).contains("is to be held alone, and a is held here"));
    table.hold(shared(B, 4, "b"));
    let third = InstanceId(3);
    let text = why(&table.assign(shared(third, 5, "c")));
    assert!(text.contains("c takes 400 B") && text.contains("200 B of 1000 B are left"), "{text}");
    table.unassign(A, 1);
    let effects = table.assign(shared(third, 6, "c"));
    assert_eq!(phases(&effects), [(third, 6, AssignmentPhase::Draining)]);
}

#[test]
fn older_epochs_are_refused_duplicates_change_nothing_and_a_newer_one_goes_on_without_a_load() {
    let mut table = Table::new();
    let life = table.hold(asked(A, 5, "a"));
    assert_eq!(phases(&table.assign(asked(A, 4, "a"))), [(A, 4, AssignmentPhase::Refused)]);
    assert_eq!(table.assign(asked(A, 5, "a")), table.assign(asked(A, 5, "a")));
    assert_eq!(phases(&table.assign(asked(A, 5, "a"))), [(A, 5, AssignmentPhase::Ready)]);
    let effects = table.assign(asked(A, 7, "a"));
    assert_eq!(effects[0], Effect::Restamp { life, epoch: Epoch(7) });
    assert_eq!(phases(&effects), [(A, 7, AssignmentPhase::Ready)]);
    // An ending of an older life does not touch the newer one; repeated endings are harmless.
    assert_eq!(table.unassign(A, 5), []);
    assert!(table.desk.holds()[0].ready);
    table.unassign(A, 7);
    table.on(Input::InFlight { life, attempts: 0 });
    table.on(Input::Unloaded { life });
    assert_eq!(phases(&table.unassign(A, 7)), [(A, 7, AssignmentPhase::Gone)]);
    assert_eq!(phases(&table.assign(asked(A, 7, "a"))), [(A, 7, AssignmentPhase::Refused)]);
    assert_eq!(phases(&table.unassign(B, 9)), [(B, 9, AssignmentPhase::Gone)]);
    assert_eq!(phases(&table.assign(asked(B, 8, "b"))), [(B, 8, AssignmentPhase::Refused)]);
}

#[test]
fn other_terms_under_a_newer_epoch_replace_what_is_held() {
    let mut table = Table::new();
    let life = table.hold(asked(A, 1, "a"));
    let effects = table.assign(Assignment { context: 512, ..asked(A, 2, "a") });
    assert!(effects.contains(&Effect::Drain { life }), "{effects:?}");
    assert!(loads(&effects).is_empty());
    table.on(Input::InFlight { life, attempts: 0 });
    let effects = table.on(Input::Unloaded { life });
    assert_eq!(loads(&effects).len(), 1);
}

#[test]
fn a_load_that_is_not_wanted_any_more_is_cancelled_even_where_it_was_just_done() {
    for finished in [false, true] {
        let mut table = Table::new();
        let life = loads(&table.assign(asked(A, 1, "a")))[0];
        assert!(table.unassign(A, 1).contains(&Effect::Cancel { life }));
        if finished {
            assert_eq!(table.on(Input::Loaded { life })[0], Effect::Unload { life });
            assert_eq!(phases(&table.on(Input::Unloaded { life })), [(A, 1, AssignmentPhase::Gone)]);
        } else {
            let ended = Input::LoadEnded { life, failed: Some("it was cancelled".to_owned()) };
            assert_eq!(phases(&table.on(ended)), [(A, 1, AssignmentPhase::Gone)]);
        }
    }
}

#[test]
fn failures_name_their_cause_and_are_said_again_at_the_same_epoch() {
    let mut table = Table::new();
    let effects = table.assign(asked(A, 1, "a"));
    let life = loads(&effects)[0];
    let failed = Some("model.safetensors is truncated".to_owned());
    let effects = table.on(Input::LoadEnded { life, failed });
    assert_eq!(phases(&effects), [(A, 1, AssignmentPhase::Failed)]);
    assert!(why(&effects).contains("truncated"));
    let effects = table.assign(asked(A, 1, "a"));
    assert_eq!(phases(&effects), [(A, 1, AssignmentPhase::Failed)]);
    assert!(why(&effects).contains("truncated"));
    // Tried again in place, with a newer epoch.
    let life = loads(&table.assign(asked(A, 2, "a")))[0];
    table.on(Input::Loaded { life });
    let effects = table.on(Input::Broke { life, detail: "a thread broke down".to_owned() });
    assert_eq!(effects[0], Effect::Unload { life });
    let effects = table.on(Input::Unloaded { life });
    assert_eq!(phases(&effects), [(A, 2, AssignmentPhase::Failed)]);
    assert!(why(&effects).contains("broke down"));
    let needs = Err("no model \"x\" here".to_owned());
    let effects = table.on(Input::Assign { assignment: asked(B, 3, "x"), needs });
    assert_eq!(phases(&effects), [(B, 3, AssignmentPhase::Refused)]);
    assert!(why(&effects).contains("no model"));
}

#[test]
fn a_lease_that_is_not_renewed_ends_and_the_same_epoch_can_have_it_again() {
    let mut table = Table::new();
    let leased = Assignment { lease_us: MINUTE.0, ..asked(A, 1, "a") };
    let life = table.hold(leased.clone());
    assert_eq!(table.desk.next_deadline(), Some(table.now.saturating_add(MINUTE)));
    assert_eq!(table.after(Micros(MINUTE.0 - 1)), []);
    let renewed = Leases { lease_us: MINUTE.0, leases: vec![Lease { instance: A, epoch: Epoch(1) }] };
    table.on(Input::Renew(renewed.clone()));
    assert_eq!(table.after(Micros(MINUTE.0 - 1)), []);
    // Of another epoch, or another instance, is no renewal.
    let other = Leases { leases: vec![Lease { instance: A, epoch: Epoch(2) }], ..renewed };
    table.on(Input::Renew(other));
    assert!(table.after(Micros(1)).contains(&Effect::Drain { life }));
    table.on(Input::InFlight { life, attempts: 3 });
    assert_eq!(table.after(LEASE_DRAIN)[0], Effect::Unload { life });
    let effects = table.on(Input::Unloaded { life });
    assert_eq!(phases(&effects), [(A, 1, AssignmentPhase::Gone)]);
    assert!(why(&effects).contains("lease ended"));
    assert_eq!(loads(&table.assign(leased)).len(), 1);
}

#[test]
fn what_is_taken_back_while_its_lease_ends_is_not_had_again_at_that_epoch() {
    let mut table = Table::new();
    let life = table.hold(Assignment { lease_us: 1_000_000, ..asked(A, 1, "a") });
    table.after(Micros::from_secs(1));
    table.unassign(A, 1);
    table.on(Input::InFlight { life, attempts: 0 });
    table.on(Input::Unloaded { life });
    assert_eq!(phases(&table.assign(asked(A, 1, "a"))), [(A, 1, AssignmentPhase::Refused)]);
}

#[test]
fn a_drain_is_bounded_and_a_second_ending_only_hurries_it() {
    let mut table = Table::new();
    let life = table.hold(asked(A, 1, "a"));
    table.unassign(A, 1);
    table.on(Input::InFlight { life, attempts: 1 });
    let (instance, epoch) = (A, Epoch(1));
    table.on(Input::Unassign { instance, epoch, drain: Micros(u64::MAX) });
    assert_eq!(table.desk.next_deadline(), Some(table.now.saturating_add(MINUTE)));
    table.on(Input::Unassign { instance, epoch, drain: Micros::from_secs(1) });
    assert_eq!(table.after(Micros::from_secs(1))[0], Effect::Unload { life });

    let life = {
        table.on(Input::Unloaded { life });
        table.hold(asked(A, 2, "a"))
    };
    table.on(Input::Unassign { instance, epoch: Epoch(2), drain: Micros(u64::MAX) });
    table.on(Input::InFlight { life, attempts: 1 });
    assert_eq!(table.after(DRAIN_MAX)[0], Effect::Unload { life });
}

#[test]
fn ranks_of_groups_and_models_held_alone_keep_off_each_other() {
    let mut table = Table::new();
    assert_eq!(table.desk.why_no_group(), Ok(()));
    table.on(Input::Groups(vec!["big".to_owned()]));
    assert!(why(&table.assign(asked(A, 1, "a"))).contains("a rank of a group that computes big"));
    table.on(Input::Groups(Vec::new()));
    let life = table.hold(asked(A, 1, "a"));
    assert!(matches!(table.desk.why_no_group(), Err(Busy::Held(why)) if why.contains("holds a alone")));
    table.unassign(A, 1);
    assert_eq!(table.desk.why_no_group(), Err(Busy::Ending));
    table.on(Input::InFlight { life, attempts: 0 });
    table.on(Input::Unloaded { life });
    assert_eq!(table.desk.why_no_group(), Ok(()));
}

#[test]
fn what_is_remembered_is_bounded_and_what_is_held_is_never_forgotten() {
    let mut table = Table::new();
    table.hold(asked(A, 9, "a"));
    for id in 10..5000 {
        table.unassign(InstanceId(id), 1);
    }
    assert!(table.desk.known.len() <= KNOWN_MAX);
    assert_eq!(phases(&table.assign(asked(A, 8, "a"))), [(A, 8, AssignmentPhase::Refused)]);
}

/// What a machine's threads would do, and what must hold whatever happens.
#[derive(Default)]
struct Threads {
    loading: BTreeMap<Life, (Assignment, bool)>,
    ready: BTreeMap<Life, Assignment>,
    unloading: BTreeMap<Life, Assignment>,
    /// The highest epoch that was taken back, by instance.
    taken_back: HashMap<InstanceId, Epoch>,
    loaded_epochs: HashMap<InstanceId, Epoch>,
}

impl Threads {
    fn held(&self) -> impl Iterator<Item = &Assignment> {
        let loading = self.loading.values().map(|(assignment, _)| assignment);
        loading.chain(self.ready.values()).chain(self.unloading.values())
    }

    fn perform(&mut self, effects: &[Effect], asked: Option<&Assignment>, seed: u64) {
        let mut answered = asked.is_none();
        for effect in effects {
            match effect {
                Effect::Load { life, assignment } => {
                    let lone =
                        |a: &Assignment| a.exclusive || assignment.exclusive || a.model == assignment.model;
                    assert!(!self.held().any(lone), "seed {seed}: {assignment:?} beside another");
                    let back = self.taken_back.get(&assignment.instance).copied().unwrap_or_default();
                    assert!(assignment.epoch > back, "seed {seed}: loads what was taken back");
                    let before = self.loaded_epochs.insert(assignment.instance, assignment.epoch);
                    assert!(before.is_none_or(|before| before <= assignment.epoch), "seed {seed}: epochs");
                    assert!(self.loading.insert(*life, (assignment.clone(), false)).is_none());
                    assert!(self.loading.len() == 1, "seed {seed}: one load at a time");
                }
                Effect::Cancel { life } => {
                    let load = self.loading.get_mut(life).unwrap_or_else(|| panic!("seed {seed}: no load"));
                    load.1 = true;
                }
                Effect::Drain { life } => assert!(self.ready.contains_key(life), "seed {seed}"),
                Effect::Unload { life } => {
                    let of =
                        self.ready.remove(life).unwrap_or_else(|| panic!("seed {seed}: unloads nothing"));
                    assert!(self.unloading.insert(*life, of).is_none(), "seed {seed}");
                }
                Effect::Restamp { life, epoch } => {
                    let held = self.ready.get_mut(life).or(self.loading.get_mut(life).map(|(a, _)| a));
                    if let Some(held) = held {
                        assert!(held.epoch < *epoch, "seed {seed}: epochs only grow");
                        held.epoch = *epoch;
                    }
                }
                Effect::Report(report) => {
                    assert!(report.percent <= 100);
                    answered |=
                        asked.is_some_and(|a| (a.instance, a.epoch) == (report.instance, report.epoch));
                }
            }
        }
        assert!(answered, "seed {seed}: {asked:?} was not answered");
    }

    /// Something that a thread says next; nothing where all are still.
    fn next(&mut self, rng: &mut Rng) -> Option<Input> {
        let kind = rng.below(3);
        let first = |map: &BTreeMap<Life, Assignment>| map.keys().next().copied();
        if let Some((&life, _)) = self.loading.iter().next()
            && kind == 0
        {
            let (assignment, cancelled) = self.loading.remove(&life)?;
            return Some(match (cancelled, rng.below(4)) {
                (true, 1..) => Input::LoadEnded { life, failed: Some("cancelled".to_owned()) },
                (false, 0) => Input::LoadEnded { life, failed: Some("broken".to_owned()) },
                _ => {
                    self.ready.insert(life, assignment);
                    Input::Loaded { life }
                }
            });
        }
        match (first(&self.unloading), first(&self.ready)) {
            (Some(life), _) if kind == 1 => {
                self.unloading.remove(&life);
                Some(Input::Unloaded { life })
            }
            (_, Some(life)) if kind == 2 => Some(match rng.below(6) {
                0 => Input::Broke { life, detail: "broke".to_owned() },
                _ => Input::InFlight { life, attempts: rng.below(3) as usize },
            }),
            _ => None,
        }
    }
}

#[test]
fn whatever_order_events_come_in_memory_is_held_once_and_everything_comes_to_rest() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let (mut table, mut threads) = (Table::new(), Threads::default());
        for _ in 0..300 {
            let instance = InstanceId(u128::from(rng.below(4)));
            let epoch = rng.below(12) + 1;
            table.now = table.now.saturating_add(Micros(rng.below(3_000_000)));
            let mut of = None;
            let input = match rng.below(9) {
                0..=2 => {
                    let assignment = Assignment {
                        exclusive: rng.below(2) == 0,
                        context: 512 * u32::from(rng.below(8) == 0),
                        lease_us: rng.below(3) * 20_000_000,
                        ..asked(instance, epoch, ["a", "b", "c"][rng.below(3) as usize])
                    };
                    of = Some(assignment.clone());
                    let needs = if rng.below(9) == 0 {
                        Err("not here".to_owned())
                    } else {
                        Ok(Bytes(rng.below(700)))
                    };
                    Input::Assign { assignment, needs }
                }
                3 => {
                    let back = threads.taken_back.entry(instance).or_default();
                    let newest = table.desk.known.get(&instance).map_or(Epoch(0), |known| known.newest);
                    if Epoch(epoch) >= newest {
                        *back = (*back).max(Epoch(epoch));
                    }
                    Input::Unassign { instance, epoch: Epoch(epoch), drain: Micros(rng.below(20_000_000)) }
                }
                4 => Input::Renew(Leases {
                    lease_us: 20_000_000,
                    leases: vec![Lease { instance, epoch: Epoch(epoch) }],
                }),
                5 => Input::Tick,
                _ => match threads.next(&mut rng) {
                    Some(input) => input,
                    None => continue,
                },
            };
            let effects = table.on(input);
            threads.perform(&effects, of.as_ref(), seed);
            assert!(table.desk.holds().len() <= HELD_MAX);
        }
        // Everything is taken back, and threads do what they were told: nothing is left.
        for instance in 0..4 {
            let (instance, epoch) = (InstanceId(instance), Epoch(100));
            let effects = table.on(Input::Unassign { instance, epoch, drain: Micros(0) });
            threads.perform(&effects, None, seed);
        }
        for _ in 0..200 {
            table.now = table.now.saturating_add(Micros::from_secs(1));
            let input = threads.next(&mut rng).unwrap_or(Input::Tick);
            let effects = table.on(input);
            threads.perform(&effects, None, seed);
        }
        assert_eq!(threads.held().count(), 0, "seed {seed}: memory is left");
        assert!(table.desk.records.is_empty(), "seed {seed}: {:?}", table.desk.records);
    }
}
