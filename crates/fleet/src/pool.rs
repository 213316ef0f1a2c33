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
mod event;
mod listing;
mod membership;

use std::collections::BTreeMap;

use base::{InstanceId, Micros, ModelName, RequestId, Rng, Tokens};
use wire::control::AttemptRefusal;

use crate::breaker::Breakers;
use crate::eligibility::Ineligible;
use crate::instance::Instance;
use crate::policy::Policy;
use crate::promise::Promises;
use crate::queue::Queue;
use crate::refusal::Refusal;

pub use admission::Admission;
pub use event::{Effect, Enqueue, Input, Outcome};
pub use listing::{Capacity, Listing, Verdict};

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
    dispatched: BTreeMap<RequestId, InstanceId>,
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
    promises: Promises,
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
            promises: Promises::default(),
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
            let retry_after = self.promise(&waiting.enqueue, Micros::ZERO);
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

    fn withdraw(&mut self, request: RequestId, effects: &mut Vec<Effect>) {
        if self.queue.remove(request).is_some() {
            self.release_hold(request);
        } else if let Some(instance) = self.dispatched.get(&request).copied() {
            self.attempt_ended(request, instance, Outcome::Cancelled, Tokens::ZERO, effects);
        }
    }

    fn first_token(&mut self, request: RequestId) {
        if let Some(id) = self.dispatched.get(&request)
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
        if self.dispatched.get(&request).is_none_or(|at| *at != id) {
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
}
