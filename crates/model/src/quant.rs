//! Quantised weights: how each stored type groups its codes, and the readers that are the reference for every kernel.
//!
//! Block layouts are those of ggml's `ggml-common.h`, of the OCP microscaling specification (MXFP4) and of MLX's
//! `quantize`; the golden tests hold the readers to their own implementations, bit for bit.

mod ggml;
mod split;

use half::{bf16, f16};

use crate::checkpoint::{Columns, DType, Order, TensorView};

/// What a code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codes {
    /// 0 to 15.
    Affine4,
    /// 0 to 255.
    Affine8,
    /// The place of a value in [`E2M1`].
    Mxfp4,
}

/// How a stored type groups its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grouping {
    /// What a code is.
    pub kind: Codes,
    /// Columns that share a scale: 16, 32, 64 or 128.
    pub group: usize,
    /// Where there is one, `value = scale * (code - zero)`, and no minima; else `value = scale * code + minimum`.
    pub zero: Option<u8>,
}

impl Grouping {
    /// Whether groups have minima.
    pub fn has_mins(&self) -> bool {
        self.zero.is_none() && self.kind != Codes::Mxfp4
    }
}

/// What an MXFP4 code stands for: sign, two bits of exponent, one of mantissa.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The largest block of any type.
const BLOCK_MAX: usize = 256;

/// How `dtype` groups its codes; nothing for floats.
pub fn grouping(dtype: DType) -> Option<Grouping> {
    let (kind, group, zero) = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => return None,
        DType::Q4_0 => (Codes::Affine4, 32, Some(8)),
        DType::Q4_1 | DType::Q4K => (Codes::Affine4, 32, None),
        DType::Q5_0 => (Codes::Affine8, 32, Some(16)),
        DType::Q5_1 | DType::Q5K => (Codes::Affine8, 32, None),
        DType::Q8_0 => (Codes::Affine8, 32, Some(128)),
        DType::Q2K => (Codes::Affine4, 16, None),
        DType::Q3K => (Codes::Affine4, 16, Some(4)),
        DType::Q6K => (Codes::Affine8, 16, Some(32)),
        DType::Mxfp4 | DType::Mxfp4Split => (Codes::Mxfp4, 32, None),
        DType::Mlx { bits, group } => {
            (if bits <= 4 { Codes::Affine4 } else { Codes::Affine8 }, group as usize, None)
        }
    };
    Some(Grouping { kind, group, zero })
}

/// Reads row `row` of a quantised tensor: one code a byte for each column, and for each group its scale and, where the
/// type has minima ([`Grouping::has_mins`]), its minimum; else `mins` is left alone and may be empty.
///
/// # Panics
/// Where the type is a float, there is no such row, or a slice is shorter than the row's columns or groups.
pub fn read_groups(
    view: &TensorView<'_>,
    row: usize,
    codes: &mut [u8],
    scales: &mut [f32],
    mins: &mut [f32],
) {
    let grouping = grouping(view.dtype).expect("a quantised type");
    let group = grouping.group;
    let mut at = 0;
    for run in view.column_runs() {
        let columns = run.len();
        let groups = at / group..(at + columns) / group;
        let out = Groups {
            codes: &mut codes[at..at + columns],
            scales: &mut scales[groups.clone()],
            mins: if grouping.has_mins() { &mut mins[groups] } else { &mut [] },
        };
        match view.dtype {
            DType::Mlx { .. } | DType::Mxfp4Split => split::read(view, row, run.start, out),
            dtype => ggml::read(dtype, view.row_bytes(row), run.start, out),
        }
        at += columns;
    }
}

/// Columns of a type whose scales come in two steps: so many share one, and each group has a factor.
pub const SUPER: usize = 256;

/// Scales (and minima) of a row in two steps.
#[derive(Debug)]
pub struct Factors<'a> {
    /// Of every [`SUPER`] columns.
    pub scales: &'a mut [f32],
    /// Likewise.
    pub mins: &'a mut [f32],
    /// Of every group; the bits of a signed byte where the type has a zero.
    pub of_scales: &'a mut [u8],
    /// Of every group.
    pub of_mins: &'a mut [u8],
}

/// Reads the scales of row `row` in two steps: a group's scale (minimum) is that of its [`SUPER`] columns times its
/// factor. False, and nothing of use is written, where the type has none or columns are not shown in whole such runs.
///
/// # Panics
/// Where there is no such row, or a slice is shorter than its groups (minima of a type with a zero may be missing).
pub fn read_factors(view: &TensorView<'_>, row: usize, out: &mut Factors<'_>) -> bool {
    let mut at = 0;
    for run in view.column_runs() {
        if !run.start.is_multiple_of(SUPER) || !run.len().is_multiple_of(SUPER) {
            return false;
        }
        for column in run.step_by(SUPER) {
            if !ggml::factors(view.dtype, view.row_bytes(row), (column / SUPER, at), out) {
                return false;
            }
            at += 1;
        }
    }
    true
}

/// Where a run's codes, scales and minima go.
struct Groups<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    mins: &'a mut [f32],
}

/// Row `row` of a tensor of any type, as numbers: the reference that kernels are held to.
///
/// # Panics
/// Where there is no such row, or `out` is shorter than its columns.
pub fn dequantise(view: &TensorView<'_>, row: usize, out: &mut [f32]) {
    let columns = view.columns();
    let out = &mut out[..columns];
    if let Some(numbers) = view.turned_row(row) {
        for (out, number) in out.iter_mut().zip(numbers) {
            floats(view.dtype, number, std::slice::from_mut(out));
        }
        return;
    }
    let Some(Grouping { kind, group, zero }) = grouping(view.dtype) else {
        let bytes = view.row_bytes(row);
        let size = view.dtype.block().1;
        let mut at = 0;
        for run in view.column_runs() {
            let len = run.len();
            floats(view.dtype, &bytes[run.start * size..run.end * size], &mut out[at..at + len]);
            at += len;
        }
        return;
    };
    let mut codes = vec![0; columns];
    let mut scales = vec![0.0; columns / group];
    let mut mins = vec![0.0; columns / group];
    read_groups(view, row, &mut codes, &mut scales, &mut mins);
    let groups = out.chunks_exact_mut(group).zip(codes.chunks_exact(group)).zip(scales.iter().zip(&mins));
    for ((out, codes), (&scale, &min)) in groups {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = match (kind, zero) {
                (Codes::Mxfp4, _) => scale * E2M1[usize::from(code & 15)],
                (_, Some(zero)) => scale * (f32::from(code) - f32::from(zero)),
                (_, None) => scale * f32::from(code) + min,
            };
        }
    }
}

/// All of a tensor as numbers, row by row.
pub fn dequantise_all(view: &TensorView<'_>) -> Vec<f32> {
    let (rows, columns) = (view.rows(), view.columns());
    let mut out = vec![0.0; rows * columns];
    for (row, out) in out.chunks_exact_mut(columns.max(1)).enumerate() {
        dequantise(view, row, out);
    }
    out
}

/// Floats of type `dtype` from their bytes.
pub(crate) fn floats(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        DType::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        _ => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}

/// Whether all that a row computes with is finite: its numbers, or its scales and minima.
///
/// # Panics
/// Where there is no such row.
pub fn row_is_finite(view: &TensorView<'_>, row: usize) -> bool {
    // The halves that all else is multiplied with: a model's start reads every row, and this is nearly always the answer.
    if let Some(halves) = ggml::halves(view.dtype) {
        let blocks = view.row_bytes(row).chunks_exact(view.dtype.block().1);
        let finite = |block: &[u8]| halves.iter().all(|&at| block[at + 1] & 0x7c != 0x7c);
        if blocks.into_iter().all(finite) {
            return true;
        }
    }
    let columns = view.columns();
    let Some(grouping) = grouping(view.dtype) else {
        let mut out = vec![0.0; columns];
        dequantise(view, row, &mut out);
        return out.iter().all(|x| x.is_finite());
    };
    let mut codes = vec![0; columns];
    let mut scales = vec![0.0; columns / grouping.group];
    let mut mins = vec![0.0; columns / grouping.group];
    read_groups(view, row, &mut codes, &mut scales, &mut mins);
    scales.iter().chain(&mins).all(|x| x.is_finite())
}

/// Why a tensor cannot be cut so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor {name:?} of shape {shape:?} ({dtype}) cannot be cut at {detail}")]
pub struct SliceError {
    /// As the checkpoint spells it.
    pub name: String,
    /// As the view shows it.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: DType,
    /// What was asked for, and what is possible.
    pub detail: String,
}

/// The part of `view` that has `rows` and `columns` (all of them: the full range). `shape` is what the part will say of
/// itself: `[rows.len(), columns.len()]`, or `[columns.len()]` for a vector.
///
/// # Errors
/// Ranges beyond the tensor; columns that are not cut between groups, or not between the blocks of its order.
pub fn slice<'a>(
    view: &TensorView<'a>,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    shape: &'a [usize],
) -> Result<TensorView<'a>, SliceError> {
    let refuse = |detail: String| {
        Err(SliceError { name: view.name.to_owned(), shape: view.shape.to_vec(), dtype: view.dtype, detail })
    };
    if rows.start > rows.end || rows.end > view.rows() {
        return refuse(format!("rows {rows:?}: it has {}", view.rows()));
    }
    if columns.start > columns.end || columns.end > view.columns() {
        return refuse(format!("columns {columns:?}: it has {}", view.columns()));
    }
    let wanted = if view.shape.len() < 2 { vec![columns.len()] } else { vec![rows.len(), columns.len()] };
    if shape != wanted {
        return refuse(format!("{wanted:?} while calling the part {shape:?}"));
    }
    let unit = match (view.order.columns, grouping(view.dtype)) {
        (Columns::Blocks { width, .. }, _) => width,
        (_, Some(grouping)) => grouping.group,
        (_, None) => 1,
    };
    if !columns.start.is_multiple_of(unit) || !columns.end.is_multiple_of(unit) {
        return refuse(format!("columns {columns:?}: they are cut at multiples of {unit}"));
    }
    let stored = view.stored_columns();
    let order = Order {
        rows: view.order.rows.map(|order| &order[rows.clone()]),
        columns: match view.order.columns {
            Columns::All if columns.len() == stored => Columns::All,
            Columns::All => Columns::From { first: columns.start, stored },
            Columns::From { first, .. } => Columns::From { first: first + columns.start, stored },
            Columns::Across { first, .. } => Columns::Across { first: first + columns.start, stored },
            Columns::Blocks { width, order, .. } => {
                Columns::Blocks { width, order: &order[columns.start / width..columns.end / width], stored }
            }
        },
    };
    let mut part = TensorView { shape, order, ..*view };
    if order.rows.is_none() && view.shape.len() >= 2 {
        let cut = |bytes: &'a [u8], row: usize| &bytes[rows.start * row..rows.end * row];
        part.bytes = cut(view.bytes, view.dtype.row_bytes(stored).expect("stored rows are whole blocks"));
        part.parts = view.parts.map(|parts| {
            let of = |bytes: &'a [u8]| cut(bytes, bytes.len() / view.rows().max(1));
            crate::checkpoint::Parts { scales: of(parts.scales), biases: of(parts.biases), ..parts }
        });
    }
    Ok(part)
}

#[cfg(test)]
mod tests;
