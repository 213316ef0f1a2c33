//! The edges: single links, and networks in which everybody reaches everybody, kept as such so that ten thousand machines
//! on one network are not fifty million edges.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::{Link, LinkState};

/// Machines that all reach each other alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Ascending.
    members: Vec<u32>,
    /// Between any two of them, both ways.
    link: Link,
}

/// Every edge.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// By the machine that dials: (the machine that is dialled, the link), ascending; several to one where there are several
    /// ways.
    from: Vec<Vec<(u32, Link)>>,
    /// By the machine that is dialled: who dials.
    to: Vec<Vec<u32>>,
    networks: Vec<Network>,
    /// By machine: the networks it is in.
    within: Vec<SmallVec<[u32; 2]>>,
    /// Why who dials does not reach whom: of links that are down.
    causes: BTreeMap<(u32, u32), String>,
}

impl Links {
    /// No links between `machines` machines.
    pub fn new(machines: usize) -> Self {
        Self {
            from: vec![Vec::new(); machines],
            to: vec![Vec::new(); machines],
            networks: Vec::new(),
            within: vec![SmallVec::new(); machines],
            causes: BTreeMap::new(),
        }
    }

    /// Adds one way from `a` to `b`. Numbers that are no machine's, and a machine's way to itself, are left out.
    pub fn add(&mut self, a: u32, b: u32, link: Link) {
        let machines = self.from.len();
        if a == b || a as usize >= machines || b as usize >= machines {
            return;
        }
        let row = &mut self.from[a as usize];
        let at = row.partition_point(|(peer, _)| *peer <= b);
        row.insert(at, (b, link));
        let row = &mut self.to[b as usize];
        if let Err(at) = row.binary_search(&a) {
            row.insert(at, a);
        }
    }

    /// Adds a network.
    pub fn add_network(&mut self, mut members: Vec<u32>, link: Link) {
        members.retain(|&member| (member as usize) < self.from.len());
        members.sort_unstable();
        members.dedup();
        let number = u32::try_from(self.networks.len()).unwrap_or(u32::MAX);
        for &member in &members {
            self.within[member as usize].push(number);
        }
        self.networks.push(Network { members, link });
    }

    /// The best way from `a` to `b` that `wanted` lets pass, proved or not.
    pub fn best(&self, a: u32, b: u32, wanted: impl Fn(&Link) -> bool) -> Option<Link> {
        if a == b {
            return Some(Link::LOCAL);
        }
        let mut found: Option<Link> = None;
        let mut offer = |link: &Link| {
            if wanted(link) && found.as_ref().is_none_or(|found| link.better(found)) {
                found = Some(*link);
            }
        };
        if let Some(row) = self.from.get(a as usize) {
            let start = row.partition_point(|(peer, _)| *peer < b);
            row[start..].iter().take_while(|(peer, _)| *peer == b).for_each(|(_, link)| offer(link));
        }
        let (Some(of_a), Some(of_b)) = (self.within.get(a as usize), self.within.get(b as usize)) else {
            return found;
        };
        for network in of_a.iter().filter(|network| of_b.contains(network)) {
            offer(&self.networks[*network as usize].link);
        }
        found
    }

    /// Says why `a` does not reach `b`.
    pub fn say_why(&mut self, a: u32, b: u32, cause: String) {
        self.causes.insert((a, b), cause);
    }

    /// Why `a` does not reach `b`, where that was said.
    pub fn why_not(&self, a: u32, b: u32) -> Option<&str> {
        self.causes.get(&(a, b)).map(String::as_str)
    }

    /// Whether it was tried, and there is no way from `a` to `b`.
    pub fn is_down(&self, a: u32, b: u32) -> bool {
        let any = self.best(a, b, |_| true).is_some();
        any && self.best(a, b, |link| link.state != LinkState::Down).is_none()
    }

    /// The best proved way.
    pub fn up(&self, a: u32, b: u32) -> Option<Link> {
        self.best(a, b, |link| link.state == LinkState::Up)
    }

    /// Up to `limit` machines that `a` has anything to do with, those with links of their own first.
    pub fn near(&self, a: u32, limit: usize, wanted: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        let own = self.from.get(a as usize).into_iter().flatten().map(|(peer, _)| *peer);
        let back = self.to.get(a as usize).into_iter().flatten().copied();
        for peer in own.chain(back) {
            if found.len() < limit && !found.contains(&peer) && wanted(peer) {
                found.push(peer);
            }
        }
        let direct = found.len();
        for network in self.within.get(a as usize).into_iter().flatten() {
            let members = &self.networks[*network as usize].members;
            // From its own place on, so that seeds of one large network see different neighbours.
            let start = members.partition_point(|&member| member <= a);
            for &peer in members[start..].iter().chain(&members[..start]) {
                if found.len() >= limit {
                    return found;
                }
                if peer != a && wanted(peer) && !found[..direct].contains(&peer) {
                    found.push(peer);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Links {
    /// By network: whether some member is among `machines`.
    pub fn networks_with(&self, machines: &[bool]) -> Vec<bool> {
        let has =
            |network: &Network| network.members.iter().any(|&m| machines.get(m as usize) == Some(&true));
        self.networks.iter().map(has).collect()
    }

    /// Bytes a second of the fastest proved way from some machine among `holders` to `machine`.
    pub fn nearest(&self, machine: u32, holders: &[bool], networks: &[bool]) -> Option<f64> {
        let mut best = 0.0f64;
        // Either end may dial: data flows both ways over a link.
        for &(peer, link) in self.from.get(machine as usize)? {
            if link.state == LinkState::Up && holders.get(peer as usize) == Some(&true) {
                best = best.max(link.bandwidth);
            }
        }
        for &network in self.within.get(machine as usize)? {
            let link = self.networks[network as usize].link;
            if networks[network as usize] && link.state == LinkState::Up {
                best = best.max(link.bandwidth);
            }
        }
        (best > 0.0).then_some(best)
    }
}
