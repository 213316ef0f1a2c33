//! Attempts that outlived their connection: who waits for one, who offers one, and how the two meet.
//!
//! A machine that lost its connection keeps computing and offers its attempts on the next. Here a request that lost its
//! machine waits for that, within its patience. Either may come first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base::{AttemptId, MachineId};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use wire::control::{FromCoordinator, KeptAttempt};

use super::attempts::Receiving;
use super::session::Session;
use crate::core::{Core, span};
use crate::metrics::Metrics;

/// An attempt that goes on over another connection.
pub(crate) struct Returned {
    pub(crate) session: Arc<Session>,
    pub(crate) receiving: Receiving,
}

struct Waiting {
    machine: MachineId,
    /// The chunk that is due.
    due: u64,
    capacity: usize,
    to: oneshot::Sender<Option<Returned>>,
}

struct Offered {
    session: Arc<Session>,
    kept: KeptAttempt,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<AttemptId, Waiting>,
    offered: HashMap<AttemptId, Offered>,
}

/// Where the two meet. Bounded by the requests in flight, and by what a session may offer in one message.
#[derive(Default)]
pub(crate) struct Returns {
    table: Mutex<Table>,
}

/// What a request waits for. Dropping it ends the wait.
pub(crate) struct Wait<'a> {
    returns: &'a Returns,
    attempt: AttemptId,
    from: oneshot::Receiver<Option<Returned>>,
}

impl Wait<'_> {
    /// The attempt on its new connection; nothing where its machine is back without it.
    pub(crate) async fn returned(&mut self) -> Option<Returned> {
        (&mut self.from).await.ok().flatten()
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.returns.table.lock().waiting.remove(&self.attempt);
    }
}

impl Returns {
    /// Waits for `attempt` to be offered by `machine`, from chunk `due` on.
    pub(crate) fn wait(&self, attempt: AttemptId, machine: MachineId, due: u64, capacity: usize) -> Wait<'_> {
        let (to, from) = oneshot::channel();
        let waiting = Waiting { machine, due, capacity, to };
        let mut table = self.table.lock();
        let left = match table.offered.remove(&attempt) {
            Some(offered) => meet(waiting, &offered.session, offered.kept),
            None => Some(waiting),
        };
        if let Some(waiting) = left {
            table.waiting.insert(attempt, waiting);
        }
        drop(table);
        Wait { returns: self, attempt, from }
    }

    /// What `session` offers; gives the attempts that nobody waits for yet.
    fn offer(&self, session: &Arc<Session>, kept: &[KeptAttempt]) -> Vec<AttemptId> {
        let (mut early, mut again) = (Vec::new(), Vec::new());
        let mut table = self.table.lock();
        for kept in kept {
            match table.waiting.remove(&kept.attempt) {
                Some(waiting) => again.extend(meet(waiting, session, *kept).map(|left| (kept.attempt, left))),
                None => {
                    early.push(kept.attempt);
                    let offered = Offered { session: Arc::clone(session), kept: *kept };
                    table.offered.insert(kept.attempt, offered);
                }
            }
        }
        // It is back, and has no more than this: whoever waits for more of it waits in vain.
        let vain = table.waiting.extract_if(|_, waiting| waiting.machine == session.machine);
        let vain: Vec<Waiting> = vain.map(|(_, waiting)| waiting).collect();
        table.waiting.extend(again);
        drop(table);
        for waiting in vain {
            let _ = waiting.to.send(None);
        }
        early
    }

    /// Those of `attempts` that are still offered by `session`, and are no more.
    fn unwanted(&self, session: &Arc<Session>, attempts: Vec<AttemptId>) -> Vec<AttemptId> {
        let mut table = self.table.lock();
        let mine = |table: &Table, attempt: &AttemptId| {
            table.offered.get(attempt).is_some_and(|offered| Arc::ptr_eq(&offered.session, session))
        };
        let left: Vec<AttemptId> = attempts.into_iter().filter(|attempt| mine(&table, attempt)).collect();
        for attempt in &left {
            table.offered.remove(attempt);
        }
        left
    }
}

/// Has the machine go on, where it can from the chunk that is due. Gives the wait back where that connection is gone as
/// well: who noticed the first loss late meets an offer of before the second, and the machine will be back with another.
fn meet(waiting: Waiting, session: &Arc<Session>, kept: KeptAttempt) -> Option<Waiting> {
    let can = kept.first_counter <= waiting.due && waiting.due <= kept.next_counter;
    let right = waiting.machine == session.machine;
    if !can || !right {
        if right {
            session.lanes.control(FromCoordinator::Cancel { attempt: kept.attempt });
        }
        let _ = waiting.to.send(None);
        return None;
    }
    let Some(receiving) = session.attempts.open(kept.attempt, waiting.capacity) else { return Some(waiting) };
    // Its first chunk finds the attempt open.
    session.lanes.control(FromCoordinator::Resume { attempt: kept.attempt, from_counter: waiting.due });
    let returned = Returned { session: Arc::clone(session), receiving };
    if waiting.to.send(Some(returned)).is_err() {
        session.attempts.end(kept.attempt, super::attempts::Ended::GivenUp);
        session.lanes.control(FromCoordinator::Cancel { attempt: kept.attempt });
    }
    None
}

/// Attempts that one machine may offer: more than any computes and keeps.
const OFFERED_MAX: usize = 16_384;

impl Core {
    /// A machine is back, with these attempts.
    pub(crate) fn returned(self: &Arc<Self>, session: &Arc<Session>, kept: &[KeptAttempt]) {
        let kept = &kept[..kept.len().min(OFFERED_MAX)];
        if !kept.is_empty() {
            tracing::info!(machine = %session.machine, kept = kept.len(), "a machine is back with attempts");
        }
        let early = self.returns.offer(session, kept);
        if early.is_empty() {
            return;
        }
        let (core, session) = (Arc::clone(self), Arc::clone(session));
        // Who noticed the loss later than the machine was back still finds it.
        let patience = span(self.config.requests.patience_us).max(Duration::from_millis(1));
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(patience) => {}
                () = core.end.cancelled() => {}
            }
            for attempt in core.returns.unwanted(&session, early) {
                Metrics::count(&core.metrics.attempts, "unwanted");
                session.lanes.control(FromCoordinator::Cancel { attempt });
            }
        });
    }
}
