//! Tensors of every stored type into the few layouts that the CPU computes with.

use std::borrow::Cow;

use kernels::{
    Factors, GroupedFormat, GroupedRows, PackError, PackedMatrix, Team, WeightBytes, WeightElement,
};
use model::checkpoint::{DType, TensorView};
use model::quant::{self, Codes, Grouping, dequantise_all};

/// Stacks `parts`, one below the other. Where a float type is asked for all of them become that; else quantised tensors
/// keep their codes, each run of like ones in panels of its own, and floats their type.
pub(super) fn stack(team: &Team, parts: &[TensorView<'_>], dtype: DType) -> Result<PackedMatrix, PackError> {
    let grouping = |part: &TensorView<'_>| match dtype.is_float() {
        true => None,
        false => quant::grouping(part.dtype),
    };
    let runs = parts.chunk_by(|a, b| grouping(a) == grouping(b));
    let common = |run: &[TensorView<'_>]| match run.iter().all(|part| part.dtype == run[0].dtype) {
        true => run[0].dtype,
        // Holds all of them.
        false => DType::F32,
    };
    let mut matrices = runs
        .map(|run| match grouping(&run[0]) {
            Some(grouping) => grouped(team, run, grouping),
            None => floats(team, run, if dtype.is_float() { dtype } else { common(run) }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    match matrices.len() {
        1 => Ok(matrices.remove(0)),
        _ => PackedMatrix::stack(matrices),
    }
}

/// The type of a float tensor's elements; quantised types are read as f32.
pub(super) fn element(dtype: DType) -> WeightElement {
    match dtype {
        DType::F16 => WeightElement::F16,
        DType::BF16 => WeightElement::Bf16,
        _ => WeightElement::F32,
    }
}

/// The bytes of a tensor as elements of type [`element`].
fn element_bytes<'a>(tensor: &TensorView<'a>) -> Cow<'a, [u8]> {
    match tensor.dtype.is_float() {
        true => tensor.ordered_bytes(),
        false => dequantise_all(tensor).into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>().into(),
    }
}

fn floats(team: &Team, parts: &[TensorView<'_>], dtype: DType) -> Result<PackedMatrix, PackError> {
    let bytes: Vec<_> = parts.iter().map(element_bytes).collect();
    let parts: Vec<_> = parts
        .iter()
        .zip(&bytes)
        .map(|(part, bytes)| WeightBytes {
            element: element(part.dtype),
            rows: part.rows(),
            columns: part.columns(),
            bytes,
        })
        .collect();
    PackedMatrix::pack(&parts, element(dtype), team)
}

fn grouped(team: &Team, parts: &[TensorView<'_>], grouping: Grouping) -> Result<PackedMatrix, PackError> {
    let six = |part: &TensorView<'_>| {
        matches!(
            part.dtype,
            DType::Q5_0 | DType::Q5_1 | DType::Q5K | DType::Q6K | DType::Mlx { bits: 5 | 6, .. }
        )
    };
    let codes = match grouping.kind {
        Codes::Affine8 if parts.iter().all(six) => kernels::Codes::Affine6,
        Codes::Affine4 => kernels::Codes::Affine4,
        Codes::Affine8 => kernels::Codes::Affine8,
        Codes::Mxfp4 => kernels::Codes::Mxfp4,
    };
    let format = GroupedFormat { codes, group: grouping.group, zero: grouping.zero };
    let rows: Vec<_> = parts.iter().map(|part| Rows { view: *part, mins: grouping.has_mins() }).collect();
    let rows: Vec<&dyn GroupedRows> = rows.iter().map(|rows| rows as &dyn GroupedRows).collect();
    PackedMatrix::pack_grouped(&rows, format, team)
}

/// A quantised tensor's rows.
struct Rows<'a> {
    view: TensorView<'a>,
    mins: bool,
}

impl GroupedRows for Rows<'_> {
    fn rows(&self) -> usize {
        self.view.rows()
    }

    fn columns(&self) -> usize {
        self.view.columns()
    }

    fn read(&self, row: usize, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        quant::read_groups(&self.view, row, codes, scales, if self.mins { mins } else { &mut [] });
    }

    fn read_factors(&self, row: usize, out: &mut Factors<'_>) -> bool {
        let Factors { scales, mins, of_scales, of_mins } = out;
        quant::read_factors(&self.view, row, &mut quant::Factors { scales, mins, of_scales, of_mins })
    }
}

#[cfg(test)]
mod tests {
    use base::Rng;
    use kernels::{Isa, Store, linear};

    use super::*;

    /// Bytes of any codes; what could be a scale is small and finite.
    fn bytes(rng: &mut Rng, dtype: DType, rows: usize, columns: usize) -> Vec<u8> {
        let len = rows * dtype.row_bytes(columns).unwrap();
        (0..len).map(|_| (rng.next_u64() % 0x38) as u8).collect()
    }

    const TYPES: [DType; 11] = [
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::Mxfp4,
    ];

    #[test]
    fn stacked_tensors_of_every_type_hold_what_they_stood_for() {
        let (team, mut rng, columns) = (Team::new(2), Rng::new(4), 256);
        let stored: Vec<_> =
            TYPES.iter().map(|&dtype| (dtype, bytes(&mut rng, dtype, 19, columns))).collect();
        let floats = bytes(&mut rng, DType::BF16, 19, columns);
        let shape = [19, columns];
        let mut parts: Vec<_> =
            stored.iter().map(|(dtype, bytes)| TensorView::new("w", *dtype, &shape, bytes)).collect();
        parts.insert(3, TensorView::new("w", DType::BF16, &shape, &floats));
        for dtype in [DType::F32, DType::Q4_0] {
            let stacked = stack(&team, &parts, dtype).unwrap();
            assert_eq!((stacked.rows(), stacked.columns()), (19 * parts.len(), columns));
            let x: Vec<f32> = (0..columns).map(|at| (at % 7) as f32 - 3.0).collect();
            let exact = stacked.with_activations(kernels::Activations::F32);
            let mut out = vec![0.0; exact.rows()];
            linear(&team, Isa::detect(), &x, &exact, None, Store::Set, &mut out);
            for (at, part) in parts.iter().enumerate() {
                for row in 0..19 {
                    let (mut expected, mut got) = (vec![0.0; columns], vec![0.0; columns]);
                    quant::dequantise(part, row, &mut expected);
                    exact.row(at * 19 + row, &mut got);
                    assert_eq!(got, expected, "{part:?}");
                    let sum: f64 = expected.iter().zip(&x).map(|(w, x)| f64::from(w * x)).sum();
                    let size: f64 = expected.iter().zip(&x).map(|(w, x)| f64::from((w * x).abs())).sum();
                    assert!((f64::from(out[at * 19 + row]) - sum).abs() <= 1e-5 * size, "{part:?}");
                }
            }
        }
    }
}
