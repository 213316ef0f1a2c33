//! Model kits on their way in: pieces joined, checked against their hash, opened away from the async threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::MachineId;
use model::kit::{Kit, OpenKit};
use parking_lot::Mutex;

/// Kits that are kept though nothing serves their model now, so that a machine that comes back is routable at once.
const IDLE_KITS_MAX: usize = 64;

/// After so long without a whole kit another machine is asked. A kit of 64 MB takes 5 s at 100 Mbit/s.
const ASKED_FOR: Duration = Duration::from_secs(60);

/// What is known of a kit.
enum State {
    /// A machine was asked for it, then.
    Asked(MachineId, Instant),
    /// It is whole and being opened.
    Opening,
    /// It can be used.
    Open(Arc<OpenKit>),
    /// It is whole, and no kit.
    Broken(Arc<str>),
}

/// What a caller can do about a kit.
pub(crate) enum Known {
    /// Use it.
    Open,
    /// Wait.
    Coming,
    /// Give up, for this reason.
    Broken(Arc<str>),
    /// Ask the machine: it was noted as asked.
    Ask,
}

/// Every kit, by its hash.
#[derive(Default)]
pub(crate) struct Kits {
    states: Mutex<HashMap<String, State>>,
}

impl Kits {
    /// What to do about the kit with `hash`, which `machine` has.
    pub(crate) fn want(&self, hash: &str, machine: MachineId) -> Known {
        let mut states = self.states.lock();
        match states.get(hash) {
            Some(State::Open(_)) => Known::Open,
            Some(State::Broken(why)) => Known::Broken(Arc::clone(why)),
            Some(State::Asked(_, at)) if at.elapsed() < ASKED_FOR => Known::Coming,
            Some(State::Opening) => Known::Coming,
            Some(State::Asked(..)) | None => {
                states.insert(hash.to_owned(), State::Asked(machine, Instant::now()));
                Known::Ask
            }
        }
    }

    /// The kit with `hash`, where it can be used.
    pub(crate) fn opened(&self, hash: &str) -> Option<Arc<OpenKit>> {
        match self.states.lock().get(hash) {
            Some(State::Open(kit)) => Some(Arc::clone(kit)),
            _ => None,
        }
    }

    /// `machine` is gone or sent nonsense: whatever it was asked for may be asked of another.
    pub(crate) fn forget_asks(&self, machine: MachineId) {
        self.states.lock().retain(|_, state| !matches!(state, State::Asked(asked, _) if *asked == machine));
    }

    /// A kit that nobody could open.
    pub(crate) fn fail(&self, hash: &str, why: &str) {
        self.states.lock().insert(hash.to_owned(), State::Broken(why.into()));
    }

    /// Opens a whole kit. Slow (a large tokenizer takes a second): call it where blocking is allowed.
    pub(crate) fn open(&self, hash: &str, bytes: &[u8]) {
        self.states.lock().insert(hash.to_owned(), State::Opening);
        let opened = match Kit::from_bytes(bytes) {
            Ok(kit) => kit.open().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Ok(kit) = &opened {
            // Tokenizers and templates build tables at their first use: not at the expense of the first caller.
            let hello = serde_json::json!({"role": "user", "content": "Hello, 1 2 3!"});
            let _ = kit.encode_chat(&[hello], None, &model::template::ChatExtra::default());
        }
        let mut states = self.states.lock();
        match opened {
            Ok(kit) => states.insert(hash.to_owned(), State::Open(Arc::new(kit))),
            Err(error) => states.insert(hash.to_owned(), State::Broken(error.into())),
        };
        let idle: Vec<String> = states
            .iter()
            .filter(|(name, state)| match state {
                State::Open(kit) => Arc::strong_count(kit) == 1 && name.as_str() != hash,
                State::Broken(_) => name.as_str() != hash,
                State::Asked(..) | State::Opening => false,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in idle.iter().skip(IDLE_KITS_MAX) {
            states.remove(name);
        }
    }
}

/// A kit whose pieces are coming.
pub(crate) struct Pieces {
    /// Its hash, as its descriptor has it.
    pub(crate) hash: String,
    total: usize,
    next: u64,
    bytes: Vec<u8>,
}

/// Why pieces make no kit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PieceError {
    /// A piece is missing, or came twice.
    #[error("kit_out_of_order")]
    Order,
    /// More came than its descriptor says.
    #[error("kit_too_long")]
    TooLong,
    /// All came, and the hash is another.
    #[error("kit_other_hash")]
    OtherHash,
}

impl Pieces {
    pub(crate) fn new(hash: String, total: usize) -> Self {
        Self { hash, total, next: 0, bytes: Vec::new() }
    }

    /// Takes the next piece; gives the whole when it was the last.
    pub(crate) fn add(&mut self, counter: u64, piece: &[u8]) -> Result<Option<Vec<u8>>, PieceError> {
        if counter != self.next {
            return Err(PieceError::Order);
        }
        self.next += 1;
        if self.bytes.len() + piece.len() > self.total {
            return Err(PieceError::TooLong);
        }
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() < self.total {
            return Ok(None);
        }
        if trust::hex(&trust::sha256(&self.bytes)) != self.hash {
            return Err(PieceError::OtherHash);
        }
        Ok(Some(std::mem::take(&mut self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_a_kit_only_whole_in_order_and_with_the_right_hash() {
        let bytes = b"tokenizer and template".to_vec();
        let hash = trust::hex(&trust::sha256(&bytes));
        let mut pieces = Pieces::new(hash.clone(), bytes.len());
        assert_eq!(pieces.add(0, &bytes[..5]), Ok(None));
        assert_eq!(pieces.add(1, &bytes[5..]), Ok(Some(bytes.clone())));
        let mut pieces = Pieces::new(hash.clone(), bytes.len());
        assert_eq!(pieces.add(1, &bytes), Err(PieceError::Order));
        let mut pieces = Pieces::new(hash.clone(), 3);
        assert_eq!(pieces.add(0, &bytes), Err(PieceError::TooLong));
        let mut pieces = Pieces::new(hash, 9);
        assert_eq!(pieces.add(0, b"something"), Err(PieceError::OtherHash));
    }
}
