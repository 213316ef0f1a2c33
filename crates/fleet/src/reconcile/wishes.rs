//! What operators say, and what plans make of it.

use std::collections::BTreeMap;

use base::{Epoch, InstanceId, MachineId, Micros};

use super::instance::{Instance, Phase, RankState};
use super::{Controller, Deployment, Effect, World};
use crate::deployment::{ConditionType, Spec, Verdict};
use crate::plan::{Move, Plan, Running, Snapshot, Wanted, plan};
use crate::topology::Fleet;

impl Controller {
    pub(super) fn apply(&mut self, spec: Spec, effects: &mut Vec<Effect>) {
        let (name, now) = (spec.name.clone(), self.now);
        match self.deployments.get_mut(&name) {
            // Saying the same again is no change.
            Some(deployment) if deployment.spec == spec => return,
            Some(deployment) => {
                deployment.generation += 1;
                deployment.crashes = 0;
                deployment.paused_until = Micros::ZERO;
                let model = deployment.spec.model != spec.model;
                deployment.spec = spec;
                deployment.note(now, "its spec was changed".to_owned());
                if model {
                    self.end_all_of(&name, "its deployment serves another model now", effects);
                }
            }
            None => {
                let mut deployment = Deployment::new(spec, 1);
                deployment.note(now, "it was made".to_owned());
                self.deployments.insert(name.clone(), deployment);
            }
        }
        self.changed = true;
        effects.push(Effect::Store(name));
    }

    pub(super) fn delete(&mut self, name: &str, effects: &mut Vec<Effect>) {
        if self.deployments.remove(name).is_none() {
            return;
        }
        self.end_all_of(name, "its deployment was deleted", effects);
        self.changed = true;
        effects.push(Effect::Store(name.to_owned()));
    }

    fn end_all_of(&mut self, name: &str, reason: &str, effects: &mut Vec<Effect>) {
        let of: Vec<InstanceId> =
            self.instances.values().filter(|i| i.deployment == name).map(|i| i.id).collect();
        for instance in of {
            self.end(instance, reason, effects);
        }
    }

    /// Takes an instance's machines back for good.
    pub(super) fn end(&mut self, instance: InstanceId, reason: &str, effects: &mut Vec<Effect>) {
        let Some(ended) = self.instances.remove(&instance) else { return };
        self.changed = true;
        effects.push(Effect::Withdraw(instance));
        for (machine, _) in &ended.places {
            self.untell(*machine, instance, reason, effects);
        }
        let now = self.now;
        if let Some(deployment) = self.deployments.get_mut(&ended.deployment) {
            deployment.note(now, format!("{instance} was ended: {reason}"));
        }
    }

    pub(super) fn untell(
        &mut self,
        machine: MachineId,
        instance: InstanceId,
        reason: &str,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.machines.get_mut(&machine) else { return };
        let told: Vec<_> = known.told.iter().copied().filter(|told| told.0 == instance).collect();
        known.told.retain(|told| told.0 != instance);
        for (_, epoch, _) in told {
            effects.push(Effect::Unassign { machine, instance, epoch, reason: reason.to_owned() });
        }
    }

    /// Makes a plan, and does what it says.
    pub(super) fn follow_plan(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let (snapshot, running) = self.snapshot(world);
        let decided = plan(&snapshot, &self.policy);
        for change in &decided.moves {
            if let Move::Stop { running: number, reason } = change {
                self.end(running[*number], reason, effects);
            }
        }
        for change in &decided.moves {
            if let Move::Start { placement, reason, .. } = change {
                self.begin(&snapshot, world, &decided, (*placement, reason), effects);
            }
        }
        self.changed = false;
        self.say_placed(&snapshot, &decided);
    }

    /// What a plan is made from: deployments that pause want nothing new.
    fn snapshot(&self, world: &World) -> (Snapshot, Vec<InstanceId>) {
        let numbers: BTreeMap<MachineId, u32> =
            world.machines.iter().enumerate().map(|(at, (id, _))| (*id, at as u32)).collect();
        let mut fleet =
            Fleet { machines: Vec::with_capacity(world.machines.len()), links: world.links.clone() };
        for (id, machine) in &world.machines {
            let mut machine = machine.clone();
            let known = self.machines.get(id);
            // One that is away for a moment keeps what it has, and gets nothing new.
            let here = known.is_some_and(|known| known.incarnation.is_some());
            let soon = known.is_some_and(|k| self.now < k.away_since + super::AWAY_MAX);
            machine.online &= here || (soon && known.is_some_and(|known| !known.told.is_empty()));
            if machine.online && !here {
                machine.resting = Some("it is not connected at the moment".to_owned());
            }
            if let Some(known) = known
                && self.now < known.resting_until
            {
                machine.resting = Some("instances failed on it: it cools down".to_owned());
            }
            fleet.machines.push(machine);
        }
        let mut wanted = Vec::new();
        let mut by_name = BTreeMap::new();
        for (name, deployment) in &self.deployments {
            by_name.insert(name.as_str(), wanted.len());
            let shape = world.shapes.get(&deployment.spec.model).cloned();
            let paused = self.now < deployment.paused_until;
            let shape = match shape {
                Some(shape) if !paused || self.instances.values().any(|i| i.deployment == *name) => Ok(shape),
                Some(_) => Err("it failed everywhere, and is tried again after a pause".to_owned()),
                None => Err(format!("no machine has told what {:?} is", deployment.spec.model)),
            };
            let mut spec = deployment.spec.clone();
            if paused {
                // What it has stays; nothing is added.
                let have = self.instances.values().filter(|i| i.deployment == *name).count() as u32;
                let have = have.min(spec.replicas.ceiling());
                spec.replicas = crate::deployment::Replicas::Fixed(have);
            }
            let demand = world.demand.get(name).copied().unwrap_or_default();
            wanted.push(Wanted { spec, shape, demand });
        }
        let mut running = Vec::new();
        let mut ids = Vec::new();
        for instance in self.instances.values() {
            let Some(&deployment) = by_name.get(instance.deployment.as_str()) else { continue };
            let ranks = instance
                .places
                .iter()
                .map(|(machine, device)| (numbers.get(machine).copied().unwrap_or(u32::MAX), *device));
            running.push(Running {
                deployment,
                ranks: ranks.collect(),
                ready: instance.is_ready(),
                since: instance.placed,
                stages: Some(instance.stages.clone()),
            });
            ids.push(instance.id);
        }
        (Snapshot { fleet, wanted, running, now: self.now }, ids)
    }

    fn begin(
        &mut self,
        snapshot: &Snapshot,
        world: &World,
        decided: &Plan,
        (placement, reason): (usize, &str),
        effects: &mut Vec<Effect>,
    ) {
        let placement = &decided.placements[placement];
        let id = InstanceId::random(&mut self.rng);
        let places: Vec<(MachineId, u16)> = placement
            .ranks
            .iter()
            .map(|rank| (world.machines[rank.machine as usize].0, rank.device))
            .collect();
        let name = snapshot.wanted[placement.deployment].spec.name.clone();
        let instance = Instance {
            id,
            deployment: name.clone(),
            ranks: vec![RankState::Told; places.len()],
            places,
            stages: placement.stages(),
            epoch: Epoch(0),
            phase: Phase::Assigned,
            since: self.now,
            placed: self.now,
            failures: 0,
            away_since: None,
        };
        let names: Vec<&str> = placement.ranks.iter().map(|rank| snapshot.fleet.name(rank.machine)).collect();
        let what = format!("{id} was placed on {}: {reason}", names.join(" + "));
        self.instances.insert(id, instance);
        self.tell(id, effects);
        let now = self.now;
        if let Some(deployment) = self.deployments.get_mut(&name) {
            deployment.note(now, what);
            effects.push(Effect::Store(name));
        }
    }

    /// Tells every rank of an instance its place, under a new epoch.
    pub(super) fn tell(&mut self, id: InstanceId, effects: &mut Vec<Effect>) {
        self.epoch = Epoch(self.epoch.0 + 1);
        let epoch = self.epoch;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.epoch = epoch;
        instance.phase = Phase::Assigned;
        instance.since = self.now;
        instance.ranks.fill(RankState::Told);
        for (rank, (machine, _)) in instance.places.iter().enumerate() {
            let (machine, rank) = (*machine, rank as u32);
            if let Some(known) = self.machines.get_mut(&machine) {
                known.told.retain(|told| told.0 != id || told.1 == epoch);
                known.told.push((id, epoch, rank));
                effects.push(Effect::Assign { machine, instance: id, epoch, rank });
            }
        }
    }

    fn say_placed(&mut self, snapshot: &Snapshot, decided: &Plan) {
        let now = self.now;
        for (number, wanted) in snapshot.wanted.iter().enumerate() {
            let name = &wanted.spec.name;
            let Some(deployment) = self.deployments.get_mut(name) else { continue };
            let short = decided.short.iter().find(|short| short.deployment == number);
            let paused = now < deployment.paused_until;
            let (status, reason, message) = match short {
                Some(short) if !short.waiting.is_empty() => (Verdict::False, "Waiting", short.reason.clone()),
                Some(short) if paused => (Verdict::False, "CrashLoop", short.reason.clone()),
                Some(short) => (Verdict::False, "NoPlace", short.reason.clone()),
                None if paused => (
                    Verdict::False,
                    "CrashLoop",
                    "it failed everywhere, and is tried again after a pause".to_owned(),
                ),
                None => (Verdict::True, "Placed", String::new()),
            };
            let generation = deployment.generation;
            deployment.conditions.set(now, generation, ConditionType::Placed, (status, reason, message));
        }
    }
}
