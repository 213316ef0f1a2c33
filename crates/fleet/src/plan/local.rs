//! A neighbourhood: some devices with every link between them, in which groups are looked for.

use super::divide::Seat;
use crate::topology::Link;

/// An island's links: what tensor ranks exchange twice a layer must not wait longer.
const ISLAND_RTT_S: f64 = 1.5e-3;
const ISLAND_BANDWIDTH: f64 = 1e9;

/// Some devices and every link between them.
pub(super) struct Local {
    pub(super) seats: Vec<Seat>,
    /// Where each comes in the order of machines' names.
    pub(super) named: Vec<usize>,
    /// Seconds until each has the model.
    pub(super) ready: Vec<f64>,
    /// `links[a * n + b]`: a reaches b.
    pub(super) links: Vec<Option<Link>>,
}

impl Local {
    pub(super) fn link(&self, a: usize, b: usize) -> Option<Link> {
        self.links[a * self.seats.len() + b]
    }

    /// The worse of both ways; one where only one is proved.
    pub(super) fn between(&self, a: usize, b: usize) -> Option<Link> {
        match (self.link(a, b), self.link(b, a)) {
            (Some(there), Some(back)) => Some(Link {
                rtt_s: there.rtt_s.max(back.rtt_s),
                bandwidth: there.bandwidth.min(back.bandwidth),
                ..there
            }),
            (there, back) => there.or(back),
        }
    }

    pub(super) fn is_island(&self, a: usize, b: usize) -> bool {
        self.between(a, b).is_some_and(|l| l.rtt_s <= ISLAND_RTT_S && l.bandwidth >= ISLAND_BANDWIDTH)
    }

    /// An order in which every device has proved that it can dial all before it (T6); who cannot, otherwise. Among those that
    /// are as well connected a much slower one does not lead; else the order of names decides, which measurements do not move.
    pub(super) fn dial_order(&self, members: &[usize]) -> Result<Vec<usize>, (usize, usize)> {
        let mut left = members.to_vec();
        let mut order: Vec<usize> = Vec::with_capacity(members.len());
        let fastest = members.iter().map(|&at| self.seats[at].bandwidth).fold(0.0, f64::max);
        let is_slow = |at: usize| self.seats[at].bandwidth < fastest / 2.0;
        let peers = |a: usize| {
            members.iter().filter(|&&b| self.link(a, b).is_some() && self.link(b, a).is_some()).count()
        };
        while !left.is_empty() {
            let dialled = |at: usize| left.iter().find(|&&b| b != at && self.link(b, at).is_none());
            let cost = |at: usize| {
                order.last().and_then(|&last| self.between(last, at)).map_or(0.0, |link| link.rtt_s)
            };
            let better = |&a: &usize, &b: &usize| {
                let by_peers =
                    if order.is_empty() { peers(b).cmp(&peers(a)) } else { std::cmp::Ordering::Equal };
                by_peers
                    .then(cost(a).total_cmp(&cost(b)))
                    .then(is_slow(a).cmp(&is_slow(b)))
                    .then(self.named[a].cmp(&self.named[b]))
            };
            let Some(next) = left.iter().copied().filter(|&at| dialled(at).is_none()).min_by(better) else {
                let at = left[0];
                return Err((dialled(at).copied().unwrap_or(at), at));
            };
            left.retain(|&at| at != next);
            order.push(next);
        }
        Ok(order)
    }
}

/// Maximal sets of fast links, in the order of ranks.
pub(super) fn islands(local: &Local, order: &[usize]) -> Vec<Vec<usize>> {
    let mut islands: Vec<Vec<usize>> = Vec::new();
    for &at in order {
        match islands.iter_mut().find(|island| island.iter().all(|&other| local.is_island(at, other))) {
            Some(island) => island.push(at),
            None => islands.push(vec![at]),
        }
    }
    islands
}

/// `pipeline` stages of `tensor` ranks each: each stage takes the nearest to its first.
pub(super) fn stages_of(local: &Local, order: &[usize], pipeline: usize, tensor: usize) -> Vec<Vec<usize>> {
    let mut left = order.to_vec();
    let mut stages = Vec::with_capacity(pipeline);
    for _ in 0..pipeline {
        if left.is_empty() {
            break;
        }
        let mut stage = vec![left.remove(0)];
        while stage.len() < tensor && !left.is_empty() {
            let cost = |at: usize| {
                let worst =
                    |worst: f64, link: Option<Link>| worst.max(link.map_or(f64::INFINITY, |l| l.rtt_s));
                stage.iter().map(|&s| local.between(s, at)).fold(0.0, worst)
            };
            let next = (0..left.len()).min_by(|&a, &b| cost(left[a]).total_cmp(&cost(left[b])));
            stage.push(left.remove(next.unwrap_or(0)));
        }
        stages.push(stage);
    }
    stages
}
