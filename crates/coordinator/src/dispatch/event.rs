//! What a request says to its caller, and why it ends.

use store::Outcome;
use wire::chunk::{FinishReason, TokenLogprob};
use wire::openai::response::Usage;

use crate::problem::Problem;
use crate::segments::Timings;

/// What a request's caller is told, in this order: `Waiting` any number of times, `Started`, `Delta`s, and then
/// `Finished` and `Settled`, or at any point `Failed`, which is the last. What is large and said once is apart: a channel
/// has room for dozens of these from its first moment on, and each token's is moved several times.
pub(crate) enum Event {
    /// It has waited long, and waits still.
    Waiting,
    /// The first token came: from here on there is a status line.
    Started(Box<Timings>),
    /// More of the answer.
    Delta(Delta),
    /// The answer is whole.
    Finished(Finished),
    /// And settled: every segment is known.
    Settled(Box<Timings>),
    /// There will be no (more) answer.
    Failed(Box<Problem>),
}

/// More of an answer. Not `Debug`.
#[derive(Clone)]
pub(crate) struct Delta {
    /// How many tokens it has.
    pub(crate) tokens: u32,
    pub(crate) text: String,
    pub(crate) logprobs: Option<Vec<TokenLogprob>>,
    /// The vector of the prompt, where it is what is wanted.
    pub(crate) vector: Option<Vec<f32>>,
}

impl Delta {
    /// About what it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let logprobs = self.logprobs.iter().flatten();
        let entries =
            logprobs.map(|l| 64 + l.bytes.len() + l.top.iter().map(|t| 48 + t.1.len()).sum::<usize>());
        let vector = self.vector.as_ref().map_or(0, |vector| 4 * vector.len());
        std::mem::size_of::<Self>() + vector + self.text.len() + entries.sum::<usize>()
    }
}

/// How an answer ended.
#[derive(Clone)]
pub(crate) struct Finished {
    pub(crate) reason: FinishReason,
    /// The stop text that ended it, where one did.
    pub(crate) stop_text: Option<String>,
    pub(crate) usage: Usage,
    /// Every segment but the settlement, which no caller waits for.
    pub(crate) timings: Box<Timings>,
}

/// Why a request ends without its whole answer.
pub(crate) enum Stop {
    /// Its caller is told.
    Failed(Problem, Outcome),
    /// Its caller is gone.
    CallerGone,
}

impl Stop {
    pub(super) fn failed(problem: Problem) -> Self {
        let outcome = match &problem {
            Problem::Refused(_) | Problem::Constraint { .. } | Problem::Busy { .. } | Problem::Draining => {
                Outcome::Refused
            }
            Problem::Expired => Outcome::Expired,
            Problem::SlowReader { .. } => Outcome::Cancelled,
            _ => Outcome::Failed,
        };
        Self::Failed(problem, outcome)
    }
}

/// Why a wait ended before what it waited for.
pub(super) enum Interrupt {
    CallerGone,
    /// The coordinator ends.
    Ending,
    /// The whole time of the request is over.
    Expired,
    /// The limit of this wait is over.
    Limit,
}

impl Interrupt {
    /// As the request's end; `limit` says what the wait's own limit means.
    pub(super) fn stop(&self, limit: impl FnOnce() -> Stop) -> Stop {
        match self {
            Self::CallerGone => Stop::CallerGone,
            Self::Ending => Stop::failed(Problem::Draining),
            Self::Expired => Stop::failed(Problem::Expired),
            Self::Limit => limit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_token_is_moved_in_is_small() {
        assert!(size_of::<Event>() <= 128, "{} bytes", size_of::<Event>());
        assert!(size_of::<crate::uplink::attempts::FromMachine>() <= 64);
    }
}
