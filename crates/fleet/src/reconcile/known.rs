//! A machine as the controller knows it: whether it is here, what it was told, and for how long it may be away.

use base::{Epoch, Incarnation, InstanceId, Micros};

/// How long a machine may be without its connection before another is looked for. A provider whose connection broke dials
/// again within 200 ms; one that is not back by then is gone more often than not.
const DOUBT: Micros = Micros::from_millis(500);
/// How long it may be away before what it holds counts as lost, though there was no other place for it.
const AWAY_MAX: Micros = Micros::from_secs(10);
/// The same two after a start of the coordinator, when every machine is away: providers dial again every 15 s at the latest.
const DOUBT_ADOPTED: Micros = Micros::from_secs(20);
const AWAY_MAX_ADOPTED: Micros = Micros::from_secs(60);
/// A machine, as the controller knows it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) incarnation: Option<Incarnation>,
    /// Which start of it was here last.
    pub(super) last: Option<Incarnation>,
    /// It has not been here since the coordinator started.
    pub(super) adopted: bool,
    pub(super) away_since: Micros,
    pub(super) resting_until: Micros,
    /// Why it rests.
    pub(super) resting: String,
    /// Whose instance it was that failed here, or was refused.
    pub(super) resting_for: String,
    /// What it was told to hold.
    pub(super) told: Vec<Told>,
    /// What it was told to hold no more, and has not said to be over.
    pub(super) leaving: Vec<Told>,
}

/// An instance, which assignment, which rank.
pub(super) type Told = (InstanceId, Epoch, u32);

/// Assignments of a machine that are on their way out and remembered as such.
pub(super) const LEAVING_MAX: usize = 64;

impl Known {
    pub(super) fn new(name: String, away_since: Micros) -> Self {
        Self {
            name,
            incarnation: None,
            last: None,
            adopted: false,
            away_since,
            resting_until: Micros::ZERO,
            resting: String::new(),
            resting_for: String::new(),
            told: Vec::new(),
            leaving: Vec::new(),
        }
    }

    /// Whether it is away, for longer than one would be that only dials again.
    pub(super) fn is_doubtful(&self, now: Micros) -> bool {
        let patience = if self.adopted { DOUBT_ADOPTED } else { DOUBT };
        self.incarnation.is_none() && now >= self.away_since + patience
    }

    /// Whether it is away for so long that what it holds is given up.
    pub(super) fn is_lost(&self, now: Micros) -> bool {
        let patience = if self.adopted { AWAY_MAX_ADOPTED } else { AWAY_MAX };
        self.incarnation.is_none() && now >= self.away_since + patience
    }

    /// When time alone makes it doubtful, or lost: one on which instances have places.
    pub(super) fn next_deadline(&self, now: Micros) -> Option<Micros> {
        let (doubt, lost) = if self.adopted { (DOUBT_ADOPTED, AWAY_MAX_ADOPTED) } else { (DOUBT, AWAY_MAX) };
        let away = self.incarnation.is_none();
        let next = if self.is_doubtful(now) { self.away_since + lost } else { self.away_since + doubt };
        away.then_some(next)
    }
}
