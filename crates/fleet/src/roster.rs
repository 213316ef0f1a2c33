//! The instances of a pool, and what must be known of all of them at once, kept true at each change of one.
//!
//! Whatever a decision asks of the whole pool (who is cheapest, whether anybody has room, the longest limit, the pace
//! of the queue) is answered from here without a scan. The predicate stays the judge: an index says where to look, and
//! what it finds is put before [`eligible`] again.

mod shelves;

use std::collections::{BTreeMap, BTreeSet};

use base::{AccountId, InstanceId, MachineId, Micros, RequestId, Rng, Tokens};
use smallvec::SmallVec;

use crate::cost::{self, Prediction};
use crate::eligibility::{Ask, Ineligible, eligible};
use crate::instance::{Contents, Instance};
use crate::owner::Owners;
use shelves::{Place, Shelves};

/// Up to so many instances are looked at one by one: exact, and faster than any index.
pub(crate) const SCAN_MAX: usize = 16;

/// An instance's machine, and who lends it.
type Whose = (MachineId, Option<AccountId>);

/// What is noted of one instance in the indexes, so that it can be taken out again.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Noted {
    path: Option<Tokens>,
    serving: Option<Tokens>,
    open: Option<Place>,
    own_open: Option<Place>,
    barred_until: Option<Micros>,
    wakes: Option<Micros>,
    same: bool,
    code: Option<usize>,
    per_s: f64,
}

/// What is known of one account's own instances: as much of it as of the pool's.
#[derive(Debug, Clone, Default)]
struct Own {
    ids: BTreeSet<InstanceId>,
    /// Those that have a slot free.
    shelves: Shelves,
    /// Those that serve, or will when time has passed, by limit.
    path: BTreeSet<(Tokens, MachineId, InstanceId)>,
}

/// A pool's instances.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roster {
    instances: BTreeMap<InstanceId, Instance>,
    noted: BTreeMap<InstanceId, Noted>,
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
        self.instances.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    pub(crate) fn get(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
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
        self.instances.insert(id, instance);
        self.noted.insert(id, Noted::default());
        self.note(id, like);
        old
    }

    /// Takes an instance away.
    pub(crate) fn remove(&mut self, id: InstanceId) -> Option<Instance> {
        let instance = self.instances.remove(&id)?;
        let noted = self.noted.remove(&id).expect("every instance is noted");
        self.unnote(&instance, &noted);
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
        let out = change(self.instances.get_mut(&id)?);
        self.note(id, like);
        Some(out)
    }

    /// Brings the indexes to what the instance is now.
    fn note(&mut self, id: InstanceId, like: &Like) {
        let instance = &self.instances[&id];
        let old = self.noted[&id];
        let verdict = eligible(instance, &Ask::least(), like.now);
        let reason = verdict.err();
        // One too short even for the least of requests is still an answer to "how long may it be?".
        let on_path = reason.is_none_or(|r| r.time_cures() || matches!(r, Ineligible::TooLong { .. }));
        let serving = reason.is_none_or(|r| r.is_load());
        let open = matches!(reason, None | Some(Ineligible::NoKvRoom { .. }));
        let lost = instance.lost_at.map(|at| at.saturating_add(like.grace));
        let pauses = [instance.full_until, instance.barred_until, lost];
        let mut new = Noted {
            path: on_path.then(|| instance.limit()),
            serving: serving.then(|| instance.limit()),
            open: old.open,
            own_open: old.own_open,
            barred_until: instance
                .barred_until
                .filter(|_| matches!(reason, Some(Ineligible::BreakerOpen { .. }))),
            wakes: pauses.into_iter().flatten().filter(|at| *at > like.now || lost == Some(*at)).min(),
            same: instance.contents == Contents::Same && instance.lost_at.is_none(),
            code: Some(reason.map_or(Ineligible::CODES.len(), |r| r.number())),
            per_s: if serving { cost::drain_per_s(instance, &like.mean) } else { 0.0 },
        };
        let (machine, held_for) = (instance.machine, instance.held_for);
        match (open, old.open) {
            (true, was) => new.open = Some(self.shelves.put(instance, was)),
            (false, Some(place)) => {
                self.shelves.take(place);
                new.open = None;
            }
            (false, None) => {}
        }
        self.keep_held(id, held_for);
        let instance = &self.instances[&id];
        if let Some(account) = instance.owner {
            let own = self.own.entry(account).or_default();
            own.ids.insert(id);
            match (open, old.own_open) {
                (true, was) => new.own_open = Some(own.shelves.put(instance, was)),
                (false, Some(place)) => {
                    own.shelves.take(place);
                    new.own_open = None;
                }
                (false, None) => {}
            }
        }
        let owner = instance.owner;
        let compared = Noted { open: new.open, own_open: new.own_open, ..old };
        if compared != new {
            let instance = &self.instances[&id];
            let former = Noted { open: None, own_open: None, ..old };
            // The machine of an instance never changes under its id without `insert`.
            debug_assert_eq!(instance.machine, machine);
            Self::unnote_parts(self, (machine, owner), id, &former);
            self.note_parts((machine, owner), id, &new);
        }
        self.noted.insert(id, new);
        if self.per_s_changes > 64 + 4 * self.instances.len() {
            self.per_s = self.noted.values().map(|noted| noted.per_s).sum();
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

    fn note_parts(&mut self, (machine, owner): Whose, id: InstanceId, noted: &Noted) {
        if let Some(limit) = noted.path {
            self.path.insert((limit, machine, id));
            if let Some(own) = owner.and_then(|account| self.own.get_mut(&account)) {
                own.path.insert((limit, machine, id));
            }
        }
        if let Some(limit) = noted.serving {
            *self.serving.entry(limit).or_default() += 1;
            self.serving_count += 1;
        }
        if let Some(until) = noted.barred_until {
            self.barred.insert((until, id));
        }
        if let Some(at) = noted.wakes {
            self.wakes.insert((at, id));
        }
        if noted.same {
            self.same.insert(id);
        }
        if let Some(code) = noted.code {
            self.codes[code] += 1;
        }
        self.per_s += noted.per_s;
        self.per_s_changes += 1;
    }

    fn unnote(&mut self, instance: &Instance, noted: &Noted) {
        self.unnote_parts((instance.machine, instance.owner), instance.id, noted);
    }

    fn unnote_parts(&mut self, (machine, owner): Whose, id: InstanceId, noted: &Noted) {
        if let Some(limit) = noted.path {
            self.path.remove(&(limit, machine, id));
            if let Some(own) = owner.and_then(|account| self.own.get_mut(&account)) {
                own.path.remove(&(limit, machine, id));
            }
        }
        if let Some(limit) = noted.serving {
            let count = self.serving.get_mut(&limit).expect("what serves is counted");
            *count -= 1;
            if *count == 0 {
                self.serving.remove(&limit);
            }
            self.serving_count -= 1;
        }
        if let Some(until) = noted.barred_until {
            self.barred.remove(&(until, id));
        }
        if let Some(at) = noted.wakes {
            self.wakes.remove(&(at, id));
        }
        if noted.same {
            self.same.remove(&id);
        }
        if let Some(code) = noted.code {
            self.codes[code] -= 1;
        }
        self.per_s -= noted.per_s;
        self.per_s_changes += 1;
    }
}

/// What the indexes are made with.
#[derive(Debug, Clone)]
pub(crate) struct Like {
    pub(crate) now: Micros,
    pub(crate) grace: Micros,
    /// A request of mean size: the pace of the queue is told in these.
    pub(crate) mean: Ask,
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
        let predict = |id: InstanceId| {
            let instance = &self.instances[&id];
            eligible(instance, ask, now).is_ok().then(|| cost::predict(instance, ask))
        };
        let found = own.shelves.cheapest(ask, rng, |id| predict(id).map(|p| p.cost_s));
        let held = self.held.filter(|(request, id)| *request == ask.request && own.ids.contains(id));
        let candidates = found.into_iter().chain(held.map(|(_, id)| id));
        let candidates = candidates.filter_map(|id| predict(id).map(|predicted| (id, predicted)));
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
        let predict = |id: InstanceId| -> Option<Prediction> {
            let instance = &self.instances[&id];
            eligible(instance, ask, now).is_ok().then(|| cost::predict(instance, ask))
        };
        if self.instances.len() > SCAN_MAX {
            let found = self.shelves.cheapest(ask, rng, |id| predict(id).map(|p| p.cost_s));
            let held = self.held.filter(|(request, _)| *request == ask.request).map(|(_, id)| id);
            let predicted = |id: InstanceId| predict(id).map(|predicted| (id, predicted));
            let candidates = [found, held].into_iter().flatten().filter_map(predicted);
            return candidates.min_by(|(_, a), (_, b)| a.cost_s.total_cmp(&b.cost_s));
        }
        let mut best: Option<(InstanceId, Prediction)> = None;
        let mut equals = 0;
        for id in self.instances.keys().copied() {
            let Some(predicted) = predict(id) else { continue };
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
        let takes = |id: InstanceId| eligible(&self.instances[&id], ask, now).is_ok();
        let held = self.held.is_some_and(|(request, id)| request == ask.request && takes(id));
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
        let serving = ids.into_iter().flatten().filter(|id| self.noted[*id].serving.is_some());
        serving.map(|id| cost::drain_per_s(&self.instances[id], ask)).sum()
    }

    /// Whether any instance would take the smallest request, or is held for one that may fit by now.
    pub(crate) fn any_room(&self) -> bool {
        let held = self.held.and_then(|(_, id)| self.instances.get(&id));
        held.is_some_and(|i| i.taken() < i.reported.slots) || self.shelves.may_take(&Ask::least())
    }

    /// The instance whose missing KV room for `ask` is least, where only KV room is missing.
    pub(crate) fn nearly_takes(&self, ask: &Ask, now: Micros) -> Option<InstanceId> {
        let short = |i: &Instance| match eligible(i, ask, now) {
            Err(Ineligible::NoKvRoom { needed, free }) => Some((needed - free, i.id)),
            _ => None,
        };
        if self.instances.len() > SCAN_MAX {
            return self.shelves.roomiest(ask, |id| short(&self.instances[&id]).is_some());
        }
        self.instances.values().filter_map(short).min().map(|(_, id)| id)
    }

    /// The request that an instance is kept free for, and that instance.
    pub(crate) fn held(&self) -> Option<(RequestId, InstanceId)> {
        self.held
    }

    /// The longest limit of those that serve or will, on machines that are not `excluded`; and whether any was left
    /// out because of its machine.
    pub(crate) fn longest_path(&self, excluded: &[MachineId]) -> (Option<Tokens>, bool) {
        let longest = self.path.iter().rev().find(|(_, machine, _)| !excluded.contains(machine));
        let on_path = |id: &InstanceId| self.noted[id].path.is_some();
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
        let serving = ids.into_iter().flatten().filter(|id| self.noted[*id].serving.is_some());
        u32::try_from(serving.count()).unwrap_or(u32::MAX)
    }

    /// Of those that only a breaker bars, the one that is let in again first.
    pub(crate) fn least_barred(&self) -> Option<&Instance> {
        self.barred.first().map(|(_, id)| &self.instances[id])
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
        self.same.iter().find(|other| Some(**other) != but).map(|other| &self.instances[other])
    }

    /// Requests a second that all complete when every slot is taken by requests like `ask`; of many instances, by
    /// requests of mean size.
    pub(crate) fn drain_per_s(&self, ask: &Ask) -> f64 {
        if self.instances.len() > SCAN_MAX {
            return self.per_s.max(0.0);
        }
        let serving = |i: &&Instance| self.noted[&i.id].serving.is_some();
        self.instances.values().filter(serving).map(|i| cost::drain_per_s(i, ask)).sum()
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
