//! What requests ask for, refused ones included, as tokens a second; and what an instance gives.

use super::Predicted;

/// Each further request in a batch slows the others by this much (measured on one machine: 92.8, 69.5, 35.9, 29.6 tokens
/// a second for each at batch 1, 2, 4, 8).
const BATCH_SLOWS: f64 = 0.27;

/// What is asked of one deployment. All rates are over the same recent span.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Demand {
    /// Requests that were taken, a second.
    pub requests_per_s: f64,
    /// Requests that were refused for want of room, a second: they count as much.
    pub refused_per_s: f64,
    /// Tokens that a request generates.
    pub tokens_per_request: f64,
}

impl Demand {
    /// Tokens a second.
    pub fn tokens_per_s(&self) -> f64 {
        let rate = self.requests_per_s.max(0.0) + self.refused_per_s.max(0.0);
        let tokens = if self.tokens_per_request > 0.0 { self.tokens_per_request } else { 256.0 };
        let all = rate * tokens;
        if all.is_finite() { all } else { 0.0 }
    }
}

/// Tokens a second that an instance gives with its batch full.
pub(super) fn capacity(predicted: Predicted, batch: u32) -> f64 {
    let batch = f64::from(batch.max(1));
    predicted.decode_tokens_per_s * batch / (1.0 + BATCH_SLOWS * (batch - 1.0))
}
