//! One pass over a vocabulary's worth of numbers, fast: in blocks that compilers vectorise, with sums in a fixed order, so
//! that the same row gives the same token on every machine.
//!
//! At 152,000 tokens a call of the library's `exp` for each, and sums that wait for each other, take longer than all else
//! in drawing together.

/// Numbers in a block. A block's sum and greatest are kept, so that whatever looks for a place in the row looks at the
/// blocks first.
pub(super) const BLOCK: usize = 64;

/// e to the power of `x`, for `x` of at most 0: within 2 in the last of 24 bits. Below -87 it is 0.
///
/// Source: Cody and Waite's reduction and the polynomial of Cephes' `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding this leaves the nearest whole number in the lowest bits.
    const MAGIC: f32 = 12_582_912.0;
    let bounded = x.max(-87.0);
    let shifted = bounded * std::f32::consts::LOG2_E + MAGIC;
    let whole = shifted - MAGIC;
    let rest = bounded - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * rest + 1.398_2e-3;
    p = p * rest + 8.333_452e-3;
    p = p * rest + 4.166_579_6e-2;
    p = p * rest + 1.666_666_5e-1;
    p = p * rest + 0.5;
    let fraction = p * rest * rest + rest + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { fraction * scale }
}

/// The greatest of a row; nothing where one is no number.
pub(super) fn greatest(row: &[f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut broken = [false; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (at, &value) in chunk.iter().enumerate() {
            lanes[at] = if value > lanes[at] { value } else { lanes[at] };
            broken[at] |= value.is_nan();
        }
    }
    let greatest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let broken = broken.contains(&true) || rest.iter().any(|value| value.is_nan());
    (!broken).then_some(greatest)
}

/// Weights relative to the greatest, with what their blocks sum to.
#[derive(Default)]
pub(super) struct Weights {
    pub(super) all: Vec<f32>,
    sums: Vec<f64>,
    pub(super) total: f64,
}

impl Weights {
    /// `exp((logit - max) / temperature)` of each.
    pub(super) fn fill(&mut self, row: &[f32], max: f32, temperature: f32) {
        let Self { all, sums, total } = self;
        all.clear();
        all.resize(row.len(), 0.0);
        sums.clear();
        *total = 0.0;
        // A division for each would cost as much as the rest; temperatures so low that this overflows leave the best alone.
        let by = (1.0 / temperature).min(f32::MAX);
        for (weights, logits) in all.chunks_mut(BLOCK).zip(row.chunks(BLOCK)) {
            for (weight, &logit) in weights.iter_mut().zip(logits) {
                let below = logit - max;
                *weight = if below == 0.0 { 1.0 } else { exp(below * by) };
            }
            let sum = sum(weights);
            sums.push(sum);
            *total += sum;
        }
    }

    /// The first place at which the sum from the begin exceeds `chance` (below 1) of the total.
    pub(super) fn place(&self, chance: f64) -> u32 {
        let mut left = chance * self.total;
        let mut last = 0;
        for (block, &sum) in self.sums.iter().enumerate() {
            if left >= sum {
                left -= sum;
                continue;
            }
            for (at, &weight) in self.all.iter().enumerate().skip(block * BLOCK).take(BLOCK) {
                if weight > 0.0 {
                    last = at as u32;
                    left -= f64::from(weight);
                    if left < 0.0 {
                        return last;
                    }
                }
            }
        }
        // Sums in another order end a rounding apart: then the last that may be drawn is.
        if last == 0 { self.all.iter().rposition(|&weight| weight > 0.0).unwrap_or(0) as u32 } else { last }
    }
}

/// In four lanes, so that additions need not wait for each other.
fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 4];
    let chunks = values.chunks_exact(4);
    let rest: f64 = chunks.remainder().iter().map(|&value| f64::from(value)).sum();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest
}

/// The sum of `exp(value - max)` over a row.
pub(super) fn exp_sum(row: &[f32], max: f32) -> f64 {
    let mut weights = [0.0; BLOCK];
    let mut total = 0.0;
    for block in row.chunks(BLOCK) {
        for (weight, &value) in weights.iter_mut().zip(block) {
            *weight = exp(value - max);
        }
        total += sum(&weights[..block.len()]);
    }
    total
}

/// Greatest first; of equals, the one that stands first.
pub(super) fn best_first(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Leaves in `out` the `count` greatest of `row` and where they stand, best first.
pub(super) fn top(row: &[f32], count: usize, out: &mut Vec<(f32, u32)>) {
    out.clear();
    let count = count.min(row.len());
    if count == 0 {
        return;
    }
    // The count greatest of the blocks' greatest are at most the row's count greatest: what is below them is none.
    let mut heads: Vec<f32> =
        row.chunks(BLOCK).map(|block| block.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
    let floor = if count <= heads.len() {
        *heads.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    for (block, values) in row.chunks(BLOCK).enumerate() {
        for (at, &value) in values.iter().enumerate() {
            if value >= floor {
                out.push((value, (block * BLOCK + at) as u32));
            }
        }
    }
    keep_best(out, count);
}

/// Leaves the `count` best, best first.
pub(super) fn keep_best(candidates: &mut Vec<(f32, u32)>, count: usize) {
    if count < candidates.len() && count > 0 {
        candidates.select_nth_unstable_by(count - 1, best_first);
    }
    candidates.truncate(count);
    candidates.sort_unstable_by(best_first);
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Rng;

    #[test]
    fn exp_is_the_librarys_to_the_last_bits_and_nothing_is_left_of_what_is_masked() {
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 3e-7 * expected, "{x}: {found} {expected}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-100.0)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn top_is_what_sorting_gives() {
        let mut rng = Rng::new(3);
        for length in [1, 5, 63, 64, 65, 1000, 5000] {
            let row: Vec<f32> = (0..length).map(|_| rng.below(200) as f32 - 100.0).collect();
            let mut sorted: Vec<(f32, u32)> = row.iter().copied().zip(0..).collect();
            sorted.sort_by(best_first);
            for count in [0, 1, 2, 20, 90, 4000] {
                let mut found = Vec::new();
                top(&row, count, &mut found);
                assert_eq!(found, sorted[..count.min(length)], "{count} of {length}");
            }
            assert_eq!(greatest(&row), Some(sorted[0].0));
        }
        assert_eq!(greatest(&[1.0; 40].map(|x: f32| x * f32::NAN)), None);
        assert_eq!(greatest(&[1.0, f32::NAN]), None);
    }

    #[test]
    fn places_are_where_the_sum_passes_the_chance() {
        let row: Vec<f32> =
            (0..200).map(|at| if at % 3 == 0 { f32::NEG_INFINITY } else { -(at as f32) / 50.0 }).collect();
        let mut weights = Weights::default();
        weights.fill(&row, row[1], 0.8);
        for step in 0..1000 {
            let chance = f64::from(step) / 1000.0;
            let mut left = chance * weights.total;
            let expected = weights.all.iter().position(|&weight| {
                left -= f64::from(weight);
                left < -1e-9
            });
            assert_eq!(Some(weights.place(chance) as usize), expected, "{chance}");
        }
        assert_ne!(weights.place(1.0) % 3, 0);
    }
}
