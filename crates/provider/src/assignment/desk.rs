//! What a managed machine is to hold, decided without a thread or a clock: every order of assignments, endings, loads,
//! drains and leases.
//!
//! ```text
//! assign --> waiting --> loading --> ready --> draining --> unloading --> gone
//!    |          |           +--(unassigned)--> cancelling ----------------^
//!    |          +----------------------------------------------------------+
//!    +--> refused: nothing is touched for it
//! ```
//!
//! Refuse, don't swap: what would not fit beside what is held, or is wanted alone, is refused with the reason; only the
//! coordinator takes something away. A newer epoch of an instance on the same terms goes on with what is loaded.

mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::{Bytes, Epoch, InstanceId, Micros};
use wire::control::{Assignment, AssignmentPhase, AssignmentReport, HELD_MAX, Held};

pub(crate) use record::{Busy, Effect, Input};
use record::{
    Known, Last, Record, State, held_alone, hundredths, lease, refuse, report, report_of, same_terms,
};

/// Instances whose last epoch is remembered: an older word about them is known as such. The oldest that are not held
/// are forgotten.
const KNOWN_MAX: usize = 1024;
/// The longest that attempts may take to finish before memory is given back, whatever the coordinator says: someone waits
/// for the memory.
const DRAIN_MAX: Micros = Micros::from_secs(600);
/// How long they may take when a lease ends: nobody is there to say.
const LEASE_DRAIN: Micros = Micros::from_secs(10);

/// One assignment's life on this machine; never used again.
pub(crate) type Life = u64;

/// The assignments of this machine.
#[derive(Debug)]
pub(crate) struct Desk {
    limit: Bytes,
    records: BTreeMap<Life, Record>,
    known: HashMap<InstanceId, Known>,
    groups: Vec<String>,
    next_life: Life,
    heard: u64,
    leaving: bool,
}

impl Desk {
    /// Nothing assigned; models may take `limit` together.
    pub(crate) fn new(limit: Bytes) -> Self {
        let (records, known, groups) = (BTreeMap::new(), HashMap::new(), Vec::new());
        Self { limit, records, known, groups, next_life: 1, heard: 0, leaving: false }
    }

    /// Whether nothing is held here, alone or as a rank of a group.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.groups.is_empty()
    }

    /// The models whose files are needed here: of what is assigned or ends, and of ranks of groups.
    pub(crate) fn models(&self) -> BTreeSet<&str> {
        let assigned = self.records.values().map(|record| record.assignment.model.as_str());
        assigned.chain(self.groups.iter().map(String::as_str)).collect()
    }

    /// When `Tick` is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let due = |record: &Record| match record.state {
            State::Draining { until, .. } => Some(until),
            _ if record.is_wanted() => record.expires,
            _ => None,
        };
        self.records.values().filter_map(due).min()
    }

    /// What this machine holds, or is about to.
    pub(crate) fn holds(&self) -> Vec<Held> {
        let held = |record: &Record| Held {
            instance: record.assignment.instance,
            epoch: record.assignment.epoch,
            rank: 0,
            ranks: 1,
            model: record.assignment.model.clone(),
            ready: record.state == State::Ready,
        };
        self.records.values().filter(|record| record.is_wanted()).map(held).collect()
    }

    /// Whether a rank of a group can begin here now.
    pub(crate) fn why_no_group(&self) -> Result<(), Busy> {
        if let Some(record) = self.records.values().find(|r| r.is_wanted() && r.assignment.exclusive) {
            return Err(Busy::Held(held_alone(record)));
        }
        if self.records.values().any(Record::is_ending) { Err(Busy::Ending) } else { Ok(()) }
    }

    /// What was last said of each assignment that is held: for a coordinator that may have missed it.
    pub(crate) fn again(&self) -> Vec<AssignmentReport> {
        let wanted = self.records.values().filter(|record| record.is_wanted());
        wanted.map(|record| report_of(record, self.drained())).collect()
    }

    /// Takes in what happened; appends what to do.
    pub(crate) fn handle(&mut self, now: Micros, input: Input, effects: &mut Vec<Effect>) {
        self.heard += 1;
        match input {
            Input::Assign { assignment, needs } => self.assign(now, assignment, needs, effects),
            Input::Unassign { instance, epoch, drain } => {
                self.unassign(now, (instance, epoch), drain, effects);
            }
            Input::Renew(leases) => {
                for lease in &leases.leases {
                    self.renew(now, (lease.instance, lease.epoch), leases.lease_us);
                }
            }
            Input::Progress { life, percent } => {
                if let Some(Record { state: State::Loading(done), .. }) = self.records.get_mut(&life) {
                    *done = percent.min(99).max(*done);
                }
            }
            Input::Loaded { life } => match self.records.get_mut(&life) {
                Some(record) if matches!(record.state, State::Loading(_)) => record.state = State::Ready,
                // It was to be cancelled, or nobody knows it: its memory is given back.
                Some(record) => {
                    record.state = State::Unloading;
                    effects.push(Effect::Unload { life });
                }
                None => effects.push(Effect::Unload { life }),
            },
            Input::LoadEnded { life, failed } => {
                if let (Some(record), Some(detail)) = (self.records.get_mut(&life), failed)
                    && matches!(record.state, State::Loading(_))
                {
                    record.last = Last::Failed(detail);
                }
                self.gone(life, effects);
            }
            Input::Broke { life, detail } => {
                if let Some(record) = self.records.get_mut(&life)
                    && matches!(record.state, State::Ready | State::Draining { .. })
                {
                    if record.state == State::Ready {
                        record.last = Last::Failed(detail);
                    }
                    record.state = State::Unloading;
                    effects.push(Effect::Unload { life });
                }
            }
            Input::InFlight { life, attempts } => self.in_flight(life, attempts, effects),
            Input::Unloaded { life } => self.gone(life, effects),
            Input::Groups(models) => self.groups = models,
            Input::Tick => self.tick(now, effects),
            Input::Leave => self.leaving = true,
        }
        self.begin_what_waits(effects);
        self.say(effects);
    }

    fn assign(
        &mut self,
        now: Micros,
        assignment: Assignment,
        needs: Result<Bytes, String>,
        effects: &mut Vec<Effect>,
    ) {
        let (instance, epoch) = (assignment.instance, assignment.epoch);
        let newest = self.known.get(&instance).map_or(Epoch(0), |known| known.newest);
        let live = self.records.iter().find(|(_, r)| r.is_wanted() && r.assignment.instance == instance);
        let live = live.map(|(life, record)| (*life, record.assignment.clone()));
        if epoch < newest {
            let why = format!("a newer assignment of {instance} is known here, {}", newest.0);
            return refuse(&assignment, why, effects);
        }
        if let Some((life, held)) = live {
            if epoch == held.epoch || same_terms(&held, &assignment) {
                return self.go_on(now, life, assignment, effects);
            }
            self.end(now, life, Last::TakenBack, LEASE_DRAIN, effects);
        } else if epoch == newest {
            match self.known.get(&instance).map(|known| known.last.clone()) {
                Some(Last::TakenBack) => {
                    return refuse(&assignment, format!("{instance} was taken back at this epoch"), effects);
                }
                Some(Last::Failed(why)) => {
                    effects.push(Effect::Report(report(&assignment, AssignmentPhase::Failed, 0, why)));
                    return;
                }
                Some(Last::Held | Last::Open) | None => {}
            }
        }
        match self.room_for(&assignment, needs) {
            Err(why) => {
                self.remember(instance, epoch, Last::Open);
                refuse(&assignment, why, effects);
            }
            Ok(needs) => {
                self.remember(instance, epoch, Last::Held);
                let life = self.next_life;
                self.next_life += 1;
                let expires = lease(now, assignment.lease_us);
                let (state, last) = (State::Waiting, Last::TakenBack);
                self.records.insert(life, Record { assignment, needs, expires, state, last, said: None });
            }
        }
    }

    /// The same again, or the same terms under a newer epoch: nothing is touched, and how it is said again.
    fn go_on(&mut self, now: Micros, life: Life, assignment: Assignment, effects: &mut Vec<Effect>) {
        let Some(record) = self.records.get_mut(&life) else { return };
        record.said = None;
        record.expires = lease(now, assignment.lease_us);
        if record.assignment.epoch != assignment.epoch {
            let epoch = assignment.epoch;
            record.assignment = assignment;
            effects.push(Effect::Restamp { life, epoch });
        }
        let (instance, epoch) = (record.assignment.instance, record.assignment.epoch);
        self.remember(instance, epoch, Last::Held);
    }

    /// What it takes; or why it is not taken.
    fn room_for(&self, assignment: &Assignment, needs: Result<Bytes, String>) -> Result<Bytes, String> {
        if assignment.rank != 0 {
            return Err(format!(
                "rank {} of a model held whole, which has rank 0 alone: ranks of groups are assigned as such",
                assignment.rank
            ));
        }
        if self.leaving {
            return Err("this provider is leaving".to_owned());
        }
        let needs = needs?;
        let held: Vec<&Record> = self.records.values().filter(|record| record.is_wanted()).collect();
        if let Some(record) = held.iter().find(|record| record.assignment.exclusive) {
            return Err(held_alone(record));
        }
        if let Some(record) = held.iter().find(|record| record.assignment.model == assignment.model) {
            return Err(format!(
                "{} is held here already, as {}",
                assignment.model, record.assignment.instance
            ));
        }
        if let Some(record) = held.first().filter(|_| assignment.exclusive) {
            let (model, instance) = (&record.assignment.model, record.assignment.instance);
            return Err(format!(
                "{} is to be held alone, and {model} is held here, as {instance}: take that back first",
                assignment.model
            ));
        }
        if let Some(model) = self.groups.first() {
            return Err(format!("this machine is a rank of a group that computes {model}"));
        }
        if held.len() >= HELD_MAX {
            return Err(format!("{HELD_MAX} models are held here, which is the most"));
        }
        let taken: u64 = held.iter().map(|record| record.needs.0).sum();
        if needs.0.saturating_add(taken) > self.limit.0 {
            let left = Bytes(self.limit.0.saturating_sub(taken));
            return Err(format!(
                "{} takes {needs} of memory with its cache, and {left} of {} are left for models here",
                assignment.model, self.limit
            ));
        }
        Ok(needs)
    }

    fn unassign(
        &mut self,
        now: Micros,
        (instance, epoch): (InstanceId, Epoch),
        drain: Micros,
        effects: &mut Vec<Effect>,
    ) {
        let newest = self.known.get(&instance).map_or(Epoch(0), |known| known.newest);
        if epoch < newest {
            // About a life that is over: the one that goes on is not meant.
            return;
        }
        let of = self.records.iter().filter(|(_, r)| r.assignment.instance == instance);
        let lives: Vec<Life> = of.map(|(life, _)| *life).collect();
        self.remember(instance, epoch, Last::TakenBack);
        for life in &lives {
            self.end(now, *life, Last::TakenBack, drain, effects);
        }
        if lives.is_empty() {
            let (phase, percent, detail) = (AssignmentPhase::Gone, 0, String::new());
            let gone = AssignmentReport { instance, epoch, rank: 0, phase, percent, detail };
            effects.push(Effect::Report(gone));
        }
    }

    fn renew(&mut self, now: Micros, (instance, epoch): (InstanceId, Epoch), lease_us: u64) {
        let of = |r: &&mut Record| {
            r.is_wanted() && (r.assignment.instance, r.assignment.epoch) == (instance, epoch)
        };
        if let Some(record) = self.records.values_mut().find(of) {
            record.expires = lease(now, lease_us);
        }
    }

    /// Begins a life's end, or hurries one that has begun.
    fn end(&mut self, now: Micros, life: Life, last: Last, drain: Micros, effects: &mut Vec<Effect>) {
        let Some(record) = self.records.get_mut(&life) else { return };
        let by = now.saturating_add(drain.min(DRAIN_MAX));
        // One whose lease ended may be had again, unless the coordinator takes it back meanwhile.
        if record.is_wanted() || record.last == Last::Open {
            record.last = last;
        }
        match &mut record.state {
            State::Waiting => self.gone(life, effects),
            State::Loading(_) => {
                record.state = State::Cancelling;
                effects.push(Effect::Cancel { life });
            }
            State::Ready => {
                record.state = State::Draining { until: by, most: 0, left: usize::MAX };
                effects.push(Effect::Drain { life });
            }
            State::Draining { until, .. } => *until = (*until).min(by),
            State::Cancelling | State::Unloading => {}
        }
    }

    fn in_flight(&mut self, life: Life, attempts: usize, effects: &mut Vec<Effect>) {
        let Some(record) = self.records.get_mut(&life) else { return };
        let State::Draining { most, left, .. } = &mut record.state else { return };
        (*most, *left) = ((*most).max(attempts), attempts);
        if attempts == 0 {
            record.state = State::Unloading;
            effects.push(Effect::Unload { life });
        }
    }

    fn tick(&mut self, now: Micros, effects: &mut Vec<Effect>) {
        let lives: Vec<Life> = self.records.keys().copied().collect();
        for life in lives {
            let Some(record) = self.records.get_mut(&life) else { continue };
            match record.state {
                // Who waited long enough: what is left in flight ends, and goes on elsewhere.
                State::Draining { until, .. } if now >= until => {
                    record.state = State::Unloading;
                    effects.push(Effect::Unload { life });
                }
                _ if record.is_wanted() && record.expires.is_some_and(|at| now >= at) => {
                    self.end(now, life, Last::Open, LEASE_DRAIN, effects);
                }
                _ => {}
            }
        }
    }

    /// A life is over, and its memory free.
    fn gone(&mut self, life: Life, effects: &mut Vec<Effect>) {
        let Some(record) = self.records.remove(&life) else { return };
        let Assignment { instance, epoch, .. } = record.assignment;
        let (phase, detail) = match &record.last {
            Last::Failed(why) => (AssignmentPhase::Failed, why.clone()),
            Last::Open => (AssignmentPhase::Gone, "its lease ended without a renewal".to_owned()),
            Last::TakenBack | Last::Held => (AssignmentPhase::Gone, String::new()),
        };
        // Asked for again since, under the same epoch: what is said next is about that.
        let again = |r: &Record| (r.assignment.instance, r.assignment.epoch) == (instance, epoch);
        if !self.records.values().any(again) {
            effects.push(Effect::Report(report(&record.assignment, phase, 0, detail)));
        }
        // A newer life of the instance may have begun since.
        if let Some(known) = self.known.get_mut(&instance)
            && known.newest == epoch
        {
            known.last = record.last;
        }
    }

    /// One after the other, once what ends has given its memory back: a load measures the machine's memory and speed.
    fn begin_what_waits(&mut self, effects: &mut Vec<Effect>) {
        let busy = |record: &Record| record.is_ending() || matches!(record.state, State::Loading(_));
        if self.records.values().any(busy) {
            return;
        }
        let next = self.records.iter_mut().find(|(_, record)| record.state == State::Waiting);
        if let Some((&life, record)) = next {
            record.state = State::Loading(0);
            effects.push(Effect::Load { life, assignment: record.assignment.clone() });
        }
    }

    /// Says of each assignment what has not been said yet.
    fn say(&mut self, effects: &mut Vec<Effect>) {
        let drained = self.drained();
        for record in self.records.values_mut() {
            let now = report_of(record, drained);
            if record.said != Some((now.phase, now.percent)) {
                record.said = Some((now.phase, now.percent));
                effects.push(Effect::Report(now));
            }
        }
    }

    /// How much of what was in flight where something ends has finished, in hundredths.
    fn drained(&self) -> u8 {
        let mut all = (0usize, 0usize);
        for record in self.records.values() {
            if let State::Draining { most, left, .. } = record.state {
                all = (all.0.saturating_add(most), all.1.saturating_add(left.min(most)));
            }
        }
        hundredths(all.0 - all.1, all.0)
    }

    fn remember(&mut self, instance: InstanceId, epoch: Epoch, last: Last) {
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(&instance) {
            let held = |id: &InstanceId| self.records.values().any(|r| r.assignment.instance == *id);
            let oldest = self.known.iter().filter(|(id, _)| !held(id)).min_by_key(|(_, known)| known.heard);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.known.remove(&oldest);
            }
        }
        let heard = self.heard;
        let known = self.known.entry(instance).or_insert(Known { newest: epoch, last: Last::Open, heard });
        *known = Known { newest: known.newest.max(epoch), last, heard };
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
