//! The matrix product with grouped weights.
//!
//! For each output, blocks of 32 columns come one after the other: an integer sum of byte products, exact, then one
//! fused multiply-add (and one more for the minimum). Every tile, every way to read a panel and every instruction set
//! does the same, so that a row's result is bitwise the same in all.

use std::cell::RefCell;

use super::unpack::{Direct, EIGHT, FOUR, Form, MX, Plain, SIX, Unpacked, Unpacking};
use super::{Codes, Grouped, ROWS, Scales};
use crate::activations::{Activations, Chunk, Chunked, Sums, with_memory};
use crate::dots::{DotKernel, Dots};
use crate::isa::Isa;
use crate::matmul::Output;
use crate::pack::BLOCK;
use crate::team::Team;

/// Up to so many rows of activations a panel is read where it lies, once for each tile of them; above, unpacking it first
/// pays. Measured with `--example products`: with 16 rows unpacking takes 1.4 to 1.7 times as long, with 64 1.02 to 1.14
/// times, with 128 about as long, whatever the format.
const DIRECT_ROWS: usize = 96;
/// The same where there are matrix tiles, which work on unpacked panels. Not measured, for want of such a machine: unpacking
/// takes as long as ten rows do, and a tile of sixteen rows (by its instructions' published times) as long as five.
const DIRECT_ROWS_BESIDE_TILES: usize = 16;
/// Panels that a worker takes at once have at most so many bytes, for the same reasons as in [`crate::matmul`].
const PART_BYTES: usize = 256 * 1024;

thread_local! {
    static UNPACKED: RefCell<Unpacked> = RefCell::default();
}

/// `out (+)= x w^T + bias`; lengths are checked.
pub(crate) fn linear(
    (team, isa): (&Team, Isa),
    x: &[f32],
    w: &Grouped,
    activations: Activations,
    out: Output<'_>,
    alone: bool,
) {
    let g = w.geometry;
    let flipped = isa.dots().signed && g.codes == Codes::Affine8 && activations != Activations::F32;
    let zero = i32::from(g.zero);
    let exact = activations == Activations::F32;
    let sums = Sums { factor: if flipped { 128 - zero } else { -zero }, halves: g.halves() };
    with_memory(|chunked| {
        chunked.fill((team, isa), (x, g.columns), g.blocks(), (activations, sums));
        let panels = out.columns.div_ceil(ROWS);
        let step = panels.div_ceil(team.workers() * 8).clamp(1, (PART_BYTES / g.panel_bytes()).max(1));
        let most = if isa.tiles() { DIRECT_ROWS_BESIDE_TILES } else { DIRECT_ROWS };
        let few = x.len() / g.columns <= most;
        let direct =
            isa.dots().direct && few && !exact && (g.factors || g.group >= BLOCK) && g.scales != Scales::F32;
        let part = Part { isa, w, chunked, flipped, exact, out };
        team.share(panels, if alone { panels } else { step }, &|_, panels| {
            for panel in panels {
                if direct {
                    part.direct(panel);
                } else {
                    UNPACKED.with_borrow_mut(|unpacked| part.unpacked(panel, unpacked));
                }
            }
        });
    });
}

/// A product, for those who work on its panels.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    isa: Isa,
    pub(super) w: &'a Grouped,
    pub(super) chunked: &'a Chunked,
    flipped: bool,
    exact: bool,
    out: Output<'a>,
}

impl Part<'_> {
    fn bytes(&self, panel: usize) -> &[u8] {
        let bytes = self.w.geometry.panel_bytes();
        &self.w.bytes[panel * bytes..][..bytes]
    }

    /// Reads a panel where it lies, for a few rows.
    fn direct(&self, panel: usize) {
        let (g, bytes) = (&self.w.geometry, self.bytes(panel));
        match (g.codes, g.mins) {
            (Codes::Affine4, true) if g.factors => {
                self.rows(panel, Direct::<FOUR, true, true>::new(bytes, g))
            }
            (Codes::Affine6, true) if g.factors => self.rows(panel, Direct::<SIX, true, true>::new(bytes, g)),
            (Codes::Affine6, false) if g.factors => {
                self.rows(panel, Direct::<SIX, false, true, 2>::new(bytes, g));
            }
            (Codes::Affine4, false) => self.rows(panel, Direct::<FOUR, false>::new(bytes, g)),
            (Codes::Affine4, true) => self.rows(panel, Direct::<FOUR, true>::new(bytes, g)),
            (Codes::Affine6, false) => self.rows(panel, Direct::<SIX, false>::new(bytes, g)),
            (Codes::Affine6, true) => self.rows(panel, Direct::<SIX, true>::new(bytes, g)),
            (Codes::Affine8, false) => self.rows(panel, Direct::<EIGHT, false>::new(bytes, g)),
            (Codes::Affine8, true) => self.rows(panel, Direct::<EIGHT, true>::new(bytes, g)),
            (Codes::Mxfp4, _) => self.rows(panel, Direct::<MX, false>::new(bytes, g)),
        }
    }

    /// Unpacks a panel for all rows.
    fn unpacked(&self, panel: usize, unpacked: &mut Unpacked) {
        let g = &self.w.geometry;
        let halves = if self.exact { 2 } else { g.halves() };
        unpacked.fit(g, halves);
        let from = Unpacking { to: unpacked, panel: self.bytes(panel), g, halves, flip: self.flipped };
        self.isa.dispatch_dots(from);
        if self.exact {
            return match g.mins {
                false => self.exact_rows(panel, unpacked.form::<false, 2, 8>()),
                true => self.exact_rows(panel, unpacked.form::<true, 2, 8>()),
            };
        }
        // e2m1 codes, as byte products take them, are below 32 too.
        let narrow = matches!(g.codes, Codes::Affine4 | Codes::Mxfp4);
        match (g.mins, halves, narrow) {
            (false, 1, true) => self.unpacked_rows(panel, unpacked.form::<false, 1, 4>()),
            (false, 1, false) => self.unpacked_rows(panel, unpacked.form::<false, 1, 8>()),
            (true, 1, true) => self.unpacked_rows(panel, unpacked.form::<true, 1, 4>()),
            (true, 1, false) => self.unpacked_rows(panel, unpacked.form::<true, 1, 8>()),
            (false, _, _) => self.unpacked_rows(panel, unpacked.form::<false, 2, 8>()),
            (true, _, _) => self.unpacked_rows(panel, unpacked.form::<true, 2, 8>()),
        }
    }

    /// An unpacked panel times all rows, by matrix tiles where there are some.
    fn unpacked_rows<const MINS: bool, const HALVES: usize, const BITS: u8>(
        &self,
        panel: usize,
        form: Plain<MINS, HALVES, BITS>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.isa.tiles() {
            // SAFETY: whoever has tiles has AVX-512 with VNNI, and the panel was just unpacked.
            return unsafe { super::tiles::rows(self, panel, form, form.codes()) };
        }
        self.rows(panel, form);
    }

    /// A panel times all rows, in the largest tiles that registers hold.
    fn rows<F: Form>(&self, panel: usize, form: F) {
        for chunk in 0..self.chunked.chunks() {
            chunk_rows(At { part: self, panel, chunk: self.chunked.chunk(chunk), from: 0 }, form);
        }
    }

    /// An unpacked panel with activations as they are.
    fn exact_rows<F: Form>(&self, panel: usize, form: F) {
        let most = self.isa.dots().tile;
        for chunk in 0..self.chunked.chunks() {
            let chunk = self.chunked.chunk(chunk);
            let mut from = 0;
            while from < chunk.stride {
                let (isa, at) = (self.isa, At { part: self, panel, chunk, from });
                from += match most.min(chunk.stride - from) {
                    4.. => isa.dispatch_dots(ExactTile::<F, 4> { at, form }),
                    _ => isa.dispatch_dots(ExactTile::<F, 1> { at, form }),
                };
            }
        }
    }
}

/// Rows of a chunk from `from` on, and a panel.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) part: &'a Part<'a>,
    pub(super) panel: usize,
    pub(super) chunk: Chunk,
    pub(super) from: usize,
}

/// A panel times all rows of a chunk from `at` on.
pub(super) fn chunk_rows<F: Form>(mut at: At<'_>, form: F) {
    let isa = at.part.isa;
    while at.from < at.chunk.stride {
        at.from += match isa.dots().tile.min(at.chunk.stride - at.from) {
            16.. => isa.dispatch_dots(Tile::<F, 16> { at, form }),
            8.. => isa.dispatch_dots(Tile::<F, 8> { at, form }),
            4.. => isa.dispatch_dots(Tile::<F, 4> { at, form }),
            2.. => isa.dispatch_dots(Tile::<F, 2> { at, form }),
            _ => isa.dispatch_dots(Tile::<F, 1> { at, form }),
        };
    }
}

/// `T` rows times a panel. Gives `T`. A type of its own for each tile, so that each is compiled by itself.
struct Tile<'a, F: Form, const T: usize> {
    at: At<'a>,
    form: F,
}

impl<F: Form, const T: usize> DotKernel for Tile<'_, F, T> {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<D: Dots>(self) -> usize {
        if const { T > D::TILE || (F::DIRECT && !D::DIRECT) } {
            unreachable!("no such tile is asked for");
        }
        let Self { at: At { part, panel, chunk, from }, form } = self;
        let (blocks, stride) = (part.w.geometry.blocks(), chunk.stride);
        // SAFETY: all blocks of the panel and the chunk, rows below its stride; the caller vouches for the
        // instructions.
        unsafe {
            // Few rows leave registers for all outputs of the panel, which is then walked once.
            if const { T <= 2 && 2 * D::ROWS == ROWS } {
                let mut sums = [[D::splat(0.0); T]; 2];
                let mut x = Rows::of(&chunk, from);
                for block in 0..blocks {
                    form.ask::<D>(block);
                    for (eight, sums) in sums.iter_mut().enumerate() {
                        a_block::<D, F, T>(&form, (block, eight * D::ROWS), &x, stride, sums);
                    }
                    x.next(stride, F::HALVES);
                }
                for (eight, sums) in sums.into_iter().enumerate() {
                    for (t, sum) in sums.into_iter().enumerate() {
                        finish::<D>(part, panel, eight * D::ROWS, &chunk, from + t, sum);
                    }
                }
                return T;
            }
            for lane in (0..ROWS).step_by(D::ROWS) {
                let mut sums = [D::splat(0.0); T];
                let mut x = Rows::of(&chunk, from);
                for block in 0..blocks {
                    if lane == 0 {
                        form.ask::<D>(block);
                    }
                    a_block::<D, F, T>(&form, (block, lane), &x, stride, &mut sums);
                    x.next(stride, F::HALVES);
                }
                for t in 0..T {
                    finish::<D>(part, panel, lane, &chunk, from + t, sums[t]);
                }
            }
        }
        T
    }
}

/// A block of a tile's activations.
struct Rows {
    codes: *const i8,
    scales: *const f32,
    starts: *const i32,
    sums: *const f32,
}

impl Rows {
    #[inline(always)]
    fn of(chunk: &Chunk, from: usize) -> Self {
        Self {
            codes: chunk.codes.wrapping_add(from * BLOCK),
            scales: chunk.scales.wrapping_add(from),
            starts: chunk.starts.wrapping_add(from),
            sums: chunk.sums.wrapping_add(from),
        }
    }

    #[inline(always)]
    fn next(&mut self, stride: usize, halves: usize) {
        self.codes = self.codes.wrapping_add(stride * BLOCK);
        self.scales = self.scales.wrapping_add(stride);
        self.starts = self.starts.wrapping_add(stride * halves);
        self.sums = self.sums.wrapping_add(stride * halves);
    }
}

/// A block's products, by one scale for each output or by two.
#[inline(always)]
unsafe fn a_block<D: Dots, F: Form, const T: usize>(
    form: &F,
    (block, lane): (usize, usize),
    x: &Rows,
    stride: usize,
    sums: &mut [D::F; T],
) {
    // SAFETY: as the caller's.
    unsafe {
        let w = form.weights::<D>(block, lane);
        if F::HALVES == 1 {
            whole_block::<D, F, T>(form, (block, lane), w, x, sums);
        } else {
            for half in 0..2 {
                half_block::<D, F, T>(form, (block, half, lane), w[half], x, stride, sums);
            }
        }
    }
}

#[inline(always)]
unsafe fn whole_block<D: Dots, F: Form, const T: usize>(
    form: &F,
    (block, lane): (usize, usize),
    w: [[D::W; 4]; 2],
    x: &Rows,
    sums: &mut [D::F; T],
) {
    // SAFETY: as the caller's.
    unsafe {
        let scale = form.scale::<D>(block, 0, lane);
        let min = if F::MINS { form.min::<D>(block, 0, lane) } else { scale };
        for t in 0..T {
            let codes = x.codes.add(t * BLOCK);
            let start = D::splat_int(*x.starts.add(t));
            let sum = dots::<D, F>(dots::<D, F>(start, w[0], codes), w[1], codes.add(BLOCK / 2));
            let part = D::mul(D::float(sum), scale);
            sums[t] = D::fma(part, D::splat(*x.scales.add(t)), sums[t]);
            if F::MINS {
                sums[t] = D::fma(min, D::splat(*x.sums.add(t)), sums[t]);
            }
        }
    }
}

#[inline(always)]
unsafe fn half_block<D: Dots, F: Form, const T: usize>(
    form: &F,
    (block, half, lane): (usize, usize, usize),
    w: [D::W; 4],
    x: &Rows,
    stride: usize,
    sums: &mut [D::F; T],
) {
    // SAFETY: as the caller's.
    unsafe {
        let scale = form.scale::<D>(block, half, lane);
        let min = if F::MINS { form.min::<D>(block, half, lane) } else { scale };
        for t in 0..T {
            let codes = x.codes.add(t * BLOCK + half * BLOCK / 2);
            let start = D::splat_int(*x.starts.add(half * stride + t));
            let part = D::mul(D::float(dots::<D, F>(start, w, codes)), scale);
            sums[t] = D::fma(part, D::splat(*x.scales.add(t)), sums[t]);
            if F::MINS {
                sums[t] = D::fma(min, D::splat(*x.sums.add(half * stride + t)), sums[t]);
            }
        }
    }
}

/// The same with f32 activations: a block's columns one after the other, then the blocks.
struct ExactTile<'a, F: Form, const T: usize> {
    at: At<'a>,
    form: F,
}

impl<F: Form, const T: usize> DotKernel for ExactTile<'_, F, T> {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<D: Dots>(self) -> usize {
        if const { T > D::TILE } {
            unreachable!("no such tile is asked for");
        }
        let Self { at: At { part, panel, chunk, from }, form } = self;
        // SAFETY: as for `Tile`.
        unsafe {
            let zero = D::splat(f32::from(part.w.geometry.zero));
            for lane in (0..ROWS).step_by(D::ROWS) {
                let mut sums = [D::splat(0.0); T];
                for block in 0..part.w.geometry.blocks() {
                    let x = chunk.values.add((block * chunk.stride + from) * BLOCK);
                    let mut parts = [D::splat(0.0); T];
                    for half in 0..2 {
                        let scale = form.scale::<D>(block, half, lane);
                        let min = if F::MINS { form.min::<D>(block, half, lane) } else { scale };
                        let values = Values::<D> { zero, scale, min };
                        for quad in half * 4..half * 4 + 4 {
                            let w = form.quad::<D>(block, quad, lane);
                            let x = x.add(quad * 4);
                            values.step::<T>(F::MINS, D::byte::<0>(w), x, &mut parts);
                            values.step::<T>(F::MINS, D::byte::<1>(w), x.add(1), &mut parts);
                            values.step::<T>(F::MINS, D::byte::<2>(w), x.add(2), &mut parts);
                            values.step::<T>(F::MINS, D::byte::<3>(w), x.add(3), &mut parts);
                        }
                    }
                    for t in 0..T {
                        sums[t] = D::add(sums[t], parts[t]);
                    }
                }
                for t in 0..T {
                    finish::<D>(part, panel, lane, &chunk, from + t, sums[t]);
                }
            }
        }
        T
    }
}

/// What codes stand for.
struct Values<D: Dots> {
    zero: D::F,
    scale: D::F,
    min: D::F,
}

impl<D: Dots> Values<D> {
    /// One column.
    #[inline(always)]
    unsafe fn step<const T: usize>(&self, mins: bool, code: D::I, x: *const f32, parts: &mut [D::F; T]) {
        // SAFETY: as the caller's.
        unsafe {
            let mut value = D::mul(D::sub(D::float(code), self.zero), self.scale);
            if mins {
                value = D::add(value, self.min);
            }
            for t in 0..T {
                parts[t] = D::fma(value, D::splat(*x.add(t * BLOCK)), parts[t]);
            }
        }
    }
}

/// Writes a row's results of a panel.
#[inline(always)]
pub(super) unsafe fn finish<D: Dots>(
    part: &Part<'_>,
    panel: usize,
    lane: usize,
    chunk: &Chunk,
    row: usize,
    sums: D::F,
) {
    if row >= chunk.rows {
        return;
    }
    let column = panel * ROWS + lane;
    let there = part.out.columns.saturating_sub(column).min(D::ROWS);
    // SAFETY: inside the output, in columns of this part's panels, which no other worker writes; biases are as many
    // as columns.
    unsafe {
        let to = part.out.at(chunk.row + row, column);
        if there == D::ROWS {
            let mut sums = sums;
            if let Some(bias) = part.out.bias {
                sums = D::add(sums, D::load(bias.as_ptr().add(column)));
            }
            if part.out.add {
                sums = D::add(D::load(to), sums);
            }
            D::store(to, sums);
            return;
        }
        let mut values = [0.0f32; ROWS];
        D::store(values.as_mut_ptr(), sums);
        for (at, value) in values.iter().enumerate().take(there) {
            let value = part.out.bias.map_or(*value, |bias| value + bias[column + at]);
            let to = to.add(at);
            *to = if part.out.add { *to + value } else { value };
        }
    }
}

#[inline(always)]
unsafe fn dots<D: Dots, F: Form>(start: D::I, w: [D::W; 4], x: *const i8) -> D::I {
    // SAFETY: as the caller's.
    unsafe {
        match F::BITS {
            4 => D::dot(start, w, x),
            6 => D::dot_six(start, w, x),
            _ => D::dot_wide(start, w, x),
        }
    }
}
