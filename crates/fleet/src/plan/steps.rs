//! The steps of a plan: keep, floors, demand, give back.

use super::board::Board;
use super::divide::Divided;
use super::{Predicted, Running, Short};
use crate::deployment::{Division, Replicas};

/// Whether an instance with these stages is what a shape asks for.
fn is_divided_so(shape: Division, stages: &[(std::ops::Range<usize>, Vec<u32>)]) -> bool {
    let wanted = match shape {
        Division::Auto => return true,
        Division::Single => (1, 1),
        Division::Tensor(tensor) => (1, tensor),
        Division::Pipeline(pipeline) => (pipeline, 1),
        Division::Both { pipeline, tensor } => (pipeline, tensor),
    };
    stages.len() == wanted.0 as usize && stages.iter().all(|(_, shares)| shares.len() == wanted.1 as usize)
}

impl Board<'_> {
    /// Seats every running instance that may go on, says why the others may not, and marks what may be taken.
    pub(super) fn keep_what_runs(&mut self) {
        let running = &self.snapshot.running;
        let mut order: Vec<usize> = (0..running.len()).collect();
        order.sort_by_key(|&at| (!running[at].ready, running[at].since, at));
        for at in order {
            match self.may_go_on(&running[at]) {
                Ok((nodes, divided, predicted)) => {
                    self.seat_down(running[at].deployment, (nodes, &divided, predicted), Some(at));
                }
                Err(reason) => self.ended.push((at, reason)),
            }
        }
        for deployment in 0..self.snapshot.wanted.len() {
            self.mark_takeable(deployment);
        }
    }

    fn may_go_on(&mut self, running: &Running) -> Result<(Vec<u32>, Divided, Predicted), String> {
        let deployment = running.deployment;
        if deployment >= self.snapshot.wanted.len() {
            return Err("its deployment is gone".to_owned());
        }
        self.looking_at = deployment;
        let mut nodes = Vec::with_capacity(running.ranks.len());
        for &(machine, device) in &running.ranks {
            let Some(of) = self.snapshot.fleet.machines.get(machine as usize) else {
                return Err("a machine of it is not known any more".to_owned());
            };
            if of.devices.len() <= device as usize {
                return Err(format!("{} has no such device any more", of.name));
            }
            nodes.push(self.first[machine as usize] + u32::from(device));
        }
        if nodes.is_empty() {
            return Err("it has no ranks".to_owned());
        }
        if let Some(ranks) = self.ranks(deployment)
            && ranks != nodes.len()
        {
            return Err(format!("its deployment wants {ranks} ranks now"));
        }
        let division = self.snapshot.wanted[deployment].spec.shape;
        if let Some(stages) = &running.stages
            && !is_divided_so(division, stages)
        {
            return Err(format!("its deployment wants it divided otherwise now: {division}"));
        }
        for &node in &nodes {
            let machine = self.nodes[node as usize].machine;
            // A machine that rests gets nothing new; what it has, it keeps.
            let why = self.barred(machine, deployment).filter(|why| *why != super::why::Why::Resting);
            if let Some(why) = why.or_else(|| self.occupied(node, deployment, false)) {
                return Err(format!("{}: {}", self.name(node), why.say(self, node)));
            }
        }
        let (divided, predicted) = self.measure(deployment, &nodes, running.stages.as_deref())?;
        Ok((nodes, divided, predicted))
    }

    fn settled(&self, instance: usize) -> bool {
        let Some(kept) = self.instances[instance].placement.kept else { return false };
        let since = self.snapshot.running[kept].since;
        self.snapshot.now.saturating_sub(since) >= self.policy.dwell
    }

    /// Instances that a deployment needs by its floor and its demand, given those that it has; with `utilisation` between
    /// the two bounds nothing changes.
    fn needed(&self, deployment: usize) -> u32 {
        let wanted = &self.snapshot.wanted[deployment];
        let (floor, ceiling) = (wanted.spec.replicas.floor(), wanted.spec.replicas.ceiling());
        let Replicas::Demand(_) = wanted.spec.replicas else { return floor };
        let tokens = wanted.demand.tokens_per_s();
        let held = &self.held[deployment];
        let mut given = 0.0;
        let mut count = 0u32;
        while tokens > given * self.policy.utilisation_min && (count as usize) < held.len() {
            given += self.capacity(held[count as usize]);
            count += 1;
        }
        count.clamp(floor, ceiling.max(floor))
    }

    fn mark_takeable(&mut self, deployment: usize) {
        let needed = self.needed(deployment) as usize;
        let is_fixed = matches!(self.snapshot.wanted[deployment].spec.replicas, Replicas::Fixed(_));
        for (at, &instance) in self.held[deployment].clone().iter().enumerate() {
            self.instances[instance].takeable = at >= needed && (is_fixed || self.settled(instance));
        }
    }

    /// Marks what deployments of lower priority have above their floors, for a need that comes before theirs.
    fn mark_lower(&mut self, deployment: usize, for_floor: bool) -> Vec<usize> {
        let priority = self.snapshot.wanted[deployment].spec.replicas.priority();
        let mut marked = Vec::new();
        for other in 0..self.snapshot.wanted.len() {
            let replicas = &self.snapshot.wanted[other].spec.replicas;
            if other == deployment || !(for_floor || replicas.priority() < priority) {
                continue;
            }
            let above = replicas.floor() as usize;
            for &instance in self.held[other].iter().skip(above) {
                if !self.instances[instance].takeable && (self.settled(instance)) {
                    marked.push(instance);
                }
            }
        }
        for &instance in &marked {
            self.instances[instance].takeable = true;
        }
        marked
    }

    /// Places one more instance: on what is free, then on what nobody needs, then on what others need less.
    fn place(&mut self, deployment: usize, for_floor: bool) -> Option<usize> {
        if let Some(placed) = self.place_on(deployment, false).or_else(|| self.place_on(deployment, true)) {
            return Some(placed);
        }
        let marked = self.mark_lower(deployment, for_floor);
        let placed = if marked.is_empty() { None } else { self.place_on(deployment, true) };
        for instance in marked {
            if self.instances[instance].gone.is_none() {
                self.instances[instance].takeable = false;
            }
        }
        placed
    }

    fn place_on(&mut self, deployment: usize, take: bool) -> Option<usize> {
        if take && !self.instances.iter().any(|instance| instance.takeable) {
            return None;
        }
        let ranks = self.ranks(deployment);
        let single =
            if ranks.is_none_or(|ranks| ranks == 1) { self.place_single(deployment, take) } else { None };
        single.or_else(|| self.place_group(deployment, take))
    }

    /// Seats a new instance, taking off those whose machines it takes.
    pub(super) fn settle(
        &mut self,
        deployment: usize,
        nodes: Vec<u32>,
        divided: &Divided,
        predicted: Predicted,
    ) -> usize {
        let mut after = Vec::new();
        for &node in &nodes {
            let machine = self.nodes[node as usize].machine as usize;
            let sits: Vec<usize> = self.residents[machine]
                .iter()
                .filter(|r| self.instances[r.instance].takeable && r.deployment != deployment)
                .map(|r| r.instance)
                .collect();
            for instance in sits {
                if self.occupied(node, deployment, false).is_none() && self.room_enough(node, &nodes, divided)
                {
                    break;
                }
                let name = &self.snapshot.wanted[deployment].spec.name;
                let reason = format!("its machines are needed for {name:?}, which comes first");
                if let Some(kept) = self.instances[instance].placement.kept {
                    after.push(kept);
                }
                self.take_off(instance, reason);
            }
        }
        if !after.is_empty() {
            self.look_again();
        }
        let placed = self.seat_down(deployment, (nodes, divided, predicted), None);
        self.instances[placed].after = after;
        placed
    }

    fn room_enough(&self, node: u32, nodes: &[u32], divided: &Divided) -> bool {
        let rank = nodes.iter().position(|&other| other == node);
        let needed = rank.and_then(|rank| divided.memory.get(rank)).copied().unwrap_or(0);
        self.nodes[node as usize].usable.saturating_sub(self.used[node as usize]) >= needed
    }

    /// Fills up to the floor.
    pub(super) fn fill_floor(&mut self, deployment: usize) {
        let wanted = &self.snapshot.wanted[deployment];
        let floor = wanted.spec.replicas.floor();
        self.targets[deployment] = floor.max(self.needed(deployment));
        if let Err(reason) = &wanted.shape {
            self.short.push(Short {
                deployment,
                missing: floor,
                waiting: Vec::new(),
                reason: reason.clone(),
            });
            self.rejected.group(deployment, "any machine".to_owned(), reason.clone());
            return;
        }
        if self.waits_for_pins(deployment) {
            return;
        }
        while (self.held[deployment].len() as u32) < floor {
            match self.place(deployment, true) {
                Some(instance) => {
                    let have = self.held[deployment].len();
                    self.instances[instance].reason = format!("instance {have} of {floor} that must be");
                }
                None => {
                    self.rejected_now(deployment);
                    let reason = self.rejected.nearest(self, deployment);
                    let missing = floor - self.held[deployment].len() as u32;
                    let reason = reason.unwrap_or_else(|| "no machine is left for it".to_owned());
                    self.short.push(Short { deployment, missing, waiting: Vec::new(), reason });
                    return;
                }
            }
        }
    }

    fn rejected_now(&mut self, deployment: usize) {
        if self.terms[deployment].singles.is_some() && !self.rejected.gone_through(deployment) {
            self.reject_singles(deployment);
        }
    }

    /// A pinned deployment whose machines are not all here, and that shall wait for them.
    fn waits_for_pins(&mut self, deployment: usize) -> bool {
        let terms = &self.terms[deployment];
        let floor = self.snapshot.wanted[deployment].spec.replicas.floor();
        let have = self.held[deployment].len() as u32;
        if !terms.pinned || terms.absent.is_empty() || have >= floor {
            return false;
        }
        let waiting = terms.absent.clone();
        let reason = format!("waiting for machine {}", waiting.join(", "));
        for machine in &waiting {
            self.rejected.group(
                deployment,
                machine.clone(),
                format!("waiting for machine {machine}: it is not connected"),
            );
        }
        // What is here may still serve, where an instance needs one machine only.
        let alone = self.ranks(deployment) == Some(1)
            || (self.ranks(deployment).is_none()
                && self.snapshot.wanted[deployment].spec.replicas != Replicas::Fixed(1));
        let mut have = have;
        while alone && have < floor && self.place_on(deployment, false).is_some() {
            have += 1;
        }
        if have < floor {
            self.short.push(Short { deployment, missing: floor - have, waiting, reason });
        }
        true
    }

    /// Adds instances while demand is above what there is, up to the ceiling.
    pub(super) fn fill_demand(&mut self, deployment: usize) {
        let wanted = &self.snapshot.wanted[deployment];
        let Replicas::Demand(bounds) = &wanted.spec.replicas else { return };
        let tokens = wanted.demand.tokens_per_s();
        let mut given: f64 = self.held[deployment].iter().map(|&at| self.capacity(at)).sum();
        while tokens > given * self.policy.utilisation
            && (self.held[deployment].len() as u32) < bounds.ceiling.max(bounds.floor)
            && wanted.shape.is_ok()
        {
            let Some(instance) = self.place(deployment, false) else {
                self.rejected_now(deployment);
                let reason = self.rejected.nearest(self, deployment);
                let reason = reason.unwrap_or_else(|| "no machine is left for it".to_owned());
                self.targets[deployment] =
                    self.targets[deployment].max(self.held[deployment].len() as u32 + 1);
                self.short.push(Short { deployment, missing: 1, waiting: Vec::new(), reason });
                break;
            };
            self.instances[instance].reason = format!(
                "demand of {tokens:.1} tokens/s is above {:.0} % of the {given:.1} that there are",
                self.policy.utilisation * 100.0
            );
            given += self.capacity(instance);
        }
        let have = self.held[deployment].len() as u32;
        self.targets[deployment] = self.targets[deployment].max(have);
    }

    /// Takes off what nobody wants and what has run for long enough.
    pub(super) fn give_back(&mut self) {
        for deployment in 0..self.snapshot.wanted.len() {
            let needed = self.needed(deployment);
            let is_fixed = matches!(self.snapshot.wanted[deployment].spec.replicas, Replicas::Fixed(_));
            while self.held[deployment].len() as u32 > needed {
                let last = self.held[deployment].iter().rev().copied().find(|&instance| {
                    self.instances[instance].placement.kept.is_some() && (is_fixed || self.settled(instance))
                });
                let Some(instance) = last else { break };
                let reason = if is_fixed {
                    format!("{needed} instances are wanted, and there are {}", self.held[deployment].len())
                } else {
                    format!(
                        "without it the others are used less than {:.0} % of the time",
                        self.policy.utilisation_min * 100.0
                    )
                };
                self.take_off(instance, reason);
            }
            let have = self.held[deployment].len() as u32;
            self.targets[deployment] = match self.snapshot.wanted[deployment].spec.replicas {
                Replicas::Fixed(n) => n,
                Replicas::Demand(_) => self.targets[deployment].max(needed).min(have.max(needed)),
            };
        }
        for deployment in 0..self.snapshot.wanted.len() {
            if !self.short.iter().any(|short| short.deployment == deployment) {
                self.rejected_now(deployment);
            }
        }
    }
}
