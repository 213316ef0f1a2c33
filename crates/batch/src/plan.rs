//! What passes between a batch and whoever computes it.

use base::{AttemptId, Micros};

use crate::guess::Guessing;

/// What to compute in one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Runs of tokens, at most one for each sequence; the first [`Plan::decoding`] of them are single tokens of
    /// sequences that decode, with the guesses behind them.
    pub spans: Vec<Span>,
    /// How many of the spans decode.
    pub decoding: usize,
    /// Tokens in all spans together.
    pub tokens: usize,
    /// How many of these are guesses.
    pub guesses: usize,
    /// Pages to overwrite before anything is computed: those that this step is the first to write, and some that nobody
    /// waits for.
    pub wipe: Vec<u32>,
    /// Sequences that ended without a step, because their time was over.
    pub ended: Vec<Ended>,
    /// Some sequence is skipped because its reader has no room: ask again soon, even when there is nothing to do.
    pub paused: bool,
    /// When something will end by itself if no step comes first.
    pub next_deadline: Option<Micros>,
}

/// Tokens of one sequence that are computed in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub attempt: AttemptId,
    /// Position of the first.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// Whether the span reaches the end of what is known, so that a token is drawn from its last row.
    pub draws: bool,
    /// How many of its last tokens are guesses at what will be drawn. A span with guesses draws, and from the row before
    /// each of them as well, as long as they turn out right.
    pub guesses: usize,
    pub(crate) order: u64,
}

/// How the next step is to be divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Prefill tokens at most in a step that decodes too, so that a long prompt does not stall running streams. None holds
    /// prompts back: not in every step, or they never get on.
    pub prefill_beside_decode: usize,
    /// How far to guess ahead.
    pub guessing: Guessing,
}

impl Pace {
    /// So much prefill beside decode, and no guesses.
    pub fn prefill(beside_decode: usize) -> Self {
        Self { prefill_beside_decode: beside_decode, guessing: Guessing::default() }
    }
}

/// What came of a span that draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// How many of its guesses were drawn, one after the other, before what follows. 0 where it has none.
    pub accepted: usize,
    /// What was drawn last.
    pub drawn: Drawn,
}

impl From<Drawn> for Draw {
    fn from(drawn: Drawn) -> Self {
        Self { accepted: 0, drawn }
    }
}

/// What was drawn from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// The next token.
    Token(u32),
    /// The next token, and the answer ends with it.
    Last(u32),
    /// A token that only says that the answer has ended: it does not belong to the answer.
    Stop,
}

impl Drawn {
    /// The token that belongs to the answer, if there is one.
    pub fn token(self) -> Option<u32> {
        match self {
            Self::Token(token) | Self::Last(token) => Some(token),
            Self::Stop => None,
        }
    }
}

/// A sequence's terminal: it comes exactly once for each one that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Whose.
    pub attempt: AttemptId,
    /// Why.
    pub cause: Cause,
    /// What it took.
    pub account: Account,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The engine said so.
    Stop,
    /// It has as many tokens as it may.
    Length,
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed, or its reader took nothing for too long.
    Expired,
}

/// What a sequence took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, how many were found in cache.
    pub cached_tokens: u32,
    /// Tokens of the answer, those of earlier attempts included.
    pub generated_tokens: u32,
    /// From arrival to the first step that computed any of it.
    pub queue: Micros,
    /// From there to the first token drawn.
    pub prefill: Micros,
    /// From there to the last.
    pub decode: Micros,
    /// How often it lost its pages and was computed again.
    pub preemptions: u32,
}
