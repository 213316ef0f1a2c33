//! Tokens of prompts and answers, wiped when they are let go.

use std::borrow::Borrow;
use std::hint::black_box;

/// Tokens that are overwritten before their memory is given back. Not `Debug`: they are somebody's text.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PrivateTokens(Vec<u32>);

impl PrivateTokens {
    /// Takes `tokens` over, with room for `capacity` in all, so that growing leaves no copy behind.
    pub(crate) fn new(mut tokens: Vec<u32>, capacity: usize) -> Self {
        if tokens.capacity() >= capacity {
            return Self(tokens);
        }
        let mut roomy = Vec::with_capacity(capacity);
        roomy.extend_from_slice(&tokens);
        wipe(&mut tokens);
        Self(roomy)
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn push(&mut self, token: u32) {
        assert!(self.0.len() < self.0.capacity(), "a sequence outgrew the length it was admitted for");
        self.0.push(token);
    }
}

impl Borrow<[u32]> for PrivateTokens {
    fn borrow(&self) -> &[u32] {
        &self.0
    }
}

impl Drop for PrivateTokens {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites `tokens`; `black_box` keeps the optimiser from dropping stores to memory that is freed next.
fn wipe(tokens: &mut [u32]) {
    tokens.fill(0);
    black_box(tokens);
}
