//! What a group stands on: whole messages between pairs of ranks, in order, or an error that names who is to blame.

use std::time::Duration;

use crate::fault::{Cause, Fault};

/// Carries messages between the ranks of one group.
///
/// Messages from one rank to one other arrive whole, once and in the order in which they were sent, or the transport
/// fails for good. A `send` may not wait for its receiver to call `receive` while that one is itself sending: where the
/// way is full, the implementation takes in what arrives meanwhile.
pub trait Transport: Send {
    /// This side's place, below [`Transport::ranks`].
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// Hands `message` to the way to rank `to`, waiting at most `patience` for room.
    ///
    /// # Errors
    /// The way is closed or stays full; who is to blame may be another rank than `to`, where the transport knows better.
    fn send(&mut self, to: usize, message: &[u8], patience: Duration) -> Result<(), TransportError>;

    /// Puts the next message from rank `from` into `into` (its former contents are dropped), waiting at most `patience`.
    ///
    /// # Errors
    /// Nothing came in time ([`Cause::Late`], after which the next call may go on), or the way is closed.
    fn receive(&mut self, from: usize, into: &mut Vec<u8>, patience: Duration) -> Result<(), TransportError>;

    /// Tells the other ranks, as well as it can be done at once, that the group is over.
    fn poison(&mut self, fault: &Fault);

    /// What has gone over it so far.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// Why a message did not go or come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{cause}", .culprit.map_or_else(String::new, |rank| format!("rank {rank}: ")))]
pub struct TransportError {
    /// Who is to blame, as far as the transport knows.
    pub culprit: Option<usize>,
    /// What happened.
    pub cause: Cause,
}

impl From<TransportError> for Fault {
    fn from(error: TransportError) -> Self {
        Self { culprit: error.culprit, cause: error.cause, operation: 0 }
    }
}

impl From<Fault> for TransportError {
    fn from(fault: Fault) -> Self {
        Self { culprit: fault.culprit, cause: fault.cause }
    }
}

/// What a rank has sent, received and waited for, since its group formed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages to other ranks.
    pub messages_sent: u64,
    /// Their bytes, headers included, seals not.
    pub bytes_sent: u64,
    /// Messages from other ranks.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Spent sealing and opening, in nanoseconds.
    pub seal_ns: u64,
    /// Spent in the operating system's send and receive calls, in nanoseconds.
    pub wire_ns: u64,
    /// Spent waiting for others, in nanoseconds.
    pub wait_ns: u64,
}
