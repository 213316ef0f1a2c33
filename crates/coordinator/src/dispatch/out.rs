//! Where a request's events go: straight to its caller, or onto a tape that its callers read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Event;
use crate::streams::tape::Tape;

/// The way to whoever reads a request.
pub(super) enum Out {
    /// One reader; when it is gone, the request is.
    Caller(mpsc::Sender<Event>),
    /// Any number of readers, and none for as long as `patience`.
    Tape { tape: Arc<Tape>, patience: Option<Duration> },
}

/// Why an event did not get there.
pub(super) enum Unsent {
    /// Nobody is there.
    Gone,
    /// Nothing was read for too long.
    Slow,
    /// The answer is too large to be kept.
    Full,
}

impl Out {
    /// Returns once nobody wants the answer any more.
    pub(super) async fn closed(&self) {
        match self {
            Self::Caller(to) => to.closed().await,
            Self::Tape { tape, patience } => tape.left(*patience).await,
        }
    }

    /// Says that it waits still. Whoever has enough to read is not told; a tape's readers are told by the tape.
    pub(super) fn waiting(&self) {
        if let Self::Caller(to) = self {
            let _ = to.try_send(Event::Waiting);
        }
    }

    /// Brings an event there within `limit`.
    pub(super) async fn send(&self, event: Event, limit: Duration) -> Result<(), Unsent> {
        let to = match self {
            Self::Caller(to) => to,
            Self::Tape { tape, .. } if tape.cancelled.is_cancelled() => return Err(Unsent::Gone),
            Self::Tape { tape, .. } => {
                return if tape.record(event) { Ok(()) } else { Err(Unsent::Full) };
            }
        };
        let event = match to.try_send(event) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Unsent::Gone),
            Err(mpsc::error::TrySendError::Full(event)) => event,
        };
        match tokio::time::timeout(limit, to.send(event)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unsent::Gone),
            Err(_) => Err(Unsent::Slow),
        }
    }

    /// Tells the end, whatever was said before: whoever does not read its own error loses it.
    pub(super) async fn fail(&self, event: Event, limit: Duration) {
        match self {
            Self::Caller(to) => drop(tokio::time::timeout(limit, to.send(event)).await),
            Self::Tape { tape, .. } => drop(tape.record(event)),
        }
    }
}
