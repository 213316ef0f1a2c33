//! What `phalanx explain` and `phalanx why` read: what became of a request, and how a machine stands.

use base::{AccountId, InstanceId, MachineId, ModelName, RequestId, Tokens};
use serde::{Deserialize, Serialize};

/// `GET /api/explain/{request}`: one of the last requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which.
    pub request: RequestId,
    /// What it asked for; nothing here and below where it was turned away before that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Tokens of its prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<Tokens>,
    /// Tokens of its answer at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<Tokens>,
    /// What happened, in order.
    pub events: Vec<ExplainedEvent>,
}

/// One thing that happened to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedEvent {
    /// When, on the coordinator's clock: microseconds since its start.
    pub at_us: u64,
    /// `waits`, `dispatched`, `first_token`, `ended`, `refused`, `withdrawn` or `turned_away`.
    pub what: String,
    /// In words.
    pub text: String,
    /// The machine that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// Who was weighed: all of a small pool's instances, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    /// How many instances there were, by the reason why they took nothing new then (`eligible` where they did).
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub instances: std::collections::BTreeMap<String, u32>,
}

/// One instance that a decision weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub instance: InstanceId,
    /// On which machine.
    pub machine: MachineId,
    /// What people call the machine, where it is known still.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Predicted seconds to the first token, where it could take the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_s: Option<f64>,
    /// Predicted cost in seconds, pressure on its KV cache included: the least wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_s: Option<f64>,
    /// Why it could not take the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ineligible: Option<String>,
}

/// `GET /api/why/{machine}`: why a machine gets work, or does not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineReasons {
    /// Which.
    pub machine: MachineId,
    /// What people call it.
    pub name: String,
    /// Whether its provider is connected now.
    pub connected: bool,
    /// Why it is away: what its provider said when it left, or what became of the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// One for each instance that it holds.
    pub instances: Vec<InstanceReasons>,
    /// Whether deployments decide what it holds.
    #[serde(default)]
    pub managed: bool,
    /// One line for each deployment: what it is to hold of it, or why nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deployments: Vec<String>,
}

/// How one instance stands, and how it fared of late.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceReasons {
    /// Which.
    pub instance: InstanceId,
    /// Of what.
    pub model: ModelName,
    /// Why it takes nothing now; nothing where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ineligible: Option<String>,
    /// Requests that were placed of late, anywhere.
    pub placed: u32,
    /// Of these, here.
    pub placed_here: u32,
    /// Of these, where it was weighed and another was predicted to be quicker.
    pub outbid: u32,
    /// By how many seconds on average, where it was outbid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbid_by_s: Option<f64>,
    /// Of the requests placed elsewhere, why it could not take them, by reason.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub passed_over: std::collections::BTreeMap<String, u32>,
    /// All of it in a sentence.
    pub text: String,
}
