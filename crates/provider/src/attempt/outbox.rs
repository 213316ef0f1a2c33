//! What an attempt's engine has said and the coordinator has not been sent yet: bounded, in order, sealed on the way
//! out.
//!
//! The engine's thread appends, the session's writer takes. While the writer is busy (a slow link), what comes in is
//! joined into fewer, larger chunks; when too much is held, [`Outbox::has_room`] turns false and the engine pauses
//! this attempt alone. Where nobody reads an answer token by token, all but its first and last waits a moment, to be joined.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use base::AttemptId;
use parking_lot::Mutex;
use tokio_tungstenite::tungstenite::Bytes;
use trust::{ResponseSealer, Zeroizing};
use wire::chunk::Chunk;
use wire::control::{AttemptRefusal, FromProvider, KeptAttempt};
use wire::frame::{FrameHeader, FrameKind, HEADER_BYTES};

use super::claim::Claim;
use super::kept::Kept;
use super::lane::{Lane, Load, News, Parcel};

/// Tokens held before the engine is asked to pause: at 50 tokens a second, five seconds of a stalled link, and a
/// kilobyte of memory.
const HELD_TOKENS: usize = 256;

/// Bytes held before the engine is asked to pause (log-probabilities take kilobytes a token).
const HELD_BYTES: usize = 256 << 10;

/// An engine that goes on although there is no room is overrun beyond this many times the room: its attempt fails
/// rather than eat the machine's memory.
const OVERRUN: usize = 8;

/// Chunks are joined up to about this size, so that one frame is short work for the link.
const JOINED_BYTES: usize = 16 << 10;

/// Tokens that may wait to be sent together with those that come after them, and how long at most: a coordinator that asks
/// for more would have much computed again where this machine is lost.
const WAITING_TOKENS: usize = 64;
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(1);

/// What a chunk takes beside its tokens, text and log-probabilities.
const HEAD_BYTES: usize = 32;

/// One attempt's unsent answer.
pub(crate) struct Outbox {
    attempt: AttemptId,
    inner: Mutex<Inner>,
    /// The writer's alone; apart from `inner` so that sealing never makes the engine's thread wait. Taken first.
    sealer: Mutex<ResponseSealer>,
    claim: Claim,
    /// How long what is neither first nor last waits for more.
    hold: Duration,
}

struct Inner {
    phase: Phase,
    /// The session's; none while there is none.
    lane: Weak<Lane>,
    /// What was sealed, and how far it was sent.
    kept: Kept,
    /// Whether the lane has this outbox in its queue, where it may be once.
    queued: bool,
    /// Whether the lane looks here again when the hold is over.
    waits: bool,
    /// Whether the engine has said anything.
    spoke: bool,
    held: VecDeque<Chunk>,
    held_tokens: usize,
    held_bytes: usize,
    failure: Option<Failure>,
}

/// How an attempt ends without a finish.
enum Failure {
    Failed(String),
    /// It was not taken after all.
    Refused(AttemptRefusal, String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Offered to an engine that has not agreed yet: nothing is sent.
    Offered,
    /// Taken; more may come.
    Open,
    /// Its last word is held, or was sent.
    Ended,
    /// Nobody waits for it any more: whatever comes is dropped.
    Void,
}

impl Outbox {
    /// `kept` says whether what is sent is kept to be sent again, and how far it may be sent; `hold` how long tokens after
    /// the first may wait for more.
    pub(crate) fn new(
        attempt: AttemptId,
        lane: &Arc<Lane>,
        (sealer, claim): (ResponseSealer, Claim),
        kept: Kept,
        hold: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            attempt,
            inner: Mutex::new(Inner {
                phase: Phase::Offered,
                lane: Arc::downgrade(lane),
                kept,
                queued: false,
                waits: false,
                spoke: false,
                held: VecDeque::new(),
                held_tokens: 0,
                held_bytes: 0,
                failure: None,
            }),
            sealer: Mutex::new(sealer),
            claim,
            hold,
        })
    }

    /// The engine took the attempt: what it said since may be sent.
    pub(crate) fn open(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        if inner.phase == Phase::Offered {
            // A short answer may be complete already.
            let ended = inner.failure.is_some() || inner.held.back().is_some_and(|c| c.finish.is_some());
            inner.phase = if ended { Phase::Ended } else { Phase::Open };
            self.queue(inner);
        }
    }

    /// Nothing more is sent: the session is gone, or the engine did not take the attempt.
    pub(crate) fn void(&self) {
        let mut inner = self.inner.lock();
        inner.phase = Phase::Void;
        inner.held.drain(..).for_each(wipe);
        inner.held_tokens = 0;
        inner.held_bytes = 0;
        inner.failure = None;
        inner.kept.forget();
    }

    /// The session is gone. What was sent is kept, and what is not yet sent waits.
    pub(crate) fn detach(&self) {
        let mut inner = self.inner.lock();
        inner.lane = Weak::new();
        inner.queued = false;
        inner.waits = false;
    }

    /// What can be offered again on the next session.
    pub(crate) fn offer(&self) -> Option<KeptAttempt> {
        let inner = self.inner.lock();
        let lives = matches!(inner.phase, Phase::Open | Phase::Ended) && inner.failure.is_none();
        let (first_counter, next_counter) = (inner.kept.first(), inner.kept.end());
        (lives && inner.kept.keeps()).then_some(KeptAttempt {
            attempt: self.attempt,
            first_counter,
            next_counter,
        })
    }

    /// Goes on over `lane`, from chunk `from` and as far as `until`. False where that chunk is no longer, or not yet,
    /// there.
    pub(crate) fn resume(self: &Arc<Self>, lane: &Arc<Lane>, from: u64, until: Option<u64>) -> bool {
        // No writer is between taking a chunk and keeping it.
        let _sealer = self.sealer.lock();
        let mut inner = self.inner.lock();
        if inner.phase == Phase::Void || !inner.kept.rewind(from, until) {
            return false;
        }
        inner.lane = Arc::downgrade(lane);
        inner.queued = false;
        inner.waits = false;
        self.queue(inner);
        true
    }

    /// More may be sent: up to `until`, or without bound.
    pub(crate) fn grant(self: &Arc<Self>, until: Option<u64>) {
        let mut inner = self.inner.lock();
        inner.kept.grant(until);
        self.queue(inner);
    }

    /// Whether the engine should go on with this attempt.
    pub(crate) fn has_room(&self) -> bool {
        self.inner.lock().has_room()
    }

    /// Takes what the engine says. What comes after the last word is dropped.
    pub(crate) fn append(self: &Arc<Self>, chunk: Chunk) {
        let mut inner = self.inner.lock();
        if inner.is_over() {
            return wipe(chunk);
        }
        let size = encoded_bytes(&chunk);
        if inner.held_bytes.saturating_add(size) > OVERRUN * HELD_BYTES
            || inner.held_tokens + chunk.tokens.len() > OVERRUN * HELD_TOKENS
        {
            wipe(chunk);
            return self
                .fail_locked(inner, "the connection is slower than the answer, and its buffer is full");
        }
        let ends = chunk.finish.is_some();
        let first = !std::mem::replace(&mut inner.spoke, true);
        inner.hold(chunk, size);
        if ends && inner.phase == Phase::Open {
            inner.phase = Phase::Ended;
        }
        let enough = inner.held_tokens >= WAITING_TOKENS || inner.held_bytes >= JOINED_BYTES;
        if first || ends || enough || self.hold.is_zero() {
            self.queue(inner);
        } else {
            self.wait(inner);
        }
    }

    /// Has the lane look here again once the hold is over, unless it will already.
    fn wait(self: &Arc<Self>, mut inner: parking_lot::MutexGuard<'_, Inner>) {
        if inner.waits || inner.queued || inner.phase != Phase::Open {
            return;
        }
        let Some(lane) = inner.lane.upgrade() else { return };
        inner.waits = true;
        drop(inner);
        lane.look_later(Instant::now() + self.hold, self);
    }

    /// The hold of what was held then is over.
    pub(crate) fn due(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        inner.waits = false;
        self.queue(inner);
    }

    /// Ends the attempt without a finish. What is held is still sent, then `message`.
    pub(crate) fn fail(self: &Arc<Self>, message: &str) {
        let inner = self.inner.lock();
        if !inner.is_over() {
            self.fail_locked(inner, message);
        }
    }

    /// The engine does not take the attempt after all. Nothing of an answer is held.
    pub(crate) fn refuse(self: &Arc<Self>, reason: AttemptRefusal, message: &str) {
        let inner = self.inner.lock();
        if !inner.is_over() {
            self.end_locked(inner, Failure::Refused(reason, message.chars().take(500).collect()));
        }
    }

    fn fail_locked(self: &Arc<Self>, inner: parking_lot::MutexGuard<'_, Inner>, message: &str) {
        self.end_locked(inner, Failure::Failed(message.chars().take(300).collect()));
    }

    fn end_locked(self: &Arc<Self>, mut inner: parking_lot::MutexGuard<'_, Inner>, failure: Failure) {
        inner.failure = Some(failure);
        if inner.phase == Phase::Open {
            inner.phase = Phase::Ended;
        }
        self.queue(inner);
    }

    /// Puts this outbox into the lane, unless it is there, or may not be.
    fn queue(self: &Arc<Self>, mut inner: parking_lot::MutexGuard<'_, Inner>) {
        if inner.queued || !inner.sendable() || !matches!(inner.phase, Phase::Open | Phase::Ended) {
            return;
        }
        let Some(lane) = inner.lane.upgrade() else { return };
        inner.queued = true;
        drop(inner);
        lane.push(Load::Answer(Arc::clone(self)));
    }

    /// What to send next, and whether there is more. For the writer alone.
    pub(crate) fn take(&self, frame_bytes_max: usize) -> (Option<Parcel>, bool) {
        let mut sealer = self.sealer.lock();
        let mut inner = self.inner.lock();
        if let Some((bytes, last)) = inner.kept.again() {
            inner.queued = inner.sendable();
            let news = last.then_some((self.attempt, News::Ended));
            return (Some(Parcel::Frame { bytes, news }), inner.queued);
        }
        if !inner.sendable() {
            inner.queued = false;
            return (None, false);
        }
        let Some(mut chunk) = inner.held.pop_front() else {
            inner.queued = false;
            let attempt = self.attempt;
            let parcel = inner.failure.take().map(|failure| {
                let message = match failure {
                    Failure::Failed(message) => FromProvider::AttemptFailed { attempt, message },
                    Failure::Refused(reason, message) => {
                        FromProvider::AttemptRefused { attempt, reason, message }
                    }
                };
                Parcel::Failure { message: message.encode(), attempt }
            });
            return (parcel, false);
        };
        let paused = !inner.has_room();
        inner.held_tokens -= chunk.tokens.len().min(inner.held_tokens);
        inner.held_bytes -= encoded_bytes(&chunk).min(inner.held_bytes);
        let ends = chunk.finish.is_some();
        let news = match ends {
            true => Some(News::Ended),
            false => (paused && inner.has_room()).then_some(News::RoomAgain),
        };
        drop(inner);

        if let Some(finish) = &mut chunk.finish {
            self.claim.sign(finish);
        }
        let plain = Zeroizing::new(chunk.encode());
        wipe(chunk);
        if plain.len() + HEADER_BYTES + trust::TAG_BYTES > frame_bytes_max {
            let message = format!(
                "a chunk of {} bytes is over the session's limit of {frame_bytes_max}; ask for fewer log-probabilities",
                plain.len()
            );
            self.void();
            let message = FromProvider::AttemptFailed { attempt: self.attempt, message }.encode();
            return (Some(Parcel::Failure { message, attempt: self.attempt }), false);
        }
        let (counter, sealed) = sealer.seal(&plain);
        let header = FrameHeader::of_attempt(FrameKind::Chunk, self.attempt, counter);
        let bytes = Bytes::from(wire::frame::encode(header, &sealed));
        let mut inner = self.inner.lock();
        inner.kept.keep(bytes.clone(), ends);
        let more = inner.sendable();
        inner.queued = more;
        (Some(Parcel::Frame { bytes, news: news.map(|n| (self.attempt, n)) }), more)
    }
}

impl Inner {
    /// Whether something is there that may be sent.
    fn sendable(&self) -> bool {
        let held = !self.held.is_empty() || self.kept.unsent();
        (held && self.kept.credited()) || (!held && self.failure.is_some())
    }

    fn has_room(&self) -> bool {
        self.phase == Phase::Void || (self.held_tokens < HELD_TOKENS && self.held_bytes < HELD_BYTES)
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Void)
            || self.failure.is_some()
            || self.held.back().is_some_and(|last| last.finish.is_some())
    }

    fn hold(&mut self, chunk: Chunk, size: usize) {
        self.held_tokens += chunk.tokens.len();
        self.held_bytes += size;
        match self.held.back_mut() {
            Some(last) if joinable(last, &chunk) && encoded_bytes(last) + size <= JOINED_BYTES => {
                // The two have one head together.
                self.held_bytes -= HEAD_BYTES;
                join(last, chunk);
            }
            _ => self.held.push_back(chunk),
        }
    }
}

/// Whether `next` goes on where `last` ends, so that both can be one.
fn joinable(last: &Chunk, next: &Chunk) -> bool {
    let contiguous = last.first_index as usize + last.tokens.len() == next.first_index as usize;
    let alike = last.logprobs.is_some() == next.logprobs.is_some()
        || (next.tokens.is_empty() && next.logprobs.is_none())
        || (last.tokens.is_empty() && last.logprobs.is_none());
    contiguous && alike && last.finish.is_none()
}

fn join(last: &mut Chunk, mut next: Chunk) {
    last.tokens.append(&mut next.tokens);
    last.text.push_str(&next.text);
    match (&mut last.logprobs, next.logprobs.take()) {
        (Some(have), Some(mut more)) => have.append(&mut more),
        (none @ None, Some(more)) => *none = Some(more),
        (_, None) => {}
    }
    last.vector = last.vector.take().or(next.vector.take());
    last.finish = next.finish.take();
    wipe(next);
}

/// About how long a chunk's encoding is: exact but for log-probabilities and finish, which are JSON.
fn encoded_bytes(chunk: &Chunk) -> usize {
    let logprobs = chunk.logprobs.iter().flatten();
    let entries = logprobs.map(|entry| {
        let top = entry.top.iter().map(|(_, bytes, _)| 32 + 4 * bytes.len()).sum::<usize>();
        64 + 4 * entry.bytes.len() + top
    });
    let vector = chunk.vector.as_ref().map_or(0, |vector| 4 + 4 * vector.len());
    HEAD_BYTES + vector + 4 * chunk.tokens.len() + chunk.text.len() + entries.sum::<usize>()
}

/// Overwrites an answer's text and tokens (P6).
fn wipe(chunk: Chunk) {
    let Chunk { tokens, text, vector, .. } = chunk;
    drop(Zeroizing::new(vector));
    drop(Zeroizing::new(tokens));
    drop(Zeroizing::new(text));
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
