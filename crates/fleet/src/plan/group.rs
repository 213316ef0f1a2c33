//! Groups: several devices that hold a model together, grown from seeds along proved links.
//!
//! From each seed a group grows by one device at a time, the one that adds most (memory that is still missing, bandwidth,
//! little time on the link). Each size is tried as one tensor group, as a pipeline, and as a pipeline of the islands that
//! fast links make; the fastest of the smallest size that fits wins. So a search costs seeds x ranks x neighbours, and
//! never enumerates subsets or cycles.

use std::ops::Range;

use super::board::Board;
use super::divide::{Count, Divided, Load, Seat, Ways, divide, predict, short};
use super::local::{Local, islands, stages_of};
use super::{Predicted, Shape};
use crate::deployment::{Division, Transport};
use crate::topology::{Link, LinkState};

/// Devices that one search looks at around a seed.
const NEAR_MAX: usize = 64;
/// Seeds where the fleet is larger than one neighbourhood.
const SEEDS_MAX: usize = 12;

/// A group that would do.
pub(super) struct Found {
    pub(super) nodes: Vec<u32>,
    pub(super) divided: Divided,
    pub(super) predicted: Predicted,
    pub(super) worth: f64,
}

struct Counted<'a, 'b>(&'a mut Board<'b>, usize);

impl Count for Counted<'_, '_> {
    fn exact(&mut self, stages: &[(Range<usize>, Vec<u32>)]) -> Result<Vec<u64>, String> {
        self.0.count(self.1, stages)
    }
}

/// Takes everything for fitting.
struct Uncounted;

impl Count for Uncounted {
    fn exact(&mut self, stages: &[(Range<usize>, Vec<u32>)]) -> Result<Vec<u64>, String> {
        Ok(vec![0; stages.iter().map(|(_, shares)| shares.len()).sum()])
    }
}

impl Board<'_> {
    /// Places a group on devices that are free, or may be taken; `None` where there is none.
    pub(super) fn place_group(&mut self, deployment: usize, take: bool) -> Option<usize> {
        self.looking_at = deployment;
        let shape = self.shape(deployment)?;
        let load = self.terms[deployment].load?;
        let sizes = self.sizes(deployment)?;
        let free = self.free(deployment, take);
        if free.len() < sizes.start {
            let reason = format!("{} devices are free for it, and it needs {}", free.len(), sizes.start);
            self.rejected.group(deployment, super::candidates::ANY_GROUP.to_owned(), reason);
            return None;
        }
        let mut rooms: Vec<u64> = free.iter().map(|seat| seat.room).collect();
        rooms.sort_unstable_by(|a, b| b.cmp(a));
        let layers = 0..shape.layers();
        let needed = shape.weight_bytes(layers.clone()).saturating_add(shape.kv_bytes(
            layers,
            load.context,
            load.batch,
        ));
        let working = shape.working_bytes(load.batch);
        let fits = |size: usize| {
            rooms[..size.min(rooms.len())].iter().map(|room| room.saturating_sub(working)).sum::<u64>()
                >= needed
        };
        let Some(smallest) = sizes.clone().find(|&size| size <= free.len() && fits(size)) else {
            let size = (sizes.end - 1).min(rooms.len());
            let room = rooms[..size].iter().map(|room| room.saturating_sub(working)).sum();
            let candidate = format!("the {size} largest free devices");
            self.rejected.group(deployment, candidate, short(needed, room));
            return None;
        };
        let found = self.search(deployment, (shape, load), &free, smallest..sizes.end, take)?;
        self.say_left_out(deployment, &free, &found);
        Some(self.settle(deployment, found.nodes, &found.divided, found.predicted))
    }

    /// Why free devices are not in the group that was found.
    fn say_left_out(&mut self, deployment: usize, free: &[Seat], found: &Found) {
        let machine = |board: &Self, node: u32| board.nodes[node as usize].machine;
        for seat in free.iter().filter(|seat| !found.nodes.contains(&seat.node)).take(32) {
            let links = &self.snapshot.fleet.links;
            let here = machine(self, seat.node);
            let cut_off = found.nodes.iter().copied().find(|&node| {
                let there = machine(self, node);
                links.up(here, there).is_none() && links.up(there, here).is_none()
            });
            let rdma = self.snapshot.wanted[deployment].spec.transport == Transport::Rdma;
            let reason = match cut_off {
                Some(node) => self.missing_link(seat.node, node, rdma),
                None => format!(
                    "others are better: {} ranks without it are predicted to give {:.1} tokens/s",
                    found.nodes.len(),
                    found.predicted.decode_tokens_per_s
                ),
            };
            let candidate = self.name(seat.node);
            self.rejected.group(deployment, candidate, reason);
        }
    }

    /// How many ranks are to be tried.
    fn sizes(&self, deployment: usize) -> Option<Range<usize>> {
        let ranks = self.ranks(deployment);
        match ranks {
            Some(1) => None,
            Some(ranks) => Some(ranks..ranks + 1),
            None => Some(2..self.policy.ranks_max.max(1) + 1),
        }
    }

    /// Devices that may be ranks, best first.
    fn free(&mut self, deployment: usize, take: bool) -> Vec<Seat> {
        let begun = self.rejected.begun(deployment);
        let mut free = Vec::new();
        for node in 0..self.nodes.len() as u32 {
            let machine = self.nodes[node as usize].machine;
            let why = self.barred(machine, deployment).or_else(|| self.occupied(node, deployment, take));
            match why {
                None => free.push(self.seat(node, deployment, take)),
                Some(why) if !begun => self.rejected.single(deployment, node, why),
                Some(_) => {}
            }
        }
        let value = |seat: &Seat| seat.bandwidth.sqrt() * seat.room as f64;
        free.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.node.cmp(&b.node)));
        free
    }

    fn search(
        &mut self,
        deployment: usize,
        (shape, load): (&Shape, Load),
        free: &[Seat],
        sizes: Range<usize>,
        take: bool,
    ) -> Option<Found> {
        let holders = self.holders(deployment);
        let mut ready: Vec<Option<f64>> = Vec::with_capacity(free.len().min(NEAR_MAX));
        let whole = free.len() <= NEAR_MAX;
        if whole {
            ready.extend(
                free.iter().map(|s| self.ready_s(self.nodes[s.node as usize].machine, deployment, &holders)),
            );
            for (seat, _) in free.iter().zip(&ready).filter(|(_, ready)| ready.is_none()) {
                let why = self.no_files(self.nodes[seat.node as usize].machine, deployment, &holders);
                self.rejected.single_once(deployment, seat.node, why);
            }
            let seats: Vec<(Seat, f64)> =
                free.iter().zip(ready).filter_map(|(seat, ready)| Some((*seat, ready?))).collect();
            let local = self.local(deployment, seats);
            let seeds: Vec<usize> = (0..local.seats.len()).collect();
            return self.grow(deployment, (shape, load), &local, &seeds, sizes);
        }
        let mut is_free = vec![false; self.nodes.len()];
        free.iter().for_each(|seat| is_free[seat.node as usize] = true);
        let mut best: Option<Found> = None;
        // Seeds spread over the order: the best, and some from the middle, so that one exhausted island does not hide others.
        let step = (free.len() / SEEDS_MAX).max(1);
        let seeds = free.iter().take(SEEDS_MAX / 2).chain(free.iter().skip(SEEDS_MAX / 2).step_by(step));
        for seed in seeds.take(SEEDS_MAX) {
            let machine = self.nodes[seed.node as usize].machine;
            let fleet = &self.snapshot.fleet;
            let has_free = |m: u32| {
                let first = self.first[m as usize] as usize;
                (first..first + fleet.machines[m as usize].devices.len()).any(|node| is_free[node])
            };
            let near = fleet.links.near(machine, NEAR_MAX - 1, has_free);
            let mut seats = Vec::new();
            for m in std::iter::once(machine).chain(near) {
                let first = self.first[m as usize];
                let Some(ready) = self.ready_s(m, deployment, &holders) else { continue };
                for node in first..first + fleet.machines[m as usize].devices.len() as u32 {
                    if is_free[node as usize] && seats.len() < NEAR_MAX {
                        seats.push((self.seat(node, deployment, take), ready));
                    }
                }
            }
            if seats.len() < sizes.start {
                continue;
            }
            let local = self.local(deployment, seats);
            let end = best.as_ref().map_or(sizes.end, |best| best.nodes.len() + 1);
            let found = self.grow(deployment, (shape, load), &local, &[0], sizes.start..end);
            let better = |found: &Found| {
                best.as_ref()
                    .is_none_or(|best| (found.nodes.len(), -found.worth) < (best.nodes.len(), -best.worth))
            };
            if found.as_ref().is_some_and(better) {
                best = found;
            }
        }
        best
    }

    pub(super) fn local(&self, deployment: usize, seats: Vec<(Seat, f64)>) -> Local {
        let rdma = self.snapshot.wanted[deployment].spec.transport == Transport::Rdma;
        let wanted = |link: &Link| link.state == LinkState::Up && (!rdma || link.rdma);
        let links = &self.snapshot.fleet.links;
        let machine = |seat: &Seat| self.nodes[seat.node as usize].machine;
        let mut all = Vec::with_capacity(seats.len() * seats.len());
        for (a, _) in &seats {
            all.extend(seats.iter().map(|(b, _)| links.best(machine(a), machine(b), wanted)));
        }
        let (seats, ready): (Vec<Seat>, Vec<f64>) = seats.into_iter().unzip();
        // Machines of one kind of name are counted: `m-10` comes after `m-2`.
        let key = |at: &usize| {
            let node = seats[*at].node;
            let name = &self.snapshot.fleet.machines[self.nodes[node as usize].machine as usize].name;
            (name.len(), name.as_str(), node)
        };
        let mut order: Vec<usize> = (0..seats.len()).collect();
        order.sort_unstable_by_key(key);
        let mut named = vec![0; seats.len()];
        order.iter().enumerate().for_each(|(place, &at)| named[at] = place);
        Local { seats, named, ready, links: all }
    }

    /// Grows from every seed, and takes the best of the smallest size that gives any.
    fn grow(
        &mut self,
        deployment: usize,
        (shape, load): (&Shape, Load),
        local: &Local,
        seeds: &[usize],
        sizes: Range<usize>,
    ) -> Option<Found> {
        let mut grown: Vec<Vec<usize>> = seeds.iter().map(|&seed| vec![seed]).collect();
        let mut open: Vec<Vec<usize>> =
            seeds.iter().map(|&seed| (0..local.seats.len()).filter(|&at| at != seed).collect()).collect();
        for size in 2..sizes.end {
            let mut best: Option<Found> = None;
            let mut tried: Vec<Vec<usize>> = Vec::new();
            for (members, open) in grown.iter_mut().zip(&mut open) {
                if members.len() + 1 != size {
                    continue;
                }
                let newest = *members.last().expect("a group has its seed at least");
                open.retain(|&at| local.between(newest, at).is_some());
                let gain = |at: usize| self.gain((shape, load), local, members, at);
                let Some(next) =
                    open.iter().copied().max_by(|&a, &b| gain(a).total_cmp(&gain(b)).then(b.cmp(&a)))
                else {
                    continue;
                };
                open.retain(|&at| at != next);
                members.push(next);
                if size < sizes.start {
                    continue;
                }
                let mut key = members.clone();
                key.sort_unstable();
                if tried.contains(&key) {
                    continue;
                }
                tried.push(key);
                let bar = best.as_ref().map_or(0.0, |best| best.worth);
                let found = self.layouts(deployment, (shape, load), (local, bar), members);
                if let Some(found) = found
                    && best.as_ref().is_none_or(|best| found.worth > best.worth)
                {
                    best = Some(found);
                }
            }
            if best.is_some() {
                return best;
            }
        }
        if grown.iter().all(|members| members.len() < sizes.start) {
            self.say_missing_link(deployment, local, sizes.start);
        }
        None
    }

    /// What a device adds to a group: what it has room for of what is missing, against the time that it costs.
    fn gain(&self, (shape, load): (&Shape, Load), local: &Local, members: &[usize], at: usize) -> f64 {
        let (working, all) = (shape.working_bytes(load.batch), 0..shape.layers());
        let needed =
            shape.weight_bytes(all.clone()).saturating_add(shape.kv_bytes(all, load.context, load.batch));
        let room: u64 = members.iter().map(|&m| local.seats[m].room.saturating_sub(working)).sum();
        let missing = needed.saturating_sub(room).max(1) as f64;
        let seat = local.seats[at];
        let fills = (seat.room.saturating_sub(working) as f64 / missing).min(1.0);
        let worst = members.iter().filter_map(|&m| local.between(m, at)).fold(0.0f64, |worst, link| {
            worst.max(link.rtt_s / 2.0 + shape.row_bytes() / link.bandwidth.max(1.0))
        });
        let size = members.len() as f64 + 1.0;
        let read = shape.read_bytes(0..shape.layers()) / seat.bandwidth.max(1.0) / size;
        let late = 1.0 / self.worth_of(local.ready[at]);
        (2.0 * fills) / ((read + worst * shape.layers() as f64) * late).max(1e-9)
    }

    /// Why no seed found enough others: the pair that has no link.
    fn say_missing_link(&mut self, deployment: usize, local: &Local, size: usize) {
        let rdma = self.snapshot.wanted[deployment].spec.transport == Transport::Rdma;
        let mut said = 0;
        for a in 0..local.seats.len() {
            for b in a + 1..local.seats.len() {
                if local.between(a, b).is_some() || said >= 32 {
                    continue;
                }
                said += 1;
                let (from, to) = (local.seats[a].node, local.seats[b].node);
                let candidate = format!("{} + {}", self.name(from), self.name(to));
                let reason = self.missing_link(from, to, rdma);
                self.rejected.group(deployment, candidate, reason);
            }
        }
        if said == 0 {
            let reason = format!("no {size} devices that all reach each other");
            self.rejected.group(deployment, format!("{} free devices", local.seats.len()), reason);
        }
    }

    fn missing_link(&self, from: u32, to: u32, rdma: bool) -> String {
        let (a, b) = (self.name(from), self.name(to));
        let machine = |node: u32| self.nodes[node as usize].machine;
        let links = &self.snapshot.fleet.links;
        let any = links.best(machine(from), machine(to), |_| true);
        let any = any.or_else(|| links.best(machine(to), machine(from), |_| true));
        let why = || links.why_not(machine(from), machine(to));
        match any {
            None => format!("the link {a} -> {b} is not yet probed"),
            Some(link) if link.state == LinkState::Down => match why() {
                Some(cause) => format!("{b} cannot be dialled from {a}: {cause}"),
                None => format!("the link {a} -> {b} is down"),
            },
            Some(link) if link.state != LinkState::Up => format!("the link {a} -> {b} is not yet probed"),
            Some(link) if rdma => format!(
                "RDMA is required, and the link {a} -> {b} ({}, {:.1} Gbit/s) has none",
                link.kind,
                link.bandwidth * 8.0 / 1e9
            ),
            Some(_) => format!("the link {a} -> {b} is missing"),
        }
    }

    /// The ways to divide the model over these members; the best.
    fn layouts(
        &mut self,
        deployment: usize,
        (shape, load): (&Shape, Load),
        (local, bar): (&Local, f64),
        members: &[usize],
    ) -> Option<Found> {
        let node = |at: usize| local.seats[at].node;
        let named = |board: &Self, members: &[usize], how: &str| {
            let names: Vec<String> = members.iter().map(|&at| board.name(node(at))).collect();
            format!("{} ({how})", names.join(" + "))
        };
        let order = match local.dial_order(members) {
            Ok(order) => order,
            Err((from, to)) => {
                let reason = self.missing_link(node(from), node(to), false);
                let candidate = named(self, members, "no order of ranks");
                self.rejected.group(deployment, candidate, reason);
                return None;
            }
        };
        let count = order.len();
        let single = |order: &[usize]| order.iter().map(|&at| vec![at]).collect::<Vec<_>>();
        let division = self.snapshot.wanted[deployment].spec.shape;
        let tries: Vec<(&str, Vec<Vec<usize>>)> = match division {
            Division::Tensor(_) => vec![("tensor", vec![order])],
            Division::Pipeline(_) => vec![("pipeline", single(&order))],
            Division::Both { pipeline, tensor } => {
                vec![("tensor x pipeline", stages_of(local, &order, pipeline as usize, tensor as usize))]
            }
            Division::Single => vec![],
            Division::Auto => {
                let mut tries = vec![("tensor", vec![order.clone()]), ("pipeline", single(&order))];
                let islands = islands(local, &order);
                if islands.len() > 1 && islands.len() < count {
                    tries.push(("tensor x pipeline", islands));
                }
                tries
            }
        };
        let mut best: Option<Found> = None;
        for (how, stages) in tries {
            let bar = best.as_ref().map_or(bar, |best| best.worth.max(bar));
            match self.evaluate(deployment, (shape, load), (local, bar), &stages) {
                Ok(found) => {
                    if let Some(lost) = best.replace(found) {
                        let names: Vec<String> = lost.nodes.iter().map(|&node| self.name(node)).collect();
                        let reason = format!(
                            "others are better: predicted {:.1} tokens/s here",
                            lost.predicted.decode_tokens_per_s
                        );
                        let candidate = format!("{} ({})", names.join(" + "), how_of(&lost));
                        self.rejected.group(deployment, candidate, reason);
                    }
                }
                Err(reason) => {
                    let candidate = named(self, &stages.concat(), how);
                    self.rejected.group(deployment, candidate, reason);
                }
            }
        }
        best
    }

    pub(super) fn evaluate(
        &mut self,
        deployment: usize,
        (shape, load): (&Shape, Load),
        (local, bar): (&Local, f64),
        stages: &[Vec<usize>],
    ) -> Result<Found, String> {
        let flat: Vec<usize> = stages.concat();
        for (rank, &to) in flat.iter().enumerate() {
            if let Some(&from) = flat[rank + 1..].iter().find(|&&from| local.link(from, to).is_none()) {
                return Err(self.missing_link(local.seats[from].node, local.seats[to].node, false));
            }
        }
        let seats: Vec<Vec<Seat>> =
            stages.iter().map(|stage| stage.iter().map(|&at| local.seats[at]).collect()).collect();
        let names: std::collections::HashMap<u32, String> =
            seats.iter().flatten().map(|seat| (seat.node, self.name(seat.node))).collect();
        let name = |node: u32| names.get(&node).cloned().unwrap_or_default();
        let flat_seats: Vec<Seat> = seats.concat();
        let link = |a: usize, b: usize| local.between(flat[a], flat[b]);
        let ready = flat.iter().map(|&at| local.ready[at]).fold(0.0, f64::max);
        let left = self.worth_of(ready / flat.len() as f64);
        // Counting exactly takes a hundred times as long: only what would win is counted.
        let sketch = divide(shape, load, &seats, &name, &mut Uncounted)?;
        let guess = predict(shape, &sketch, &flat_seats, &Ways { link: &link });
        if guess.decode_tokens_per_s * left <= bar {
            return Err(format!(
                "others are better: predicted {:.1} tokens/s here",
                guess.decode_tokens_per_s
            ));
        }
        let divided = divide(shape, load, &seats, &name, &mut Counted(self, deployment))?;
        let predicted = predict(shape, &divided, &flat_seats, &Ways { link: &link });
        let worth = predicted.decode_tokens_per_s * left;
        Ok(Found { nodes: flat_seats.iter().map(|s| s.node).collect(), divided, predicted, worth })
    }
}

fn how_of(found: &Found) -> &'static str {
    let stages = found.divided.stages.len();
    match (stages, found.nodes.len() / stages.max(1)) {
        (1, _) => "tensor",
        (_, 1) => "pipeline",
        _ => "tensor x pipeline",
    }
}
