//! Types whose scales lie in tensors of their own: MLX's groups, and MXFP4 in safetensors.

use super::ggml::e8m0;
use super::{Groups, floats, grouping};
use crate::checkpoint::{DType, TensorView};

/// Reads the run of row `row` that begins at stored column `first`, a multiple of the group.
pub(super) fn read(view: &TensorView<'_>, row: usize, first: usize, out: Groups<'_>) {
    let parts = view.parts.as_ref().expect("a split type has its scales");
    let group = grouping(view.dtype).expect("a quantised type").group;
    let in_row = view.stored_columns() / group;
    let from = view.stored_row(row) * in_row + first / group;
    let groups = out.scales.len();
    let part = |bytes: &'_ [u8], out: &mut [f32]| {
        let size = parts.dtype.block().1;
        floats(parts.dtype, &bytes[from * size..(from + groups) * size], out);
    };
    let bytes = view.row_bytes(row);
    match view.dtype {
        DType::Mlx { bits, .. } => {
            part(parts.scales, out.scales);
            part(parts.biases, out.mins);
            unpack(&bytes[first * usize::from(bits) / 8..], bits, out.codes);
        }
        _ => {
            for (scale, &exponent) in out.scales.iter_mut().zip(&parts.scales[from..]) {
                *scale = e8m0(exponent);
            }
            unpack(&bytes[first / 2..], 4, out.codes);
        }
    }
}

/// Codes of `bits` bits, lowest bits first.
fn unpack(bytes: &[u8], bits: u8, codes: &mut [u8]) {
    match bits {
        8 => codes.copy_from_slice(&bytes[..codes.len()]),
        4 => {
            for (pair, &byte) in codes.chunks_exact_mut(2).zip(bytes) {
                pair[0] = byte & 15;
                pair[1] = byte >> 4;
            }
        }
        _ => {
            let (mut held, mut have, mut next) = (0u32, 0u32, 0);
            for code in codes {
                if have < u32::from(bits) {
                    held |= u32::from(bytes[next]) << have;
                    have += 8;
                    next += 1;
                }
                *code = (held & ((1 << bits) - 1)) as u8;
                held >>= bits;
                have -= u32::from(bits);
            }
        }
    }
}
