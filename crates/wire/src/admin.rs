//! The operator's HTTP bodies: what `phalanx status` and `phalanx keys` read and write under `/api`.

pub mod deployment;
pub mod explain;
pub mod group;
pub mod topology;

use base::{AccountId, Bytes, InstanceId, KeyId, MachineId, ModelName, Tokens};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

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
    /// Every group of machines that runs a model together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<group::GroupStatus>,
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
    /// Whose it is: the account whose key it joined with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<AccountId>,
    /// Why it is away: what its provider said when it left, or what became of the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
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
    /// What it may do, and how much of it.
    #[serde(default, skip_serializing_if = "KeyTerms::is_free")]
    pub terms: KeyTerms,
}

/// What a key may do, and how much of it. Every 0 is no limit, and an empty list is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyTerms {
    /// When it ends, seconds since 1970; 0 is never.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "whole")]
    pub expires_unix: u64,
    /// What it may do; everything that its kind of key may where empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
    /// The models that it may ask; all where empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelName>,
    /// Requests a minute.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "whole")]
    pub requests_per_minute: u64,
    /// Tokens a minute, prompts and answers together; an answer counts with its limit until it has ended.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "whole")]
    pub tokens_per_minute: u64,
    /// Requests at a time.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "whole")]
    pub concurrent: u64,
    /// What it may spend in all, in micro-units.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "whole")]
    pub spend_micros: u64,
    /// Its account's share of a model's queue: twice the weight, twice the work. 0 counts as 1.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "whole")]
    pub weight: u64,
    /// Which of the requests that wait go first.
    #[serde(skip_serializing_if = "Class::is_normal")]
    pub class: Class,
    /// Whose machines its requests go to, where they do not say.
    #[serde(skip_serializing_if = "OwnMachines::is_any")]
    pub owner: OwnMachines,
}

impl KeyTerms {
    /// Whether there are none.
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }
}

/// Which requests go first. Between those of one class, accounts take turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Before all others.
    Urgent,
    /// What a key is that says nothing.
    #[default]
    Normal,
    /// When nothing else waits.
    Background,
}

impl Class {
    fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

/// Whether requests go to the machines that their own account lends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnMachines {
    /// Like to any other.
    #[default]
    Any,
    /// There first, and elsewhere where those have no room.
    Prefer,
    /// There alone.
    Only,
}

impl OwnMachines {
    fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

/// A part of what can be done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Ask models.
    Infer,
    /// Read status, usage, audit and segments.
    Read,
    /// Join a machine, which is then its account's own. Never without being named.
    Join,
}

/// A number that is whole, however JSON spells it: `5`, `5.0` and `5e0` are one number there. Up to where a float tells
/// whole numbers apart.
fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    const MOST: u64 = (1 << 53) - 1;
    let number = serde_json::Number::deserialize(from)?;
    let exact = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|f| f.fract() == 0.0 && (0.0..=MOST as f64).contains(f))?;
        Some(float as u64)
    });
    exact
        .filter(|whole| *whole <= MOST)
        .ok_or_else(|| D::Error::custom(format!("{number} is no whole number from 0 to {MOST}")))
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What tokens of a model cost, in micro-units for a million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Price {
    /// Tokens of prompts.
    #[serde(deserialize_with = "whole")]
    pub prompt_micros: u64,
    /// Tokens of answers.
    #[serde(deserialize_with = "whole")]
    pub generated_micros: u64,
}

impl Price {
    /// What so many tokens cost, in micro-units, rounded up.
    pub fn of(&self, prompt_tokens: u32, generated_tokens: u32) -> u64 {
        let prompt = u128::from(self.prompt_micros) * u128::from(prompt_tokens);
        let generated = u128::from(self.generated_micros) * u128::from(generated_tokens);
        u64::try_from((prompt + generated).div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// `GET /api/prices`, and the answer to `PUT /api/prices`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceList {
    /// By model; one that is not named costs nothing.
    pub prices: std::collections::BTreeMap<ModelName, Price>,
}

/// `PUT /api/prices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPrice {
    /// Which model's.
    pub model: ModelName,
    /// From the next request on.
    pub price: Price,
}

/// What one key used of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUsage {
    /// Which key.
    pub key: KeyId,
    /// Whose it is.
    pub account: AccountId,
    /// Which model.
    pub model: ModelName,
    /// Requests that ended, however they did.
    pub requests: u64,
    /// Tokens of prompts charged.
    pub prompt_tokens: u64,
    /// Tokens of answers charged.
    pub generated_tokens: u64,
    /// What they cost, in micro-units.
    pub charged_micros: u64,
}

/// `GET /api/usage`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// By key and model, since each key began.
    pub usage: Vec<KeyUsage>,
}

/// Something that an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Its place in the log, from 1, growing.
    pub sequence: u64,
    /// When, in microseconds since 1970.
    pub at_unix_us: u64,
    /// With which key.
    pub by: KeyId,
    /// What, such as `key.create`.
    pub act: String,
    /// To what.
    pub subject: String,
    /// How. Never a secret.
    pub detail: String,
}

/// `GET /api/audit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLog {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
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
    /// What it may do, and how much of it.
    #[serde(default, skip_serializing_if = "KeyTerms::is_free")]
    pub terms: KeyTerms,
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
