//! The data lane of a session: attempts with something to send and kits on their way, taken in turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use base::AttemptId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Bytes;
use wire::frame::{FrameHeader, HEADER_BYTES};

use super::outbox::Outbox;

/// A piece of a kit, so that a large tokenizer does not hold up tokens for long.
const KIT_PIECE_BYTES: usize = 64 << 10;

/// Until the coordinator names a limit.
const FRAME_BYTES_FIRST: usize = 16 << 10;

/// One message for the socket.
pub(crate) enum Parcel {
    /// A frame: part of an answer, or of a kit.
    Frame { bytes: Bytes, news: Option<(AttemptId, News)> },
    /// The end of an attempt that failed.
    Failure { message: String, attempt: AttemptId },
}

/// What a frame means beyond itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// It was the attempt's last.
    Ended,
    /// The attempt's engine had been asked to pause, and may go on.
    RoomAgain,
}

/// Something that has messages to send.
pub(crate) enum Load {
    Answer(Arc<Outbox>),
    Kit(Kit),
}

/// A kit on its way.
pub(crate) struct Kit {
    pub(crate) sha256: String,
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) sent: usize,
    pub(crate) counter: u64,
}

/// The lane. Bounded: an attempt is in it once, a kit too, and attempts are bounded by the engines' places.
pub(crate) struct Lane {
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    queue: VecDeque<Load>,
    /// What is looked at again, and when; the number tells apart what is due in the same instant.
    later: BTreeMap<(Instant, u64), Weak<Outbox>>,
    numbered: u64,
    /// Whether the writer waits to be woken. While it looks, it finds whatever is added.
    waits: bool,
    frame_bytes_max: usize,
    closed: bool,
}

impl Lane {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            queue: VecDeque::new(),
            later: BTreeMap::new(),
            numbered: 0,
            waits: true,
            frame_bytes_max: FRAME_BYTES_FIRST,
            closed: false,
        };
        Arc::new(Self { state: Mutex::new(state), wake: Notify::new() })
    }

    /// Goes by the session's limit from now on.
    pub(crate) fn limit(&self, frame_bytes_max: usize) {
        self.state.lock().frame_bytes_max = frame_bytes_max;
    }

    /// Adds at the end. After [`Lane::close`], and for a kit that is on its way already, does nothing.
    pub(crate) fn push(&self, load: Load) {
        let mut state = self.state.lock();
        let twice = match &load {
            Load::Answer(_) => false,
            Load::Kit(kit) => state.queue.iter().any(|l| matches!(l, Load::Kit(k) if k.sha256 == kit.sha256)),
        };
        if state.closed || twice {
            return;
        }
        state.queue.push_back(load);
        let wakes = state.waits;
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Looks at an answer again at `at`.
    pub(crate) fn look_later(&self, at: Instant, outbox: &Arc<Outbox>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.numbered += 1;
        let key = (at, state.numbered);
        state.later.insert(key, Arc::downgrade(outbox));
        // A writer that waits does so until what was first before.
        let sooner = state.later.first_key_value().is_some_and(|(first, _)| *first == key);
        let wakes = sooner && state.waits;
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Puts into the queue what is due.
    fn look(&self) {
        loop {
            let mut state = self.state.lock();
            let due = state.later.first_entry().filter(|first| first.key().0 <= Instant::now());
            let Some(outbox) = due.map(|due| due.remove()) else { return };
            drop(state);
            if let Some(outbox) = outbox.upgrade() {
                outbox.due();
            }
        }
    }

    /// The writer looks from now on: whatever is added is found.
    pub(crate) fn begins(&self) {
        self.state.lock().waits = false;
    }

    /// The writer found nothing: until when it may leave the lane alone (for ever, where nothing says when); nothing where
    /// there is more already.
    pub(crate) fn rest(&self) -> Option<Option<Instant>> {
        let mut state = self.state.lock();
        if !state.queue.is_empty() {
            return None;
        }
        state.waits = true;
        Some(state.later.first_key_value().map(|((at, _), _)| *at))
    }

    /// The next message: one of each load in turn.
    pub(crate) fn next(&self) -> Option<Parcel> {
        self.look();
        loop {
            let mut state = self.state.lock();
            let limit = state.frame_bytes_max;
            let load = state.queue.pop_front()?;
            drop(state);
            let (parcel, rest) = match load {
                Load::Answer(outbox) => {
                    let (parcel, more) = outbox.take(limit);
                    (parcel, more.then_some(Load::Answer(outbox)))
                }
                Load::Kit(kit) => kit.piece(limit),
            };
            if let Some(rest) = rest {
                let mut state = self.state.lock();
                if !state.closed {
                    state.queue.push_back(rest);
                }
            }
            if parcel.is_some() {
                return parcel;
            }
        }
    }

    /// Returns once something may have been added.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Forgets everything, now and later.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let (queue, later) = (std::mem::take(&mut state.queue), std::mem::take(&mut state.later));
        drop(state);
        drop((queue, later));
    }
}

impl Kit {
    fn piece(mut self, frame_bytes_max: usize) -> (Option<Parcel>, Option<Load>) {
        let Some(header) = FrameHeader::of_kit(&self.sha256, self.counter) else { return (None, None) };
        let room = KIT_PIECE_BYTES.min(frame_bytes_max.saturating_sub(HEADER_BYTES)).max(1);
        let end = self.bytes.len().min(self.sent + room);
        let bytes = Bytes::from(wire::frame::encode(header, &self.bytes[self.sent..end]));
        self.sent = end;
        self.counter += 1;
        let rest = (end < self.bytes.len()).then_some(Load::Kit(self));
        (Some(Parcel::Frame { bytes, news: None }), rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit(length: usize) -> Load {
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        Load::Kit(Kit {
            sha256: trust::hex(&trust::sha256(&bytes)),
            bytes: bytes.into(),
            sent: 0,
            counter: 0,
        })
    }

    #[test]
    fn a_kit_goes_out_in_counted_pieces_within_the_limit_and_is_whole() {
        let lane = Lane::new();
        lane.limit(1000 + HEADER_BYTES);
        lane.push(kit(2500));
        lane.push(kit(2500));
        let mut whole = Vec::new();
        let mut pieces = 0;
        while let Some(Parcel::Frame { bytes, news }) = lane.next() {
            let (header, payload) = wire::frame::decode(&bytes).unwrap();
            assert_eq!((header.counter, news), (pieces, None));
            assert!(payload.len() <= 1000);
            whole.extend_from_slice(payload);
            pieces += 1;
        }
        assert_eq!(pieces, 3, "a kit asked for twice in a row is sent once");
        assert!(whole.len() == 2500 && whole[2000] == (2000 % 251) as u8);
    }

    #[tokio::test]
    async fn a_writer_that_waits_is_woken_by_what_is_added_and_one_that_looks_finds_it() {
        let lane = Lane::new();
        assert_eq!(lane.rest(), Some(None));
        lane.push(kit(10));
        lane.woken().await;
        lane.begins();
        assert!(lane.next().is_some());
        lane.push(kit(10));
        assert_eq!(lane.rest(), None, "added while it looked");
    }

    #[test]
    fn a_closed_lane_takes_and_gives_nothing() {
        let lane = Lane::new();
        lane.push(kit(10));
        lane.close();
        lane.push(kit(10));
        assert!(lane.next().is_none());
    }
}
