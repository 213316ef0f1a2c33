//! What an instance says of itself, brought within bounds: a provider's numbers are claims.

use std::fmt;

use smallvec::SmallVec;
use wire::control::{InstancePhase, InstanceReport};

/// More requests at once than any engine batches.
const SLOTS_MAX: u32 = 4096;
/// 2^40 tokens of KV cache are petabytes.
const KV_TOKENS_MAX: u64 = 1 << 40;
/// Ten million prompt tokens a second: a thousand times a large accelerator.
const PREFILL_MAX: f32 = 1e7;
/// A hundred thousand generated tokens a second for one request: a thousand times a large accelerator.
const DECODE_MAX: f32 = 1e5;
/// Slower than this, a speed is no speed: one token in a hundred seconds.
const SPEED_MIN: f32 = 0.01;
/// What is taken for a speed that was not given (a loading instance gives none).
const PREFILL_PRIOR: f32 = 200.0;
/// As `PREFILL_PRIOR`, for generated tokens.
const DECODE_PRIOR: f32 = 10.0;

/// A number that a provider reported and that cannot be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suspect {
    /// Which field of the report.
    pub field: &'static str,
    /// What it said.
    pub said: f64,
    /// What is taken instead.
    pub taken: f64,
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reported {} = {}, out of bounds; {} is taken instead", self.field, self.said, self.taken)
    }
}

/// An instance's report within bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Reported {
    /// In which phase it is.
    pub phase: InstancePhase,
    /// Why, where the phase needs a reason.
    pub detail: String,
    /// Requests it computes together at most.
    pub slots: u32,
    /// Requests that it computes or that wait inside it.
    pub requests: u32,
    /// Tokens that its KV cache holds.
    pub kv_tokens: u64,
    /// Of these, free.
    pub kv_tokens_free: u64,
    /// Prompt tokens that wait to be prefilled.
    pub prefill_tokens_waiting: u64,
    /// Prompt tokens a second.
    pub prefill_tokens_per_s: f64,
    /// Generated tokens a second, one request alone.
    pub decode_tokens_per_s: f64,
}

/// Suspects of one report: seven fields are checked.
pub type Suspects = SmallVec<[Suspect; 2]>;

impl Reported {
    /// Brings `report` within bounds; what had to be changed is added to `suspects`.
    pub fn clamp(report: &InstanceReport, suspects: &mut Suspects) -> Self {
        let mut whole = |field, said: u64, max: u64| {
            if said > max {
                suspects.push(Suspect { field, said: said as f64, taken: max as f64 });
            }
            said.min(max)
        };
        let slots = whole("slots", report.slots.into(), SLOTS_MAX.into()) as u32;
        let running = whole("running", report.running.into(), SLOTS_MAX.into()) as u32;
        let waiting = whole("waiting", report.waiting.into(), 1 << 20) as u32;
        let kv_tokens = whole("kv_tokens", report.kv_tokens, KV_TOKENS_MAX);
        let kv_tokens_free = whole("kv_tokens_free", report.kv_tokens_free, kv_tokens);
        let prefill_tokens_waiting =
            whole("prefill_tokens_waiting", report.prefill_tokens_waiting, KV_TOKENS_MAX);
        let mut speed = |field, said: f32, prior: f32, max: f32| {
            let taken = match said {
                0.0 => prior,
                s if s.is_nan() || s < 0.0 => prior,
                s => s.clamp(SPEED_MIN, max),
            };
            // Zero means "not measured yet", which is no lie.
            if said.to_bits() != taken.to_bits() && said != 0.0 {
                suspects.push(Suspect { field, said: said.into(), taken: taken.into() });
            }
            f64::from(taken)
        };
        let prefill_tokens_per_s =
            speed("prefill_tokens_per_s", report.prefill_tokens_per_s, PREFILL_PRIOR, PREFILL_MAX);
        let decode_tokens_per_s =
            speed("decode_tokens_per_s", report.decode_tokens_per_s, DECODE_PRIOR, DECODE_MAX);
        Self {
            phase: report.phase,
            detail: report.detail.chars().filter(|c| !c.is_control()).take(200).collect(),
            slots,
            requests: running + waiting,
            kv_tokens,
            kv_tokens_free,
            prefill_tokens_waiting,
            prefill_tokens_per_s,
            decode_tokens_per_s,
        }
    }
}
