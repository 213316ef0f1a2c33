//! Which instances a pool has, and how each stands: offers, reports, losses, breakers.

use base::{InstanceId, MachineId, Micros};
use wire::control::{InstanceOffer, InstanceReport};

use super::{Effect, Pool};
use crate::eligibility::{Ask, Ineligible, eligible};
use crate::instance::{Contents, Instance};
use crate::reported::{Reported, Suspects};

impl Pool {
    pub(super) fn instance_up(
        &mut self,
        machine: MachineId,
        offer: &InstanceOffer,
        effects: &mut Vec<Effect>,
    ) {
        let id = offer.instance;
        let known = self.instances.get(&id);
        let reason = if offer.model.name != self.model {
            Some("it serves another model")
        } else if offer.ranks == 0 || offer.rank >= offer.ranks {
            Some("its rank is not one of its ranks")
        } else if offer.report.instance != id {
            Some("its report is about another instance")
        } else if known.is_some_and(|i| i.lost_at.is_none() && i.machine != machine) {
            Some("another machine holds this instance")
        } else if known.is_some_and(|i| i.machine == machine && i.epoch > offer.epoch) {
            Some("its epoch is older than one already seen")
        } else {
            None
        };
        if let Some(reason) = reason {
            effects.push(Effect::Rejected { instance: id, machine, reason });
            return;
        }
        let mut suspects = Suspects::new();
        let mut instance = Instance::new(machine, offer, &mut suspects);
        self.tell_suspects(id, machine, &suspects, effects);
        instance.contents = self.contents(&instance);
        match self.instances.remove(&id) {
            // The same connection says it again: what is in flight stays.
            Some(old) if old.lost_at.is_none() => {
                instance.attempts = old.attempts;
                instance.kv_committed = old.kv_committed;
                instance.prefill_pending = old.prefill_pending;
                instance.held_for = old.held_for;
                instance.learnt = old.learnt;
            }
            Some(old) => instance.learnt = old.learnt,
            None => {}
        }
        self.instances.insert(id, instance);
        self.refresh_breakers(effects);
        self.tell_standing(id, effects);
        self.prune(effects);
    }

    /// Whether an instance holds what the others of this pool hold. Who came first decides, while it lives.
    fn contents(&self, new: &Instance) -> Contents {
        let reference = self
            .instances
            .values()
            .find(|i| i.id != new.id && i.contents == Contents::Same && i.lost_at.is_none());
        match reference {
            Some(i) if i.model.weights_sha256 != new.model.weights_sha256 => Contents::OtherWeights,
            Some(i) if i.model.kit_sha256 != new.model.kit_sha256 => Contents::OtherKit,
            _ => Contents::Same,
        }
    }

    pub(super) fn instance_report(
        &mut self,
        machine: MachineId,
        report: &InstanceReport,
        effects: &mut Vec<Effect>,
    ) {
        let id = report.instance;
        let Some(instance) = self.instances.get_mut(&id).filter(|i| i.lost_at.is_none()) else {
            effects.push(Effect::Rejected {
                instance: id,
                machine,
                reason: "no such instance is registered",
            });
            return;
        };
        if instance.machine != machine {
            let reason = "it belongs to another machine";
            effects.push(Effect::Rejected { instance: id, machine, reason });
            return;
        }
        let mut suspects = Suspects::new();
        let (limit, phase) = (instance.limit(), instance.reported.phase);
        instance.report(report.generation, Reported::clamp(report, &mut suspects));
        let worse = instance.limit() < limit || instance.reported.phase != phase;
        if worse {
            instance.held_for = None;
        }
        self.tell_suspects(id, machine, &suspects, effects);
        if worse {
            self.refresh_breakers(effects);
        }
        self.tell_standing(id, effects);
        if worse {
            self.prune(effects);
        }
    }

    pub(super) fn instance_gone(&mut self, id: InstanceId, lost: bool, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(&id).filter(|i| i.lost_at.is_none()) else { return };
        let machine = instance.machine;
        let attempts = std::mem::take(&mut instance.attempts);
        for request in attempts.keys() {
            self.dispatched.remove(request);
        }
        if lost && self.policy.grace_us > Micros::ZERO {
            instance.lost_at = Some(self.now);
            instance.kv_committed = 0;
            instance.prefill_pending = 0;
            instance.held_for = None;
        } else {
            self.instances.remove(&id);
            self.standings.remove(&id);
        }
        // One loss is one fault, however many requests it took along.
        if lost && !attempts.is_empty() {
            self.breakers.fault(machine, self.now, &self.policy);
        }
        self.adopt_contents(effects);
        self.refresh_breakers(effects);
        self.tell_standing(id, effects);
        self.prune(effects);
    }

    /// Where nobody is left who holds the pool's contents, the first of the others sets them.
    fn adopt_contents(&mut self, effects: &mut Vec<Effect>) {
        if self.instances.values().any(|i| i.contents == Contents::Same && i.lost_at.is_none()) {
            return;
        }
        let Some(first) = self.instances.values().find(|i| i.lost_at.is_none()) else { return };
        let model = first.model.clone();
        let mut changed = Vec::new();
        for instance in self.instances.values_mut().filter(|i| i.lost_at.is_none()) {
            let contents = if instance.model.weights_sha256 != model.weights_sha256 {
                Contents::OtherWeights
            } else if instance.model.kit_sha256 != model.kit_sha256 {
                Contents::OtherKit
            } else {
                Contents::Same
            };
            if instance.contents != contents {
                instance.contents = contents;
                changed.push(instance.id);
            }
        }
        for id in changed {
            self.tell_standing(id, effects);
        }
    }

    pub(super) fn machine_draining(&mut self, machine: MachineId, effects: &mut Vec<Effect>) {
        let mut ids = Vec::new();
        for instance in self.instances.values_mut().filter(|i| i.machine == machine) {
            instance.draining = true;
            instance.held_for = None;
            ids.push(instance.id);
        }
        self.refresh_breakers(effects);
        for id in ids {
            self.tell_standing(id, effects);
        }
        self.prune(effects);
    }

    /// Carries the breakers' verdicts to the instances. Where they alone would leave nothing to route to, the machine
    /// whose cool-down ends first is tried all the same.
    pub(super) fn refresh_breakers(&mut self, effects: &mut Vec<Effect>) {
        if self.breakers.is_empty() {
            return;
        }
        let now = self.now;
        for instance in self.instances.values_mut() {
            instance.barred_until = self.breakers.barred_until(instance.machine, now);
        }
        let least = Ask::least();
        let able = |i: &&Instance| match eligible(i, &least, now) {
            Ok(()) => true,
            Err(reason) => reason.is_load(),
        };
        if !self.instances.values().any(|i| able(&i)) {
            let barred = self
                .instances
                .values()
                .filter(|i| matches!(eligible(i, &least, now), Err(Ineligible::BreakerOpen { .. })));
            let least_bad = barred.min_by_key(|i| (i.barred_until, i.id)).map(|i| i.machine);
            for instance in self.instances.values_mut().filter(|i| Some(i.machine) == least_bad) {
                instance.barred_until = None;
            }
        }
        let ids: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in ids {
            self.tell_standing(id, effects);
        }
    }

    /// Tells an instance's standing where it changed for reasons other than load.
    fn tell_standing(&mut self, id: InstanceId, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get(&id) else { return };
        let ineligible = eligible(instance, &Ask::least(), self.now).err().filter(|reason| !reason.is_load());
        let same = |old: &Option<Ineligible>| match (old, &ineligible) {
            (None, None) => true,
            (Some(a), Some(b)) => std::mem::discriminant(a) == std::mem::discriminant(b),
            _ => false,
        };
        if self.standings.get(&id).is_some_and(same) {
            return;
        }
        self.standings.insert(id, ineligible);
        effects.push(Effect::Standing { instance: id, machine: instance.machine, ineligible });
    }

    fn tell_suspects(
        &self,
        instance: InstanceId,
        machine: MachineId,
        suspects: &Suspects,
        effects: &mut Vec<Effect>,
    ) {
        effects.extend(suspects.iter().map(|suspect| Effect::Suspect {
            instance,
            machine,
            suspect: *suspect,
        }));
    }
}
