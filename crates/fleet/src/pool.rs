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

use base::{InstanceId, MachineId, Micros, ModelName, RequestId, Rng, Tokens};
use wire::control::AttemptRefusal;

use crate::affinity::Affinity;
use crate::breaker::Breakers;
use crate::cost::Learnt;
use crate::eligibility::{Ask, Ineligible};
use crate::policy::Policy;
use crate::promise::Promises;
use crate::queue::Queue;
use crate::roster::{Like, Roster};
use crate::story::{Happening, Stories};

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
    instances: Roster,
    /// Where each dispatched request is.
    dispatched: BTreeMap<RequestId, InstanceId>,
    queue: Queue,
    breakers: Breakers,
    /// The machine that is tried although its breaker is open, since nothing else is left.
    spared: Option<MachineId>,
    /// Standing last told, by instance.
    standings: BTreeMap<InstanceId, Option<Ineligible>>,
    refused: Refused,
    /// Mean answer, in tokens.
    answer_tokens: f64,
    /// Mean prompt, in tokens.
    prompt_tokens: f64,
    completed: u64,
    promises: Promises,
    affinity: Affinity,
    stories: Stories,
    /// What past instances of a machine taught about its speed with this model.
    curves: BTreeMap<MachineId, Learnt>,
    /// Whether a deployment wants the model: where nothing serves it, its next place is waited for.
    wanted: bool,
    /// The most tokens that a request could have where the model was served last.
    limit_before: Option<Tokens>,
    /// Mean of |ln(observed / predicted)| over times to the first token; nothing before the first.
    calibration: Option<f64>,
}

/// Machines whose speed is remembered after their instances are gone. Beyond it the first by identity is forgotten.
const CURVES_MAX: usize = 4096;
/// Weight of one more prediction in the calibration: the last twenty or so count.
const CALIBRATION_SHARE: f64 = 0.05;

impl Pool {
    /// An empty pool for `model`.
    pub fn new(model: ModelName, policy: Policy, rng: Rng) -> Self {
        Self {
            model,
            policy,
            rng,
            now: Micros::ZERO,
            instances: Roster::default(),
            dispatched: BTreeMap::new(),
            queue: Queue::default(),
            breakers: Breakers::default(),
            spared: None,
            standings: BTreeMap::new(),
            refused: Refused::default(),
            answer_tokens: f64::from(policy.answer_tokens),
            prompt_tokens: f64::from(policy.answer_tokens),
            completed: 0,
            promises: Promises::default(),
            affinity: Affinity::default(),
            stories: Stories::new(policy.explained_max),
            curves: BTreeMap::new(),
            wanted: false,
            limit_before: None,
            calibration: None,
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
            Input::InstanceUp { machine, owner, offer } => {
                self.instance_up((machine, owner), &offer, effects)
            }
            Input::InstanceReport { machine, report } => self.instance_report(machine, &report, effects),
            Input::InstanceGone { instance, lost } => self.instance_gone(instance, lost, effects),
            Input::MachineDraining { machine } => self.machine_draining(machine, effects),
            Input::Wanted { wanted } => {
                self.wanted = wanted;
                self.prune(effects);
            }
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
        self.instances.next_wake().into_iter().chain(self.queue.first_deadline()).min()
    }

    /// What the instances' indexes are made with.
    fn like(&self) -> Like {
        let prompt = Tokens(self.prompt_tokens.clamp(1.0, 1e9) as u32);
        let mut mean = Ask::new(RequestId(0), prompt, Tokens(u32::MAX));
        mean.answer_tokens = self.answer_expected();
        Like { now: self.now, grace: self.policy.grace_us, mean }
    }

    /// What passes with time: deadlines, the grace of lost instances, breakers, pauses.
    fn advance(&mut self, effects: &mut Vec<Effect>) {
        while let Some(request) = self.queue.expired(self.now) {
            let waiting = self.queue.remove(request).expect("an expired request waits");
            self.release_hold(request);
            let retry_after = self.promise(&waiting.enqueue, Micros::ZERO);
            let refusal = self.overdue(self.now.saturating_sub(waiting.since), retry_after);
            self.refuse(&waiting.enqueue.ask, refusal, effects);
        }
        let mut forgotten = false;
        while let Some(id) = self.instances.woken(self.now) {
            let instance = self.instances.get(id).expect("what wakes is there");
            let grace = self.policy.grace_us;
            if instance.lost_at.is_some_and(|at| at.saturating_add(grace) <= self.now) {
                self.forget(id);
                forgotten = true;
                continue;
            }
            let like = self.like();
            let (breakers, now, spared) = (&self.breakers, self.now, self.spared);
            self.instances.change(id, &like, |i| {
                i.barred_until = breakers.barred_until(i.machine, now).filter(|_| spared != Some(i.machine));
            });
            self.tell_standing(id, effects);
        }
        self.spare(effects);
        if forgotten {
            self.prune(effects);
        }
    }

    /// An instance is no more; what it taught stays with its machine.
    fn forget(&mut self, id: InstanceId) {
        self.standings.remove(&id);
        if let Some(instance) = self.instances.remove(id).filter(|i| i.learnt.completed > 0) {
            if self.curves.len() >= CURVES_MAX {
                self.curves.pop_first();
            }
            self.curves.insert(instance.machine, instance.learnt);
        }
    }

    fn withdraw(&mut self, request: RequestId, effects: &mut Vec<Effect>) {
        if self.queue.remove(request).is_some() {
            self.release_hold(request);
            self.stories.tell(request, self.now, || Happening::Withdrawn);
        } else if let Some(instance) = self.dispatched.get(&request).copied() {
            self.attempt_ended(request, instance, Outcome::Cancelled, Tokens::ZERO, effects);
        }
    }

    fn first_token(&mut self, request: RequestId) {
        let (like, now) = (self.like(), self.now);
        if let Some(id) = self.dispatched.get(&request) {
            let predicted = self.instances.get(*id).and_then(|i| i.attempts.get(&request));
            let predicted = predicted.map_or(0.0, |attempt| attempt.predicted_first_s);
            let after = self.instances.change(*id, &like, |instance| instance.first_token(request, now));
            if let Some(after) = after.flatten() {
                let error = (after.as_secs_f64().max(1e-3) / predicted.max(1e-3)).ln().abs();
                let mean = self.calibration.get_or_insert(error);
                *mean += CALIBRATION_SHARE * (error - *mean);
                self.stories.tell(request, now, || Happening::FirstToken { after });
            }
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
        self.stories.tell(request, self.now, || Happening::Ended { instance: id, outcome, generated });
        let (like, now, pause) = (self.like(), self.now, self.policy.full_pause_us);
        let ended = self.instances.change(id, &like, |instance| {
            let batch = instance.taken();
            let attempt = instance.end(request).expect("a dispatched request is in flight");
            instance.full_until = match outcome {
                Outcome::Refused(AttemptRefusal::NoSlot | AttemptRefusal::NoKvRoom) => {
                    Some(now.saturating_add(pause))
                }
                // Whatever ended there made room there.
                _ => None,
            };
            if outcome == Outcome::Completed {
                instance.learnt.completed(&attempt, generated.0, batch, now);
            }
            (instance.machine, attempt)
        });
        let (machine, attempt) = ended.expect("a dispatched request's instance is known");
        match outcome {
            Outcome::Completed => {
                self.breakers.success(machine, attempt.at);
                self.learn_answer(attempt.prompt_tokens, generated);
            }
            // A body that its machine cannot open is a fault of one side or the other; the rest is news, not guilt.
            Outcome::Refused(AttemptRefusal::Unreadable) | Outcome::Faulted => {
                self.breakers.fault(machine, self.now, &self.policy);
            }
            Outcome::Refused(_) | Outcome::Cancelled | Outcome::Lost => return,
        }
        self.follow_breaker(machine, effects);
    }

    fn learn_answer(&mut self, prompt: u32, generated: Tokens) {
        self.completed += 1;
        // The first few count fully, so that a prior does not linger; later ones a twentieth.
        let share = 1.0 / (self.completed.min(20) as f64);
        self.answer_tokens += share * (f64::from(generated.0) - self.answer_tokens);
        self.prompt_tokens += share * (f64::from(prompt) - self.prompt_tokens);
    }
}
