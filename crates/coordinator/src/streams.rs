//! The answers that outlive their reader: which are kept, for how long, and how a caller comes back to one.

pub(crate) mod tape;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base::{AccountId, Micros, RequestId};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::core::{Core, span};
use crate::dispatch::Event;
use tape::Tape;

/// Bytes of ended answers that are kept for callers that come back. The oldest go first.
const ENDED_BYTES_MAX: usize = 256 << 20;

/// Ended answers that are kept.
const ENDED_MAX: usize = 10_000;

/// How a request is kept when its reader goes.
#[derive(Debug, Clone)]
pub(crate) struct Keep {
    /// What the API needs to write the answer again for a caller that comes back, in its own words. May hold what the
    /// caller sent: it is kept in memory, and sealed on the disk.
    pub(crate) shape: Arc<str>,
    /// Whether it runs to its end although nobody reads it. Otherwise it is given up after `requests.resume_us`.
    pub(crate) to_the_end: bool,
}

#[derive(Default)]
struct Table {
    tapes: HashMap<RequestId, Arc<Tape>>,
    /// Ended ones, in the order in which they ended, with when that was.
    ended: VecDeque<(Micros, RequestId)>,
    ended_bytes: usize,
    /// By account and the caller's own name for a request: which it is, and the hash of its body.
    names: HashMap<(AccountId, String), (RequestId, [u8; 32])>,
    named: HashMap<RequestId, (AccountId, String)>,
}

/// Every answer that can be come back to.
#[derive(Default)]
pub(crate) struct Streams {
    table: Mutex<Table>,
}

/// Whether a request was made before, by its caller's own name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// It was not.
    New,
    /// It was: this one.
    Known(RequestId),
    /// The name was given to another body.
    Other,
}

/// An answer that a caller came back to.
pub(crate) struct Attached {
    /// From its beginning: the API writes it again and leaves out what its caller has.
    pub(crate) events: mpsc::Receiver<Event>,
    /// What the API said of it when it began.
    pub(crate) shape: Arc<str>,
}

impl Streams {
    /// A new tape for `request`.
    pub(crate) fn open(&self, request: RequestId, account: AccountId, keep: &Keep) -> Arc<Tape> {
        let tape = Arc::new(Tape::new(account, Arc::clone(&keep.shape)));
        self.table.lock().tapes.insert(request, Arc::clone(&tape));
        tape
    }

    /// A request has ended at `now`: its tape is kept for `keep_for`; gives those whose time, or place, is over.
    pub(crate) fn ended(&self, request: RequestId, now: Micros, keep_for: Micros) -> Vec<RequestId> {
        let mut table = self.table.lock();
        let Some(bytes) = table.tapes.get(&request).map(|tape| tape.bytes()) else { return Vec::new() };
        table.ended.push_back((now, request));
        table.ended_bytes += bytes;
        table.forget(now, keep_for)
    }

    /// Looks a caller's name for a request up; where it is new it stands for `request`, as long as that is kept.
    pub(crate) fn name(&self, account: AccountId, name: String, body: [u8; 32], request: RequestId) -> Named {
        let mut table = self.table.lock();
        match table.names.get(&(account, name.clone())) {
            Some((known, hash)) if *hash == body => Named::Known(*known),
            Some(_) => Named::Other,
            None => {
                table.named.insert(request, (account, name.clone()));
                table.names.insert((account, name), (request, body));
                Named::New
            }
        }
    }

    /// A request that gave nothing: its name may be tried again.
    pub(crate) fn unname(&self, request: RequestId) {
        self.table.lock().unname(request);
    }

    /// Whether there is one of this request, whoever may read it.
    pub(crate) fn has(&self, request: RequestId) -> bool {
        self.table.lock().tapes.contains_key(&request)
    }

    /// The tape of `request`, if `account` may read it.
    pub(crate) fn tape(&self, request: RequestId, account: AccountId) -> Option<Arc<Tape>> {
        self.table.lock().tapes.get(&request).filter(|tape| tape.account == account).cloned()
    }
}

impl Table {
    fn unname(&mut self, request: RequestId) {
        if let Some(name) = self.named.remove(&request) {
            self.names.remove(&name);
        }
    }

    fn forget(&mut self, now: Micros, keep_for: Micros) -> Vec<RequestId> {
        let mut forgotten = Vec::new();
        while let Some((at, request)) = self.ended.front().copied() {
            let old = at.saturating_add(keep_for) <= now;
            if !old && self.ended.len() <= ENDED_MAX && self.ended_bytes <= ENDED_BYTES_MAX {
                break;
            }
            self.ended.pop_front();
            self.unname(request);
            if let Some(tape) = self.tapes.remove(&request) {
                self.ended_bytes = self.ended_bytes.saturating_sub(tape.bytes());
            }
            forgotten.push(request);
        }
        forgotten
    }
}

impl Core {
    /// Comes back to an answer: running, or ended not long ago. Nothing where there is none of this account.
    pub(crate) fn attach(&self, request: RequestId, account: AccountId) -> Option<Attached> {
        let tape = self.streams.tape(request, account)?;
        let config = &self.config.requests;
        let events = tape.play(&self.tasks, span(config.keepalive_us), span(config.reader_us_max));
        Some(Attached { events, shape: Arc::clone(&tape.shape) })
    }
}
