//! Whom each managed machine is asked to try, what comes of it, and what is shown of that.

use std::collections::{BTreeMap, HashMap};

use base::{MachineId, Micros};
use fleet::deployment::{Division, Machines, Spec};
use fleet::topology::{LinkKind, Outcome, Reach, Shown};
use wire::admin::topology::{LinkStatus, Topology};
use wire::control::{
    FromCoordinator, LinkOver, LinkReport, LinkReports, PEER_ADDRESSES_MAX, PEERS_MAX, Peer, Peers,
};

use super::inbox::{AllFacts, Facts, Inbox};
use crate::core::Core;

/// In fleets up to this size everybody tries everybody, so that a preview knows before anything is wanted. In larger ones
/// only machines that some deployment may group try each other, and each only its neighbours in one order of all.
const ALL_MAX: usize = 17;
/// Of these on either side: sets of so many machines all reach each other.
const NEIGHBOURS: usize = 16;
/// A machine that is away is tried for so long: most are back soon.
const AWAY_MAX: Micros = Micros::from_secs(60);
/// Links that one answer shows.
const SHOWN_MAX: usize = 10_000;

const _: () = assert!(2 * NEIGHBOURS <= PEERS_MAX && ALL_MAX <= PEERS_MAX);

/// What machines were asked to try.
#[derive(Default)]
pub(super) struct Asked {
    /// What it was decided from: facts, and the deployments' generations.
    of: Option<(u64, BTreeMap<String, u64>)>,
    told: HashMap<MachineId, (usize, Vec<Peer>)>,
}

impl Asked {
    /// Tells every machine whom to try, where that is other than it was told.
    pub(super) fn tell(
        &mut self,
        core: &Core,
        (facts, version, now): (&AllFacts, u64, Micros),
        specs: &[(u64, &Spec)],
    ) {
        let of = (version, specs.iter().map(|(generation, spec)| (spec.name.clone(), *generation)).collect());
        if self.of.as_ref() == Some(&of) {
            return;
        }
        self.of = Some(of);
        let specs: Vec<&Spec> = specs.iter().map(|(_, spec)| *spec).collect();
        let members = members(facts, now, &specs);
        for (at, (machine, facts)) in members.iter().enumerate() {
            let peers = peers_of(&members, at);
            let told = self.told.get(machine);
            if !facts.here || told.is_some_and(|told| told.0 == facts.connection && told.1 == peers) {
                continue;
            }
            let Some(session) = core.machines.session(*machine) else { continue };
            core.deployments.inbox.asked(*machine, &peers, now);
            self.told.insert(*machine, (facts.connection, peers.clone()));
            session.lanes.control(FromCoordinator::Peers(Peers { peers }));
        }
        self.told.retain(|machine, _| facts.contains_key(machine));
    }
}

/// Machines that are tried, in one order.
fn members<'a>(facts: &'a AllFacts, now: Micros, specs: &[&Spec]) -> Vec<(MachineId, &'a Facts)> {
    let is_able = |facts: &Facts| {
        let soon = facts.here || now < facts.seen + AWAY_MAX;
        let door = facts.inventory.as_ref().is_some_and(|inventory| !inventory.probe_addresses.is_empty());
        facts.managed && !facts.leaving && soon && door
    };
    let mut members: Vec<(MachineId, &Facts)> =
        facts.iter().filter(|(_, facts)| is_able(facts)).map(|(machine, facts)| (*machine, facts)).collect();
    if members.len() > ALL_MAX {
        members.retain(|(_, facts)| specs.iter().any(|spec| may_group(spec, facts)));
    }
    members
}

/// Whether a deployment may make this machine a rank of a group.
fn may_group(spec: &Spec, facts: &Facts) -> bool {
    let labels = facts.inventory.iter().flat_map(|inventory| &inventory.labels);
    spec.shape != Division::Single
        && match &spec.machines {
            Machines::Any => true,
            Machines::Pinned(names) => names.contains(&facts.name),
            Machines::Selector(wanted) => wanted
                .iter()
                .all(|(key, value)| labels.clone().any(|label| label.key == *key && label.value == *value)),
        }
}

fn peers_of(members: &[(MachineId, &Facts)], at: usize) -> Vec<Peer> {
    let count = members.len();
    let near = |other: usize| {
        let apart = at.abs_diff(other);
        other != at && (count <= ALL_MAX || apart.min(count - apart) <= NEIGHBOURS)
    };
    let peer = |(machine, facts): &(MachineId, &Facts)| peer_of(*machine, facts);
    (0..count).filter(|other| near(*other)).map(|other| peer(&members[other])).collect()
}

/// A machine, as others are told to dial it.
pub(super) fn peer_of(machine: MachineId, facts: &Facts) -> Peer {
    let addresses = facts.inventory.iter().flat_map(|inventory| &inventory.probe_addresses);
    let clipped = |of: &wire::control::GroupAddress| {
        let interface = of.interface.chars().filter(|c| !c.is_control()).take(32).collect();
        wire::control::GroupAddress { address: of.address, interface }
    };
    Peer {
        machine,
        incarnation: facts.incarnation,
        signing_key: facts.signing_key.clone(),
        addresses: addresses.take(PEER_ADDRESSES_MAX).map(clipped).collect(),
    }
}

impl Inbox {
    /// A machine is asked to try these.
    fn asked(&self, machine: MachineId, peers: &[Peer], now: Micros) {
        let peers = peers.iter().map(|peer| {
            (peer.machine, peer.incarnation, peer.addresses.iter().map(|of| of.address).collect())
        });
        self.with_reach(|reach| {
            reach.asked(now, machine, peers);
            true
        });
    }

    /// A machine says what came of it.
    pub(crate) fn links(&self, machine: MachineId, reports: LinkReports, now: Micros) {
        self.with_reach(|reach| {
            let heard = |changed: bool, report: LinkReport| {
                let about = (machine, report.peer, report.incarnation);
                let address = report.address;
                reach.heard(now, about, address, outcome(report)) || changed
            };
            reports.links.into_iter().fold(false, heard)
        });
    }

    /// Every link that is known.
    pub(crate) fn topology(&self) -> Topology {
        self.with_state(|facts, reach| {
            let name = |machine: MachineId| {
                facts.get(&machine).map_or_else(|| machine.to_string(), |f| f.name.clone())
            };
            let status = |Shown { from, to, address, way }: Shown<'_>| LinkStatus {
                from,
                from_name: name(from),
                to,
                to_name: name(to),
                address,
                kind: of_serde(&way.kind),
                state: of_serde(&way.state),
                since_us: way.since.0,
                rtt_us: (way.rtt_s * 1e6) as u64,
                bytes_per_s: way.bandwidth as u64,
                cause: way.cause.clone(),
            };
            let count = reach.ways().count();
            let links: Vec<LinkStatus> = reach.ways().take(SHOWN_MAX).map(status).collect();
            Topology { left_out: (count - links.len()) as u64, links }
        })
    }
}

/// A value of a closed set by the name that it is written with.
fn of_serde(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_value(value).ok();
    text.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn outcome(report: LinkReport) -> Outcome {
    if !report.error.is_empty() {
        return Outcome::Missed(report.error);
    }
    let kind = match report.over {
        LinkOver::Loopback => LinkKind::Local,
        LinkOver::Thunderbolt => LinkKind::Thunderbolt,
        LinkOver::Ethernet => LinkKind::Ethernet,
        LinkOver::Wifi => LinkKind::Wifi,
        LinkOver::Other => LinkKind::Other,
    };
    Outcome::Reached { kind, rtt_s: report.rtt_us as f64 / 1e6, bandwidth: report.bytes_per_s as f64 }
}

/// What is proved, for plans.
pub(super) fn add_proved(reach: &Reach, facts: &AllFacts, links: &mut fleet::topology::Links) {
    let numbers: HashMap<MachineId, u32> =
        facts.keys().enumerate().filter_map(|(at, id)| Some((*id, u32::try_from(at).ok()?))).collect();
    reach.add_to(links, |machine| numbers.get(&machine).copied());
}

#[cfg(test)]
mod tests {
    use base::Incarnation;
    use wire::control::{GroupAddress, Inventory, Label};

    use super::*;

    fn facts(count: u128) -> AllFacts {
        let one = |number: u128| Facts {
            name: format!("m{number}"),
            connection: 1,
            incarnation: Incarnation(1),
            signing_key: String::new(),
            here: true,
            managed: true,
            leaving: false,
            seen: Micros::ZERO,
            inventory: Some(std::sync::Arc::new(Inventory {
                labels: vec![Label { key: "room".to_owned(), value: (number % 2).to_string() }],
                probe_addresses: vec![GroupAddress {
                    address: "10.0.0.1:1".parse().unwrap(),
                    interface: "eth0".to_owned(),
                }],
                ..Inventory::default()
            })),
            serves: Vec::new(),
            memory: 0,
        };
        (0..count).map(|number| (MachineId(number), one(number))).collect()
    }

    fn asked(facts: &AllFacts, specs: &[&Spec]) -> BTreeMap<MachineId, Vec<MachineId>> {
        let members = members(facts, Micros::ZERO, specs);
        let peers = |at| peers_of(&members, at).iter().map(|peer| peer.machine).collect();
        (0..members.len()).map(|at| (members[at].0, peers(at))).collect()
    }

    #[test]
    fn small_fleets_try_everybody_and_large_ones_the_neighbours_of_those_that_may_be_grouped() {
        let all = asked(&facts(17), &[]);
        assert!(all.len() == 17 && all.values().all(|peers| peers.len() == 16));
        assert!(asked(&facts(18), &[]).is_empty(), "nobody wants a group");
        let spec = |machines: &str, shape: &str| -> Spec {
            let text = format!(r#"{{"name":"a","model":"m","shape":"{shape}","machines":{machines}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        assert!(asked(&facts(200), &[&spec("\"any\"", "single")]).is_empty());
        let room = spec(r#"{"selector":{"room":"1"}}"#, "tensor 2");
        for (count, spec) in [(200, &room), (1_000, &spec("\"any\"", "auto"))] {
            let some = asked(&facts(count), &[spec]);
            assert_eq!(some.len(), if *spec == room { 100 } else { 1_000 });
            for (machine, peers) in &some {
                assert_eq!(peers.len(), 2 * NEIGHBOURS);
                assert!(peers.iter().all(|peer| peer != machine && some[peer].contains(machine)));
            }
        }
    }
}
