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
/// Where the barrier ends: at 150 seconds, more than anything else costs.
const KV_USED_MAX: f64 = 0.999;

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

/// What [`predict`] says of an instance for requests of every size: a plane over prompt and answer, and above it what the
/// KV barrier bends upward over the request's own tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Plane {
    /// Seconds whatever the request.
    base_s: f64,
    /// Seconds a prompt token.
    prompt_token_s: f64,
    /// Seconds a token of the answer but the first.
    answer_token_s: f64,
    /// Where the barrier begins to bend.
    pub(crate) bend: Bend,
}

/// How a KV cache stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bend {
    /// How much of it is taken, at least.
    pub(crate) used: f64,
    /// KV tokens in all, at most.
    pub(crate) room: f64,
}

impl Plane {
    /// That of `instance` now.
    pub(crate) fn of(instance: &Instance) -> Self {
        let foreign = if instance.foreign > 0 { instance.reported.prefill_tokens_waiting } else { 0 };
        let token_s = token_s(instance, f64::from(instance.taken() + 1));
        let ratio = instance.learnt.first_token_ratio;
        let prompt_token_s = ratio / instance.reported.prefill_tokens_per_s;
        let room = instance.reported.kv_tokens.max(1) as f64;
        let used = (room - instance.kv_free() as f64) / room;
        let kv_token_s = kv_slope_s(used) / room;
        let waiting_s = (instance.prefill_pending + foreign) as f64 * prompt_token_s;
        Self {
            base_s: waiting_s + token_s * ratio + kv_barrier_s(used) + kv_token_s,
            prompt_token_s: prompt_token_s + kv_token_s,
            answer_token_s: token_s + kv_token_s,
            bend: Bend { used, room },
        }
    }

    /// For a prompt of `prompt` tokens and an answer of `answer` tokens but the first.
    pub(crate) fn at_s(&self, prompt: f64, answer: f64) -> f64 {
        self.base_s + prompt * self.prompt_token_s + answer * self.answer_token_s
    }
}

impl Bend {
    /// How far the barrier is above its tangent where `need` KV tokens are taken: more, the fuller and the smaller the cache.
    pub(crate) fn above_s(self, need: f64) -> f64 {
        let more = need / self.room;
        (kv_barrier_s(self.used + more) - kv_barrier_s(self.used) - more * kv_slope_s(self.used)).max(0.0)
    }
}

/// The tokens of `ask`'s answer that are predicted, but the first.
pub(crate) fn answer_but_first(ask: &Ask) -> f64 {
    f64::from(ask.answer_tokens.0.min(ask.max_tokens.0).max(1) - 1)
}

/// What a KV cache of which `used` is taken costs.
fn kv_barrier_s(used: f64) -> f64 {
    let used = used.clamp(0.0, KV_USED_MAX);
    KV_BARRIER_S * used / (1.0 - used)
}

/// By how much that grows with `used`.
fn kv_slope_s(used: f64) -> f64 {
    if used >= KV_USED_MAX { 0.0 } else { KV_BARRIER_S / (1.0 - used.max(0.0)).powi(2) }
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
    let total_s = first_token_s + answer_but_first(ask) * token_s;
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

#[cfg(test)]
mod tests {
    use base::{InstanceId, MachineId, ModelName, RequestId, Rng};
    use wire::control::{InstanceOffer, InstancePhase, InstanceReport, ModelDescriptor};

    use super::*;
    use crate::eligibility::eligible;

    fn instance(rng: &mut Rng) -> Instance {
        let kv = 64 << rng.below(12);
        let report = InstanceReport {
            instance: InstanceId(1),
            generation: 1,
            phase: InstancePhase::Ready,
            detail: String::new(),
            slots: 16,
            running: 0,
            waiting: 0,
            kv_tokens: kv,
            kv_tokens_free: rng.below(kv + 1),
            prefill_tokens_waiting: rng.below(5000),
            prefill_tokens_per_s: 1.0 + rng.below(10_000) as f32,
            decode_tokens_per_s: 0.1 + rng.below(200) as f32,
        };
        let model = ModelDescriptor {
            name: ModelName::new("m"),
            family: "llama".to_owned(),
            parameters: 1,
            weight_bytes: base::Bytes(1),
            context: Tokens(1 << 20),
            vocabulary: 10,
            weights_sha256: "0".repeat(64),
            kit_sha256: "0".repeat(64),
            kit_bytes: base::Bytes(1),
        };
        let offer = InstanceOffer {
            instance: InstanceId(1),
            epoch: base::Epoch(1),
            rank: 0,
            ranks: 1,
            model,
            report,
        };
        let mut instance = Instance::new(MachineId(1), &offer, &mut crate::reported::Suspects::new());
        instance.foreign = rng.below(3) as u32;
        instance.prefill_pending = rng.below(3000);
        instance.learnt.first_token_ratio = 0.1 + rng.below(100) as f64 / 10.0;
        instance
    }

    #[test]
    fn a_plane_and_its_bend_are_what_is_predicted() {
        let mut rng = Rng::new(3);
        let mut taken = 0;
        for _ in 0..20_000 {
            let instance = instance(&mut rng);
            let (prompt, most) = (Tokens(rng.below(4000) as u32), Tokens(1 + rng.below(900) as u32));
            let mut ask = Ask::new(RequestId(1), prompt, most);
            ask.answer_tokens = Tokens(1 + rng.below(600) as u32);
            if eligible(&instance, &ask, Micros::ZERO).is_err() {
                continue;
            }
            let cost = predict(&instance, &ask).cost_s;
            let (plane, need) = (Plane::of(&instance), ask.kv_need() as f64);
            let told = plane.at_s(f64::from(prompt.0), answer_but_first(&ask)) + plane.bend.above_s(need);
            let left = (instance.kv_free() - ask.kv_need()) as f64 / instance.reported.kv_tokens as f64;
            // Beyond there the barrier is cut off, and its tangent is not.
            if left > 1.0 - KV_USED_MAX {
                assert!((told - cost).abs() <= 1e-6 * cost, "{told} is not {cost}");
                taken += 1;
            }
            let fuller = Bend { used: plane.bend.used + 0.01, room: plane.bend.room * 0.9 };
            let cut_off = fuller.used + need / fuller.room > KV_USED_MAX;
            assert!(cut_off || fuller.above_s(need) >= plane.bend.above_s(need) - 1e-9);
        }
        assert!(taken > 5000, "{taken}");
    }
}
