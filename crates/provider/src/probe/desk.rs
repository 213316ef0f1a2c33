//! When which other machine is tried, and what of it is news: decided without a clock, a socket or a thread.
//!
//! Every address of every peer is tried by itself. One that was not reached is tried again soon, then ever less often; one
//! that was is tried again every ten seconds, so that a cut wire is known before anybody needs it. Bandwidth is measured once,
//! and again from time to time where nobody is served. Few tries run at once, and with many peers each comes less often.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use base::{Incarnation, MachineId, Micros};
use wire::control::{LINKS_MAX, LinkOver, LinkReport, PEER_ADDRESSES_MAX, PEERS_MAX, Peer};

/// Tries under way at once. Each holds a thread, and for some milliseconds a processor.
const AT_ONCE: usize = 4;
/// What was reached is tried again after this.
const EVERY: Micros = Micros::from_secs(10);
/// With many peers: each try of all takes this much of the time.
const SPACING: Micros = Micros::from_millis(250);
/// The first pause after a failure; three times as long after each further one.
const AGAIN_FIRST: Micros = Micros::from_millis(100);
/// The longest.
const AGAIN_MAX: Micros = Micros::from_secs(30);
/// Bandwidth is measured again after this, where nobody is served.
const MEASURE_EVERY: Micros = Micros::from_secs(300);
/// What says nothing new is said again after this.
const SAY_EVERY: Micros = Micros::from_secs(60);
/// Results of one kind that are said one after the other, whatever they are: whoever hears them believes the third.
const SAY_FIRST: u8 = 3;

/// What happens.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// The coordinator says whom to try, with their keys; on a new connection, too.
    Peers(Vec<(Peer, [u8; 32])>),
    /// A try ended.
    Ended(Outcome),
    /// Something broke between machines: everybody is tried now.
    Doubt,
    /// It is time.
    Tick,
}

/// How a try ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) peer: MachineId,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: SocketAddr,
    pub(crate) found: Result<Found, String>,
}

/// What a try found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) rtt_us: u64,
    pub(crate) jitter_us: u64,
    /// Where it was measured.
    pub(crate) bytes_per_s: Option<u64>,
    /// This machine's end.
    pub(crate) over: LinkOver,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Try this.
    Probe(Try),
    /// Tell the coordinator.
    Say(Vec<LinkReport>),
}

/// A try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Try {
    pub(crate) peer: MachineId,
    pub(crate) incarnation: Incarnation,
    pub(crate) key: [u8; 32],
    pub(crate) address: SocketAddr,
    /// Whether bandwidth is measured: in any case, or where the other end has no work either.
    pub(crate) bulk: Option<bool>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    incarnation: Incarnation,
    key: [u8; 32],
}

/// One address of one peer.
#[derive(Debug, Clone)]
struct Way {
    /// The other end.
    over: LinkOver,
    due: Micros,
    running: bool,
    failures: u32,
    bytes_per_s: u64,
    measured: Option<Micros>,
    last: Option<LinkReport>,
    /// What was said last, when, and how often in a row of this kind.
    said: Option<(LinkReport, Micros)>,
    said_in_row: u8,
}

/// All tries.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    peers: BTreeMap<MachineId, Known>,
    ways: BTreeMap<(MachineId, SocketAddr), Way>,
    running: usize,
}

impl Desk {
    /// Takes in what happened. `busy`: this machine serves.
    pub(crate) fn handle(&mut self, now: Micros, busy: bool, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Peers(peers) => self.take_peers(now, peers, &mut effects),
            Input::Ended(outcome) => {
                self.running = self.running.saturating_sub(1);
                self.ended(now, outcome, &mut effects);
            }
            Input::Doubt => self.ways.values_mut().for_each(|way| {
                way.due = now;
                way.failures = way.failures.min(1);
            }),
            Input::Tick => {}
        }
        self.start(now, busy, &mut effects);
        effects
    }

    /// When time alone changes something.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let waits = self.ways.values().filter(|way| !way.running);
        if self.running >= AT_ONCE { None } else { waits.map(|way| way.due).min() }
    }

    fn take_peers(&mut self, now: Micros, peers: Vec<(Peer, [u8; 32])>, effects: &mut Vec<Effect>) {
        let mut ways = BTreeMap::new();
        let before = std::mem::take(&mut self.peers);
        for (peer, key) in peers.into_iter().take(PEERS_MAX) {
            let known = Known { incarnation: peer.incarnation, key };
            let same =
                before.get(&peer.machine).is_some_and(|b| (b.incarnation, b.key) == (peer.incarnation, key));
            for at in peer.addresses.into_iter().take(PEER_ADDRESSES_MAX) {
                let place = (peer.machine, at.address);
                let mut way = self.ways.remove(&place).filter(|_| same).unwrap_or_else(|| Way {
                    over: super::over(at.address.ip(), &at.interface),
                    due: now,
                    running: false,
                    failures: 0,
                    bytes_per_s: 0,
                    measured: None,
                    last: None,
                    said: None,
                    said_in_row: 0,
                });
                // Who asks anew may know nothing.
                (way.said, way.said_in_row) = (None, 0);
                ways.insert(place, way);
            }
            self.peers.insert(peer.machine, known);
        }
        self.ways = ways;
        let mut reports = Vec::new();
        for way in self.ways.values_mut() {
            if let Some(last) = way.last.clone() {
                (way.said, way.said_in_row) = (Some((last.clone(), now)), 1);
                reports.push(last);
            }
        }
        reports.truncate(LINKS_MAX);
        if !reports.is_empty() {
            effects.push(Effect::Say(reports));
        }
    }

    fn ended(&mut self, now: Micros, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Outcome { peer, incarnation, address, found } = outcome;
        let every = Micros(EVERY.0.max(SPACING.0 * self.ways.len() as u64));
        let current = self.peers.get(&peer).is_some_and(|known| known.incarnation == incarnation);
        let Some(way) = self.ways.get_mut(&(peer, address)).filter(|_| current) else { return };
        way.running = false;
        let report = match found {
            Ok(found) => {
                way.failures = 0;
                way.due = now + every;
                if let Some(bytes_per_s) = found.bytes_per_s {
                    (way.bytes_per_s, way.measured) = (bytes_per_s.max(1), Some(now));
                }
                let over = super::worse(way.over, found.over);
                let (rtt_us, jitter_us, bytes_per_s) = (found.rtt_us, found.jitter_us, way.bytes_per_s);
                let error = String::new();
                LinkReport { peer, incarnation, address, over, error, rtt_us, jitter_us, bytes_per_s }
            }
            Err(error) => {
                let pause = AGAIN_FIRST.0.saturating_mul(3u64.saturating_pow(way.failures)).min(AGAIN_MAX.0);
                way.failures = way.failures.saturating_add(1);
                way.due = now + Micros(pause);
                let error = super::short(&error);
                let over = way.over;
                LinkReport {
                    peer,
                    incarnation,
                    address,
                    over,
                    error,
                    rtt_us: 0,
                    jitter_us: 0,
                    bytes_per_s: 0,
                }
            }
        };
        way.last = Some(report.clone());
        if way.is_news(now, &report) {
            let same =
                way.said.as_ref().is_some_and(|(said, _)| said.error.is_empty() == report.error.is_empty());
            way.said_in_row = if same { way.said_in_row.saturating_add(1) } else { 1 };
            way.said = Some((report.clone(), now));
            effects.push(Effect::Say(vec![report]));
        }
    }

    /// Begins what is due, the longest due first.
    fn start(&mut self, now: Micros, busy: bool, effects: &mut Vec<Effect>) {
        while self.running < AT_ONCE {
            let due = self.ways.iter_mut().filter(|(_, way)| !way.running && way.due <= now);
            let Some(((peer, address), way)) = due.min_by_key(|(_, way)| way.due) else { return };
            let Some(known) = self.peers.get(peer) else { return };
            let bulk = match way.measured {
                None => Some(true),
                Some(at) if !busy && now >= at + MEASURE_EVERY => Some(false),
                Some(_) => None,
            };
            way.running = true;
            self.running += 1;
            let Known { incarnation, key } = *known;
            effects.push(Effect::Probe(Try { peer: *peer, incarnation, key, address: *address, bulk }));
        }
    }
}

impl Way {
    fn is_news(&self, now: Micros, report: &LinkReport) -> bool {
        let Some((said, at)) = &self.said else { return true };
        let apart = |a: u64, b: u64, least: u64| a.abs_diff(b) > least && a.max(b) > 2 * a.min(b);
        said.error.is_empty() != report.error.is_empty()
            || self.said_in_row < SAY_FIRST
            || now >= *at + SAY_EVERY
            || apart(said.rtt_us, report.rtt_us, 500)
            || apart(said.bytes_per_s, report.bytes_per_s, 1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use base::Rng;
    use wire::control::GroupAddress;

    use super::*;

    fn peer(id: u128, incarnation: u64, addresses: usize) -> (Peer, [u8; 32]) {
        let address = |n: usize| GroupAddress {
            address: SocketAddr::from(([10, 0, n as u8, id as u8], 1)),
            interface: "eth0".to_owned(),
        };
        let peer = Peer {
            machine: MachineId(id),
            incarnation: Incarnation(incarnation),
            signing_key: String::new(),
            addresses: (0..addresses).map(address).collect(),
        };
        (peer, [id as u8; 32])
    }

    const FOUND: Found =
        Found { rtt_us: 100, jitter_us: 10, bytes_per_s: Some(1_000_000_000), over: LinkOver::Ethernet };

    fn ended(t: &Try, found: Result<Found, String>) -> Input {
        Input::Ended(Outcome { peer: t.peer, incarnation: t.incarnation, address: t.address, found })
    }

    fn tries(effects: &[Effect]) -> Vec<Try> {
        effects.iter().filter_map(|e| if let Effect::Probe(t) = e { Some(*t) } else { None }).collect()
    }

    fn said(effects: &[Effect]) -> usize {
        effects.iter().map(|e| if let Effect::Say(reports) = e { reports.len() } else { 0 }).sum()
    }

    #[test]
    fn every_address_is_tried_at_once_then_every_ten_seconds_and_bandwidth_is_measured_again_when_idle() {
        let mut desk = Desk::default();
        let first = desk.handle(Micros(0), false, Input::Peers(vec![peer(1, 1, 2), peer(2, 1, 1)]));
        let first = tries(&first);
        assert_eq!(first.len(), 3);
        assert!(first.iter().all(|t| t.bulk == Some(true)));
        for t in &first {
            assert_eq!(said(&desk.handle(Micros(5), false, ended(t, Ok(FOUND)))), 1);
        }
        assert_eq!(desk.next_deadline(), Some(Micros(5) + EVERY));
        let (mut now, mut again, mut news) = (Micros(5), 0, 0);
        while now < Micros::from_secs(650) {
            now = desk.next_deadline().unwrap();
            // Serving until 400 s.
            let busy = now < Micros::from_secs(400);
            for t in tries(&desk.handle(now, busy, Input::Tick)) {
                assert!(t.bulk.is_none() || !busy, "measured while serving");
                again += usize::from(t.bulk == Some(false));
                let bytes_per_s = t.bulk.map(|_| 1_000_000_000);
                news += said(&desk.handle(now, busy, ended(&t, Ok(Found { bytes_per_s, ..FOUND }))));
            }
        }
        assert_eq!(again, 3, "each once after 400 s");
        // Three in a row each, then one a minute.
        assert!((30..=45).contains(&news), "{news}");
    }

    #[test]
    fn failures_are_tried_again_soon_and_ever_less_often_and_each_change_is_said() {
        let mut desk = Desk::default();
        let t = tries(&desk.handle(Micros(0), false, Input::Peers(vec![peer(1, 1, 1)])))[0];
        let (mut now, mut pauses, mut news) = (Micros(0), Vec::new(), 0);
        for _ in 0..8 {
            news += said(&desk.handle(now, false, ended(&t, Err("refused".to_owned()))));
            let next = desk.next_deadline().unwrap();
            pauses.push((next.saturating_sub(now)).0 / 1000);
            now = next;
            assert_eq!(tries(&desk.handle(now, false, Input::Tick)).len(), 1);
        }
        assert_eq!(pauses, [100, 300, 900, 2700, 8100, 24300, 30000, 30000]);
        assert!((3..=4).contains(&news), "{news}");
        assert_eq!(said(&desk.handle(now, false, ended(&t, Ok(FOUND)))), 1);
        // In doubt it is tried at once.
        assert_eq!(tries(&desk.handle(now, false, Input::Doubt)).len(), 1);
    }

    #[test]
    fn in_any_order_of_events_few_run_at_once_and_nothing_is_said_of_whoever_is_not_listed() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let (mut desk, mut now) = (Desk::default(), Micros(0));
            let mut running: Vec<Try> = Vec::new();
            let mut listed: Vec<(MachineId, Incarnation)> = Vec::new();
            for _ in 0..400 {
                now += Micros(rng.below(3_000_000));
                let input = match rng.below(10) {
                    0 => {
                        let peers: Vec<_> = (0..rng.below(70))
                            .map(|id| peer(u128::from(id), 1 + rng.below(3), rng.below(10) as usize))
                            .collect();
                        listed = peers.iter().map(|(p, _)| (p.machine, p.incarnation)).collect();
                        Input::Peers(peers)
                    }
                    1 => Input::Doubt,
                    2..=7 if !running.is_empty() => {
                        let t = running.swap_remove(rng.below(running.len() as u64) as usize);
                        ended(&t, if rng.below(2) == 0 { Ok(FOUND) } else { Err("x".repeat(1000)) })
                    }
                    _ => Input::Tick,
                };
                let effects = desk.handle(now, rng.below(2) == 0, input);
                running.extend(tries(&effects));
                assert!(running.len() <= AT_ONCE);
                for effect in &effects {
                    let Effect::Say(reports) = effect else { continue };
                    assert!(reports.len() <= LINKS_MAX);
                    for report in reports {
                        assert!(listed.contains(&(report.peer, report.incarnation)));
                        assert!(report.error.len() <= wire::control::LINK_ERROR_BYTES_MAX);
                    }
                }
                assert!(desk.ways.len() <= PEERS_MAX * PEER_ADDRESSES_MAX);
            }
        }
    }
}
