//! Numbers as they travel: single precision, the two half precisions, or bytes with a scale for every 32.
//!
//! Every encoding works on blocks at absolute positions, so that a vector encodes to the same values however it is cut
//! at multiples of [`INT8_BLOCK`]: what makes the two ways of summing give the same bits.

use half::{bf16, f16};
use wire::link::{INT8_BLOCK, WireType};

/// Appends `values` as `dtype`.
///
/// # Panics
/// For [`WireType::Bytes`], which is no type of numbers.
pub(crate) fn encode(values: &[f32], dtype: WireType, out: &mut Vec<u8>) {
    match dtype {
        WireType::F32 => put(values, out, |x| x.to_le_bytes()),
        WireType::Bf16 => put(values, out, |x| bf16::from_f32(x).to_le_bytes()),
        WireType::F16 => put(values, out, |x| half_of(x).to_le_bytes()),
        WireType::Int8 => {
            for block in values.chunks(INT8_BLOCK) {
                let scale = scale_of(block);
                out.extend_from_slice(&scale.to_le_bytes());
                out.extend(block.iter().map(|&x| code_of(x, scale).to_le_bytes()[0]));
            }
        }
        WireType::Bytes => panic!("bytes are no numbers"),
    }
}

/// Reads as many values as `out` has, giving each to `take` together with its place in `out`.
///
/// `bytes` are as long as `out`'s length takes (the frame's decoder has checked).
pub(crate) fn decode(bytes: &[u8], dtype: WireType, out: &mut [f32], take: impl Fn(&mut f32, f32)) {
    match dtype {
        WireType::F32 => get(bytes, out, |b: [u8; 4]| f32::from_le_bytes(b), take),
        WireType::Bf16 => get(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32(), take),
        WireType::F16 => get(bytes, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32(), take),
        WireType::Int8 => {
            for (block, out) in bytes.chunks(4 + INT8_BLOCK).zip(out.chunks_mut(INT8_BLOCK)) {
                let (scale, codes) = block.split_at(4);
                let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
                for (out, &code) in out.iter_mut().zip(codes) {
                    take(out, f32::from(i8::from_le_bytes([code])) * scale);
                }
            }
        }
        WireType::Bytes => panic!("bytes are no numbers"),
    }
}

/// Replaces each value by what arrives of it when it travels as `dtype`.
pub fn quantise(values: &mut [f32], dtype: WireType) {
    match dtype {
        WireType::F32 | WireType::Bytes => {}
        WireType::Bf16 => values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        WireType::F16 => values.iter_mut().for_each(|x| *x = half_of(*x).to_f32()),
        WireType::Int8 => {
            for block in values.chunks_mut(INT8_BLOCK) {
                let scale = scale_of(block);
                block.iter_mut().for_each(|x| *x = f32::from(code_of(*x, scale)) * scale);
            }
        }
    }
}

/// Half precision that saturates: an infinity would spread through everything that follows.
fn half_of(x: f32) -> f16 {
    f16::from_f32(if x.is_nan() { x } else { x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()) })
}

/// The step of a block's codes. Not a number where one of its values is none or is infinite, so that a broken
/// computation stays visible on every rank.
fn scale_of(block: &[f32]) -> f32 {
    if block.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    block.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0
}

#[expect(clippy::cast_possible_truncation, reason = "the quotient lies within 127, and not-a-number gives 0")]
fn code_of(x: f32, scale: f32) -> i8 {
    // A scale that underflowed to zero has only zeros (or values below 1e-43) in its block.
    if scale > 0.0 { (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 }
}

fn put<const N: usize>(values: &[f32], out: &mut Vec<u8>, bytes: impl Fn(f32) -> [u8; N]) {
    let start = out.len();
    out.resize(start + values.len() * N, 0);
    for (to, &x) in out[start..].chunks_exact_mut(N).zip(values) {
        to.copy_from_slice(&bytes(x));
    }
}

fn get<const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    value: impl Fn([u8; N]) -> f32,
    take: impl Fn(&mut f32, f32),
) {
    for (from, out) in bytes.chunks_exact(N).zip(out) {
        take(out, value(std::array::from_fn(|i| from[i])));
    }
}
