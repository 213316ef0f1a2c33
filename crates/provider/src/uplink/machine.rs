//! The uplink's decisions: a state machine from what happened to what to do, without a socket or a clock.

mod words;

use base::{Micros, Rng};
use wire::control::{FromCoordinator, FromProvider, RefusalCode, Refused};

use crate::event::Event;
pub(crate) use words::{Effect, Ending, Input, Terms, Timing};

/// So many unreadable or misplaced messages are forgiven in a session; a peer that sends more is no coordinator.
const MISREAD_MAX: u32 = 16;

#[derive(Debug)]
enum State {
    Fresh,
    Connecting { until: Micros },
    Greeting { until: Micros },
    Proving { until: Micros },
    Up(Session),
    Waiting { until: Micros },
    Leaving { until: Micros },
    Ended,
}

#[derive(Debug)]
struct Session {
    since: Micros,
    heard: Micros,
    heartbeat_at: Micros,
    ping_at: Micros,
    heartbeat: Micros,
    silence_max: Micros,
    sequence: u64,
    misread: u32,
    /// Set once the provider is to leave: when the drain is over at the latest.
    drain_until: Option<Micros>,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Uplink {
    timing: Timing,
    rng: Rng,
    state: State,
    /// Why it leaves, once it does.
    farewell: String,
    /// Failures in a row, for the pause.
    failures: u32,
}

impl Uplink {
    pub(crate) fn new(timing: Timing, rng: Rng) -> Self {
        Self { timing, rng, state: State::Fresh, farewell: String::new(), failures: 0 }
    }

    /// When `Tick` is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        match &self.state {
            State::Fresh | State::Ended => None,
            State::Connecting { until }
            | State::Greeting { until }
            | State::Proving { until }
            | State::Waiting { until }
            | State::Leaving { until } => Some(*until),
            State::Up(session) => {
                let next = session.heartbeat_at.min(session.ping_at).min(session.gone_at());
                Some(session.drain_until.map_or(next, |until| next.min(until)))
            }
        }
    }

    /// Whether a session stands.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Whether the provider finishes what it has and takes nothing new.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(&self.state, State::Up(session) if session.drain_until.is_some())
    }

    /// Takes in what happened; appends what to do.
    pub(crate) fn handle(&mut self, now: Micros, input: Input, effects: &mut Vec<Effect>) {
        if let State::Up(session) = &mut self.state
            && matches!(input, Input::Heard | Input::Message(_) | Input::Misread { .. })
        {
            session.heard = now;
        }
        match input {
            Input::Start => {
                if matches!(self.state, State::Fresh) {
                    self.connect(now, effects);
                }
            }
            Input::Opened => {
                if matches!(self.state, State::Connecting { .. }) {
                    effects.push(Effect::Hello);
                    self.state = State::Greeting { until: now.saturating_add(self.timing.handshake_max) };
                }
            }
            Input::OpenFailed { detail } => {
                if matches!(self.state, State::Connecting { .. }) {
                    self.lost(now, detail, None, effects);
                }
            }
            Input::Heard => {}
            Input::Message(message) => self.message(now, message, effects),
            Input::Misread { detail } => self.misread(now, detail, effects),
            Input::Closed { detail } => match self.state {
                State::Leaving { .. } => self.end(Ending::Left, effects),
                State::Greeting { .. } | State::Proving { .. } | State::Up(_) => {
                    self.lost(now, detail, None, effects);
                }
                State::Fresh | State::Connecting { .. } | State::Waiting { .. } | State::Ended => {}
            },
            Input::Leave { why } => self.leave(now, why, effects),
            Input::Idle => {
                if self.is_draining() {
                    self.goodbye(now, "", effects);
                }
            }
            Input::Tick => self.tick(now, effects),
        }
    }

    fn connect(&mut self, now: Micros, effects: &mut Vec<Effect>) {
        effects.push(Effect::Connect);
        self.state = State::Connecting { until: now.saturating_add(self.timing.connect_max) };
    }

    fn message(&mut self, now: Micros, message: FromCoordinator, effects: &mut Vec<Effect>) {
        let connected = matches!(self.state, State::Greeting { .. } | State::Proving { .. } | State::Up(_));
        match (&self.state, message) {
            (_, FromCoordinator::Unknown) => {}
            (_, FromCoordinator::Refused(refused)) if connected => self.refused(now, refused, effects),
            (_, FromCoordinator::Goodbye { reason, retry_after_us }) if connected => {
                // A minute at most: a coordinator that names a longer pause may be back sooner than it thought.
                let told = Micros(retry_after_us.min(60_000_000));
                let spread = Micros(self.rng.below(told.0 / 4 + 100_000));
                let detail = format!("the coordinator says goodbye: {}", clipped(&reason));
                self.lost(now, detail, Some(told + spread), effects);
            }
            (State::Greeting { .. }, FromCoordinator::Challenge { nonce }) => {
                effects.push(Effect::Prove { nonce });
                self.state = State::Proving { until: now.saturating_add(self.timing.handshake_max) };
            }
            (State::Proving { .. }, FromCoordinator::Welcome(welcome)) => {
                let terms = Terms::of(welcome);
                self.state = State::Up(Session::new(now, &terms));
                effects.push(Effect::Adopt(terms));
            }
            (
                State::Up(_),
                message @ (FromCoordinator::WantKit { .. }
                | FromCoordinator::Standing { .. }
                | FromCoordinator::Resume { .. }
                | FromCoordinator::Credit { .. }
                | FromCoordinator::AssignGroup(_)
                | FromCoordinator::GroupRoster(_)
                | FromCoordinator::UnassignGroup { .. }
                | FromCoordinator::Assign(_)
                | FromCoordinator::Unassign(_)
                | FromCoordinator::RenewLeases(_)
                | FromCoordinator::Peers(_)
                | FromCoordinator::FetchModel(_)
                | FromCoordinator::Lend(_)
                | FromCoordinator::Cancel { .. }),
            ) => effects.push(Effect::Carry(message)),
            (_, message) => {
                self.misread(now, format!("a {} that should not come now", kind_of(&message)), effects);
            }
        }
    }

    fn misread(&mut self, now: Micros, detail: String, effects: &mut Vec<Effect>) {
        match &mut self.state {
            State::Greeting { .. } | State::Proving { .. } => {
                let detail = format!("what answers is no coordinator of this protocol: {detail}");
                self.lost(now, detail, None, effects);
            }
            State::Up(session) => {
                session.misread += 1;
                if session.misread > MISREAD_MAX {
                    let detail = format!(
                        "{} unreadable messages in one session ({MISREAD_MAX} are forgiven), the last: {detail}",
                        session.misread
                    );
                    self.lost(now, detail, None, effects);
                }
            }
            _ => {}
        }
    }

    fn refused(&mut self, now: Micros, refused: Refused, effects: &mut Vec<Effect>) {
        let ends = match refused.code {
            RefusalCode::BadToken
            | RefusalCode::BadProtocol
            | RefusalCode::BadIdentity
            | RefusalCode::Superseded => true,
            RefusalCode::BadMessage | RefusalCode::Unavailable | RefusalCode::Unknown => false,
        };
        effects.push(Effect::Tell(Event::Refused {
            code: refused.code,
            reason: clipped(&refused.reason),
            remedy: clipped(&refused.remedy),
            ends,
        }));
        if ends {
            effects.push(Effect::Drop);
            self.end(Ending::Refused(refused), effects);
        } else {
            let detail = format!("the coordinator refuses: {}", clipped(&refused.reason));
            self.lost(now, detail, None, effects);
        }
    }

    fn lost(&mut self, now: Micros, detail: String, told: Option<Micros>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Drop);
        if let State::Up(session) = &self.state {
            if session.drain_until.is_some() {
                self.end(Ending::Left, effects);
                return;
            }
            if now.saturating_sub(session.since) >= self.timing.healthy_after {
                self.failures = 0;
            }
        }
        let pause = told.unwrap_or_else(|| self.pause());
        effects.push(Effect::Tell(Event::Reconnecting { detail, pause: pause.into() }));
        self.state = State::Waiting { until: now.saturating_add(pause) };
    }

    /// Full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015): uniform between nothing and the
    /// ceiling, so that a fleet that lost its coordinator does not come back in one instant.
    fn pause(&mut self) -> Micros {
        let doubled = self.timing.pause_first.0.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        Micros(self.rng.below(doubled.min(self.timing.pause_max.0)))
    }

    fn leave(&mut self, now: Micros, why: String, effects: &mut Vec<Effect>) {
        self.farewell = why;
        match &mut self.state {
            State::Up(session) => {
                if session.drain_until.is_none() {
                    session.drain_until = Some(now.saturating_add(self.timing.drain_max));
                    effects.push(Effect::Say(FromProvider::Draining));
                }
            }
            State::Leaving { .. } | State::Ended => {}
            _ => {
                effects.push(Effect::Drop);
                self.end(Ending::Left, effects);
            }
        }
    }

    fn goodbye(&mut self, now: Micros, and: &str, effects: &mut Vec<Effect>) {
        let reason = format!("{}{and}", self.farewell);
        effects.push(Effect::Say(FromProvider::Goodbye { reason }));
        effects.push(Effect::Finish);
        self.state = State::Leaving { until: now.saturating_add(self.timing.goodbye_max) };
    }

    fn end(&mut self, ending: Ending, effects: &mut Vec<Effect>) {
        self.state = State::Ended;
        effects.push(Effect::End(ending));
    }

    fn tick(&mut self, now: Micros, effects: &mut Vec<Effect>) {
        let late = |until: &Micros| now >= *until;
        match &mut self.state {
            State::Fresh | State::Ended => {}
            State::Waiting { until } => {
                if late(until) {
                    self.connect(now, effects);
                }
            }
            State::Connecting { until } => {
                if late(until) {
                    let detail = format!("no connection within {}", seconds(self.timing.connect_max));
                    self.lost(now, detail, None, effects);
                }
            }
            State::Greeting { until } | State::Proving { until } => {
                if late(until) {
                    let detail = format!("no answer within {}", seconds(self.timing.handshake_max));
                    self.lost(now, detail, None, effects);
                }
            }
            State::Leaving { until } => {
                if late(until) {
                    effects.push(Effect::Drop);
                    self.end(Ending::Left, effects);
                }
            }
            State::Up(session) => {
                if now >= session.gone_at() {
                    let detail = format!("nothing heard for {}", seconds(session.silence_max));
                    self.lost(now, detail, None, effects);
                    return;
                }
                if now >= session.heartbeat_at {
                    effects.push(Effect::Heartbeat { sequence: session.sequence });
                    session.sequence += 1;
                    session.heartbeat_at = now.saturating_add(session.heartbeat);
                }
                if now >= session.ping_at {
                    effects.push(Effect::Ping);
                    session.ping_at = now.saturating_add(session.ping_every());
                }
                if session.drain_until.as_ref().is_some_and(late) {
                    effects.push(Effect::Abandon);
                    self.goodbye(now, " before everything was finished", effects);
                }
            }
        }
    }
}

impl Session {
    fn new(now: Micros, terms: &Terms) -> Self {
        let mut session = Self {
            since: now,
            heard: now,
            heartbeat_at: now.saturating_add(terms.heartbeat),
            ping_at: now,
            heartbeat: terms.heartbeat,
            silence_max: terms.silence_max,
            sequence: 0,
            misread: 0,
            drain_until: None,
        };
        session.ping_at = now.saturating_add(session.ping_every());
        session
    }

    /// A coordinator may have nothing to say for long; its WebSocket answers pings. Two may be lost.
    fn ping_every(&self) -> Micros {
        Micros(self.silence_max.0 / 3)
    }

    fn gone_at(&self) -> Micros {
        self.heard.saturating_add(self.silence_max)
    }
}

fn kind_of(message: &FromCoordinator) -> &'static str {
    match message {
        FromCoordinator::Challenge { .. } => "challenge",
        FromCoordinator::Welcome(_) => "welcome",
        FromCoordinator::Refused(_) => "refusal",
        FromCoordinator::WantKit { .. } => "wish for a kit",
        FromCoordinator::Standing { .. } => "standing",
        FromCoordinator::Resume { .. } => "resumption",
        FromCoordinator::Credit { .. } => "credit",
        FromCoordinator::Cancel { .. } => "cancellation",
        FromCoordinator::AssignGroup(_) | FromCoordinator::GroupRoster(_) => "group's assignment",
        FromCoordinator::Assign(_) => "assignment",
        FromCoordinator::FetchModel(_) | FromCoordinator::Lend(_) => "word about a model's files",
        FromCoordinator::UnassignGroup { .. } | FromCoordinator::Unassign(_) => "assignment's end",
        FromCoordinator::Goodbye { .. } => "goodbye",
        _ => "message of another type",
    }
}

/// A peer's words, short enough for a log line and without control characters that would garble a terminal.
pub(crate) fn clipped(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

fn seconds(span: Micros) -> String {
    format!("{} s", span.as_secs_f64())
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
