//! What the last calls that failed were told: what `phalanx explain` knows of those that no pool ever saw.

use std::collections::{BTreeMap, VecDeque};

use base::{Micros, RequestId};
use parking_lot::Mutex;

/// The longest text that is kept: messages quote what was wrong, and callers choose how long that is.
const TEXT_CHARS_MAX: usize = 500;

/// One call that failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TurnedAway {
    pub(crate) request: RequestId,
    pub(crate) at: Micros,
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) text: String,
}

/// The last of them.
#[derive(Default)]
pub(crate) struct LastTurnedAway {
    kept: Mutex<(BTreeMap<RequestId, TurnedAway>, VecDeque<RequestId>)>,
    max: usize,
}

impl LastTurnedAway {
    /// Keeps `max` of them; 0 keeps none.
    pub(crate) fn new(max: u32) -> Self {
        Self { max: max as usize, ..Self::default() }
    }

    pub(crate) fn note(&self, mut what: TurnedAway) {
        if self.max == 0 {
            return;
        }
        if let Some((end, _)) = what.text.char_indices().nth(TEXT_CHARS_MAX) {
            what.text.truncate(end);
        }
        let mut kept = self.kept.lock();
        while kept.1.len() >= self.max {
            let oldest = kept.1.pop_front().expect("it is as long as the bound");
            kept.0.remove(&oldest);
        }
        kept.1.push_back(what.request);
        kept.0.insert(what.request, what);
    }

    pub(crate) fn of(&self, request: RequestId) -> Option<TurnedAway> {
        self.kept.lock().0.get(&request).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_long_texts_are_cut_at_a_character() {
        let kept = LastTurnedAway::new(2);
        let note = |n: u128| {
            let text = "\u{fc}".repeat(900);
            kept.note(TurnedAway { request: RequestId(n), at: Micros(1), status: 400, code: "x", text });
        };
        (1..=3).for_each(note);
        assert_eq!(kept.of(RequestId(1)), None);
        assert_eq!(kept.of(RequestId(3)).unwrap().text.chars().count(), 500);
        assert!(kept.of(RequestId(2)).is_some());
        LastTurnedAway::new(0).note(kept.of(RequestId(2)).unwrap());
    }
}
