//! Activations as the loops over grouped weights take them: chunks of sixteen rows, blocks of 32 columns.
//!
//! A chunk holds `[block][row][32]`, so that a tile's rows lie beside each other. Codes are signed bytes with one scale for
//! each row and block (largest magnitude / 127): a row's codes depend on nothing but the row. An activation is off by at
//! most half a step, 1/254 of its block's largest; a dot product of independent roundings by about 0.3 % of its norm.

use std::cell::RefCell;

use crate::dots::{DotKernel, Dots};
use crate::isa::Isa;
use crate::pack::BLOCK;
use crate::shared::SharedMut;
use crate::team::Team;

/// Rows in a chunk.
pub(crate) const CHUNK: usize = 16;
/// Below so many elements the caller does it alone: some microseconds of work.
const ALONE_BELOW: usize = 32 * 1024;

/// How activations meet weights in grouped codes and in bf16; weights in f16 and f32 meet them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// For codes rounded to eight bits, with a scale for each row and 32 columns: several times faster.
    #[default]
    Int8,
    /// The same, and for weights in bf16 rounded to bf16: nearly twice as fast where AVX-512 BF16 is.
    Bf16,
    /// As they are: the product with the weights that the codes stand for, in f32.
    F32,
}

/// Rows of a chunk as they are computed: those above what is there are zeros.
pub(crate) fn padded(rows: usize) -> usize {
    match rows {
        0..=4 => rows,
        5 | 6 => 6,
        7 | 8 => 8,
        9..=12 => 12,
        _ => CHUNK,
    }
}

/// What the weights make of the sums of activations.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    /// A block's integer starts at this times the sum of its codes.
    pub(crate) factor: i32,
    /// Sums for each block: one, or one for each of its halves.
    pub(crate) halves: usize,
}

/// Rows in chunks.
#[derive(Default)]
pub(crate) struct Chunked {
    rows: usize,
    blocks: usize,
    halves: usize,
    codes: Vec<i8>,
    /// In place of codes.
    values: Vec<f32>,
    scales: Vec<f32>,
    starts: Vec<i32>,
    sums: Vec<f32>,
}

/// A chunk: `codes` or `values: [block][stride][32]`, `scales: [block][stride]`, `starts` and `sums:
/// [block][half][stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Chunk {
    /// The first row.
    pub(crate) row: usize,
    /// How many there are.
    pub(crate) rows: usize,
    /// How many are computed.
    pub(crate) stride: usize,
    pub(crate) codes: *const i8,
    pub(crate) values: *const f32,
    pub(crate) scales: *const f32,
    pub(crate) starts: *const i32,
    pub(crate) sums: *const f32,
}

// SAFETY: pointers into a `Chunked` that is only read while chunks are around.
unsafe impl Sync for Chunk {}
// SAFETY: as above.
unsafe impl Send for Chunk {}

thread_local! {
    static CHUNKED: RefCell<Chunked> = RefCell::default();
}

/// Runs `job` with memory that this thread keeps.
pub(crate) fn with_memory<R>(job: impl FnOnce(&mut Chunked) -> R) -> R {
    CHUNKED.with(|chunked| match chunked.try_borrow_mut() {
        Ok(mut chunked) => job(&mut chunked),
        // A product within a product's job, which `Team` forbids where it matters.
        Err(_) => job(&mut Chunked::default()),
    })
}

impl Chunked {
    /// Chunks `x: [rows, columns]` for weights of `blocks` blocks.
    pub(crate) fn fill(
        &mut self,
        (team, isa): (&Team, Isa),
        (x, columns): (&[f32], usize),
        blocks: usize,
        to: (Activations, Sums),
    ) {
        let (activations, sums) = to;
        let rows = x.len() / columns;
        let chunks = rows.div_ceil(CHUNK);
        let stored = (chunks - 1) * CHUNK + padded(rows - (chunks - 1) * CHUNK);
        (self.rows, self.blocks, self.halves) = (rows, blocks, sums.halves);
        match activations {
            Activations::F32 => grow(&mut self.values, stored * blocks * BLOCK),
            Activations::Int8 | Activations::Bf16 => {
                grow(&mut self.codes, stored * blocks * BLOCK);
                grow(&mut self.scales, stored * blocks);
                grow(&mut self.starts, stored * blocks * sums.halves);
                grow(&mut self.sums, stored * blocks * sums.halves);
            }
        }
        let all = Shared {
            codes: SharedMut::new(&mut self.codes),
            values: SharedMut::new(&mut self.values),
            scales: SharedMut::new(&mut self.scales),
            starts: SharedMut::new(&mut self.starts),
            sums: SharedMut::new(&mut self.sums),
        };
        let alone = x.len() < ALONE_BELOW;
        // A row at a time where there is one chunk, so that a batch's rows are shared out too.
        team.share(stored, if alone { stored } else { stored.div_ceil(team.workers() * 4) }, &|_, range| {
            for row in range {
                let first = row / CHUNK * CHUNK;
                let stride = padded((rows - first).min(CHUNK));
                let x = if row < rows { &x[row * columns..][..columns] } else { &[][..] };
                let row = RowTo { all: &all, first, at: row - first, stride, blocks, sums, x };
                match activations {
                    Activations::F32 => row.copy(),
                    Activations::Int8 | Activations::Bf16 => isa.dispatch_dots(row),
                }
            }
        });
    }

    pub(crate) fn chunks(&self) -> usize {
        self.rows.div_ceil(CHUNK)
    }

    pub(crate) fn chunk(&self, chunk: usize) -> Chunk {
        let row = chunk * CHUNK;
        let rows = (self.rows - row).min(CHUNK);
        let at = row * self.blocks;
        Chunk {
            row,
            rows,
            stride: padded(rows),
            codes: self.codes.as_ptr().wrapping_add(at * BLOCK),
            values: self.values.as_ptr().wrapping_add(at * BLOCK),
            scales: self.scales.as_ptr().wrapping_add(at),
            starts: self.starts.as_ptr().wrapping_add(at * self.halves),
            sums: self.sums.as_ptr().wrapping_add(at * self.halves),
        }
    }
}

fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
}

struct Shared<'a> {
    codes: SharedMut<'a, i8>,
    values: SharedMut<'a, f32>,
    scales: SharedMut<'a, f32>,
    starts: SharedMut<'a, i32>,
    sums: SharedMut<'a, f32>,
}

/// One row on its way into its chunk.
struct RowTo<'a> {
    all: &'a Shared<'a>,
    /// The chunk's first row, and this one's place after it.
    first: usize,
    at: usize,
    stride: usize,
    blocks: usize,
    sums: Sums,
    /// Nothing: a row of zeros.
    x: &'a [f32],
}

impl RowTo<'_> {
    fn copy(&self) {
        for block in 0..self.blocks {
            let at = self.first * self.blocks + block * self.stride + self.at;
            // SAFETY: each row is handed out once.
            let out = unsafe { self.all.values.part(at * BLOCK, BLOCK) };
            let x = self.x.get(block * BLOCK..).unwrap_or(&[]);
            let x = &x[..x.len().min(BLOCK)];
            out[..x.len()].copy_from_slice(x);
            out[x.len()..].fill(0.0);
        }
    }
}

impl DotKernel for RowTo<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<D: Dots>(self) {
        let halves = self.sums.halves;
        for block in 0..self.blocks {
            let at = self.first * self.blocks + block * self.stride + self.at;
            // SAFETY: each row is handed out once.
            let (codes, scale) =
                unsafe { (self.all.codes.part(at * BLOCK, BLOCK), &mut self.all.scales.part(at, 1)[0]) };
            let mut values = [0.0f32; BLOCK];
            let from = (block * BLOCK).min(self.x.len());
            let x = &self.x[from..self.x.len().min(from + BLOCK)];
            if let Ok(x) = <&[f32; BLOCK]>::try_from(x) {
                values = *x;
            } else {
                values[..x.len()].copy_from_slice(x);
            }
            let codes = codes.try_into().expect("a block's codes");
            let (of_block, sums) = quantise(&values, codes);
            *scale = of_block;
            for half in 0..halves {
                let sum = if halves == 2 { sums[half] } else { sums[0] + sums[1] };
                let at =
                    (self.first * self.blocks + block * self.stride) * halves + half * self.stride + self.at;
                // SAFETY: as above.
                unsafe {
                    self.all.starts.part(at, 1)[0] = self.sums.factor * sum;
                    self.all.sums.part(at, 1)[0] = of_block * sum as f32;
                }
            }
        }
    }
}

/// A block's codes; gives its scale and the sums of the codes of its halves. Where a value is no finite number the
/// scale is none either, so that results tell.
#[inline(always)]
fn quantise(values: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    // Adding it leaves a whole number, rounded to even, in the lower bits.
    const WHOLE: f32 = 12_582_912.0;
    // As bits, magnitudes order as numbers do, and what is no number is largest.
    let mut largest = 0u32;
    for value in values {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    if largest >= f32::INFINITY.to_bits() {
        codes.fill(0);
        return (f32::NAN, [0, 0]);
    }
    let largest = f32::from_bits(largest);
    // Below it the inverse leaves the range of f32, and nothing is lost.
    if largest < 1e-30 {
        codes.fill(0);
        return (0.0, [0, 0]);
    }
    let inverse = 127.0 / largest;
    let mut sums = [0i32; 2];
    for half in 0..2 {
        for at in half * BLOCK / 2..(half + 1) * BLOCK / 2 {
            let code = (values[at] * inverse + WHOLE).to_bits() as i32 - WHOLE.to_bits() as i32;
            codes[at] = code as i8;
            sums[half] += code;
        }
    }
    (largest / 127.0, sums)
}
