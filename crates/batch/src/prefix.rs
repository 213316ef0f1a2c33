//! Which pages hold which tokens, so that a prompt that begins like an earlier sequence need not be computed again.
//!
//! A tree: a node is a full page, its parent the page before it. Children are found by their tokens themselves, not by
//! a hash of them, so that two prompts can never be taken for each other, whoever chose them.

use std::collections::HashMap;

use crate::tokens::PrivateTokens;

/// A node's identity. Never used twice, so that a child of a page that is gone is never found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u64);

impl NodeId {
    /// The parent of first pages.
    pub(crate) const ROOT: Self = Self(0);
}

/// A page's place in the tree.
#[derive(Debug, Clone, Copy)]
struct Place {
    parent: NodeId,
    node: NodeId,
}

/// The tree.
pub(crate) struct PrefixIndex {
    children: HashMap<NodeId, HashMap<PrivateTokens, (NodeId, u32)>>,
    places: HashMap<u32, Place>,
    next: u64,
}

impl PrefixIndex {
    pub(crate) fn new() -> Self {
        Self { children: HashMap::new(), places: HashMap::new(), next: 1 }
    }

    /// The page with `tokens` after `parent`, if there is one.
    pub(crate) fn find(&self, parent: NodeId, tokens: &[u32]) -> Option<(NodeId, u32)> {
        self.children.get(&parent)?.get(tokens).copied()
    }

    /// Enters `page`, which holds `tokens` after `parent`. Where such a page is known already that one stays, and its
    /// node is what comes back.
    pub(crate) fn enter(&mut self, parent: NodeId, tokens: &[u32], page: u32) -> NodeId {
        if let Some((node, _)) = self.find(parent, tokens) {
            return node;
        }
        let node = NodeId(self.next);
        self.next += 1;
        let key = PrivateTokens::new(tokens.to_vec(), tokens.len());
        self.children.entry(parent).or_default().insert(key, (node, page));
        let before = self.places.insert(page, Place { parent, node });
        assert!(before.is_none(), "page {page} is in the prefix index twice");
        node
    }

    /// Whether `page` can be found.
    pub(crate) fn holds(&self, page: u32) -> bool {
        self.places.contains_key(&page)
    }

    /// Forgets `page`. What was below it cannot be found any more and leaves in its own time.
    pub(crate) fn forget(&mut self, page: u32) {
        let Some(place) = self.places.remove(&page) else {
            return;
        };
        if let Some(siblings) = self.children.get_mut(&place.parent) {
            siblings.retain(|_, (node, _)| *node != place.node);
            if siblings.is_empty() {
                self.children.remove(&place.parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_by_the_same_tokens_after_the_same_tokens_only() {
        let mut index = PrefixIndex::new();
        let first = index.enter(NodeId::ROOT, &[1, 2], 7);
        index.enter(first, &[3, 4], 8);
        assert_eq!(index.find(first, &[3, 4]).map(|(_, page)| page), Some(8));
        assert_eq!(index.find(NodeId::ROOT, &[3, 4]), None);
        assert_eq!(index.find(NodeId::ROOT, &[1, 3]), None);
    }

    #[test]
    fn what_is_below_a_forgotten_page_is_not_found_through_its_successor() {
        let mut index = PrefixIndex::new();
        let first = index.enter(NodeId::ROOT, &[1, 2], 7);
        index.enter(first, &[3, 4], 8);
        index.forget(7);
        assert_eq!(index.find(NodeId::ROOT, &[1, 2]), None);
        let again = index.enter(NodeId::ROOT, &[1, 2], 9);
        assert_eq!(index.find(again, &[3, 4]), None);
        assert!(index.holds(8), "it still has to be wiped when it is evicted");
    }
}
