//! Tokens of prompts and answers, wiped when they are let go.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::hint::black_box;

/// Tokens that are overwritten before their memory is given back. Not `Debug`: they are somebody's text. Behind them there
/// may be guesses at what comes next, which count only for [`PrivateTokens::with_guesses`].
pub(crate) struct PrivateTokens {
    tokens: Vec<u32>,
    known: usize,
}

// As the slice that it is found by.
impl Hash for PrivateTokens {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl PartialEq for PrivateTokens {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for PrivateTokens {}

impl PrivateTokens {
    /// Takes `tokens` over, with room for `capacity` in all, so that growing leaves no copy behind.
    pub(crate) fn new(mut tokens: Vec<u32>, capacity: usize) -> Self {
        let known = tokens.len();
        if tokens.capacity() >= capacity {
            return Self { tokens, known };
        }
        let mut roomy = Vec::with_capacity(capacity);
        roomy.extend_from_slice(&tokens);
        wipe(&mut tokens);
        Self { tokens: roomy, known }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.tokens[..self.known]
    }

    /// The tokens, and the guesses behind them.
    pub(crate) fn with_guesses(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn guesses(&self) -> &[u32] {
        &self.tokens[self.known..]
    }

    pub(crate) fn len(&self) -> usize {
        self.known
    }

    /// Adds a token; guesses are gone then.
    pub(crate) fn push(&mut self, token: u32) {
        self.drop_guesses();
        assert!(self.known < self.tokens.capacity(), "a sequence outgrew the length it was admitted for");
        self.tokens.push(token);
        self.known += 1;
    }

    /// Guesses that come what came from position `from` on: `most` tokens at most, and as many as there is room for.
    pub(crate) fn guess_from(&mut self, from: usize, most: usize) {
        assert!(from < self.known, "a guess needs something to repeat");
        let count = most.min(self.tokens.capacity() - self.tokens.len());
        for at in from..from + count {
            self.tokens.push(self.tokens[at]);
        }
    }

    /// The first `count` guesses were right: they are tokens now.
    pub(crate) fn accept(&mut self, count: usize) {
        assert!(count <= self.guesses().len(), "more guesses were right than there are");
        self.known += count;
    }

    pub(crate) fn drop_guesses(&mut self) {
        wipe(&mut self.tokens[self.known..]);
        self.tokens.truncate(self.known);
    }
}

impl Borrow<[u32]> for PrivateTokens {
    fn borrow(&self) -> &[u32] {
        self.as_slice()
    }
}

impl Drop for PrivateTokens {
    fn drop(&mut self) {
        wipe(&mut self.tokens);
    }
}

/// Overwrites `tokens`; `black_box` keeps the optimiser from dropping stores to memory that is freed next.
fn wipe(tokens: &mut [u32]) {
    tokens.fill(0);
    black_box(tokens);
}
