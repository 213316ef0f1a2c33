//! GGML's blocks: codes, scales and minima of each type.

use half::f16;

use super::{BLOCK_MAX, Factors, Groups, grouping};
use crate::checkpoint::DType;

/// Reads the run of a stored row that begins at column `first`: it may begin and end inside a block, at a group.
pub(super) fn read(dtype: DType, row: &[u8], first: usize, out: Groups<'_>) {
    let (elements, bytes) = dtype.block();
    let group = grouping(dtype).expect("a quantised type").group;
    let columns = out.codes.len();
    let mut at = 0;
    while at < columns {
        let column = first + at;
        let block = &row[column / elements * bytes..][..bytes];
        let within = column % elements;
        let take = (elements - within).min(columns - at);
        let groups = at / group..(at + take) / group;
        let codes = &mut out.codes[at..at + take];
        let scales = &mut out.scales[groups.clone()];
        let mins = if out.mins.is_empty() { &mut [][..] } else { &mut out.mins[groups] };
        if take == elements {
            decode(dtype, block, codes, scales, mins);
        } else {
            let (mut all_codes, mut all_scales, mut all_mins) =
                ([0; BLOCK_MAX], [0.0; BLOCK_MAX / 16], [0.0; BLOCK_MAX / 16]);
            decode(dtype, block, &mut all_codes, &mut all_scales, &mut all_mins);
            codes.copy_from_slice(&all_codes[within..within + take]);
            scales.copy_from_slice(&all_scales[within / group..(within + take) / group]);
            if !mins.is_empty() {
                mins.copy_from_slice(&all_mins[within / group..(within + take) / group]);
            }
        }
        at += take;
    }
}

/// Scales of block `from` of a row in two steps, to block `to` of `out`; false where the type has none.
pub(super) fn factors(dtype: DType, row: &[u8], (from, to): (usize, usize), out: &mut Factors<'_>) -> bool {
    let block = || {
        let bytes = dtype.block().1;
        &row[from * bytes..][..bytes]
    };
    match dtype {
        DType::Q4K | DType::Q5K => {
            let block = block();
            (out.scales[to], out.mins[to]) = (half_at(block, 0), -half_at(block, 2));
            for group in 0..8 {
                (out.of_scales[to * 8 + group], out.of_mins[to * 8 + group]) = six_bits(&block[4..16], group);
            }
            true
        }
        DType::Q6K => {
            let block = block();
            out.scales[to] = half_at(block, 208);
            out.of_scales[to * 16..][..16].copy_from_slice(&block[192..208]);
            true
        }
        _ => false,
    }
}

/// Where a block has its scales and minima, all of which are halves; nothing for types that have others.
pub(super) fn halves(dtype: DType) -> Option<&'static [usize]> {
    Some(match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        _ => return None,
    })
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// One whole block.
fn decode(dtype: DType, block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
    match dtype {
        DType::Q4_0 => {
            scales[0] = half_at(block, 0);
            nibbles(&block[2..18], codes);
        }
        DType::Q4_1 => {
            (scales[0], mins[0]) = (half_at(block, 0), half_at(block, 2));
            nibbles(&block[4..20], codes);
        }
        DType::Q5_0 => {
            scales[0] = half_at(block, 0);
            nibbles(&block[6..22], codes);
            fifth_bits(&block[2..6], codes);
        }
        DType::Q5_1 => {
            (scales[0], mins[0]) = (half_at(block, 0), half_at(block, 2));
            nibbles(&block[8..24], codes);
            fifth_bits(&block[4..8], codes);
        }
        DType::Q8_0 => {
            scales[0] = half_at(block, 0);
            for (code, &byte) in codes.iter_mut().zip(&block[2..34]) {
                // Signed bytes, moved up by 128.
                *code = byte ^ 0x80;
            }
        }
        DType::Mxfp4 => {
            scales[0] = e8m0(block[0]);
            nibbles(&block[1..17], codes);
        }
        DType::Q2K => q2k(block, codes, scales, mins),
        DType::Q3K => q3k(block, codes, scales),
        DType::Q4K => {
            scales_and_mins(block, scales, mins);
            quarters(&block[16..144], codes);
        }
        DType::Q5K => {
            scales_and_mins(block, scales, mins);
            quarters(&block[48..176], codes);
            for (group, codes) in codes.chunks_exact_mut(32).take(8).enumerate() {
                for (code, &high) in codes.iter_mut().zip(&block[16..48]) {
                    *code |= (high >> group & 1) << 4;
                }
            }
        }
        DType::Q6K => q6k(block, codes, scales),
        _ => unreachable!("neither floats nor split types come here"),
    }
}

/// The first half of the codes in the low halves of the bytes, the second in the high ones.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes[..32].split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

fn fifth_bits(bytes: &[u8], codes: &mut [u8]) {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (place, code) in codes[..32].iter_mut().enumerate() {
        *code |= ((bits >> place & 1) as u8) << 4;
    }
}

/// Four times 64 codes: 32 in the low halves of 32 bytes, 32 in the high ones.
fn quarters(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact_mut(64).zip(bytes.chunks_exact(32)) {
        let (low, high) = codes.split_at_mut(32);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

/// `Q4_K` and `Q5_K`: a scale and a minimum of six bits for each of eight groups, times the block's.
fn scales_and_mins(block: &[u8], scales: &mut [f32], mins: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for group in 0..8 {
        let (of_scale, of_min) = six_bits(&block[4..16], group);
        scales[group] = scale * f32::from(of_scale);
        mins[group] = -(min * f32::from(of_min));
    }
}

/// A group's factors of scale and minimum.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        )
    }
}

fn q2k(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
    let (scale, min) = (half_at(block, 80), half_at(block, 82));
    for group in 0..16 {
        scales[group] = scale * f32::from(block[group] & 15);
        mins[group] = -(min * f32::from(block[group] >> 4));
    }
    two_bits(&block[16..80], codes);
}

/// Two times 128 codes: four times 32, each the next two bits of 32 bytes.
fn two_bits(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact_mut(128).zip(bytes.chunks_exact(32)) {
        for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (2 * quarter) & 3;
            }
        }
    }
}

fn q3k(block: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    let scale = half_at(block, 108);
    let packed = &block[96..108];
    for group in 0..16 {
        let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
        let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        scales[group] = scale * (f32::from(low | high << 4) - 32.0);
    }
    two_bits(&block[32..96], codes);
    for (group, codes) in codes.chunks_exact_mut(32).take(8).enumerate() {
        for (code, &high) in codes.iter_mut().zip(&block[..32]) {
            *code |= (high >> group & 1) << 2;
        }
    }
}

fn q6k(block: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    let scale = half_at(block, 208);
    for (out, &byte) in scales.iter_mut().zip(&block[192..208]) {
        *out = scale * f32::from(byte.cast_signed());
    }
    let halves = codes.chunks_exact_mut(128).zip(block[..128].chunks_exact(64));
    for ((codes, low), high) in halves.zip(block[128..192].chunks_exact(32)) {
        for (place, &high) in high.iter().enumerate() {
            let (first, second) = (low[place], low[place + 32]);
            codes[place] = first & 15 | (high & 3) << 4;
            codes[place + 32] = second & 15 | (high >> 2 & 3) << 4;
            codes[place + 64] = first >> 4 | (high >> 4 & 3) << 4;
            codes[place + 96] = second >> 4 | (high >> 6) << 4;
        }
    }
}

/// `2^(exponent - 127)`; 255 is no number.
pub(super) fn e8m0(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(exponent) << 23),
    }
}
