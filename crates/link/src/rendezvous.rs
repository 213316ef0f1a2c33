//! How the members of a group find each other: every rank dials the ranks below it and is dialled by those above, with
//! back-off while they arrive, until all are there and have proved it, or the time is up.

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base::{Epoch, Incarnation, InstanceId, MachineId};
use collective::{Fault, Group, GroupTerms};
use trust::MachineKeys;
use wire::link::{LinkHello, Mode, WireType};

use crate::alarm::Alarm;
use crate::cancel::Cancel;
use crate::control::{ControlTerms, control};
use crate::establish::{Established, Expected, LinkError, accepted, dialled};
use crate::lane::{Counters, Lane};
use crate::links::{Dialled, Links, Met, Parts};
use crate::verify::verify;

/// Connections that are being brought up at once; more are closed unheard. A group has few members, so more are
/// strangers.
const ACCEPTING_MAX: usize = 64;

/// Failed tries that are kept for each rank, the last ones.
const CAUSES_MAX: usize = 8;

/// This rank's place in a group that is to form.
#[derive(Debug, Clone)]
pub struct Place {
    /// The instance that the group makes.
    pub instance: InstanceId,
    /// Which life of it.
    pub epoch: Epoch,
    /// This rank.
    pub rank: usize,
    /// SHA-256 of the model's weights.
    pub model: [u8; 32],
    /// SHA-256 of the shard map.
    pub shard_map: [u8; 32],
    /// How the model is divided.
    pub mode: Mode,
    /// How sums travel.
    pub dtype: WireType,
}

/// A rank of the roster, in the order of ranks.
#[derive(Debug, Clone)]
pub struct Member {
    /// Whose machine.
    pub machine: MachineId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Its Ed25519 public key.
    pub key: [u8; 32],
    /// Where it may be reached, best first for what is large.
    pub addresses: Vec<SocketAddr>,
    /// The same, surest first, for what is small and urgent; as `addresses` where empty.
    pub meeting: Vec<SocketAddr>,
}

/// How long forming may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// All of it.
    pub total: Duration,
    /// One try at one address.
    pub attempt: Duration,
    /// A message, once formed: the step deadline.
    pub patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(30),
            attempt: Duration::from_secs(3),
            patience: Duration::from_secs(2),
        }
    }
}

/// A rank that is not there, and how every recent try failed.
#[derive(Debug, Clone)]
pub struct MissingRank {
    /// Which.
    pub rank: usize,
    /// On which machine.
    pub machine: MachineId,
    /// The last tries: where, and why it failed. Empty where it was to dial and never did.
    pub causes: Vec<(SocketAddr, LinkError)>,
}

/// Why a group did not form.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FormError {
    /// A roster that makes no group.
    #[error("{0}")]
    Roster(String),
    /// Some did not come in time.
    #[error("{} within {} s: {}", one_or_many(.missing.len()), .after.as_secs(), list(.missing))]
    Missing {
        /// Which.
        missing: Vec<MissingRank>,
        /// How long was waited.
        after: Duration,
    },
    /// Somebody is there for another group than this rank is.
    #[error("rank {rank} ({machine}): {cause}")]
    Refused {
        /// Which.
        rank: usize,
        /// On which machine.
        machine: MachineId,
        /// What differs.
        cause: LinkError,
    },
    /// All were there, and one was lost or wrong in the verification.
    #[error("the group did not verify: {0}")]
    Unverified(#[from] Fault),
    /// It was called off.
    #[error("forming was called off")]
    Cancelled,
    /// The system refused a socket or a thread.
    #[error("the system refused {what}: {detail}")]
    System {
        /// What.
        what: &'static str,
        /// What it said.
        detail: String,
    },
}

fn one_or_many(count: usize) -> &'static str {
    if count == 1 { "a rank did not come" } else { "ranks did not come" }
}

fn list(missing: &[MissingRank]) -> String {
    let one = |m: &MissingRank| {
        let last = m.causes.last().map_or_else(
            || "it never connected".to_owned(),
            |(address, cause)| format!("at {address}: {cause}"),
        );
        format!("rank {} ({}): {last}", m.rank, m.machine)
    };
    missing.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Where a rank is dialled. Its port is the system's choice; whoever makes the roster must be told it.
pub struct Listener {
    sockets: Vec<TcpListener>,
}

impl Listener {
    /// Listens on each of `addresses` on one free port of each.
    ///
    /// # Errors
    /// None of the addresses can be listened on.
    pub fn bind(addresses: &[IpAddr]) -> std::io::Result<Self> {
        let mut sockets = Vec::new();
        let mut failed = None;
        for &address in addresses {
            match TcpListener::bind((address, 0)).and_then(|s| s.set_nonblocking(true).map(|()| s)) {
                Ok(socket) => sockets.push(socket),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if sockets.is_empty() => Err(error),
            _ => Ok(Self { sockets }),
        }
    }

    /// The addresses that are listened on, with their ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|s| s.local_addr().ok()).collect()
    }
}

/// What [`form`] works with.
pub struct Gathering<'a> {
    /// Where others dial this rank.
    pub listener: &'a Listener,
    /// This machine's keys.
    pub keys: &'a MachineKeys,
    /// This rank.
    pub place: &'a Place,
    /// All ranks, this one included, in order.
    pub roster: &'a [Member],
    /// How long.
    pub timing: Timing,
    /// Calls it off.
    pub cancel: &'a Cancel,
}

/// What the threads of a gathering report.
enum News {
    Up(Box<Established>),
    Failed { rank: usize, address: SocketAddr, cause: LinkError },
}

/// Meets all other ranks and verifies the group that they make: exactly the asked-for ranks, or an error that says which
/// is missing and why.
///
/// # Errors
/// See [`FormError`].
pub fn form(gathering: &Gathering<'_>) -> Result<Group<Links>, FormError> {
    let Gathering { place, roster, timing, .. } = *gathering;
    check(place, roster)?;
    let up = gather(gathering)?;
    let links = assemble(up, place, roster.len(), timing.patience)
        .map_err(|e| FormError::System { what: "a socket or thread", detail: e.to_string() })?;
    let terms = GroupTerms { epoch: place.epoch.0, dtype: place.dtype, patience: timing.patience };
    let mut group = Group::new(links, terms);
    verify(&mut group)?;
    Ok(group)
}

fn check(place: &Place, roster: &[Member]) -> Result<(), FormError> {
    let ranks = roster.len();
    if ranks < 2 {
        return Err(FormError::Roster(format!(
            "a group has at least two ranks, and the roster names {ranks}"
        )));
    }
    if place.rank >= ranks {
        let what = format!("rank {} is not on a roster of {ranks}", place.rank);
        return Err(FormError::Roster(what));
    }
    if let Some(rank) = (0..place.rank).find(|&rank| roster[rank].addresses.is_empty()) {
        let what = format!("rank {rank} has no address at which rank {} could dial it", place.rank);
        return Err(FormError::Roster(what));
    }
    Ok(())
}

fn hello(gathering: &Gathering<'_>, control: bool) -> LinkHello {
    let Gathering { place, roster, .. } = *gathering;
    let me = &roster[place.rank];
    LinkHello {
        machine: me.machine,
        incarnation: me.incarnation,
        instance: place.instance,
        epoch: place.epoch,
        rank: u32::try_from(place.rank).unwrap_or(u32::MAX),
        ranks: u32::try_from(roster.len()).unwrap_or(u32::MAX),
        model: place.model,
        shard_map: place.shard_map,
        mode: place.mode,
        dtype: place.dtype,
        control,
    }
}

fn expected(roster: &[Member], rank: usize) -> Expected {
    let member = &roster[rank];
    Expected { rank, machine: member.machine, incarnation: member.incarnation, key: member.key }
}

/// Both connections of a rank, as they come up.
#[derive(Default)]
struct Pair {
    data: Option<Established>,
    control: Option<Established>,
    causes: Vec<(SocketAddr, LinkError)>,
    /// Tries that failed.
    failed: u64,
}

/// Dials and accepts until every other rank has both its connections.
fn gather(gathering: &Gathering<'_>) -> Result<Vec<Pair>, FormError> {
    let Gathering { place, roster, timing, cancel, .. } = *gathering;
    let deadline = Instant::now() + timing.total;
    // Ends the dialling threads when this function returns, however it does.
    let over = Cancel::new();
    std::thread::scope(|scope| {
        // Bounded: a thread that finds it full lets its news wait, or drops a stranger's.
        let (news, heard) = sync_channel(4 * ACCEPTING_MAX);
        for rank in 0..place.rank {
            for is_control in [false, true] {
                let (news, over) = (news.clone(), over.clone());
                scope.spawn(move || dial(gathering, rank, is_control, &news, &over, deadline));
            }
        }
        let accepting = {
            let (news, over) = (news.clone(), over.clone());
            scope.spawn(move || accept(gathering, &news, &over, deadline))
        };
        drop(news);
        let mut pairs: Vec<Pair> = roster.iter().map(|_| Pair::default()).collect();
        let result = collect(&heard, &mut pairs, place.rank, roster, deadline, cancel);
        over.cancel();
        // The channel is drained so that no thread waits to report into it.
        drop(heard);
        let _ = accepting.join();
        result.map(|()| pairs)
    })
    .map_err(|error| match error {
        FormError::Missing { missing, .. } => FormError::Missing { missing, after: timing.total },
        other => other,
    })
}

fn collect(
    heard: &Receiver<News>,
    pairs: &mut [Pair],
    me: usize,
    roster: &[Member],
    deadline: Instant,
    cancel: &Cancel,
) -> Result<(), FormError> {
    let is_up = |pairs: &[Pair], rank: usize| pairs[rank].data.is_some() && pairs[rank].control.is_some();
    while !(0..pairs.len()).all(|rank| rank == me || is_up(pairs, rank)) {
        if cancel.is_cancelled() {
            return Err(FormError::Cancelled);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let missing: Vec<usize> =
                (0..pairs.len()).filter(|&rank| rank != me && !is_up(pairs, rank)).collect();
            let missing = missing.into_iter().map(|rank| MissingRank {
                rank,
                machine: roster[rank].machine,
                causes: std::mem::take(&mut pairs[rank].causes),
            });
            return Err(FormError::Missing { missing: missing.collect(), after: Duration::ZERO });
        }
        match heard.recv_timeout(left.min(Duration::from_millis(20))) {
            Ok(News::Up(link)) => {
                // A rank that dials again has given its former connection up: the newest stands.
                let pair = &mut pairs[link.rank];
                let slot = if link.control { &mut pair.control } else { &mut pair.data };
                *slot = Some(*link);
            }
            Ok(News::Failed { rank, cause, .. }) if cause.is_final() => {
                return Err(FormError::Refused { rank, machine: roster[rank].machine, cause });
            }
            Ok(News::Failed { rank, address, cause }) => {
                pairs[rank].failed += 1;
                let causes = &mut pairs[rank].causes;
                if causes.len() == CAUSES_MAX {
                    causes.remove(0);
                }
                causes.push((address, cause));
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// Tries every address of `rank` in turn, pausing longer after each round, until one works.
fn dial(
    gathering: &Gathering<'_>,
    rank: usize,
    is_control: bool,
    news: &SyncSender<News>,
    over: &Cancel,
    deadline: Instant,
) {
    let Gathering { keys, roster, timing, .. } = *gathering;
    let hello = hello(gathering, is_control);
    let mut pause = Duration::from_millis(20);
    while !over.is_cancelled() && Instant::now() < deadline {
        let member = &roster[rank];
        let surest = is_control && !member.meeting.is_empty();
        for &address in if surest { &member.meeting } else { &member.addresses } {
            if over.is_cancelled() {
                return;
            }
            let until = deadline.min(Instant::now() + timing.attempt);
            let link = TcpStream::connect_timeout(&address, timing.attempt)
                .map_err(|e| LinkError::Connect(e.to_string()))
                .and_then(|stream| dialled(stream, keys, &hello, expected(roster, rank), until));
            match link {
                Ok(link) => return report(news, News::Up(Box::new(link))),
                Err(cause) => report(news, News::Failed { rank, address, cause }),
            }
        }
        if over.wait(pause) {
            return;
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Takes in what dials this rank; each connection is brought up in a thread of its own.
fn accept(gathering: &Gathering<'_>, news: &SyncSender<News>, over: &Cancel, deadline: Instant) {
    let Gathering { listener, keys, place, roster, timing, .. } = *gathering;
    let hello = hello(gathering, false);
    let peers: Vec<Expected> = (place.rank + 1..roster.len()).map(|rank| expected(roster, rank)).collect();
    // Sockets again of what is being brought up: closed when the gathering ends, so that a stranger who connects and
    // says nothing does not hold it up.
    let open: Mutex<HashMap<SocketAddr, TcpStream>> = Mutex::default();
    let opened = || open.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        while !over.is_cancelled() && Instant::now() < deadline {
            let mut came = false;
            for socket in &listener.sockets {
                let Ok((stream, address)) = socket.accept() else { continue };
                came = true;
                let Ok(again) = stream.try_clone() else { continue };
                if opened().len() >= ACCEPTING_MAX {
                    continue;
                }
                opened().insert(address, again);
                let (hello, peers, opened, news) = (&hello, &peers, &opened, news.clone());
                scope.spawn(move || {
                    let until = deadline.min(Instant::now() + timing.attempt);
                    let link = accepted(stream, keys, hello, peers, until);
                    opened().remove(&address);
                    match link {
                        Ok(link) => report(&news, News::Up(Box::new(link))),
                        Err(cause) => blame(&news, peers, address, cause),
                    }
                });
            }
            if !came {
                over.wait(Duration::from_millis(2));
            }
        }
        for (_, stream) in opened().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Books a failure of an accepted connection to the rank whose address it came from, where that is plain.
fn blame(news: &SyncSender<News>, peers: &[Expected], address: SocketAddr, cause: LinkError) {
    if let [only] = peers {
        report(news, News::Failed { rank: only.rank, address, cause });
    } else if let LinkError::Handshake(trust::HandshakeError::WrongKey { .. }) = cause {
        // A stranger: nobody's failure.
    } else if let Some(peer) = peers.first() {
        report(news, News::Failed { rank: peer.rank, address, cause });
    }
}

fn report(news: &SyncSender<News>, what: News) {
    // Full means that the collector is far behind, or gone: nothing that is lost then is missed, since a connection
    // that nobody took closes, and its other end dials again.
    match news.try_send(what) {
        Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
    }
}

/// How the members came to each other, for people.
fn met(pairs: &[Pair], me: usize) -> Met {
    let way = |link: &Option<Established>| link.as_ref().and_then(|link| link.stream.peer_addr().ok());
    let dialled = pairs[..me].iter().enumerate().filter_map(|(rank, pair)| {
        Some(Dialled { rank, data: way(&pair.data)?, control: way(&pair.control)? })
    });
    Met { dialled: dialled.collect(), retries: pairs.iter().map(|pair| pair.failed).sum() }
}

fn assemble(pairs: Vec<Pair>, place: &Place, ranks: usize, patience: Duration) -> std::io::Result<Links> {
    let alarm = Arc::new(Alarm::new(ranks));
    let over = Arc::new(AtomicBool::new(false));
    let counters = Arc::new(Counters::default());
    let mut parts = Parts {
        rank: place.rank,
        lanes: Vec::new(),
        senders: Vec::new(),
        readers: Vec::new(),
        alarm: Arc::clone(&alarm),
        over: Arc::clone(&over),
        counters: Arc::clone(&counters),
        met: Arc::new(met(&pairs, place.rank)),
    };
    for (peer, pair) in pairs.into_iter().enumerate() {
        let (Some(data), Some(urgent)) = (pair.data, pair.control) else {
            parts.lanes.push(None);
            parts.senders.push(None);
            continue;
        };
        parts.lanes.push(Some(Lane::new(data.stream, data.sealer, data.opener, Arc::clone(&counters))?));
        let terms = ControlTerms {
            peer,
            epoch: place.epoch.0,
            patience,
            alarm: Arc::clone(&alarm),
            over: Arc::clone(&over),
        };
        let (sender, reader) = control(urgent.stream, urgent.sealer, urgent.opener, terms)?;
        parts.senders.push(Some(sender));
        parts.readers.push(reader);
    }
    Links::new(parts)
}
