//! The least costly of many instances without looking at each: branch and bound over trees of like instances.
//!
//! A shelf holds instances of like speed and like limits, so that the least of each term of cost over a part of it is
//! close to what some instance of that part really costs. Each shelf is a binary tree over its places; a node has the
//! least terms, the most free KV room and the longest limit below it. The search opens the most promising node of all
//! shelves first and stops where nothing unopened can be better by more than a hundredth.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use base::{InstanceId, Rng};

use crate::cost::Terms;
use crate::eligibility::Ask;
use crate::instance::Instance;

/// Nodes that a search opens at most once it has found something: about five microseconds. Beyond it the best so far
/// is taken; on the bench's fleets (`phalanx bench route`) searches end long before.
const OPENED_MAX: usize = 256;
/// What is not better by this share is not looked for.
const SLACK: f64 = 0.01;

/// What is known of the instances below a node.
#[derive(Debug, Clone, Copy)]
struct Node {
    terms: Terms,
    kv_free: u64,
    limit: u32,
}

impl Node {
    /// Below it is nothing.
    const NONE: Self = Self {
        terms: Terms {
            fixed_s: f64::INFINITY,
            prompt_token_s: f64::INFINITY,
            answer_token_s: f64::INFINITY,
            free_share: 0.0,
            room: 0.0,
        },
        kv_free: 0,
        limit: 0,
    };

    fn of(instance: &Instance) -> Self {
        Self { terms: Terms::of(instance), kv_free: instance.kv_free(), limit: instance.limit().0 }
    }

    fn join(a: &Self, b: &Self) -> Self {
        Self {
            terms: Terms {
                fixed_s: a.terms.fixed_s.min(b.terms.fixed_s),
                prompt_token_s: a.terms.prompt_token_s.min(b.terms.prompt_token_s),
                answer_token_s: a.terms.answer_token_s.min(b.terms.answer_token_s),
                free_share: a.terms.free_share.max(b.terms.free_share),
                room: a.terms.room.max(b.terms.room),
            },
            kv_free: a.kv_free.max(b.kv_free),
            limit: a.limit.max(b.limit),
        }
    }

    /// Whether some instance below may take `ask`, as far as one can tell from here.
    fn may_take(&self, ask: &Ask) -> bool {
        self.limit > 0 && self.kv_free >= ask.kv_need() && self.limit >= ask.length_max().0
    }
}

/// Which instances stand together: half octaves of limit and speeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness {
    limit: i16,
    prompt: i16,
    answer: i16,
}

impl Likeness {
    fn of(node: &Node) -> Self {
        let half_octave = |x: f64| (2.0 * x.max(1e-12).log2()).floor() as i16;
        Self {
            limit: half_octave(f64::from(node.limit)),
            prompt: half_octave(node.terms.prompt_token_s),
            answer: half_octave(node.terms.answer_token_s),
        }
    }
}

/// A binary tree over places: node 1 is the root, node `n` is above `2n` and `2n + 1`, the leaves are the last half.
#[derive(Debug, Clone, Default)]
struct Shelf {
    nodes: Vec<Node>,
    places: Vec<Option<InstanceId>>,
    free: Vec<u32>,
}

impl Shelf {
    fn put(&mut self, id: InstanceId, node: Node) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
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
        });
        self.places[place as usize] = Some(id);
        self.set(place, node);
        place
    }

    fn take(&mut self, place: u32) {
        self.places[place as usize] = None;
        self.set(place, Node::NONE);
        self.free.push(place);
    }

    fn set(&mut self, place: u32, node: Node) {
        let mut at = self.places.len() + place as usize;
        self.nodes[at] = node;
        while at > 1 {
            at /= 2;
            self.nodes[at] = Node::join(&self.nodes[2 * at], &self.nodes[2 * at + 1]);
        }
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
    bound_s: f64,
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

/// Instances that have a slot free, by likeness.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelves {
    shelves: BTreeMap<Likeness, Shelf>,
}

impl Shelves {
    /// Puts `instance` where it belongs now; `was` is where it stands.
    pub(super) fn put(&mut self, instance: &Instance, was: Option<Place>) -> Place {
        let node = Node::of(instance);
        let likeness = Likeness::of(&node);
        if let Some(was) = was {
            if was.likeness == likeness {
                self.shelves.get_mut(&likeness).expect("its shelf is there").set(was.place, node);
                return was;
            }
            self.take(was);
        }
        let place = self.shelves.entry(likeness).or_default().put(instance.id, node);
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

    /// The instance of least cost by `cost_s`, which gives nothing for those that do not take `ask`. Finds one
    /// wherever there is one.
    pub(super) fn cheapest(
        &self,
        ask: &Ask,
        rng: &mut Rng,
        mut cost_s: impl FnMut(InstanceId) -> Option<f64>,
    ) -> Option<InstanceId> {
        let shelves: Vec<&Shelf> = self.shelves.values().collect();
        let mut heap = BinaryHeap::with_capacity(64 + shelves.len());
        let mut promise = |heap: &mut BinaryHeap<Reverse<Promise>>, shelf: usize, node: usize, best: f64| {
            let known = &shelves[shelf].nodes[node];
            let bound_s = known.terms.bound_s(ask);
            if known.may_take(ask) && bound_s < best * (1.0 - SLACK) {
                let (shelf, node) = (shelf as u32, node as u32);
                heap.push(Reverse(Promise { bound_s, tie: rng.next_u64() as u32, shelf, node }));
            }
        };
        for shelf in 0..shelves.len() {
            promise(&mut heap, shelf, 1, f64::INFINITY);
        }
        let (mut best, mut best_s, mut opened) = (None, f64::INFINITY, 0);
        while let Some(Reverse(next)) = heap.pop() {
            let (shelf, node) = (next.shelf as usize, next.node as usize);
            if best.is_some() && (next.bound_s >= best_s * (1.0 - SLACK) || opened >= OPENED_MAX) {
                break;
            }
            opened += 1;
            let places = &shelves[shelf].places;
            if let Some(place) = node.checked_sub(places.len()) {
                let id = places[place].expect("a place that may take something is taken");
                if let Some(found_s) = cost_s(id).filter(|found_s| *found_s < best_s) {
                    (best, best_s) = (Some(id), found_s);
                }
            } else {
                promise(&mut heap, shelf, 2 * node, best_s);
                promise(&mut heap, shelf, 2 * node + 1, best_s);
            }
        }
        best
    }

    /// The first instance found that `takes`, among those that may take `ask`.
    pub(super) fn any(&self, ask: &Ask, mut takes: impl FnMut(InstanceId) -> bool) -> bool {
        let mut open = Vec::with_capacity(32);
        for shelf in self.shelves.values() {
            open.push(1);
            while let Some(node) = open.pop() {
                if !shelf.nodes[node].may_take(ask) {
                    continue;
                }
                if let Some(place) = node.checked_sub(shelf.places.len()) {
                    if takes(shelf.places[place].expect("a place that may take something is taken")) {
                        return true;
                    }
                } else {
                    open.extend([2 * node, 2 * node + 1]);
                }
            }
            open.clear();
        }
        false
    }

    /// The instance with most KV room free that `suits`, of those long enough for `ask`.
    pub(super) fn roomiest(&self, ask: &Ask, suits: impl Fn(InstanceId) -> bool) -> Option<InstanceId> {
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
            let places = &shelves[shelf].places;
            if let Some(place) = node.checked_sub(places.len()) {
                let id = places[place].expect("a place that is long enough is taken");
                if suits(id) {
                    return Some(id);
                }
            } else {
                promise(&mut open, shelf, 2 * node);
                promise(&mut open, shelf, 2 * node + 1);
            }
        }
        None
    }
}
