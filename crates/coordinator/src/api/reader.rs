//! Telling text, reasoning and calls apart in what a model writes.

use model::kit::OpenKit;
use wire::request::Chat;

use super::answer::Part;

/// How the answers of a call are read.
pub(super) enum Reading {
    /// All of it is text.
    Plain,
}

impl Reading {
    pub(super) fn of_chat(_kit: &OpenKit, _chat: &Chat) -> Self {
        Self::Plain
    }
}

/// Reads one answer.
pub(super) struct Reader {
    calls: usize,
    reasoning_tokens: u32,
}

impl Reader {
    pub(super) fn new(_reading: &Reading) -> Self {
        Self { calls: 0, reasoning_tokens: 0 }
    }

    /// More text, of so many tokens.
    pub(super) fn push(&mut self, text: &str, _tokens: u32) -> Vec<Part> {
        if text.is_empty() { Vec::new() } else { vec![Part::Content(text.to_owned())] }
    }

    /// There is no more.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        Vec::new()
    }

    /// Whether there was a call.
    pub(super) fn called(&self) -> bool {
        self.calls > 0
    }

    pub(super) fn reasoning_tokens(&self) -> u32 {
        self.reasoning_tokens
    }
}
