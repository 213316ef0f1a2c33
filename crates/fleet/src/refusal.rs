//! Why a request is not served: a closed list, each with the numbers a caller needs.

use std::fmt;

use base::{Micros, Tokens};

/// Why a request is not served. The HTTP status is decided by the coordinator, in one match over this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests wait as may.
    QueueFull {
        /// How many wait.
        queued: u32,
        /// How many may.
        queue_max: u32,
        /// When a place is predicted for this one.
        retry_after: Micros,
    },
    /// It would start after its deadline.
    PredictedLate {
        /// When it would start, from now.
        predicted: Micros,
        /// How long it may wait, from now.
        allowed: Micros,
        /// When the queue is predicted to be short enough for it.
        retry_after: Micros,
    },
    /// Its deadline passed while it waited.
    Expired {
        /// How long it waited.
        waited: Micros,
        /// When a place is predicted for this one.
        retry_after: Micros,
    },
    /// A deployment wants the model, and had no place for it until the request's deadline.
    Unplaced {
        /// How long it waited.
        waited: Micros,
        /// When to look again.
        retry_after: Micros,
    },
    /// Nothing serves the model, and nothing is about to.
    NoServingPath,
    /// It goes to its account's own machines alone, and none of them serves the model, or is about to.
    NoOwnMachine,
    /// Prompt and answer can never fit where the model is served.
    TooLong {
        /// Of the prompt.
        prompt: Tokens,
        /// Asked for.
        max_tokens: Tokens,
        /// The most that an instance of the model holds, prompt and answer together.
        limit: Tokens,
    },
    /// It failed everywhere it could be tried.
    AttemptsFailed {
        /// How many attempts failed.
        tried: u32,
    },
}

impl Refusal {
    /// Whether the same request may succeed later without anybody changing it.
    pub fn time_cures(&self) -> bool {
        self.retry_after().is_some()
    }

    /// When trying again is predicted to succeed, where time cures the refusal.
    pub fn retry_after(&self) -> Option<Micros> {
        match *self {
            Self::QueueFull { retry_after, .. }
            | Self::PredictedLate { retry_after, .. }
            | Self::Expired { retry_after, .. }
            | Self::Unplaced { retry_after, .. } => Some(retry_after),
            Self::NoServingPath | Self::NoOwnMachine | Self::TooLong { .. } | Self::AttemptsFailed { .. } => {
                None
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull { queued, queue_max, retry_after } => write!(
                f,
                "{queued} requests wait for this model and {queue_max} may; try again in {:.0} s",
                retry_after.as_secs_f64().ceil()
            ),
            Self::PredictedLate { predicted, allowed, retry_after } => write!(
                f,
                "the request would start in {:.1} s and may wait {:.1} s; try again in {:.0} s",
                predicted.as_secs_f64(),
                allowed.as_secs_f64(),
                retry_after.as_secs_f64().ceil()
            ),
            Self::Expired { waited, .. } => {
                write!(f, "the request's deadline passed after {:.1} s in the queue", waited.as_secs_f64())
            }
            Self::Unplaced { waited, .. } => write!(
                f,
                "a deployment wants this model, and no instance of it served within the {:.1} s that the request could wait; \
                 see `phalanx deploy status`",
                waited.as_secs_f64()
            ),
            Self::NoServingPath => f.write_str(
                "no machine serves this model now; start a provider with it, or see `phalanx status`",
            ),
            Self::NoOwnMachine => f.write_str(
                "the request goes to your account's own machines alone, and none of them serves this model now; join one \
                 with a key of the account that has the scope join, or ask without owner only",
            ),
            Self::TooLong { prompt, max_tokens, limit } => write!(
                f,
                "a prompt of {prompt} tokens and an answer of up to {max_tokens} do not fit in the {limit} tokens \
                 that this model holds where it is served; shorten the prompt or lower max_tokens"
            ),
            Self::AttemptsFailed { tried } => {
                write!(f, "{tried} attempts at the request failed and there is no other machine to try")
            }
        }
    }
}
