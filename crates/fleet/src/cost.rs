//! What a request would cost on an instance, in predicted seconds, and what outcomes teach about that.

use base::{Micros, Tokens};

use crate::eligibility::Ask;
use crate::instance::{InFlight, Instance};

/// How much each further request in the batch slows a token down before any batch was observed: measured elsewhere on
/// one machine as `1 / (1 + 0.27 x others)`.
const SLOPE_PRIOR: f64 = 0.27;
/// Weight of a new observation. A tenth: ten outcomes replace a prior, one outlier moves it little.
const LEARN: f64 = 0.1;
/// Seconds that the KV barrier costs at half full: small beside a prefill, so that it only decides between instances
/// of like speed until little room is left, where it grows without bound.
const KV_BARRIER_S: f64 = 0.15;

/// What is predicted for a request on an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prediction {
    /// Seconds from dispatch to the first token.
    pub first_token_s: f64,
    /// Seconds from dispatch to the last token of an answer of expected length.
    pub total_s: f64,
    /// `total_s` and what is added for pressure on the KV cache: what candidates are compared by.
    pub cost_s: f64,
}

/// What an instance's past attempts taught.
#[derive(Debug, Clone, PartialEq)]
pub struct Learnt {
    /// Observed over predicted time to the first token.
    pub first_token_ratio: f64,
    /// Observed seconds a token alone, where seen.
    pub token_s: Option<f64>,
    /// How much each further request slows a token down.
    pub slope: f64,
    /// Seconds from dispatch to end of a completed request, where seen.
    pub service_s: Option<f64>,
    /// Mean of |ln(observed / predicted)| of times to the first token: 0 is perfect, 0.7 is a factor of two.
    pub calibration_error: f64,
    /// Attempts that completed.
    pub completed: u64,
}

impl Default for Learnt {
    fn default() -> Self {
        Self {
            first_token_ratio: 1.0,
            token_s: None,
            slope: SLOPE_PRIOR,
            service_s: None,
            calibration_error: 0.0,
            completed: 0,
        }
    }
}

fn blend(old: &mut f64, new: f64) {
    *old += LEARN * (new - *old);
}

impl Learnt {
    /// A first token came after `observed_s` where `predicted_s` was predicted.
    pub(crate) fn first_token(&mut self, observed_s: f64, predicted_s: f64) {
        // Below a millisecond neither clock nor prediction means anything.
        let ratio = observed_s.max(1e-3) / predicted_s.max(1e-3);
        blend(&mut self.calibration_error, ratio.ln().abs());
        // The prediction already holds the ratio learnt so far; one observation may not move it far.
        let ratio = (self.first_token_ratio * ratio.clamp(0.25, 4.0)).clamp(0.1, 10.0);
        blend(&mut self.first_token_ratio, ratio);
    }

    /// `attempt` completed at `now` after `generated` tokens, when the batch held `batch` requests.
    pub(crate) fn completed(&mut self, attempt: &InFlight, generated: u32, batch: u32, now: Micros) {
        self.completed += 1;
        let service = now.saturating_sub(attempt.at).as_secs_f64();
        blend(self.service_s.get_or_insert(service), service);
        let Some(first) = attempt.first_token_at.filter(|_| generated >= 4) else { return };
        let token_s = now.saturating_sub(first).as_secs_f64() / f64::from(generated - 1);
        let others = f64::from(attempt.batch.max(1) - 1 + batch.max(1) - 1) / 2.0;
        if others < 0.5 {
            blend(self.token_s.get_or_insert(token_s), token_s);
        } else if let Some(alone) = self.token_s.filter(|alone| *alone > 0.0) {
            let slope = ((token_s / alone - 1.0) / others).clamp(0.0, 2.0);
            blend(&mut self.slope, slope);
        } else {
            self.token_s = Some(token_s / (1.0 + self.slope * others));
        }
    }
}

/// Seconds a token at a batch of `batch`.
fn token_s(instance: &Instance, batch: f64) -> f64 {
    let reported = 1.0 / instance.reported.decode_tokens_per_s;
    // Own observation is trusted within a factor of four of what the provider measured itself.
    let alone = instance.learnt.token_s.map_or(reported, |seen| seen.clamp(reported / 4.0, reported * 4.0));
    // A token of another request costs at least what a prompt's token costs, which is computed among many.
    let other = (alone * instance.learnt.slope).max(1.0 / instance.reported.prefill_tokens_per_s);
    alone + other * (batch - 1.0).max(0.0)
}

/// What [`predict`] is made of, with the request's own numbers left out: a lower bound of many instances' costs is
/// found from the least of each term.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Terms {
    /// Seconds whatever the request.
    pub(crate) fixed_s: f64,
    /// Seconds a prompt token.
    pub(crate) prompt_token_s: f64,
    /// Seconds a token of the answer but the first.
    pub(crate) answer_token_s: f64,
    /// Of the KV cache, how much is free.
    pub(crate) free_share: f64,
    /// KV tokens in all.
    pub(crate) room: f64,
}

impl Terms {
    /// Those of `instance` now.
    pub(crate) fn of(instance: &Instance) -> Self {
        let foreign = if instance.foreign > 0 { instance.reported.prefill_tokens_waiting } else { 0 };
        let token_s = token_s(instance, f64::from(instance.taken() + 1));
        let ratio = instance.learnt.first_token_ratio;
        let prompt_token_s = ratio / instance.reported.prefill_tokens_per_s;
        let room = instance.reported.kv_tokens.max(1) as f64;
        Self {
            fixed_s: (instance.prefill_pending + foreign) as f64 * prompt_token_s + token_s * ratio,
            prompt_token_s,
            answer_token_s: token_s,
            free_share: instance.kv_free() as f64 / room,
            room,
        }
    }

    /// No more than what `ask` would cost on any instance whose terms are at least these.
    pub(crate) fn bound_s(&self, ask: &Ask) -> f64 {
        let answer = f64::from(ask.answer_tokens.0.min(ask.max_tokens.0).max(1) - 1);
        let used = 1.0 - self.free_share + ask.kv_need() as f64 / self.room;
        self.fixed_s
            + f64::from(ask.prompt_tokens.0) * self.prompt_token_s
            + answer * self.answer_token_s
            + kv_barrier_s(used)
    }
}

/// What a KV cache of which `used` is taken costs.
fn kv_barrier_s(used: f64) -> f64 {
    let used = used.clamp(0.0, 0.999);
    KV_BARRIER_S * used / (1.0 - used)
}

/// Tokens that are computed of a prompt of which `cached` are there: the last one at least.
pub(crate) fn prefill_tokens(ask: &Ask, cached: Tokens) -> u32 {
    ask.prompt_tokens.0.saturating_sub(cached.0).max(ask.prompt_tokens.0.min(1))
}

/// What `ask` would cost on `instance` now.
pub fn predict(instance: &Instance, ask: &Ask) -> Prediction {
    predict_cached(instance, ask, Tokens::ZERO)
}

/// As [`predict`], where `cached` tokens of the prompt are taken to be in the instance's cache.
pub(crate) fn predict_cached(instance: &Instance, ask: &Ask, cached: Tokens) -> Prediction {
    let prompt = instance.prefill_pending + u64::from(prefill_tokens(ask, cached));
    let foreign = if instance.foreign > 0 { instance.reported.prefill_tokens_waiting } else { 0 };
    let batch = f64::from(instance.taken() + 1);
    let token_s = token_s(instance, batch);
    let prefill_s = (prompt + foreign) as f64 / instance.reported.prefill_tokens_per_s;
    let first_token_s = (prefill_s + token_s) * instance.learnt.first_token_ratio;
    let answer = f64::from(ask.answer_tokens.0.min(ask.max_tokens.0).max(1) - 1);
    let total_s = first_token_s + answer * token_s;
    let room = instance.reported.kv_tokens.max(1) as f64;
    let used = (room - instance.kv_free() as f64 + ask.kv_need() as f64) / room;
    Prediction { first_token_s, total_s, cost_s: total_s + kv_barrier_s(used) }
}

/// Requests a second that `instance` completes when all its slots are taken by requests like `ask`.
pub fn drain_per_s(instance: &Instance, ask: &Ask) -> f64 {
    let slots = f64::from(instance.reported.slots.max(1));
    let room = instance.reported.kv_tokens as f64 / ask.kv_need().max(1) as f64;
    let slots = slots.min(room.max(1.0));
    let service = instance.learnt.service_s.unwrap_or_else(|| {
        let answer = f64::from(ask.answer_tokens.0.min(ask.max_tokens.0).max(1));
        // Prefills of a full batch share the machine; so do its decodes, by the slope.
        let prefill_s = slots * f64::from(ask.prompt_tokens.0) / instance.reported.prefill_tokens_per_s;
        prefill_s + answer * token_s(instance, slots)
    });
    slots / service.max(1e-4)
}
