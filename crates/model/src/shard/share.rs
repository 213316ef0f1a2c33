//! Whole units shared out by weights.

use std::ops::Range;

/// Shares `units` out by `weights`, in order and without a gap: each gets one at least, and no more than one off its exact
/// share beyond that. `None` where there are fewer units than takers. Deterministic: every rank computes the same.
pub fn apportion(units: usize, weights: &[u32]) -> Option<Vec<Range<usize>>> {
    if weights.is_empty() || units < weights.len() {
        return None;
    }
    let total: u128 = weights.iter().map(|&weight| u128::from(weight.max(1))).sum();
    let exact = |weight: u32| units as u128 * u128::from(weight.max(1));
    let mut counts: Vec<usize> =
        weights.iter().map(|&weight| ((exact(weight) / total) as usize).max(1)).collect();
    // What rounding left goes to those who lost most by it; what the ones at least took too much, to those who have most.
    let mut given: usize = counts.iter().sum();
    while given < units {
        let lacks = |at: usize| exact(weights[at]) as i128 - (counts[at] as u128 * total) as i128;
        let most = (0..counts.len()).max_by_key(|&at| (lacks(at), std::cmp::Reverse(at)))?;
        counts[most] += 1;
        given += 1;
    }
    while given > units {
        let over = |at: usize| (counts[at] as u128 * total) as i128 - exact(weights[at]) as i128;
        let most = (0..counts.len())
            .filter(|&at| counts[at] > 1)
            .max_by_key(|&at| (over(at), std::cmp::Reverse(at)))?;
        counts[most] -= 1;
        given -= 1;
    }
    let mut at = 0;
    let ranges = counts.into_iter().map(|count| {
        at += count;
        at - count..at
    });
    Some(ranges.collect())
}

/// The same in units of `grain` each, the last of which may be cut short by the end at `length`.
pub(super) fn apportion_columns(length: usize, grain: usize, weights: &[u32]) -> Option<Vec<Range<usize>>> {
    let grain = grain.max(1);
    let units = apportion(length.div_ceil(grain), weights)?;
    Some(units.into_iter().map(|range| range.start * grain..(range.end * grain).min(length)).collect())
}
