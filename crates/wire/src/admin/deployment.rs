//! The operator's bodies about deployments: `/api/deployments`, `/api/preview`, `/api/planner`.
//!
//! A spec is JSON here: what it may say is known to whoever decides about it.

use base::{Epoch, InstanceId, MachineId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET /api/deployments`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentList {
    /// `enforce`, `shadow` or `off`.
    pub mode: String,
    /// By name.
    pub deployments: Vec<DeploymentStatus>,
}

/// A deployment, and how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// Its name.
    pub name: String,
    /// Grows with each change of the spec.
    pub generation: u64,
    /// What should run.
    pub spec: Value,
    /// What is so of it.
    pub conditions: Vec<ConditionStatus>,
    /// Its instances.
    pub instances: Vec<DeployedInstance>,
    /// The last errors of ranks, each with its machine's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

impl DeploymentStatus {
    /// The condition of that type.
    pub fn condition(&self, kind: &str) -> Option<&ConditionStatus> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionStatus {
    /// `Placed`, `Ready`, `Degraded`, `Progressing`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// Why, in one word for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` last changed, in microseconds since 1970.
    pub last_transition_unix_us: u64,
    /// Of which generation this is said.
    pub observed_generation: u64,
}

/// One instance of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedInstance {
    /// Its identity; stays through its lives.
    pub instance: InstanceId,
    /// Which assignment its machines have.
    pub epoch: Epoch,
    /// `assigned`, `ready`, `retrying`.
    pub phase: String,
    /// Whether it takes requests.
    pub serves: bool,
    /// Since when it is in this phase, in microseconds since 1970.
    pub since_unix_us: u64,
    /// Failures in a row on these machines.
    pub failures: u32,
    /// By rank.
    pub ranks: Vec<DeployedRank>,
}

/// One rank of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedRank {
    /// Its machine.
    pub machine: MachineId,
    /// What people call it.
    pub name: String,
    /// Whether it is connected.
    pub connected: bool,
    /// `told`, `fetching`, `draining`, `loading`, `ready`.
    pub phase: String,
    /// Of this phase, in hundredths.
    pub percent: u8,
    /// Where it takes its model from other machines: how far that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<DeployedFetch>,
    /// The first layer that it holds, and the one after the last.
    pub layers: [usize; 2],
}

/// How far a machine is with taking a model from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedFetch {
    /// Bytes that it has.
    pub done_bytes: u64,
    /// Of so many; 0 where that is not known yet.
    pub bytes: u64,
    /// As of late.
    pub bytes_per_s: u64,
}

/// What a change was answered: it is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Of which deployment.
    pub name: String,
    /// Its generation now; the last one, where it was deleted.
    pub generation: u64,
    /// `created`, `changed`, `unchanged`, `deleted`.
    pub outcome: String,
}

/// `POST /api/deployments/{name}/scale`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// As in a spec: a number, or floor, ceiling and priority.
    pub replicas: Value,
}

/// `GET /api/deployments/{name}/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentHistory {
    /// Of which deployment; one that was deleted has its history, too.
    pub name: String,
    /// Oldest first: the last 256.
    pub events: Vec<DeploymentEvent>,
}

/// A line of history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentEvent {
    /// When, in microseconds since 1970.
    pub at_unix_us: u64,
    /// At which generation of the spec.
    pub generation: u64,
    /// In words.
    pub what: String,
}

/// `POST /api/preview`: what would be, if.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preview {
    /// A deployment that is not there, or is to be otherwise; as things are, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Value>,
}

/// `PUT /api/planner`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPlanner {
    /// `enforce`: plans are followed. `shadow`: they are made and told. `off`: none are made.
    pub mode: String,
}

/// `GET /api/planner`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannerStatus {
    /// `enforce`, `shadow` or `off`.
    pub mode: String,
    /// What the last plan would do, where nobody does it.
    pub unfollowed: Vec<String>,
    /// What machines said of assignments that was not so.
    pub strays: u64,
    /// The largest epoch that an assignment had.
    pub epoch: Epoch,
}
