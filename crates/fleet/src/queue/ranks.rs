//! Ordered places that can be counted, and searched for what is small: without walking them.

use super::Place;
use crate::eligibility::Ask;

/// Places in a block at most; a full one is split. Counting and searching walk blocks, changing moves places within one:
/// at 10,000 places both are about forty steps.
const BLOCK: usize = 512;

/// What of a request decides whether it fits where another does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Tokens of its prompt.
    pub(crate) prompt: u32,
    /// Prompt and answer at its longest.
    pub(crate) length: u32,
}

impl Size {
    /// Of nothing.
    const NONE: Self = Self { prompt: u32::MAX, length: u32::MAX };

    pub(crate) fn of(ask: &Ask) -> Self {
        Self { prompt: ask.prompt_tokens.0, length: ask.length_max().0 }
    }

    fn least(a: Self, b: Self) -> Self {
        Self { prompt: a.prompt.min(b.prompt), length: a.length.min(b.length) }
    }

    /// Whether either is smaller than in `other`.
    fn below(self, other: Self) -> bool {
        self.prompt < other.prompt || self.length < other.length
    }
}

/// Some places in a row.
#[derive(Debug, Clone)]
struct Block {
    places: Vec<Place>,
    sizes: Vec<Size>,
    least: Size,
}

impl Block {
    fn new(places: Vec<Place>, sizes: Vec<Size>) -> Self {
        let mut block = Self { places, sizes, least: Size::NONE };
        block.weigh();
        block
    }

    fn weigh(&mut self) {
        self.least = self.sizes.iter().copied().fold(Size::NONE, Size::least);
    }
}

/// A sorted list in blocks.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranks {
    /// Each sorted, none empty, each before the next.
    blocks: Vec<Block>,
}

impl Ranks {
    /// The first block that does not lie before `place` whole.
    fn from(&self, place: Place) -> usize {
        self.blocks.partition_point(|block| block.places.last().is_some_and(|last| *last < place))
    }

    /// The block where `place` is or belongs.
    fn block(&self, place: Place) -> usize {
        self.from(place).min(self.blocks.len().saturating_sub(1))
    }

    /// How many places stand before `place`.
    pub(super) fn before(&self, place: Place) -> usize {
        let at = self.from(place);
        let whole: usize = self.blocks[..at].iter().map(|block| block.places.len()).sum();
        let within = |block: &Block| block.places.partition_point(|other| *other < place);
        whole + self.blocks.get(at).map_or(0, within)
    }

    /// The first place after `place`, or of all, whose size is below `size`.
    pub(super) fn next_below(&self, place: Option<Place>, size: Size) -> Option<Place> {
        let mut at = place.map_or(0, |place| self.from(place));
        let mut from = match (place, self.blocks.get(at)) {
            (Some(place), Some(block)) => block.places.partition_point(|other| *other <= place),
            _ => 0,
        };
        while let Some(block) = self.blocks.get(at) {
            if block.least.below(size)
                && let Some(found) = block.sizes[from..].iter().position(|own| own.below(size))
            {
                return Some(block.places[from + found]);
            }
            (at, from) = (at + 1, 0);
        }
        None
    }

    /// Adds a place that is not there.
    pub(super) fn insert(&mut self, place: Place, size: Size) {
        if self.blocks.is_empty() {
            self.blocks.push(Block::new(vec![place], vec![size]));
            return;
        }
        let at = self.block(place);
        let block = &mut self.blocks[at];
        let within = block.places.partition_point(|other| *other < place);
        block.places.insert(within, place);
        block.sizes.insert(within, size);
        block.least = Size::least(block.least, size);
        if block.places.len() > BLOCK {
            let rest = Block::new(block.places.split_off(BLOCK / 2), block.sizes.split_off(BLOCK / 2));
            block.weigh();
            self.blocks.insert(at + 1, rest);
        }
    }

    /// Takes a place away that is there.
    pub(super) fn remove(&mut self, place: Place) {
        let at = self.block(place);
        let block = &mut self.blocks[at];
        let within = block.places.binary_search(&place).expect("a place that is taken away is there");
        block.places.remove(within);
        let size = block.sizes.remove(within);
        if block.places.is_empty() {
            self.blocks.remove(at);
        } else if size.prompt == block.least.prompt || size.length == block.least.length {
            block.weigh();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base::Rng;

    use super::*;
    use crate::policy::Priority;

    #[test]
    fn counts_and_finds_are_those_of_an_ordered_map() {
        let (mut ranks, mut map, mut rng) = (Ranks::default(), BTreeMap::new(), Rng::new(3));
        let place = |tag| Place { fresh: 1, priority: Priority::Normal, tag, sequence: 0 };
        for step in 0..20_000u64 {
            let some = place(rng.below(3000));
            let prompt = rng.below(1000) as u32;
            let size = Size { prompt, length: prompt + rng.below(1000) as u32 };
            if !map.contains_key(&some) && rng.below(20_000) > step {
                map.insert(some, size);
                ranks.insert(some, size);
            } else if map.remove(&some).is_some() {
                ranks.remove(some);
            }
            let some = place(rng.below(3000));
            assert_eq!(ranks.before(some), map.range(..some).count());
            let wanted = Size { prompt: rng.below(20) as u32, length: rng.below(40) as u32 };
            let after = map.range((std::ops::Bound::Excluded(some), std::ops::Bound::Unbounded));
            let next = |(place, size): (&Place, &Size)| size.below(wanted).then_some(*place);
            assert_eq!(ranks.next_below(Some(some), wanted), after.into_iter().find_map(next));
            assert_eq!(ranks.next_below(None, wanted), map.iter().find_map(next));
        }
    }
}
