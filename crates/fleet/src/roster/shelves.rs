//! The least costly of many instances without looking at each: branch and bound over trees, with a budget.
//!
//! A shelf holds instances of like limits in a binary tree over its places; a node has the least costs at chosen sizes of
//! requests ([`sight`]), the most free KV room and the longest limit below it. The search goes down the more promising
//! child to an instance, then down from the most promising node that it passed by, and so on: until nothing passed by can
//! be better by a hundredth, or it has opened as many nodes as it may. A fleet under load is one in which all instances
//! cost about the same (whoever is cheaper is given the next request): no bound tells these apart, and there the budget
//! ends the search, among candidates that differ by little.

mod sight;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use base::Rng;

use crate::cost::{Bend, Plane};
use crate::eligibility::Ask;
use crate::instance::Instance;
use sight::{Costs, Sight};

/// Nodes that a search opens at most once it has found something, whatever the fleet's size: a first descent among 100,000
/// takes seventeen, and each further candidate a few. Searches of hundreds end by themselves, within a hundredth of the best.
/// What this bound costs in larger fleets is asserted: a twentieth at most by `phalanx bench route` (worst/best), a third by
/// the property test over thousands that have nothing in common.
const OPENED_MAX: usize = 256;
/// What is not better by this share is not looked for.
const SLACK: f64 = 0.01;

/// What is known of the instances below a node.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Node {
    costs: Costs,
    bend: Bend,
    limit: u32,
    kv_free: u64,
}

impl Node {
    /// Below it is nothing.
    const NONE: Self = Self { costs: Costs::NONE, bend: Bend { used: 1.0, room: 0.0 }, limit: 0, kv_free: 0 };

    fn of(instance: &Instance) -> Self {
        let plane = Plane::of(instance);
        let bend = plane.bend;
        Self { costs: Costs::of(&plane), bend, kv_free: instance.kv_free(), limit: instance.limit().0 }
    }

    fn join(a: &Self, b: &Self) -> Self {
        Self {
            costs: Costs::least(&a.costs, &b.costs),
            bend: Bend { used: a.bend.used.min(b.bend.used), room: a.bend.room.max(b.bend.room) },
            kv_free: a.kv_free.max(b.kv_free),
            limit: a.limit.max(b.limit),
        }
    }

    /// Whether some instance below may take `ask`, as far as one can tell from here.
    fn may_take(&self, ask: &Ask) -> bool {
        self.limit > 0 && self.kv_free >= ask.kv_need() && self.limit >= ask.length_max().0
    }
}

/// Which instances stand together: half octaves of their limits, so that a request that is too long for some of a
/// shelf is so for most.
type Likeness = i16;

fn likeness(node: &Node) -> Likeness {
    (2.0 * f64::from(node.limit.max(1)).log2()).floor() as Likeness
}

/// A binary tree over places: node 1 is the root, node `n` is above `2n` and `2n + 1`, the leaves are the last half.
#[derive(Debug, Clone, Default)]
struct Shelf {
    nodes: Vec<Node>,
    /// Seats of the roster.
    places: Vec<Option<u32>>,
    free: Vec<u32>,
}

impl Shelf {
    fn put(&mut self, seat: u32, node: &Node) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| self.grow());
        self.places[place as usize] = Some(seat);
        self.set(place, node);
        place
    }

    /// Doubles the places, and gives the first new one.
    fn grow(&mut self) -> u32 {
        let first = self.places.len();
        let len = (first * 2).max(8);
        self.places.resize(len, None);
        let mut nodes = vec![Node::NONE; 2 * len];
        if first > 0 {
            nodes[len..len + first].copy_from_slice(&self.nodes[first..]);
        }
        for at in (1..len).rev() {
            nodes[at] = Node::join(&nodes[2 * at], &nodes[2 * at + 1]);
        }
        self.nodes = nodes;
        self.free.extend((first as u32 + 1..len as u32).rev());
        first as u32
    }

    fn take(&mut self, place: u32) {
        self.places[place as usize] = None;
        self.set(place, &Node::NONE);
        self.free.push(place);
    }

    fn set(&mut self, place: u32, node: &Node) {
        let mut at = self.places.len() + place as usize;
        self.nodes[at] = *node;
        while at > 1 {
            at /= 2;
            let joined = Node::join(&self.nodes[2 * at], &self.nodes[2 * at + 1]);
            // What is above is made of this one.
            if joined == self.nodes[at] {
                return;
            }
            self.nodes[at] = joined;
        }
    }

    /// Whose place a node is, where it is a leaf.
    fn seat(&self, node: usize) -> Option<u32> {
        let place = node.checked_sub(self.places.len())?;
        Some(self.places[place].expect("a place that may take something is taken"))
    }
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    likeness: Likeness,
    place: u32,
}

/// A node that waits to be opened; the least bound first, among equals at random.
#[derive(Debug, PartialEq)]
struct Promise {
    bound_s: f32,
    tie: u32,
    shelf: u32,
    node: u32,
}

impl Eq for Promise {}

impl PartialOrd for Promise {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Promise {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let place = |p: &Self| (p.tie, p.shelf, p.node);
        self.bound_s.total_cmp(&other.bound_s).then_with(|| place(self).cmp(&place(other)))
    }
}

/// One search for the least costly.
struct Search<'a> {
    shelves: Vec<&'a Shelf>,
    ask: &'a Ask,
    sight: Sight,
    rng: &'a mut Rng,
    /// Passed by, or not looked at yet.
    waiting: BinaryHeap<Reverse<Promise>>,
    opened: usize,
    /// What a node must promise to be worth a look: less than this.
    enough_s: f32,
}

impl Search<'_> {
    /// A node that may take the request at a cost that is worth a look.
    fn promise(&mut self, shelf: u32, node: u32) -> Option<Promise> {
        let known = &self.shelves[shelf as usize].nodes[node as usize];
        if !known.may_take(self.ask) {
            return None;
        }
        let bound_s = self.sight.bound_s(&known.costs, known.bend);
        (bound_s < self.enough_s).then(|| Promise { bound_s, tie: self.rng.next_u64() as u32, shelf, node })
    }

    /// The next most promising node; nothing where the search is over.
    fn next(&mut self) -> Option<Promise> {
        let Reverse(next) = self.waiting.pop()?;
        let found = self.enough_s < f32::INFINITY;
        (!found || (next.bound_s < self.enough_s && self.opened < OPENED_MAX)).then_some(next)
    }

    /// Goes down from `from` to an instance; what is passed by waits.
    fn descend(&mut self, from: Promise) -> Option<u32> {
        let mut at = from;
        loop {
            if let Some(seat) = self.shelves[at.shelf as usize].seat(at.node as usize) {
                return Some(seat);
            }
            self.opened += 1;
            let children = [2 * at.node, 2 * at.node + 1].map(|node| self.promise(at.shelf, node));
            at = match children {
                [None, None] => return None,
                [Some(only), None] | [None, Some(only)] => only,
                [Some(a), Some(b)] => {
                    let (nearer, other) = if a < b { (a, b) } else { (b, a) };
                    self.waiting.push(Reverse(other));
                    nearer
                }
            };
        }
    }
}

/// Instances that have a slot free, by likeness.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelves {
    shelves: BTreeMap<Likeness, Shelf>,
}

impl Shelves {
    /// Puts an instance, with its seat in the roster, where it belongs now; `was` is where it stands.
    pub(super) fn put(&mut self, (seat, instance): (u32, &Instance), was: Option<Place>) -> Place {
        let node = Node::of(instance);
        let likeness = likeness(&node);
        if let Some(was) = was {
            if was.likeness == likeness {
                self.shelves.get_mut(&likeness).expect("its shelf is there").set(was.place, &node);
                return was;
            }
            self.take(was);
        }
        let place = self.shelves.entry(likeness).or_default().put(seat, &node);
        Place { likeness, place }
    }

    /// Takes away what stands at `place`.
    pub(super) fn take(&mut self, place: Place) {
        let shelf = self.shelves.get_mut(&place.likeness).expect("its shelf is there");
        shelf.take(place.place);
        if shelf.free.len() == shelf.places.len() {
            self.shelves.remove(&place.likeness);
        }
    }

    /// Whether any instance may have room for `ask`; never says no where one has.
    pub(super) fn may_take(&self, ask: &Ask) -> bool {
        self.shelves.values().any(|shelf| shelf.nodes[1].may_take(ask))
    }

    /// The seat of least cost by `cost_s`, which gives nothing for those that do not take `ask`. Finds one wherever
    /// there is one; among many, one within the bounds of the search of the best.
    pub(super) fn cheapest(
        &self,
        ask: &Ask,
        rng: &mut Rng,
        mut cost_s: impl FnMut(u32) -> Option<f64>,
    ) -> Option<u32> {
        let shelves: Vec<&Shelf> = self.shelves.values().collect();
        let waiting = BinaryHeap::with_capacity(64 + shelves.len());
        let (sight, opened, enough_s) = (Sight::of(ask), 0, f32::INFINITY);
        let mut search = Search { shelves, ask, sight, rng, waiting, opened, enough_s };
        for shelf in 0..search.shelves.len() as u32 {
            let root = search.promise(shelf, 1);
            search.waiting.extend(root.map(Reverse));
        }
        let (mut best, mut best_s) = (None, f64::INFINITY);
        while let Some(next) = search.next() {
            let Some(seat) = search.descend(next) else { continue };
            if let Some(found_s) = cost_s(seat).filter(|found_s| *found_s < best_s) {
                (best, best_s) = (Some(seat), found_s);
                search.enough_s = (best_s * (1.0 - SLACK)) as f32;
            }
        }
        best
    }

    /// Whether any of those that may take `ask` `takes` it.
    pub(super) fn any(&self, ask: &Ask, mut takes: impl FnMut(u32) -> bool) -> bool {
        let mut open = Vec::with_capacity(32);
        for shelf in self.shelves.values() {
            open.push(1);
            while let Some(node) = open.pop() {
                if !shelf.nodes[node].may_take(ask) {
                    continue;
                }
                match shelf.seat(node) {
                    Some(seat) if takes(seat) => return true,
                    Some(_) => {}
                    None => open.extend([2 * node, 2 * node + 1]),
                }
            }
            open.clear();
        }
        false
    }

    /// The seat with most KV room free that `suits`, of those long enough for `ask`.
    pub(super) fn roomiest(&self, ask: &Ask, suits: impl Fn(u32) -> bool) -> Option<u32> {
        let long_enough = |node: &Node| node.limit > 0 && node.limit >= ask.length_max().0;
        let shelves: Vec<&Shelf> = self.shelves.values().collect();
        let mut open = BinaryHeap::new();
        let promise = |open: &mut BinaryHeap<(u64, usize, usize)>, shelf: usize, node: usize| {
            let known = &shelves[shelf].nodes[node];
            if long_enough(known) {
                open.push((known.kv_free, shelf, node));
            }
        };
        (0..shelves.len()).for_each(|shelf| promise(&mut open, shelf, 1));
        while let Some((_, shelf, node)) = open.pop() {
            match shelves[shelf].seat(node) {
                Some(seat) if suits(seat) => return Some(seat),
                Some(_) => {}
                None => {
                    promise(&mut open, shelf, 2 * node);
                    promise(&mut open, shelf, 2 * node + 1);
                }
            }
        }
        None
    }
}
