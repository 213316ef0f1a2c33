//! Offers, reports and asks for tests: what a provider would say, with the numbers that matter.

use base::{AccountId, Bytes, Epoch, InstanceId, MachineId, ModelName, RequestId, Tokens};
use fleet::{Ask, Enqueue, Priority};
use wire::control::{InstanceOffer, InstancePhase, InstanceReport, ModelDescriptor};

/// What of an instance a test chooses.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) slots: u32,
    pub(crate) kv: u64,
    pub(crate) context: u32,
    pub(crate) prefill: f32,
    pub(crate) decode: f32,
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    pub(crate) epoch: u64,
    pub(crate) phase: InstancePhase,
    pub(crate) weights: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            slots: 2,
            kv: 4096,
            context: 2048,
            prefill: 1000.0,
            decode: 100.0,
            rank: 0,
            ranks: 1,
            epoch: 1,
            phase: InstancePhase::Ready,
            weights: "w1",
        }
    }
}

pub(crate) fn machine(n: u64) -> MachineId {
    MachineId(u128::from(n))
}

pub(crate) fn instance(n: u64) -> InstanceId {
    InstanceId(u128::from(n))
}

pub(crate) fn request(n: u64) -> RequestId {
    RequestId(u128::from(n))
}

pub(crate) fn account(n: u64) -> AccountId {
    AccountId(u128::from(n))
}

pub(crate) fn model() -> ModelName {
    ModelName::new("tiny")
}

pub(crate) fn report(of: u64, generation: u64, shape: &Shape) -> InstanceReport {
    InstanceReport {
        instance: instance(of),
        generation,
        phase: shape.phase,
        detail: String::new(),
        slots: shape.slots,
        running: 0,
        waiting: 0,
        kv_tokens: shape.kv,
        kv_tokens_free: shape.kv,
        prefill_tokens_waiting: 0,
        prefill_tokens_per_s: shape.prefill,
        decode_tokens_per_s: shape.decode,
    }
}

pub(crate) fn offer(of: u64, shape: &Shape) -> Box<InstanceOffer> {
    Box::new(InstanceOffer {
        instance: instance(of),
        epoch: Epoch(shape.epoch),
        rank: shape.rank,
        ranks: shape.ranks,
        model: ModelDescriptor {
            name: model(),
            family: "llama".to_owned(),
            parameters: 1000,
            weight_bytes: Bytes(2000),
            context: Tokens(shape.context),
            vocabulary: 256,
            weights_sha256: shape.weights.to_owned(),
            kit_sha256: "k".to_owned(),
            kit_bytes: Bytes(10),
        },
        report: report(of, 0, shape),
    })
}

pub(crate) fn enqueue(n: u64, of: u64, prompt: u32, max_tokens: u32) -> Enqueue {
    Enqueue {
        ask: Ask::new(request(n), Tokens(prompt), Tokens(max_tokens)),
        account: account(of),
        weight: 1,
        priority: Priority::Normal,
        deadline: None,
        again: false,
        tried: 0,
        prefixes: fleet::Prefixes::new(),
    }
}
