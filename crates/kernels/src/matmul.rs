//! The matrix product: activations `[T, K]` times packed weights `[N, K]`, giving `[T, N]`.
//!
//! Sixteen lanes along K accumulate block after block and are then summed in one fixed order, so that an output is
//! bitwise the same in every register tile, for every number of rows, on every thread.

#[cfg(target_arch = "x86_64")]
mod tiles;
mod weights;

use crate::activations::Activations;
use crate::grouped;
use crate::isa::Isa;
#[cfg(test)]
use crate::lanes::LANES;
use crate::lanes::{Kernel, Lanes};
use crate::pack::{BLOCK, PANEL_ROWS, PackedMatrix, Panels, panel_len};
use crate::team::Team;
use weights::{Bf16, Bf16Pairs, F16, F32, Weight, Widened, with_pairs};

/// Below so many multiply-adds a product runs on the caller alone: about 7 µs of one core's work, of which sharing
/// saves half, at the price of two cache lines that change cores and, where workers sleep, of waking them.
const ALONE_BELOW: usize = 192 * 1024;
/// Activations that are kept near while the weights of a part stream by: half of a common 1 MiB second level cache.
const NEAR_BYTES: usize = 512 * 1024;
/// How far ahead weights are asked for: into the second level's cache first, whose many open requests keep memory busy
/// while a core computes, and from there into the first. Measured with `--example products` on Zen 4: three rows are 1.6 times,
/// eight 1.15 times as fast as with one request 4 KB ahead.
const FAR_BYTES: usize = 16384;
const SOON_BYTES: usize = 2048;
/// How far ahead for one row of activations as they are: there one request is a quarter faster than two.
const AHEAD_BYTES: usize = 4096;
/// Most rows of activations in a register tile.
const TILE_ROWS: usize = 6;

/// What happens with what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// It is replaced.
    Set,
    /// The product is added to it.
    Add,
}

/// `out (+)= x w^T + bias` with `x: [T, K]`, `w: [N, K]`, `bias: [N]`, `out: [T, N]`, all contiguous.
///
/// # Panics
/// Lengths do not fit each other.
pub fn linear(
    team: &Team,
    isa: Isa,
    x: &[f32],
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    store: Store,
    out: &mut [f32],
) {
    let (k, n) = (w.columns(), w.rows());
    assert!(k > 0 && x.len().is_multiple_of(k), "{} activations are no rows of {k}", x.len());
    let rows = x.len() / k;
    assert_eq!(out.len(), rows * n, "the product of {rows} rows with {n} weight rows");
    assert!(bias.is_none_or(|bias| bias.len() == n), "one bias for each of {n} outputs");
    if out.is_empty() {
        return;
    }
    let out = Output { start: out.as_mut_ptr(), stride: n, columns: n, bias, add: store == Store::Add };
    linear_into((team, isa), x, w, out);
}

/// Where a product goes: columns of rows that are `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    start: *mut f32,
    stride: usize,
    pub(crate) columns: usize,
    /// One for each column.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) add: bool,
}

// SAFETY: it stands for a mutable slice, of which workers write parts that do not overlap.
unsafe impl Sync for Output<'_> {}
// SAFETY: as above.
unsafe impl Send for Output<'_> {}

impl<'a> Output<'a> {
    /// Where a row's column goes.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.stride + column)
    }

    /// `columns` of the columns, from `from` on.
    fn part(&self, from: usize, columns: usize) -> Self {
        let bias = self.bias.map(|bias| &bias[from..from + columns]);
        Self { start: self.at(0, from), columns, bias, ..*self }
    }
}

fn linear_into((team, isa): (&Team, Isa), x: &[f32], w: &PackedMatrix, out: Output<'_>) {
    let (k, n) = (w.columns(), w.rows());
    let rows = x.len() / k;
    let alone = rows * k * n < ALONE_BELOW;
    match &w.panels {
        Panels::Stack(parts) => {
            let mut from = 0;
            for part in parts {
                linear_into((team, isa), x, part, out.part(from, part.rows()));
                from += part.rows();
            }
            return;
        }
        Panels::Grouped(grouped) => {
            return grouped::product::linear((team, isa), x, grouped, w.activations, out, alone);
        }
        Panels::F32(_) | Panels::F16(_) | Panels::Bf16(_) => {}
    }
    let panels = n.div_ceil(PANEL_ROWS);
    let size = if matches!(w.panels, Panels::F32(_)) { 4 } else { 2 };
    let step = if alone { panels } else { part_panels(panels, panel_len(k) * size, team.workers()) };
    if let (Panels::Bf16(w), Activations::Bf16) = (&w.panels, w.activations) {
        #[cfg(target_arch = "x86_64")]
        if isa.tiles() {
            let step = step.next_multiple_of(2);
            return tiles::Chunks::of(team, x, k, |x| {
                // SAFETY: there are tiles, and each worker writes the columns of its own panels.
                team.share(panels, step, &|_, panels| unsafe { tiles::product(x, w, out, panels) });
            });
        }
        return with_pairs(team, x, k, |x, k| {
            team.share(panels, step, &|_, panels| {
                isa.dispatch_pairs(Product::<Bf16Pairs> {
                    part: Part { x: x.as_ptr(), rows, k, out, panels },
                    w,
                });
            });
        });
    }
    team.share(panels, step, &|_, panels| {
        let part = Part { x: x.as_ptr(), rows, k, out, panels };
        match &w.panels {
            Panels::F32(w) => isa.dispatch(Product::<Widened<F32>> { part, w }),
            Panels::F16(w) => isa.dispatch(Product::<Widened<F16>> { part, w }),
            Panels::Bf16(w) => isa.dispatch(Product::<Widened<Bf16>> { part, w }),
            Panels::Grouped(_) | Panels::Stack(_) => unreachable!("returned above"),
        }
    });
}

/// Panels that a worker takes at once: small enough that the slowest core does not hold up the others for long and
/// that a part's weights stay in its cache over several blocks of activations, large enough to stream.
fn part_panels(panels: usize, panel_bytes: usize, workers: usize) -> usize {
    panels.div_ceil(workers * 8).clamp(1, (NEAR_BYTES / 2 / panel_bytes.max(1)).max(1))
}

/// A part of a product: all rows of activations, some panels of weights.
struct Part<'a, X> {
    /// `[rows, k]`.
    x: *const X,
    rows: usize,
    k: usize,
    /// `[rows, n]`; this part writes the columns of its panels.
    out: Output<'a>,
    panels: std::ops::Range<usize>,
}

struct Product<'a, W: Weight> {
    part: Part<'a, W::X>,
    w: &'a [W::Element],
}

impl<W: Weight> Kernel for Product<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { part, w } = self;
        let near = (NEAR_BYTES / 4 / part.k / TILE_ROWS).max(1) * TILE_ROWS;
        let mut first = 0;
        while first < part.rows {
            let until = part.rows.min(first + near);
            for panel in part.panels.clone() {
                let len = panel_len(part.k);
                let panel_rows = PANEL_ROWS.min(part.out.columns - panel * PANEL_ROWS);
                let panel = Panel::<W> {
                    w: w[panel * len..][..len].as_ptr(),
                    row: panel * PANEL_ROWS,
                    rows: panel_rows,
                    walks: 0,
                };
                // SAFETY: the panel is inside the weights, the rows are inside the activations and the output,
                // whose sizes `linear` has checked; the caller vouches for the instructions.
                unsafe { panel_by_rows::<L, W>(&part, panel, first, until) }
            }
            first = until;
        }
    }
}

struct Panel<W: Weight> {
    w: *const W::Element,
    /// Its first row in the matrix.
    row: usize,
    /// How many of its eight rows exist.
    rows: usize,
    /// How often tiles have walked it already. The first walk waits for memory; the second one asks for the next
    /// panel, so that memory works while the arithmetic of this one goes on.
    walks: usize,
}

/// One panel times the activation rows `from..until`, in the largest tiles that the registers hold.
#[inline(always)]
unsafe fn panel_by_rows<L: Lanes, W: Weight>(
    part: &Part<'_, W::X>,
    mut panel: Panel<W>,
    from: usize,
    until: usize,
) {
    let panel = &mut panel;
    let mut row = from;
    // SAFETY: tiles cover the rows from..until of the activations and the eight rows of the panel.
    unsafe {
        while row < until {
            let left = until - row;
            row += if L::WIDE {
                match left {
                    1 => over::<L, W, 8, 1>(part, panel, row),
                    2 => over::<L, W, 8, 2>(part, panel, row),
                    3 => over::<L, W, 8, 3>(part, panel, row),
                    _ if panel.walks == 0 => over::<L, W, 8, 3>(part, panel, row),
                    4 => over::<L, W, 4, 4>(part, panel, row),
                    5 => over::<L, W, 4, 5>(part, panel, row),
                    _ => over::<L, W, 4, 6>(part, panel, row),
                }
            } else {
                match left {
                    1 => over::<L, W, 4, 1>(part, panel, row),
                    2 => over::<L, W, 2, 2>(part, panel, row),
                    _ => over::<L, W, 2, 3>(part, panel, row),
                }
            };
        }
    }
}

/// Tiles of `R` weight rows over the whole panel, for `T` activation rows. Gives `T`.
#[inline(always)]
unsafe fn over<L: Lanes, W: Weight, const R: usize, const T: usize>(
    part: &Part<'_, W::X>,
    panel: &mut Panel<W>,
    row: usize,
) -> usize {
    let mut first = 0;
    while first < panel.rows {
        // SAFETY: as for `panel_by_rows`.
        unsafe { tile::<L, W, R, T>(part, panel, first, row) };
        first += R;
        panel.walks += 1;
    }
    T
}

/// `R` weight rows of the panel from `first`, times `T` activation rows from `row`.
#[inline(always)]
unsafe fn tile<L: Lanes, W: Weight, const R: usize, const T: usize>(
    part: &Part<'_, W::X>,
    panel: &Panel<W>,
    first: usize,
    row: usize,
) {
    let (whole, rest) = (part.k / BLOCK, part.k % BLOCK);
    let panel_bytes = panel_len(part.k) * size_of::<W::Element>();
    // SAFETY: the pointers stay inside the panel (whole blocks, padded) and inside the activation rows (whole
    // blocks; the rest goes through `last`); a prefetch may point anywhere.
    unsafe {
        let x = part.x.add(row * part.k);
        let mut w = panel.w.add(first * BLOCK);
        let mut sums = [[L::splat(0.0); R]; T];
        for block in 0..whole {
            let here = panel.w.add(block * PANEL_ROWS * BLOCK).cast::<u8>();
            match panel.walks {
                0 if const { T == 1 && size_of::<W::X>() == 4 } => {
                    ask_for::<L, W, true>(here.wrapping_add(AHEAD_BYTES));
                }
                0 => {
                    ask_for::<L, W, false>(here.wrapping_add(FAR_BYTES));
                    ask_for::<L, W, true>(here.wrapping_add(SOON_BYTES));
                }
                1 => ask_for::<L, W, false>(here.wrapping_add(panel_bytes)),
                _ => {}
            }
            W::block::<L, R, T>(w, x.add(block * BLOCK), part.k, &mut sums);
            w = w.add(PANEL_ROWS * BLOCK);
        }
        if rest > 0 {
            let mut last = [[W::X::default(); BLOCK]; T];
            for (t, last) in last.iter_mut().enumerate() {
                std::ptr::copy_nonoverlapping(x.add(t * part.k + whole * BLOCK), last.as_mut_ptr(), rest);
            }
            W::block::<L, R, T>(w, last.as_ptr().cast(), BLOCK, &mut sums);
        }
        for (t, sums) in sums.iter().enumerate() {
            let mut out = [0.0f32; R];
            add_up::<L, R>(sums, &mut out);
            finish::<W, R>(part, panel, first, row + t, &out);
        }
    }
}

/// Asks for a block of eight rows, whatever rows the tile reads: the stream from memory stays one.
#[inline(always)]
unsafe fn ask_for<L: Lanes, W: Weight, const NEAR: bool>(block: *const u8) {
    // SAFETY: a prefetch may point anywhere. Written out, because a loop of its own would cost the tile registers.
    unsafe {
        ask::<L, NEAR>(block);
        ask::<L, NEAR>(block.wrapping_add(64));
        ask::<L, NEAR>(block.wrapping_add(128));
        ask::<L, NEAR>(block.wrapping_add(192));
        ask::<L, NEAR>(block.wrapping_add(256));
        ask::<L, NEAR>(block.wrapping_add(320));
        ask::<L, NEAR>(block.wrapping_add(384));
        ask::<L, NEAR>(block.wrapping_add(448));
        if size_of::<W::Element>() == 4 {
            ask::<L, NEAR>(block.wrapping_add(512));
            ask::<L, NEAR>(block.wrapping_add(576));
            ask::<L, NEAR>(block.wrapping_add(640));
            ask::<L, NEAR>(block.wrapping_add(704));
            ask::<L, NEAR>(block.wrapping_add(768));
            ask::<L, NEAR>(block.wrapping_add(832));
            ask::<L, NEAR>(block.wrapping_add(896));
            ask::<L, NEAR>(block.wrapping_add(960));
        }
    }
}

#[inline(always)]
unsafe fn ask<L: Lanes, const NEAR: bool>(line: *const u8) {
    // SAFETY: a prefetch may point anywhere.
    unsafe { if NEAR { L::prefetch(line) } else { L::prefetch_second(line) } }
}

#[inline(always)]
unsafe fn add_up<L: Lanes, const R: usize>(sums: &[L::V; R], out: &mut [f32; R]) {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        if R.is_multiple_of(4) {
            for r in (0..R).step_by(4) {
                let four = L::sum4([sums[r], sums[r + 1], sums[r + 2], sums[r + 3]]);
                out[r..r + 4].copy_from_slice(&four);
            }
        } else {
            for r in 0..R {
                out[r] = L::sum(sums[r]);
            }
        }
    }
}

#[inline(always)]
unsafe fn finish<W: Weight, const R: usize>(
    part: &Part<'_, W::X>,
    panel: &Panel<W>,
    first: usize,
    row: usize,
    out: &[f32; R],
) {
    let columns = panel.row + first..panel.row + panel.rows.min(first + R);
    let mut sums = *out;
    if let Some(bias) = part.out.bias {
        for (sum, bias) in sums.iter_mut().zip(&bias[columns.clone()]) {
            *sum += bias;
        }
    }
    // SAFETY: inside the output, in columns of this part's panels, which no other worker writes.
    let place = unsafe { std::slice::from_raw_parts_mut(part.out.at(row, columns.start), columns.len()) };
    match <&mut [f32; R]>::try_from(place) {
        Ok(place) if part.out.add => {
            for r in 0..R {
                place[r] += sums[r];
            }
        }
        Ok(place) => *place = sums,
        // The last panel of a matrix whose rows are no multiple of eight.
        Err(_) => {
            for (r, column) in columns.enumerate() {
                // SAFETY: as above.
                unsafe {
                    let place = part.out.at(row, column);
                    *place = if part.out.add { *place + sums[r] } else { sums[r] };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
