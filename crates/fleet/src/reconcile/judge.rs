//! What machines say, what follows for instances, and what is said of deployments.

use base::{Epoch, Incarnation, InstanceId, MachineId, Micros};

use super::instance::{Phase, RankState};
use super::{
    AWAY_MAX, COOL_DOWN, CRASH_FIRST, Controller, Effect, HEALTHY, Held, Known, LOAD_MAX, PAUSE_MAX,
    RETRY_FIRST, RankReport, TRIES_IN_PLACE,
};
use crate::deployment::{ConditionType, Verdict};

/// Errors of ranks that are kept of a deployment.
const ERRORS_MAX: usize = 32;
/// Longest text of an error that is kept.
const ERROR_CHARS_MAX: usize = 300;

impl Controller {
    pub(super) fn machine_up(
        &mut self,
        machine: MachineId,
        name: String,
        incarnation: Incarnation,
        holds: &[Held],
        effects: &mut Vec<Effect>,
    ) {
        let known = self.machines.entry(machine).or_insert_with(|| Known {
            name: String::new(),
            incarnation: None,
            away_since: Micros::ZERO,
            resting_until: Micros::ZERO,
            told: Vec::new(),
        });
        known.name = name;
        known.incarnation = Some(incarnation);
        self.changed = true;
        // Whatever it holds goes on under the largest epoch that anybody has seen.
        for held in holds {
            self.epoch = self.epoch.max(held.epoch);
        }
        let told = known.told.clone();
        for held in holds.iter().filter(|held| !told.contains(&(held.instance, held.epoch, held.rank))) {
            // Nobody wants it (any more): it was told while nobody here knew, or by an earlier life of this coordinator.
            let reason = "it is not what this machine is to hold".to_owned();
            let Held { instance, epoch, .. } = *held;
            effects.push(Effect::Unassign { machine, instance, epoch, reason });
        }
        for (instance, epoch, rank) in told {
            let held = holds.iter().find(|h| (h.instance, h.epoch, h.rank) == (instance, epoch, rank));
            match held {
                Some(held) if held.ready => {
                    self.advance(machine, (instance, epoch, rank), RankState::Ready);
                }
                Some(_) => {}
                // It started again, or never heard of it.
                None => effects.push(Effect::Assign { machine, instance, epoch, rank }),
            }
            if held.is_none()
                && let Some(of) = self.instances.get_mut(&instance)
                && of.is_ready()
            {
                self.fail(instance, Some(machine), "its provider started again", effects);
            }
        }
    }

    /// An instance that machines still hold after the coordinator started again: wanted, so it is taken on as it is.
    pub fn adopt(&mut self, instance: super::Instance) {
        if !self.deployments.contains_key(&instance.deployment) {
            return;
        }
        self.epoch = self.epoch.max(instance.epoch);
        for (rank, (machine, _)) in instance.places.iter().enumerate() {
            let told = (instance.id, instance.epoch, rank as u32);
            let known = self.machines.entry(*machine).or_insert_with(|| Known {
                name: String::new(),
                incarnation: None,
                away_since: self.now,
                resting_until: Micros::ZERO,
                told: Vec::new(),
            });
            if !known.told.contains(&told) {
                known.told.push(told);
            }
        }
        self.instances.insert(instance.id, instance);
        self.changed = true;
    }

    pub(super) fn machine_gone(&mut self, machine: MachineId) {
        let now = self.now;
        let Some(known) = self.machines.get_mut(&machine) else { return };
        if known.incarnation.take().is_some() {
            known.away_since = now;
            self.changed = true;
        }
    }

    pub(super) fn report(
        &mut self,
        machine: MachineId,
        about: (InstanceId, Epoch, u32),
        report: RankReport,
        effects: &mut Vec<Effect>,
    ) {
        let what = match self.machines.get(&machine) {
            None => Some("the machine is not known"),
            Some(known) if known.incarnation.is_none() => Some("the machine is not connected"),
            Some(known) if !known.told.contains(&about) => Some("it was told something else"),
            Some(_) => match self.instances.get(&about.0) {
                None => Some("the instance is not known"),
                Some(instance) if matches!(instance.phase, Phase::Retrying(_)) => Some("its try is over"),
                Some(_) => None,
            },
        };
        if let Some(what) = what {
            self.strays += 1;
            effects.push(Effect::Stray { machine, what });
            return;
        }
        match report {
            RankReport::Draining(done) => self.advance(machine, about, RankState::Draining(done.min(100))),
            RankReport::Loading(done) => self.advance(machine, about, RankState::Loading(done.min(100))),
            RankReport::Ready => self.advance(machine, about, RankState::Ready),
            RankReport::Failed(why) | RankReport::Refused(why) => {
                self.fail(about.0, Some(machine), &why, effects);
            }
        }
    }

    fn advance(&mut self, _machine: MachineId, about: (InstanceId, Epoch, u32), to: RankState) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&about.0).filter(|i| i.epoch == about.1) else { return };
        let Some(rank) = instance.ranks.get_mut(about.2 as usize) else { return };
        // What is ready does not go back to loading within one assignment.
        if *rank == RankState::Ready {
            return;
        }
        *rank = to;
        if instance.phase == Phase::Assigned && instance.ranks.iter().all(|rank| *rank == RankState::Ready) {
            instance.phase = Phase::Ready;
            instance.since = now;
            let (id, name) = (instance.id, instance.deployment.clone());
            if let Some(deployment) = self.deployments.get_mut(&name) {
                deployment.note(now, format!("{id} is ready"));
            }
        }
    }

    /// An instance's life ended in a fault: every rank is freed; it is tried again here, or elsewhere.
    pub(super) fn fail(
        &mut self,
        id: InstanceId,
        by: Option<MachineId>,
        why: &str,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.phase == Phase::Ready && now.saturating_sub(instance.since) >= HEALTHY {
            instance.failures = 0;
            if let Some(deployment) = self.deployments.get_mut(&instance.deployment) {
                deployment.crashes = 0;
            }
        }
        instance.failures += 1;
        let (failures, name, places) =
            (instance.failures, instance.deployment.clone(), instance.places.clone());
        let who = by.and_then(|machine| self.machines.get(&machine)).map_or("?", |known| known.name.as_str());
        let said: String = why.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect();
        let error = format!("{who}: {said}");
        if let Some(deployment) = self.deployments.get_mut(&name) {
            if deployment.errors.len() >= ERRORS_MAX {
                deployment.errors.remove(0);
            }
            deployment.errors.push(error.clone());
            deployment.note(now, format!("{id} failed ({failures} in a row): {error}"));
        }
        if failures > TRIES_IN_PLACE {
            if let Some(known) = by.and_then(|machine| self.machines.get_mut(&machine)) {
                known.resting_until = now + COOL_DOWN;
            }
            self.crash(&name);
            self.end(id, &format!("it failed {failures} times in a row, the last time: {error}"), effects);
            return;
        }
        effects.push(Effect::Withdraw(id));
        for (machine, _) in &places {
            self.untell(*machine, id, &error, effects);
        }
        let at = now + self.pause(RETRY_FIRST, failures - 1);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.phase = Phase::Retrying(at);
            instance.since = now;
        }
    }

    fn crash(&mut self, name: &str) {
        let crashes = self.deployments.get(name).map_or(0, |deployment| deployment.crashes);
        // The first time it goes elsewhere at once.
        let pause = if crashes == 0 { Micros::ZERO } else { self.pause(CRASH_FIRST, crashes - 1) };
        let until = self.now + pause;
        if let Some(deployment) = self.deployments.get_mut(name) {
            deployment.crashes = crashes + 1;
            deployment.paused_until = until;
        }
        self.changed = true;
    }

    /// Doubles with each time, and differs by up to a quarter.
    fn pause(&mut self, first: Micros, times: u32) -> Micros {
        let plain = (first.0 << times.min(16)).min(PAUSE_MAX.0);
        Micros(plain - plain / 4 + self.rng.below(plain / 2 + 1))
    }

    /// Losses, time-outs, and tries that are due.
    pub(super) fn judge_instances(&mut self, effects: &mut Vec<Effect>) {
        let ids: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in ids {
            let Some(instance) = self.instances.get(&id) else { continue };
            let away =
                |machine: &MachineId| self.machines.get(machine).is_none_or(|k| k.incarnation.is_none());
            let lost = |machine: &MachineId| {
                self.machines
                    .get(machine)
                    .is_none_or(|k| k.incarnation.is_none() && self.now >= k.away_since + AWAY_MAX)
            };
            let gone = instance.places.iter().map(|(machine, _)| *machine).find(lost);
            let since = instance
                .places
                .iter()
                .filter(|(m, _)| away(m))
                .filter_map(|(m, _)| self.machines.get(m).map(|known| known.away_since));
            let since = since.min();
            let (phase, late) = (instance.phase, self.now >= instance.since + LOAD_MAX);
            let behind = instance.ranks.iter().position(|rank| *rank != RankState::Ready);
            let behind = behind.map(|rank| instance.places[rank].0);
            if let Some(machine) = gone {
                let name = self.machines.get(&machine).map_or("a machine", |k| k.name.as_str());
                let reason = format!("{name} is not connected any more");
                self.end(id, &reason, effects);
                continue;
            }
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.away_since = since;
            }
            match phase {
                Phase::Retrying(at) if self.now >= at && since.is_none() => self.tell(id, effects),
                Phase::Assigned if late => self.fail(id, behind, "not ready in time", effects),
                _ => {}
            }
        }
    }

    /// Says how every deployment is.
    pub(super) fn say_conditions(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let mut moved = Vec::new();
        for (name, deployment) in &mut self.deployments {
            let of = || self.instances.values().filter(|i| i.deployment == *name);
            let (have, ready) = (of().count(), of().filter(|i| i.is_ready()).count());
            let floor = deployment.spec.replicas.floor() as usize;
            let placed = deployment.conditions.is(ConditionType::Placed);
            let away = of().filter(|i| i.away_since.is_some()).count();
            let was_ready = deployment.conditions.is(ConditionType::Ready);
            let generation = deployment.generation;
            let is_ready = ready >= floor.max(usize::from(have > 0)) && (placed || ready >= floor);
            let mut say = |kind, status: Verdict, reason: &str, message: String| {
                deployment.conditions.set(now, generation, kind, (status, reason, message))
            };
            let counts = format!("{ready} of {} instances take requests", have.max(floor));
            let ready_changed = say(
                ConditionType::Ready,
                is_ready.into(),
                if is_ready { "Ready" } else { "NotReady" },
                counts.clone(),
            );
            let degraded = ready > 0 && (ready < have.max(floor) || away > 0);
            say(
                ConditionType::Degraded,
                degraded.into(),
                if degraded { "FewerThanWanted" } else { "AsWanted" },
                if degraded { counts } else { String::new() },
            );
            let progressing = have > ready;
            let errors = deployment.errors.last().cloned();
            let message = match (progressing, errors) {
                (true, Some(error)) => {
                    format!("{} instances are on their way; the last error: {error}", have - ready)
                }
                (true, None) => format!("{} instances are on their way", have - ready),
                (false, _) => String::new(),
            };
            deployment.conditions.set(
                now,
                generation,
                ConditionType::Progressing,
                (progressing.into(), if progressing { "Loading" } else { "Settled" }, message),
            );
            if ready_changed && was_ready != is_ready {
                moved.push(name.clone());
            }
        }
        effects.extend(moved.into_iter().map(Effect::Store));
        // A healthy instance's past is forgotten.
        for instance in self.instances.values_mut() {
            if instance.phase == Phase::Ready && now.saturating_sub(instance.since) >= HEALTHY {
                instance.failures = 0;
                if let Some(deployment) = self.deployments.get_mut(&instance.deployment) {
                    deployment.crashes = 0;
                }
            }
        }
    }
}
