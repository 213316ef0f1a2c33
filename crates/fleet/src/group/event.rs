//! What happens to a group, and what is to be done.

use base::{Epoch, Incarnation, MachineId};
use wire::control::{GroupAddress, GroupReport};

/// What happens to a group.
#[derive(Debug, Clone)]
pub enum Input {
    /// Nothing but time.
    Tick,
    /// A machine is connected, in this start of its provider.
    MachineUp {
        /// Which.
        machine: MachineId,
        /// Which start.
        incarnation: Incarnation,
    },
    /// A machine's connection ended.
    MachineGone {
        /// Which.
        machine: MachineId,
    },
    /// A rank says where it is dialled.
    Ports {
        /// Who says so.
        machine: MachineId,
        /// About which life.
        epoch: Epoch,
        /// Of which rank.
        rank: u32,
        /// Where.
        addresses: Vec<GroupAddress>,
    },
    /// A rank says how far it is.
    Report {
        /// Who says so.
        machine: MachineId,
        /// What.
        report: GroupReport,
    },
    /// An operator wants it gone.
    Remove,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell this machine that it is this rank of this life.
    Assign {
        /// Which machine.
        machine: MachineId,
        /// Its place.
        rank: u32,
    },
    /// Tell every rank's machine where all are dialled.
    Roster,
    /// Tell this machine that its rank is over.
    Unassign {
        /// Which machine.
        machine: MachineId,
        /// Which life.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// What this group served is lost until it is ready again: its requests move.
    Withdraw,
    /// For the log and for the metrics: a life ended in a fault.
    Faulted {
        /// Which life.
        epoch: Epoch,
        /// Who is to blame.
        culprit: Option<u32>,
        /// Whether it went without a word: its process ended, or its links.
        is_loss: bool,
        /// For what.
        detail: String,
    },
    /// Something that a machine said about this group is not so: it changes nothing, and is counted (A3).
    Stray {
        /// Who said it.
        machine: MachineId,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Who ended a life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blame {
    pub(super) culprit: Option<u32>,
    /// It went without a word: its process ended, or its links.
    pub(super) is_loss: bool,
}

impl Blame {
    pub(super) fn lost(rank: u32) -> Self {
        Self { culprit: Some(rank), is_loss: true }
    }
}
