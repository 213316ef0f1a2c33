//! Whether weights are numbers at all: one that is not turns every answer into nonsense.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::pack::WeightElement;
use crate::team::Team;

/// Bytes looked at in one go: they stay in a core's cache for what comes next.
const PIECE: usize = 1 << 16;

/// Whether none of the elements in `bytes` (little-endian, at any alignment) is infinite or not a number.
pub fn all_finite(element: WeightElement, bytes: &[u8], team: &Team) -> bool {
    let fine = AtomicBool::new(true);
    team.share(bytes.len().div_ceil(PIECE), 4, &|_, range| {
        for piece in range {
            let from = piece * PIECE;
            if !piece_is_finite(element, &bytes[from..bytes.len().min(from + PIECE)]) {
                fine.store(false, Ordering::Relaxed);
            }
        }
    });
    fine.into_inner()
}

/// Infinities and what is no number have all bits of the exponent set. No early end: so it compiles to vectors.
fn piece_is_finite(element: WeightElement, bytes: &[u8]) -> bool {
    let halves = |exponent: u16| {
        let bad = |x: u16| x & exponent == exponent;
        !bytes.chunks_exact(2).fold(false, |any, b| any | bad(u16::from_le_bytes([b[0], b[1]])))
    };
    match element {
        WeightElement::F32 => {
            let bad = |x: u32| x & 0x7F80_0000 == 0x7F80_0000;
            !bytes
                .chunks_exact(4)
                .fold(false, |any, b| any | bad(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
        }
        WeightElement::F16 => halves(0x7C00),
        WeightElement::Bf16 => halves(0x7F80),
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn one_bad_element_anywhere_is_seen_in_every_type_and_large_numbers_are_not_bad() {
        let team = Team::new(2);
        let bytes = |element, x: f32| match element {
            WeightElement::F32 => x.to_le_bytes().to_vec(),
            WeightElement::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            WeightElement::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        };
        for element in [WeightElement::F32, WeightElement::F16, WeightElement::Bf16] {
            let count = 3 * PIECE / element.size() + 7;
            let large: Vec<u8> = bytes(element, -65504.0).repeat(count);
            assert!(all_finite(element, &large, &team));
            for at in [0, PIECE / element.size() - 1, count - 1] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = large.clone();
                    values[at * element.size()..][..element.size()].copy_from_slice(&bytes(element, bad));
                    assert!(!all_finite(element, &values, &team), "{element:?} {at} {bad}");
                }
            }
        }
        assert!(all_finite(WeightElement::F32, &[], &team));
    }
}
