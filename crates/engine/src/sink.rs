//! Where an answer goes, and why an attempt was not taken.

use base::ModelName;
use wire::chunk::Chunk;
use wire::control::AttemptRefusal;

/// Takes one attempt's answer. Called from the engine's thread, so nothing in it may block.
///
/// The end comes exactly once: either a chunk with a finish, or [`Sink::failed`]. Nothing comes after it, and the sink is
/// dropped.
pub trait Sink: Send {
    /// Whether another chunk can be taken. False pauses this attempt and no other. A chunk may still come: the one that
    /// was being computed, and the last one.
    fn room(&self) -> bool;
    /// The next chunk.
    fn deliver(&mut self, chunk: Chunk);
    /// The attempt ends without a finish. `message` holds nothing of prompt or answer.
    fn failed(&mut self, message: &str);
    /// The attempt is not taken after all: what could only be seen after [`crate::Engine::submit`] had returned speaks
    /// against it. Nothing of it was computed. Comes instead of any other end.
    fn refused(&mut self, refusal: &Refusal) {
        self.failed(&refusal.to_string());
    }
}

/// Why an attempt was not taken. Nothing was computed, and its sink was dropped unused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is meant for another model.
    #[error("this engine serves {serves}, not {asked}")]
    WrongModel {
        /// What was asked for.
        asked: ModelName,
        /// What is here.
        serves: ModelName,
    },
    /// It asks for what the model does not give.
    #[error("{serves} gives {gives}")]
    OtherKind {
        /// What is here.
        serves: ModelName,
        /// In words.
        gives: &'static str,
    },
    /// Every place is taken.
    #[error("{running} requests run and {waiting} wait, which is all there is place for")]
    NoSlot {
        /// Requests that are computed.
        running: u32,
        /// Requests that wait.
        waiting: u32,
    },
    /// The KV cache is full.
    #[error("the prompt takes {needed} tokens of KV cache and {free} are free now")]
    NoKvRoom {
        /// Tokens it takes.
        needed: u64,
        /// Tokens that are free.
        free: u64,
    },
    /// It can never fit.
    #[error(
        "prompt and answer so far are {tokens} tokens; the context of {context} has no room for one more"
    )]
    TooLong {
        /// Tokens there are.
        tokens: u64,
        /// The longest context here.
        context: u32,
    },
    /// The engine is going, or has broken down.
    #[error("the engine is not ready: {detail}")]
    NotReady {
        /// In words.
        detail: String,
    },
    /// The form that it asks of its answer is not one, or too complex.
    #[error("the answer cannot be constrained like this: {detail}")]
    BadConstraint {
        /// Why: words about the caller's own schema or grammar.
        detail: String,
    },
    /// It makes no sense.
    #[error("{detail}")]
    Unreadable {
        /// What, without anything of the prompt.
        detail: String,
    },
}

impl Refusal {
    /// What travels to the coordinator.
    pub fn reason(&self) -> AttemptRefusal {
        match self {
            Self::WrongModel { .. } | Self::OtherKind { .. } => AttemptRefusal::WrongModel,
            Self::NoSlot { .. } => AttemptRefusal::NoSlot,
            Self::NoKvRoom { .. } => AttemptRefusal::NoKvRoom,
            Self::TooLong { .. } => AttemptRefusal::TooLong,
            Self::NotReady { .. } => AttemptRefusal::NotReady,
            Self::Unreadable { .. } => AttemptRefusal::Unreadable,
            Self::BadConstraint { .. } => AttemptRefusal::BadConstraint,
        }
    }
}
