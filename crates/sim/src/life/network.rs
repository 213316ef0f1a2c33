//! What is between the machines of a life: tries, cuts one way and both, and what becomes of groups across them.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};

use base::{Epoch, InstanceId, MachineId, Micros, RequestId};
use fleet::reconcile::World;
use fleet::topology::{LinkKind, LinkState, Links, Outcome, Reach};

use super::{Happening, Plant, Sim};
use crate::world::{self, LAN_BYTES_PER_S, LAN_RTT_S, LOST};

/// Fleets up to this size try each other, everybody everybody, as they do with a real coordinator. In larger ones everybody
/// reaches everybody, and nothing is cut.
const TRIED_MAX: usize = 17;
/// Links wait so long for a word before the first rank says that they broke.
const BREAKS_AFTER: Micros = Micros::from_secs(3);
/// A group that is cut apart for longer takes nothing: its links break, a rank says so, and is heard.
const TOLD_AFTER: Micros = Micros::from_secs(12);
/// What follows a change is tried at these times after it, in seconds.
const ROUNDS: [u64; 5] = [1, 3, 5, 7, 9];

type Pair = (MachineId, MachineId);

/// How one pair's tries went, as this book has it beside the code that decides.
#[derive(Debug, Clone, Copy)]
struct Tried {
    good: bool,
    in_a_row: u8,
    state: LinkState,
}

/// Everything between machines.
pub(super) struct Network {
    is_tried: bool,
    pub(super) reach: Reach,
    tried: BTreeMap<Pair, Tried>,
    /// Which dials fail, by cut.
    cuts: BTreeMap<u64, (BTreeSet<Pair>, Micros)>,
    last_cut: u64,
    /// The round of tries that is due next.
    due: Micros,
    /// Links as they are known, which a mistake may keep from whoever decides.
    pub(super) known: Links,
}

impl Network {
    pub(super) fn of(world: &World) -> Self {
        Self {
            is_tried: world.machines.len() <= TRIED_MAX,
            reach: Reach::default(),
            tried: BTreeMap::new(),
            cuts: BTreeMap::new(),
            last_cut: 0,
            due: Micros::ZERO,
            known: Links::default(),
        }
    }

    /// Since when `from` cannot dial `to`.
    fn blocked(&self, from: MachineId, to: MachineId) -> Option<Micros> {
        self.cuts.values().filter(|(pairs, _)| pairs.contains(&(from, to))).map(|(_, since)| *since).min()
    }

    /// Since when nothing passes between the two.
    fn apart(&self, a: MachineId, b: MachineId) -> Option<Micros> {
        Some(self.blocked(a, b)?.max(self.blocked(b, a)?))
    }

    /// Since when some two of a group's machines are apart.
    fn torn(&self, places: &[(MachineId, u16)]) -> Option<Micros> {
        if self.cuts.is_empty() {
            return None;
        }
        pairs(places).filter_map(|(a, b)| self.apart(a, b)).min()
    }

    /// The links between machines, numbered by their order.
    pub(super) fn links(&self, machines: &[MachineId]) -> Links {
        if !self.is_tried {
            return world::lan(machines.len());
        }
        let mut links = Links::new(machines.len());
        let number = |machine: MachineId| {
            let at = machines.iter().position(|other| *other == machine)?;
            u32::try_from(at).ok()
        };
        self.reach.add_to(&mut links, number);
        links
    }

    /// Whether some do not reach some others.
    pub(super) fn is_cut(&self) -> bool {
        !self.cuts.is_empty()
    }

    /// Whether fleets of this size can be cut apart.
    pub(super) fn can_be_cut(&self) -> bool {
        self.is_tried
    }
}

/// Every two of a group's machines, the one that dials (the higher rank) first.
fn pairs(places: &[(MachineId, u16)]) -> impl Iterator<Item = Pair> {
    (0..places.len())
        .flat_map(move |to| (to + 1..places.len()).map(move |from| (places[from].0, places[to].0)))
}

fn address(machine: MachineId) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | machine.0 as u32)), 4000)
}

impl Sim {
    /// Some machines do not reach some others, for a while.
    pub(super) fn cut(&mut self, machine: MachineId, for_s: u64) {
        let all: Vec<MachineId> = self.providers.keys().copied().collect();
        let kind = self.rng.below(3);
        // Alone or half of them; the last kind only cannot be dialled.
        let side: BTreeSet<MachineId> = match kind {
            0 => all.iter().copied().filter(|_| self.rng.below(2) == 0).collect(),
            _ => BTreeSet::from([machine]),
        };
        let across = |from: &MachineId, to: &MachineId| match kind {
            2 => side.contains(to) && !side.contains(from),
            _ => side.contains(to) != side.contains(from),
        };
        let pairs: BTreeSet<Pair> = all
            .iter()
            .flat_map(|from| all.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| across(from, to))
            .collect();
        let name = ["are cut off from the others", "is cut off from the others", "cannot be dialled"];
        self.say(|| format!("{side:?} {} ({for_s} s)", name[kind as usize]));
        self.network.last_cut += 1;
        let cut = self.network.last_cut;
        self.network.cuts.insert(cut, (pairs, self.now));
        self.after(Micros::from_secs(for_s), Happening::Mended(cut));
        self.try_soon();
    }

    pub(super) fn mended(&mut self, cut: u64) {
        if self.network.cuts.remove(&cut).is_some() {
            self.say(|| "a cut between machines is over".to_owned());
            self.try_soon();
        }
    }

    /// Everybody reaches everybody again.
    pub(super) fn mend_all(&mut self) {
        self.network.cuts.clear();
        self.try_soon();
    }

    fn try_soon(&mut self) {
        if !self.network.is_tried {
            return;
        }
        for seconds in ROUNDS {
            let at = self.now + Micros::from_secs(seconds);
            // Rounds that are due anyway are not doubled.
            if at >= self.network.due + Micros::from_secs(1) {
                self.network.due = at;
                self.after(Micros::from_secs(seconds), Happening::Tries);
            }
        }
    }

    /// Asks every machine that is here to try all that have been seen.
    pub(super) fn ask(&mut self) {
        if !self.network.is_tried {
            return;
        }
        let clock = self.clock();
        let known: Vec<_> =
            self.coordinator.seen.iter().map(|m| (*m, self.providers[m].incarnation)).collect();
        let before: BTreeSet<_> = self.network.reach.ways().map(|of| (of.from, of.to)).collect();
        for (from, provider) in &self.providers {
            if provider.linked {
                let peers = known.iter().filter(|(to, _)| to != from);
                let peers = peers.map(|(to, incarnation)| (*to, *incarnation, vec![address(*to)]));
                self.network.reach.asked(clock, *from, peers);
            }
        }
        // Of another start nothing is known; what is not tried any more is forgotten.
        let fresh = self.network.reach.ways().filter(|of| {
            !before.contains(&(of.from, of.to))
                || (of.way.state == LinkState::Probing && of.way.since == clock)
        });
        for pair in fresh.map(|of| (of.from, of.to)).collect::<Vec<_>>() {
            self.network.tried.remove(&pair);
        }
        self.try_soon();
    }

    /// A start of a machine is over: nothing that it reached is known any more.
    pub(super) fn forget_reach(&mut self, machine: MachineId) {
        self.network.reach.forget(machine);
        self.network.tried.retain(|(from, to), _| *from != machine && *to != machine);
    }

    /// One round: every machine that is here tries every other, and says what came of it.
    pub(super) fn tries(&mut self) {
        self.break_groups();
        if self.is_down() {
            return;
        }
        let here: Vec<MachineId> =
            self.providers.iter().filter(|(_, p)| p.linked).map(|(id, _)| *id).collect();
        let clock = self.clock();
        let mut changed = false;
        for from in &here {
            for to in here.iter().filter(|to| *to != from) {
                let by_chance = self.now < self.faults_end && self.rng.below(20) == 0;
                let missed = by_chance || self.network.blocked(*from, *to).is_some();
                let outcome = || match missed {
                    true => Outcome::Missed("no answer".to_owned()),
                    false => {
                        let (kind, rtt_s, bandwidth) = (LinkKind::Ethernet, LAN_RTT_S, LAN_BYTES_PER_S);
                        Outcome::Reached { kind, rtt_s, bandwidth }
                    }
                };
                let about = (*from, *to, self.providers[to].incarnation);
                let times = if missed && self.is_planted(Plant::BelievesOneMiss) { 3 } else { 1 };
                for _ in 0..times {
                    changed |= self.network.reach.heard(clock, about, address(*to), outcome());
                }
                self.network.note((*from, *to), !missed);
            }
        }
        self.check_reach();
        if changed {
            self.coordinator.stale = true;
        }
        // While something is between two states it is tried on.
        if self.network.reach.ways().any(|of| of.way.state != LinkState::Up) {
            self.try_soon();
        }
    }

    /// Groups whose machines are apart: their links break, each rank ends, and says so where it is heard.
    fn break_groups(&mut self) {
        if self.is_planted(Plant::CutIsNotSaid) {
            return;
        }
        let now = self.now;
        let torn = |places: &[(MachineId, u16)]| {
            self.network.torn(places).is_some_and(|since| now >= since + BREAKS_AFTER)
        };
        let groups = self.controller.instances().filter(|instance| instance.places.len() > 1);
        let torn = groups.filter(|group| torn(&group.places)).map(|i| (i.id, i.epoch, i.places.clone()));
        for (instance, epoch, places) in torn.collect::<Vec<_>>() {
            for (rank, (machine, _)) in places.iter().enumerate() {
                let provider = self.providers.get_mut(machine).expect("machines are not forgotten");
                if provider.has((instance, epoch)) == Some(true) {
                    provider.end((instance, epoch), LOST);
                    let says = Happening::Says(*machine, instance, epoch, rank as u32, LOST);
                    self.after(Micros(1000), says);
                }
            }
        }
    }

    /// Whether a group's ranks do not find each other.
    pub(super) fn cannot_form(&self, instance: InstanceId, epoch: Epoch) -> bool {
        let of = self.controller.instance(instance).filter(|of| of.epoch == epoch);
        !self.network.cuts.is_empty()
            && of.is_some_and(|of| {
                pairs(&of.places).any(|(from, to)| self.network.blocked(from, to).is_some())
            })
    }

    /// What links are said to be follows from the last tries: three misses end one, two tries bring it back.
    fn check_reach(&mut self) {
        let wrong = self.network.reach.ways().find_map(|of| {
            let tried = self.network.tried.get(&(of.from, of.to))?;
            (tried.state != of.way.state)
                .then(|| format!("{} to {} is {:?}, after {tried:?}", of.from, of.to, of.way.state))
        });
        if let Some(what) = wrong {
            self.violate("hysteresis", what);
        }
    }

    /// No group is told to form where it is known that it cannot.
    pub(super) fn check_groups(&mut self, told: &[(InstanceId, Epoch)]) {
        for (id, epoch) in told {
            let Some(of) = self.controller.instance(*id).filter(|of| of.epoch == *epoch) else { continue };
            let number = |machine: MachineId| {
                let at = self.world.machines.iter().position(|(id, _)| *id == machine)?;
                u32::try_from(at).ok()
            };
            let here = of.places.iter().all(|(machine, _)| self.providers[machine].linked);
            let down = pairs(&of.places)
                .find(|(from, to)| {
                    number(*from).zip(number(*to)).is_some_and(|(a, b)| self.network.known.is_down(a, b))
                })
                .filter(|_| here);
            if let Some((from, to)) = down {
                let what = format!("{id} is told to form, and {from} is known not to reach {to}");
                self.violate("groups form where links are", what);
            }
        }
    }

    /// A group that has been cut apart takes nothing.
    pub(super) fn check_links(
        &mut self,
        request: RequestId,
        instance: InstanceId,
        places: &[(MachineId, u16)],
    ) {
        let Some(since) = self.network.torn(places) else { return };
        let heard = |(machine, _): &(MachineId, u16)| {
            let provider = &self.providers[machine];
            provider.linked && provider.linked_since <= since
        };
        if self.now > since + TOLD_AFTER && places.iter().all(heard) {
            let what = format!(
                "{request} went to {instance}, which is cut apart since {:.0} s",
                since.as_secs_f64()
            );
            self.violate("cut groups take nothing", what);
        }
    }
}

impl Network {
    fn note(&mut self, pair: Pair, good: bool) {
        let fresh = Tried { good, in_a_row: 0, state: LinkState::Probing };
        let tried = self.tried.entry(pair).or_insert(fresh);
        tried.in_a_row = if tried.good == good { tried.in_a_row.saturating_add(1) } else { 1 };
        tried.good = good;
        tried.state = match (good, tried.in_a_row, tried.state) {
            (true, 1, LinkState::Down) => LinkState::Down,
            (true, ..) => LinkState::Up,
            (false, 3.., _) => LinkState::Down,
            (false, _, state) => state,
        };
    }
}
