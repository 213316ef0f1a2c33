//! Weights in codes of four or eight bits, with a scale (and, in some formats, a minimum) for each group of columns.
//!
//! A panel holds sixteen rows, so that sixteen outputs lie side by side in one register and no sum across lanes is
//! needed. It is one stream of memory: records of [`Geometry::record_columns`] columns, each with its scales, then
//! its minima, then blocks of 32 columns. In a block four columns of a row are neighbours, as byte products take
//! them: `[quad of columns][16 rows][4]`; with four bits the low half of a byte belongs to columns 0..16 and the high
//! half to columns 16..32. With six bits the lower four lie so, and behind them the upper two: of quads 0..4 in the four
//! pairs of bits of the first 64 bytes, of quads 4..8 in the next 64.
//!
//! Where a file has a scale for 256 columns and small whole numbers that it is multiplied with for each group, both stay
//! as they are ([`Geometry::factors`]): the products are exact in f32, and expanded they would be half as many bytes again.

pub(crate) mod pack;
pub(crate) mod product;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod unpack;

use std::io;

use half::{bf16, f16};

use crate::buffer::Buffer;
use crate::pack::BLOCK;

/// Rows in a panel.
pub(crate) const ROWS: usize = 16;

/// What a code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codes {
    /// A number from 0 to 15.
    Affine4,
    /// A number from 0 to 63.
    Affine6,
    /// A number from 0 to 255.
    Affine8,
    /// An e2m1 float of four bits (OCP Microscaling Formats 1.0, section 5.3.3): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and, with the
    /// upper bit, their negatives.
    Mxfp4,
}

/// How grouped weights are stored: `value = scale * (code - zero)`, or `scale * code + min` where there is no zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupedFormat {
    /// What a code means.
    pub codes: Codes,
    /// Columns that share a scale: 16, 32, 64 or 128.
    pub group: usize,
    /// The code that means zero; each group has a minimum where absent. Without meaning for [`Codes::Mxfp4`].
    pub zero: Option<u8>,
}

/// A matrix `[rows, columns]` of codes, read row by row.
pub trait GroupedRows: Sync {
    /// Outputs.
    fn rows(&self) -> usize;
    /// Inputs.
    fn columns(&self) -> usize;
    /// Writes a row: `columns` codes, one a byte, and for each of its groups a scale and a minimum (which stays as it is
    /// where the format has a zero).
    fn read(&self, row: usize, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]);

    /// Where every [`SUPER`] columns share a scale, and a group's is that times a whole number: writes the row's; else
    /// nothing, and false. What [`GroupedRows::read`] writes is their products.
    fn read_factors(&self, row: usize, out: &mut Factors<'_>) -> bool {
        let _ = (row, out);
        false
    }
}

/// Scales of a row in two steps.
#[derive(Debug)]
pub struct Factors<'a> {
    /// Of every [`SUPER`] columns; each is exactly an f16.
    pub scales: &'a mut [f32],
    /// Likewise; left alone where the format has a zero.
    pub mins: &'a mut [f32],
    /// Of every group: 0 to 255, or the bits of -128 to 127 where the format has a zero.
    pub of_scales: &'a mut [u8],
    /// Of every group: 0 to 255. Left alone where the format has a zero.
    pub of_mins: &'a mut [u8],
}

/// Columns that share a scale where there are factors.
pub const SUPER: usize = 256;

/// How scales and minima are stored: in the fewest bits that hold every one of a matrix's exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    F16,
    Bf16,
    F32,
}

impl Scales {
    const fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Its bytes, and whether they are exactly it.
    fn store(self, value: f32, to: &mut [u8]) -> bool {
        match self {
            Self::F16 => {
                let stored = f16::from_f32(value);
                to.copy_from_slice(&stored.to_le_bytes());
                stored.to_f32().to_bits() == value.to_bits()
            }
            Self::Bf16 => {
                let stored = bf16::from_bits((value.to_bits() >> 16) as u16);
                to.copy_from_slice(&stored.to_le_bytes());
                stored.to_f32().to_bits() == value.to_bits()
            }
            Self::F32 => {
                to.copy_from_slice(&value.to_le_bytes());
                true
            }
        }
    }

    fn load(self, from: &[u8]) -> f32 {
        match self {
            Self::F16 => f16::from_le_bytes([from[0], from[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([from[0], from[1]]).to_f32(),
            Self::F32 => f32::from_le_bytes([from[0], from[1], from[2], from[3]]),
        }
    }
}

/// Where things lie in a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) codes: Codes,
    /// Columns that share a scale.
    pub(crate) group: usize,
    /// What is taken from a code (from what [`Codes::Mxfp4`] stands for, doubled and shifted, see [`MX_CODES`]).
    pub(crate) zero: u8,
    /// Whether groups have a minimum.
    pub(crate) mins: bool,
    pub(crate) scales: Scales,
    /// Scales are for whole records, and each group has a factor of one byte.
    pub(crate) factors: bool,
    pub(crate) columns: usize,
}

/// Twice an e2m1 float's value, plus twelve: what byte products take.
pub(crate) const MX_CODES: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// What stands for 0 in [`MX_CODES`].
const MX_ZERO: u8 = 12;

impl Geometry {
    pub(crate) fn new(format: GroupedFormat, columns: usize, scales: Scales) -> Self {
        let (zero, mins) = match (format.codes, format.zero) {
            (Codes::Mxfp4, _) => (MX_ZERO, false),
            (_, Some(zero)) => (zero, false),
            (_, None) => (0, true),
        };
        Self { codes: format.codes, group: format.group, zero, mins, scales, factors: false, columns }
    }

    /// The same with factors.
    pub(crate) fn with_factors(self) -> Self {
        Self { scales: Scales::F16, factors: true, ..self }
    }

    /// Columns in a record: two blocks at least, so that the codes of groups of 32 begin at cache lines.
    pub(crate) fn record_columns(&self) -> usize {
        if self.factors { SUPER } else { self.group.max(2 * BLOCK) }
    }

    /// Scale vectors in a record.
    pub(crate) fn vectors(&self) -> usize {
        self.record_columns() / self.group
    }

    /// Bytes of a scale for each of sixteen rows.
    pub(crate) fn vector_bytes(&self) -> usize {
        ROWS * self.scales.size()
    }

    /// Bytes of a record's scales.
    pub(crate) fn scale_bytes(&self) -> usize {
        if self.factors {
            self.vector_bytes() + self.vectors() * ROWS
        } else {
            self.vectors() * self.vector_bytes()
        }
    }

    /// Bytes before a record's codes.
    pub(crate) fn head_bytes(&self) -> usize {
        self.scale_bytes() * if self.mins { 2 } else { 1 }
    }

    /// Bytes of a block of 32 columns.
    pub(crate) fn block_bytes(&self) -> usize {
        match self.codes {
            Codes::Affine8 => ROWS * BLOCK,
            Codes::Affine6 => ROWS * BLOCK * 3 / 4,
            Codes::Affine4 | Codes::Mxfp4 => ROWS * BLOCK / 2,
        }
    }

    pub(crate) fn record_blocks(&self) -> usize {
        self.record_columns() / BLOCK
    }

    pub(crate) fn record_bytes(&self) -> usize {
        self.head_bytes() + self.record_blocks() * self.block_bytes()
    }

    pub(crate) fn records(&self) -> usize {
        self.columns.div_ceil(self.record_columns())
    }

    /// Blocks in a panel, those of padding included.
    pub(crate) fn blocks(&self) -> usize {
        self.records() * self.record_blocks()
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.records() * self.record_bytes()
    }

    /// A group's scale (or minimum) of one row, from where a record's scales (or minima) begin.
    fn scale(&self, from: &[u8], group: usize, lane: usize) -> f32 {
        if !self.factors {
            return self.scales.load(&from[group * self.vector_bytes() + lane * self.scales.size()..]);
        }
        let factor = from[self.vector_bytes() + group * ROWS + lane];
        let factor = if self.mins { f32::from(factor) } else { f32::from(factor.cast_signed()) };
        self.scales.load(&from[lane * self.scales.size()..]) * factor
    }

    /// Scales (and minima) that a block has: one, or two where a group is half a block.
    pub(crate) fn halves(&self) -> usize {
        if self.group < BLOCK { 2 } else { 1 }
    }
}

/// A matrix of grouped codes in panels.
#[derive(Debug)]
pub(crate) struct Grouped {
    pub(crate) geometry: Geometry,
    pub(crate) bytes: Buffer<u8>,
}

impl Grouped {
    /// Writes row `row` to `out`.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let g = &self.geometry;
        let panel = &self.bytes[row / ROWS * g.panel_bytes()..][..g.panel_bytes()];
        let lane = row % ROWS;
        for (at, out) in out.iter_mut().enumerate() {
            let record = &panel[at / g.record_columns() * g.record_bytes()..][..g.record_bytes()];
            let column = at % g.record_columns();
            let group = column / g.group;
            let block = &record[g.head_bytes() + column / BLOCK * g.block_bytes()..][..g.block_bytes()];
            let code = code_of(g.codes, block, lane, column % BLOCK);
            *out = f32::from(i16::from(code) - i16::from(g.zero)) * g.scale(record, group, lane);
            if g.mins {
                *out += g.scale(&record[g.scale_bytes()..], group, lane);
            }
        }
    }
}

/// The code of a row and column in a block, as byte products take it.
fn code_of(codes: Codes, block: &[u8], lane: usize, column: usize) -> u8 {
    let at = |column: usize| column / 4 * ROWS * 4 + lane * 4 + column % 4;
    if codes == Codes::Affine8 {
        return block[at(column)];
    }
    let both = block[at(column % (BLOCK / 2))];
    let code = if column < BLOCK / 2 { both & 0x0f } else { both >> 4 };
    match codes {
        Codes::Mxfp4 => MX_CODES[usize::from(code)],
        Codes::Affine6 => {
            let quad = column / 4;
            let tops = block[ROWS * BLOCK / 2 + quad / 4 * ROWS * 4 + lane * 4 + column % 4];
            code | (tops >> (2 * (quad % 4)) & 3) << 4
        }
        Codes::Affine4 | Codes::Affine8 => code,
    }
}

pub(crate) fn zeroed(len: usize) -> io::Result<Buffer<u8>> {
    Buffer::zeroed(len)
}

#[cfg(test)]
mod tests;
