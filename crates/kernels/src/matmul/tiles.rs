//! Weights in bf16 times activations rounded to bf16, by matrix tiles.
//!
//! Sums go along the columns, not over sixteen lanes of them as in the other paths, and in another order: results are not
//! theirs to the last bit. So tiles do every number of rows, and a row's result is still the same among any others.

use std::cell::RefCell;
use std::ops::Range;

use super::{Output, weights};
use crate::pack::{BLOCK, PANEL_ROWS, panel_len};
use crate::shared::SharedMut;
use crate::team::Team;
use crate::tiles::{Pairs, TILE, release};

/// Pairs in a block.
const PAIRS: usize = BLOCK / 2;
/// Below so many elements the caller rounds them alone: some microseconds of work.
const ALONE_BELOW: usize = 32 * 1024;

thread_local! {
    static CHUNKS: RefCell<Vec<u32>> = RefCell::default();
}

/// Rows rounded to bf16, in chunks of up to sixteen: `[chunk][block][pair][row]`.
pub(super) struct Chunks<'a> {
    pairs: &'a [u32],
    rows: usize,
    blocks: usize,
}

impl Chunks<'_> {
    /// Runs `job` with `x: [rows, k]` in chunks.
    pub(super) fn of(team: &Team, x: &[f32], k: usize, job: impl FnOnce(&Chunks<'_>)) {
        let (rows, blocks) = (x.len() / k, k.div_ceil(BLOCK));
        CHUNKS.with(|chunks| {
            let mut own = Vec::new();
            let mut kept = chunks.try_borrow_mut();
            // Borrowed already: a product within a product's job, which `Team` forbids where it matters.
            let pairs = kept.as_deref_mut().unwrap_or(&mut own);
            let len = rows * blocks * PAIRS;
            if pairs.len() < len {
                pairs.resize(len, 0);
            }
            let (shared, count) = (SharedMut::new(pairs), rows.div_ceil(TILE));
            let step = if x.len() < ALONE_BELOW { count } else { 1 };
            team.share(count, step, &|_, part| {
                let mut rounded = vec![0u16; blocks * BLOCK];
                for chunk in part {
                    let first = chunk * TILE;
                    let stride = TILE.min(rows - first);
                    // SAFETY: each chunk is handed out once.
                    let out = unsafe { shared.part(first * blocks * PAIRS, stride * blocks * PAIRS) };
                    for row in 0..stride {
                        weights::round(&x[(first + row) * k..][..k], &mut rounded);
                        for (at, pair) in rounded.chunks_exact(2).enumerate() {
                            out[at * stride + row] = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                        }
                    }
                }
            });
            job(&Chunks { pairs: &pairs[..len], rows, blocks });
        });
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Where a chunk begins, and how many rows it has.
    fn chunk(&self, chunk: usize) -> (*const u32, usize) {
        let first = chunk * TILE;
        (self.pairs[first * self.blocks * PAIRS..].as_ptr(), TILE.min(self.rows - first))
    }
}

/// All rows times some panels of `w`, two of each at a time.
///
/// # Safety
/// There are tiles; the panels are inside of `w` and nobody else writes their columns.
pub(super) unsafe fn product(x: &Chunks<'_>, w: &[u16], out: Output<'_>, panels: Range<usize>) {
    let len = panel_len(x.blocks * BLOCK);
    let mut sums = [0.0f32; 4 * PANEL_ROWS * TILE];
    let mut shaped = [0; 2];
    for panel in panels.clone().step_by(2) {
        let two = [panel, (panel + 1).min(panels.end - 1)];
        for chunk in (0..x.count()).step_by(2) {
            let chunks = [chunk, (chunk + 1).min(x.count() - 1)];
            let [(first, first_rows), (second, second_rows)] = chunks.map(|chunk| x.chunk(chunk));
            let pairs = Pairs {
                w: two.map(|panel| w[panel * len..][..len].as_ptr()),
                x: [first, second],
                x_bytes: [first_rows * 4, second_rows * 4],
                blocks: x.blocks,
            };
            // SAFETY: whole panels and chunks, and tiles shaped for them.
            unsafe {
                if shaped != pairs.x_bytes {
                    Pairs::shapes(pairs.x_bytes).configure();
                    shaped = pairs.x_bytes;
                }
                pairs.products(&mut sums);
            }
            for (at, sums) in sums.chunks_exact(PANEL_ROWS * TILE).enumerate() {
                let (of_chunk, of_panel) = (at / 2, at % 2);
                // The last one alone stands in both places.
                if (of_chunk > 0 && chunks[1] == chunks[0]) || (of_panel > 0 && two[1] == two[0]) {
                    continue;
                }
                let rows = [first_rows, second_rows][of_chunk];
                // SAFETY: rows of this chunk and columns of this panel, which no other worker writes.
                unsafe { finish(out, (chunks[of_chunk] * TILE, rows), two[of_panel] * PANEL_ROWS, sums) };
            }
        }
    }
    // SAFETY: the caller vouches for tiles.
    unsafe { release() };
}

/// Writes a tile's sums, `[column][16 rows]`.
unsafe fn finish(out: Output<'_>, (first, rows): (usize, usize), column: usize, sums: &[f32]) {
    let columns = PANEL_ROWS.min(out.columns - column);
    for row in 0..rows {
        // SAFETY: the caller's.
        let place = unsafe { std::slice::from_raw_parts_mut(out.at(first + row, column), columns) };
        for (at, place) in place.iter_mut().enumerate() {
            let bias = out.bias.map_or(0.0, |bias| bias[column + at]);
            let sum = if out.bias.is_some() { sums[at * TILE + row] + bias } else { sums[at * TILE + row] };
            *place = if out.add { *place + sum } else { sum };
        }
    }
}
