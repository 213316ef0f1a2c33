//! The attempts that run on one connection: which request each frame goes to, and what came too late.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use base::AttemptId;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use wire::control::AttemptRefusal;

/// Ended attempts that are remembered, to tell a late frame from a senseless one. A frame that was on its way when
/// its attempt was cancelled comes within a round trip: far fewer than this end in one.
const RECENT_MAX: usize = 4096;

/// What a machine says about an attempt.
pub(crate) enum FromMachine {
    /// A sealed chunk.
    Chunk {
        /// What its frame's header says.
        counter: u64,
        /// Still sealed.
        payload: Bytes,
    },
    /// Not taken, and why in words that the caller may be told.
    Refused(AttemptRefusal, String),
    /// Taken, and ended without a final chunk.
    Failed,
}

/// How an attempt ended on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its final chunk came, or it was refused or failed: nothing more may come.
    Terminal,
    /// It was given up: what was on its way may still come.
    GivenUp,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is on its way to its request.
    Taken,
    /// Its attempt was given up a moment ago: nothing is wrong.
    Late,
    /// Its client has not read for so long that there is no room: the answer was ended.
    Overflow,
    /// Its attempt had ended.
    AfterTerminal,
    /// No attempt of this connection.
    Foreign,
}

/// What both ends of an attempt look at.
#[derive(Default)]
pub(crate) struct Shared {
    /// When its frame was written to the socket.
    pub(crate) written: OnceLock<Instant>,
    overflowed: AtomicBool,
}

/// A request's end of an attempt.
pub(crate) struct Receiving {
    pub(crate) from: mpsc::Receiver<FromMachine>,
    pub(crate) shared: Arc<Shared>,
}

impl Receiving {
    /// Whether the answer was ended since its client did not read.
    pub(crate) fn overflowed(&self) -> bool {
        self.shared.overflowed.load(Ordering::Acquire)
    }
}

struct Sending {
    to: mpsc::Sender<FromMachine>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Table {
    open: HashMap<AttemptId, Sending>,
    recent: HashMap<AttemptId, Ended>,
    recent_order: VecDeque<AttemptId>,
    closed: bool,
}

impl Table {
    fn remember(&mut self, attempt: AttemptId, ended: Ended) {
        if self.recent.insert(attempt, ended).is_none() {
            self.recent_order.push_back(attempt);
        }
        if self.recent_order.len() > RECENT_MAX
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
    }
}

/// The attempts of one connection.
#[derive(Default)]
pub(crate) struct Attempts {
    table: Mutex<Table>,
}

impl Attempts {
    /// Opens one, with room for `capacity` chunks that wait for their client. Nothing where the connection is gone.
    pub(crate) fn open(&self, attempt: AttemptId, capacity: usize) -> Option<Receiving> {
        let mut table = self.table.lock();
        if table.closed {
            return None;
        }
        let (to, from) = mpsc::channel(capacity);
        let shared = Arc::new(Shared::default());
        table.open.insert(attempt, Sending { to, shared: Arc::clone(&shared) });
        Some(Receiving { from, shared })
    }

    /// Brings what a machine said to the request that it is about. Never waits: one slow client must not hold up
    /// the others of its machine.
    pub(crate) fn deliver(&self, attempt: AttemptId, what: FromMachine) -> Delivery {
        let mut table = self.table.lock();
        let Some(sending) = table.open.get(&attempt) else {
            return match table.recent.get(&attempt) {
                Some(Ended::GivenUp) => Delivery::Late,
                Some(Ended::Terminal) => Delivery::AfterTerminal,
                None => Delivery::Foreign,
            };
        };
        match sending.to.try_send(what) {
            Ok(()) => Delivery::Taken,
            Err(mpsc::error::TrySendError::Closed(_)) => Delivery::Late,
            Err(mpsc::error::TrySendError::Full(_)) => {
                sending.shared.overflowed.store(true, Ordering::Release);
                table.open.remove(&attempt);
                table.remember(attempt, Ended::GivenUp);
                Delivery::Overflow
            }
        }
    }

    /// Closes one. Says whether it was still open on a living connection.
    pub(crate) fn end(&self, attempt: AttemptId, ended: Ended) -> bool {
        let mut table = self.table.lock();
        let open = table.open.remove(&attempt).is_some();
        if open {
            table.remember(attempt, ended);
        }
        open && !table.closed
    }

    /// The connection is gone: every request sees its channel end.
    pub(crate) fn close(&self) {
        let mut table = self.table.lock();
        table.closed = true;
        table.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> FromMachine {
        FromMachine::Chunk { counter: 0, payload: Bytes::new() }
    }

    #[test]
    fn a_frame_is_late_after_a_cancel_and_senseless_after_a_terminal_or_from_nowhere() {
        let attempts = Attempts::default();
        let receiving = attempts.open(AttemptId(1), 2);
        assert_eq!(attempts.deliver(AttemptId(1), chunk()), Delivery::Taken);
        assert!(attempts.end(AttemptId(1), Ended::GivenUp));
        assert_eq!(attempts.deliver(AttemptId(1), chunk()), Delivery::Late);
        let _second = attempts.open(AttemptId(2), 2);
        attempts.end(AttemptId(2), Ended::Terminal);
        assert_eq!(attempts.deliver(AttemptId(2), chunk()), Delivery::AfterTerminal);
        assert_eq!(attempts.deliver(AttemptId(3), chunk()), Delivery::Foreign);
        assert!(receiving.is_some());
    }

    #[test]
    fn an_answer_that_nobody_reads_ends_alone_and_says_so() {
        let attempts = Attempts::default();
        let mut slow = attempts.open(AttemptId(1), 1).expect("the connection is open");
        let mut other = attempts.open(AttemptId(2), 1).expect("the connection is open");
        assert_eq!(attempts.deliver(AttemptId(1), chunk()), Delivery::Taken);
        assert_eq!(attempts.deliver(AttemptId(1), chunk()), Delivery::Overflow);
        assert_eq!(attempts.deliver(AttemptId(2), chunk()), Delivery::Taken);
        assert!(slow.from.try_recv().is_ok() && slow.overflowed());
        assert!(matches!(slow.from.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert!(other.from.try_recv().is_ok() && !other.overflowed());
    }

    #[test]
    fn a_lost_connection_ends_every_attempt_and_takes_no_new_one() {
        let attempts = Attempts::default();
        let mut receiving = attempts.open(AttemptId(1), 1).expect("the connection is open");
        attempts.close();
        assert!(matches!(receiving.from.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert!(!receiving.overflowed());
        assert!(attempts.open(AttemptId(2), 1).is_none());
    }
}
