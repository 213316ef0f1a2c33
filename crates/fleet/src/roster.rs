//! The instances of a pool, and what must be known of all of them at once, kept true at each change of one.
//!
//! Whatever a decision asks of the whole pool (who is cheapest, whether anybody has room, the longest limit, the pace
//! of the queue) is answered from here without a scan. The predicate stays the judge: an index says where to look, and
//! what it finds is put before [`eligible`] again.

mod noted;
mod shelves;

use std::collections::{BTreeMap, BTreeSet};

use base::{AccountId, InstanceId, MachineId, Micros, RequestId, Rng, Tokens};
use smallvec::SmallVec;

use crate::cost::{self, Prediction};
use crate::eligibility::{Ask, Ineligible, eligible};
use crate::instance::Instance;
use crate::owner::Owners;
pub(crate) use noted::Like;
use noted::Noted;
use shelves::{Place, Shelves};

/// Up to so many instances are looked at one by one: exact, and faster than any index.
pub(crate) const SCAN_MAX: usize = 16;

/// An instance's machine, and who lends it.
type Whose = (MachineId, Option<AccountId>);

/// What is known of one account's own instances: as much of it as of the pool's.
#[derive(Debug, Clone, Default)]
struct Own {
    ids: BTreeSet<InstanceId>,
    /// Those that have a slot free.
    shelves: Shelves,
    /// Those that serve, or will when time has passed, by limit.
    path: BTreeSet<(Tokens, MachineId, InstanceId)>,
}

/// One instance's place in memory, which it keeps: indexes say a number, not an identity that is looked up each time.
#[derive(Debug, Clone)]
struct Seat {
    instance: Instance,
    noted: Noted,
}

/// A pool's instances.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roster {
    seats: Vec<Option<Seat>>,
    vacant: Vec<u32>,
    seat_of: BTreeMap<InstanceId, u32>,
    by_machine: BTreeMap<MachineId, SmallVec<[InstanceId; 1]>>,
    /// Those that have a slot free.
    shelves: Shelves,
    /// Those that serve, or will when time has passed, by limit.
    path: BTreeSet<(Tokens, MachineId, InstanceId)>,
    /// How many serve now, busy ones included, by limit.
    serving: BTreeMap<Tokens, u32>,
    serving_count: u32,
    /// Those that only a breaker bars.
    barred: BTreeSet<(Micros, InstanceId)>,
    /// When time alone changes what an instance takes.
    wakes: BTreeSet<(Micros, InstanceId)>,
    /// Connected ones whose contents are the pool's.
    same: BTreeSet<InstanceId>,
    /// The request that an instance is kept free for.
    held: Option<(RequestId, InstanceId)>,
    /// How many there are by the reason why they take nothing, and last those that do take something.
    codes: [u32; Ineligible::CODES.len() + 1],
    /// Those that accounts lend, by account.
    own: BTreeMap<AccountId, Own>,
    /// Requests a second that those which serve complete, and how often that sum was changed since it was made anew.
    per_s: f64,
    per_s_changes: usize,
}

impl Roster {
    pub(crate) fn len(&self) -> usize {
        self.seat_of.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seat_of.is_empty()
    }

    fn seat(&self, seat: u32) -> &Seat {
        self.seats[seat as usize].as_ref().expect("an index names taken seats")
    }

    fn seat_mut(&mut self, seat: u32) -> &mut Seat {
        self.seats[seat as usize].as_mut().expect("an index names taken seats")
    }

    fn of(&self, id: InstanceId) -> Option<&Seat> {
        self.seat_of.get(&id).map(|seat| self.seat(*seat))
    }

    fn serves(&self, id: InstanceId) -> bool {
        self.of(id).is_some_and(|seat| seat.noted.serving.is_some())
    }

    pub(crate) fn get(&self, id: InstanceId) -> Option<&Instance> {
        self.of(id).map(|seat| &seat.instance)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.seat_of.values().map(|seat| &self.seat(*seat).instance)
    }

    /// The instances of one machine.
    pub(crate) fn of_machine(&self, machine: MachineId) -> SmallVec<[InstanceId; 1]> {
        self.by_machine.get(&machine).cloned().unwrap_or_default()
    }

    /// Adds an instance, or puts it in the place of its former self, which is given back.
    pub(crate) fn insert(&mut self, instance: Instance, like: &Like) -> Option<Instance> {
        let (id, machine) = (instance.id, instance.machine);
        let old = self.remove(id);
        self.by_machine.entry(machine).or_default().push(id);
        let taken = Some(Seat { instance, noted: Noted::default() });
        let seat = match self.vacant.pop() {
            Some(seat) => {
                self.seats[seat as usize] = taken;
                seat
            }
            None => {
                self.seats.push(taken);
                self.seats.len() as u32 - 1
            }
        };
        self.seat_of.insert(id, seat);
        self.note(seat, like);
        old
    }

    /// Takes an instance away.
    pub(crate) fn remove(&mut self, id: InstanceId) -> Option<Instance> {
        let at = self.seat_of.remove(&id)?;
        let Seat { instance, noted } = self.seats[at as usize].take().expect("an index names taken seats");
        self.vacant.push(at);
        self.renote((instance.machine, instance.owner), id, &noted, &Noted::default());
        if let Some(place) = noted.open {
            self.shelves.take(place);
        }
        if let Some(account) = instance.owner {
            let own = self.own.get_mut(&account).expect("every owner is noted");
            own.ids.remove(&id);
            if let Some(place) = noted.own_open {
                own.shelves.take(place);
            }
            if own.ids.is_empty() {
                self.own.remove(&account);
            }
        }
        if self.held.is_some_and(|(_, held)| held == id) {
            self.held = None;
        }
        let ids = self.by_machine.get_mut(&instance.machine).expect("every machine is noted");
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.by_machine.remove(&instance.machine);
        }
        Some(instance)
    }

    /// Changes an instance; nothing where there is no such.
    pub(crate) fn change<T>(
        &mut self,
        id: InstanceId,
        like: &Like,
        change: impl FnOnce(&mut Instance) -> T,
    ) -> Option<T> {
        let seat = *self.seat_of.get(&id)?;
        let out = change(&mut self.seat_mut(seat).instance);
        self.note(seat, like);
        Some(out)
    }

    /// Brings the indexes to what the instance is now.
    fn note(&mut self, seat: u32, like: &Like) {
        let Seat { instance, noted: old } = self.seats[seat as usize].as_ref().expect("it was just there");
        let old = *old;
        let (id, held_for) = (instance.id, instance.held_for);
        let whose = (instance.machine, instance.owner);
        let reason = eligible(instance, &Ask::least(), like.now).err();
        let mut new = Noted::of(instance, reason, like);
        let open = matches!(reason, None | Some(Ineligible::NoKvRoom { .. }));
        new.open = stand(&mut self.shelves, open.then_some((seat, instance)), old.open);
        if let Some(account) = instance.owner {
            let own = self.own.entry(account).or_default();
            own.ids.insert(id);
            new.own_open = stand(&mut own.shelves, open.then_some((seat, instance)), old.own_open);
        }
        self.keep_held(id, held_for);
        self.renote(whose, id, &old, &new);
        self.seat_mut(seat).noted = new;
        if self.per_s_changes > 64 + 4 * self.seats.len() {
            self.per_s = self.seats.iter().flatten().map(|seat| seat.noted.per_s).sum();
            self.per_s_changes = 0;
        }
    }

    fn keep_held(&mut self, id: InstanceId, held_for: Option<RequestId>) {
        match held_for {
            Some(request) => self.held = Some((request, id)),
            None if self.held.is_some_and(|(_, held)| held == id) => self.held = None,
            None => {}
        }
    }

    /// Brings what is noted of an instance from `old` to `new`, where they differ.
    fn renote(&mut self, (machine, owner): Whose, id: InstanceId, old: &Noted, new: &Noted) {
        if old.path != new.path {
            let own = owner.and_then(|account| self.own.get_mut(&account)).map(|own| &mut own.path);
            for path in [Some(&mut self.path), own].into_iter().flatten() {
                swap(path, [old, new].map(|noted| noted.path.map(|limit| (limit, machine, id))));
            }
        }
        if old.serving != new.serving {
            if let Some(limit) = old.serving {
                let count = self.serving.get_mut(&limit).expect("what serves is counted");
                *count -= 1;
                if *count == 0 {
                    self.serving.remove(&limit);
                }
                self.serving_count -= 1;
            }
            if let Some(limit) = new.serving {
                *self.serving.entry(limit).or_default() += 1;
                self.serving_count += 1;
            }
        }
        swap(&mut self.barred, [old, new].map(|noted| noted.barred_until.map(|until| (until, id))));
        swap(&mut self.wakes, [old, new].map(|noted| noted.wakes.map(|at| (at, id))));
        swap(&mut self.same, [old, new].map(|noted| noted.same.then_some(id)));
        if let Some(code) = old.code {
            self.codes[code] -= 1;
        }
        if let Some(code) = new.code {
            self.codes[code] += 1;
        }
        if old.per_s != new.per_s {
            self.per_s += new.per_s - old.per_s;
            self.per_s_changes += 1;
        }
    }
}

/// Puts what is open on its shelf, and takes away what is not any more.
fn stand(shelves: &mut Shelves, open: Option<(u32, &Instance)>, was: Option<Place>) -> Option<Place> {
    if let Some(open) = open {
        return Some(shelves.put(open, was));
    }
    if let Some(place) = was {
        shelves.take(place);
    }
    None
}

/// Has a set hold the second instead of the first.
fn swap<T: Ord>(set: &mut BTreeSet<T>, [old, new]: [Option<T>; 2]) {
    if old != new {
        if let Some(old) = old {
            set.remove(&old);
        }
        set.extend(new);
    }
}

/// What decisions ask.
impl Roster {
    /// The eligible instance of least cost for `ask`, with what is predicted; among equals, one at random. Those of its own
    /// account go before all others, where it says so.
    pub(crate) fn cheapest(&self, ask: &Ask, now: Micros, rng: &mut Rng) -> Option<(InstanceId, Prediction)> {
        match ask.owners {
            Owners::Any => self.cheapest_of_all(ask, now, rng),
            Owners::Only(account) => self.cheapest_own(account, ask, now, rng),
            Owners::Prefer(account) => {
                self.cheapest_own(account, ask, now, rng).or_else(|| self.cheapest_of_all(ask, now, rng))
            }
        }
    }

    /// The same among one account's own.
    pub(crate) fn cheapest_own(
        &self,
        account: AccountId,
        ask: &Ask,
        now: Micros,
        rng: &mut Rng,
    ) -> Option<(InstanceId, Prediction)> {
        let own = self.own.get(&account)?;
        let held = self.held.filter(|(request, id)| *request == ask.request && own.ids.contains(id));
        self.cheapest_on(&own.shelves, held.map(|(_, id)| id), ask, now, rng)
    }

    /// The same among those on some shelves, and one that is kept free.
    fn cheapest_on(
        &self,
        shelves: &Shelves,
        held: Option<InstanceId>,
        ask: &Ask,
        now: Micros,
        rng: &mut Rng,
    ) -> Option<(InstanceId, Prediction)> {
        let predict = |seat: u32| predict(&self.seat(seat).instance, ask, now);
        let found = shelves.cheapest(ask, rng, |seat| predict(seat).map(|p| p.cost_s));
        let held = held.and_then(|id| self.seat_of.get(&id).copied());
        let candidates = [found, held].into_iter().flatten();
        let candidates = candidates.filter_map(|seat| Some((self.seat(seat).instance.id, predict(seat)?)));
        candidates.min_by(|(_, a), (_, b)| a.cost_s.total_cmp(&b.cost_s))
    }

    /// Whether an account lends any.
    pub(crate) fn owns(&self, account: AccountId) -> bool {
        self.own.contains_key(&account)
    }

    /// Whether an account's own instances may have room for anything.
    pub(crate) fn own_room(&self, account: AccountId) -> bool {
        self.own.get(&account).is_some_and(|own| own.shelves.may_take(&Ask::least()))
    }

    fn cheapest_of_all(&self, ask: &Ask, now: Micros, rng: &mut Rng) -> Option<(InstanceId, Prediction)> {
        if self.len() > SCAN_MAX {
            let held = self.held.filter(|(request, _)| *request == ask.request).map(|(_, id)| id);
            return self.cheapest_on(&self.shelves, held, ask, now, rng);
        }
        let mut best: Option<(InstanceId, Prediction)> = None;
        let mut equals = 0;
        for instance in self.iter() {
            let Some(predicted) = predict(instance, ask, now) else { continue };
            let id = instance.id;
            match &best {
                Some((_, least)) if predicted.cost_s > least.cost_s => {}
                Some((_, least)) if predicted.cost_s == least.cost_s => {
                    equals += 1;
                    if rng.below(equals) == 0 {
                        best = Some((id, predicted));
                    }
                }
                _ => {
                    equals = 1;
                    best = Some((id, predicted));
                }
            }
        }
        best
    }

    /// Whether any instance takes `ask`.
    pub(crate) fn takes(&self, ask: &Ask, now: Micros) -> bool {
        let takes = |seat: u32| eligible(&self.seat(seat).instance, ask, now).is_ok();
        let held = self.held.is_some_and(|(request, id)| request == ask.request && takes(self.seat_of[&id]));
        if let Owners::Only(account) = ask.owners {
            return held || self.own.get(&account).is_some_and(|own| own.shelves.any(ask, takes));
        }
        held || self.shelves.any(ask, takes)
    }

    /// As [`Roster::longest_path`], of one account's own.
    pub(crate) fn longest_own_path(
        &self,
        account: AccountId,
        excluded: &[MachineId],
    ) -> (Option<Tokens>, bool) {
        let Some(own) = self.own.get(&account) else { return (None, false) };
        let longest = own.path.iter().rev().find(|(_, machine, _)| !excluded.contains(machine));
        let left_out = own.path.iter().any(|(_, machine, _)| excluded.contains(machine));
        (longest.map(|(limit, _, _)| *limit), left_out && !excluded.is_empty())
    }

    /// Requests a second that an account's own complete, as [`Roster::drain_per_s`].
    pub(crate) fn own_drain_per_s(&self, account: AccountId, ask: &Ask) -> f64 {
        let ids = self.own.get(&account).map(|own| &own.ids);
        let seats = ids.into_iter().flatten().filter_map(|id| self.of(*id));
        let serving = seats.filter(|seat| seat.noted.serving.is_some());
        serving.map(|seat| cost::drain_per_s(&seat.instance, ask)).sum()
    }

    /// Whether any instance would take the smallest request, or is held for one that may fit by now.
    pub(crate) fn any_room(&self) -> bool {
        let held = self.held.and_then(|(_, id)| self.get(id));
        held.is_some_and(|i| i.taken() < i.reported.slots) || self.shelves.may_take(&Ask::least())
    }

    /// The instance whose missing KV room for `ask` is least, where only KV room is missing.
    pub(crate) fn nearly_takes(&self, ask: &Ask, now: Micros) -> Option<InstanceId> {
        let short = |i: &Instance| match eligible(i, ask, now) {
            Err(Ineligible::NoKvRoom { needed, free }) => Some((needed - free, i.id)),
            _ => None,
        };
        if self.len() > SCAN_MAX {
            let seat = self.shelves.roomiest(ask, |seat| short(&self.seat(seat).instance).is_some());
            return seat.map(|seat| self.seat(seat).instance.id);
        }
        self.iter().filter_map(short).min().map(|(_, id)| id)
    }

    /// The request that an instance is kept free for, and that instance.
    pub(crate) fn held(&self) -> Option<(RequestId, InstanceId)> {
        self.held
    }

    /// The longest limit of those that serve or will, on machines that are not `excluded`; and whether any was left
    /// out because of its machine.
    pub(crate) fn longest_path(&self, excluded: &[MachineId]) -> (Option<Tokens>, bool) {
        let longest = self.path.iter().rev().find(|(_, machine, _)| !excluded.contains(machine));
        let on_path = |id: &InstanceId| self.of(*id).is_some_and(|seat| seat.noted.path.is_some());
        let left_out = excluded
            .iter()
            .any(|machine| self.by_machine.get(machine).is_some_and(|ids| ids.iter().any(on_path)));
        (longest.map(|(limit, _, _)| *limit), left_out)
    }

    /// The longest limit of those that serve now, and how many these are.
    pub(crate) fn serving(&self) -> (Option<Tokens>, u32) {
        (self.serving.last_key_value().map(|(limit, _)| *limit), self.serving_count)
    }

    /// How many of a machine's instances serve now.
    pub(crate) fn serving_on(&self, machine: MachineId) -> u32 {
        let ids = self.by_machine.get(&machine);
        let serving = ids.into_iter().flatten().filter(|id| self.serves(**id));
        u32::try_from(serving.count()).unwrap_or(u32::MAX)
    }

    /// Of those that only a breaker bars, the one that is let in again first.
    pub(crate) fn least_barred(&self) -> Option<&Instance> {
        self.barred.first().and_then(|(_, id)| self.get(*id))
    }

    /// An instance that time alone has changed by `now`.
    pub(crate) fn woken(&self, now: Micros) -> Option<InstanceId> {
        self.wakes.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    /// When time alone changes one next.
    pub(crate) fn next_wake(&self) -> Option<Micros> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// A connected instance that holds the pool's contents, other than `but`.
    pub(crate) fn same_as_pool(&self, but: Option<InstanceId>) -> Option<&Instance> {
        self.same.iter().find(|other| Some(**other) != but).and_then(|other| self.get(*other))
    }

    /// Requests a second that all complete when every slot is taken by requests like `ask`; of many instances, by
    /// requests of mean size.
    pub(crate) fn drain_per_s(&self, ask: &Ask) -> f64 {
        if self.len() > SCAN_MAX {
            return self.per_s.max(0.0);
        }
        let serving = self.iter().filter(|instance| self.serves(instance.id));
        serving.map(|instance| cost::drain_per_s(instance, ask)).sum()
    }

    /// How many take a request now.
    pub(crate) fn eligible(&self) -> u32 {
        self.codes[Ineligible::CODES.len()]
    }

    /// How many instances take nothing new, by reason; only reasons that occur.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let codes = Ineligible::CODES.iter().copied().chain(["eligible"]);
        codes.zip(self.codes).filter(|(_, count)| *count > 0)
    }
}

/// What `ask` would cost on `instance`, where that takes it.
fn predict(instance: &Instance, ask: &Ask, now: Micros) -> Option<Prediction> {
    eligible(instance, ask, now).is_ok().then(|| cost::predict(instance, ask))
}
