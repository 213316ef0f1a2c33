//! Lent machines: their owner's requests wait for them beside a full public queue, and go first there.

#[path = "world/fixture.rs"]
mod fixture;

use base::{Micros, RequestId, Rng, Tokens};
use fixture::{Shape, account, enqueue, instance, machine, model, offer};
use fleet::{Effect, Input, Outcome, Owners, Policy, Pool, Refusal};

/// A pool of one lent machine with one place, which another account's request has; and what then becomes of `ask`.
fn beside_a_full_machine(owners: Owners, queue: u64) -> (Vec<Effect>, Vec<Effect>) {
    let policy = Policy { queue_max: 2, ..Policy::default() };
    let mut pool = Pool::new(model(), policy, Rng::new(3));
    let shape = Shape { slots: 1, ..Shape::default() };
    let up = Input::InstanceUp { machine: machine(1), owner: Some(account(7)), offer: offer(1, &shape) };
    let mut effects = Vec::new();
    pool.handle(Micros::ZERO, up, &mut effects);
    for n in 0..=queue {
        pool.handle(Micros::ZERO, Input::Enqueue(enqueue(n, 1, 10, 10)), &mut effects);
    }
    effects.clear();
    let mut asked = enqueue(100, 7, 10, 10);
    asked.ask.owners = owners;
    pool.handle(Micros::ZERO, Input::Enqueue(asked), &mut effects);
    let told = std::mem::take(&mut effects);
    let (request, instance) = (RequestId(0), instance(1));
    let ended = Input::AttemptEnded { request, instance, outcome: Outcome::Completed, generated: Tokens(3) };
    pool.handle(Micros::from_secs(1), ended, &mut effects);
    (told, effects)
}

#[test]
fn an_owner_waits_for_its_own_machine_beside_a_full_public_queue_and_goes_first_there() {
    for owners in [Owners::Prefer(account(7)), Owners::Only(account(7))] {
        let (told, then) = beside_a_full_machine(owners, 2);
        assert!(told.is_empty(), "{told:?}");
        let first = then.iter().find_map(|effect| match effect {
            Effect::Dispatch { request, .. } => Some(*request),
            _ => None,
        });
        assert_eq!(first, Some(RequestId(100)));
    }
    // Whoever lends nothing is anybody.
    let (told, _) = beside_a_full_machine(Owners::Prefer(account(8)), 2);
    assert!(matches!(told[..], [Effect::Refuse { .. }] | [Effect::Refuse { .. }, ..]), "{told:?}");
    let (told, _) = beside_a_full_machine(Owners::Only(account(8)), 0);
    assert!(matches!(told[..], [Effect::Refuse { refusal: Refusal::NoOwnMachine, .. }]), "{told:?}");
}
