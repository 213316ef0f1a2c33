//! What coordinator and providers say about groups (capability [`GROUPS`]): who is which rank, where each is dialled, how
//! far each has come, and why a group is over.
//!
//! ```text
//! coordinator                      provider of rank r
//!   assign_group  ---------------->            be rank r of this instance's next life
//!                 <----------------  group_ports    others dial me here
//!   group_roster  ---------------->            once all have said so: where each rank is dialled
//!                 <----------------  group_report   forming, loading, ready, ended (with the culprit)
//!   unassign_group --------------->            stop; ranks that are left end with it
//! ```

use base::{Epoch, Incarnation, InstanceId, MachineId, ModelName};
use serde::{Deserialize, Serialize};

/// The capability that a provider needs to be a rank.
pub const GROUPS: &str = "groups";

/// The most ranks that a group may have.
pub const RANKS_MAX: usize = 64;

/// A machine becomes a rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssignGroup {
    /// The instance that the group makes; stays through its lives.
    pub instance: InstanceId,
    /// Which life. A provider ends an older one of the same instance and refuses anything older than it has seen.
    pub epoch: Epoch,
    /// The model, by the name that the provider knows its files under.
    pub model: ModelName,
    /// The machine's place.
    pub rank: u32,
    /// All ranks in order, this one included.
    pub members: Vec<GroupMember>,
    /// `tensor`, `pipeline`, `auto`, or stages x ranks as in `2x2`.
    pub mode: String,
    /// How sums travel: `f32`, `bf16`, `f16`, `int8`.
    pub dtype: String,
    /// How long the members may take to find each other.
    pub form_us_max: u64,
    /// How long a rank may be waited for within a step.
    pub patience_us: u64,
    /// How the model is divided, exactly: a shard map as `model::shard::ShardMap::encode` writes it. Where absent, the
    /// ranks find it from `mode` and their speeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_map: Option<String>,
    /// Tokens of a context, prompt and answer together; 0 leaves it to the machines.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context: u32,
    /// Requests computed together, for each of which the caches hold a whole context; 0 leaves it to the machines.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_batch: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A rank and its machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupMember {
    /// Whose machine.
    pub machine: MachineId,
    /// Which start of its provider.
    pub incarnation: Incarnation,
    /// What people call it.
    pub name: String,
    /// Its Ed25519 public key, base64: what the other ranks pin their links to.
    pub signing_key: String,
    /// How fast it is beside the others; equal numbers divide the model equally.
    pub speed: u32,
}

/// Where a rank is dialled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupPorts {
    /// The group.
    pub instance: InstanceId,
    /// Its life.
    pub epoch: Epoch,
    /// The speaker's rank.
    pub rank: u32,
    /// Where.
    pub addresses: Vec<GroupAddress>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupAddress {
    /// Address and port.
    pub address: core::net::SocketAddr,
    /// The interface that it is on, by the system's name; empty where unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
}

/// Where every rank is dialled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupRoster {
    /// The group.
    pub instance: InstanceId,
    /// Its life.
    pub epoch: Epoch,
    /// By rank.
    pub addresses: Vec<Vec<GroupAddress>>,
}

/// How far a rank has come, or why its group is over for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// The group.
    pub instance: InstanceId,
    /// Its life.
    pub epoch: Epoch,
    /// The speaker's rank.
    pub rank: u32,
    /// How far.
    pub phase: GroupPhase,
    /// Whose fault it is, where the phase is `ended` and some rank's it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub culprit: Option<u32>,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Where its time went so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<GroupTelemetry>,
    /// How the group came to stand, said once its links do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Box<GroupStanding>>,
}

/// How a group stands, seen from one rank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStanding {
    /// How the model is divided: `tensor`, `pipeline`, or stages x ranks as in `2x2`.
    pub mode: String,
    /// Where `auto` was asked for and `tensor` could not be: why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fallback: String,
    /// Tries at links that failed before all of them stood.
    #[serde(default)]
    pub retries: u64,
    /// Where this rank dialled those below it, which dial nobody above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dialled: Vec<GroupLink>,
}

/// Where a rank dialled another: the first address of its order that worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLink {
    /// Whom.
    pub rank: u32,
    /// Where, for sums and activations: the fastest kind of link first.
    pub data: core::net::SocketAddr,
    /// Where, for what is small and urgent: the surest kind first.
    pub control: core::net::SocketAddr,
}

/// How far a rank has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupPhase {
    /// It reads its files, or meets the others.
    Forming,
    /// The group stands and is verified; weights are being read.
    Loading,
    /// It computes steps.
    Ready,
    /// It is no rank any more.
    Ended,
    /// A phase that this build does not know.
    #[serde(other)]
    Unknown,
}

/// Where a rank's time went since its group formed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupTelemetry {
    /// Steps.
    pub steps: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Spent computing.
    pub compute_us: u64,
    /// Spent sealing and opening.
    pub seal_us: u64,
    /// Spent in the system's send and receive calls.
    pub wire_us: u64,
    /// Spent waiting for other ranks.
    pub wait_us: u64,
    /// Sent.
    pub bytes_sent: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Control frames that came and could not be read.
    #[serde(default)]
    pub malformed: u64,
}
