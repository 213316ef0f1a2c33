//! The queue's drain and the choice among instances.

use base::{InstanceId, Micros, RequestId, Tokens};

use super::{Effect, Pool};
use crate::cost::{self, Prediction};
use crate::eligibility::{Ask, Ineligible, eligible};
use crate::instance::InFlight;
use crate::queue::Waiting;

impl Pool {
    /// Dispatches, in the queue's order, everything that some instance can take. What cannot go now does not stop what
    /// can; who has waited long for KV room has an instance kept free instead.
    pub(super) fn drive(&mut self, effects: &mut Vec<Effect>) {
        let answer = self.answer_expected();
        let (mut after, mut refused) = (None, None);
        let mut held = self.held();
        while self.any_room() {
            let hopeless = |waiting: &Waiting| {
                let ask = &waiting.enqueue.ask;
                held != Some(ask.request)
                    && refused.as_ref().is_some_and(|smaller| needs_more(ask, answer, smaller))
            };
            let Some((place, waiting)) = self.queue.next_where(after, |w| !hopeless(w)) else { return };
            let mut ask = waiting.enqueue.ask.clone();
            let (request, since) = (ask.request, waiting.since);
            ask.answer_tokens = answer;
            if self.place(&ask, since, effects) {
                self.queue.serve(request).expect("it was just seen there");
                if self.release_hold(request) {
                    // What was kept free may suit somebody who was passed over.
                    (after, refused, held) = (None, None, None);
                }
            } else {
                after = Some(place);
                if self.now.saturating_sub(since) >= self.policy.patience_us {
                    self.hold(&ask);
                    held = self.held();
                }
                // Who is kept room for and who may not go everywhere say little about others.
                if ask.excluded.is_empty() && held != Some(request) {
                    refused = Some(ask);
                }
            }
        }
    }

    /// Whether any instance would take the smallest request, or is held for one that may fit by now.
    fn any_room(&self) -> bool {
        let least = Ask::least();
        self.instances.values().any(|i| match eligible(i, &least, self.now) {
            Ok(()) => true,
            Err(Ineligible::Held) => i.taken() < i.reported.slots,
            Err(_) => false,
        })
    }

    /// Sends `ask` to the instance that costs it least; false where none takes it.
    pub(super) fn place(&mut self, ask: &Ask, since: Micros, effects: &mut Vec<Effect>) -> bool {
        let Some((id, predicted)) = self.choose(ask) else { return false };
        let instance = self.instances.get_mut(&id).expect("a chosen instance is known");
        let attempt = InFlight {
            at: self.now,
            prompt_tokens: ask.prompt_tokens.0,
            kv_need: ask.kv_need(),
            first_token_at: None,
            predicted_first_s: predicted.first_token_s,
            batch: instance.taken() + 1,
        };
        instance.begin(ask.request, attempt);
        self.dispatched.insert(ask.request, id);
        effects.push(Effect::Dispatch {
            request: ask.request,
            instance: id,
            machine: instance.machine,
            waited: self.now.saturating_sub(since),
            predicted,
        });
        true
    }

    /// The eligible instance of least cost; among equals, one at random.
    fn choose(&mut self, ask: &Ask) -> Option<(InstanceId, Prediction)> {
        let mut best: Option<(InstanceId, Prediction)> = None;
        let mut equals = 0;
        for instance in self.instances.values() {
            if eligible(instance, ask, self.now).is_err() {
                continue;
            }
            let predicted = cost::predict(instance, ask);
            match &best {
                Some((_, least)) if predicted.cost_s > least.cost_s => {}
                Some((_, least)) if predicted.cost_s == least.cost_s => {
                    equals += 1;
                    if self.rng.below(equals) == 0 {
                        best = Some((instance.id, predicted));
                    }
                }
                _ => {
                    equals = 1;
                    best = Some((instance.id, predicted));
                }
            }
        }
        best
    }

    /// Keeps free for `ask` the instance that will have room for it soonest, where only KV room is missing. One
    /// request of a pool at a time.
    fn hold(&mut self, ask: &Ask) {
        if self.held().is_some() {
            return;
        }
        let short = self.instances.values().filter_map(|i| match eligible(i, ask, self.now) {
            Err(Ineligible::NoKvRoom { needed, free }) => Some((needed - free, i.id)),
            _ => None,
        });
        if let Some((_, id)) = short.min() {
            let instance = self.instances.get_mut(&id).expect("it was just seen");
            instance.held_for = Some(ask.request);
        }
    }

    /// The request that an instance is kept free for.
    pub(super) fn held(&self) -> Option<RequestId> {
        self.instances.values().find_map(|i| i.held_for)
    }

    /// Frees what was kept free for `request`; false where nothing was.
    pub(super) fn release_hold(&mut self, request: RequestId) -> bool {
        let mut held = false;
        for instance in self.instances.values_mut().filter(|i| i.held_for == Some(request)) {
            instance.held_for = None;
            held = true;
        }
        held
    }
}

/// Whether no instance that cannot take `smaller` can take `ask`, whose answer is taken to have `answer` tokens: so that
/// a long queue of like requests is not weighed one by one against instances that have no room for any of them.
fn needs_more(ask: &Ask, answer: Tokens, smaller: &Ask) -> bool {
    let answer = u64::from(answer.min(ask.max_tokens).0);
    u64::from(ask.prompt_tokens.0) + answer >= smaller.kv_need() && ask.length_max() >= smaller.length_max()
}
