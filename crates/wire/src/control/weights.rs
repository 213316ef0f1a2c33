//! What coordinator and managed providers say about models whose files one machine takes from others. A provider says in
//! its inventory whether it takes and gives; one that says neither is never told.
//!
//! ```text
//! coordinator                       who takes                 who gives
//!   lend          ------------------------------------------->   let these machines have these models
//!   fetch_model   ---------------->   take it from one of these
//!                 <----------------   fetch_report               so many bytes of so many
//!                 <----------------   inventory                  it is on the disk: it can be assigned
//!                 <----------------   assignment_report          or it cannot: failed, refused
//! ```
//! `unassign` with its instance and epoch ends a fetch; what came is kept for the next.

use base::{Bytes, Epoch, InstanceId, MachineId, ModelName};
use serde::{Deserialize, Serialize};

use super::assignment::at_most;
use super::probe::Peer;

/// Most machines that a model is taken from.
pub const HOLDERS_MAX: usize = 8;
/// Most lends of one machine.
pub const LENDS_MAX: usize = 256;

/// Take a model's files from other machines. Said again with other holders it goes on from those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchModel {
    /// The instance that it is for.
    pub instance: InstanceId,
    /// Which assignment follows.
    pub epoch: Epoch,
    /// Of which place.
    pub rank: u32,
    /// The model.
    pub model: ModelName,
    /// Who has it, the best reached first: [`HOLDERS_MAX`] at most.
    #[serde(deserialize_with = "at_most::<_, _, HOLDERS_MAX>")]
    pub holders: Vec<Peer>,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReport {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which assignment.
    pub epoch: Epoch,
    /// Which place.
    pub rank: u32,
    /// On this machine's disk, verified.
    pub done: Bytes,
    /// Of so many; 0 where not known yet.
    pub of: Bytes,
    /// As of late.
    pub bytes_per_s: u64,
}

/// Who may have which models' files. Replaces the list before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lends {
    /// [`LENDS_MAX`] at most.
    #[serde(deserialize_with = "at_most::<_, _, LENDS_MAX>")]
    pub lends: Vec<Lend>,
}

/// One machine, one model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lend {
    /// Which machine.
    pub machine: MachineId,
    /// Its Ed25519 public key, base64: who asks must prove it.
    pub signing_key: String,
    /// Which model.
    pub model: ModelName,
}
