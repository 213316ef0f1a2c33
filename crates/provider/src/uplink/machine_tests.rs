//! Scripts for the uplink's state machine, in virtual time.

use std::time::Duration;

use base::Bytes;
use wire::control::Welcome;

use super::*;

struct Script {
    uplink: Uplink,
    now: Micros,
}

impl Script {
    fn new(seed: u64) -> Self {
        Self { uplink: Uplink::new(Timing::default(), Rng::new(seed)), now: Micros::ZERO }
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.uplink.handle(self.now, input, &mut effects);
        effects
    }

    fn say(&mut self, message: FromCoordinator) -> Vec<Effect> {
        self.give(Input::Message(message))
    }

    /// Jumps to the next deadline and ticks.
    fn wait(&mut self) -> Vec<Effect> {
        self.now = self.uplink.next_deadline().expect("something is due");
        self.give(Input::Tick)
    }

    fn join(&mut self) {
        let fresh = matches!(self.uplink.state, State::Fresh);
        let effects = if fresh { self.give(Input::Start) } else { self.wait() };
        assert_eq!(effects, [Effect::Connect]);
        assert_eq!(self.give(Input::Opened), [Effect::Hello]);
        let effects = self.say(FromCoordinator::Challenge { nonce: "bm9uY2U=".into() });
        assert_eq!(effects, [Effect::Prove { nonce: "bm9uY2U=".into() }]);
        let effects = self.say(FromCoordinator::Welcome(welcome()));
        assert!(matches!(&effects[..], [Effect::Adopt(_)]), "{effects:?}");
        assert!(self.uplink.is_up());
    }
}

fn welcome() -> Welcome {
    Welcome {
        capabilities: vec![],
        control_bytes_max: Bytes(1 << 20),
        data_bytes_max: Bytes(4 << 20),
        heartbeat_us: 1_000_000,
        silence_us_max: 6_000_000,
        credit_chunks: 0,
    }
}

fn refused(code: RefusalCode) -> FromCoordinator {
    FromCoordinator::Refused(Refused { code, reason: "no".into(), remedy: "ask".into() })
}

fn pause_in(effects: &[Effect]) -> Duration {
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Tell(Event::Reconnecting { pause, .. }) => Some(*pause),
        _ => None,
    });
    told.unwrap_or_else(|| panic!("no reconnection in {effects:?}"))
}

#[test]
fn a_refusal_that_trying_again_cannot_cure_ends_and_any_other_is_tried_again() {
    for (code, ends) in [
        (RefusalCode::BadToken, true),
        (RefusalCode::BadProtocol, true),
        (RefusalCode::BadIdentity, true),
        (RefusalCode::Superseded, true),
        (RefusalCode::Unavailable, false),
        (RefusalCode::BadMessage, false),
        (RefusalCode::Unknown, false),
    ] {
        let mut script = Script::new(1);
        script.give(Input::Start);
        script.give(Input::Opened);
        let effects = script.say(refused(code));
        assert!(
            effects
                .iter()
                .any(|e| matches!(e, Effect::Tell(Event::Refused { ends: told, .. }) if *told == ends)),
            "{code:?}: {effects:?}"
        );
        assert!(effects.contains(&Effect::Drop), "{code:?}: {effects:?}");
        let over = effects.iter().any(|e| matches!(e, Effect::End(Ending::Refused(r)) if r.code == code));
        assert_eq!(over, ends, "{code:?}: {effects:?}");
        if !ends {
            assert_eq!(script.wait(), [Effect::Connect]);
        }
    }
}

#[test]
fn being_superseded_in_the_middle_of_a_session_ends_the_provider() {
    let mut script = Script::new(1);
    script.join();
    let effects = script.say(refused(RefusalCode::Superseded));
    assert!(matches!(effects.last(), Some(Effect::End(Ending::Refused(_)))), "{effects:?}");
    assert_eq!(script.uplink.next_deadline(), None);
}

#[test]
fn pauses_double_up_to_fifteen_seconds_with_full_jitter() {
    let mut ceilings = [0.0f64; 12];
    for seed in 0..400 {
        let mut script = Script::new(seed);
        script.give(Input::Start);
        for ceiling in &mut ceilings {
            let pause = pause_in(&script.give(Input::OpenFailed { detail: "refused".into() }));
            *ceiling = ceiling.max(pause.as_secs_f64());
            script.wait();
        }
    }
    for (n, seen) in ceilings.iter().enumerate() {
        let allowed = (0.2 * f64::from(1 << n)).min(15.0);
        assert!(*seen <= allowed && *seen > 0.9 * allowed, "failure {n}: longest {seen}, allowed {allowed}");
    }
}

#[test]
fn a_healthy_minute_makes_the_next_pause_short_again_and_a_shorter_session_does_not() {
    for (held_s, shortened) in [(61, true), (30, false)] {
        let mut script = Script::new(9);
        script.give(Input::Start);
        for _ in 0..10 {
            script.give(Input::OpenFailed { detail: "refused".into() });
            script.now = script.uplink.next_deadline().unwrap();
            script.give(Input::Tick);
        }
        script.give(Input::Opened);
        script.say(FromCoordinator::Challenge { nonce: String::new() });
        script.say(FromCoordinator::Welcome(welcome()));
        let since = script.now;
        while script.now < since + Micros::from_secs(held_s) {
            script.wait();
            script.give(Input::Heard);
        }
        script.give(Input::Closed { detail: "reset".into() });
        let failures = script.uplink.failures;
        assert_eq!(failures == 1, shortened, "after {held_s} s: {failures} failures in a row");
    }
}

#[test]
fn silence_ends_a_session_and_answered_pings_keep_it() {
    let mut script = Script::new(2);
    script.join();
    let mut pings = 0;
    while script.now < Micros::from_secs(30) {
        if script.wait().contains(&Effect::Ping) {
            pings += 1;
            script.give(Input::Heard);
        }
    }
    assert!((14..=16).contains(&pings), "{pings} pings in 30 s at 6 s of silence");
    let quiet_since = script.now;
    let lost = loop {
        let effects = script.wait();
        if effects.contains(&Effect::Drop) {
            break effects;
        }
    };
    assert!(script.now - quiet_since <= Micros::from_secs(6));
    pause_in(&lost);
    assert!(!script.uplink.is_up());
}

#[test]
fn heartbeats_come_at_the_pace_asked_for_and_count_from_zero_on_each_connection() {
    let mut script = Script::new(3);
    for _ in 0..2 {
        script.join();
        let since = script.now;
        let mut beats = Vec::new();
        while script.now < since + Micros::from_secs(5) {
            let effects = script.wait();
            script.give(Input::Heard);
            beats.extend(effects.into_iter().filter_map(|e| match e {
                Effect::Heartbeat { sequence } => Some(sequence),
                _ => None,
            }));
        }
        assert_eq!(beats, [0, 1, 2, 3, 4]);
        script.give(Input::Closed { detail: "reset".into() });
    }
}

#[test]
fn absurd_terms_are_clamped_to_what_can_work() {
    let terms = Terms::of(Welcome {
        capabilities: vec![],
        control_bytes_max: Bytes(0),
        data_bytes_max: Bytes(u64::MAX),
        heartbeat_us: 0,
        silence_us_max: u64::MAX,
        credit_chunks: 0,
    });
    assert_eq!(terms.control_bytes_max, 16 << 10);
    assert_eq!(terms.data_bytes_max, 64 << 20);
    assert_eq!(terms.heartbeat, Micros::from_millis(20));
    assert_eq!(terms.silence_max, Micros::from_secs(600));
    let hasty = Terms::of(Welcome { heartbeat_us: 60_000_000, silence_us_max: 3_000_000, ..welcome() });
    assert_eq!(hasty.heartbeat, Micros::from_secs(1), "a heartbeat must come before the silence is over");
}

#[test]
fn a_coordinator_that_never_answers_is_given_up_in_every_phase_of_the_handshake() {
    let mut script = Script::new(4);
    script.give(Input::Start);
    pause_in(&script.wait());
    script.wait();
    script.give(Input::Opened);
    pause_in(&script.wait());
    script.wait();
    script.give(Input::Opened);
    script.say(FromCoordinator::Challenge { nonce: String::new() });
    pause_in(&script.wait());
    assert_eq!(script.wait(), [Effect::Connect]);
}

#[test]
fn messages_out_of_place_end_a_handshake_and_are_forgiven_sixteen_times_in_a_session() {
    let mut script = Script::new(5);
    script.give(Input::Start);
    script.give(Input::Opened);
    pause_in(&script.say(FromCoordinator::Welcome(welcome())));
    script.join();
    for _ in 0..MISREAD_MAX {
        assert_eq!(script.say(FromCoordinator::Challenge { nonce: String::new() }), []);
    }
    assert_eq!(script.say(FromCoordinator::Unknown), [], "unknown types are no fault");
    let effects = script.give(Input::Misread { detail: "frame version: 9 is not allowed (1)".into() });
    pause_in(&effects);
}

#[test]
fn leaving_drains_first_and_says_goodbye_once_nothing_is_in_flight() {
    let mut script = Script::new(6);
    script.join();
    assert_eq!(script.give(Input::Leave { why: "paused".into() }), [Effect::Say(FromProvider::Draining)]);
    assert!(script.uplink.is_draining());
    assert!(script.wait().contains(&Effect::Heartbeat { sequence: 0 }), "a draining provider still beats");
    let effects = script.give(Input::Idle);
    assert!(
        matches!(&effects[..], [Effect::Say(FromProvider::Goodbye { reason }), Effect::Finish] if reason == "paused"),
        "{effects:?}"
    );
    assert_eq!(script.give(Input::Closed { detail: "done".into() }), [Effect::End(Ending::Left)]);
}

#[test]
fn a_drain_that_takes_too_long_is_cut_and_a_goodbye_that_cannot_leave_too() {
    let mut script = Script::new(7);
    script.join();
    script.give(Input::Leave { why: "paused".into() });
    let began = script.now;
    loop {
        let effects = script.wait();
        script.give(Input::Heard);
        if effects.contains(&Effect::Abandon) {
            assert!(effects.contains(&Effect::Finish));
            break;
        }
    }
    assert_eq!(script.now - began, Timing::default().drain_max);
    assert_eq!(script.wait(), [Effect::Drop, Effect::End(Ending::Left)]);
}

#[test]
fn leaving_without_a_session_ends_at_once_and_losing_it_while_draining_does_not_reconnect() {
    let mut script = Script::new(8);
    script.give(Input::Start);
    assert_eq!(script.give(Input::Leave { why: "paused".into() }), [Effect::Drop, Effect::End(Ending::Left)]);

    let mut script = Script::new(8);
    script.join();
    script.give(Input::Leave { why: "paused".into() });
    let effects = script.give(Input::Closed { detail: "reset".into() });
    assert_eq!(effects, [Effect::Drop, Effect::End(Ending::Left)]);
}

#[test]
fn a_coordinator_that_says_goodbye_is_dialled_again_after_the_pause_that_it_named() {
    let mut script = Script::new(10);
    script.join();
    let goodbye = |retry_after_us| FromCoordinator::Goodbye { reason: "an update".into(), retry_after_us };
    let pause = pause_in(&script.say(goodbye(2_000_000)));
    assert!((2.0..2.7).contains(&pause.as_secs_f64()), "{pause:?}");
    script.join();
    let pause = pause_in(&script.say(goodbye(u64::MAX)));
    assert!((60.0..76.0).contains(&pause.as_secs_f64()), "{pause:?}");
}

#[test]
fn no_order_of_inputs_makes_the_machine_panic_dial_twice_or_act_after_its_end() {
    for seed in 0..300 {
        let mut script = Script::new(seed);
        let mut rng = Rng::new(seed ^ 0xabc);
        let mut open = false;
        let mut ended = false;
        for _ in 0..200 {
            let input = match rng.below(12) {
                0 => Input::Start,
                1 => Input::Opened,
                2 => Input::OpenFailed { detail: String::new() },
                3 => Input::Heard,
                4 => Input::Message(FromCoordinator::Challenge { nonce: String::new() }),
                5 | 6 => Input::Message(FromCoordinator::Welcome(welcome())),
                7 => Input::Message(refused(RefusalCode::Unavailable)),
                8 => Input::Closed { detail: String::new() },
                9 if rng.below(10) == 0 => Input::Leave { why: String::new() },
                10 => Input::Idle,
                _ => {
                    script.now += Micros(rng.below(4_000_000));
                    Input::Tick
                }
            };
            for effect in script.give(input) {
                assert!(!ended, "seed {seed}: {effect:?} after the end");
                match effect {
                    Effect::Connect => {
                        assert!(!open, "seed {seed}: dialled twice");
                        open = true;
                    }
                    Effect::Drop => open = false,
                    Effect::End(_) => ended = true,
                    _ => {}
                }
            }
        }
    }
}
