//! Every knob of an engine, declared once.

use base::{Bytes, Micros};
use nn::{Activations, KvDType};
use serde::{Deserialize, Serialize};

use crate::device::Device;

/// How an engine computes. What is absent is chosen from the model and the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// What computes. Groups compute on CPUs.
    pub device: Device,
    /// Threads that compute together; as many as there are cores where absent. More than there are only wait for
    /// each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Memory for keys and values; enough for [`EngineConfig::KV_CONTEXTS`] full contexts where absent, but at most
    /// a quarter of the memory that is available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_bytes: Option<Bytes>,
    /// The longest context to serve; the model's where absent. Lowered to what the KV memory holds where that is chosen
    /// here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Requests computed together at most. Each one more slows the others a little and raises what all get together.
    pub batch_max: u32,
    /// Requests that wait for a place among those at most: enough that a place never stays empty for a round trip to the
    /// coordinator, few enough that the coordinator's queue, which is fair, does the queueing.
    pub waiting_max: u32,
    /// Tokens in one step at most. Bounds scratch memory and how long a running stream can be held up; below about
    /// a hundred, prefill is bound by memory instead of arithmetic.
    pub step_tokens_max: u32,
    /// Tokens in a page of the KV cache, a multiple of 16: what is wasted at a sequence's end, and the grain of prefix reuse.
    pub page_tokens: u32,
    /// How weights are held in memory.
    pub weights: WeightFormat,
    /// How activations meet weights that are quantised or bf16.
    pub activations: ActivationFormat,
    /// The instruction set to compute with, as `avx512bf16`, `avx512vnni`, `avx512`, `avx2` or `portable`: for measuring
    /// slower ones. The best that the machine has where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction_set: Option<String>,
    /// How keys and values are held in memory.
    pub kv: KvFormat,
    /// Tokens that are guessed ahead in an answer at most, from what prompt and answer said before: computed together where
    /// they are likely enough, and taken as far as they are what is drawn anyway. Answers are the same with and without.
    /// Not for recurrent models, and not in groups. 0 guesses nothing.
    pub speculate: u32,
    /// A request whose reader takes nothing for so long is given up.
    pub pause_us_max: Micros,
    /// How long a rank of a group waits for another one inside a step before it holds it for lost.
    pub group_patience_us: Micros,
}

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// As they are stored, where there are kernels for it (f16 becomes f32, which holds it exactly).
    #[default]
    Auto,
    /// 32-bit floats: exact for every stored format, twice the memory and time of bf16.
    F32,
    /// bfloat16: half the memory; rounds f32 and f16 weights.
    Bf16,
}

/// How activations meet weights that are quantised or bf16. Others always meet them as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationFormat {
    /// For quantised weights rounded to eight bits, with a scale for each row and 32 columns: several times faster, and far
    /// below what quantising the weights has cost. For bf16 weights as they are.
    #[default]
    Int8,
    /// As `int8`, and for bf16 weights rounded to bf16, as others do who compute in bf16: prompts are read nearly twice as
    /// fast where AVX-512 BF16 is, and logits differ in the third digit.
    Bf16,
    /// 32-bit floats: the product with exactly the weights that the codes stand for.
    F32,
}

impl ActivationFormat {
    pub(crate) fn activations(self) -> Activations {
        match self {
            Self::Int8 => Activations::Int8,
            Self::Bf16 => Activations::Bf16,
            Self::F32 => Activations::F32,
        }
    }
}

/// How keys and values are held in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvFormat {
    /// The most exact there is kernels for, on every machine the same: an answer that moves to another machine goes on
    /// exactly as it would have here.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats: half the memory, so twice the requests, and logits that differ in the third digit.
    F16,
    /// bfloat16: half the memory, for models whose keys leave the range of 16-bit floats.
    Bf16,
    /// Bytes, with a scale for each key and value of a head: little more than a quarter of the memory, so four times the
    /// requests. Logits move by a few hundredths of what they scatter by.
    Int8,
}

impl KvFormat {
    /// As other ranks of a group are told.
    pub(crate) fn name(self) -> &'static str {
        match self.dtype() {
            KvDType::F32 => "f32",
            KvDType::F16 => "f16",
            KvDType::Bf16 => "bf16",
            KvDType::Int8 => "int8",
        }
    }

    /// What [`KvFormat::name`] named.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16, Self::Int8].into_iter().find(|format| format.name() == name)
    }

    pub(crate) fn dtype(self) -> KvDType {
        match self {
            Self::Auto => KvDType::default(),
            Self::F32 => KvDType::F32,
            Self::F16 => KvDType::F16,
            Self::Bf16 => KvDType::Bf16,
            Self::Int8 => KvDType::Int8,
        }
    }
}

impl EngineConfig {
    /// Full contexts that the KV cache holds where nothing else is said and memory allows it. As many as the default batch
    /// has places: a full batch of full contexts runs without preemption.
    pub const KV_CONTEXTS: u64 = 16;
    /// The part of available memory that the KV cache takes at most, where nothing else is said: other programs, other
    /// instances and the page cache live on the rest.
    pub const KV_MEMORY_PART: f64 = 0.25;
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            threads: None,
            kv_bytes: None,
            context: None,
            batch_max: 16,
            waiting_max: 16,
            step_tokens_max: 256,
            page_tokens: 16,
            weights: WeightFormat::default(),
            activations: ActivationFormat::default(),
            instruction_set: None,
            kv: KvFormat::default(),
            speculate: 0,
            pause_us_max: Micros::from_secs(120),
            group_patience_us: Micros::from_secs(5),
        }
    }
}
