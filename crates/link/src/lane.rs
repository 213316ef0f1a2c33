//! One sealed connection for data: frames cut into records on the way out, put together again on the way in.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use collective::Cause;
use trust::{RECORD_BYTES_MAX, RECORD_PLAINTEXT_MAX, RecordOpener, RecordSealer, record_bytes};
use wire::link::frame_bytes;

/// Room for what arrives at once: several records, so that a long message takes few calls.
const RAW_BYTES: usize = 16 * RECORD_BYTES_MAX;

/// Sealed bytes that go out in one write. A message of one record goes out whole; of a longer one, so much is under way
/// while the next is being sealed.
const WRITE_BYTES: usize = 64 << 10;

/// Frames that wait to be received. Ranks go in step, so more than a few mean that the other side is broken: then the
/// connection is left unread, and its sender comes to wait.
const FRAMES_MAX: usize = 64;

/// Memory that is taken on the word of a frame's header alone; beyond it the buffer grows with what arrives.
const RESERVE_BYTES_MAX: usize = 4 << 20;

/// What a rank's lanes have carried, in a place that other threads may read.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) messages_sent: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) messages_received: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) seal_ns: AtomicU64,
    pub(crate) wire_ns: AtomicU64,
    pub(crate) wait_ns: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

pub(crate) fn since_ns(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A data connection to one rank; does not block.
pub(crate) struct Lane {
    pub(crate) stream: TcpStream,
    sealer: RecordSealer,
    opener: RecordOpener,
    /// What arrived and is not opened yet, at `raw[start..end]`.
    raw: Vec<u8>,
    start: usize,
    end: usize,
    /// The beginning of a frame.
    partial: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    /// Sealed, from `sent` on not written yet.
    sealed: Vec<u8>,
    sent: usize,
    ended: Option<Cause>,
    counters: Arc<Counters>,
}

/// Whether something moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// It did.
    Some,
    /// The way is empty, or full.
    Nothing,
}

impl Lane {
    /// # Errors
    /// The socket does not take its options.
    pub(crate) fn new(
        stream: TcpStream,
        sealer: RecordSealer,
        opener: RecordOpener,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            sealer,
            opener,
            raw: vec![0; RAW_BYTES],
            start: 0,
            end: 0,
            partial: Vec::new(),
            frames: VecDeque::new(),
            spare: Vec::new(),
            sealed: Vec::with_capacity(WRITE_BYTES + RECORD_BYTES_MAX),
            sent: 0,
            ended: None,
            counters,
        })
    }

    /// Why nothing more comes or goes, where that is so and everything that came was taken.
    pub(crate) fn ended(&self) -> Option<&Cause> {
        if self.frames.is_empty() { self.ended.as_ref() } else { None }
    }

    /// The next whole frame into `into`; whether there was one.
    pub(crate) fn take(&mut self, into: &mut Vec<u8>) -> bool {
        let Some(mut frame) = self.frames.pop_front() else { return false };
        std::mem::swap(into, &mut frame);
        self.spare.push(frame);
        add(&self.counters.messages_received, 1);
        add(&self.counters.bytes_received, into.len() as u64);
        true
    }

    /// Seals the next pieces of `message` from `at` on, up to one write's worth; where the next begins.
    pub(crate) fn seal(&mut self, message: &[u8], at: usize) -> usize {
        let started = Instant::now();
        self.sealed.clear();
        self.sent = 0;
        let mut at = at;
        while at < message.len() && self.sealed.len() < WRITE_BYTES {
            let piece = &message[at..message.len().min(at + RECORD_PLAINTEXT_MAX)];
            self.sealer.seal(piece, &mut self.sealed);
            at += piece.len();
        }
        add(&self.counters.seal_ns, since_ns(started));
        at
    }

    /// Whether everything sealed was written.
    pub(crate) fn is_written(&self) -> bool {
        self.sent == self.sealed.len()
    }

    /// Writes what is sealed, as far as it goes.
    pub(crate) fn write(&mut self) -> Result<Moved, Cause> {
        let started = Instant::now();
        let written = self.stream.write(&self.sealed[self.sent..]);
        add(&self.counters.wire_ns, since_ns(started));
        match written {
            Ok(0) => Err(Cause::Closed),
            Ok(count) => {
                self.sent += count;
                Ok(Moved::Some)
            }
            Err(error) if would_wait(&error) => Ok(Moved::Nothing),
            Err(_) => Err(Cause::Closed),
        }
    }

    /// Takes in what has arrived, as far as it makes whole records.
    pub(crate) fn pump(&mut self) -> Moved {
        if self.ended.is_some() || self.frames.len() >= FRAMES_MAX {
            return Moved::Nothing;
        }
        if RAW_BYTES - self.end < RECORD_BYTES_MAX {
            self.raw.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let started = Instant::now();
        match self.stream.read(&mut self.raw[self.end..]) {
            Ok(0) => {
                self.ended = Some(Cause::Closed);
                Moved::Some
            }
            Ok(count) => {
                let read = Instant::now();
                add(&self.counters.wire_ns, since_ns(started));
                self.end += count;
                if let Err(cause) = self.open() {
                    self.ended = Some(cause);
                }
                add(&self.counters.seal_ns, since_ns(read));
                Moved::Some
            }
            Err(error) if would_wait(&error) => Moved::Nothing,
            Err(_) => {
                self.ended = Some(Cause::Closed);
                Moved::Some
            }
        }
    }

    fn open(&mut self) -> Result<(), Cause> {
        let malformed = |what: String| Cause::Malformed(what.into());
        loop {
            let length =
                record_bytes(&self.raw[self.start..self.end]).map_err(|e| malformed(e.to_string()))?;
            let Some(length) = length.filter(|length| self.end - self.start >= *length) else { break };
            let record = &mut self.raw[self.start..self.start + length];
            self.start += length;
            let piece = self.opener.open(record).map_err(|e| malformed(e.to_string()))?;
            self.partial.extend_from_slice(piece);
            let Some(whole) = frame_bytes(&self.partial).map_err(|e| malformed(e.to_string()))? else {
                return Err(malformed("a record too short for a frame's beginning".to_owned()));
            };
            match self.partial.len().cmp(&whole) {
                std::cmp::Ordering::Less => {
                    self.partial.reserve((whole - self.partial.len()).min(RESERVE_BYTES_MAX))
                }
                std::cmp::Ordering::Equal => {
                    let mut next = self.spare.pop().unwrap_or_default();
                    next.clear();
                    self.frames.push_back(std::mem::replace(&mut self.partial, next));
                }
                std::cmp::Ordering::Greater => {
                    return Err(malformed("a record that reaches beyond its frame".to_owned()));
                }
            }
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Ok(())
    }
}

fn would_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
