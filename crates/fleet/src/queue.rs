//! What waits, in the order in which it goes: retries, then by class, and within a class accounts take turns by the
//! work they ask for (start-time fair queueing: Goyal, Vin and Cheng, 1996). Each class has a virtual time of its own: what
//! one class is served says nothing of whose turn it is in another.

mod ranks;

use std::collections::{BTreeMap, BTreeSet};

use base::{AccountId, Micros, RequestId};

use crate::policy::Priority;
use crate::pool::Enqueue;
use ranks::Ranks;
pub(crate) use ranks::Size;

/// A prompt token costs about an eighth of a generated one.
const PROMPT_TOKENS_PER_ANSWER_TOKEN: u64 = 8;
/// Virtual time counts in thousandths of a generated token, so that weights divide finely.
const VIRTUAL_PER_TOKEN: u64 = 1000;

/// Where a request stands. Smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// 0 for what was dispatched before, 1 for the rest.
    fresh: u8,
    pub(crate) priority: Priority,
    /// Virtual time at which its turn begins.
    tag: u64,
    sequence: u64,
}

/// A request in the queue.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) enqueue: Enqueue,
    pub(crate) since: Micros,
    pub(crate) deadline: Micros,
}

/// Where an account stands in a class.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    /// Virtual time at which what the account is charged for ends. What left the queue unserved is taken off again.
    finish: u64,
    waiting: u32,
}

/// An account in a class.
type Standing = (Priority, AccountId);

#[derive(Debug, Clone, Default)]
pub(crate) struct Queue {
    order: BTreeMap<Place, Waiting>,
    /// The same places, so that they can be counted.
    ranks: Ranks,
    /// Each account's places, and accounts by how many of theirs wait.
    own: BTreeMap<AccountId, BTreeSet<Place>>,
    busiest: BTreeSet<(usize, AccountId)>,
    /// Places of what its account's own machines are tried for first.
    owned: BTreeMap<AccountId, BTreeSet<Place>>,
    places: BTreeMap<RequestId, Place>,
    deadlines: BTreeSet<(Micros, RequestId)>,
    turns: BTreeMap<Standing, Turn>,
    /// Of each class.
    virtual_time: BTreeMap<Priority, u64>,
    sequence: u64,
}

/// What a request costs its account, in virtual time.
fn virtual_cost(enqueue: &Enqueue) -> u64 {
    let prompt = u64::from(enqueue.ask.prompt_tokens.0) / PROMPT_TOKENS_PER_ANSWER_TOKEN;
    let answer = u64::from(enqueue.ask.answer_tokens.0.min(enqueue.ask.max_tokens.0));
    (1 + prompt + answer) * VIRTUAL_PER_TOKEN / u64::from(enqueue.weight.max(1))
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(crate) fn contains(&self, request: RequestId) -> bool {
        self.places.contains_key(&request)
    }

    /// The place that `enqueue` would get now.
    pub(crate) fn place(&self, enqueue: &Enqueue) -> Place {
        // After those of its own account that came before it, whatever was taken off since.
        let tag = self.begins(enqueue).max(self.last_tag(standing(enqueue)));
        Place {
            fresh: u8::from(!enqueue.again),
            priority: enqueue.priority,
            tag: if enqueue.again { 0 } else { tag },
            sequence: self.sequence,
        }
    }

    /// Virtual time from which `enqueue` is charged for. Its tag may be later, where requests between were taken out: that they
    /// were there must cost its account nothing once they are gone.
    fn begins(&self, enqueue: &Enqueue) -> u64 {
        let finish = self.turns.get(&standing(enqueue)).map_or(0, |turn| turn.finish);
        finish.max(self.virtual_now(enqueue.priority))
    }

    /// The tag of the last that waits of an account in a class.
    fn last_tag(&self, (priority, account): Standing) -> u64 {
        let at = |(tag, sequence)| Place { fresh: 1, priority, tag, sequence };
        let own = self.own.get(&account).map(|own| own.range(at((0, 0))..=at((u64::MAX, u64::MAX))));
        own.and_then(|mut own| own.next_back()).map_or(0, |last| last.tag)
    }

    fn virtual_now(&self, class: Priority) -> u64 {
        self.virtual_time.get(&class).copied().unwrap_or(0)
    }

    fn advance(&mut self, class: Priority, tag: u64) {
        let now = self.virtual_time.entry(class).or_default();
        *now = tag.max(*now);
    }

    /// How many would go before `place`.
    pub(crate) fn ahead(&self, place: Place) -> usize {
        self.ranks.before(place)
    }

    /// Charges an account for a request that did not have to wait.
    pub(crate) fn charge(&mut self, enqueue: &Enqueue) {
        if !enqueue.again {
            let (place, begins) = (self.place(enqueue), self.begins(enqueue));
            self.advance(place.priority, place.tag);
            let turn = self.turns.entry(standing(enqueue)).or_default();
            turn.finish = begins + virtual_cost(enqueue);
            self.sweep();
        }
    }

    /// Puts a request in its place.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        let (place, begins) = (self.place(&waiting.enqueue), self.begins(&waiting.enqueue));
        let request = waiting.enqueue.ask.request;
        self.sequence += 1;
        let account = waiting.enqueue.account;
        if place.fresh == 1 {
            let turn = self.turns.entry(standing(&waiting.enqueue)).or_default();
            turn.finish = begins + virtual_cost(&waiting.enqueue);
            turn.waiting += 1;
        }
        let own = self.own.entry(account).or_default();
        self.busiest.remove(&(own.len(), account));
        own.insert(place);
        self.busiest.insert((own.len(), account));
        if let Some(owner) = waiting.enqueue.ask.owners.own() {
            self.owned.entry(owner).or_default().insert(place);
        }
        self.ranks.insert(place, Size::of(&waiting.enqueue.ask));
        self.deadlines.insert((waiting.deadline, request));
        let before = self.places.insert(request, place);
        assert!(before.is_none(), "a request waits in one place");
        self.order.insert(place, waiting);
    }

    /// Takes a request out because it goes on: virtual time advances to its turn.
    pub(crate) fn serve(&mut self, request: RequestId) -> Option<Waiting> {
        let (place, waiting) = self.take(request)?;
        if place.fresh == 1 {
            self.advance(place.priority, place.tag);
        }
        self.sweep();
        Some(waiting)
    }

    /// Takes a request out that is not served: its account is not charged for it.
    pub(crate) fn remove(&mut self, request: RequestId) -> Option<Waiting> {
        let (place, waiting) = self.take(request)?;
        if place.fresh == 1 {
            let turn = self.turns.get_mut(&standing(&waiting.enqueue)).expect("who waits has a turn");
            turn.finish = turn.finish.saturating_sub(virtual_cost(&waiting.enqueue));
        }
        self.sweep();
        Some(waiting)
    }

    fn take(&mut self, request: RequestId) -> Option<(Place, Waiting)> {
        let place = self.places.remove(&request)?;
        let waiting = self.order.remove(&place).expect("every place is in the order");
        self.deadlines.remove(&(waiting.deadline, request));
        let account = waiting.enqueue.account;
        let own = self.own.get_mut(&account).expect("who waits has places");
        self.busiest.remove(&(own.len(), account));
        own.remove(&place);
        if own.is_empty() {
            self.own.remove(&account);
        } else {
            self.busiest.insert((own.len(), account));
        }
        if let Some(owner) = waiting.enqueue.ask.owners.own() {
            let owned = self.owned.get_mut(&owner).expect("who waits for its own is noted");
            owned.remove(&place);
            if owned.is_empty() {
                self.owned.remove(&owner);
            }
        }
        if place.fresh == 1 {
            let turn = self.turns.get_mut(&standing(&waiting.enqueue)).expect("who waits has a turn");
            turn.waiting -= 1;
        }
        self.ranks.remove(place);
        Some((place, waiting))
    }

    /// Accounts with requests that wait and are tried on their own machines first.
    pub(crate) fn owners(&self) -> Vec<AccountId> {
        self.owned.keys().copied().collect()
    }

    /// How many of an account's requests wait that are tried on its own machines first.
    pub(crate) fn owned_len(&self, account: AccountId) -> usize {
        self.owned.get(&account).map_or(0, BTreeSet::len)
    }

    /// The first of these after `place`, or of all.
    pub(crate) fn next_own(&self, account: AccountId, place: Option<Place>) -> Option<(Place, &Waiting)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = place.map_or(Unbounded, Excluded);
        let place = self.owned.get(&account)?.range((from, Unbounded)).next()?;
        Some((*place, &self.order[place]))
    }

    /// The first request after `place`, or the first of all.
    pub(crate) fn next_after(&self, place: Option<Place>) -> Option<(Place, &Waiting)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = place.map_or(Unbounded, Excluded);
        self.order.range((from, Unbounded)).next().map(|(place, waiting)| (*place, waiting))
    }

    /// The first request after `place`, or of all, that is below `size` or is `held`.
    pub(crate) fn next_below(
        &self,
        place: Option<Place>,
        size: Size,
        held: Option<RequestId>,
    ) -> Option<(Place, &Waiting)> {
        let below = self.ranks.next_below(place, size);
        let held = held.and_then(|request| self.places.get(&request).copied());
        let held = held.filter(|held| place.is_none_or(|place| *held > place));
        let next = below.into_iter().chain(held).min()?;
        Some((next, &self.order[&next]))
    }

    /// A request whose deadline is at or before `now`.
    pub(crate) fn expired(&self, now: Micros) -> Option<RequestId> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, request)| *request)
    }

    /// The earliest deadline.
    pub(crate) fn first_deadline(&self) -> Option<Micros> {
        self.deadlines.first().map(|(deadline, _)| *deadline).filter(|d| *d != Micros::MAX)
    }

    /// Who makes room for `enqueue` in a full queue: the last of a lower class; else the last of the account that
    /// has most waiting, where that is at least two more than the arriving account has. Never `held`, which an
    /// instance is kept free for, nor what was dispatched before, nor what waits for its account's own machines.
    pub(crate) fn gives_way(
        &self,
        enqueue: &Enqueue,
        held: Option<RequestId>,
        lends: impl Fn(AccountId) -> bool,
    ) -> Option<RequestId> {
        let movable = |place: &&Place| {
            place.fresh == 1
                && place.priority >= enqueue.priority
                && Some(self.order[*place].enqueue.ask.request) != held
                && !self.order[*place].enqueue.ask.owners.own().is_some_and(&lends)
        };
        let request = |place: &Place| self.order[place].enqueue.ask.request;
        // What may not move stands before what may, but for the one that is held: two are enough to look at.
        let last = self.order.keys().rev().take(2).find(movable)?;
        if last.priority > enqueue.priority {
            return Some(request(last));
        }
        let own = self.own.get(&enqueue.account).map_or(0, BTreeSet::len);
        let (most, account) = self.busiest.last()?;
        if *most < own + 2 {
            return None;
        }
        self.own[account].iter().rev().take(2).find(movable).map(request)
    }

    /// Forgets accounts whose turns are over, when they have become many: a constant cost a request on average.
    fn sweep(&mut self) {
        if self.turns.len() <= 64 + 2 * self.order.len() {
            return;
        }
        let times = self.virtual_time.clone();
        let ahead = |((class, _), turn): (&Standing, &Turn)| {
            turn.finish.saturating_sub(times.get(class).copied().unwrap_or(0))
        };
        let before = self.turns.len();
        self.turns.retain(|at, turn| turn.waiting > 0 || ahead((at, turn)) > 0);
        // All of these have just been served and virtual time stands before their ends: let it pass the nearest half, or
        // every request would sweep in vain.
        if self.turns.len() * 2 > before {
            let idle = self.turns.iter().filter(|(_, turn)| turn.waiting == 0);
            let mut ends: Vec<u64> = idle.map(ahead).collect();
            ends.sort_unstable();
            if let Some(end) = ends.get(ends.len() / 2).copied() {
                self.turns.retain(|at, turn| turn.waiting > 0 || ahead((at, turn)) > end);
            }
        }
    }
}

fn standing(enqueue: &Enqueue) -> Standing {
    (enqueue.priority, enqueue.account)
}
