//! The attempts in flight: which engine computes each, so that it can be cancelled, and whether any is left.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base::AttemptId;
use engine::Engine;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::outbox::Outbox;

/// Cancellations that came before their attempt (control overtakes data) are remembered up to so many: more than
/// fit into the sockets' buffers between the two.
const EARLY_CANCELS_MAX: usize = 256;

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
}

/// An attempt in flight.
pub(crate) struct Flight {
    pub(crate) engine: Engine,
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
            // Either it ended already, or it has not come yet.
            if state.early_cancels.len() == EARLY_CANCELS_MAX {
                state.early_cancels.pop_front();
            }
            state.early_cancels.push_back(attempt);
            return;
        };
        let engine = flight.engine.clone();
        drop(state);
        engine.cancel(attempt);
    }

    /// Nobody waits for any of them: nothing more is sent, and no engine goes on.
    pub(crate) fn abandon(&self) -> usize {
        let mut state = self.state.lock();
        let flights = std::mem::take(&mut state.flights);
        state.early_cancels.clear();
        drop(state);
        for (attempt, flight) in &flights {
            flight.outbox.void();
            flight.engine.cancel(*attempt);
        }
        self.idle.notify_one();
        flights.len()
    }
}
