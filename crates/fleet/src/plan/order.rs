//! Whose needs come first.

use super::Wanted;

/// Deployments by priority, the larger model first among equals: it has fewer places that it fits on.
pub(super) fn by_need(wanted: &[Wanted]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    let size = |at: usize| wanted[at].shape.as_ref().map_or(0, |shape| shape.weight_bytes(0..shape.layers()));
    order.sort_by_key(|&at| {
        (std::cmp::Reverse(wanted[at].spec.replicas.priority()), std::cmp::Reverse(size(at)), at)
    });
    order
}
