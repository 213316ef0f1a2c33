//! What a deployment wants: requests that find nothing of it wait for its next place, until their deadline or its end.

#[path = "world/fixture.rs"]
mod fixture;

use base::{MachineId, Micros, RequestId, Rng, Tokens};
use fixture::{Shape, enqueue, instance, machine, model, offer, request};
use fleet::{Admission, Effect, Enqueue, Input, Owners, Policy, Pool, Refusal};

const NOW: Micros = Micros::from_secs(100);

struct Play(Pool);

impl Play {
    fn wanted() -> Self {
        let policy = Policy { wait_us_max: Micros::from_secs(20), ..Policy::default() };
        let mut play = Self(Pool::new(model(), policy, Rng::new(1)));
        play.give(NOW, Input::Wanted { wanted: true });
        play
    }

    fn give(&mut self, at: Micros, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.0.handle(at, input, &mut effects);
        effects.retain(|effect| matches!(effect, Effect::Dispatch { .. } | Effect::Refuse { .. }));
        effects
    }

    /// Asks first, as callers do: what is foretold is what comes.
    fn asks(&mut self, at: Micros, enqueue: Enqueue) -> Vec<Effect> {
        let told = self.0.preflight(at, &enqueue);
        let effects = self.give(at, Input::Enqueue(enqueue));
        match (&told, effects.first()) {
            (Ok(Admission::Now), Some(Effect::Dispatch { .. })) | (Ok(Admission::Waits { .. }), None) => {}
            (Err(foretold), Some(Effect::Refuse { refusal, .. })) => assert_eq!(foretold, refusal),
            (told, effect) => panic!("foretold {told:?}, and came {effect:?}"),
        }
        effects
    }

    fn up(&mut self, at: Micros, shape: &Shape) -> Vec<Effect> {
        self.give(at, Input::InstanceUp { machine: machine(1), owner: None, offer: offer(1, shape) })
    }

    fn gone(&mut self, at: Micros) -> Vec<Effect> {
        self.give(at, Input::InstanceGone { instance: instance(1), lost: false })
    }
}

fn refused(effects: &[Effect]) -> (RequestId, Refusal) {
    match effects {
        [Effect::Refuse { request, refusal }] => (*request, *refusal),
        other => panic!("{other:?}"),
    }
}

fn sent(effects: &[Effect]) -> Vec<(RequestId, MachineId)> {
    let each = effects.iter().map(|effect| match effect {
        Effect::Dispatch { request, machine, .. } => (*request, *machine),
        other => panic!("{other:?}"),
    });
    each.collect()
}

#[test]
fn a_request_waits_for_the_next_place_and_goes_there() {
    let mut play = Play::wanted();
    assert_eq!(play.asks(NOW, enqueue(1, 1, 10, 10)), []);
    assert!(play.0.listing().is_none(), "nothing serves it: no listing says that something does");
    assert_eq!(play.0.capacity(NOW, Tokens(1), Tokens(1)).requests, 0);
    let later = NOW + Micros::from_secs(15);
    assert_eq!(sent(&play.up(later, &Shape { slots: 1, ..Shape::default() })), [(request(1), machine(1))]);
    // Taken back for good, with a request that waits behind it: both wait for the next.
    play.asks(later, enqueue(2, 1, 10, 10));
    assert_eq!(play.gone(later), []);
    assert_eq!(play.0.limit(), Some(Tokens(2048)), "what it was last");
    let again = Enqueue { again: true, tried: 1, ..enqueue(1, 1, 10, 10) };
    let excluded = |mut enqueue: Enqueue| {
        enqueue.ask.excluded.push(machine(1));
        enqueue
    };
    assert_eq!(play.asks(later, again), []);
    // Where it stands again on a machine that failed one of them, that one is told so: its caller decides.
    assert_eq!(play.asks(later, excluded(enqueue(3, 1, 10, 10))), []);
    let effects = play.up(later, &Shape { slots: 4, epoch: 2, ..Shape::default() });
    let failed = effects.iter().filter(|e| matches!(e, Effect::Refuse { .. })).cloned().collect::<Vec<_>>();
    assert_eq!(refused(&failed), (request(3), Refusal::AttemptsFailed { tried: 0 }));
    assert_eq!(effects.len() - failed.len(), 2);
}

#[test]
fn it_waits_no_longer_than_its_deadline_or_the_deployment() {
    let mut play = Play::wanted();
    let soon = Enqueue { deadline: Some(NOW + Micros::from_secs(3)), ..enqueue(1, 1, 10, 10) };
    play.asks(NOW, soon);
    play.asks(NOW, enqueue(2, 1, 10, 10));
    let at = play.0.next_deadline().expect("its deadline");
    let (who, why) = refused(&play.give(at, Input::Tick));
    assert_eq!((who, at), (request(1), NOW + Micros::from_secs(3)));
    let Refusal::Unplaced { waited, retry_after } = why else { panic!("{why:?}") };
    assert!(waited == Micros::from_secs(3) && retry_after > Micros::ZERO && why.time_cures(), "{why:?}");
    assert!(why.to_string().contains("a deployment wants this model"), "{why}");
    let over = Enqueue { deadline: Some(at), ..enqueue(3, 1, 10, 10) };
    assert!(matches!(refused(&play.asks(at, over)).1, Refusal::Unplaced { .. }));
    let own = Owners::Only(fixture::account(1));
    let mut mine = enqueue(4, 1, 10, 10);
    mine.ask.owners = own;
    assert_eq!(play.asks(at, mine.clone()), [], "the next place may be one of its own");
    // The deployment is gone, and with it what was waited for.
    let effects = play.give(at, Input::Wanted { wanted: false });
    let mut why: Vec<_> = effects.iter().map(|effect| refused(std::slice::from_ref(effect))).collect();
    why.sort_by_key(|(request, _)| *request);
    assert_eq!(why, [(request(2), Refusal::NoServingPath), (request(4), Refusal::NoOwnMachine)]);
    assert_eq!(refused(&play.asks(at, enqueue(5, 1, 10, 10))).1, Refusal::NoServingPath);
}

#[test]
fn what_waited_is_held_to_the_limits_of_what_comes() {
    let mut play = Play::wanted();
    play.asks(NOW, enqueue(1, 1, 3000, 10));
    play.asks(NOW, enqueue(2, 1, 30, 10));
    let mut effects = play.up(NOW, &Shape::default());
    effects.retain(|effect| matches!(effect, Effect::Refuse { .. }));
    assert!(matches!(refused(&effects), (who, Refusal::TooLong { .. }) if who == request(1)), "{effects:?}");
    // What stands and cannot is another matter than what does not stand.
    assert!(matches!(refused(&play.asks(NOW, enqueue(3, 1, 3000, 10))).1, Refusal::TooLong { .. }));
}
