//! The operator's bodies about groups: `GET`, `POST` and `DELETE` of `/api/groups`.

use base::{Epoch, InstanceId, MachineId, ModelName};
use serde::{Deserialize, Serialize};

use crate::control::{GroupStanding, GroupTelemetry};

/// `POST /api/groups`: let machines run one model together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// The model, by the name that its machines know its files under.
    pub model: ModelName,
    /// The machines in the order of ranks, by name or id. Rank 0 must be one that all others can dial.
    pub machines: Vec<String>,
    /// `tensor`, `pipeline`, `auto`, or stages x ranks as in `2x2`. Only `auto` leaves a choice.
    #[serde(default = "auto")]
    pub mode: String,
    /// How sums travel: `f32` (the default: nothing is lost), `bf16`, `f16`, `int8`.
    #[serde(default = "f32_name")]
    pub dtype: String,
    /// How long a rank may be waited for within a step, in milliseconds.
    #[serde(default = "patience_ms", deserialize_with = "super::whole")]
    pub patience_ms: u64,
}

fn auto() -> String {
    "auto".to_owned()
}

fn f32_name() -> String {
    "f32".to_owned()
}

fn patience_ms() -> u64 {
    2_000
}

/// `GET /api/groups`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupList {
    /// Every group, oldest first.
    pub groups: Vec<GroupStatus>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its identity; that of the instance which it makes.
    pub instance: InstanceId,
    /// Its model.
    pub model: ModelName,
    /// As asked for.
    pub mode: String,
    /// Which life it is in.
    pub epoch: Epoch,
    /// `waiting`, `forming`, `loading`, `ready`, `re-forming`, `down`.
    pub phase: String,
    /// Why, where it is not ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How long it has been in this phase.
    pub since_us: u64,
    /// Lives that ended in a fault.
    pub faults: u64,
    /// The last of them, in words: who is to blame, and for what.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_fault: String,
    /// The last lives that ended so, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<PastLife>,
    /// By rank.
    pub ranks: Vec<RankStatus>,
}

/// A life of a group that ended in a fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PastLife {
    /// Which.
    pub epoch: Epoch,
    /// Who is to blame, and for what.
    pub fault: String,
    /// How far it had come: `forming`, `loading`, `ready`.
    pub phase: String,
    /// How long it had been so, in microseconds.
    pub lasted_us: u64,
    /// How long ago it ended, in microseconds.
    pub ago_us: u64,
}

/// One rank of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Its machine.
    pub machine: MachineId,
    /// What people call it.
    pub name: String,
    /// Whether it is connected.
    pub connected: bool,
    /// How far it has come in this life: `away`, `assigned`, `forming`, `loading`, `ready`, `ended`.
    pub phase: String,
    /// Where its time went in this life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<GroupTelemetry>,
    /// How the group stands, seen from this rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Box<GroupStanding>>,
}
