//! What a pool shows of itself: to callers, to operators, to whoever asks why. All of it through the one predicate.

use base::{Bytes, InstanceId, MachineId, Micros, ModelName, RequestId, Tokens};
use wire::admin::{InstanceStatus, PoolStatus};

use super::{Pool, Refused};
use crate::cost::{self, Prediction};
use crate::eligibility::{Ask, Ineligible, eligible};
use crate::instance::Instance;
use crate::story::{Fared, Story};

/// A model as callers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// Its name.
    pub model: ModelName,
    /// Tokens that a request may have, prompt and answer together, where it is served now.
    pub context: Tokens,
    /// Instances that would take a request now or when they have finished another.
    pub instances: u32,
}

/// What a pool can take on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Requests of the shape asked for that would start at once.
    pub requests: u32,
    /// Requests in flight.
    pub running: u32,
    /// Requests that wait.
    pub queued: u32,
}

/// What routing says of one instance for one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Which instance.
    pub instance: InstanceId,
    /// On which machine.
    pub machine: MachineId,
    /// What is predicted for the request there, or why it does not go there.
    pub verdict: Result<Prediction, Ineligible>,
}

impl Pool {
    /// The model that this pool serves.
    pub fn model(&self) -> &ModelName {
        &self.model
    }

    /// Whether nothing serves it, waits for it or is remembered of it.
    pub fn is_idle(&self) -> bool {
        self.instances.is_empty() && self.queue.is_empty()
    }

    /// The instance called `id`.
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(id)
    }

    /// Every instance, lost ones within their grace included.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter()
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Requests in flight.
    pub fn running(&self) -> usize {
        self.dispatched.len()
    }

    /// What was asked so far: requests that were taken (those in flight and waiting included), and tokens of a mean answer.
    pub fn asked(&self) -> (u64, f64) {
        let here = self.dispatched.len() + self.queue.len();
        (self.completed + here as u64, self.answer_tokens)
    }

    /// What was refused so far.
    pub fn refused(&self) -> Refused {
        self.refused
    }

    /// The most tokens that one request may have where the model is served or loading, prompt and answer together:
    /// what `max_tokens` is capped by. What it was last, where its next place is waited for; nothing where nothing serves it.
    pub fn limit(&self) -> Option<Tokens> {
        self.instances.longest_path(&[]).0.or(self.limit_before.filter(|_| self.wanted))
    }

    /// The model as callers see it; nothing where no instance serves it now.
    pub fn listing(&self) -> Option<Listing> {
        let (context, instances) = self.instances.serving();
        Some(Listing { model: self.model.clone(), context: context?, instances })
    }

    /// How many requests of `prompt` and `max_tokens` tokens would start at once, if they came now.
    pub fn capacity(&self, now: Micros, prompt: Tokens, max_tokens: Tokens) -> Capacity {
        let mut ask = Ask::new(base::RequestId(0), prompt, max_tokens);
        ask.answer_tokens = self.answer_expected();
        let room = |i: &Instance| -> u64 {
            if eligible(i, &ask, now).is_err() {
                return 0;
            }
            let slots = u64::from(i.reported.slots.saturating_sub(i.taken()));
            slots.min(i.kv_free() / ask.kv_need().max(1))
        };
        let requests: u64 = self.instances.iter().map(room).sum();
        Capacity {
            requests: u32::try_from(requests).unwrap_or(u32::MAX),
            running: u32::try_from(self.running()).unwrap_or(u32::MAX),
            queued: u32::try_from(self.queued()).unwrap_or(u32::MAX),
        }
    }

    /// Every instance's verdict on `ask`: what `choose` weighs, for people.
    pub fn explain(&self, now: Micros, ask: &Ask) -> Vec<Verdict> {
        let mut ask = ask.clone();
        ask.answer_tokens = self.answer_expected();
        let verdict = |i: &Instance| eligible(i, &ask, now).map(|()| cost::predict(i, &ask));
        self.instances
            .iter()
            .map(|i| Verdict { instance: i.id, machine: i.machine, verdict: verdict(i) })
            .collect()
    }

    /// What became of `request` and why, where it is one of the last.
    pub fn story(&self, request: RequestId) -> Option<&Story> {
        self.stories.of(request)
    }

    /// How `instance` fared in the last requests.
    pub fn fared(&self, instance: InstanceId) -> Fared {
        self.stories.fared(instance)
    }

    /// Mean of |ln(observed / predicted)| over the last times to the first token: 0 is perfect, 0.7 a factor of two.
    pub fn calibration_error(&self) -> Option<f64> {
        self.calibration
    }

    /// The pool as an operator sees it.
    pub fn status(&self) -> PoolStatus {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let model = self.instances.iter().map(|i| &i.model).next();
        PoolStatus {
            model: self.model.clone(),
            context: self.limit().or(model.map(|m| m.context)).unwrap_or_default(),
            weight_bytes: model.map_or(Bytes::ZERO, |m| m.weight_bytes),
            eligible: (self.instances.eligible(), count(self.instances.len())),
            queued: count(self.queue.len()),
            running: count(self.dispatched.len()),
            refused: self.refused.total,
        }
    }

    /// The instances as an operator sees them, each with its machine.
    pub fn instance_statuses(&self, now: Micros) -> Vec<(MachineId, InstanceStatus)> {
        let least = Ask::least();
        let status = |i: &Instance| InstanceStatus {
            instance: i.id,
            model: self.model.clone(),
            rank: i.rank,
            phase: i.reported.phase,
            ineligible: eligible(i, &least, now).err().map(|reason| match &*i.reported.detail {
                "" => reason.to_string(),
                detail => format!("{reason}: {detail}"),
            }),
            running: i.taken(),
            slots: i.reported.slots,
            kv_tokens: (i.reported.kv_tokens, i.kv_free()),
            decode_tokens_per_s: i.reported.decode_tokens_per_s as f32,
        };
        self.instances.iter().map(|i| (i.machine, status(i))).collect()
    }
}
