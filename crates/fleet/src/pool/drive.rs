//! The queue's drain and the choice among instances.

use base::{InstanceId, Micros, RequestId, Tokens};

use super::{Effect, Pool, Verdict};
use crate::affinity::Prefixes;
use crate::cost::{self, Prediction};
use crate::eligibility::{Ask, eligible};
use crate::instance::{InFlight, Instance};
use crate::owner::Owners;
use crate::queue::Size;
use crate::story::{CANDIDATES_MAX, Happening};

impl Pool {
    /// Dispatches, in the queue's order, everything that some instance can take. What cannot go now does not stop what
    /// can; who has waited long for KV room has an instance kept free instead.
    pub(super) fn drive(&mut self, effects: &mut Vec<Effect>) {
        self.drive_own(effects);
        let answer = self.answer_expected();
        let (mut after, mut refused) = (None, None);
        let mut held = self.held();
        while self.instances.any_room() {
            let next = match &refused {
                None => self.queue.next_after(after),
                Some(smaller) => self.queue.next_below(after, fits_less(smaller, answer), held),
            };
            let Some((place, waiting)) = next else { return };
            let mut ask = waiting.enqueue.ask.clone();
            let (request, since) = (ask.request, waiting.since);
            let prefixes = waiting.enqueue.prefixes.clone();
            ask.answer_tokens = answer;
            if self.place(&ask, &prefixes, since, effects) {
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
                let anywhere = ask.excluded.is_empty() && !matches!(ask.owners, Owners::Only(_));
                if anywhere && held != Some(request) {
                    refused = Some(ask);
                }
            }
        }
    }

    /// Dispatches what waits for its account's own machines to these, before anybody else's requests get there.
    fn drive_own(&mut self, effects: &mut Vec<Effect>) {
        let answer = self.answer_expected();
        for account in self.queue.owners() {
            let mut after = None;
            while self.instances.own_room(account) {
                let Some((place, waiting)) = self.queue.next_own(account, after) else { break };
                let (mut ask, since) = (waiting.enqueue.ask.clone(), waiting.since);
                let prefixes = waiting.enqueue.prefixes.clone();
                ask.answer_tokens = answer;
                ask.owners = Owners::Only(account);
                if self.place(&ask, &prefixes, since, effects) {
                    self.queue.serve(ask.request).expect("it was just seen there");
                    self.release_hold(ask.request);
                }
                after = Some(place);
            }
        }
    }

    /// Sends `ask` to the instance that costs it least; false where none takes it.
    pub(super) fn place(
        &mut self,
        ask: &Ask,
        prefixes: &Prefixes,
        since: Micros,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some((id, predicted, cached)) = self.choose(ask, prefixes) else { return false };
        let (like, at) = (self.like(), self.now);
        let waited = self.now.saturating_sub(since);
        let machine = self.instances.get(id).expect("a chosen instance is known").machine;
        if self.stories.wanted() {
            let (candidates, reasons) = self.candidates(ask);
            self.stories.tell(ask.request, at, || Happening::Dispatched {
                instance: id,
                machine,
                waited,
                predicted,
                cached,
                candidates,
                reasons,
            });
        }
        self.instances.change(id, &like, |instance| {
            let attempt = InFlight {
                at,
                prompt_tokens: ask.prompt_tokens.0,
                prefill_tokens: cost::prefill_tokens(ask, cached),
                kv_need: ask.kv_need(),
                first_token_at: None,
                predicted_first_s: predicted.first_token_s,
                batch: instance.taken() + 1,
            };
            instance.begin(ask.request, attempt);
        });
        self.affinity.went(prefixes, id);
        self.dispatched.insert(ask.request, id);
        effects.push(Effect::Dispatch { request: ask.request, instance: id, machine, waited, predicted });
        true
    }

    /// The eligible instance of least cost, what is predicted there, and how much of the prompt it is thought to hold:
    /// the cheapest of all without a cache, against those that hold the longest known beginning.
    fn choose(&mut self, ask: &Ask, prefixes: &Prefixes) -> Option<(InstanceId, Prediction, Tokens)> {
        let (id, predicted) = self.instances.cheapest(ask, self.now, &mut self.rng)?;
        let mut best = (id, predicted, Tokens::ZERO);
        // Its own machine goes before a warmer one of somebody else.
        let lent_by = self
            .instances
            .get(id)
            .and_then(|chosen| chosen.owner)
            .filter(|owner| ask.owners.own() == Some(*owner));
        let own = |holder: &Instance| lent_by.is_none() || holder.owner == lent_by;
        if let Some((cached, holders)) = self.affinity.holders(prefixes) {
            for holder in holders.iter().filter_map(|id| self.instances.get(*id)) {
                if own(holder) && eligible(holder, ask, self.now).is_ok() {
                    let predicted = cost::predict_cached(holder, ask, cached);
                    if predicted.cost_s < best.1.cost_s {
                        best = (holder.id, predicted, cached);
                    }
                }
            }
        }
        Some(best)
    }

    /// Of a small pool every instance's verdict on `ask`; of any pool how many there are by reason.
    pub(super) fn candidates(&self, ask: &Ask) -> (Vec<Verdict>, Vec<(&'static str, u32)>) {
        let mut verdicts = Vec::new();
        if self.instances.len() <= CANDIDATES_MAX {
            verdicts = self.explain(self.now, ask);
            let cost = |v: &Verdict| v.verdict.as_ref().map_or(f64::INFINITY, |p| p.cost_s);
            verdicts.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        }
        (verdicts, self.instances.reasons().collect())
    }

    /// Keeps free for `ask` the instance that will have room for it soonest, where only KV room is missing. One
    /// request of a pool at a time.
    fn hold(&mut self, ask: &Ask) {
        if self.held().is_some() {
            return;
        }
        if let Some(id) = self.instances.nearly_takes(ask, self.now) {
            let (like, request) = (self.like(), ask.request);
            self.instances.change(id, &like, |instance| instance.held_for = Some(request));
        }
    }

    /// The request that an instance is kept free for.
    pub(super) fn held(&self) -> Option<RequestId> {
        self.instances.held().map(|(request, _)| request)
    }

    /// Frees what was kept free for `request`; false where nothing was.
    pub(super) fn release_hold(&mut self, request: RequestId) -> bool {
        let Some((_, id)) = self.instances.held().filter(|(held, _)| *held == request) else { return false };
        let like = self.like();
        self.instances.change(id, &like, |instance| instance.held_for = None);
        true
    }
}

/// Below what size a request may fit where `refused` does not, its answer taken to have `answer` tokens: so that a long
/// queue of like requests is not weighed one by one against instances that have no room for any of them. It needs less
/// room, that is `prompt + min(answer, max_tokens)`, or it is shorter; a request that is as long does not need less by
/// its `max_tokens` alone.
fn fits_less(refused: &Ask, answer: Tokens) -> Size {
    let prompt = refused.kv_need().saturating_sub(u64::from(answer.0));
    Size { prompt: u32::try_from(prompt).unwrap_or(u32::MAX), length: refused.length_max().0 }
}
