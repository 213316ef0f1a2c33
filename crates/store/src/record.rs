//! What is written: reservations, settlements, and the ledger that they become.

use base::{AccountId, KeyId, ModelName, RequestId};
use serde::{Deserialize, Serialize};
use wire::admin::Price;

/// The worst case of a request, set aside before anything is computed for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reservation {
    /// For which request. Each has one.
    pub request: RequestId,
    /// Who pays.
    pub account: AccountId,
    /// With which key.
    pub key: KeyId,
    /// For which model.
    pub model: ModelName,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens that it may generate.
    pub max_tokens: u32,
    /// What its tokens cost.
    pub price: Price,
    /// When, in microseconds since 1970.
    pub at_unix_us: u64,
}

impl Reservation {
    /// The tokens set aside.
    pub fn tokens(&self) -> u64 {
        u64::from(self.prompt_tokens) + u64::from(self.max_tokens)
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Which.
    pub request: RequestId,
    /// Tokens of its prompt that were computed. More than were reserved count as those reserved.
    pub prompt_tokens: u32,
    /// Tokens that were delivered. More than were reserved count as those reserved.
    pub generated_tokens: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// When, in microseconds since 1970.
    pub at_unix_us: u64,
    /// What its receipt says beyond the numbers; the store keeps it as it is. May be empty.
    pub evidence: String,
    /// A caller's own name for it, and what was asked under that name ([`Name`]); nothing where there is none.
    pub named: Option<Name>,
}

/// A caller's own name for a request, and what it asked for under it. Both as hashes: neither is known from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Of the account and its name.
    pub name: [u8; 32],
    /// Of the body.
    pub body: [u8; 32],
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Delivered whole.
    Completed,
    /// Its client went.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// Refused after it was reserved: nothing could serve it in time.
    Refused,
    /// Something broke.
    Failed,
    /// The coordinator ended before it did: found open at the next start.
    Lost,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Completed, Self::Cancelled, Self::Expired, Self::Refused, Self::Failed, Self::Lost];

    /// Its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }

    /// The outcome of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// What a settlement came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Tokens charged, prompt and answer.
    pub charged_tokens: u64,
    /// Tokens given back.
    pub refunded_tokens: u64,
}

/// One settled request. `prompt_tokens + generated_tokens + refunded_tokens` is what was reserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerEntry {
    /// Its place in the ledger, from 1, growing.
    pub sequence: u64,
    /// Which request.
    pub request: RequestId,
    /// Who paid.
    pub account: AccountId,
    /// With which key.
    pub key: KeyId,
    /// For which model.
    pub model: ModelName,
    /// Charged tokens of the prompt.
    pub prompt_tokens: u32,
    /// Charged tokens of the answer.
    pub generated_tokens: u32,
    /// Reserved tokens that were given back.
    pub refunded_tokens: u64,
    /// What was charged, in micro-units.
    pub charged_micros: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was reserved, in microseconds since 1970.
    pub reserved_unix_us: u64,
    /// When it was settled, in microseconds since 1970.
    pub settled_unix_us: u64,
}

/// A settled request with what was kept for its receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The numbers.
    pub entry: LedgerEntry,
    /// As it was given with the settlement.
    pub evidence: String,
}

/// What an account has used and has open. All sums are since the account began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Requests settled.
    pub requests: u64,
    /// Tokens of prompts charged.
    pub prompt_tokens: u64,
    /// Tokens of answers charged.
    pub generated_tokens: u64,
    /// Tokens that were reserved and given back.
    pub refunded_tokens: u64,
    /// Tokens that are reserved now.
    pub reserved_tokens: u64,
    /// What was charged, in micro-units.
    pub charged_micros: u64,
}
