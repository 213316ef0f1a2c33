//! An unpacked panel times chunks of rows by matrix tiles: a block's 32 columns (or half of them) in one instruction.
//!
//! Codes, activations and sums lie as tiles want them already: activations `[row][32]`, codes `[quad][16 outputs][4]`, sums
//! `[row][16 outputs]`. The integers are those of the other paths, and what is done with them is the same, so that rows are
//! bitwise the same too.

use std::arch::x86_64::*;

use super::ROWS;
use super::product::{At, Part, chunk_rows, finish};
use super::unpack::Form;
use crate::activations::Chunk;
use crate::dots::{Dots, VnniDots};
use crate::pack::BLOCK;
use crate::tiles::{ROW_BYTES, Shapes, TILE, byte_products, release};

/// A tile's sums.
#[repr(align(64))]
struct Sums([i32; TILE * TILE]);

/// A panel times all rows.
///
/// # Safety
/// There are tiles; `form` is an unpacked panel of the part's weights, whose codes begin at `codes`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn rows<F: Form>(part: &Part<'_>, panel: usize, form: F, codes: *const u8) {
    let mut shaped = 0;
    for chunk in 0..part.chunked.chunks() {
        let chunk = part.chunked.chunk(chunk);
        let at = At { part, panel, chunk, from: 0 };
        if !matches!(chunk.stride, 8 | 12 | 16) {
            chunk_rows(at, form);
            continue;
        }
        let tiles = Tiles { chunk, form, codes };
        // SAFETY: the chunk and the panel are there, and the tiles are shaped for the chunk's rows.
        unsafe {
            if shaped != chunk.stride {
                shapes::<F>(chunk.stride).configure();
                shaped = chunk.stride;
            }
            match chunk.stride {
                16 => tiles.rows::<16>(&at),
                12 => tiles.rows::<12>(&at),
                _ => tiles.rows::<8>(&at),
            }
        }
    }
    if shaped > 0 {
        // SAFETY: the caller vouches for tiles.
        unsafe { release() };
    }
}

/// Two tiles each for sums, activations and weights.
fn shapes<F: Form>(rows: usize) -> Shapes {
    let (sums, x) = ((rows, ROW_BYTES), (rows, BLOCK / F::HALVES));
    let w = (BLOCK / F::HALVES / 4, ROW_BYTES);
    Shapes::new([sums, sums, x, x, w, w, sums, sums])
}

/// A chunk and an unpacked panel.
#[derive(Clone, Copy)]
struct Tiles<F> {
    chunk: Chunk,
    form: F,
    codes: *const u8,
}

impl<F: Form> Tiles<F> {
    /// `T` rows, all of the chunk's. While the floats of one step are computed, the tiles work on the next.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn rows<const T: usize>(self, at: &At<'_>) {
        let mut memory = [const { Sums([0; TILE * TILE]) }; 2];
        let steps = at.part.w.geometry.blocks() * F::HALVES;
        // SAFETY: every step's block is in the panel and in the chunk. Steps come in pairs: records have two blocks at least.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); T];
            self.products::<false>(0, &mut memory[0]);
            for step in (0..steps).step_by(2) {
                self.products::<true>(step + 1, &mut memory[1]);
                self.add::<T>(step, &memory[0], &mut sums);
                if step + 2 < steps {
                    self.products::<false>(step + 2, &mut memory[0]);
                }
                self.add::<T>(step + 1, &memory[1], &mut sums);
            }
            for (t, sums) in sums.into_iter().enumerate() {
                finish::<VnniDots>(at.part, at.panel, 0, &self.chunk, t, sums);
            }
        }
    }

    /// A step's integers.
    #[inline(always)]
    unsafe fn products<const ODD: bool>(&self, step: usize, to: &mut Sums) {
        let (block, half) = (step / F::HALVES, step % F::HALVES * BLOCK / 2);
        let x = self.chunk.codes.wrapping_add(block * self.chunk.stride * BLOCK + half);
        let w = self.codes.wrapping_add((block * BLOCK + half) * ROWS);
        // SAFETY: the caller's block, and rows of it that the tiles are shaped for.
        unsafe { byte_products::<ODD>(x, BLOCK, w, to.0.as_mut_ptr()) }
    }

    /// What they are as floats, as in the other paths.
    #[inline(always)]
    unsafe fn add<const T: usize>(&self, step: usize, from: &Sums, sums: &mut [__m512; T]) {
        let (chunk, block, half) = (&self.chunk, step / F::HALVES, step % F::HALVES);
        let scales = chunk.scales.wrapping_add(block * chunk.stride);
        let starts = chunk.starts.wrapping_add(step * chunk.stride);
        let of_mins = chunk.sums.wrapping_add(step * chunk.stride);
        // SAFETY: the caller's.
        unsafe {
            let scale = self.form.scale::<VnniDots>(block, half, 0);
            let min = if F::MINS { self.form.min::<VnniDots>(block, half, 0) } else { scale };
            for t in 0..T {
                let products = _mm512_load_si512(from.0.as_ptr().add(t * TILE).cast());
                let sum = _mm512_add_epi32(products, _mm512_set1_epi32(*starts.add(t)));
                let part = VnniDots::mul(VnniDots::float(sum), scale);
                sums[t] = VnniDots::fma(part, VnniDots::splat(*scales.add(t)), sums[t]);
                if F::MINS {
                    sums[t] = VnniDots::fma(min, VnniDots::splat(*of_mins.add(t)), sums[t]);
                }
            }
        }
    }
}
