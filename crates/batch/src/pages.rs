//! Who holds which page of the KV cache.
//!
//! A page's life: *free* (wiped, or to be wiped before it is written again), *held* by one or more sequences, *kept* (held
//! by none, still found by its tokens, least recently used first out), and free again. It is wiped on its way from held
//! or kept to free.

use std::collections::{BTreeMap, BTreeSet};

use crate::prefix::{NodeId, PrefixIndex};

/// Pages wiped in a step beyond those that it writes. A long prompt takes hundreds of pages at once, and a page of a large
/// model is a megabyte: to wipe them all in one step would hold up running streams for as long as several steps.
const WIPES_BESIDE: usize = 8;

/// All pages of a cache.
pub(crate) struct Pages {
    holders: Vec<u32>,
    free: Vec<u32>,
    /// Kept pages by when they were let go.
    kept: BTreeMap<u64, u32>,
    /// When each page was last let go; meaningful for kept ones.
    let_go: Vec<u64>,
    clock: u64,
    /// To be wiped before they are written again.
    wipes: BTreeSet<u32>,
    index: PrefixIndex,
}

impl Pages {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            holders: vec![0; count as usize],
            free: (0..count).rev().collect(),
            kept: BTreeMap::new(),
            let_go: vec![0; count as usize],
            clock: 0,
            wipes: BTreeSet::new(),
            index: PrefixIndex::new(),
        }
    }

    /// Pages that can be had: free ones, and kept ones that can be evicted.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// Of `pages`, how many count as available now (and would not, once they are shared).
    pub(crate) fn kept_among(&self, pages: &[u32]) -> usize {
        pages.iter().filter(|&&page| self.holders[page as usize] == 0).count()
    }

    /// A page for one sequence alone, evicting the least recently used kept one where none is free.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.kept.pop_first()?;
                self.index.forget(page);
                self.wipes.insert(page);
                page
            }
        };
        assert_eq!(self.holders[page as usize], 0, "page {page} was free and held");
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// One more sequence holds `page`, which the index found.
    pub(crate) fn share(&mut self, page: u32) {
        if self.holders[page as usize] == 0 {
            self.kept.remove(&self.let_go[page as usize]);
        }
        self.holders[page as usize] += 1;
    }

    /// A sequence lets its pages go, last page first: so the ends of prefixes are evicted before their beginnings.
    pub(crate) fn release(&mut self, pages: &[u32]) {
        for &page in pages.iter().rev() {
            let holders = &mut self.holders[page as usize];
            assert!(*holders > 0, "page {page} was let go twice");
            *holders -= 1;
            if *holders > 0 {
                continue;
            }
            if self.index.holds(page) {
                self.clock += 1;
                self.let_go[page as usize] = self.clock;
                self.kept.insert(self.clock, page);
            } else {
                self.wipes.insert(page);
                self.free.push(page);
            }
        }
    }

    /// The longest run of known pages that holds the beginning of `tokens`.
    pub(crate) fn find(&self, tokens: &[u32], page_tokens: usize) -> (NodeId, Vec<u32>) {
        let mut node = NodeId::ROOT;
        let mut pages = Vec::new();
        for block in tokens.chunks_exact(page_tokens) {
            let Some((child, page)) = self.index.find(node, block) else {
                break;
            };
            node = child;
            pages.push(page);
        }
        (node, pages)
    }

    /// `page`, full with `tokens` after `parent`, can be found from now on.
    pub(crate) fn enter(&mut self, parent: NodeId, tokens: &[u32], page: u32) -> NodeId {
        self.index.enter(parent, tokens, page)
    }

    /// All pages to wipe.
    pub(crate) fn drain_wipes(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.wipes).into_iter().collect()
    }

    /// The pages to wipe in a step that writes `written`: those among them, and a few of the others.
    pub(crate) fn wipes_for(&mut self, written: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut wipes: Vec<u32> = written.filter(|page| self.wipes.remove(page)).collect();
        wipes.extend((0..WIPES_BESIDE).map_while(|_| self.wipes.pop_first()));
        wipes
    }

    /// Lets every kept page go, so that nothing of what was computed stays.
    pub(crate) fn forget_kept(&mut self) {
        while let Some((_, page)) = self.kept.pop_first() {
            self.index.forget(page);
            self.wipes.insert(page);
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_page_outlives_its_sequence_until_its_room_is_needed() {
        let mut pages = Pages::new(2);
        let page = pages.take().unwrap();
        pages.enter(NodeId::ROOT, &[1, 2], page);
        pages.release(&[page]);
        assert_eq!(pages.drain_wipes(), []);
        assert_eq!(pages.find(&[1, 2, 3], 2).1, [page]);
        assert_eq!(pages.available(), 2);
        pages.take().unwrap();
        assert_eq!(pages.take(), Some(page));
        assert_eq!(pages.drain_wipes(), [page]);
        assert!(pages.find(&[1, 2, 3], 2).1.is_empty());
        assert_eq!(pages.take(), None);
    }

    #[test]
    fn an_unknown_page_is_wiped_as_soon_as_it_is_let_go() {
        let mut pages = Pages::new(1);
        let page = pages.take().unwrap();
        pages.release(&[page]);
        assert_eq!(pages.drain_wipes(), [page]);
        assert_eq!(pages.drain_wipes(), []);
    }

    #[test]
    fn a_page_is_wiped_before_it_is_written_and_all_in_time() {
        let mut pages = Pages::new(100);
        let taken: Vec<u32> = (0..100).map(|_| pages.take().unwrap()).collect();
        pages.release(&taken);
        let wipes = pages.wipes_for([70, 40].into_iter());
        assert_eq!((&wipes[..2], wipes.len()), (&[70, 40][..], 2 + WIPES_BESIDE));
        assert_eq!(pages.wipes_for([70, 40, 0].into_iter()).len(), WIPES_BESIDE);
        let rest = pages.drain_wipes();
        assert_eq!(rest.len(), 100 - 2 - 2 * WIPES_BESIDE);
        assert!(pages.drain_wipes().is_empty());
    }

    #[test]
    fn a_shared_page_is_let_go_by_its_last_holder() {
        let mut pages = Pages::new(1);
        let page = pages.take().unwrap();
        pages.enter(NodeId::ROOT, &[1, 2], page);
        pages.share(page);
        pages.release(&[page]);
        assert_eq!(pages.available(), 0);
        pages.release(&[page]);
        assert_eq!(pages.available(), 1);
        pages.share(page);
        assert_eq!(pages.available(), 0);
        pages.release(&[page]);
        pages.forget_kept();
        assert_eq!(pages.drain_wipes(), [page]);
    }
}
