//! How the elements of weights meet activations, block by block.

use std::cell::RefCell;

use crate::lanes::{LANES, Lanes};
use crate::pack::BLOCK;
use crate::shared::SharedMut;
use crate::team::Team;

/// Below so many elements the caller rounds them alone: some microseconds of work.
const ALONE_BELOW: usize = 32 * 1024;

/// Weights in a panel.
pub(super) trait Weight: 'static {
    type Element: Copy + Sync + 'static;
    /// An activation that it meets.
    type X: Copy + Default + Sync + 'static;
    /// One block of 32 columns into the sums of `R` weight rows and `T` activation rows.
    unsafe fn block<L: Lanes, const R: usize, const T: usize>(
        w: *const Self::Element,
        x: *const Self::X,
        x_stride: usize,
        sums: &mut [[L::V; R]; T],
    );
}

/// Weights that become f32 and meet such.
pub(super) trait Wide: 'static {
    type Element: Copy + Sync + 'static;
    /// Columns 0..16 of a block's row.
    unsafe fn low<L: Lanes>(row: *const Self::Element) -> L::V;
    /// Columns 16..32 of a block's row.
    unsafe fn high<L: Lanes>(row: *const Self::Element) -> L::V;
}

pub(super) struct F32;
pub(super) struct F16;
/// bf16, with activations as they are.
pub(super) struct Bf16;
/// bf16, with activations rounded to bf16 likewise interleaved.
pub(super) struct Bf16Pairs;

impl Wide for F32 {
    type Element = f32;
    #[inline(always)]
    unsafe fn low<L: Lanes>(row: *const f32) -> L::V {
        // SAFETY: a block's row has 32 elements, and the caller vouches for the instructions.
        unsafe { L::load(row) }
    }
    #[inline(always)]
    unsafe fn high<L: Lanes>(row: *const f32) -> L::V {
        // SAFETY: as above.
        unsafe { L::load(row.add(LANES)) }
    }
}

impl Wide for F16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn low<L: Lanes>(row: *const u16) -> L::V {
        // SAFETY: as above.
        unsafe { L::load_f16(row) }
    }
    #[inline(always)]
    unsafe fn high<L: Lanes>(row: *const u16) -> L::V {
        // SAFETY: as above.
        unsafe { L::load_f16(row.add(LANES)) }
    }
}

impl Wide for Bf16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn low<L: Lanes>(row: *const u16) -> L::V {
        // SAFETY: as above.
        unsafe { L::load_bf16_even(row) }
    }
    #[inline(always)]
    unsafe fn high<L: Lanes>(row: *const u16) -> L::V {
        // SAFETY: as above.
        unsafe { L::load_bf16_odd(row) }
    }
}

/// Weights that become f32: see [`Wide`].
pub(super) struct Widened<W: Wide>(W);

impl<W: Wide> Weight for Widened<W> {
    type Element = W::Element;
    type X = f32;
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const T: usize>(
        w: *const W::Element,
        x: *const f32,
        x_stride: usize,
        sums: &mut [[L::V; R]; T],
    ) {
        // SAFETY: as the caller's.
        unsafe { wide_block::<L, W, R, T>(w, x, x_stride, sums) }
    }
}

/// One block of 32 columns: columns 0..16, then 16..32, into the same sums.
#[inline(always)]
unsafe fn wide_block<L: Lanes, W: Wide, const R: usize, const T: usize>(
    w: *const W::Element,
    x: *const f32,
    x_stride: usize,
    sums: &mut [[L::V; R]; T],
) {
    // SAFETY: the caller's pointers are valid for a block.
    unsafe {
        let mut low = [L::splat(0.0); T];
        for t in 0..T {
            low[t] = L::load(x.add(t * x_stride));
        }
        for r in 0..R {
            let weights = W::low::<L>(w.add(r * BLOCK));
            for t in 0..T {
                sums[t][r] = L::fma(weights, low[t], sums[t][r]);
            }
        }
        let w = L::again(w);
        let mut high = [L::splat(0.0); T];
        for t in 0..T {
            high[t] = L::load(x.add(t * x_stride + LANES));
        }
        for r in 0..R {
            let weights = W::high::<L>(w.add(r * BLOCK));
            for t in 0..T {
                sums[t][r] = L::fma(weights, high[t], sums[t][r]);
            }
        }
    }
}

impl Weight for Bf16Pairs {
    type Element = u16;
    type X = u16;
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const T: usize>(
        w: *const u16,
        x: *const u16,
        x_stride: usize,
        sums: &mut [[L::V; R]; T],
    ) {
        // SAFETY: the caller's pointers are valid for a block.
        unsafe {
            for r in 0..R {
                for t in 0..T {
                    sums[t][r] = L::dot_bf16(sums[t][r], w.add(r * BLOCK), x.add(t * x_stride));
                }
            }
        }
    }
}

thread_local! {
    static PAIRS: RefCell<Vec<u16>> = RefCell::default();
}

/// Runs `job` with `x: [rows, k]` rounded to bf16, rows padded with zeros to whole blocks, each interleaved as weights
/// are; `job` is told how long a row is.
pub(super) fn with_pairs(team: &Team, x: &[f32], k: usize, job: impl FnOnce(&[u16], usize)) {
    let (rows, padded) = (x.len() / k, k.next_multiple_of(BLOCK));
    PAIRS.with(|pairs| {
        let mut own = Vec::new();
        let mut kept = pairs.try_borrow_mut();
        // Borrowed already: a product within a product's job, which `Team` forbids where it matters.
        let pairs = kept.as_deref_mut().unwrap_or(&mut own);
        if pairs.len() < rows * padded {
            pairs.resize(rows * padded, 0);
        }
        let shared = SharedMut::new(pairs);
        let step = if x.len() < ALONE_BELOW { rows } else { rows.div_ceil(team.workers() * 4) };
        team.share(rows, step, &|_, part| {
            for row in part {
                // SAFETY: each row is handed out once.
                let out = unsafe { shared.part(row * padded, padded) };
                round(&x[row * k..][..k], out);
            }
        });
        job(&pairs[..rows * padded], padded);
    });
}

/// A row, rounded to nearest even.
pub(super) fn round(x: &[f32], out: &mut [u16]) {
    for (x, out) in x.chunks(BLOCK).zip(out.chunks_exact_mut(BLOCK)) {
        let mut block = [0.0f32; BLOCK];
        block[..x.len()].copy_from_slice(x);
        let (low, high) = block.split_at(BLOCK / 2);
        for (out, (low, high)) in out.chunks_exact_mut(2).zip(low.iter().zip(high)) {
            (out[0], out[1]) = (bits(*low), bits(*high));
        }
    }
}

/// As [`bf16::from_f32`] gives them, in a form that compiles to vectors.
#[inline(always)]
fn bits(x: f32) -> u16 {
    let all = x.to_bits();
    let rounded = (all.wrapping_add(0x7fff + (all >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { (all >> 16) as u16 | 0x40 } else { rounded }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounding_is_that_of_bf16() {
        let odd =
            [0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-40, f32::MIN_POSITIVE];
        let ties = (0..512u32).map(|at| f32::from_bits(0x3f80_0000 + (at << 7)));
        for x in odd.into_iter().chain(ties) {
            assert_eq!(bits(x), bf16::from_f32(x).to_bits(), "{x}");
        }
    }
}
