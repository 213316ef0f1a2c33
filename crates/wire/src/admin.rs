//! The operator's HTTP bodies: what `phalanx status` and `phalanx keys` read and write under `/api`.

pub mod explain;

use base::{AccountId, Bytes, InstanceId, KeyId, MachineId, ModelName, Tokens};
use serde::{Deserialize, Serialize};

use crate::control::{Hardware, InstancePhase};

/// `GET /api/status`: the whole fleet, as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// Program and version.
    pub version: String,
    /// How long the coordinator has run.
    pub uptime_us: u64,
    /// Every machine that it knows, by name.
    pub machines: Vec<MachineStatus>,
    /// Every model that something serves or served, by name.
    pub models: Vec<PoolStatus>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its identity.
    pub machine: MachineId,
    /// What people call it.
    pub name: String,
    /// Whether its provider is connected now.
    pub connected: bool,
    /// Since when it is as it is.
    pub since_us: u64,
    /// Program and version of its provider.
    pub agent: String,
    /// What it is made of.
    pub hardware: Hardware,
    /// What it holds.
    pub instances: Vec<InstanceStatus>,
}

/// One instance, and whether it takes requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its identity.
    pub instance: InstanceId,
    /// Its model.
    pub model: ModelName,
    /// This machine's rank in it.
    pub rank: u32,
    /// In which phase it is.
    pub phase: InstancePhase,
    /// The one predicate's answer: nothing when it takes requests, else why not.
    pub ineligible: Option<String>,
    /// Requests that it computes now.
    pub running: u32,
    /// At most.
    pub slots: u32,
    /// Tokens that its KV cache can hold, and of these free.
    pub kv_tokens: (u64, u64),
    /// Predicted decode speed alone, tokens a second.
    pub decode_tokens_per_s: f32,
}

/// One model's pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub model: ModelName,
    /// The longest context.
    pub context: Tokens,
    /// What its weights take.
    pub weight_bytes: Bytes,
    /// Instances that take requests, and all there are.
    pub eligible: (u32, u32),
    /// Requests that wait.
    pub queued: u32,
    /// Requests that run.
    pub running: u32,
    /// Refused so far, as demand.
    pub refused: u64,
}

/// `POST /api/keys`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// What people call it.
    pub name: String,
    /// Whose it is; a new account where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Whether it may use `/api`.
    #[serde(default)]
    pub admin: bool,
}

/// The answer to `POST /api/keys`: the only time that the secret is seen.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CreatedKey {
    /// The secret, `sk-phx-...`.
    pub secret: String,
    /// What is known of it later.
    pub key: KeyInfo,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its public identity.
    pub id: KeyId,
    /// Whose it is.
    pub account: AccountId,
    /// What people call it.
    pub name: String,
    /// Whether it may use `/api`.
    pub admin: bool,
    /// When it was made, seconds since 1970.
    pub created_unix: u64,
    /// When it was revoked, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_unix: Option<u64>,
    /// The last four characters of the secret, to tell keys apart.
    pub ends_with: String,
}

/// `GET /api/keys`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyList {
    /// Every key, revoked ones included, oldest first.
    pub keys: Vec<KeyInfo>,
}

/// `GET /api/segments`: where the time of finished requests went, since the start or the last `DELETE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// Over how long.
    pub window_us: u64,
    /// Requests that ended with an answer.
    pub completed: u64,
    /// Requests that ended otherwise (refused, failed, cancelled); they count in the segments that they reached.
    pub other: u64,
    /// By name: `parse`, `reserve`, `queue`, `route`, `encrypt`, `dispatch`, `first_token`, `stream`, `settle`, and
    /// `tokenize` beside those nine.
    pub segments: std::collections::BTreeMap<String, SegmentStats>,
}

/// One segment's distribution, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentStats {
    /// How many requests passed through it.
    pub count: u64,
    /// Exact.
    pub mean_us: f64,
    /// Within 1 %.
    pub p50_us: f64,
    /// Within 1 %.
    pub p95_us: f64,
    /// Within 1 %.
    pub p99_us: f64,
    /// Exact.
    pub max_us: f64,
}
