//! The attempts in flight: which engine computes each, so that it can be cancelled, and whether any is left.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{AttemptId, InstanceId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use wire::control::KeptAttempt;

use super::lane::Lane;
use super::outbox::Outbox;
use crate::host::Host;

/// Cancellations that came before their attempt (control overtakes data) are remembered up to so many: more than
/// fit into the sockets' buffers between the two.
const EARLY_CANCELS_MAX: usize = 256;

/// Ended attempts whose last word may have been lost with its connection are kept: so many, for so long.
const ENDED_MAX: usize = 512;
const ENDED_FOR: Duration = Duration::from_secs(60);

/// The attempts of a provider.
#[derive(Default)]
pub(crate) struct Table {
    state: Mutex<State>,
    idle: Notify,
}

#[derive(Default)]
struct State {
    flights: HashMap<AttemptId, Flight>,
    early_cancels: VecDeque<AttemptId>,
    ended: VecDeque<(Instant, AttemptId, Arc<Outbox>)>,
}

/// An attempt in flight.
pub(crate) struct Flight {
    /// Which instance computes it.
    pub(crate) instance: InstanceId,
    pub(crate) engine: Host,
    pub(crate) outbox: Arc<Outbox>,
}

/// What the table says about a new attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not known: go on.
    New,
    /// It is in flight already.
    Running,
    /// It was cancelled before it came.
    Cancelled,
}

impl Table {
    /// How many are in flight.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().flights.len()
    }

    /// How many of one instance are.
    pub(crate) fn of_instance(&self, instance: InstanceId) -> usize {
        self.state.lock().flights.values().filter(|flight| flight.instance == instance).count()
    }

    /// Returns once something ended, or has since the last call.
    pub(crate) async fn something_ended(&self) {
        self.idle.notified().await;
    }

    pub(crate) fn standing(&self, attempt: AttemptId) -> Standing {
        let mut state = self.state.lock();
        if state.flights.contains_key(&attempt) {
            return Standing::Running;
        }
        match state.early_cancels.iter().position(|early| *early == attempt) {
            Some(at) => {
                state.early_cancels.remove(at);
                Standing::Cancelled
            }
            None => Standing::New,
        }
    }

    pub(crate) fn insert(&self, attempt: AttemptId, flight: Flight) {
        self.state.lock().flights.insert(attempt, flight);
    }

    /// Its last word is on the way: it is kept a while, in case that gets lost.
    pub(crate) fn ended(&self, attempt: AttemptId) {
        let mut state = self.state.lock();
        let now = Instant::now();
        let old = |ended: &VecDeque<(Instant, AttemptId, Arc<Outbox>)>| {
            ended.len() >= ENDED_MAX || ended.front().is_some_and(|(at, ..)| now - *at > ENDED_FOR)
        };
        while old(&state.ended) {
            state.ended.pop_front();
        }
        let flight = state.flights.remove(&attempt);
        if let Some(flight) = &flight
            && flight.outbox.offer().is_some()
        {
            state.ended.push_back((now, attempt, Arc::clone(&flight.outbox)));
        }
        drop(state);
        drop(flight);
        self.idle.notify_one();
    }

    /// Its last word is on the way, or it was not taken.
    pub(crate) fn remove(&self, attempt: AttemptId) {
        let flight = self.state.lock().flights.remove(&attempt);
        drop(flight);
        self.idle.notify_one();
    }

    /// What it was paused for is over.
    pub(crate) fn room_again(&self, attempt: AttemptId) {
        let engine = self.state.lock().flights.get(&attempt).map(|flight| flight.engine.clone());
        if let Some(engine) = engine {
            engine.room_again();
        }
    }

    /// The coordinator does not want it any more. Its engine says the last word.
    pub(crate) fn cancel(&self, attempt: AttemptId) {
        let mut state = self.state.lock();
        let Some(flight) = state.flights.get(&attempt) else {
            if let Some(at) = state.ended.iter().position(|(_, ended, _)| *ended == attempt) {
                state.ended.remove(at);
                return;
            }
            // Either it ended already, or it has not come yet.
            if state.early_cancels.len() == EARLY_CANCELS_MAX {
                state.early_cancels.pop_front();
            }
            state.early_cancels.push_back(attempt);
            return;
        };
        let (engine, outbox) = (flight.engine.clone(), Arc::clone(&flight.outbox));
        drop(state);
        // Its last word must not wait for credit that nobody gives any more.
        outbox.grant(None);
        engine.cancel(attempt);
    }

    /// The connection is gone: attempts go on as far as their outboxes hold.
    pub(crate) fn detach(&self) -> usize {
        let state = self.state.lock();
        state.flights.values().for_each(|flight| flight.outbox.detach());
        state.flights.len()
    }

    /// Every attempt that can go on over another connection.
    pub(crate) fn kept(&self) -> Vec<KeptAttempt> {
        let state = self.state.lock();
        let running = state.flights.values().map(|flight| &flight.outbox);
        running.chain(state.ended.iter().map(|(.., outbox)| outbox)).filter_map(|o| o.offer()).collect()
    }

    /// Goes on with an attempt over `lane`; false where it cannot.
    pub(crate) fn resume(&self, attempt: AttemptId, lane: &Arc<Lane>, from: u64, until: Option<u64>) -> bool {
        let state = self.state.lock();
        let ended = || state.ended.iter().find(|(_, ended, _)| *ended == attempt).map(|(.., outbox)| outbox);
        let outbox = state.flights.get(&attempt).map(|flight| &flight.outbox).or_else(ended).cloned();
        drop(state);
        outbox.is_some_and(|outbox| outbox.resume(lane, from, until))
    }

    /// More of an attempt may be sent.
    pub(crate) fn grant(&self, attempt: AttemptId, until: u64) {
        let outbox = self.state.lock().flights.get(&attempt).map(|flight| Arc::clone(&flight.outbox));
        if let Some(outbox) = outbox {
            outbox.grant(Some(until));
        }
    }

    /// Nobody waits for any of them: nothing more is sent, and no engine goes on.
    pub(crate) fn abandon(&self) -> usize {
        let mut state = self.state.lock();
        let flights = std::mem::take(&mut state.flights);
        state.early_cancels.clear();
        state.ended.clear();
        drop(state);
        for (attempt, flight) in &flights {
            flight.outbox.void();
            flight.engine.cancel(*attempt);
        }
        self.idle.notify_one();
        flights.len()
    }
}
