//! One instance as its pool knows it: what it said, and what was given to it since.

use std::collections::BTreeMap;

use base::{AccountId, Epoch, InstanceId, MachineId, Micros, RequestId, Tokens};
use wire::control::{InstanceOffer, ModelDescriptor};

use crate::cost::Learnt;
use crate::reported::{Reported, Suspects};

/// One instance of a pool's model.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its identity.
    pub id: InstanceId,
    /// The machine that leads it.
    pub machine: MachineId,
    /// Whose machine that is: who lends it. Settled by the coordinator when the machine joins.
    pub owner: Option<AccountId>,
    /// Which assignment it carries out.
    pub epoch: Epoch,
    /// This machine's place in it.
    pub rank: u32,
    /// How many ranks it has.
    pub ranks: u32,
    /// What it serves.
    pub model: ModelDescriptor,
    /// What it last said, within bounds.
    pub reported: Reported,
    /// Of that report.
    pub generation: u64,
    /// Since when its machine is gone; nothing while it is connected.
    pub lost_at: Option<Micros>,
    /// Whether its machine said that it is going.
    pub draining: bool,
    /// Whether weights and kit are those of the pool.
    pub contents: Contents,
    /// Until when its machine's breaker bars it.
    pub barred_until: Option<Micros>,
    /// Until when it is left alone, since it refused for lack of room.
    pub full_until: Option<Micros>,
    /// The request that it is kept free for.
    pub held_for: Option<RequestId>,
    /// What was dispatched to it and has not ended.
    pub attempts: BTreeMap<RequestId, InFlight>,
    /// KV tokens that those attempts are taken to need.
    pub kv_committed: u64,
    /// KV tokens taken (negative) and given back (positive) by dispatches and ends since the last report.
    pub kv_since_report: i64,
    /// Prompt tokens of attempts that have not shown their first token.
    pub prefill_pending: u64,
    /// Requests inside it that this pool did not send, seen in two reports in a row.
    pub foreign: u32,
    /// As `foreign`, in the last report alone.
    pub foreign_seen: u32,
    /// What its past attempts taught about its speed.
    pub learnt: Learnt,
}

/// Whether an instance holds what its pool serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Weights and kit are those of the pool.
    Same,
    /// Other weights under the same name.
    OtherWeights,
    /// Another tokenizer, template or configuration under the same name.
    OtherKit,
}

/// One attempt on an instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InFlight {
    /// When it was dispatched.
    pub at: Micros,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Of these, what is taken to be computed: less than all where a cache holds the rest.
    pub prefill_tokens: u32,
    /// KV tokens that it is taken to need.
    pub kv_need: u64,
    /// When its first token came.
    pub first_token_at: Option<Micros>,
    /// Seconds to the first token, as predicted.
    pub predicted_first_s: f64,
    /// Attempts on the instance when it began, itself included.
    pub batch: u32,
}

impl Instance {
    /// A connected instance as `machine` offered it.
    pub fn new(machine: MachineId, offer: &InstanceOffer, suspects: &mut Suspects) -> Self {
        Self {
            id: offer.instance,
            machine,
            owner: None,
            epoch: offer.epoch,
            rank: offer.rank,
            ranks: offer.ranks,
            model: offer.model.clone(),
            reported: Reported::clamp(&offer.report, suspects),
            generation: offer.report.generation,
            lost_at: None,
            draining: false,
            contents: Contents::Same,
            barred_until: None,
            full_until: None,
            held_for: None,
            attempts: BTreeMap::new(),
            kv_committed: 0,
            kv_since_report: 0,
            prefill_pending: 0,
            foreign: 0,
            foreign_seen: 0,
            learnt: Learnt::default(),
        }
    }

    /// Requests that it computes, ours and foreign ones.
    pub fn taken(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX).saturating_add(self.foreign)
    }

    /// Tokens that one request may have here at most, prompt and answer together.
    pub fn limit(&self) -> Tokens {
        let kv = u32::try_from(self.reported.kv_tokens).unwrap_or(u32::MAX);
        match kv {
            // A loading instance does not know its KV room yet.
            0 => self.model.context,
            kv => Tokens(kv.min(self.model.context.0)),
        }
    }

    /// KV tokens free now: by what was committed, and by its last report with what happened since; the lesser.
    pub fn kv_free(&self) -> u64 {
        let by_commitment = self.reported.kv_tokens.saturating_sub(self.kv_committed);
        let by_report = self.reported.kv_tokens_free.saturating_add_signed(self.kv_since_report);
        by_commitment.min(by_report)
    }

    /// Takes a newer report; an older one changes nothing.
    pub(crate) fn report(&mut self, generation: u64, reported: Reported) {
        if generation < self.generation {
            return;
        }
        let own = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        let seen = reported.requests.saturating_sub(own);
        // One report may count an attempt whose end overtook it; two in a row do not.
        self.foreign = seen.min(self.foreign_seen);
        self.foreign_seen = seen;
        self.generation = generation;
        self.reported = reported;
        self.kv_since_report = 0;
        self.full_until = None;
    }

    /// Records a dispatch.
    pub(crate) fn begin(&mut self, request: RequestId, attempt: InFlight) {
        self.kv_committed += attempt.kv_need;
        self.kv_since_report -= attempt.kv_need as i64;
        self.prefill_pending += u64::from(attempt.prefill_tokens);
        let before = self.attempts.insert(request, attempt);
        assert!(before.is_none(), "a request has at most one attempt at a time");
    }

    /// Records an attempt's first token and gives how long it took; a second one changes nothing.
    pub(crate) fn first_token(&mut self, request: RequestId, now: Micros) -> Option<Micros> {
        let attempt = self.attempts.get_mut(&request).filter(|attempt| attempt.first_token_at.is_none())?;
        attempt.first_token_at = Some(now);
        self.prefill_pending -= u64::from(attempt.prefill_tokens);
        let after = now.saturating_sub(attempt.at);
        self.learnt.first_token(after.as_secs_f64(), attempt.predicted_first_s);
        Some(after)
    }

    /// Records an attempt's end and gives it back.
    pub(crate) fn end(&mut self, request: RequestId) -> Option<InFlight> {
        let attempt = self.attempts.remove(&request)?;
        self.kv_committed -= attempt.kv_need;
        self.kv_since_report += attempt.kv_need as i64;
        if attempt.first_token_at.is_none() {
            self.prefill_pending -= u64::from(attempt.prefill_tokens);
        }
        Some(attempt)
    }
}
