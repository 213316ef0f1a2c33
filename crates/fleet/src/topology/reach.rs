//! Who reaches whom: every address of every pair that was asked to try, as the tries' results come in (T3, T4).
//!
//! ```text
//! unknown --asked--> probing --reached once--> up <----------------+
//!                       |                      | missed 3 in a row | reached 2 in a row
//!                       +--missed 3 in a row-> down ---------------+
//! ```
//! An edge is directed, and belongs to one start of the machine that is tried: of another start's nothing is known.

use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;

use base::{Incarnation, MachineId, Micros};

use super::{Link, LinkKind, LinkState, Links};

/// Tries in a row that must fail before there is no way.
const MISSED: u8 = 3;
/// Tries in a row that must succeed before there is one again.
const REACHED: u8 = 2;
/// Longest text of a cause that is kept.
const CAUSE_CHARS_MAX: usize = 200;
/// What a link is taken to carry that was proved, and not measured yet.
const UNMEASURED_BYTES_PER_S: f64 = 1e7;

/// How one try ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was reached, and proved its key.
    Reached {
        /// Over what.
        kind: LinkKind,
        /// Round trip, in seconds.
        rtt_s: f64,
        /// Bytes a second; 0 where it was not measured.
        bandwidth: f64,
    },
    /// It was not; why.
    Missed(String),
}

/// One address of a machine, as another sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// How it is.
    pub state: LinkState,
    /// Since when.
    pub since: Micros,
    /// Over what, as last seen.
    pub kind: LinkKind,
    /// Round trip, in seconds, as last measured.
    pub rtt_s: f64,
    /// Bytes a second, as last measured; 0 where never.
    pub bandwidth: f64,
    /// Why the last try failed; empty where it did not.
    pub cause: String,
    missed: u8,
    reached: u8,
}

impl Way {
    fn new(now: Micros) -> Self {
        Self {
            state: LinkState::Probing,
            since: now,
            kind: LinkKind::Other,
            rtt_s: 0.0,
            bandwidth: 0.0,
            cause: String::new(),
            missed: 0,
            reached: 0,
        }
    }

    /// Takes in a try.
    fn hear(&mut self, now: Micros, outcome: Outcome) {
        let next = match outcome {
            Outcome::Reached { kind, rtt_s, bandwidth } => {
                self.kind = kind;
                self.rtt_s = finite(rtt_s);
                if bandwidth > 0.0 {
                    self.bandwidth = finite(bandwidth);
                }
                self.cause.clear();
                (self.missed, self.reached) = (0, self.reached.saturating_add(1));
                let is_proved = self.state != LinkState::Down || self.reached >= REACHED;
                if is_proved { LinkState::Up } else { LinkState::Down }
            }
            Outcome::Missed(cause) => {
                self.cause = cause.chars().filter(|c| !c.is_control()).take(CAUSE_CHARS_MAX).collect();
                (self.reached, self.missed) = (0, self.missed.saturating_add(1));
                if self.missed >= MISSED { LinkState::Down } else { self.state }
            }
        };
        if next != self.state {
            (self.state, self.since) = (next, now);
        }
    }

    fn link(&self, to: IpAddr) -> Link {
        Link {
            kind: self.kind,
            state: self.state,
            rtt_s: self.rtt_s,
            bandwidth: if self.bandwidth > 0.0 { self.bandwidth } else { UNMEASURED_BYTES_PER_S },
            rdma: false,
            private: is_private(to),
        }
    }
}

fn finite(number: f64) -> f64 {
    if number.is_finite() { number.clamp(0.0, 1e13) } else { 0.0 }
}

/// RFC 1918, ULA, link-local and the loopback.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_private(IpAddr::V4(ip)),
            None => ip.is_loopback() || matches!(ip.segments()[0] & 0xfe00, 0xfc00 | 0xfe00),
        },
    }
}

/// One directed pair.
#[derive(Debug, Clone)]
struct Edge {
    incarnation: Incarnation,
    ways: BTreeMap<SocketAddr, Way>,
}

/// A way and whose it is.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Who dials.
    pub from: MachineId,
    /// Who is dialled.
    pub to: MachineId,
    /// Where.
    pub address: SocketAddr,
    /// How it is.
    pub way: &'a Way,
}

/// Every pair that was asked to try.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    edges: BTreeMap<MachineId, BTreeMap<MachineId, Edge>>,
}

impl Reach {
    /// `from` was asked to try these, and nobody else. What is known of the same start and address stays.
    pub fn asked(
        &mut self,
        now: Micros,
        from: MachineId,
        peers: impl IntoIterator<Item = (MachineId, Incarnation, Vec<SocketAddr>)>,
    ) {
        let mut before = self.edges.remove(&from).unwrap_or_default();
        let mut edges = BTreeMap::new();
        for (to, incarnation, addresses) in peers {
            let known = before.remove(&to).filter(|edge| edge.incarnation == incarnation);
            let mut known = known.map(|edge| edge.ways).unwrap_or_default();
            let way = |address| (address, known.remove(&address).unwrap_or_else(|| Way::new(now)));
            let ways = addresses.into_iter().map(way).collect();
            edges.insert(to, Edge { incarnation, ways });
        }
        if !edges.is_empty() {
            self.edges.insert(from, edges);
        }
    }

    /// `from` tried `to`. Of what it was not asked to try nothing is believed; whether something is other than before.
    pub fn heard(
        &mut self,
        now: Micros,
        (from, to, incarnation): (MachineId, MachineId, Incarnation),
        address: SocketAddr,
        outcome: Outcome,
    ) -> bool {
        let edge = self.edges.get_mut(&from).and_then(|edges| edges.get_mut(&to));
        let Some(edge) = edge.filter(|edge| edge.incarnation == incarnation) else { return false };
        let Some(way) = edge.ways.get_mut(&address) else { return false };
        let before = way.clone();
        way.hear(now, outcome);
        (before.state, before.kind, before.rtt_s, before.bandwidth, &before.cause)
            != (way.state, way.kind, way.rtt_s, way.bandwidth, &way.cause)
    }

    /// Another start of this machine, or none: what it reached is not known any more.
    pub fn forget(&mut self, from: MachineId) {
        self.edges.remove(&from);
    }

    /// All of it.
    pub fn ways(&self) -> impl Iterator<Item = Shown<'_>> {
        let pairs = self.edges.iter().flat_map(|(from, edges)| edges.iter().map(move |edge| (from, edge)));
        pairs.flat_map(|(from, (to, edge))| {
            edge.ways.iter().map(|(at, way)| Shown { from: *from, to: *to, address: *at, way })
        })
    }

    /// Adds what is known between the machines that have a number.
    pub fn add_to(&self, links: &mut Links, number: impl Fn(MachineId) -> Option<u32>) {
        for Shown { from, to, address, way } in self.ways() {
            let (Some(a), Some(b)) = (number(from), number(to)) else { continue };
            links.add(a, b, way.link(address.ip()));
            if way.state == LinkState::Down {
                links.say_why(a, b, format!("{} at {address}", way.cause));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base::Rng;

    use super::*;

    const A: MachineId = MachineId(1);
    const B: MachineId = MachineId(2);

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 2], port))
    }

    fn reached() -> Outcome {
        Outcome::Reached { kind: LinkKind::Ethernet, rtt_s: 1e-4, bandwidth: 1e9 }
    }

    fn missed() -> Outcome {
        Outcome::Missed("cannot connect: refused".to_owned())
    }

    fn state(reach: &Reach) -> LinkState {
        reach.ways().next().unwrap().way.state
    }

    #[test]
    fn one_try_proves_a_link_three_misses_take_it_down_and_two_tries_bring_it_back() {
        let mut reach = Reach::default();
        reach.asked(Micros(0), A, [(B, Incarnation(1), vec![at(1)])]);
        assert_eq!(state(&reach), LinkState::Probing);
        let mut hear = |now, outcome| {
            reach.heard(Micros(now), (A, B, Incarnation(1)), at(1), outcome);
            let way = reach.ways().next().unwrap().way;
            (way.state, way.since.0)
        };
        assert_eq!(hear(1, missed()), (LinkState::Probing, 0));
        assert_eq!(hear(2, reached()), (LinkState::Up, 2));
        for now in [3, 4] {
            assert_eq!(hear(now, missed()), (LinkState::Up, 2));
        }
        assert_eq!(hear(5, reached()), (LinkState::Up, 2));
        for now in [6, 7] {
            assert_eq!(hear(now, missed()), (LinkState::Up, 2));
        }
        assert_eq!(hear(8, missed()), (LinkState::Down, 8));
        assert_eq!(hear(9, reached()), (LinkState::Down, 8));
        assert_eq!(hear(10, missed()), (LinkState::Down, 8));
        assert_eq!(hear(11, reached()), (LinkState::Down, 8));
        assert_eq!(hear(12, reached()), (LinkState::Up, 12));
        let mut links = Links::new(2);
        let number = |m: MachineId| u32::try_from(m.0 - 1).ok();
        reach.add_to(&mut links, number);
        assert!(links.up(0, 1).is_some() && links.up(1, 0).is_none(), "edges are directed");
        // Another start of it is another matter.
        reach.asked(Micros(13), A, [(B, Incarnation(2), vec![at(1)])]);
        assert_eq!(state(&reach), LinkState::Probing);
        assert!(!reach.heard(Micros(14), (A, B, Incarnation(1)), at(1), reached()));
        for now in 15..18 {
            reach.heard(Micros(now), (A, B, Incarnation(2)), at(1), missed());
        }
        let mut links = Links::new(2);
        reach.add_to(&mut links, number);
        assert_eq!(links.why_not(0, 1), Some("cannot connect: refused at 10.0.0.2:1"));
    }

    #[test]
    fn over_all_orders_of_events_states_follow_from_the_last_tries_alone() {
        for seed in 0..2_000 {
            let mut rng = Rng::new(seed);
            let mut reach = Reach::default();
            // The definition: the tries of this start, oldest first.
            let (mut incarnation, mut tries): (u64, Option<Vec<bool>>) = (1, None);
            let mut asked = None;
            for now in 0..60 {
                match rng.below(12) {
                    0 => {
                        incarnation += rng.below(2);
                        reach.asked(Micros(now), A, [(B, Incarnation(incarnation), vec![at(1)])]);
                        if asked.replace(incarnation) != Some(incarnation) {
                            tries = Some(Vec::new());
                        }
                    }
                    1 => {
                        reach.forget(A);
                        (tries, asked) = (None, None);
                    }
                    2 => _ = reach.heard(Micros(now), (A, B, Incarnation(0)), at(1), reached()),
                    3 => _ = reach.heard(Micros(now), (B, A, Incarnation(incarnation)), at(1), reached()),
                    4 => _ = reach.heard(Micros(now), (A, B, Incarnation(incarnation)), at(9), missed()),
                    of => {
                        let good = of % 2 == 0;
                        let outcome = if good { reached() } else { missed() };
                        reach.heard(Micros(now), (A, B, Incarnation(incarnation)), at(1), outcome);
                        if let Some(tries) = &mut tries {
                            tries.push(good);
                        }
                    }
                }
                let Some(tries) = &tries else {
                    assert_eq!(reach.ways().count(), 0);
                    continue;
                };
                let (mut expected, mut row) = (LinkState::Probing, (true, 0));
                for good in tries {
                    row = if row.0 == *good { (*good, row.1 + 1) } else { (*good, 1) };
                    expected = match (expected, row) {
                        (LinkState::Down, (true, n)) if n < 2 => LinkState::Down,
                        (_, (true, _)) => LinkState::Up,
                        (_, (false, n)) if n >= 3 => LinkState::Down,
                        (state, _) => state,
                    };
                }
                assert_eq!(state(&reach), expected, "seed {seed}, {tries:?}");
            }
        }
    }
}
