//! Why a group is over: who is to blame, for what, and where in the conversation.

use std::sync::Arc;
use std::time::Duration;

/// What went wrong between two ranks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The connection ended without a goodbye: the process died, or the machine.
    #[error("its connection closed without a goodbye")]
    Closed,
    /// It left of its own will.
    #[error("it left: {0}")]
    Left(Arc<str>),
    /// Nothing came in time: frozen, cut off, or far too slow.
    #[error("nothing came from it within {} ms", .0.as_millis())]
    Late(Duration),
    /// It took nothing in time.
    #[error("it took nothing within {} ms", .0.as_millis())]
    Stuck(Duration),
    /// What came cannot be read.
    #[error("it sent what cannot be read: {0}")]
    Malformed(Arc<str>),
    /// What came was not what was due.
    #[error("{what} should be {expected}, and it sent {got}")]
    Disagrees {
        /// Which field.
        what: &'static str,
        /// What was due.
        expected: String,
        /// What came.
        got: String,
    },
    /// The group was ended from outside: an un-assignment, a shut-down, a computation that failed.
    #[error("{0}")]
    Ended(Arc<str>),
    /// As another rank told it.
    #[error("{0}")]
    Told(Arc<str>),
}

/// The end of a group. The first one that a rank meets stays: every later call returns it at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{cause}{}", who(.culprit), at(.operation))]
pub struct Fault {
    /// Who is to blame; `None` where no rank is (the group was told to end).
    pub culprit: Option<usize>,
    /// What happened.
    pub cause: Cause,
    /// In which operation of this rank it was met, counted from 1; 0: between operations.
    pub operation: u64,
}

impl Fault {
    /// `culprit` is to blame for `cause`.
    pub fn of(culprit: usize, cause: Cause) -> Self {
        Self { culprit: Some(culprit), cause, operation: 0 }
    }

    /// The group ends, and no rank is to blame.
    pub fn ended(why: impl Into<Arc<str>>) -> Self {
        Self { culprit: None, cause: Cause::Ended(why.into()), operation: 0 }
    }
}

fn who(culprit: &Option<usize>) -> String {
    culprit.map_or_else(String::new, |rank| format!("rank {rank}: "))
}

fn at(operation: &u64) -> String {
    if *operation == 0 { String::new() } else { format!(" (operation {operation})") }
}
