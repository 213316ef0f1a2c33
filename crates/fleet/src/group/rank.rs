//! One rank of a group, as the coordinator sees it.

use base::{Incarnation, MachineId, Micros};
use wire::control::{GroupAddress, GroupStanding, GroupTelemetry};

/// How far a rank has come in this life. Ordered: what is behind never overtakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RankPhase {
    /// Told of its rank, or not even that.
    Assigned,
    /// It meets the others.
    Forming,
    /// It reads its weights.
    Loading,
    /// It computes.
    Ready,
    /// It stopped.
    Ended,
}

/// A rank.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Whose machine.
    pub machine: MachineId,
    /// Which start of it is connected; `None`: it is away.
    pub incarnation: Option<Incarnation>,
    /// Which start of it was assigned to the current life.
    pub assigned: Option<Incarnation>,
    /// Since when its machine is not connected.
    pub away_since: Option<Micros>,
    /// Where it is dialled in this life.
    pub addresses: Option<Vec<GroupAddress>>,
    /// How far it has come in this life.
    pub phase: RankPhase,
    /// Where its time went in this life.
    pub telemetry: Option<GroupTelemetry>,
    /// How the group stands, as it says.
    pub standing: Option<Box<GroupStanding>>,
}

impl Seat {
    pub(super) fn new(machine: MachineId) -> Self {
        Self {
            machine,
            incarnation: None,
            assigned: None,
            away_since: None,
            addresses: None,
            phase: RankPhase::Assigned,
            telemetry: None,
            standing: None,
        }
    }

    /// A new life: nothing of the former one is left.
    pub(super) fn begin(&mut self) {
        *self = Self { incarnation: self.incarnation, assigned: self.incarnation, ..Self::new(self.machine) };
    }

    /// Takes in what its rank says of how the group stands; words are cut to what people read.
    pub(super) fn stands(&mut self, mut standing: Box<GroupStanding>, ranks: usize) {
        let short =
            |text: &str, most| text.chars().filter(|c| !c.is_control()).take(most).collect::<String>();
        standing.mode = short(&standing.mode, 20);
        standing.fallback = short(&standing.fallback, 300);
        standing.dialled.truncate(ranks);
        self.standing = Some(standing);
    }

    /// For people.
    pub fn shown(&self) -> &'static str {
        if self.incarnation.is_none() {
            return "away";
        }
        match self.phase {
            RankPhase::Assigned => "assigned",
            RankPhase::Forming => "forming",
            RankPhase::Loading => "loading",
            RankPhase::Ready => "ready",
            RankPhase::Ended => "ended",
        }
    }
}
