//! The product against its scalar twin and exact arithmetic, in every instruction set and tile.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::lanes::sum_in_order;
use crate::numbers::{bits, numbers};
use crate::pack::{WeightBytes, WeightElement};

const ELEMENTS: [WeightElement; 3] = [WeightElement::F32, WeightElement::F16, WeightElement::Bf16];

struct Case {
    rows: usize,
    k: usize,
    n: usize,
    x: Vec<f32>,
    /// As the element type has them.
    w: Vec<f32>,
    packed: PackedMatrix,
}

fn case(seed: u64, (rows, k, n): (usize, usize, usize), element: WeightElement) -> Case {
    let w: Vec<f32> = numbers(seed, n * k)
        .into_iter()
        .map(|x| match element {
            WeightElement::F32 => x,
            WeightElement::F16 => f16::from_f32(x).to_f32(),
            WeightElement::Bf16 => bf16::from_f32(x).to_f32(),
        })
        .collect();
    let bytes: Vec<u8> = w.iter().flat_map(|x| x.to_le_bytes()).collect();
    let part = WeightBytes { element: WeightElement::F32, rows: n, columns: k, bytes: &bytes };
    let packed = PackedMatrix::pack(&[part], element, &Team::new(1)).unwrap();
    let packed = packed.with_activations(Activations::F32);
    Case { rows, k, n, x: numbers(seed + 1, rows * k), w, packed }
}

fn product(isa: Isa, threads: usize, case: &Case) -> Vec<f32> {
    let mut out = vec![f32::NAN; case.rows * case.n];
    linear(&Team::new(threads), isa, &case.x, &case.packed, None, Store::Set, &mut out);
    out
}

/// The instruction sets that fuse multiplication and addition, the twin among them.
fn fused() -> Vec<Isa> {
    Isa::available().into_iter().filter(|isa| *isa != Isa::portable()).chain([Isa::twin()]).collect()
}

/// The order of additions that all paths share, spelled out for one output.
fn twin(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (x, w) in x.chunks(LANES).zip(w.chunks(LANES)) {
        for (sum, (x, w)) in sums.iter_mut().zip(x.iter().zip(w)) {
            *sum = w.mul_add(*x, *sum);
        }
    }
    sum_in_order(&sums)
}

/// The same where bf16 weights meet activations rounded to bf16: columns that are half a block apart in turn.
fn rounded_twin(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (x, w) in x.chunks(BLOCK).zip(w.chunks(BLOCK)) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            for column in [lane + LANES, lane] {
                if let (Some(x), Some(w)) = (x.get(column), w.get(column)) {
                    *sum = w.mul_add(bf16::from_f32(*x).to_f32(), *sum);
                }
            }
        }
    }
    sum_in_order(&sums)
}

/// The same by matrix tiles: columns that are half a block apart are two sums of their own in each block.
fn tiled_twin(x: &[f32], w: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for (x, w) in x.chunks(BLOCK).zip(w.chunks(BLOCK)) {
        let mut halves = [0.0f32; 2];
        for (at, (x, w)) in x.iter().zip(w).enumerate() {
            let half = &mut halves[at / (BLOCK / 2)];
            *half = w.mul_add(bf16::from_f32(*x).to_f32(), *half);
        }
        sum += halves[0] + halves[1];
    }
    sum
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_path_gives_the_twins_bits(
        seed in 0u64..1000, rows in 1usize..15, k in 1usize..150, n in 1usize..40, threads in 1usize..4,
    ) {
        for element in ELEMENTS {
            let case = case(seed, (rows, k, n), element);
            let expected: Vec<f32> = (0..rows * n)
                .map(|at| twin(&case.x[at / n * k..][..k], &case.w[at % n * k..][..k]))
                .collect();
            for isa in fused() {
                prop_assert_eq!(bits(&product(isa, threads, &case)), bits(&expected), "{:?} {:?}", isa, element);
            }
        }
    }

    #[test]
    fn every_path_gives_the_twins_bits_with_rounded_activations(
        seed in 0u64..1000, rows in 1usize..40, k in 1usize..150, n in 1usize..40, threads in 1usize..4,
    ) {
        let mut case = case(seed, (rows, k, n), WeightElement::Bf16);
        case.packed = case.packed.with_activations(Activations::Bf16);
        for isa in fused() {
            let twin = if isa.tiles() { tiled_twin } else { rounded_twin };
            let expected: Vec<f32> = (0..rows * n)
                .map(|at| twin(&case.x[at / n * k..][..k], &case.w[at % n * k..][..k]))
                .collect();
            prop_assert_eq!(bits(&product(isa, threads, &case)), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn the_portable_path_is_within_rounding_of_exact_arithmetic(
        seed in 0u64..1000, rows in 1usize..8, k in 1usize..300, n in 1usize..20,
    ) {
        let case = case(seed, (rows, k, n), WeightElement::Bf16);
        for isa in Isa::available() {
            for (at, &got) in product(isa, 1, &case).iter().enumerate() {
                let (x, w) = (&case.x[at / n * k..][..k], &case.w[at % n * k..][..k]);
                let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                prop_assert!((f64::from(got) - exact).abs() <= 1e-6 * k as f64, "{:?}: {} for {}", isa, got, exact);
            }
        }
    }
}

#[test]
fn a_row_is_bitwise_the_same_alone_and_among_many_rows() {
    for activations in [Activations::F32, Activations::Bf16] {
        // Enough rows for several blocks of activations, and enough work for the team.
        let mut case = case(5, (70, 3000, 24), WeightElement::Bf16);
        case.packed = case.packed.with_activations(activations);
        same_alone_and_among_many(&case);
    }
}

fn same_alone_and_among_many(case: &Case) {
    for isa in Isa::available() {
        let together = product(isa, 3, case);
        for row in [0, 1, 5, 41, 42, 69] {
            let mut alone = vec![0.0; case.n];
            let x = &case.x[row * case.k..][..case.k];
            linear(&Team::new(1), isa, x, &case.packed, None, Store::Set, &mut alone);
            assert_eq!(bits(&alone), bits(&together[row * case.n..][..case.n]), "{isa:?} row {row}");
        }
    }
}

#[test]
fn weights_kept_in_f32_give_the_same_bits_as_in_bf16() {
    let halves = case(9, (5, 77, 19), WeightElement::Bf16);
    let bytes: Vec<u8> = halves.w.iter().flat_map(|x| x.to_le_bytes()).collect();
    let part = WeightBytes { element: WeightElement::F32, rows: 19, columns: 77, bytes: &bytes };
    let packed = PackedMatrix::pack(&[part], WeightElement::F32, &Team::new(1)).unwrap();
    for isa in Isa::available() {
        let mut out = vec![0.0; 5 * 19];
        linear(&Team::new(1), isa, &halves.x, &packed, None, Store::Set, &mut out);
        assert_eq!(bits(&out), bits(&product(isa, 1, &halves)), "{isa:?}");
    }
}

#[test]
fn bias_and_addition_come_on_top_of_the_product() {
    let case = case(3, (4, 40, 11), WeightElement::F32);
    for isa in Isa::available() {
        let plain = product(isa, 1, &case);
        let bias = numbers(8, 11);
        let mut out = numbers(9, 44);
        let before = out.clone();
        linear(&Team::new(2), isa, &case.x, &case.packed, Some(&bias), Store::Add, &mut out);
        for (at, &got) in out.iter().enumerate() {
            assert_eq!(got, before[at] + (plain[at] + bias[at % 11]));
        }
    }
}

#[test]
fn no_rows_give_no_products() {
    let case = case(3, (0, 40, 11), WeightElement::F32);
    assert!(product(Isa::detect(), 2, &case).is_empty());
}
