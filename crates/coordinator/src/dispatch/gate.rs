//! What every chunk must pass before any of it is believed: it opens, it is the next one, it stays within bounds.

use trust::ResponseOpener;
use wire::chunk::{Chunk, Finish, FinishReason};

/// Why an answer is not believed any more. The names are a metric's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// Sealed to another key or place, or changed; or out of order.
    #[error("does_not_open")]
    DoesNotOpen,
    /// Opened, and not a chunk.
    #[error("unreadable")]
    Unreadable,
    /// Tokens that were delivered before, or that leave some out.
    #[error("wrong_index")]
    WrongIndex,
    /// More tokens than were asked for.
    #[error("too_many_tokens")]
    TooManyTokens,
    /// A token that the model does not have.
    #[error("unknown_token")]
    UnknownToken,
    /// Log-probabilities were asked for and are missing.
    #[error("no_logprobs")]
    NoLogprobs,
    /// A vector that was not asked for, or none, or one of another length, where one was.
    #[error("wrong_vector")]
    WrongVector,
    /// Neither tokens nor text nor an end.
    #[error("empty")]
    Empty,
}

impl Violation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::DoesNotOpen => "does_not_open",
            Self::Unreadable => "unreadable",
            Self::WrongIndex => "wrong_index",
            Self::TooManyTokens => "too_many_tokens",
            Self::UnknownToken => "unknown_token",
            Self::NoLogprobs => "no_logprobs",
            Self::WrongVector => "wrong_vector",
            Self::Empty => "empty",
        }
    }
}

/// The bounds of one attempt's answer.
pub(super) struct Gate {
    pub(super) opener: ResponseOpener,
    /// Tokens that the answer may have in all.
    pub(super) max_tokens: u32,
    /// Tokens that there are.
    pub(super) vocabulary: u32,
    /// Whether log-probabilities were asked for.
    pub(super) logprobs: bool,
    /// How many numbers its vector must have, where one was asked for.
    pub(super) dimensions: Option<usize>,
}

impl Gate {
    /// Opens a chunk after `delivered` tokens.
    pub(super) fn pass(&mut self, counter: u64, payload: &[u8], delivered: u32) -> Result<Chunk, Violation> {
        let plain = self.opener.open(counter, payload).map_err(|_| Violation::DoesNotOpen)?;
        let chunk = Chunk::decode(&plain).map_err(|_| Violation::Unreadable)?;
        if chunk.tokens.is_empty() && chunk.text.is_empty() && chunk.finish.is_none() {
            return Err(Violation::Empty);
        }
        if chunk.first_index != delivered {
            return Err(Violation::WrongIndex);
        }
        if chunk.tokens.len() as u64 + u64::from(delivered) > u64::from(self.max_tokens) {
            return Err(Violation::TooManyTokens);
        }
        if chunk.tokens.iter().any(|token| *token >= self.vocabulary) {
            return Err(Violation::UnknownToken);
        }
        let answers = |finish: &Finish| matches!(finish.reason, FinishReason::Stop | FinishReason::Length);
        let right = match (self.dimensions, &chunk.vector) {
            (None, vector) => vector.is_none(),
            // It comes whole, with the end; an end that is no answer has none.
            (Some(length), Some(vector)) => {
                vector.len() == length && chunk.finish.as_ref().is_some_and(answers)
            }
            (Some(_), None) => chunk.finish.as_ref().is_some_and(|finish| !answers(finish)),
        };
        if !right {
            return Err(Violation::WrongVector);
        }
        if self.logprobs && !chunk.tokens.is_empty() && chunk.logprobs.is_none() {
            return Err(Violation::NoLogprobs);
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::AttemptId;
    use trust::{MachineKeys, ResponseSealer, open_attempt, seal_attempt};

    fn pair() -> (ResponseSealer, Gate) {
        let keys = MachineKeys::generate();
        let attempt = AttemptId(7);
        let (sealed, opener) = seal_attempt(&keys.sealing_key(), attempt, b"job").unwrap();
        let (_, sealer) = open_attempt(&keys, attempt, &sealed.encapsulated, &sealed.ciphertext).unwrap();
        (sealer, Gate { opener, max_tokens: 4, vocabulary: 100, logprobs: false, dimensions: None })
    }

    fn chunk(first_index: u32, tokens: &[u32]) -> Chunk {
        Chunk {
            first_index,
            tokens: tokens.to_vec(),
            text: "x".to_owned(),
            logprobs: None,
            finish: None,
            vector: None,
        }
    }

    fn pass(
        sealer: &mut ResponseSealer,
        gate: &mut Gate,
        chunk: &Chunk,
        delivered: u32,
    ) -> Option<Violation> {
        let (counter, payload) = sealer.seal(&chunk.encode());
        gate.pass(counter, &payload, delivered).err()
    }

    #[test]
    fn chunks_pass_in_order_and_within_bounds() {
        let (mut sealer, mut gate) = pair();
        assert_eq!(pass(&mut sealer, &mut gate, &chunk(0, &[1, 2]), 0), None);
        assert_eq!(pass(&mut sealer, &mut gate, &chunk(2, &[3]), 2), None);
        assert_eq!(pass(&mut sealer, &mut gate, &chunk(3, &[4, 5]), 3), Some(Violation::TooManyTokens));
    }

    #[test]
    fn a_repeated_skipped_changed_or_foreign_chunk_does_not_pass() {
        let (mut sealer, mut gate) = pair();
        let (_, first) = sealer.seal(&chunk(0, &[1]).encode());
        let (counter, second) = sealer.seal(&chunk(1, &[2]).encode());
        assert_eq!(gate.pass(counter, &second, 0).err(), Some(Violation::DoesNotOpen));
        assert_eq!(gate.pass(0, &first, 0).err(), Some(Violation::DoesNotOpen), "nothing after a bad chunk");
        let (mut sealer, mut gate) = pair();
        let (counter, mut payload) = sealer.seal(&chunk(0, &[1]).encode());
        payload[3] ^= 1;
        assert_eq!(gate.pass(counter, &payload, 0).err(), Some(Violation::DoesNotOpen));
        let (mut other, _) = pair();
        let (_, mut gate) = pair();
        let (counter, payload) = other.seal(&chunk(0, &[1]).encode());
        assert_eq!(gate.pass(counter, &payload, 0).err(), Some(Violation::DoesNotOpen));
    }

    #[test]
    fn indices_tokens_and_emptiness_are_checked() {
        let cases = [
            (chunk(1, &[1]), 0, Violation::WrongIndex),
            (chunk(0, &[1]), 1, Violation::WrongIndex),
            (chunk(0, &[100]), 0, Violation::UnknownToken),
            (Chunk::default(), 0, Violation::Empty),
        ];
        for (bad, delivered, violation) in cases {
            let (mut sealer, mut gate) = pair();
            assert_eq!(pass(&mut sealer, &mut gate, &bad, delivered), Some(violation));
        }
        let (mut sealer, mut gate) = pair();
        gate.logprobs = true;
        assert_eq!(pass(&mut sealer, &mut gate, &chunk(0, &[1]), 0), Some(Violation::NoLogprobs));
        let (mut sealer, mut gate) = pair();
        let finish = Finish {
            reason: wire::chunk::FinishReason::Stop,
            prompt_tokens: 1,
            cached_tokens: 0,
            generated_tokens: 0,
            queue_us: 0,
            prefill_us: 0,
            decode_us: 0,
            stop_text: None,
            usage_signature: None,
        };
        let end = Chunk { finish: Some(finish), ..Chunk::default() };
        assert_eq!(pass(&mut sealer, &mut gate, &end, 0), None);
        let vector = |length: usize| Chunk { vector: Some(vec![0.5; length]), ..end.clone() };
        let early = Chunk { finish: None, text: "x".to_owned(), ..vector(3) };
        let lost = end.finish.clone().map(|finish| Finish { reason: FinishReason::Expired, ..finish });
        let expired = Chunk { finish: lost, ..Chunk::default() };
        let cases = [
            (None, vector(3), Some(Violation::WrongVector)),
            (Some(3), vector(3), None),
            (Some(3), vector(2), Some(Violation::WrongVector)),
            (Some(3), end.clone(), Some(Violation::WrongVector)),
            (Some(3), early, Some(Violation::WrongVector)),
            (Some(3), expired, None),
        ];
        for (dimensions, chunk, violation) in cases {
            let (mut sealer, gate) = pair();
            let mut gate = Gate { dimensions, ..gate };
            assert_eq!(pass(&mut sealer, &mut gate, &chunk, 0), violation);
        }
    }
}
