//! One rank's links to all others, as a transport: who waits for whom, how, and who is to blame.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use collective::{Cause, Fault, Traffic, Transport, TransportError};
use rustix::event::{PollFd, PollFlags, poll};

use crate::alarm::Alarm;
use crate::control::{ControlReader, ControlSender};
use crate::lane::{Counters, Lane, Moved, add, since_ns};

/// Looks before a waiting rank first gives its core away: about 20 us, what a neighbour in step takes to answer.
pub(crate) const LOOKS: u32 = 40;

/// How long a rank goes on looking, giving its core to whoever wants it after each look, before it sleeps. A wake-up
/// costs 30 to 60 us and would be paid in every layer; a step's computation between two sums takes less than this.
const LOOKING: Duration = Duration::from_millis(3);

/// How long a sleeping rank may miss that the group is over: the alarm is looked at this often: 10 ms.
const SLICE_NS: i64 = 10_000_000;

/// How long a closed connection may wait for word of whose fault it was: the notice travels on another connection.
const WORD: Duration = Duration::from_millis(50);

/// One rank's sealed links. Dropping them says goodbye and joins their threads.
pub struct Links {
    rank: usize,
    /// By rank; `None` at this rank's own place.
    lanes: Vec<Option<Lane>>,
    senders: Vec<Option<Arc<ControlSender>>>,
    readers: Vec<JoinHandle<()>>,
    alarm: Arc<Alarm>,
    over: Arc<AtomicBool>,
    counters: Arc<Counters>,
    met: Arc<Met>,
    told: bool,
}

/// Ends a group's links from another thread.
#[derive(Clone)]
pub struct Stopper(Arc<Alarm>);

impl Stopper {
    /// Ends the group: what waits on it returns within some 10 ms, and tells the other ranks.
    pub fn stop(&self, why: &str) {
        self.0.raise(Fault::ended(why));
    }

    /// Why the group is over, where it is.
    pub fn fault(&self) -> Option<Fault> {
        self.0.fault()
    }
}

/// Where a rank dialled another: the first address of its order that worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialled {
    /// Whom.
    pub rank: usize,
    /// Where, for what is large.
    pub data: SocketAddr,
    /// Where, for what is small and urgent.
    pub control: SocketAddr,
}

/// How the members of a group came to each other.
#[derive(Debug, Default)]
pub(crate) struct Met {
    pub(crate) dialled: Vec<Dialled>,
    pub(crate) retries: u64,
}

/// What another thread may read of a rank's links.
#[derive(Clone)]
pub struct Telemetry {
    counters: Arc<Counters>,
    alarm: Arc<Alarm>,
    met: Arc<Met>,
}

impl Telemetry {
    /// What was carried so far.
    pub fn traffic(&self) -> Traffic {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        Traffic {
            messages_sent: read(&c.messages_sent),
            bytes_sent: read(&c.bytes_sent),
            messages_received: read(&c.messages_received),
            bytes_received: read(&c.bytes_received),
            seal_ns: read(&c.seal_ns),
            wire_ns: read(&c.wire_ns),
            wait_ns: read(&c.wait_ns),
        }
    }

    /// How long the last answered ping to `rank` took.
    pub fn round_trip(&self, rank: usize) -> Option<Duration> {
        self.alarm.round_trip(rank)
    }

    /// Where this rank dialled those below it.
    pub fn dialled(&self) -> &[Dialled] {
        &self.met.dialled
    }

    /// Tries at links that failed before all of them stood.
    pub fn retries(&self) -> u64 {
        self.met.retries
    }

    /// Control frames that could not be read.
    pub fn malformed(&self) -> u64 {
        self.alarm.malformed()
    }
}

/// What [`Links`] are made of.
pub(crate) struct Parts {
    pub(crate) rank: usize,
    pub(crate) lanes: Vec<Option<Lane>>,
    pub(crate) senders: Vec<Option<Arc<ControlSender>>>,
    pub(crate) readers: Vec<ControlReader>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) over: Arc<AtomicBool>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) met: Arc<Met>,
}

impl Links {
    /// # Errors
    /// No thread could be started.
    pub(crate) fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts { rank, lanes, senders, readers, alarm, over, counters, met } = parts;
        let mut links =
            Self { rank, lanes, senders, readers: Vec::new(), alarm, over, counters, met, told: false };
        for reader in readers {
            let name = format!("link-{}", reader.peer);
            links.alarm.heard(reader.peer);
            let thread = std::thread::Builder::new().name(name).spawn(move || reader.run())?;
            links.readers.push(thread);
        }
        Ok(links)
    }

    /// A way to end the group from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.alarm))
    }

    /// What other threads may read.
    pub fn telemetry(&self) -> Telemetry {
        let (counters, alarm) = (Arc::clone(&self.counters), Arc::clone(&self.alarm));
        Telemetry { counters, alarm, met: Arc::clone(&self.met) }
    }

    fn lane(&mut self, rank: usize) -> &mut Lane {
        self.lanes[rank].as_mut().expect("a rank has no link to itself")
    }

    /// What to say where the lane to `rank` ended: the alarm's word, which may name another, where it comes in time.
    fn why(&self, rank: usize, cause: Cause) -> TransportError {
        let waiting = Instant::now();
        while cause == Cause::Closed && !self.alarm.is_raised() && waiting.elapsed() < WORD {
            std::thread::yield_now();
        }
        let fault = self.alarm.fault().unwrap_or_else(|| Fault::of(rank, cause));
        self.alarm.raise(fault.clone());
        fault.into()
    }

    fn late(&self, rank: usize, patience: Duration) -> TransportError {
        self.alarm.blame(rank, self.rank, patience).into()
    }

    /// Waits a little for `rank`'s socket: more patiently the longer it has been.
    fn pause(&mut self, rank: usize, looks: u32, waited: Duration, wanted: PollFlags) {
        if looks < LOOKS {
            std::hint::spin_loop();
        } else if waited < LOOKING {
            std::thread::yield_now();
        } else {
            let slice = rustix::event::Timespec { tv_sec: 0, tv_nsec: SLICE_NS };
            let mut sockets = [PollFd::new(&self.lane(rank).stream, wanted)];
            // Whatever this says, the socket is asked next.
            let _ = poll(&mut sockets, Some(&slice));
        }
    }

    /// Writes what is sealed for `to`. Where the way is full, takes in what others send meanwhile: they may be as full.
    fn flush(&mut self, to: usize, patience: Duration) -> Result<(), TransportError> {
        let mut waiting: Option<Instant> = None;
        let mut looks = 0;
        while !self.lane(to).is_written() {
            match self.lane(to).write() {
                Err(cause) => return Err(self.why(to, cause)),
                Ok(Moved::Some) => {
                    waiting = None;
                    looks = 0;
                    continue;
                }
                Ok(Moved::Nothing) => {}
            }
            if let Some(fault) = self.alarm.is_raised().then(|| self.alarm.fault()).flatten() {
                return Err(fault.into());
            }
            let started = *waiting.get_or_insert_with(Instant::now);
            if started.elapsed() > patience {
                let fault = self.alarm.blame(to, self.rank, patience);
                return Err(TransportError { culprit: fault.culprit, cause: Cause::Stuck(patience) });
            }
            let moved = self.lanes.iter_mut().flatten().any(|lane| lane.pump() == Moved::Some);
            if !moved {
                looks += 1;
                self.pause(to, looks, started.elapsed(), PollFlags::OUT | PollFlags::IN);
            }
        }
        if let Some(started) = waiting {
            add(&self.counters.wait_ns, since_ns(started));
        }
        Ok(())
    }

    /// Looks for a frame from `from` until it is there.
    fn await_frame(
        &mut self,
        from: usize,
        into: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<(), TransportError> {
        let started = Instant::now();
        let mut looks = 0;
        let mut waited = Duration::ZERO;
        loop {
            let lane = self.lane(from);
            if lane.take(into) {
                add(&self.counters.wait_ns, u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
                return Ok(());
            }
            if let Some(cause) = lane.ended() {
                let cause = cause.clone();
                return Err(self.why(from, cause));
            }
            if lane.pump() == Moved::Some {
                continue;
            }
            if let Some(fault) = self.alarm.is_raised().then(|| self.alarm.fault()).flatten() {
                return Err(fault.into());
            }
            waited = started.elapsed();
            if waited > patience {
                return Err(self.late(from, patience));
            }
            looks += 1;
            self.pause(from, looks, waited, PollFlags::IN);
        }
    }
}

impl Transport for Links {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.lanes.len()
    }

    fn send(&mut self, to: usize, message: &[u8], patience: Duration) -> Result<(), TransportError> {
        if let Some(fault) = self.alarm.is_raised().then(|| self.alarm.fault()).flatten() {
            return Err(fault.into());
        }
        let mut at = 0;
        while at < message.len() {
            at = self.lane(to).seal(message, at);
            self.flush(to, patience)?;
        }
        add(&self.counters.messages_sent, 1);
        add(&self.counters.bytes_sent, message.len() as u64);
        Ok(())
    }

    fn receive(&mut self, from: usize, into: &mut Vec<u8>, patience: Duration) -> Result<(), TransportError> {
        self.await_frame(from, into, patience)
    }

    fn poison(&mut self, fault: &Fault) {
        self.alarm.raise(fault.clone());
        if !std::mem::replace(&mut self.told, true) {
            self.senders.iter().flatten().for_each(|sender| sender.fault(fault));
        }
    }

    fn traffic(&self) -> Traffic {
        self.telemetry().traffic()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // The threads learn that it is over before their connections close, so that none takes it for a fault.
        self.over.store(true, Ordering::Release);
        for sender in self.senders.iter().flatten() {
            if !self.told {
                sender.goodbye("its part of the group ended");
            }
            sender.close();
        }
        for reader in self.readers.drain(..) {
            // A reader that panicked has nothing left to do here.
            let _ = reader.join();
        }
        self.alarm.raise(Fault::ended("the links were taken down"));
    }
}
