//! What of an answer was sealed and may have to be sent again: bounded, as it was sealed.
//!
//! A connection that breaks takes along what was on its way, and a coordinator that starts anew has forgotten all. What
//! is kept here is ciphertext, the very frames that were sent, so that nothing is sealed twice under one counter.

use std::collections::VecDeque;

use tokio_tungstenite::tungstenite::Bytes;

/// Bytes of one answer that are kept: some thirty thousand tokens. Of a longer one the beginning is forgotten, and with
/// it that a coordinator which has nothing of it can go on with it.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// The sealed frames of one attempt.
pub(crate) struct Kept {
    keeps: bool,
    /// The counter of the first frame that is held.
    first: u64,
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The counter of the frame to send next.
    next: u64,
    /// Whether the last frame that was sealed is the answer's end.
    ended: bool,
    /// Frames below this counter may be sent; nothing where there is no bound.
    until: Option<u64>,
}

impl Kept {
    /// Keeps frames where `keeps`; they may be sent as far as `until`.
    pub(crate) fn new(keeps: bool, until: Option<u64>) -> Self {
        Self { keeps, first: 0, frames: VecDeque::new(), bytes: 0, next: 0, ended: false, until }
    }

    pub(crate) fn keeps(&self) -> bool {
        self.keeps
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The counter of the frame that was not sealed yet.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Whether a sealed frame waits to be sent again.
    pub(crate) fn unsent(&self) -> bool {
        self.next < self.end()
    }

    /// Whether the next frame may be sent.
    pub(crate) fn credited(&self) -> bool {
        self.until.is_none_or(|until| self.next < until)
    }

    /// The next frame to send again, and whether it is the answer's last.
    pub(crate) fn again(&mut self) -> Option<(Bytes, bool)> {
        if !self.unsent() || !self.credited() {
            return None;
        }
        let at = usize::try_from(self.next - self.first).ok()?;
        let frame = self.frames.get(at)?.clone();
        self.next += 1;
        let last = self.ended && self.next == self.end();
        Some((frame, last))
    }

    /// Takes in a frame that is sent now.
    pub(crate) fn keep(&mut self, frame: Bytes, ends: bool) {
        self.ended |= ends;
        self.next += 1;
        if !self.keeps {
            self.first = self.next;
            return;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.bytes > KEPT_BYTES_MAX && self.first < self.next {
            let Some(oldest) = self.frames.pop_front() else { return };
            self.bytes -= oldest.len();
            self.first += 1;
        }
    }

    /// Goes back to frame `from`; false where it is not there.
    pub(crate) fn rewind(&mut self, from: u64, until: Option<u64>) -> bool {
        if !self.keeps || from < self.first || from > self.end() {
            return false;
        }
        self.next = from;
        self.until = until;
        true
    }

    /// Credit only grows: an older message must not take back what a newer one gave.
    pub(crate) fn grant(&mut self, until: Option<u64>) {
        self.until = match (self.until, until) {
            (Some(had), Some(now)) => Some(had.max(now)),
            _ => None,
        };
    }

    /// Lets go of all frames.
    pub(crate) fn forget(&mut self) {
        self.keeps = false;
        self.first = self.next.max(self.end());
        self.next = self.first;
        self.frames.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64, size: usize) -> Bytes {
        let mut bytes = vec![0; size];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Bytes::from(bytes)
    }

    #[test]
    fn frames_are_sent_again_from_any_that_is_kept_and_only_as_far_as_credit_goes() {
        let mut kept = Kept::new(true, Some(2));
        assert!(kept.credited());
        kept.keep(frame(0, 8), false);
        kept.keep(frame(1, 8), true);
        assert!(!kept.credited() && !kept.unsent());
        assert!(kept.rewind(1, Some(2)) && !kept.rewind(3, None));
        assert_eq!(kept.again(), Some((frame(1, 8), true)));
        assert_eq!(kept.again(), None);
        assert!(kept.rewind(0, Some(1)));
        assert_eq!(kept.again(), Some((frame(0, 8), false)));
        assert_eq!(kept.again(), None, "credit ends here");
        kept.grant(Some(0));
        kept.grant(Some(2));
        assert_eq!(kept.again(), Some((frame(1, 8), true)));
    }

    #[test]
    fn what_is_kept_is_bounded_and_only_its_beginning_is_forgotten() {
        let mut kept = Kept::new(true, None);
        for number in 0..10 {
            kept.keep(frame(number, 1 << 20), false);
        }
        assert_eq!((kept.first(), kept.end()), (6, 10));
        assert!(!kept.rewind(5, None) && kept.rewind(6, None));
        assert!(kept.again().is_some_and(|(frame, _)| frame[..8] == 6u64.to_le_bytes()));
        kept.forget();
        assert!(!kept.rewind(10, None) && kept.again().is_none());
    }

    #[test]
    fn a_session_that_offers_nothing_again_keeps_nothing() {
        let mut kept = Kept::new(false, None);
        kept.keep(frame(0, 100), false);
        assert_eq!((kept.first(), kept.end(), kept.bytes), (1, 1, 0));
    }
}
