//! A wire between two programs that a test can listen on, and damage: a relay that knows the records of TLS and nothing of
//! what is in them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a relaying thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(10);
/// A record's header: kind, version, length.
const HEADER_BYTES: usize = 5;
/// The kind of every record after the handshake.
const APPLICATION_DATA: u8 = 23;

/// What happens to a record, or from it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// One of its bits is another; which one, of its body.
    Corrupt(usize),
    /// Its last bytes are missing, and its header does not say so.
    Cut(usize),
    /// Its last bytes are missing, and its header says so.
    Shorten(usize),
    /// It does not arrive.
    Drop,
    /// It arrives twice.
    Duplicate,
    /// One that came before arrives again after it.
    Replay,
    /// The next one arrives before it.
    Swap,
    /// Nothing arrives any more, in no direction; no connection closes.
    Silence,
    /// Nothing arrives any more in this direction; no connection closes.
    Mute,
    /// Every connection closes.
    Close,
    /// It arrives in pieces of a few bytes. Nothing is wrong with that.
    Crumble,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the one who dialled.
    Out,
    /// To the one who dialled.
    Back,
}

/// Everything that went over one connection in one direction, as it was sent.
#[derive(Debug, Default, Clone)]
pub struct Capture {
    /// Every byte.
    pub bytes: Vec<u8>,
}

/// A record as it lies on the wire.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// 23 for all that is sealed, but for the handshake's first.
    pub kind: u8,
    /// What follows the header.
    pub body: &'a [u8],
}

impl Capture {
    /// Its whole records; `None` where something else stands between them.
    pub fn records(&self) -> Option<Vec<Record<'_>>> {
        let mut rest = self.bytes.as_slice();
        let mut records = Vec::new();
        while let Some(header) = rest.get(..HEADER_BYTES) {
            if header[1] != 3 || !(20..=23).contains(&header[0]) {
                return None;
            }
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            // The last one may have been cut off by the end.
            let Some(body) = rest.get(HEADER_BYTES..HEADER_BYTES + length) else { break };
            records.push(Record { kind: header[0], body });
            rest = &rest[HEADER_BYTES + length..];
        }
        Some(records)
    }
}

/// A door that leads to another one.
pub struct Tap {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    over: AtomicBool,
    plan: Mutex<Option<(Damage, Way, u64)>>,
    /// Sealed records so far, each way, over all connections.
    records: [AtomicU64; 2],
    fired: AtomicBool,
    muted: [AtomicBool; 2],
    captures: Mutex<Vec<Capture>>,
    sockets: Mutex<Vec<TcpStream>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tap {
    /// A door on the loopback that leads to `target`.
    ///
    /// # Panics
    /// The system gives no socket.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket option");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || accept(&listener, target, &shared));
        Self { address, state, thread: Some(thread) }
    }

    /// Where it is dialled.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this to the `at`-th sealed record from now on that goes this way.
    pub fn plan(&self, damage: Damage, way: Way, at: u64) {
        let from = self.records(way);
        self.state.fired.store(false, Ordering::SeqCst);
        *lock(&self.state.plan) = Some((damage, way, from + at));
    }

    /// Whether it was done.
    pub fn fired(&self) -> bool {
        self.state.fired.load(Ordering::SeqCst)
    }

    /// Sealed records that have gone this way.
    pub fn records(&self, way: Way) -> u64 {
        self.state.records[way as usize].load(Ordering::SeqCst)
    }

    /// What has been sent so far, by connection and direction.
    pub fn captures(&self) -> Vec<Capture> {
        lock(&self.state.captures).clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A relaying thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, state: &Arc<State>) {
    let mut relays = Vec::new();
    while !state.over.load(Ordering::SeqCst) {
        let Ok((near, _)) = listener.accept() else {
            std::thread::park_timeout(LOOK);
            continue;
        };
        let Ok(far) = TcpStream::connect(target) else { continue };
        let pair = [(&near, &far, Way::Out), (&far, &near, Way::Back)];
        for (from, to, way) in pair {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let state = Arc::clone(state);
            relays.push(std::thread::spawn(move || Relay::new(from, to, way, &state).run()));
        }
        lock(&state.sockets).extend([near, far]);
    }
    for socket in lock(&state.sockets).drain(..) {
        let _ = socket.shutdown(Shutdown::Both);
    }
    for relay in relays {
        let _ = relay.join();
    }
}

struct Relay<'a> {
    from: TcpStream,
    to: TcpStream,
    way: Way,
    state: &'a State,
    capture: usize,
    pending: Vec<u8>,
    /// One that waits for the next to overtake it.
    held: Option<Vec<u8>>,
    /// The first sealed record that went this way, to be sent again.
    former: Option<Vec<u8>>,
}

impl<'a> Relay<'a> {
    fn new(from: TcpStream, to: TcpStream, way: Way, state: &'a State) -> Self {
        let mut captures = lock(&state.captures);
        captures.push(Capture::default());
        let capture = captures.len() - 1;
        drop(captures);
        for socket in [&from, &to] {
            socket.set_nonblocking(false).expect("a socket option");
            socket.set_nodelay(true).expect("a socket option");
            socket.set_write_timeout(Some(Duration::from_secs(30))).expect("a socket option");
        }
        from.set_read_timeout(Some(LOOK)).expect("a socket option");
        Self { from, to, way, state, capture, pending: Vec::new(), held: None, former: None }
    }

    fn run(mut self) {
        let mut chunk = vec![0; 64 << 10];
        while !self.state.over.load(Ordering::SeqCst) {
            if self.state.muted[self.way as usize].load(Ordering::SeqCst) {
                // A cut wire: what is sent stays where it is.
                std::thread::park_timeout(LOOK);
                continue;
            }
            match self.from.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    lock(&self.state.captures)[self.capture].bytes.extend_from_slice(&chunk[..count]);
                    self.pending.extend_from_slice(&chunk[..count]);
                    if self.records().is_err() {
                        break;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        if !self.state.muted.iter().any(|muted| muted.load(Ordering::SeqCst)) {
            let _ = self.to.shutdown(Shutdown::Write);
        }
    }

    fn records(&mut self) -> std::io::Result<()> {
        while let Some(header) = self.pending.get(..HEADER_BYTES) {
            let length = HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
            if self.pending.len() < length {
                break;
            }
            let rest = self.pending.split_off(length);
            let record = std::mem::replace(&mut self.pending, rest);
            self.record(record)?;
        }
        Ok(())
    }

    fn record(&mut self, record: Vec<u8>) -> std::io::Result<()> {
        if record[0] != APPLICATION_DATA {
            return self.to.write_all(&record);
        }
        let number = self.state.records[self.way as usize].fetch_add(1, Ordering::SeqCst);
        let due = match *lock(&self.state.plan) {
            Some((damage, way, at)) if way == self.way && number >= at => Some(damage),
            _ => None,
        };
        // One record is damaged, whichever connection comes first.
        let due = due.filter(|_| !self.state.fired.swap(true, Ordering::SeqCst));
        let former = self.former.get_or_insert_with(|| record.clone()).clone();
        match due {
            None => self.to.write_all(&record)?,
            Some(damage) => return self.damage(damage, record, former),
        }
        match self.held.take() {
            Some(held) => self.to.write_all(&held),
            None => Ok(()),
        }
    }

    fn damage(&mut self, damage: Damage, mut record: Vec<u8>, former: Vec<u8>) -> std::io::Result<()> {
        let body = record.len() - HEADER_BYTES;
        match damage {
            Damage::Corrupt(at) => record[HEADER_BYTES + at % body] ^= 1 << (at % 8),
            Damage::Cut(bytes) => record.truncate(record.len() - bytes.clamp(1, body)),
            Damage::Shorten(bytes) => {
                let left = body - bytes.clamp(1, body);
                record.truncate(HEADER_BYTES + left);
                let length = u16::try_from(left).expect("a record is short").to_be_bytes();
                record[3..HEADER_BYTES].copy_from_slice(&length);
            }
            Damage::Drop => return Ok(()),
            Damage::Duplicate => record.extend_from_within(..),
            Damage::Replay => record.extend_from_slice(&former),
            Damage::Swap => {
                self.held = Some(record);
                return Ok(());
            }
            Damage::Silence | Damage::Mute => {
                let both = damage == Damage::Silence;
                for (way, muted) in self.state.muted.iter().enumerate() {
                    muted.fetch_or(both || way == self.way as usize, Ordering::SeqCst);
                }
                return Ok(());
            }
            Damage::Close => {
                for socket in lock(&self.state.sockets).iter() {
                    let _ = socket.shutdown(Shutdown::Both);
                }
                return Err(ErrorKind::ConnectionReset.into());
            }
            Damage::Crumble => {
                return record.chunks(3).try_for_each(|piece| self.to.write_all(piece));
            }
        }
        self.to.write_all(&record)
    }
}
