//! Ordered places that can be counted: how many stand before a given one, without walking them.

use super::Place;

/// Places in a block at most; a full one is split. Counting walks blocks, changing moves places within one: at 10,000
/// places both are about forty steps.
const BLOCK: usize = 512;

/// A sorted list in blocks.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranks {
    /// Each sorted, none empty, each before the next.
    blocks: Vec<Vec<Place>>,
}

impl Ranks {
    /// The block where `place` is or belongs.
    fn block(&self, place: Place) -> usize {
        let at = self.blocks.partition_point(|block| block.last().is_some_and(|last| *last < place));
        at.min(self.blocks.len().saturating_sub(1))
    }

    /// How many places stand before `place`.
    pub(super) fn before(&self, place: Place) -> usize {
        let at = self.blocks.partition_point(|block| block.last().is_some_and(|last| *last < place));
        let whole: usize = self.blocks[..at].iter().map(Vec::len).sum();
        whole + self.blocks.get(at).map_or(0, |block| block.partition_point(|other| *other < place))
    }

    /// Adds a place that is not there.
    pub(super) fn insert(&mut self, place: Place) {
        if self.blocks.is_empty() {
            self.blocks.push(vec![place]);
            return;
        }
        let at = self.block(place);
        let block = &mut self.blocks[at];
        block.insert(block.partition_point(|other| *other < place), place);
        if block.len() > BLOCK {
            let rest = block.split_off(BLOCK / 2);
            self.blocks.insert(at + 1, rest);
        }
    }

    /// Takes a place away that is there.
    pub(super) fn remove(&mut self, place: Place) {
        let at = self.block(place);
        let block = &mut self.blocks[at];
        let within = block.binary_search(&place).expect("a place that is taken away is there");
        block.remove(within);
        if block.is_empty() {
            self.blocks.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use base::Rng;

    use super::*;
    use crate::policy::Priority;

    #[test]
    fn counts_are_those_of_an_ordered_set() {
        let (mut ranks, mut set, mut rng) = (Ranks::default(), BTreeSet::new(), Rng::new(3));
        let place = |tag| Place { fresh: 1, priority: Priority::Normal, tag, sequence: 0 };
        for step in 0..20_000u64 {
            let some = place(rng.below(3000));
            if rng.below(20_000) > step && set.insert(some) {
                ranks.insert(some);
            } else if set.remove(&some) {
                ranks.remove(some);
            }
            let some = place(rng.below(3000));
            assert_eq!(ranks.before(some), set.range(..some).count());
        }
    }
}
