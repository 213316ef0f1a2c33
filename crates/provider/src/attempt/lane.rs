//! The data lane of a session: attempts with something to send and kits on their way, taken in turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use base::AttemptId;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Bytes;
use wire::frame::{FrameHeader, HEADER_BYTES};

use super::outbox::Outbox;

/// A piece of a kit, so that a large tokenizer does not hold up tokens for long.
const KIT_PIECE_BYTES: usize = 64 << 10;

/// Until the coordinator names a limit.
const FRAME_BYTES_FIRST: usize = 16 << 10;

/// So many writes within so long are many: a thousand a second.
const MANY_WRITES: usize = 8;
const MANY_WITHIN: Duration = Duration::from_millis(8);

/// How long tokens wait for others then. The runtime's timers make one to two milliseconds of it, a fraction of what any
/// model takes for a token.
const PAUSE: Duration = Duration::from_millis(1);

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

/// How soon the writer shall look at what is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// At once: somebody waits for it alone, as for a first token or an end.
    Now,
    /// With others, where there are many: see [`Lane::rest`].
    Soon,
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
    writer: Writer,
    /// Whether anything was added in haste since the writer began to look.
    haste: bool,
    /// When the writer wrote, the last few times.
    wrote: VecDeque<Instant>,
    frame_bytes_max: usize,
    closed: bool,
}

/// What the writer does, and so who has to wake it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// It looks until nothing is there: nobody.
    Looks,
    /// Whoever adds something in haste.
    Rests,
    /// Whoever adds anything.
    Waits,
}

impl Lane {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            queue: VecDeque::new(),
            later: BTreeMap::new(),
            numbered: 0,
            writer: Writer::Waits,
            haste: false,
            wrote: VecDeque::with_capacity(MANY_WRITES),
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
    pub(crate) fn push(&self, load: Load, haste: Haste) {
        let mut state = self.state.lock();
        let twice = match &load {
            Load::Answer(_) => false,
            Load::Kit(kit) => state.queue.iter().any(|l| matches!(l, Load::Kit(k) if k.sha256 == kit.sha256)),
        };
        if state.closed || twice {
            return;
        }
        state.queue.push_back(load);
        self.tell(state, haste);
    }

    /// Something that is in the lane must not wait any longer.
    pub(crate) fn hurry(&self) {
        self.tell(self.state.lock(), Haste::Now);
    }

    fn tell(&self, mut state: MutexGuard<'_, State>, haste: Haste) {
        state.haste |= haste == Haste::Now;
        let wakes = match state.writer {
            Writer::Looks => false,
            Writer::Rests => haste == Haste::Now,
            Writer::Waits => true,
        };
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
        let wakes = sooner && state.writer != Writer::Looks;
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
        self.state.lock().writer = Writer::Looks;
    }

    /// The writer is through, and `wrote` something: until when it may leave the lane alone (for ever, where nothing says
    /// when); nothing where there is more already.
    ///
    /// Each write costs both ends a trip through the kernel, and a token alone is not worth it where hundreds of streams run:
    /// a writer that wrote [`MANY_WRITES`] times within [`MANY_WITHIN`] leaves tokens alone for [`PAUSE`] after a write. What
    /// is in haste wakes it all the same, and takes along what is there.
    pub(crate) fn rest(&self, now: Instant, wrote: bool) -> Option<Option<Instant>> {
        let mut state = self.state.lock();
        if wrote {
            if state.wrote.len() == MANY_WRITES {
                state.wrote.pop_front();
            }
            state.wrote.push_back(now);
        }
        if std::mem::take(&mut state.haste) && !state.queue.is_empty() {
            return None;
        }
        let many = state.wrote.len() == MANY_WRITES
            && state.wrote.front().is_some_and(|first| now.duration_since(*first) < MANY_WITHIN);
        let pause = state.wrote.back().map(|last| *last + PAUSE).filter(|until| many && now < *until);
        let later = state.later.first_key_value().map(|((at, _), _)| *at);
        if let Some(until) = pause {
            state.writer = Writer::Rests;
            return Some(Some(later.map_or(until, |at| at.min(until))));
        }
        if !state.queue.is_empty() {
            return None;
        }
        state.writer = Writer::Waits;
        Some(later)
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
        lane.push(kit(2500), Haste::Soon);
        lane.push(kit(2500), Haste::Soon);
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

    #[test]
    fn a_writer_that_wrote_often_leaves_tokens_alone_for_a_moment_and_haste_never() {
        let lane = Lane::new();
        let start = Instant::now();
        let at = |us: u64| start + Duration::from_micros(us);
        for write in 0..MANY_WRITES as u64 - 1 {
            lane.begins();
            assert_eq!(lane.rest(at(write * 100), true), Some(None), "few writes: it waits for anything");
        }
        lane.begins();
        let last = (MANY_WRITES as u64 - 1) * 100;
        assert_eq!(lane.rest(at(last), true), Some(Some(at(last) + PAUSE)));
        lane.push(kit(10), Haste::Soon);
        assert_eq!(
            lane.rest(at(last + 10), false),
            Some(Some(at(last) + PAUSE)),
            "that is no reason to write"
        );
        lane.hurry();
        assert_eq!(lane.rest(at(last + 20), false), None, "this is");
        assert_eq!(lane.rest(at(last + 30), false), Some(Some(at(last) + PAUSE)), "once");
        assert_eq!(lane.rest(at(last) + PAUSE, false), None, "and so is the end of the pause");
        while lane.next().is_some() {}
        assert_eq!(lane.rest(at(last) + MANY_WITHIN, false), Some(None));
        // A lane that writes now and then never pauses.
        let second = |n: u64| start + Duration::from_secs(1 + n);
        for n in 0..3 * MANY_WRITES as u64 {
            assert_eq!(lane.rest(second(n), true), Some(None));
        }
    }

    #[tokio::test]
    async fn who_adds_in_haste_wakes_a_writer_that_rests() {
        let lane = Lane::new();
        let now = Instant::now();
        while lane.rest(now, true) == Some(None) {}
        lane.push(kit(10), Haste::Now);
        lane.woken().await;
        lane.begins();
        assert!(lane.next().is_some());
        let later = now + MANY_WITHIN;
        assert_eq!(lane.rest(later, false), Some(None));
        lane.push(kit(10), Haste::Soon);
        lane.woken().await;
    }

    #[test]
    fn a_closed_lane_takes_and_gives_nothing() {
        let lane = Lane::new();
        lane.push(kit(10), Haste::Soon);
        lane.close();
        lane.push(kit(10), Haste::Soon);
        assert!(lane.next().is_none());
    }
}
