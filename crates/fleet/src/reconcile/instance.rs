//! One instance of a deployment, as the controller sees it.

use std::ops::Range;

use base::{Bytes, Epoch, InstanceId, MachineId, Micros};

use crate::deployment::Spec;

/// How long ranks may take from their assignment until they are ready, while nothing comes from other machines.
pub(super) const LOAD_MAX: Micros = Micros::from_secs(900);

/// How far a machine is with taking a model's files from others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes that it has.
    pub done: u64,
    /// Of so many; 0 where that is not known yet.
    pub of: u64,
    /// As of late.
    pub bytes_per_s: u64,
}

impl Fetched {
    /// In hundredths.
    pub fn percent(&self) -> u8 {
        let of = u128::from(self.of.max(1));
        u8::try_from((u128::from(self.done) * 100 / of).min(100)).unwrap_or(100)
    }
}

impl std::fmt::Display for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.of == 0 {
            return f.write_str("asks who has it");
        }
        write!(f, "{} of {}", Bytes(self.done), Bytes(self.of))?;
        let left = self.of.saturating_sub(self.done);
        match left.checked_div(self.bytes_per_s) {
            Some(seconds) => write!(f, ", {}/s, {seconds} s left", Bytes(self.bytes_per_s)),
            None => Ok(()),
        }
    }
}

/// How far one rank has come with the current assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankState {
    /// It was told, or will be when its machine is back.
    Told,
    /// It unloads what it had; in hundredths.
    Draining(u8),
    /// It takes the model's files from other machines.
    Fetching(Fetched),
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

/// What an instance's machines are told of what to hold.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Terms {
    /// Which model.
    pub model: String,
    /// Tokens of a context; the model's where absent, 8192 at most.
    pub context: Option<u32>,
    /// Requests computed together.
    pub max_batch: u32,
    /// Whether its machines hold no other model.
    pub exclusive: bool,
}

impl Terms {
    /// What a spec asks for.
    pub fn of(spec: &Spec) -> Self {
        Self {
            model: spec.model.clone(),
            context: spec.context,
            max_batch: spec.max_batch,
            exclusive: spec.exclusive,
        }
    }

    /// Whether what was told as `self` must be told again where `spec` is wanted.
    pub(super) fn differ(&self, spec: &Spec) -> bool {
        self.model != spec.model || self.context != spec.context || self.max_batch != spec.max_batch
    }
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
    /// What its machines were told last.
    pub terms: Terms,
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
    /// Lives in a row that computed and lost a rank from outside.
    pub losses: u32,
    /// Whether the life before this one was such a life: it counts as a failure where this one does not come to compute.
    pub excused: bool,
    /// Since when some rank's machine has no connection.
    pub away_since: Option<Micros>,
    /// Whether some rank's machine is away for so long that another place is looked for.
    pub doubted: bool,
}

impl Instance {
    /// Whether all its ranks have said that they compute.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether it takes requests: all its ranks compute, and their machines are here.
    pub fn serves(&self) -> bool {
        self.is_ready() && self.away_since.is_none()
    }

    /// When time alone changes something.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        match self.phase {
            Phase::Assigned => Some(self.since + LOAD_MAX),
            Phase::Ready => None,
            Phase::Retrying(at) => Some(at),
        }
    }
}
