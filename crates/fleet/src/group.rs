//! The life of one group: which machines are its ranks, how far each has come, when it is torn down and formed again.
//!
//! A state machine without a clock: whatever happens is an [`Input`], whatever must be done an [`Effect`], and the order
//! in which things happen does not matter, because every input ends in one look at the whole state ([`Group::reconcile`]).
//! A life has a number, its epoch, that only grows. A message about another life changes nothing, so that a late word of
//! a lost rank can neither revive nor kill the next life.
//!
//! ```text
//! waiting --all machines are here--> forming --every rank has a port--> loading --every rank is ready--> ready
//!    ^                                  |                                  |                              |
//!    |                                  +---------- a rank is lost, ends, or takes too long --------------+
//!    |                                                               v
//!    +----------------- a machine is away ------------------- re-forming (a pause that grows with each fault)
//! any --removed--> down; ready is called degraded while a rank's machine has no connection to the coordinator
//! ```

mod event;
mod rank;

use std::collections::VecDeque;

use base::{Epoch, Incarnation, MachineId, Micros};
use wire::control::{GroupPhase, GroupReport, GroupTelemetry};

use event::Blame;
pub use event::{Effect, Input};
pub use rank::{RankPhase, Seat};

/// How long a group may take from assignment to the last rank's port.
const PORTS_US_MAX: Micros = Micros::from_secs(20);
/// How long its ranks may take from there until all are ready: meeting, and reading a large model from a slow disk.
const LOAD_US_MAX: Micros = Micros::from_secs(900);
/// The pause before the first new life.
const PAUSE_FIRST: Micros = Micros::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Micros = Micros::from_secs(30);
/// Lives that ended in a fault and are remembered.
const PAST_MAX: usize = 8;
/// A life that was ready for so long is healthy: pauses begin again at the shortest.
const HEALTHY: Micros = Micros::from_secs(30);
/// How long a rank's machine may be without its connection to the coordinator while its group goes on: a rank that is
/// lost to the others too is reported by them long before.
const AWAY_MAX: Micros = Micros::from_secs(10);

/// Where a group is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Some of its machines are not connected.
    Waiting,
    /// Its machines have been told, and say where they are dialled.
    Forming,
    /// They meet, and read their weights.
    Loading,
    /// It computes.
    Ready,
    /// A life has ended in a fault; the next begins at this time.
    Reforming(Micros),
    /// Removed for good.
    Down,
}

impl Phase {
    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Forming => "forming",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Reforming(_) => "re-forming",
            Self::Down => "down",
        }
    }
}

/// A life that ended in a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// Which.
    pub epoch: Epoch,
    /// Who is to blame, and for what.
    pub fault: String,
    /// How far it had come.
    pub phase: &'static str,
    /// Since when.
    pub since: Micros,
    /// When it ended.
    pub ended: Micros,
}

/// One group.
#[derive(Debug, Clone)]
pub struct Group {
    seats: Vec<Seat>,
    epoch: Epoch,
    phase: Phase,
    since: Micros,
    /// Faults in a row without a healthy life between them.
    failures: u32,
    faults: u64,
    last_fault: String,
    /// The last lives that ended in a fault, newest first.
    past: VecDeque<Past>,
    now: Micros,
    /// It has one life: whoever made it decides about the next.
    once: bool,
    /// It stood before anybody here knew of it, and its machines have not come back yet.
    adopted: bool,
}

/// How long machines of a group that stood before the coordinator started may take to come back: they dial again every
/// 15 s at the latest.
const ADOPTED_AWAY_MAX: Micros = Micros::from_secs(60);

impl Group {
    /// A group of these machines, in the order of ranks; no machine may come twice, and there are at least two.
    ///
    /// # Panics
    /// Where that is not so: the caller has checked what an operator said.
    pub fn new(machines: &[MachineId], now: Micros) -> Self {
        assert!(machines.len() >= 2, "a group has at least two ranks");
        let seats: Vec<Seat> = machines.iter().map(|&machine| Seat::new(machine)).collect();
        for (rank, seat) in seats.iter().enumerate() {
            assert!(
                seats[..rank].iter().all(|s| s.machine != seat.machine),
                "a machine is one rank of a group"
            );
        }
        Self {
            seats,
            epoch: Epoch(0),
            phase: Phase::Waiting,
            since: now,
            failures: 0,
            faults: 0,
            last_fault: String::new(),
            past: VecDeque::new(),
            now,
            once: false,
            adopted: false,
        }
    }

    /// A group with one life, of this epoch: after a fault it is down.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn once(machines: &[MachineId], epoch: Epoch, now: Micros) -> Self {
        // The life that begins is the one after the last.
        Self { once: true, epoch: Epoch(epoch.0.saturating_sub(1)), ..Self::new(machines, now) }
    }

    /// With what went wrong in the life `before` it, and in those before that.
    #[must_use]
    pub fn after(self, before: Self) -> Self {
        let Self { faults, last_fault, past, .. } = before;
        Self { faults, last_fault, past, ..self }
    }

    /// One that was told to stand before the coordinator started: its machines come back with their ranks.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn adopted(machines: &[MachineId], epoch: Epoch, now: Micros) -> Self {
        let mut group = Self { once: true, adopted: true, epoch, ..Self::new(machines, now) };
        for seat in &mut group.seats {
            seat.phase = RankPhase::Ready;
            seat.away_since = Some(now);
        }
        group.enter(Phase::Ready);
        group
    }

    /// Whether some machine of a group that stood before has not come back yet.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Which life it is in; 0 before the first.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where in it.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Since when.
    pub fn since(&self) -> Micros {
        self.since
    }

    /// Its ranks.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// How many lives ended in a fault, and the last one in words.
    pub fn faults(&self) -> (u64, &str) {
        (self.faults, &self.last_fault)
    }

    /// The last lives that ended in a fault, newest first.
    pub fn past(&self) -> impl Iterator<Item = &Past> {
        self.past.iter()
    }

    /// Whether `machine` may offer rank `rank` of life `epoch` for requests (E3, A3): only rank 0 of a life that stands.
    pub fn admits(
        &self,
        machine: MachineId,
        epoch: Epoch,
        rank: u32,
        ranks: u32,
    ) -> Result<(), &'static str> {
        if ranks as usize != self.seats.len() {
            return Err("its number of ranks is not the group's");
        }
        if self.rank_of(machine) != Some(rank) {
            return Err("its rank is not the one that was assigned");
        }
        if epoch != self.epoch {
            return Err("its epoch is not the group's");
        }
        if rank != 0 {
            return Err("only rank 0 of a group is offered");
        }
        match self.phase {
            Phase::Loading | Phase::Ready => Ok(()),
            _ => Err("its group does not stand"),
        }
    }

    /// Whether requests may go to it: every rank of the current life has said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Why it is not ready, for people.
    pub fn detail(&self) -> String {
        let list = |wanted: fn(&Seat) -> bool| {
            let ranks = self.seats.iter().enumerate().filter(|(_, seat)| wanted(seat));
            ranks.map(|(rank, _)| rank.to_string()).collect::<Vec<_>>().join(", ")
        };
        match self.phase {
            Phase::Waiting => {
                format!("the machines of ranks {} are not connected", list(|s| s.incarnation.is_none()))
            }
            Phase::Forming => format!("ranks {} have not answered", list(|s| s.addresses.is_none())),
            Phase::Loading => format!("ranks {} are not ready", list(|s| s.phase != RankPhase::Ready)),
            Phase::Reforming(_) => format!("after a fault: {}", self.last_fault),
            Phase::Ready | Phase::Down => match list(|s| s.incarnation.is_none()) {
                away if away.is_empty() || self.phase == Phase::Down => String::new(),
                away => format!("the machines of ranks {away} are not connected to the coordinator"),
            },
        }
    }

    /// When time alone changes something.
    pub fn next_deadline(&self) -> Option<Micros> {
        let own = self.phase_deadline();
        let away = self.seats.iter().filter_map(|seat| seat.away_since).min().filter(|_| self.is_alive());
        own.into_iter().chain(away.map(|since| since + self.patience())).min()
    }

    fn patience(&self) -> Micros {
        if self.adopted { ADOPTED_AWAY_MAX } else { AWAY_MAX }
    }

    fn phase_deadline(&self) -> Option<Micros> {
        match self.phase {
            Phase::Forming => Some(self.since + PORTS_US_MAX),
            Phase::Loading => Some(self.since + LOAD_US_MAX),
            Phase::Reforming(at) => Some(at),
            Phase::Waiting | Phase::Ready | Phase::Down => None,
        }
    }

    /// Where in its life it is, in a word: a group that stands while a rank's machine is away is degraded.
    pub fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Ready if self.seats.iter().any(|seat| seat.incarnation.is_none()) => "degraded",
            _ => self.phase.name(),
        }
    }

    fn rank_of(&self, machine: MachineId) -> Option<u32> {
        let rank = self.seats.iter().position(|seat| seat.machine == machine)?;
        u32::try_from(rank).ok()
    }

    /// Takes in what happened, and says what to do.
    pub fn handle(&mut self, now: Micros, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        if self.phase == Phase::Down {
            return;
        }
        match input {
            Input::Tick => {}
            Input::MachineUp { machine, incarnation } => self.machine_up(machine, incarnation, effects),
            Input::MachineGone { machine } => self.machine_gone(machine),
            Input::Ports { machine, epoch, rank, addresses } => {
                if let Some(seat) = self.believed(machine, epoch, rank, effects) {
                    seat.addresses = Some(addresses);
                }
            }
            Input::Report { machine, report } => self.report(machine, report, effects),
            Input::Remove => {
                self.unassign_all("the group was removed", effects);
                effects.push(Effect::Withdraw);
                self.enter(Phase::Down);
                return;
            }
        }
        self.reconcile(effects);
    }

    /// The seat that a message is about, where its (machine, epoch, rank) are those of the current life.
    fn believed(
        &mut self,
        machine: MachineId,
        epoch: Epoch,
        rank: u32,
        effects: &mut Vec<Effect>,
    ) -> Option<&mut Seat> {
        let what = match self.rank_of(machine) {
            None => Some("the machine is no rank of it"),
            Some(own) if own != rank => Some("the machine is another rank of it"),
            Some(_) if epoch != self.epoch => Some("another epoch is meant"),
            Some(_) if !self.is_alive() => Some("its life is over"),
            Some(_) => None,
        };
        if let Some(what) = what {
            effects.push(Effect::Stray { machine, what });
            return None;
        }
        self.seats.get_mut(rank as usize)
    }

    fn is_alive(&self) -> bool {
        matches!(self.phase, Phase::Forming | Phase::Loading | Phase::Ready)
    }

    fn machine_up(&mut self, machine: MachineId, incarnation: Incarnation, effects: &mut Vec<Effect>) {
        let Some(rank) = self.rank_of(machine) else { return };
        let seat = &mut self.seats[rank as usize];
        seat.incarnation = Some(incarnation);
        seat.away_since = None;
        if self.adopted {
            seat.assigned.get_or_insert(incarnation);
            self.adopted = self.seats.iter().any(|seat| seat.assigned.is_none());
        }
        // A machine that started again has no rank of the life that it was in; one that only connected again has.
        if self.is_alive() && self.seats[rank as usize].assigned != Some(incarnation) {
            self.fault(Blame::lost(rank), "its provider started again".to_owned(), effects);
        }
    }

    fn machine_gone(&mut self, machine: MachineId) {
        let Some(rank) = self.rank_of(machine) else { return };
        let seat = &mut self.seats[rank as usize];
        seat.incarnation = None;
        seat.away_since = Some(self.now);
    }

    fn report(&mut self, machine: MachineId, report: GroupReport, effects: &mut Vec<Effect>) {
        let ranks = self.seats.len();
        let Some(seat) = self.believed(machine, report.epoch, report.rank, effects) else { return };
        if let Some(telemetry) = report.telemetry {
            seat.telemetry = Some(telemetry);
        }
        if let Some(standing) = report.standing {
            seat.stands(standing, ranks);
        }
        match report.phase {
            GroupPhase::Forming => seat.phase = seat.phase.max(RankPhase::Forming),
            GroupPhase::Loading => seat.phase = seat.phase.max(RankPhase::Loading),
            GroupPhase::Ready => seat.phase = RankPhase::Ready,
            GroupPhase::Ended => {
                seat.phase = RankPhase::Ended;
                let culprit = report.culprit.filter(|&rank| (rank as usize) < ranks);
                let detail = report.detail.chars().filter(|c| !c.is_control()).take(300).collect();
                // Who names itself says what is wrong; whom others name has gone without a word.
                let is_loss = culprit.is_some_and(|rank| rank != report.rank);
                self.fault(Blame { culprit, is_loss }, detail, effects);
            }
            GroupPhase::Unknown => effects.push(Effect::Stray { machine, what: "an unknown phase" }),
        }
    }

    /// The one look at everything: what follows from the state as it is now.
    fn reconcile(&mut self, effects: &mut Vec<Effect>) {
        let patience = self.patience();
        let gone = |seat: &Seat| seat.away_since.is_some_and(|since| self.now >= since + patience);
        if self.is_alive()
            && let Some(rank) = self.seats.iter().position(gone)
        {
            let detail = "its provider is not connected to the coordinator any more".to_owned();
            return self.fault(Blame::lost(u32::try_from(rank).unwrap_or(u32::MAX)), detail, effects);
        }
        let late = self.phase_deadline().is_some_and(|deadline| self.now >= deadline);
        match self.phase {
            Phase::Waiting => self.begin_if_whole(effects),
            Phase::Reforming(_) if late => {
                self.enter(Phase::Waiting);
                self.begin_if_whole(effects);
            }
            Phase::Forming if self.seats.iter().all(|seat| seat.addresses.is_some()) => {
                effects.push(Effect::Roster);
                self.enter(Phase::Loading);
                self.reconcile(effects);
            }
            Phase::Loading if self.seats.iter().all(|seat| seat.phase == RankPhase::Ready) => {
                self.enter(Phase::Ready);
            }
            Phase::Forming | Phase::Loading if late => {
                let is_behind = |seat: &Seat| match self.phase {
                    Phase::Forming => seat.addresses.is_none(),
                    _ => seat.phase != RankPhase::Ready,
                };
                let rank = self.seats.iter().position(is_behind).and_then(|rank| u32::try_from(rank).ok());
                let detail =
                    format!("not {} in time", if self.phase == Phase::Forming { "reached" } else { "ready" });
                self.fault(Blame { culprit: rank, is_loss: false }, detail, effects);
            }
            _ => {}
        }
    }

    fn begin_if_whole(&mut self, effects: &mut Vec<Effect>) {
        if self.seats.iter().any(|seat| seat.incarnation.is_none()) {
            return;
        }
        self.epoch = Epoch(self.epoch.0 + 1);
        for (rank, seat) in self.seats.iter_mut().enumerate() {
            seat.begin();
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            effects.push(Effect::Assign { machine: seat.machine, rank });
        }
        self.enter(Phase::Forming);
    }

    /// Ends this life: every rank is told, and the next begins after a pause.
    fn fault(&mut self, blame: Blame, detail: String, effects: &mut Vec<Effect>) {
        let Blame { culprit, is_loss } = blame;
        if self.phase == Phase::Ready && self.now.saturating_sub(self.since) >= HEALTHY {
            self.failures = 0;
        }
        let who = culprit.map_or_else(String::new, |rank| format!("rank {rank}: "));
        self.last_fault = format!("{who}{detail}");
        self.faults += 1;
        self.past.truncate(PAST_MAX - 1);
        self.past.push_front(Past {
            epoch: self.epoch,
            fault: self.last_fault.clone(),
            phase: self.phase.name(),
            since: self.since,
            ended: self.now,
        });
        effects.push(Effect::Faulted { epoch: self.epoch, culprit, is_loss, detail });
        let reason = self.last_fault.clone();
        self.unassign_all(&reason, effects);
        effects.push(Effect::Withdraw);
        if self.once {
            return self.enter(Phase::Down);
        }
        let pause = Micros((PAUSE_FIRST.0 << self.failures.min(20)).min(PAUSE_MAX.0));
        self.failures = self.failures.saturating_add(1);
        self.enter(Phase::Reforming(self.now + pause));
    }

    fn unassign_all(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        for seat in &mut self.seats {
            if seat.assigned.take().is_some() {
                let (machine, reason) = (seat.machine, reason.to_owned());
                effects.push(Effect::Unassign { machine, epoch: self.epoch, reason });
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = self.now;
    }

    /// What a rank last said of where its time went.
    pub fn telemetry(&self, rank: usize) -> Option<GroupTelemetry> {
        self.seats.get(rank)?.telemetry
    }
}
