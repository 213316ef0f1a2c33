//! Responses that can be looked at later: in memory, bounded in number and bytes, the oldest forgotten first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base::AccountId;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::ApiConfig;

/// What was said up to a response. Not `Debug`.
pub(super) struct Lineage {
    pub(super) items: Vec<Value>,
}

/// A response, its events so far, and what it was asked with. Not `Debug`.
pub(crate) struct Kept {
    account: AccountId,
    /// What this call said.
    pub(super) items: Vec<Value>,
    /// Everything said before the answer, earlier responses' items included.
    before: Vec<Value>,
    /// Ends the work on it.
    pub(super) cancel: CancellationToken,
    state: Mutex<State>,
    /// Events that there are, and whether more come.
    told: watch::Sender<(u64, bool)>,
}

#[derive(Default)]
struct State {
    body: Value,
    events: Vec<Bytes>,
    bytes: usize,
    complete: bool,
}

impl Kept {
    pub(super) fn new(account: AccountId, items: Vec<Value>, before: Vec<Value>) -> Self {
        let bytes = before.iter().map(|item| item.to_string().len()).sum();
        Self {
            account,
            items,
            before,
            cancel: CancellationToken::new(),
            state: Mutex::new(State { bytes, ..State::default() }),
            told: watch::Sender::new((0, true)),
        }
    }

    /// Adds events, and what the response is after them.
    pub(super) fn add(&self, events: Vec<Bytes>, body: Option<Value>, complete: bool, over: bool) {
        let count = {
            let mut state = self.state.lock();
            state.bytes += events.iter().map(Bytes::len).sum::<usize>();
            state.events.extend(events);
            if let Some(body) = body {
                state.body = body;
            }
            state.complete = complete;
            state.events.len() as u64
        };
        self.told.send_replace((count, !over));
    }

    /// The response as it stands.
    pub(super) fn body(&self) -> Value {
        self.state.lock().body.clone()
    }

    /// Everything that was said, the answer included; nothing where it is not complete.
    pub(super) fn said(&self) -> Option<Vec<Value>> {
        let state = self.state.lock();
        if !state.complete {
            return None;
        }
        let output = state.body["output"].as_array().cloned().unwrap_or_default();
        Some(self.before.iter().cloned().chain(output).collect())
    }

    /// The events from one on, and whether more come.
    pub(super) fn events(&self, from: u64) -> (Vec<Bytes>, bool) {
        let state = self.state.lock();
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(state.events.len());
        (state.events[from..].to_vec(), self.told.borrow().1)
    }

    pub(super) fn watch(&self) -> watch::Receiver<(u64, bool)> {
        self.told.subscribe()
    }

    /// Waits until nothing more comes.
    pub(super) async fn ended(&self) {
        let mut told = self.watch();
        // The sender lives as long as `self` does.
        let _ = told.wait_for(|(_, more)| !more).await;
    }

    fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

/// All that are kept.
#[derive(Default)]
pub(crate) struct Responses {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<String, Arc<Kept>>,
    order: VecDeque<String>,
}

impl Responses {
    /// Keeps a response, and forgets the oldest while there are too many.
    pub(super) fn keep(&self, id: &str, kept: &Arc<Kept>, config: &ApiConfig) {
        let mut inner = self.inner.lock();
        inner.by_id.insert(id.to_owned(), Arc::clone(kept));
        inner.order.push_back(id.to_owned());
        let most = usize::try_from(config.responses_bytes_max.0).unwrap_or(usize::MAX);
        let mut bytes: usize = inner.by_id.values().map(|kept| kept.bytes()).sum();
        while inner.by_id.len() > config.responses_max || bytes > most {
            let Some(oldest) = inner.order.pop_front() else { break };
            if let Some(gone) = inner.by_id.remove(&oldest) {
                bytes -= gone.bytes().min(bytes);
            }
        }
    }

    /// A response of this account's.
    pub(super) fn find(&self, id: &str, account: AccountId) -> Option<Arc<Kept>> {
        self.inner.lock().by_id.get(id).filter(|kept| kept.account == account).cloned()
    }

    pub(super) fn forget(&self, id: &str) {
        let mut inner = self.inner.lock();
        inner.by_id.remove(id);
        inner.order.retain(|one| one != id);
    }
}
