//! One model over several ranks: rank 0 plans and samples as an engine alone does, and every step runs on all of them.
//!
//! The leader's engine has a [`Compute`](crate::compute::Compute) that sends each step's plan to the other ranks, numbered,
//! and then computes its own part of it; [`follow`] is their side. Pages of the KV cache are numbered by the leader's batch
//! and mean the same on every rank, so that sharing of prefixes, preemption and cancelling need nothing more. The first
//! fault ends the group on every rank, which wipes its cache and says who is to blame.

mod follower;
mod golden;
mod leader;
mod local;
mod rank;
mod report;

use std::time::Duration;

use collective::{Cause, Communicator, Fault};
use model::shard::ShardError;
use wire::DecodeError;
use wire::step::{GroupCapacity, GroupSettings, StepError};

use crate::backend::BackendError;
use crate::capacity::CapacityError;

pub use follower::{Following, Traced, follow};
pub use golden::{Golden, GoldenError};
pub(crate) use leader::lead;
pub use local::{DivideError, GroupMode, LocalGroup, LocalGroupError, over_memory};
pub use model::shard::{Member, ShardMap};
pub use report::{GroupReport, StepTimes};

/// How long ranks wait for each other while they load: a large model from a slow disk.
const LOAD_WAIT: Duration = Duration::from_secs(900);
/// How often an idle leader says that it is there.
const HEARTBEAT: Duration = Duration::from_millis(900);
/// How long a follower waits for a word of its leader; several heartbeats.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A rank's place in a group that has formed.
pub struct GroupSeat {
    /// How the model is divided; the same on all ranks.
    pub map: ShardMap,
    /// The way to the other ranks; it knows this one's number.
    pub communicator: Box<dyn Communicator>,
}

/// Why a group is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", .culprit.map_or_else(|| "the group is over: ".to_owned(), |rank| format!("group lost rank {rank}: ")))]
pub struct GroupEnd {
    /// Who is to blame; nobody where the group ended in order.
    pub culprit: Option<usize>,
    /// What happened.
    pub reason: String,
}

impl From<&Fault> for GroupEnd {
    fn from(fault: &Fault) -> Self {
        Self { culprit: fault.culprit, reason: fault.cause.to_string() }
    }
}

/// Why a rank cannot take part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The model cannot be divided so.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// As many ranks in the map as in the group there must be.
    #[error("the shard map is for {map} ranks, and the group has {group}")]
    Ranks {
        /// Of the map.
        map: usize,
        /// Of the group.
        group: usize,
    },
    /// This rank leads and was told to follow, or the other way round.
    #[error("rank {rank} cannot {task}")]
    Task {
        /// This one.
        rank: usize,
        /// What it was told.
        task: &'static str,
    },
    /// The leader wants something else than this rank was told.
    #[error("rank 0 has {what} {theirs}, and this rank {ours}")]
    Disagrees {
        /// What.
        what: &'static str,
        /// Rank 0's.
        theirs: String,
        /// This rank's.
        ours: String,
    },
    /// Bytes of another rank that make no sense.
    #[error("another rank sent what cannot be read")]
    Decode(#[from] DecodeError),
    /// A plan that this rank's model or cache cannot compute.
    #[error("rank 0 sent a plan that cannot be computed here")]
    Plan(#[from] StepError),
    /// A command that is not the next one.
    #[error("command {found} came where {expected} was due: a step may happen only once")]
    Sequence {
        /// Due.
        expected: u64,
        /// Came.
        found: u64,
    },
    /// Weights.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Memory for keys and values.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The computation failed.
    #[error("a step could not be computed: {0}")]
    Step(String),
    /// A rank was lost.
    #[error("{0}")]
    Lost(GroupEnd),
}

impl From<Fault> for GroupError {
    fn from(fault: Fault) -> Self {
        Self::Lost(GroupEnd::from(&fault))
    }
}

impl GroupError {
    /// Ends the group for this reason, where it has not ended already, and says how it ended.
    fn end(&self, communicator: &mut dyn Communicator) -> GroupEnd {
        let rank = communicator.rank();
        if communicator.fault().is_none() {
            communicator.poison(Fault::of(rank, Cause::Ended(crate::backend::in_words(self).into())));
        }
        communicator
            .fault()
            .map_or_else(|| GroupEnd { culprit: Some(rank), reason: self.to_string() }, GroupEnd::from)
    }
}

fn settings_of(bytes: &[u8]) -> Result<GroupSettings, GroupError> {
    Ok(GroupSettings::decode(bytes)?)
}

/// How a model pools, as a group's ranks tell each other.
fn pooling_of(spec: &model::spec::ModelSpec) -> Option<String> {
    let pooling = spec.pooling.as_ref()?;
    Some(format!("{}{}", pooling.rows.name(), if pooling.normalise { ", normalised" } else { "" }))
}

fn capacity_of(bytes: &[u8]) -> Result<GroupCapacity, GroupError> {
    Ok(GroupCapacity::decode(bytes)?)
}
