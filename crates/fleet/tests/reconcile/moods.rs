//! What the controller makes of doubt, refusals, modes and new terms.

use std::collections::BTreeMap;

use base::{Epoch, InstanceId, Micros};
use fleet::deployment::{ConditionType, Replicas, Spec};
use fleet::reconcile::{Input, Mode, RankReport};

use super::ready;

#[test]
fn a_machine_that_is_away_for_long_is_replaced_where_there_is_another_and_waited_for_where_there_is_none() {
    let mut play = ready(2, Spec::new("d", "a"));
    let first = play.controller.instances().next().expect("it was placed").clone();
    let machine = first.places[0].0;
    play.disconnect(machine, false);
    play.now += Micros::from_millis(400);
    play.tick(0);
    assert!(play.controller.instance(first.id).is_some(), "one that only dials again keeps what it has");
    assert!(!play.controller.deployment("d").expect("it is there").conditions.is(ConditionType::Ready));
    play.now += Micros::from_millis(200);
    play.tick(0);
    let second = play.controller.instances().next().expect("it was placed elsewhere").clone();
    assert!(second.id != first.id && second.places[0].0 != machine);
    play.everybody_reports();
    // Back with what it held: it is told to let go.
    play.connect(machine);
    assert!(play.providers[&machine].holds.is_empty());
    // The other goes too, for good but for one that never comes back: nothing is left, and it waits.
    play.disconnect(machine, true);
    play.disconnect(second.places[0].0, false);
    play.tick(5);
    assert!(play.controller.instance(second.id).is_some(), "there is no other place for it");
    play.connect(second.places[0].0);
    let back = play.controller.instance(second.id).expect("it goes on where it was");
    assert!(back.serves() && back.epoch == second.epoch);
}

#[test]
fn a_refusal_is_no_failure_and_the_machine_rests() {
    let mut play = ready(2, Spec::new("d", "a"));
    let first = play.controller.instances().next().expect("it was placed").clone();
    let (machine, epoch) = (first.places[0].0, first.epoch);
    let report = RankReport::Refused("another program holds its memory".to_owned());
    play.input(Input::Report { machine, instance: first.id, epoch, rank: 0, report });
    let now = play.controller.instances().next().expect("it was placed elsewhere").clone();
    assert!(now.places[0].0 != machine && now.failures == 0);
    assert_eq!(play.controller.deployment("d").expect("it is there").crashes, 0);
    assert!(play.controller.resting(machine).expect("it rests").contains("another program"));
}

#[test]
fn where_plans_are_not_followed_nothing_is_told_but_ends() {
    for mode in [Mode::Shadow, Mode::Off] {
        let mut play = ready(3, Spec::new("d", "a"));
        play.controller.set_mode(mode);
        let mut more = Spec::new("e", "b");
        more.replicas = Replicas::Fixed(2);
        play.input(Input::Apply(Box::new(more)));
        play.tick(20);
        assert_eq!(play.controller.instances().count(), 1, "{mode:?}");
        assert_eq!(play.controller.unfollowed().len(), if mode == Mode::Shadow { 2 } else { 0 });
        play.input(Input::Delete("d".to_owned()));
        assert_eq!(play.controller.instances().count(), 0, "{mode:?}");
        play.controller.set_mode(Mode::Enforce);
        play.tick(1);
        assert_eq!(play.controller.instances().count(), 2, "{mode:?}");
    }
}

#[test]
fn new_terms_are_told_one_instance_after_the_other_under_larger_epochs() {
    let mut spec = Spec::new("d", "a");
    spec.replicas = Replicas::Fixed(2);
    let mut play = ready(2, spec.clone());
    play.everybody_reports();
    let before: BTreeMap<InstanceId, Epoch> = play.controller.instances().map(|i| (i.id, i.epoch)).collect();
    spec.context = Some(4096);
    play.input(Input::Apply(Box::new(spec)));
    let serving = |play: &super::Play| play.controller.instances().filter(|i| i.serves()).count();
    assert_eq!(serving(&play), 1, "one at a time");
    let said = play.controller.deployment("d").expect("it is there").conditions.clone();
    assert_eq!(said.get(ConditionType::Ready).map(|c| c.reason.clone()), Some("Updating".to_owned()));
    for _ in 0..4 {
        play.everybody_reports();
        play.tick(1);
    }
    assert_eq!(serving(&play), 2);
    for instance in play.controller.instances() {
        assert!(instance.epoch > before[&instance.id] && instance.terms.context == Some(4096));
    }
}

/// Kills the provider of `machine`, and starts it again.
fn restarts(play: &mut super::Play, machine: base::MachineId) {
    play.disconnect(machine, true);
    play.connect(machine);
}

#[test]
fn a_rank_that_is_killed_while_it_computes_is_no_failure_of_the_model() {
    let mut play = ready(2, Spec::new("d", "a"));
    let first = play.controller.instances().next().expect("it was placed").clone();
    let machine = first.places[0].0;
    // More often in a minute than a failing model is tried in place.
    for _ in 0..6 {
        restarts(&mut play, machine);
        for _ in 0..30 {
            play.tick(1);
            play.everybody_reports();
            if play.controller.instance(first.id).is_some_and(|i| i.is_ready()) {
                break;
            }
        }
        let now = play.controller.instance(first.id).expect("it stays where it is");
        assert!(now.is_ready() && now.failures == 0, "{now:?}");
        assert!(play.controller.resting(machine).is_none());
    }
    let lost = play.controller.instance(first.id).expect("it is there").losses;
    assert_eq!(lost, 6, "and it is counted for what it is");
    let said = &play.controller.deployment("d").expect("it is there").history;
    assert!(said.iter().any(|line| line.what.contains("failed (6 in a row): m")), "{said:?}");
}

#[test]
fn what_is_lost_again_and_again_or_does_not_come_back_is_a_failure() {
    // Each life computes, and is lost: in the end it is placed elsewhere.
    let mut play = ready(2, Spec::new("d", "a"));
    let first = play.controller.instances().next().expect("it was placed").clone();
    let machine = first.places[0].0;
    for _ in 0..fleet::reconcile::LOSSES_MAX + fleet::reconcile::TRIES_IN_PLACE + 1 {
        assert!(play.controller.instance(first.id).is_some(), "not yet");
        restarts(&mut play, machine);
        // Pauses grow; it is lost again as soon as it computes.
        for _ in 0..900 {
            play.tick(1);
            play.everybody_reports();
            if play.controller.instance(first.id).is_none_or(|i| i.is_ready()) {
                break;
            }
        }
    }
    let now = play.controller.instances().next().expect("it was placed elsewhere");
    assert!(now.id != first.id && now.places[0].0 != machine, "{now:?}");
    assert!(play.controller.resting(machine).is_some());

    // Lost once, and then it does not load any more: the loss was the first of these failures.
    let mut play = ready(2, Spec::new("d", "a"));
    let first = play.controller.instances().next().expect("it was placed").clone();
    let machine = first.places[0].0;
    restarts(&mut play, machine);
    let mut epochs = std::collections::BTreeSet::new();
    for _ in 0..60 {
        play.tick(1);
        let told = play.controller.told(machine).first().copied();
        let Some((instance, epoch, rank)) = told.filter(|told| told.0 == first.id) else { continue };
        epochs.insert(epoch);
        let report = RankReport::Failed("out of memory".to_owned());
        play.input(Input::Report { machine, instance, epoch, rank, report });
    }
    assert_eq!(epochs.len(), 3, "{epochs:?}");
    assert!(play.controller.instance(first.id).is_none());
}

#[test]
fn the_others_word_that_a_rank_is_lost_counts_though_its_machine_is_away() {
    let mut spec = Spec::new("d", "a");
    spec.shape = fleet::deployment::Division::Tensor(2);
    let mut play = ready(2, spec);
    play.everybody_reports();
    let group = play.controller.instances().next().expect("it was placed").clone();
    let (machine, epoch) = (group.places[1].0, group.epoch);
    play.disconnect(machine, true);
    let strays = play.controller.strays();
    let of = |report| Input::Report { machine, instance: group.id, epoch, rank: 1, report };
    play.input(of(RankReport::Lost("its links ended".to_owned())));
    assert_eq!(play.controller.strays(), strays);
    let said = &play.controller.deployment("d").expect("it is there").errors;
    assert!(said.last().is_some_and(|error| error.contains("its links ended")), "{said:?}");
    // Anything else that it is said to say while it is away is not so.
    play.input(of(RankReport::Ready));
    assert_eq!(play.controller.strays(), strays + 1);
    play.connect(machine);
    for _ in 0..10 {
        play.tick(1);
        play.everybody_reports();
    }
    let now = play.controller.instance(group.id).expect("it goes on where it was");
    assert!(now.is_ready() && now.losses == 1 && now.failures == 0, "{now:?}");
}

#[test]
fn links_to_a_machine_that_is_away_are_not_judged() {
    let mut spec = Spec::new("d", "a");
    spec.shape = fleet::deployment::Division::Tensor(2);
    let mut play = ready(2, spec);
    play.everybody_reports();
    let group = play.controller.instances().next().expect("it was placed").clone();
    let machine = group.places[1].0;
    restarts(&mut play, machine);
    // Gone once more while it forms: of course nobody reaches it.
    play.disconnect(machine, true);
    let links = play.world.links.clone();
    let down = fleet::topology::Link {
        kind: fleet::topology::LinkKind::Ethernet,
        state: fleet::topology::LinkState::Down,
        rtt_s: 0.0,
        bandwidth: 0.0,
        rdma: false,
        private: true,
    };
    let mut cut = fleet::topology::Links::new(2);
    cut.add(0, 1, down);
    cut.add(1, 0, down);
    play.world.links = cut;
    play.controller.world_changed();
    play.tick(0);
    let said = &play.controller.deployment("d").expect("it is there").history;
    assert!(play.controller.instance(group.id).is_some(), "it is waited for: {said:#?}");
    play.world.links = links;
    play.controller.world_changed();
    play.connect(machine);
    for _ in 0..10 {
        play.tick(1);
        play.everybody_reports();
    }
    assert!(play.controller.instance(group.id).is_some_and(|i| i.is_ready()));
}

#[test]
fn a_group_that_would_not_form_again_is_told_new_terms_elsewhere() {
    use fleet::topology::{Link, LinkKind, LinkState, Links};
    let mut spec = Spec::new("d", "a");
    spec.shape = fleet::deployment::Division::Tensor(2);
    let mut play = ready(3, spec.clone());
    play.everybody_reports();
    let group = play.controller.instances().next().expect("it was placed").clone();
    // By their order in the world.
    let number = |machine: base::MachineId| machine.0 as usize - 1;
    let cut = (number(group.places[1].0), number(group.places[0].0));
    let (rtt_s, bandwidth) = (3e-4, 1.25e9);
    let up =
        Link { kind: LinkKind::Ethernet, state: LinkState::Up, rtt_s, bandwidth, rdma: false, private: true };
    let mut links = Links::new(3);
    for pair in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))) {
        let state = if pair == cut { LinkState::Down } else { LinkState::Up };
        links.add(pair.0 as u32, pair.1 as u32, Link { state, ..up });
    }
    play.world.links = links;
    play.controller.world_changed();
    play.tick(10);
    assert!(play.controller.instance(group.id).is_some_and(|i| i.is_ready()), "its links stand");
    spec.max_batch += 1;
    play.input(Input::Apply(Box::new(spec)));
    for _ in 0..10 {
        play.now = play.now.max(play.controller.next_deadline());
        play.tick(0);
        play.everybody_reports();
    }
    assert_eq!(play.epochs[&group.id], group.epoch, "it was not told to form again where it cannot");
    let now = play.controller.instances().next().expect("it was placed elsewhere");
    let dials = (number(now.places[1].0), number(now.places[0].0));
    assert!(now.id != group.id && now.is_ready() && dials != cut, "{now:?}");
}

#[test]
fn what_keeps_a_machine_is_named_as_what_it_is() {
    let play = ready(1, Spec::new("d", "a"));
    let why = |name: &str, model: &str, replicas| {
        let mut spec = Spec::new(name, model);
        spec.replicas = Replicas::Fixed(replicas);
        let (_, plan) = play.controller.preview(play.now, &play.world, Some(spec));
        plan.short.iter().map(|short| short.reason.clone()).collect::<Vec<_>>().join("; ")
    };
    let same = why("e", "a", 1);
    assert!(same.contains("an instance of the same model already, that of \"d\""), "{same}");
    let own = why("d", "a", 2);
    assert!(own.contains("an instance of this deployment already"), "{own}");
    let other = why("e", "b", 1);
    assert!(other.contains("it holds \"d\""), "{other}");
}
