//! Whole models on single devices: all devices in the order of their worth, worked out once for a deployment.

use super::board::Board;
use super::divide::{Divided, Seat, Ways, predict};
use super::why::Why;

/// What is left of a candidate's worth if it is ready only after the whole horizon.
const LATE_WORTH: f64 = 0.05;

/// Devices that a deployment may ever sit on whole, best first.
#[derive(Debug, Clone, Default)]
pub(super) struct Singles {
    /// (device, worth in tokens a second, seconds until ready).
    order: Vec<(u32, f32, f32)>,
    /// Where the first that was not yet found occupied is; goes back when something is given back.
    at: usize,
}

impl Board<'_> {
    /// Seconds until a machine has a model in memory; `None`: never.
    pub(super) fn ready_s(&self, machine: u32, deployment: usize, holders: &Holders) -> Option<f64> {
        let of = &self.snapshot.fleet.machines[machine as usize];
        if holders.loaded[machine as usize] {
            return Some(0.0);
        }
        let shape = self.shape(deployment)?;
        let bytes = shape.weight_bytes(0..shape.layers()) as f64;
        let read = bytes / of.disk.max(1.0);
        if holders.disk[machine as usize] {
            return Some(read);
        }
        let mut fetch = if of.download > 0.0 { bytes / of.download } else { f64::INFINITY };
        if let Some(link) = self.neighbour(machine, holders)
            && of.fetch_room as f64 >= bytes
        {
            fetch = fetch.min(bytes / link);
        }
        fetch.is_finite().then_some(fetch + read)
    }

    /// Bytes a second of the best proved way to a machine that gives the model's files.
    fn neighbour(&self, machine: u32, holders: &Holders) -> Option<f64> {
        if !holders.any || !self.policy.from_neighbours {
            return None;
        }
        let links = &self.snapshot.fleet.links;
        links.nearest(machine, &holders.lenders, &holders.networks).map(|link| link.max(1.0))
    }

    /// Why a machine never has a model in memory.
    pub(super) fn no_files(&self, machine: u32, deployment: usize, holders: &Holders) -> Why {
        let room = self.snapshot.fleet.machines[machine as usize].fetch_room;
        let needed = self.shape(deployment).map_or(0, |shape| shape.weight_bytes(0..shape.layers()));
        if self.neighbour(machine, holders).is_some() && room < needed {
            return Why::Disk { needed, room };
        }
        Why::NoFiles
    }

    /// Which machines have a deployment's model.
    pub(super) fn holders(&self, deployment: usize) -> Holders {
        let model = &self.snapshot.wanted[deployment].spec.model;
        let machines = &self.snapshot.fleet.machines;
        let loaded = machines.iter().map(|m| m.loaded.contains(model)).collect();
        let disk: Vec<bool> =
            machines.iter().map(|m| m.on_disk.contains(model) || m.loaded.contains(model)).collect();
        let lenders: Vec<bool> = machines.iter().map(|m| m.online && m.lends.contains(model)).collect();
        let networks = self.snapshot.fleet.links.networks_with(&lenders);
        Holders { any: lenders.contains(&true), loaded, disk, lenders, networks }
    }

    fn order_singles(&mut self, deployment: usize) -> Option<Singles> {
        let shape = self.shape(deployment)?;
        let whole = [(0..shape.layers(), vec![1])];
        let needed = self.count(deployment, &whole).ok()?[0];
        let divided = Divided { stages: whole.to_vec(), memory: vec![needed] };
        let holders = self.holders(deployment);
        let mut order = Vec::new();
        for node in 0..self.nodes.len() as u32 {
            let at = self.nodes[node as usize];
            let why = match self.barred(at.machine, deployment) {
                Some(why) => why,
                None if at.usable < needed => Why::Memory { needed, room: at.usable },
                None => match self.ready_s(at.machine, deployment, &holders) {
                    None => self.no_files(at.machine, deployment, &holders),
                    Some(ready_s) => {
                        let seat = self.seat(node, deployment, false);
                        let tokens = tokens_per_s(shape, &divided, seat);
                        let worth = tokens * self.worth_of(ready_s);
                        order.push((node, worth as f32, ready_s as f32));
                        continue;
                    }
                },
            };
            self.rejected.single(deployment, node, why);
        }
        order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.2.total_cmp(&b.2)).then(a.0.cmp(&b.0)));
        Some(Singles { order, at: 0 })
    }

    /// What share of the horizon is left once it is ready.
    pub(super) fn worth_of(&self, ready_s: f64) -> f64 {
        (1.0 - ready_s / self.policy.horizon_s.max(1.0)).max(LATE_WORTH)
    }

    /// Places a whole model on the best device that is free, or may be taken; `None` where there is none.
    pub(super) fn place_single(&mut self, deployment: usize, take: bool) -> Option<usize> {
        self.looking_at = deployment;
        let shape = self.shape(deployment)?;
        let mut singles = match self.terms[deployment].singles.take() {
            Some(singles) => singles,
            None => self.order_singles(deployment)?,
        };
        let whole = [(0..shape.layers(), vec![1])];
        let needed = self.count(deployment, &whole).ok()?[0];
        let mut found = None;
        let start = if take { 0 } else { singles.at };
        for at in start..singles.order.len() {
            let (node, ..) = singles.order[at];
            let free = self.occupied(node, deployment, take).is_none()
                && self.room(node, deployment, take) >= needed;
            if free {
                found = Some((at, node));
                break;
            }
        }
        if !take {
            singles.at = found.map_or(singles.order.len(), |(at, _)| at + 1);
        }
        let taken = found.map(|(_, node)| {
            let divided = Divided { stages: whole.to_vec(), memory: vec![needed] };
            let seat = self.seat(node, deployment, take);
            let predicted = predict(shape, &divided, &[seat], &Ways { link: &|_, _| None });
            self.settle(deployment, vec![node], &divided, predicted)
        });
        self.terms[deployment].singles = Some(singles);
        taken
    }

    /// Says why the devices that could hold it whole do not.
    pub(super) fn reject_singles(&mut self, deployment: usize) {
        let Some(singles) = self.terms[deployment].singles.take() else { return };
        let shape = self.shape(deployment);
        let whole = shape.map(|shape| [(0..shape.layers(), vec![1u32])]);
        let needed = whole.and_then(|whole| self.count(deployment, &whole).ok()).map_or(0, |m| m[0]);
        for &(node, worth, ready_s) in &singles.order {
            let mine = |r: &&super::board::Resident| r.node == node && r.deployment == deployment;
            if self.residents[self.nodes[node as usize].machine as usize].iter().any(|r| mine(&r)) {
                continue;
            }
            let why = self.occupied(node, deployment, false).unwrap_or_else(|| {
                let room = self.room(node, deployment, false);
                if room < needed {
                    return Why::Memory { needed, room };
                }
                let tokens_per_s = f64::from(worth) / self.worth_of(f64::from(ready_s));
                Why::Slower { tokens_per_s, ready_s: f64::from(ready_s) }
            });
            self.rejected.single(deployment, node, why);
        }
        self.terms[deployment].singles = Some(singles);
    }

    /// Something was given back: devices that were occupied may be free again.
    pub(super) fn look_again(&mut self) {
        for terms in &mut self.terms {
            if let Some(singles) = &mut terms.singles {
                singles.at = 0;
            }
        }
    }
}

fn tokens_per_s(shape: &super::Shape, divided: &Divided, seat: Seat) -> f64 {
    predict(shape, divided, &[seat], &Ways { link: &|_, _| None }).decode_tokens_per_s
}

/// Which machines have a model, which of these give it to others, and which networks reach one of those.
#[derive(Debug)]
pub(super) struct Holders {
    any: bool,
    loaded: Vec<bool>,
    disk: Vec<bool>,
    lenders: Vec<bool>,
    networks: Vec<bool>,
}
