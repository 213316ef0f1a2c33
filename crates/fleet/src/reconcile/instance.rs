//! One instance of a deployment, as the controller sees it.

use std::ops::Range;

use base::{Epoch, InstanceId, MachineId, Micros};

use super::{AWAY_MAX, LOAD_MAX};

/// How far one rank has come with the current assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankState {
    /// It was told, or will be when its machine is back.
    Told,
    /// It unloads what it had; in hundredths.
    Draining(u8),
    /// It reads its weights; in hundredths.
    Loading(u8),
    /// It computes.
    Ready,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its ranks were told.
    Assigned,
    /// All its ranks are ready.
    Ready,
    /// It failed; the next try in place is at this time.
    Retrying(Micros),
}

/// One instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Stays through its lives.
    pub id: InstanceId,
    /// Whose.
    pub deployment: String,
    /// Machine and device of each rank.
    pub places: Vec<(MachineId, u16)>,
    /// How the model is divided.
    pub stages: Vec<(Range<usize>, Vec<u32>)>,
    /// How far each rank is.
    pub ranks: Vec<RankState>,
    /// Which assignment its ranks have.
    pub epoch: Epoch,
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub since: Micros,
    /// When it was placed.
    pub placed: Micros,
    /// Failures in a row on these machines.
    pub failures: u32,
    /// Since when some rank's machine has no connection.
    pub away_since: Option<Micros>,
}

impl Instance {
    /// Whether it takes requests.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// When time alone changes something.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        let own = match self.phase {
            Phase::Assigned => Some(self.since + LOAD_MAX),
            Phase::Ready => None,
            Phase::Retrying(at) => Some(at),
        };
        own.into_iter().chain(self.away_since.map(|since| since + AWAY_MAX)).min()
    }
}
