//! What coordinator and managed providers say about deployments (capability [`ASSIGNMENTS`]): what a machine could hold,
//! what it is to hold, how far it is with that, and for how long without a word.
//!
//! ```text
//! coordinator                       managed provider
//!                 <----------------  register (managed, holds)   on each connection, and whenever instances change
//!                 <----------------  inventory                   after the first register, and when it changes
//!   assign        ---------------->            hold this model whole, alone
//!                 <----------------  assignment_report           draining, loading (percent), ready; failed or refused
//!   renew_leases  ---------------->            go on holding these for so long
//!   unassign      ---------------->            finish what you have, then give its memory back
//!                 <----------------  assignment_report           draining (percent), gone
//! ```
//!
//! A machine becomes a rank of a group through `assign_group`; what it holds as one is among `holds`, too.

use std::fmt;
use std::marker::PhantomData;

use base::{Bytes, Epoch, InstanceId, ModelName};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::group::GroupAddress;
use super::probe::PEER_ADDRESSES_MAX;

/// The capability of a provider that takes assignments, and of a coordinator that makes them.
pub const ASSIGNMENTS: &str = "assignments";

/// Most ranks that one machine holds, and most leases in one message.
pub const HELD_MAX: usize = 64;
/// Most models in an inventory; a machine with more names those that it found last no more, and says how many.
pub const MODELS_ON_DISK_MAX: usize = 256;
/// Longest configuration of a model in an inventory: real ones have a few KiB. All of them together must fit into a
/// control message.
pub const MODEL_CONFIG_BYTES_MAX: usize = 64 << 10;
/// Most devices of a machine.
pub const DEVICES_MAX: usize = 64;
/// Most labels of a machine.
pub const LABELS_MAX: usize = 64;
/// Longest key or value of a label.
pub const LABEL_BYTES_MAX: usize = 128;

/// Hold a model whole, alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The instance that it makes; stays through its lives.
    pub instance: InstanceId,
    /// Which assignment. The same again is no news; older ones than a machine has seen of the instance are refused.
    pub epoch: Epoch,
    /// The place: 0, for a machine that holds all of it.
    pub rank: u32,
    /// The model, by the name in the machine's inventory, which is also what requests call it.
    pub model: ModelName,
    /// Tokens of a context, prompt and answer together; 0 leaves it to the machine.
    #[serde(default)]
    pub context: u32,
    /// Requests computed together, for each of which the cache holds a whole context; 0 leaves it to the machine.
    #[serde(default)]
    pub max_batch: u32,
    /// Whether the machine holds nothing else meanwhile (A1).
    #[serde(default = "yes")]
    pub exclusive: bool,
    /// How long to hold it without a renewal; 0 is for ever.
    #[serde(default)]
    pub lease_us: u64,
}

fn yes() -> bool {
    true
}

/// Hold it no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unassignment {
    /// Which instance.
    pub instance: InstanceId,
    /// Which assignment; older ones end too.
    pub epoch: Epoch,
    /// In words.
    pub reason: String,
    /// How long what is in flight may take to finish; then it ends, to be gone on with elsewhere (A5).
    #[serde(default)]
    pub drain_us: u64,
}

/// What is still wanted of a machine. What is not listed is not ended by it: its lease runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// From now on, for so long; 0 is for ever.
    pub lease_us: u64,
    /// Which: [`HELD_MAX`] at most.
    #[serde(deserialize_with = "at_most::<_, _, HELD_MAX>")]
    pub leases: Vec<Lease>,
}

/// One assignment that is still wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Which instance.
    pub instance: InstanceId,
    /// Which assignment.
    pub epoch: Epoch,
}

/// A rank that a machine holds: what it answers for in its memory, whoever wanted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which assignment.
    pub epoch: Epoch,
    /// Its place.
    pub rank: u32,
    /// Of how many.
    pub ranks: u32,
    /// Which model.
    pub model: ModelName,
    /// Whether it computes; else it is on its way.
    pub ready: bool,
}

/// How far a machine is with an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentReport {
    /// Which instance.
    pub instance: InstanceId,
    /// Which assignment.
    pub epoch: Epoch,
    /// Which place.
    pub rank: u32,
    /// How far.
    pub phase: AssignmentPhase,
    /// Of this phase, in hundredths: 100 at most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub percent: u8,
    /// In words: why, where it failed or was refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

/// How far a machine is with an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentPhase {
    /// Before it loads: what the machine held is finished, and its memory given back. After the assignment's end: what
    /// is in flight is finished.
    Draining,
    /// It reads its weights.
    Loading,
    /// It takes requests.
    Ready,
    /// It is over, and its memory given back.
    Gone,
    /// It cannot be done: the detail says why. Nothing of it is held any more.
    Failed,
    /// It is not taken, and nothing was touched: the detail says why.
    Refused,
    /// A phase that this build does not know.
    #[serde(other)]
    Unknown,
}

/// What a managed machine has to hold models with. Replaces what it said before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// For selectors: [`LABELS_MAX`] at most; of two with one key the last counts.
    #[serde(default, deserialize_with = "at_most::<_, _, LABELS_MAX>")]
    pub labels: Vec<Label>,
    /// What computes; at least one.
    #[serde(deserialize_with = "at_most::<_, _, DEVICES_MAX>")]
    pub devices: Vec<DeviceFacts>,
    /// Read from the disk, a second; 0 where not measured.
    #[serde(default)]
    pub disk_bytes_per_s: u64,
    /// Downloaded, a second; 0: it downloads nothing.
    #[serde(default)]
    pub download_bytes_per_s: u64,
    /// Models whose files are whole here, by name: [`MODELS_ON_DISK_MAX`] at most.
    #[serde(deserialize_with = "at_most::<_, _, MODELS_ON_DISK_MAX>")]
    pub models: Vec<ModelOnDisk>,
    /// Models that were found and are not among these, for want of room in this message.
    #[serde(default)]
    pub models_left_out: u32,
    /// Where other machines can try whether they reach this one; none where it is in no groups.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "at_most::<_, _, PEER_ADDRESSES_MAX>"
    )]
    pub probe_addresses: Vec<GroupAddress>,
    /// Bytes that models taken from other machines' disks may fill here; 0: it takes none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fetch_room: Bytes,
}

/// What selectors of deployments look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// [`LABEL_BYTES_MAX`] at most.
    #[serde(deserialize_with = "text::<_, LABEL_BYTES_MAX>")]
    pub key: String,
    /// As long.
    #[serde(deserialize_with = "text::<_, LABEL_BYTES_MAX>")]
    pub value: String,
}

/// A device and what it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// As the machine calls it: `cpu0`.
    pub name: String,
    /// What models may take here, whatever holds it now.
    pub memory: Bytes,
    /// Weights read, a second, as measured; 0 where not.
    #[serde(default)]
    pub read_bytes_per_s: u64,
    /// Floating-point operations in prefill, a second, as measured; 0 where not.
    #[serde(default)]
    pub flops: u64,
    /// Weights read by all of its host's cores together, a second: what providers that stand on one host share. 0 where it
    /// was not measured.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub host_read_bytes_per_s: u64,
}

/// A model whose files a machine has: what a planner must know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOnDisk {
    /// What it is called here and by requests.
    pub name: ModelName,
    /// Its weights, as they lie in memory when it is held whole.
    pub memory_bytes: Bytes,
    /// Its weights on the disk.
    pub disk_bytes: Bytes,
    /// How many weights it has: with `memory_bytes`, the bits that one takes.
    pub parameters: u64,
    /// Columns that share a scale, and are not cut.
    pub grain: u32,
    /// Its `config.json`, as its family reads it: [`MODEL_CONFIG_BYTES_MAX`] at most.
    #[serde(deserialize_with = "text::<_, MODEL_CONFIG_BYTES_MAX>")]
    pub config: String,
    /// Measured here, one request alone, generated tokens in a thousand seconds; 0 where it has not run yet.
    #[serde(default)]
    pub decode_tokens_per_ks: u64,
    /// Measured here, one prompt alone, prompt tokens in a thousand seconds; 0 where it has not run yet.
    #[serde(default)]
    pub prefill_tokens_per_ks: u64,
    /// Whether other machines may take its files from here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lent: bool,
}

/// A list of at most `N`: longer ones are refused before they are read whole.
pub(super) fn at_most<'de, D, T, const N: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct AtMost<T, const N: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for AtMost<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of {N} at most")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut taken = Vec::new();
            while let Some(next) = list.next_element()? {
                if taken.len() == N {
                    return Err(A::Error::invalid_length(N + 1, &self));
                }
                taken.push(next);
            }
            Ok(taken)
        }
    }
    deserializer.deserialize_seq(AtMost::<T, N>(PhantomData))
}

/// A text of at most `N` bytes.
pub(super) fn text<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<String, D::Error> {
    struct Text<const N: usize>;
    impl<const N: usize> Visitor<'_> for Text<N> {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a text of {N} bytes at most")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
            match text.len() <= N {
                true => Ok(text.to_owned()),
                false => Err(E::invalid_length(text.len(), &self)),
            }
        }
    }
    deserializer.deserialize_str(Text::<N>)
}
