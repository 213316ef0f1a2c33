//! What machines say, what follows for instances, and what is said of deployments.

use base::{Epoch, Incarnation, InstanceId, MachineId, Micros};

use super::instance::{LOAD_MAX, Phase, RankState};
use super::known::Known;
use super::{
    COOL_DOWN, CRASH_FIRST, Controller, Effect, HEALTHY, Held, LOSSES_MAX, Mode, PAUSE_MAX, PLAN_EVERY,
    RETRY_FIRST, RankReport, TRIES_IN_PLACE, Withdrawal, World,
};
use crate::deployment::Replicas;

/// Errors of ranks that are kept of a deployment.
const ERRORS_MAX: usize = 32;
/// What ended an instance's life.
pub(super) struct Blame<'a> {
    /// Whose rank it was, where that is known.
    machine: Option<MachineId>,
    why: &'a str,
    /// It went without a word: killed, or cut off.
    is_loss: bool,
}

impl<'a> Blame<'a> {
    fn failed(machine: Option<MachineId>, why: &'a str) -> Self {
        Self { machine, why, is_loss: false }
    }

    fn lost(machine: MachineId, why: &'a str) -> Self {
        Self { machine: Some(machine), why, is_loss: true }
    }
}

/// Longest text of an error that is kept.
const ERROR_CHARS_MAX: usize = 300;

impl Controller {
    pub(super) fn machine_up(
        &mut self,
        machine: MachineId,
        name: String,
        (incarnation, fresh): (Incarnation, bool),
        holds: &[Held],
        effects: &mut Vec<Effect>,
    ) {
        let known = self.machines.entry(machine).or_insert_with(|| Known::new(String::new(), Micros::ZERO));
        // A start that replaces one which was told something: whatever that held is gone, and why is not known.
        let restarted = known.last.is_some_and(|last| last != incarnation);
        known.name = name;
        known.incarnation = Some(incarnation);
        known.last = Some(incarnation);
        known.adopted = false;
        if restarted {
            known.leaving.clear();
        }
        self.changed = true;
        // Whatever it holds goes on under the largest epoch that anybody has seen.
        for held in holds {
            self.epoch = self.epoch.max(held.epoch);
        }
        let told = known.told.clone();
        let leaving = if fresh { Vec::new() } else { known.leaving.clone() };
        let expected = |held: &&Held| {
            let about = (held.instance, held.epoch, held.rank);
            told.contains(&about) || leaving.contains(&about)
        };
        for held in holds.iter().filter(|held| !expected(held)) {
            // Nobody wants it (any more): it was told while nobody here knew, or by an earlier life of this coordinator.
            let reason = "it is not what this machine is to hold".to_owned();
            let Held { instance, epoch, .. } = *held;
            effects.push(Effect::Unassign { machine, instance, epoch, reason });
        }
        for (instance, epoch, rank) in told.iter().copied() {
            let held = holds.iter().find(|h| (h.instance, h.epoch, h.rank) == (instance, epoch, rank));
            match held {
                Some(held) if held.ready => {
                    self.advance(machine, (instance, epoch, rank), RankState::Ready);
                }
                Some(_) => self.demote(instance, rank),
                None if restarted => {
                    self.fail(instance, &Blame::lost(machine, "its provider started again"), effects);
                }
                // It is on its way.
                None if !fresh => {}
                // It never heard of it.
                None => effects.push(Effect::Assign { machine, instance, epoch, rank }),
            }
        }
    }

    /// A rank that was ready is on its way again.
    fn demote(&mut self, instance: InstanceId, rank: u32) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&instance).filter(|i| i.is_ready()) else { return };
        if let Some(state) = instance.ranks.get_mut(rank as usize) {
            *state = RankState::Told;
            instance.phase = Phase::Assigned;
            instance.since = now;
        }
    }

    /// An instance that machines may still hold after the coordinator started again: wanted, so it is taken on as it is.
    /// `names` are what its machines are called, by rank.
    pub fn adopt(&mut self, instance: super::Instance, names: &[String]) {
        self.epoch = self.epoch.max(instance.epoch);
        if !self.deployments.contains_key(&instance.deployment) {
            return;
        }
        for (rank, (machine, _)) in instance.places.iter().enumerate() {
            let told = (instance.id, instance.epoch, rank as u32);
            let name = names.get(rank).cloned().unwrap_or_default();
            let now = self.now;
            let known = self
                .machines
                .entry(*machine)
                .or_insert_with(|| Known { adopted: true, ..Known::new(name, now) });
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
        if known.incarnation.take().is_none() {
            return;
        }
        known.away_since = now;
        self.changed = true;
        let what = format!("{} is not connected", known.name);
        let seated = |i: &&super::Instance| i.places.iter().any(|(seat, _)| *seat == machine);
        let mut of: Vec<&str> =
            self.instances.values().filter(seated).map(|instance| instance.deployment.as_str()).collect();
        of.dedup();
        for name in of {
            if let Some(deployment) = self.deployments.get_mut(name) {
                deployment.note(now, what.clone());
            }
        }
    }

    pub(super) fn report(
        &mut self,
        machine: MachineId,
        about: (InstanceId, Epoch, u32),
        report: RankReport,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(known) = self.machines.get_mut(&machine)
            && let Some(at) = known.leaving.iter().position(|leaving| *leaving == about)
        {
            // It does what it was told, and says how far it is.
            let over = |of: &RankReport| {
                use RankReport::{Draining, Fetching, Loading, Ready};
                !matches!(of, Draining(_) | Fetching(_) | Loading(_) | Ready)
            };
            if over(&report) {
                known.leaving.remove(at);
            }
            return;
        }
        // The end of a group's rank is told by the others, too, when its machine is away.
        let of_others = matches!(report, RankReport::Failed(_) | RankReport::Lost(_));
        let what = match self.machines.get(&machine) {
            None => Some("the machine is not known"),
            Some(known) if known.incarnation.is_none() && !of_others => Some("the machine is not connected"),
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
            RankReport::Fetching(fetched) => self.advance(machine, about, RankState::Fetching(fetched)),
            RankReport::Loading(done) => self.advance(machine, about, RankState::Loading(done.min(100))),
            RankReport::Ready => self.advance(machine, about, RankState::Ready),
            RankReport::Failed(why) => self.fail(about.0, &Blame::failed(Some(machine), &why), effects),
            RankReport::Lost(why) => self.fail(about.0, &Blame::lost(machine, &why), effects),
            RankReport::Refused(why) => self.refused(about.0, machine, &why, effects),
            RankReport::Gone => {
                self.fail(about.0, &Blame::failed(Some(machine), "it let its assignment go"), effects);
            }
        }
    }

    /// A machine does not take what it was told. Nothing failed: the instance has no place there, and the machine gets
    /// nothing for a while (A4).
    fn refused(&mut self, id: InstanceId, machine: MachineId, why: &str, effects: &mut Vec<Effect>) {
        let error = self.error(id, Some(machine), why);
        self.rest((machine, id), &format!("it refused an assignment: {}", said(why)));
        self.end(id, &format!("it was refused by {error}"), Withdrawal::Over, effects);
    }

    fn rest(&mut self, (machine, instance): (MachineId, InstanceId), why: &str) {
        let until = self.now + COOL_DOWN;
        let whose = self.instances.get(&instance).map(|instance| instance.deployment.clone());
        if let Some(known) = self.machines.get_mut(&machine) {
            known.resting_until = until;
            known.resting_for = whose.unwrap_or_default();
            known.resting = format!("{why}; it cools down for {} s", COOL_DOWN.0 / 1_000_000);
        }
    }

    /// Keeps a rank's error, with its machine's name.
    pub(super) fn error(&mut self, id: InstanceId, by: Option<MachineId>, why: &str) -> String {
        let who = by.and_then(|machine| self.machines.get(&machine)).map_or("?", |known| known.name.as_str());
        let error = format!("{who}: {}", said(why));
        let of = self.instances.get(&id).map(|instance| instance.deployment.as_str());
        if let Some(deployment) = of.and_then(|name| self.deployments.get_mut(name)) {
            if deployment.errors.len() >= ERRORS_MAX {
                deployment.errors.remove(0);
            }
            deployment.errors.push(error.clone());
        }
        error
    }

    fn advance(&mut self, _machine: MachineId, about: (InstanceId, Epoch, u32), to: RankState) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&about.0).filter(|i| i.epoch == about.1) else { return };
        let Some(rank) = instance.ranks.get_mut(about.2 as usize) else { return };
        // What is ready does not go back to loading within one assignment.
        if *rank == RankState::Ready {
            return;
        }
        // What comes from other machines takes as long as it takes: only a stand counts as late.
        if let RankState::Fetching(now) = to {
            let before = if let RankState::Fetching(before) = *rank { before.done } else { 0 };
            if now.done > before && instance.phase == Phase::Assigned {
                instance.since = self.now;
            }
        }
        *rank = to;
        if instance.phase == Phase::Assigned && instance.ranks.iter().all(|rank| *rank == RankState::Ready) {
            instance.phase = Phase::Ready;
            instance.since = now;
            instance.excused = false;
            let (id, name) = (instance.id, instance.deployment.clone());
            if let Some(deployment) = self.deployments.get_mut(&name) {
                deployment.note(now, format!("{id} is ready"));
            }
        }
    }

    /// An instance's life ended in a fault: every rank is freed; it is tried again here, or elsewhere.
    fn fail(&mut self, id: InstanceId, blame: &Blame<'_>, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.phase == Phase::Ready && now.saturating_sub(instance.since) >= HEALTHY {
            (instance.failures, instance.losses) = (0, 0);
            if let Some(deployment) = self.deployments.get_mut(&instance.deployment) {
                deployment.crashes = 0;
            }
        }
        if blame.is_loss && instance.is_ready() && instance.losses < LOSSES_MAX {
            (instance.losses, instance.excused) = (instance.losses + 1, true);
        } else {
            instance.failures += 1 + u32::from(std::mem::take(&mut instance.excused));
        }
        let (failures, losses) = (instance.failures, instance.losses);
        let (name, places) = (instance.deployment.clone(), instance.places.clone());
        let error = self.error(id, blame.machine, blame.why);
        if let Some(deployment) = self.deployments.get_mut(&name) {
            deployment.note(now, format!("{id} failed ({} in a row): {error}", failures + losses));
        }
        if failures > TRIES_IN_PLACE {
            if let Some(machine) = blame.machine {
                self.rest(
                    (machine, id),
                    &format!("instances failed on it, the last with: {}", said(blame.why)),
                );
            }
            self.crash(&name);
            let reason = format!("it failed {failures} times in a row, the last time: {error}");
            self.end(id, &reason, Withdrawal::Over, effects);
            return;
        }
        effects.push(Effect::Withdraw { instance: id, how: Withdrawal::BackSoon });
        for (machine, _) in &places {
            self.untell(*machine, id, &error, effects);
        }
        let at = now + self.pause(RETRY_FIRST, (failures + losses).saturating_sub(1));
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.phase = Phase::Retrying(at);
            instance.ranks.fill(RankState::Told);
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

    /// A group that has not formed, and whose ranks are known not to reach each other, need not be tried again there. One
    /// that has, has links that stand, whatever tries found.
    pub(super) fn judge_links(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let formed = |state: &RankState| matches!(state, RankState::Loading(_) | RankState::Ready);
        // A machine that is away is dialled by nobody, and that says nothing of the links that it will have.
        let here =
            |instance: &&super::Instance| instance.places.iter().all(|(machine, _)| self.is_here(*machine));
        let groups = self.instances.values().filter(here).filter(|group| !group.ranks.iter().all(formed));
        let cut = groups.filter_map(|group| Some((group.id, Self::cut_between(group, world)?)));
        for (id, (by, why)) in cut.collect::<Vec<_>>() {
            let error = self.error(id, Some(by), &why);
            self.end(id, &error, Withdrawal::Over, effects);
        }
    }

    /// Which rank's machine is known not to reach another that it would dial, and why, where that is so.
    pub(super) fn cut_between(instance: &super::Instance, world: &World) -> Option<(MachineId, String)> {
        if instance.places.len() < 2 {
            return None;
        }
        let number = |machine: MachineId| {
            let at = world.machines.iter().position(|(id, _)| *id == machine)?;
            u32::try_from(at).ok()
        };
        let seats: Vec<Option<u32>> = instance.places.iter().map(|(m, _)| number(*m)).collect();
        // Whoever has the higher rank dials.
        let pairs = (0..seats.len()).flat_map(|to| (to + 1..seats.len()).map(move |from| (from, to)));
        let mut pairs = pairs.filter_map(|(from, to)| Some((seats[from]?, seats[to]?)));
        let (from, to) = pairs.find(|(from, to)| world.links.is_down(*from, *to))?;
        let name = |at: u32| world.machines[at as usize].1.name.as_str();
        let why = world.links.why_not(from, to).unwrap_or("it was tried, and there is no way");
        let why = format!("{} cannot be dialled from {}: {}", name(to), name(from), said(why));
        Some((world.machines[from as usize].0, why))
    }

    /// Whether time alone changes nothing but plans: all that is placed serves on the terms that are wanted, and nothing is
    /// remembered of failures.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_current = |i: &super::Instance| {
            self.deployments.get(&i.deployment).is_some_and(|of| !i.terms.differ(&of.spec))
        };
        let rests =
            |i: &super::Instance| i.serves() && !i.doubted && i.failures + i.losses == 0 && is_current(i);
        self.instances.values().all(rests) && self.deployments.values().all(|of| of.crashes == 0)
    }

    /// Whether a plan is due that might say something else than the last: a plan is a function of what is known, and of
    /// time only where a dwell time, a cool-down or a pause ends.
    pub(super) fn may_plan_otherwise(&mut self) -> bool {
        if self.changed {
            // What is not planned for stays to be looked at.
            return true;
        }
        if self.mode == Mode::Off || self.now < self.next_plan {
            return false;
        }
        let ((planned, nothing_to_do), now) = (self.planned, self.now);
        let ended = |at: Micros| planned < at && at <= now;
        let by_demand = |of: &super::Deployment| matches!(of.spec.replicas, Replicas::Demand(_));
        let other = !nothing_to_do
            || self.deployments.values().any(|of| by_demand(of) || ended(of.paused_until))
            || self.instances.values().any(|of| ended(of.placed + self.policy.dwell))
            || self.machines.values().any(|known| ended(known.resting_until));
        if !other {
            self.next_plan = now + PLAN_EVERY;
        }
        other
    }

    /// When time alone changes something, at the latest. What is due and waits for something else is no reason to look.
    pub fn next_deadline(&self) -> Micros {
        let planned = if self.mode == Mode::Off { self.now + PLAN_EVERY } else { self.next_plan };
        // What ended in a look after its plan is placed by the next.
        if self.changed && self.mode != Mode::Off {
            return self.now + Micros::from_millis(1);
        }
        if self.at_rest && !self.heard {
            return planned.max(self.now + Micros::from_millis(1));
        }
        let retries = self.instances.values().filter_map(super::Instance::next_deadline);
        let seats = self.seats();
        let seats = self.machines.iter().filter(|(machine, _)| seats.contains(machine));
        let away = seats.filter_map(|(_, known)| known.next_deadline(self.now));
        let outdated = |i: &super::Instance| {
            self.deployments.get(&i.deployment).is_some_and(|of| i.terms.differ(&of.spec))
        };
        // While some are told new terms one after the other, the next is due soon.
        let renewed = self.instances.values().any(outdated).then(|| self.now + Micros::from_millis(100));
        let next = retries.chain(away).chain(renewed).filter(|at| *at > self.now).min();
        next.unwrap_or(planned).min(planned).max(self.now + Micros::from_millis(1))
    }

    /// Losses, time-outs, and tries that are due.
    pub(super) fn judge_instances(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let ids: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in ids {
            let Some(instance) = self.instances.get(&id) else { continue };
            let machines =
                || instance.places.iter().map(|(machine, _)| (*machine, self.machines.get(machine)));
            let lost = machines().find(|(_, known)| known.is_none_or(|known| known.is_lost(now)));
            if let Some((_, known)) = lost {
                let name = known.map_or("a machine", |known| known.name.as_str());
                let reason = format!("{name} is not connected any more");
                self.end(id, &reason, Withdrawal::Over, effects);
                continue;
            }
            let known = || machines().filter_map(|(_, known)| known);
            let doubted = known().any(|known| known.is_doubtful(now));
            let since = known().filter(|k| k.incarnation.is_none()).map(|k| k.away_since).min();
            let (phase, late) = (instance.phase, now >= instance.since + LOAD_MAX);
            let behind = instance.ranks.iter().position(|rank| *rank != RankState::Ready);
            let behind = behind.map(|rank| instance.places[rank].0);
            // Whether it was doubted or is again, there may be something to place, or to leave where it is.
            self.changed |= instance.doubted != doubted;
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.away_since = since;
                instance.doubted = doubted;
            }
            match phase {
                Phase::Retrying(at) if now >= at && since.is_none() && self.mode != Mode::Off => {
                    self.tell(id, effects);
                }
                Phase::Assigned if late && since.is_none() => {
                    self.fail(id, &Blame::failed(behind, "not ready in time"), effects);
                }
                _ => {}
            }
        }
    }
}

/// An error's text, short and in one line.
fn said(why: &str) -> String {
    why.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect()
}
