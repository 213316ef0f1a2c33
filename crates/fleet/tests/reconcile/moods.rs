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
