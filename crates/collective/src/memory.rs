//! Ranks in one process: messages through shared memory, for tests and for a machine that divides a model among its own
//! cores.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fault::{Cause, Fault};
use crate::transport::{Traffic, Transport, TransportError};

/// Messages that may lie between two ranks. The ranks of a group go in step: no operation puts more than two on a way
/// before it waits for the other side, so this is reached only by a caller that sends and never receives.
const LANE_MESSAGES_MAX: usize = 64;

/// How often a receiver looks before it sleeps, a few microseconds: a neighbour in step answers within that.
const LOOKS: usize = 2_000;

/// Makes the transports of a group of `ranks`, all in this process.
///
/// # Panics
/// Where `ranks` is 0.
pub fn in_memory(ranks: usize) -> Vec<InMemory> {
    assert!(ranks > 0, "a group has at least one rank");
    let shared = Arc::new(Shared {
        ranks,
        lanes: (0..ranks * ranks).map(|_| Lane::default()).collect(),
        fault: Mutex::new(None),
    });
    (0..ranks)
        .map(|rank| InMemory { rank, shared: Arc::clone(&shared), traffic: Traffic::default() })
        .collect()
}

/// One rank's transport among ranks of the same process. Dropping it closes its ways, as a dying process would.
pub struct InMemory {
    rank: usize,
    shared: Arc<Shared>,
    traffic: Traffic,
}

struct Shared {
    ranks: usize,
    /// From `i` to `j` at `i * ranks + j`.
    lanes: Vec<Lane>,
    fault: Mutex<Option<Fault>>,
}

#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Messages in the queue, plus one where its sender is gone or the group over: to look without the lock.
    news: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Vec<u8>>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    /// The sender or the receiver is gone, or the group is over.
    closed: bool,
}

impl Lane {
    /// The queue. A thread that panicked with the lock held has left it whole: every change is one call.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.news.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
    }
}

impl InMemory {
    fn lane(&self, from: usize, to: usize) -> &Lane {
        &self.shared.lanes[from * self.shared.ranks + to]
    }

    /// Why the way to or from `other` is closed.
    fn closed(&self, other: usize) -> TransportError {
        let fault = self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match &*fault {
            Some(fault) => fault.clone().into(),
            None => TransportError { culprit: Some(other), cause: Cause::Closed },
        }
    }

    /// Waits on the lane until `ready` or closed; `None` where the time is up.
    fn wait<'a>(
        lane: &'a Lane,
        patience: Duration,
        waiting: impl Fn(&Queue) -> bool,
    ) -> Option<MutexGuard<'a, Queue>> {
        let (queue, _) = lane
            .changed
            .wait_timeout_while(lane.lock(), patience, |q| !q.closed && waiting(q))
            .unwrap_or_else(PoisonError::into_inner);
        (queue.closed || !waiting(&queue)).then_some(queue)
    }
}

impl Transport for InMemory {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.shared.ranks
    }

    fn send(&mut self, to: usize, message: &[u8], patience: Duration) -> Result<(), TransportError> {
        let lane = self.lane(self.rank, to);
        let Some(mut queue) = Self::wait(lane, patience, |q| q.messages.len() >= LANE_MESSAGES_MAX) else {
            return Err(TransportError { culprit: Some(to), cause: Cause::Stuck(patience) });
        };
        if queue.closed {
            drop(queue);
            return Err(self.closed(to));
        }
        let mut buffer = queue.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(message);
        queue.messages.push_back(buffer);
        drop(queue);
        lane.news.fetch_add(1, Ordering::Release);
        lane.changed.notify_all();
        self.traffic.messages_sent += 1;
        self.traffic.bytes_sent += message.len() as u64;
        Ok(())
    }

    fn receive(&mut self, from: usize, into: &mut Vec<u8>, patience: Duration) -> Result<(), TransportError> {
        let lane = self.lane(from, self.rank);
        for _ in 0..LOOKS {
            if lane.news.load(Ordering::Acquire) > 0 {
                break;
            }
            std::hint::spin_loop();
        }
        let Some(mut queue) = Self::wait(lane, patience, |q| q.messages.is_empty()) else {
            return Err(TransportError { culprit: Some(from), cause: Cause::Late(patience) });
        };
        // What was sent before the end still arrives, as it does over a socket.
        let Some(mut message) = queue.messages.pop_front() else {
            drop(queue);
            return Err(self.closed(from));
        };
        std::mem::swap(into, &mut message);
        queue.spare.push(message);
        drop(queue);
        lane.news.fetch_sub(1, Ordering::AcqRel);
        lane.changed.notify_all();
        self.traffic.messages_received += 1;
        self.traffic.bytes_received += into.len() as u64;
        Ok(())
    }

    fn poison(&mut self, fault: &Fault) {
        let mut first = self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(Fault { operation: 0, ..fault.clone() });
        }
        drop(first);
        self.shared.lanes.iter().for_each(Lane::close);
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        for other in (0..self.shared.ranks).filter(|&other| other != self.rank) {
            self.lane(self.rank, other).close();
            self.lane(other, self.rank).close();
        }
    }
}
