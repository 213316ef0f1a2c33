//! What a request used, as a statement that its machines and the coordinator sign, and anybody checks without either.
//!
//! It says how much, never what: no digest of a prompt or an answer is in it, since a short one is found by trying.
//! The bytes that are signed are not the JSON: each field stands behind its length (`u64`, little-endian), so that no two
//! statements give the same bytes and no formatting matters.

use base::{AccountId, AttemptId, KeyId, MachineId, ModelName, RequestId};
use serde::{Deserialize, Serialize};

use crate::admin::Price;

/// The form of receipt that this build writes and reads.
pub const VERSION: u32 = 1;

/// What begins each statement, so that a signature over one means nothing anywhere else.
const SERVED: &[u8] = b"phalanx/1 usage of an attempt";
const RECEIPT: &[u8] = b"phalanx/1 receipt of a request";

/// What one attempt computed, on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptUsage {
    /// Which attempt.
    pub attempt: AttemptId,
    /// On which machine: the first 16 bytes of the SHA-256 of its key.
    pub machine: MachineId,
    /// The machine's Ed25519 public key, base64.
    pub signing_key: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer that earlier attempts had given.
    pub first_index: u32,
    /// Tokens of the answer that this one gave.
    pub generated_tokens: u32,
    /// The machine's signature over [`AttemptUsage::statement`], base64; none where it was lost or cancelled before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl AttemptUsage {
    /// The bytes that the machine signs.
    pub fn statement(&self, request: RequestId, model: &ModelName) -> Vec<u8> {
        let mut out = Statement::of(SERVED);
        self.put(&mut out, request, model);
        out.0
    }

    fn put(&self, out: &mut Statement, request: RequestId, model: &ModelName) {
        out.put(&request.0.to_be_bytes());
        out.put(model.as_str().as_bytes());
        out.put(&self.attempt.0.to_be_bytes());
        out.put(&self.machine.0.to_be_bytes());
        for count in [self.prompt_tokens, self.first_index, self.generated_tokens] {
            out.number(count.into());
        }
    }
}

/// What the ledger keeps of a request for its receipt, beside the numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// What tokens cost when it began.
    pub price: Price,
    /// Every attempt that gave tokens, in order.
    pub served: Vec<AttemptUsage>,
}

/// `GET /v1/receipts/{request}`: what a request used and cost, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// See [`VERSION`].
    pub version: u32,
    /// Its place in the ledger.
    pub sequence: u64,
    /// Which request.
    pub request: RequestId,
    /// Who paid.
    pub account: AccountId,
    /// With which key.
    pub key: KeyId,
    /// Which model.
    pub model: ModelName,
    /// Tokens of the prompt that were charged.
    pub prompt_tokens: u32,
    /// Tokens of the answer that were charged.
    pub generated_tokens: u32,
    /// Tokens that were reserved and given back.
    pub refunded_tokens: u64,
    /// What tokens cost.
    pub price: Price,
    /// What was charged, in micro-units.
    pub charged_micros: u64,
    /// How it ended, as the ledger says it (`completed`, `cancelled`, ...).
    pub outcome: String,
    /// When it was reserved, in microseconds since 1970.
    pub reserved_unix_us: u64,
    /// When it was settled, in microseconds since 1970.
    pub settled_unix_us: u64,
    /// Every attempt that gave tokens, in order.
    pub served: Vec<AttemptUsage>,
    /// The coordinator's Ed25519 public key, base64.
    pub signing_key: String,
    /// The coordinator's signature over [`Receipt::statement`], base64.
    pub signature: String,
}

impl Receipt {
    /// The bytes that the coordinator signs: everything but its own key and signature.
    pub fn statement(&self) -> Vec<u8> {
        let mut out = Statement::of(RECEIPT);
        out.number(self.version.into());
        out.number(self.sequence);
        out.put(&self.request.0.to_be_bytes());
        out.put(&self.account.0.to_be_bytes());
        out.put(&self.key.0.to_be_bytes());
        out.put(self.model.as_str().as_bytes());
        out.number(self.prompt_tokens.into());
        out.number(self.generated_tokens.into());
        for number in [
            self.refunded_tokens,
            self.price.prompt_micros,
            self.price.generated_micros,
            self.charged_micros,
            self.reserved_unix_us,
            self.settled_unix_us,
        ] {
            out.number(number);
        }
        out.put(self.outcome.as_bytes());
        out.number(self.served.len() as u64);
        for served in &self.served {
            served.put(&mut out, self.request, &self.model);
            out.put(served.signing_key.as_bytes());
            // Told apart from an empty one.
            out.number(served.signature.is_some().into());
            out.put(served.signature.as_deref().unwrap_or_default().as_bytes());
        }
        out.0
    }
}

/// `GET /v1/receipts/key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptKey {
    /// `ed25519`.
    pub algorithm: String,
    /// The public key, base64.
    pub signing_key: String,
}

/// Fields behind their lengths.
struct Statement(Vec<u8>);

impl Statement {
    fn of(domain: &[u8]) -> Self {
        let mut out = Self(Vec::with_capacity(512));
        out.put(domain);
        out
    }

    fn put(&mut self, field: &[u8]) {
        self.0.extend_from_slice(&(field.len() as u64).to_le_bytes());
        self.0.extend_from_slice(field);
    }

    fn number(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }
}
