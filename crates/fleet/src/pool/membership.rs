//! Which instances a pool has, and how each stands: offers, reports, losses, breakers.

use base::{AccountId, InstanceId, MachineId, Micros};
use wire::control::{InstanceOffer, InstanceReport};

use super::{Effect, Pool};
use crate::eligibility::{Ask, Ineligible, eligible};
use crate::instance::{Contents, Instance};
use crate::reported::{Reported, Suspects};

impl Pool {
    pub(super) fn instance_up(
        &mut self,
        (machine, owner): (MachineId, Option<AccountId>),
        offer: &InstanceOffer,
        effects: &mut Vec<Effect>,
    ) {
        let id = offer.instance;
        let (known, unplaced) = (self.instances.get(id), self.is_unplaced());
        let anew = known.is_none();
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
        instance.owner = owner;
        instance.contents = self.contents(&instance);
        let like = self.like();
        match self.instances.get(id) {
            // The same connection says it again: what is in flight stays.
            Some(old) if old.lost_at.is_none() => {
                instance.attempts = old.attempts.clone();
                instance.kv_committed = old.kv_committed;
                instance.prefill_pending = old.prefill_pending;
                instance.held_for = old.held_for;
                instance.learnt = old.learnt.clone();
            }
            Some(old) => instance.learnt = old.learnt.clone(),
            None => {
                if let Some(learnt) = self.curves.remove(&machine) {
                    instance.learnt = learnt;
                }
            }
        }
        instance.barred_until = self.breakers.barred_until(machine, self.now);
        self.instances.insert(instance, &like);
        self.spare(effects);
        self.tell_standing(id, effects);
        self.note_limit();
        // What waited for the model's first place was not held to its limit.
        if !anew || unplaced {
            self.prune(effects);
        }
    }

    /// Remembers what a request may have where the model is served, for as long as it is not.
    fn note_limit(&mut self) {
        self.limit_before = self.instances.longest_path(&[]).0.or(self.limit_before);
    }

    /// Whether an instance holds what the others of this pool hold. Who came first decides, while it lives.
    fn contents(&self, new: &Instance) -> Contents {
        let reference = self.instances.same_as_pool(Some(new.id));
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
        let Some(instance) = self.instances.get(id).filter(|i| i.lost_at.is_none()) else {
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
        let like = self.like();
        let worse = self.instances.change(id, &like, |instance| {
            let (limit, phase) = (instance.limit(), instance.reported.phase);
            instance.report(report.generation, Reported::clamp(report, &mut suspects));
            let worse = instance.limit() < limit || instance.reported.phase != phase;
            if worse {
                instance.held_for = None;
            }
            worse
        });
        self.tell_suspects(id, machine, &suspects, effects);
        self.spare(effects);
        self.tell_standing(id, effects);
        self.note_limit();
        if worse == Some(true) {
            self.prune(effects);
        }
    }

    pub(super) fn instance_gone(&mut self, id: InstanceId, lost: bool, effects: &mut Vec<Effect>) {
        if self.instances.get(id).is_none_or(|i| i.lost_at.is_some()) {
            return;
        }
        let stays = lost && self.policy.grace_us > Micros::ZERO;
        let (like, now) = (self.like(), self.now);
        let gone = self.instances.change(id, &like, |instance| {
            let attempts = std::mem::take(&mut instance.attempts);
            (instance.kv_committed, instance.prefill_pending, instance.held_for) = (0, 0, None);
            instance.lost_at = stays.then_some(now);
            (instance.machine, attempts)
        });
        let (machine, attempts) = gone.expect("it was just seen");
        for request in attempts.keys() {
            self.dispatched.remove(request);
        }
        if !stays {
            self.forget(id);
        }
        // One loss is one fault, however many requests it took along; but not where it gave tokens: what it computed was
        // right, goes on elsewhere, and is worth more than what a barred machine computes.
        let fruitless = attempts.values().all(|attempt| attempt.first_token_at.is_none());
        if lost && !attempts.is_empty() && fruitless {
            self.breakers.fault(machine, self.now, &self.policy);
            self.follow_breaker(machine, effects);
        }
        self.adopt_contents(effects);
        self.spare(effects);
        self.tell_standing(id, effects);
        self.prune(effects);
    }

    /// Where nobody is left who holds the pool's contents, the first of the others sets them.
    fn adopt_contents(&mut self, effects: &mut Vec<Effect>) {
        if self.instances.same_as_pool(None).is_some() {
            return;
        }
        let living: Vec<InstanceId> =
            self.instances.iter().filter(|i| i.lost_at.is_none()).map(|i| i.id).collect();
        let Some(first) = living.first().and_then(|id| self.instances.get(*id)) else { return };
        let (model, like) = (first.model.clone(), self.like());
        for id in living {
            let changed = self.instances.change(id, &like, |instance| {
                let contents = if instance.model.weights_sha256 != model.weights_sha256 {
                    Contents::OtherWeights
                } else if instance.model.kit_sha256 != model.kit_sha256 {
                    Contents::OtherKit
                } else {
                    Contents::Same
                };
                std::mem::replace(&mut instance.contents, contents) != contents
            });
            if changed == Some(true) {
                self.tell_standing(id, effects);
            }
        }
    }

    pub(super) fn machine_draining(&mut self, machine: MachineId, effects: &mut Vec<Effect>) {
        let (ids, like) = (self.instances.of_machine(machine), self.like());
        for id in &ids {
            self.instances.change(*id, &like, |instance| {
                (instance.draining, instance.held_for) = (true, None);
            });
        }
        self.spare(effects);
        for id in ids {
            self.tell_standing(id, effects);
        }
        self.prune(effects);
    }

    /// Carries the verdict of a machine's breaker to its instances.
    pub(super) fn follow_breaker(&mut self, machine: MachineId, effects: &mut Vec<Effect>) {
        if self.spared == Some(machine) {
            self.spared = None;
        }
        let until = self.breakers.barred_until(machine, self.now);
        self.bar(machine, until);
        self.spare(effects);
        self.tell_machine(machine, effects);
    }

    fn bar(&mut self, machine: MachineId, until: Option<Micros>) {
        let like = self.like();
        for id in self.instances.of_machine(machine) {
            if self.instances.get(id).is_some_and(|i| i.barred_until != until) {
                self.instances.change(id, &like, |instance| instance.barred_until = until);
            }
        }
    }

    fn tell_machine(&mut self, machine: MachineId, effects: &mut Vec<Effect>) {
        for id in self.instances.of_machine(machine) {
            self.tell_standing(id, effects);
        }
    }

    /// Where breakers alone would leave nothing to route to, the machine whose cool-down ends first is tried all the
    /// same, until something else serves.
    pub(super) fn spare(&mut self, effects: &mut Vec<Effect>) {
        let before = self.spared;
        if let Some(spared) = before {
            let here = self.instances.serving_on(spared);
            if here == 0 || self.instances.serving().1 > here {
                self.spared = None;
                self.bar(spared, self.breakers.barred_until(spared, self.now));
            }
        }
        if self.instances.serving().1 == 0
            && let Some(least_bad) = self.instances.least_barred().map(|i| i.machine)
        {
            self.spared = Some(least_bad);
            self.bar(least_bad, None);
        }
        if before != self.spared {
            for machine in [before, self.spared].into_iter().flatten() {
                self.tell_machine(machine, effects);
            }
        }
    }

    /// Tells an instance's standing where it changed for reasons other than load.
    pub(super) fn tell_standing(&mut self, id: InstanceId, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get(id) else { return };
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
