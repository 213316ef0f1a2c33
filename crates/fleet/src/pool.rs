//! One model's pool: its instances, its queue, and every decision about them.
//!
//! ```text
//! enqueue --> placed at once --------------------> Dispatch      one of these three,
//!         --> waits  --(room)--------------------> Dispatch      exactly once, unless
//!         --> refused, or waits --(deadline)-----> Refuse        withdrawn before
//! dispatched --> first token --> attempt ended     (a failed one may be enqueued again, `tried` raised)
//! ```
//! After every input nothing waits that some instance could take: whatever frees room drives the queue.

mod admission;
mod drive;
mod listing;

use std::collections::BTreeMap;

use base::{AccountId, InstanceId, MachineId, Micros, ModelName, RequestId, Rng, Tokens};
use wire::control::{AttemptRefusal, InstanceOffer, InstanceReport};

use crate::breaker::Breakers;
use crate::cost::Prediction;
use crate::eligibility::{Ask, Ineligible, eligible};
use crate::instance::{Contents, Instance};
use crate::policy::{Policy, Priority};
use crate::queue::Queue;
use crate::refusal::Refusal;
use crate::reported::{Reported, Suspect, Suspects};

pub use admission::Admission;
pub use listing::{Capacity, Listing, Verdict};

/// A request that wants an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Enqueue {
    /// What it needs. `answer_tokens` is set by the pool.
    pub ask: Ask,
    /// Between whom the queue is fair.
    pub account: AccountId,
    /// The account's share: twice the weight, twice the work. Zero counts as one.
    pub weight: u32,
    /// Its class.
    pub priority: Priority,
    /// When its wait ends; by the pool's policy where absent.
    pub deadline: Option<Micros>,
    /// On how many instances it was tried. Above zero it goes to the front.
    pub tried: u32,
}

/// What happens to a pool.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A machine that proved its identity offers an instance of this model; or offers it anew.
    InstanceUp {
        /// Which machine.
        machine: MachineId,
        /// What it offers.
        offer: Box<InstanceOffer>,
    },
    /// An instance says how it is.
    InstanceReport {
        /// From which machine the report came.
        machine: MachineId,
        /// What it says.
        report: InstanceReport,
    },
    /// An instance is no more: its machine's connection ended, or it was taken back.
    InstanceGone {
        /// Which.
        instance: InstanceId,
        /// Whether it may come back by itself (a lost connection): requests wait for it a while.
        lost: bool,
    },
    /// A machine takes nothing new.
    MachineDraining {
        /// Which.
        machine: MachineId,
    },
    /// A request wants an instance.
    Enqueue(Enqueue),
    /// A request is no longer wanted, wherever it is. Harmless where it is not known.
    Withdraw {
        /// Which.
        request: RequestId,
    },
    /// The first token of a dispatched request came.
    FirstToken {
        /// Which.
        request: RequestId,
    },
    /// An attempt ended. Harmless where it is not known (its instance went first).
    AttemptEnded {
        /// Which request.
        request: RequestId,
        /// On which instance.
        instance: InstanceId,
        /// How.
        outcome: Outcome,
        /// Tokens of the answer.
        generated: Tokens,
    },
    /// Time passed: [`Pool::next_deadline`] came.
    Tick,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With its final chunk.
    Completed,
    /// Nobody wanted it any more.
    Cancelled,
    /// Its machine did not take it; nothing was computed.
    Refused(AttemptRefusal),
    /// Its machine failed it: an error, a chunk that does not open, silence past a deadline.
    Faulted,
    /// Its machine's connection ended.
    Lost,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a request to an instance.
    Dispatch {
        /// Which.
        request: RequestId,
        /// Where to.
        instance: InstanceId,
        /// On which machine that is.
        machine: MachineId,
        /// How long it waited in the queue.
        waited: Micros,
        /// What is predicted for it.
        predicted: Prediction,
    },
    /// Tell a request's caller that it is not served.
    Refuse {
        /// Which.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// Whether an instance is routed to changed, for reasons other than how busy it is.
    Standing {
        /// Which.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
        /// Why not; nothing when it is.
        ineligible: Option<Ineligible>,
    },
    /// A machine reported something that cannot be; it was clamped.
    Suspect {
        /// Which instance.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
        /// What.
        suspect: Suspect,
    },
    /// An offer or report was not accepted.
    Rejected {
        /// Which instance.
        instance: InstanceId,
        /// From which machine.
        machine: MachineId,
        /// Why.
        reason: &'static str,
    },
}

/// Requests refused so far, by reason: demand that was not served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// All of them.
    pub total: u64,
    /// Tokens that they asked for, prompts and answers.
    pub tokens: u64,
    /// For a full queue.
    pub queue_full: u64,
    /// For a predicted late start.
    pub predicted_late: u64,
    /// For a deadline that passed in the queue.
    pub expired: u64,
    /// For want of any serving path.
    pub no_serving_path: u64,
    /// For their length.
    pub too_long: u64,
    /// After failed attempts.
    pub attempts_failed: u64,
}

/// One model's pool.
#[derive(Debug, Clone)]
pub struct Pool {
    model: ModelName,
    policy: Policy,
    rng: Rng,
    /// The latest time seen; it never goes back.
    now: Micros,
    instances: BTreeMap<InstanceId, Instance>,
    /// Where each dispatched request is.
    dispatched: BTreeMap<RequestId, (InstanceId, u32)>,
    queue: Queue,
    breakers: Breakers,
    /// Standing last told, by instance.
    standings: BTreeMap<InstanceId, Option<Ineligible>>,
    refused: Refused,
    /// Mean answer, in tokens.
    answer_tokens: f64,
    /// Mean prompt, in tokens.
    prompt_tokens: f64,
    completed: u64,
    /// Places promised to refused requests last until here: each refusal is given a place of its own.
    promised_until: Micros,
}

impl Pool {
    /// An empty pool for `model`.
    pub fn new(model: ModelName, policy: Policy, rng: Rng) -> Self {
        Self {
            model,
            policy,
            rng,
            now: Micros::ZERO,
            instances: BTreeMap::new(),
            dispatched: BTreeMap::new(),
            queue: Queue::default(),
            breakers: Breakers::default(),
            standings: BTreeMap::new(),
            refused: Refused::default(),
            answer_tokens: f64::from(policy.answer_tokens),
            prompt_tokens: f64::from(policy.answer_tokens),
            completed: 0,
            promised_until: Micros::ZERO,
        }
    }

    /// Takes one input; what is to be done is added to `effects`.
    pub fn handle(&mut self, now: Micros, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        self.advance(effects);
        if !self.queue.is_empty() {
            self.drive(effects);
        }
        match input {
            Input::InstanceUp { machine, offer } => self.instance_up(machine, &offer, effects),
            Input::InstanceReport { machine, report } => self.instance_report(machine, &report, effects),
            Input::InstanceGone { instance, lost } => self.instance_gone(instance, lost, effects),
            Input::MachineDraining { machine } => self.machine_draining(machine, effects),
            Input::Enqueue(enqueue) => self.enqueue(enqueue, effects),
            Input::Withdraw { request } => self.withdraw(request, effects),
            Input::FirstToken { request } => self.first_token(request),
            Input::AttemptEnded { request, instance, outcome, generated } => {
                self.attempt_ended(request, instance, outcome, generated, effects);
            }
            Input::Tick => {}
        }
        if !self.queue.is_empty() {
            self.drive(effects);
        }
    }

    /// When to give [`Input::Tick`] at the latest; nothing when only other inputs can change anything.
    pub fn next_deadline(&self) -> Option<Micros> {
        let lost = self
            .instances
            .values()
            .filter_map(|i| i.lost_at.map(|at| at.saturating_add(self.policy.grace_us)));
        if self.queue.is_empty() {
            return lost.min();
        }
        let pauses = self.instances.values().flat_map(|i| [i.full_until, i.barred_until]).flatten();
        let pauses = pauses.filter(|until| *until > self.now);
        lost.chain(pauses).chain(self.queue.first_deadline()).min()
    }

    /// What passes with time: deadlines, the grace of lost instances, breakers.
    fn advance(&mut self, effects: &mut Vec<Effect>) {
        while let Some(request) = self.queue.expired(self.now) {
            let waiting = self.queue.remove(request).expect("an expired request waits");
            self.release_hold(request);
            let retry_after = self.promise(&waiting.enqueue.ask, Micros::ZERO);
            let refusal = Refusal::Expired { waited: self.now.saturating_sub(waiting.since), retry_after };
            self.refuse(&waiting.enqueue.ask, refusal, effects);
        }
        let (now, grace) = (self.now, self.policy.grace_us);
        let before = self.instances.len();
        self.instances.retain(|_, i| i.lost_at.is_none_or(|at| at.saturating_add(grace) > now));
        let forgotten = before != self.instances.len();
        if forgotten {
            let instances = &self.instances;
            self.standings.retain(|id, _| instances.contains_key(id));
        }
        self.refresh_breakers(effects);
        if forgotten {
            self.prune(effects);
        }
    }

    fn instance_up(&mut self, machine: MachineId, offer: &InstanceOffer, effects: &mut Vec<Effect>) {
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

    fn instance_report(&mut self, machine: MachineId, report: &InstanceReport, effects: &mut Vec<Effect>) {
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

    fn instance_gone(&mut self, id: InstanceId, lost: bool, effects: &mut Vec<Effect>) {
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

    fn machine_draining(&mut self, machine: MachineId, effects: &mut Vec<Effect>) {
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

    fn withdraw(&mut self, request: RequestId, effects: &mut Vec<Effect>) {
        if self.queue.remove(request).is_some() {
            self.release_hold(request);
        } else if let Some((instance, _)) = self.dispatched.get(&request).copied() {
            self.attempt_ended(request, instance, Outcome::Cancelled, Tokens::ZERO, effects);
        }
    }

    fn first_token(&mut self, request: RequestId) {
        if let Some((id, _)) = self.dispatched.get(&request)
            && let Some(instance) = self.instances.get_mut(id)
        {
            instance.first_token(request, self.now);
        }
    }

    fn attempt_ended(
        &mut self,
        request: RequestId,
        id: InstanceId,
        outcome: Outcome,
        generated: Tokens,
        effects: &mut Vec<Effect>,
    ) {
        if self.dispatched.get(&request).is_none_or(|(at, _)| *at != id) {
            return;
        }
        self.dispatched.remove(&request);
        let instance = self.instances.get_mut(&id).expect("a dispatched request's instance is known");
        let batch = instance.taken();
        let attempt = instance.end(request).expect("a dispatched request is in flight");
        let machine = instance.machine;
        // Whatever ended there made room there.
        instance.full_until = None;
        match outcome {
            Outcome::Completed => {
                instance.learnt.completed(&attempt, generated.0, batch, self.now);
                self.breakers.success(machine, attempt.at);
                self.learn_answer(attempt.prompt_tokens, generated);
            }
            Outcome::Refused(AttemptRefusal::NoSlot | AttemptRefusal::NoKvRoom) => {
                instance.full_until = Some(self.now.saturating_add(self.policy.full_pause_us));
            }
            // A body that its machine cannot open is a fault of one side or the other; the rest is news, not guilt.
            Outcome::Refused(AttemptRefusal::Unreadable) | Outcome::Faulted => {
                self.breakers.fault(machine, self.now, &self.policy);
            }
            Outcome::Refused(_) | Outcome::Cancelled | Outcome::Lost => {}
        }
        self.refresh_breakers(effects);
    }

    fn learn_answer(&mut self, prompt: u32, generated: Tokens) {
        self.completed += 1;
        // The first few count fully, so that a prior does not linger; later ones a twentieth.
        let share = 1.0 / (self.completed.min(20) as f64);
        self.answer_tokens += share * (f64::from(generated.0) - self.answer_tokens);
        self.prompt_tokens += share * (f64::from(prompt) - self.prompt_tokens);
    }

    /// Carries the breakers' verdicts to the instances. Where they alone would leave nothing to route to, the machine
    /// whose cool-down ends first is tried all the same.
    fn refresh_breakers(&mut self, effects: &mut Vec<Effect>) {
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
