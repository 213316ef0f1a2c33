//! Weights as the matrix product reads them: panels of eight rows, one stream of memory each.
//!
//! A panel holds eight rows in blocks of 32 columns: `[column block][row][32]`. The product walks it from end to
//! end, so that the memory system sees one stream. Rows and columns are padded with zeros to whole panels and
//! blocks. In bf16 the two halves of a block's row are interleaved, so that a shift gives columns 0..16 and a mask
//! columns 16..32.

use std::io;

use half::{bf16, f16};

use crate::activations::Activations;
use crate::buffer::Buffer;
use crate::grouped::{self, Grouped, GroupedFormat, GroupedRows};
use crate::shared::SharedMut;
use crate::team::Team;

/// Rows in a panel.
pub(crate) const PANEL_ROWS: usize = 8;
/// Columns in a block.
pub(crate) const BLOCK: usize = 32;

/// How one weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightElement {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl WeightElement {
    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A matrix `[rows, columns]` as a file has it: row-major, little-endian, at any alignment.
#[derive(Clone, Copy)]
pub struct WeightBytes<'a> {
    /// How an element is stored.
    pub element: WeightElement,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// `rows * columns` elements.
    pub bytes: &'a [u8],
}

/// Why a matrix cannot be packed.
#[derive(Debug)]
pub enum PackError {
    /// The bytes are not as many as the shape says.
    Size {
        /// What the shape says.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// Parts to be stacked differ in columns.
    Columns {
        /// Of the first part.
        expected: usize,
        /// Of a later one.
        found: usize,
    },
    /// Groups of so many columns.
    Group(usize),
    /// Parts to be stacked, already packed, are none.
    Nothing,
    /// A row has a scale or minimum that is infinite or not a number.
    NotFinite {
        /// In the whole matrix.
        row: usize,
    },
    /// No memory.
    Memory(io::Error),
}

impl std::fmt::Display for PackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size { expected, found } => write!(f, "{found} bytes where the shape needs {expected}"),
            Self::Columns { expected, found } => {
                write!(f, "{found} columns below a matrix of {expected} columns")
            }
            Self::Group(group) => {
                write!(f, "groups of {group} columns, where 16, 32, 64 and 128 can be computed with")
            }
            Self::Nothing => f.write_str("a matrix of no parts"),
            Self::NotFinite { row } => {
                write!(f, "row {row} has a scale or minimum that is infinite or not a number")
            }
            Self::Memory(_) => f.write_str("no memory for the packed weights"),
        }
    }
}

impl std::error::Error for PackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Memory(cause) => Some(cause),
            Self::Size { .. }
            | Self::Columns { .. }
            | Self::Group(_)
            | Self::Nothing
            | Self::NotFinite { .. } => None,
        }
    }
}

/// A matrix `[rows, columns]` in panels.
#[derive(Debug)]
pub struct PackedMatrix {
    rows: usize,
    columns: usize,
    pub(crate) activations: Activations,
    pub(crate) panels: Panels,
}

#[derive(Debug)]
pub(crate) enum Panels {
    F32(Buffer<f32>),
    F16(Buffer<u16>),
    Bf16(Buffer<u16>),
    Grouped(Grouped),
    /// Matrices of unlike types, one below the other.
    Stack(Vec<PackedMatrix>),
}

impl PackedMatrix {
    /// Stacks `parts` (one below the other) into panels of `element`, rounding to nearest even where it has fewer
    /// bits than the source.
    ///
    /// # Errors
    /// Bytes and shape disagree, parts differ in columns, or there is no memory.
    pub fn pack(parts: &[WeightBytes<'_>], element: WeightElement, team: &Team) -> Result<Self, PackError> {
        let columns = parts.first().map_or(0, |part| part.columns);
        let mut rows = 0;
        for part in parts {
            if part.columns != columns {
                return Err(PackError::Columns { expected: columns, found: part.columns });
            }
            let elements = part.rows.saturating_mul(part.columns);
            let expected = elements.saturating_mul(part.element.size());
            if part.bytes.len() != expected {
                return Err(PackError::Size { expected, found: part.bytes.len() });
            }
            rows += part.rows;
        }
        let len = rows.div_ceil(PANEL_ROWS) * panel_len(columns);
        macro_rules! stacked {
            ($stack:ident) => {{
                let mut panels = Buffer::zeroed(len).map_err(PackError::Memory)?;
                let mut first_row = 0;
                for part in parts {
                    $stack(Place { panels: &mut panels, first_row, team }, part);
                    first_row += part.rows;
                }
                panels
            }};
        }
        let panels = match element {
            WeightElement::F32 => Panels::F32(stacked!(stack_f32)),
            WeightElement::F16 => Panels::F16(stacked!(stack_f16)),
            WeightElement::Bf16 => Panels::Bf16(stacked!(stack_bf16)),
        };
        Ok(Self { rows, columns, activations: Activations::default(), panels })
    }

    /// Stacks `parts` (one below the other) into panels of grouped codes, as they are: only where they are stored
    /// changes. Scales and minima take the fewest bits that hold all of them.
    ///
    /// # Errors
    /// Groups of a size that there is no loop for, parts that differ in columns, a scale that is no finite number, or
    /// no memory.
    pub fn pack_grouped(
        parts: &[&dyn GroupedRows],
        format: GroupedFormat,
        team: &Team,
    ) -> Result<Self, PackError> {
        let (rows, columns, grouped) = grouped::pack::pack(parts, format, team)?;
        Ok(Self { rows, columns, activations: Activations::default(), panels: Panels::Grouped(grouped) })
    }

    /// One matrix of several, one below the other: for parts whose types differ.
    ///
    /// # Errors
    /// There are none, or they differ in columns.
    pub fn stack(parts: Vec<Self>) -> Result<Self, PackError> {
        let Some(first) = parts.first() else { return Err(PackError::Nothing) };
        let (columns, activations) = (first.columns, first.activations);
        if let Some(other) = parts.iter().find(|part| part.columns != columns) {
            return Err(PackError::Columns { expected: columns, found: other.columns });
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Ok(Self { rows, columns, activations, panels: Panels::Stack(parts) })
    }

    /// The same matrix, with which activations are multiplied so.
    #[must_use]
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        if let Panels::Stack(parts) = &mut self.panels {
            for part in parts {
                part.activations = activations;
            }
        }
        self
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Memory it takes, padding included.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => size_of_val::<[f32]>(panels),
            Panels::F16(panels) | Panels::Bf16(panels) => size_of_val::<[u16]>(panels),
            Panels::Grouped(grouped) => grouped.bytes.len(),
            Panels::Stack(parts) => parts.iter().map(Self::bytes).sum(),
        }
    }

    /// Writes row `row` to `out`, which has [`Self::columns`] elements: an embedding's look-up.
    ///
    /// # Panics
    /// There is no such row, or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.columns, "a row has as many elements as the matrix columns");
        match &self.panels {
            Panels::F32(panels) => self.read_row(row, out, |at, column| panels[at + column]),
            Panels::F16(panels) => {
                self.read_row(row, out, |at, column| f16::from_bits(panels[at + column]).to_f32());
            }
            Panels::Bf16(panels) => {
                self.read_row(row, out, |at, column| {
                    bf16::from_bits(panels[at + interleaved(column)]).to_f32()
                });
            }
            Panels::Grouped(grouped) => grouped.row(row, out),
            Panels::Stack(parts) => {
                let mut row = row;
                for part in parts {
                    if row < part.rows {
                        return part.row(row, out);
                    }
                    row -= part.rows;
                }
            }
        }
    }

    /// `read(start of a block's row, column in it)`.
    fn read_row(&self, row: usize, out: &mut [f32], read: impl Fn(usize, usize) -> f32) {
        let panel = row / PANEL_ROWS * panel_len(self.columns);
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let at = panel + (block * PANEL_ROWS + row % PANEL_ROWS) * BLOCK;
            for (column, out) in out.iter_mut().enumerate() {
                *out = read(at, column);
            }
        }
    }
}

/// Elements in a panel.
pub(crate) fn panel_len(columns: usize) -> usize {
    columns.div_ceil(BLOCK) * BLOCK * PANEL_ROWS
}

/// Where column `column` of a bf16 block lies.
fn interleaved(column: usize) -> usize {
    if column < BLOCK / 2 { 2 * column } else { 2 * (column - BLOCK / 2) + 1 }
}

fn read_f32(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn read_u16(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn read_f16(bytes: &[u8]) -> f32 {
    f16::from_bits(read_u16(bytes)).to_f32()
}

fn read_bf16(bytes: &[u8]) -> f32 {
    bf16::from_bits(read_u16(bytes)).to_f32()
}

/// Where the rows of a part go.
struct Place<'a, T> {
    panels: &'a mut [T],
    first_row: usize,
    team: &'a Team,
}

fn stack_f32(to: Place<'_, f32>, part: &WeightBytes<'_>) {
    match part.element {
        WeightElement::F32 => stack::<_, false>(to, part, read_f32),
        WeightElement::F16 => stack::<_, false>(to, part, read_f16),
        WeightElement::Bf16 => stack::<_, false>(to, part, read_bf16),
    }
}

fn stack_f16(to: Place<'_, u16>, part: &WeightBytes<'_>) {
    let round = |x| f16::from_f32(x).to_bits();
    match part.element {
        WeightElement::F32 => stack::<_, false>(to, part, |bytes| round(read_f32(bytes))),
        WeightElement::F16 => stack::<_, false>(to, part, read_u16),
        WeightElement::Bf16 => stack::<_, false>(to, part, |bytes| round(read_bf16(bytes))),
    }
}

fn stack_bf16(to: Place<'_, u16>, part: &WeightBytes<'_>) {
    let round = |x| bf16::from_f32(x).to_bits();
    match part.element {
        WeightElement::F32 => stack::<_, true>(to, part, |bytes| round(read_f32(bytes))),
        WeightElement::F16 => stack::<_, true>(to, part, |bytes| round(read_f16(bytes))),
        WeightElement::Bf16 => stack::<_, true>(to, part, read_u16),
    }
}

/// Copies `part` into its rows of `to`, each element through `read`.
fn stack<T: Copy + Send + Sync, const INTERLEAVE: bool>(
    to: Place<'_, T>,
    part: &WeightBytes<'_>,
    read: impl Fn(&[u8]) -> T + Sync,
) {
    let (size, columns) = (part.element.size(), part.columns);
    let rows = to.first_row..to.first_row + part.rows;
    let first_panel = rows.start / PANEL_ROWS;
    let panel_len = panel_len(columns);
    let panels = SharedMut::new(to.panels);
    let pack_panel = |panel: usize| {
        // SAFETY: each panel is handed out once.
        let out = unsafe { panels.part(panel * panel_len, panel_len) };
        for row in rows.start.max(panel * PANEL_ROWS)..rows.end.min((panel + 1) * PANEL_ROWS) {
            let from = (row - rows.start) * columns * size;
            let bytes = &part.bytes[from..from + columns * size];
            for (block, bytes) in bytes.chunks(BLOCK * size).enumerate() {
                let at = (block * PANEL_ROWS + row % PANEL_ROWS) * BLOCK;
                let out = &mut out[at..at + BLOCK];
                if INTERLEAVE && bytes.len() == BLOCK * size {
                    // As below, in a form that compiles to vectors: loading is most of a model's start.
                    let (low, high) = bytes.split_at(BLOCK / 2 * size);
                    let columns = low.chunks_exact(size).zip(high.chunks_exact(size));
                    for (out, (low, high)) in out.chunks_exact_mut(2).zip(columns) {
                        (out[0], out[1]) = (read(low), read(high));
                    }
                    continue;
                }
                for (column, bytes) in bytes.chunks_exact(size).enumerate() {
                    out[if INTERLEAVE { interleaved(column) } else { column }] = read(bytes);
                }
            }
        }
    };
    to.team.share(rows.end.div_ceil(PANEL_ROWS) - first_panel, 4, &|_, range| {
        range.for_each(|panel| pack_panel(first_panel + panel));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(element: WeightElement, values: &[f32]) -> Vec<u8> {
        let each = |x: &f32| match element {
            WeightElement::F32 => x.to_le_bytes().to_vec(),
            WeightElement::F16 => f16::from_f32(*x).to_bits().to_le_bytes().to_vec(),
            WeightElement::Bf16 => bf16::from_f32(*x).to_bits().to_le_bytes().to_vec(),
        };
        values.iter().flat_map(each).collect()
    }

    #[test]
    fn stacked_rows_read_back_in_every_pair_of_types() {
        use WeightElement::{Bf16, F16, F32};
        let team = Team::new(2);
        for (from, to) in [F32, F16, Bf16].iter().flat_map(|&from| [F32, F16, Bf16].map(|to| (from, to))) {
            for columns in [1, 31, 32, 70] {
                // Small whole numbers and halves are the same in all three types.
                let value = |row: usize, column: usize| ((row * 7 + column) % 41) as f32 * 0.5 - 9.0;
                let values = |rows: std::ops::Range<usize>| -> Vec<f32> {
                    rows.flat_map(|row| (0..columns).map(move |column| value(row, column))).collect()
                };
                let (first, second) = (bytes(from, &values(0..5)), bytes(from, &values(5..19)));
                let part = |rows, bytes| WeightBytes { element: from, rows, columns, bytes };
                let packed = PackedMatrix::pack(&[part(5, &first), part(14, &second)], to, &team).unwrap();
                assert_eq!((packed.rows(), packed.columns()), (19, columns));
                for row in 0..19 {
                    let mut out = vec![0.0; columns];
                    packed.row(row, &mut out);
                    assert_eq!(out, (0..columns).map(|column| value(row, column)).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn too_few_bytes_and_unlike_parts_are_refused_with_both_numbers() {
        let team = Team::new(1);
        let part = |rows, columns, bytes| WeightBytes { element: WeightElement::F32, rows, columns, bytes };
        let short = PackedMatrix::pack(&[part(2, 3, &[0; 23])], WeightElement::F32, &team).unwrap_err();
        assert_eq!(short.to_string(), "23 bytes where the shape needs 24");
        let unlike =
            PackedMatrix::pack(&[part(1, 2, &[0; 8]), part(1, 1, &[0; 4])], WeightElement::F32, &team);
        assert_eq!(unlike.unwrap_err().to_string(), "1 columns below a matrix of 2 columns");
        let absurd = PackedMatrix::pack(&[part(usize::MAX, 2, &[0; 8])], WeightElement::F32, &team);
        assert!(matches!(absurd, Err(PackError::Size { .. })));
    }
}
