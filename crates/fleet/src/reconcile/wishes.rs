//! What operators say, and what plans make of it.

use base::{Epoch, InstanceId, MachineId, Micros};

use super::instance::{Instance, Phase, RankState, Terms};
use super::known::LEAVING_MAX;
use super::{Controller, Deployment, Effect, Mode, Withdrawal, World};
use crate::deployment::Spec;
use crate::plan::{Move, Placement, Plan, Snapshot, plan};

/// How long after it became ready an instance is taken to be offered for requests, too.
const OFFERED: Micros = Micros::from_millis(500);

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
                // What failed on the old terms says nothing of the new ones.
                deployment.errors.clear();
                let rested = self.machines.values_mut().filter(|known| known.resting_for == name);
                rested.for_each(|known| known.resting_until = Micros::ZERO);
                let model = deployment.spec.model != spec.model;
                deployment.was_ready = false;
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
            self.end(instance, reason, Withdrawal::Over, effects);
        }
    }

    /// Takes an instance's machines back for good.
    pub(super) fn end(
        &mut self,
        instance: InstanceId,
        reason: &str,
        how: Withdrawal,
        effects: &mut Vec<Effect>,
    ) {
        let Some(ended) = self.instances.remove(&instance) else { return };
        self.changed = true;
        effects.push(Effect::Withdraw { instance, how });
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
        if known.incarnation.is_some() {
            known.leaving.extend(&told);
            let more = known.leaving.len().saturating_sub(LEAVING_MAX);
            known.leaving.drain(..more);
        }
        for (_, epoch, _) in told {
            effects.push(Effect::Unassign { machine, instance, epoch, reason: reason.to_owned() });
        }
    }

    /// Makes a plan, and does what it says.
    pub(super) fn follow_plan(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let (snapshot, running) = self.snapshot(world);
        let decided = plan(&snapshot, &self.policy);
        self.planned = (self.now, decided.moves.is_empty());
        if self.mode == Mode::Enforce {
            for change in &decided.moves {
                if let Move::Stop { running: number, reason } = change {
                    self.end(running[*number], reason, Withdrawal::Drains, effects);
                }
            }
            for change in &decided.moves {
                if let Move::Start { placement, reason, .. } = change {
                    self.give_up_doubted(&snapshot, world, &decided.placements[*placement], effects);
                    self.begin(&snapshot, world, &decided, (*placement, reason), effects);
                }
            }
            self.unfollowed.clear();
        } else {
            let said = crate::plan::file::output(&snapshot, &decided).moves;
            let line = |m: crate::plan::file::MoveOutput| {
                format!("{} {} on {}: {}", m.action, m.deployment, m.machines.join(" + "), m.reason)
            };
            self.unfollowed = said.into_iter().map(line).collect();
        }
        self.changed = false;
        self.say_placed(&snapshot, &decided);
        self.rejected = decided.rejected;
    }

    /// Ends what was on a machine that is away, now that there is another place: for the same deployment, or for whoever
    /// takes the machines that are left of it.
    fn give_up_doubted(
        &mut self,
        snapshot: &Snapshot,
        world: &World,
        placement: &Placement,
        effects: &mut Vec<Effect>,
    ) {
        let name = &snapshot.wanted[placement.deployment].spec.name;
        let taken: Vec<MachineId> =
            placement.ranks.iter().map(|rank| world.machines[rank.machine as usize].0).collect();
        let doubted = || self.instances.values().filter(|i| i.doubted);
        let sits = |i: &&Instance| i.places.iter().any(|(machine, _)| taken.contains(machine));
        let mut over: Vec<InstanceId> = doubted().filter(sits).map(|i| i.id).collect();
        if !doubted().filter(sits).any(|i| i.deployment == *name) {
            over.extend(doubted().find(|i| i.deployment == *name).map(|i| i.id));
        }
        for id in over {
            let away = self.instances.get(&id).into_iter().flat_map(|i| &i.places);
            let away = away.filter_map(|(machine, _)| self.machines.get(machine));
            let away = away.filter(|known| known.incarnation.is_none()).map(|known| known.name.as_str());
            let away: Vec<&str> = away.collect();
            let reason = format!("{} is not connected any more", away.join(", "));
            self.end(id, &reason, Withdrawal::Over, effects);
        }
    }

    /// Tells instances anew whose deployment wants other terms: those that serve one at a time.
    pub(super) fn renew_outdated(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let mut anew = Vec::new();
        for (name, deployment) in &self.deployments {
            let of = || self.instances.values().filter(|i| i.deployment == *name && !i.doubted);
            let outdated = |i: &&Instance| i.terms.differ(&deployment.spec);
            if !of().any(|i| outdated(&i)) {
                continue;
            }
            let waits = |i: &&Instance| i.phase == Phase::Assigned;
            anew.extend(of().filter(outdated).filter(waits).map(|i| i.id));
            // One that has just become ready is first offered for requests.
            let settled = |i: &Instance| i.serves() && (outdated(&i) || self.now >= i.since + OFFERED);
            if of().all(settled) {
                anew.extend(of().find(outdated).map(|i| i.id));
            }
        }
        for id in anew {
            let Some(instance) = self.instances.get(&id) else { continue };
            let (places, name) = (instance.places.clone(), instance.deployment.clone());
            // Where others serve meanwhile it finishes what it has; where it is alone, what it has waits for it.
            let serves = |i: &&Instance| i.deployment == name && i.id != id && i.serves();
            let others = self.instances.values().any(|i| serves(&i));
            // Its links stand, and would not again: its next life is elsewhere.
            if let Some((by, why)) = Self::cut_between(instance, world) {
                let how = if others { Withdrawal::Drains } else { Withdrawal::Over };
                let error = self.error(id, Some(by), &why);
                self.end(id, &error, how, effects);
                continue;
            }
            let how = if others { Withdrawal::Drains } else { Withdrawal::BackSoon };
            effects.push(Effect::Withdraw { instance: id, how });
            for (machine, _) in &places {
                self.untell(*machine, id, "its deployment's spec was changed", effects);
            }
            self.tell(id, effects);
            let now = self.now;
            if let Some(deployment) = self.deployments.get_mut(&name) {
                deployment.note(now, format!("{id} was told the new spec"));
            }
        }
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
            terms: Terms::of(&snapshot.wanted[placement.deployment].spec),
            stages: placement.stages(),
            epoch: Epoch(0),
            phase: Phase::Assigned,
            since: self.now,
            placed: self.now,
            failures: 0,
            losses: 0,
            excused: false,
            away_since: None,
            doubted: false,
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
        if let Some(deployment) = self.deployments.get(&instance.deployment) {
            instance.terms = Terms::of(&deployment.spec);
        }
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
}
