//! What all threads of one rank's links share: the first fault, who was heard when, and what has gone over the wires.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use collective::{Cause, Fault};

/// The first fault that any thread of this rank met, seen by all others within their next look.
pub(crate) struct Alarm {
    raised: AtomicBool,
    fault: Mutex<Option<Fault>>,
    started: Instant,
    /// When each rank was last heard on its control connection, in microseconds since `started`.
    heard_us: Vec<AtomicU64>,
    /// The last answered ping's round trip of each rank, in nanoseconds; 0: none yet.
    round_trip_ns: Vec<AtomicU64>,
    /// Control frames that could not be read.
    malformed: AtomicU64,
}

impl Alarm {
    pub(crate) fn new(ranks: usize) -> Self {
        Self {
            raised: AtomicBool::new(false),
            fault: Mutex::new(None),
            started: Instant::now(),
            heard_us: (0..ranks).map(|_| AtomicU64::new(0)).collect(),
            round_trip_ns: (0..ranks).map(|_| AtomicU64::new(0)).collect(),
            malformed: AtomicU64::new(0),
        }
    }

    /// Raises it, unless it was: the first fault stays. Whether this was the first.
    pub(crate) fn raise(&self, fault: Fault) -> bool {
        let mut first = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = first.is_none();
        if is_first {
            *first = Some(fault);
        }
        self.raised.store(true, Ordering::Release);
        is_first
    }

    /// Whether the group is over. One load: asked on every look for a message.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Why the group is over, where it is.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Time since the links came to be.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn heard(&self, rank: usize) {
        self.heard_us[rank].store(self.elapsed_us(), Ordering::Relaxed);
    }

    /// How long nothing has come from `rank`.
    pub(crate) fn silence(&self, rank: usize) -> Duration {
        let heard = self.heard_us[rank].load(Ordering::Relaxed);
        Duration::from_micros(self.elapsed_us().saturating_sub(heard))
    }

    pub(crate) fn note_round_trip(&self, rank: usize, taken: Duration) {
        let ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.round_trip_ns[rank].store(ns, Ordering::Relaxed);
    }

    pub(crate) fn round_trip(&self, rank: usize) -> Option<Duration> {
        match self.round_trip_ns[rank].load(Ordering::Relaxed) {
            0 => None,
            ns => Some(Duration::from_nanos(ns)),
        }
    }

    /// Counts a frame that could not be read; how many there were.
    pub(crate) fn note_malformed(&self) -> u64 {
        self.malformed.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Whom to blame where nothing came from `suspect` in time. A rank that waits for another is itself late: where
    /// some rank has not even answered pings, for longer than the suspect, that one is the cause.
    pub(crate) fn blame(&self, suspect: usize, me: usize, patience: Duration) -> Fault {
        let silent = (0..self.heard_us.len())
            .filter(|&rank| rank != me)
            .max_by_key(|&rank| self.silence(rank))
            .filter(|&rank| self.silence(rank) > patience / 2 && self.silence(suspect) < patience / 2);
        Fault::of(silent.unwrap_or(suspect), Cause::Late(patience))
    }
}
