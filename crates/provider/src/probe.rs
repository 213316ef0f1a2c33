//! Which other machines this one reaches: tries them as the desk decides, and answers those that try it.

pub(crate) mod desk;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base::MachineId;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use link::{Answering, Asked, LinkType};
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use trust::MachineKeys;
use wire::control::{GroupAddress, LINK_ERROR_BYTES_MAX, LinkOver, PEER_ADDRESSES_MAX, Peers};

use crate::lend::Lending;
use desk::{Desk, Effect, Found, Input, Outcome, Try};

/// Outcomes that wait for the provider's task: as many as tries run at once, and some.
const NEWS_MAX: usize = 16;
/// Connections that are answered at once; more are closed, and their ends try again.
const ANSWERED_MAX: usize = 16;
/// To be connected and proved. Longer than any round trip and a lost packet; shorter than anybody wants to wait.
const REACH: Duration = Duration::from_millis(1_500);
/// For everything after that.
const MEASURE: Duration = Duration::from_millis(1_500);

/// What is proved of addresses: the round trip, or nothing where it is not reached.
#[derive(Debug, Default)]
pub(crate) struct Proved(RwLock<HashMap<(MachineId, IpAddr), Option<Duration>>>);

impl Proved {
    /// Nothing where it was never tried.
    pub(crate) fn of(&self, machine: MachineId, ip: IpAddr) -> Option<Option<Duration>> {
        self.0.read().get(&(machine, ip)).copied()
    }
}

/// What answering takes.
struct Door {
    keys: Arc<MachineKeys>,
    /// Whoever is let in.
    known: RwLock<Vec<[u8; 32]>>,
    busy: AtomicBool,
    answering: AtomicUsize,
    /// The files of its models, for those who may have them.
    lending: Arc<Lending>,
}

/// All of it.
pub(crate) struct Probes {
    pub(crate) desk: Desk,
    door: Arc<Door>,
    addresses: Vec<GroupAddress>,
    listeners: Vec<JoinHandle<()>>,
    news: mpsc::Sender<Outcome>,
    proved: Arc<Proved>,
}

impl Probes {
    /// Answers on a free port of each of `listen`. Where none can be had, nobody is told to try this machine.
    pub(crate) fn start(
        keys: Arc<MachineKeys>,
        listen: &[IpAddr],
        proved: Arc<Proved>,
        lending: Arc<Lending>,
    ) -> (Self, mpsc::Receiver<Outcome>) {
        let (news, heard) = mpsc::channel(NEWS_MAX);
        let door = Arc::new(Door {
            keys,
            known: RwLock::default(),
            busy: AtomicBool::new(false),
            answering: AtomicUsize::new(0),
            lending,
        });
        let interfaces = crate::hardware::interfaces();
        let (mut addresses, mut listeners) = (Vec::new(), Vec::new());
        for ip in listen.iter().take(PEER_ADDRESSES_MAX) {
            match bind(*ip) {
                Ok((listener, address)) => {
                    let interface = interfaces.iter().find(|(of, _)| of == ip);
                    let interface = interface.map(|(_, name)| name.clone()).unwrap_or_default();
                    addresses.push(GroupAddress { address, interface });
                    listeners.push(tokio::spawn(accept(listener, Arc::clone(&door))));
                }
                Err(error) => tracing::warn!(%ip, %error, "other machines cannot try this address"),
            }
        }
        let desk = Desk::default();
        (Self { desk, door, addresses, listeners, news, proved }, heard)
    }

    /// Where others try this machine.
    pub(crate) fn addresses(&self) -> Vec<GroupAddress> {
        self.addresses.clone()
    }

    /// Whom the coordinator says to try, and to be tried by. One whose key cannot be read is nobody.
    pub(crate) fn listed(&self, peers: Peers) -> Input {
        let read = |peer: wire::control::Peer| {
            let key = BASE64.decode(&peer.signing_key).ok()?.try_into().ok()?;
            Some((peer, key))
        };
        let peers: Vec<(wire::control::Peer, [u8; 32])> = peers.peers.into_iter().filter_map(read).collect();
        *self.door.known.write() = peers.iter().map(|(_, key)| *key).collect();
        self.proved
            .0
            .write()
            .retain(|(machine, _), _| peers.iter().any(|(peer, _)| peer.machine == *machine));
        Input::Peers(peers)
    }

    /// Notes what a try proved, for whoever dials next.
    pub(crate) fn note(&self, outcome: &Outcome) {
        let trip = outcome.found.as_ref().ok().map(|found| Duration::from_micros(found.rtt_us));
        let mut proved = self.proved.0.write();
        if proved.len() < 4 * wire::control::LINKS_MAX {
            proved.insert((outcome.peer, outcome.address.ip()), trip);
        }
    }

    /// Whether this machine serves at the moment.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.door.busy.store(busy, Ordering::Relaxed);
        self.door.lending.set_busy(busy);
    }

    /// Begins what the desk says; what is to be said is given back.
    pub(crate) fn perform(&self, effects: Vec<Effect>) -> Vec<wire::control::LinkReport> {
        let mut reports = Vec::new();
        for effect in effects {
            match effect {
                Effect::Probe(probe) => self.begin(probe),
                Effect::Say(said) => reports.extend(said),
            }
        }
        reports
    }

    fn begin(&self, t: Try) {
        let (door, news) = (Arc::clone(&self.door), self.news.clone());
        let body = move || {
            let busy = door.busy.load(Ordering::Relaxed);
            let asked = Asked { busy, bulk: t.bulk, reach: REACH, measure: MEASURE };
            let found = link::probe(t.address, &door.keys, t.key, asked);
            let found = found.map_err(|error| error.to_string()).map(|probed| Found {
                rtt_us: micros(probed.round_trip),
                jitter_us: micros(probed.jitter),
                bytes_per_s: probed.bytes_per_s.map(|bytes| bytes as u64),
                over: probed.from.map_or(LinkOver::Other, |from| own_end(from.ip())),
            });
            let outcome = Outcome { peer: t.peer, incarnation: t.incarnation, address: t.address, found };
            // A provider that is gone needs no news.
            let _ = news.blocking_send(outcome);
        };
        // Threads, not the runtime's: its end waits for those.
        if let Err(error) = std::thread::Builder::new().name("phalanx-probe".into()).spawn(body) {
            let (news, found) = (self.news.clone(), Err(format!("no thread to try it: {error}")));
            let outcome = Outcome { peer: t.peer, incarnation: t.incarnation, address: t.address, found };
            tokio::spawn(async move { news.send(outcome).await });
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.listeners.iter().for_each(JoinHandle::abort);
    }
}

fn bind(ip: IpAddr) -> std::io::Result<(tokio::net::TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind((ip, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((tokio::net::TcpListener::from_std(listener)?, address))
}

/// Takes in whoever tries this machine; each is answered in a thread of its own.
async fn accept(listener: tokio::net::TcpListener, door: Arc<Door>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, for example: that passes, or it does not.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(stream) = stream.into_std() else { continue };
        if door.answering.fetch_add(1, Ordering::Relaxed) >= ANSWERED_MAX {
            door.answering.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let of_thread = Arc::clone(&door);
        let body = move || {
            let mut known = of_thread.known.read().clone();
            known.extend(of_thread.lending.keys());
            let busy = of_thread.busy.load(Ordering::Relaxed);
            let library: Option<&dyn link::Library> = Some(of_thread.lending.as_ref());
            let answering = Answering { known, busy, within: REACH + MEASURE, library };
            if let Err(error) = link::answer(stream, &of_thread.keys, answering) {
                tracing::debug!(%error, "whoever tried this machine is not answered");
            }
            of_thread.answering.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("phalanx-probed".into()).spawn(body).is_err() {
            door.answering.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What an address is on, by its interface's name.
fn over(ip: IpAddr, interface: &str) -> LinkOver {
    if ip.is_loopback() {
        return LinkOver::Loopback;
    }
    match LinkType::of_interface(interface) {
        LinkType::Loopback => LinkOver::Loopback,
        LinkType::Thunderbolt => LinkOver::Thunderbolt,
        LinkType::Ethernet => LinkOver::Ethernet,
        LinkType::Wifi => LinkOver::Wifi,
        LinkType::Other => LinkOver::Other,
    }
}

fn own_end(ip: IpAddr) -> LinkOver {
    let interfaces = crate::hardware::interfaces();
    let name = interfaces.iter().find(|(of, _)| *of == ip).map(|(_, name)| name.as_str());
    over(ip, name.unwrap_or_default())
}

/// What a link with these two ends runs over.
fn worse(a: LinkOver, b: LinkOver) -> LinkOver {
    let rank = |over: LinkOver| match over {
        LinkOver::Loopback => 0,
        LinkOver::Thunderbolt => 1,
        LinkOver::Ethernet => 2,
        LinkOver::Wifi => 3,
        LinkOver::Other => 4,
    };
    if rank(a) >= rank(b) { a } else { b }
}

/// An error's text as it may be said.
fn short(error: &str) -> String {
    let mut text: String = error.chars().filter(|c| !c.is_control()).collect();
    let mut end = text.len().min(LINK_ERROR_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    // Empty is what a success has.
    if text.is_empty() { "not reached".to_owned() } else { text }
}
