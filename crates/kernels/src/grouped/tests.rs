//! Products with grouped weights against a scalar twin and exact arithmetic: every format, instruction set and tile.

use proptest::prelude::*;

use super::*;
use crate::activations::Activations;
use crate::isa::Isa;
use crate::numbers::{bits, numbers};
use crate::{PackError, PackedMatrix, Store, Team, linear};

/// What e2m1 codes stand for.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

struct Made {
    format: GroupedFormat,
    rows: usize,
    columns: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
    /// Scales in two steps, where the shape has room for them.
    factors: bool,
}

impl Made {
    /// `kind` chooses how scales can be stored.
    fn new(seed: u64, format: GroupedFormat, (rows, columns): (usize, usize), kind: Scales) -> Self {
        let groups = rows * columns.div_ceil(format.group);
        let highest = match format.codes {
            Codes::Affine8 => 255.0,
            Codes::Affine6 => 63.0,
            Codes::Affine4 | Codes::Mxfp4 => 15.0,
        };
        let codes = numbers(seed, rows * columns);
        let codes = codes.iter().map(|x| ((x + 1.0) * 0.5 * (highest + 1.0)).min(highest) as u8).collect();
        let store = |x: f32| match kind {
            _ if format.codes == Codes::Mxfp4 => (x * 6.0).round().exp2(),
            Scales::F16 => f16::from_f32(x).to_f32(),
            Scales::Bf16 => bf16::from_f32(x * 1e-9).to_f32(),
            Scales::F32 => x,
        };
        let scales = numbers(seed + 1, groups).into_iter().map(store).collect();
        let mins = numbers(seed + 2, groups).into_iter().map(|x| store(x * 8.0)).collect();
        Self { format, rows, columns, codes, scales, mins, factors: false }
    }

    /// The same shape with scales in two steps.
    fn with_factors(seed: u64, format: GroupedFormat, shape: (usize, usize)) -> Self {
        let mut made = Self::new(seed, format, shape, Scales::F16);
        made.factors = true;
        for row in 0..made.rows {
            let (supers, groups) = (made.supers(row), made.groups());
            let factors: Vec<_> = (0..groups).map(|group| made.factor(row, group)).collect();
            for (group, (of_scale, of_min)) in factors.into_iter().enumerate() {
                let (scale, min) = supers[group * format.group / SUPER];
                made.scales[row * groups + group] = scale * f32::from(of_scale);
                made.mins[row * groups + group] = min * f32::from(of_min);
            }
        }
        made
    }

    /// A row's scales and minima of [`SUPER`] columns each.
    fn supers(&self, row: usize) -> Vec<(f32, f32)> {
        let numbers = numbers(row as u64 + 77, self.columns / SUPER * 2);
        let half = |x: f32| f16::from_f32(x).to_f32();
        numbers.chunks(2).map(|two| (half(two[0]), half(two[1]))).collect()
    }

    /// What a group multiplies these with.
    fn factor(&self, row: usize, group: usize) -> (i16, i16) {
        let any = (row * 37 + group * 101) % 256;
        let signed = self.format.zero.is_some();
        (if signed { any as i16 - 128 } else { any as i16 }, (any * 7 % 256) as i16)
    }

    fn groups(&self) -> usize {
        self.columns.div_ceil(self.format.group)
    }

    /// What a code minus its zero stands for, in units of `unit`.
    fn weight(&self, row: usize, column: usize) -> i32 {
        let code = self.codes[row * self.columns + column];
        match self.format.codes {
            Codes::Mxfp4 => {
                let twice = (E2M1[usize::from(code & 7)] * 2.0) as i32;
                if code < 8 { twice } else { -twice }
            }
            _ => i32::from(code) - i32::from(self.format.zero.unwrap_or(0)),
        }
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        let unit = if self.format.codes == Codes::Mxfp4 { 0.5 } else { 1.0 };
        self.scales[row * self.groups() + column / self.format.group] * unit
    }

    fn min(&self, row: usize, column: usize) -> f32 {
        let has = self.format.codes != Codes::Mxfp4 && self.format.zero.is_none();
        if has { self.mins[row * self.groups() + column / self.format.group] } else { 0.0 }
    }

    fn value(&self, row: usize, column: usize) -> f32 {
        self.weight(row, column) as f32 * self.scale(row, column) + self.min(row, column)
    }

    fn pack(&self, team: &Team) -> PackedMatrix {
        PackedMatrix::pack_grouped(&[self], self.format, team).unwrap()
    }
}

impl GroupedRows for Made {
    fn rows(&self) -> usize {
        self.rows
    }
    fn columns(&self) -> usize {
        self.columns
    }
    fn read(&self, row: usize, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        codes.copy_from_slice(&self.codes[row * self.columns..][..self.columns]);
        let groups = row * self.groups()..(row + 1) * self.groups();
        scales.copy_from_slice(&self.scales[groups.clone()]);
        if self.format.zero.is_none() {
            mins.copy_from_slice(&self.mins[groups]);
        }
    }
    fn read_factors(&self, row: usize, out: &mut Factors<'_>) -> bool {
        if !self.factors {
            return false;
        }
        for (at, (scale, min)) in self.supers(row).into_iter().enumerate() {
            (out.scales[at], out.mins[at]) = (scale, min);
        }
        for group in 0..self.groups() {
            let (scale, min) = self.factor(row, group);
            (out.of_scales[group], out.of_mins[group]) = (scale as u8, min as u8);
        }
        true
    }
}

fn formats() -> Vec<GroupedFormat> {
    let kinds = [
        (Codes::Affine4, Some(8)),
        (Codes::Affine4, None),
        (Codes::Affine8, Some(128)),
        (Codes::Affine8, Some(0)),
        (Codes::Affine8, None),
        (Codes::Affine6, Some(32)),
        (Codes::Affine6, None),
        (Codes::Mxfp4, None),
        (Codes::Mxfp4, Some(0)),
    ];
    let all = [16, 32, 64, 128].into_iter();
    all.flat_map(|group| kinds.map(|(codes, zero)| GroupedFormat { codes, group, zero })).collect()
}

/// Those that scales in two steps are read for where they lie.
fn factored() -> [GroupedFormat; 3] {
    [(Codes::Affine4, 32, None), (Codes::Affine6, 32, None), (Codes::Affine6, 16, Some(32))]
        .map(|(codes, group, zero)| GroupedFormat { codes, group, zero })
}

fn every_isa() -> Vec<Isa> {
    Isa::available().into_iter().filter(|isa| *isa != Isa::portable()).chain([Isa::twin()]).collect()
}

/// A row's codes, scale and sums of codes for a block, spelled out.
fn rounded(x: &[f32]) -> (Vec<i32>, f32) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest < 1e-30 {
        return (vec![0; x.len()], 0.0);
    }
    let inverse = 127.0 / largest;
    (x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect(), largest / 127.0)
}

/// One output with rounded activations, in the order that all paths share.
fn twin(made: &Made, row: usize, x: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for (block, x) in x.chunks(BLOCK).enumerate() {
        let (codes, x_scale) = rounded(x);
        let span = made.format.group.min(BLOCK);
        for (part, codes) in codes.chunks(span).enumerate() {
            let first = block * BLOCK + part * span;
            let product: i32 =
                codes.iter().enumerate().map(|(at, code)| code * made.weight(row, first + at)).sum();
            sum = (product as f32 * made.scale(row, first)).mul_add(x_scale, sum);
            if made.format.codes != Codes::Mxfp4 && made.format.zero.is_none() {
                let total: i32 = codes.iter().sum();
                sum = made.min(row, first).mul_add(x_scale * total as f32, sum);
            }
        }
    }
    sum
}

/// One output with activations as they are.
fn exact_twin(made: &Made, row: usize, x: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for (block, x) in x.chunks(BLOCK).enumerate() {
        let part = x
            .iter()
            .enumerate()
            .fold(0.0f32, |part, (at, x)| made.value(row, block * BLOCK + at).mul_add(*x, part));
        sum += part;
    }
    sum
}

fn product(isa: Isa, threads: usize, x: &[f32], w: &PackedMatrix) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.columns() * w.rows()];
    linear(&Team::new(threads), isa, x, w, None, Store::Set, &mut out);
    out
}

/// Numbers of rows that panels are read for where they lie, and that they are unpacked for.
fn counts(few: usize) -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1..few, 1 => 97usize..130]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn scales_in_two_steps_give_the_twins_bits(
        seed in 0u64..1000, rows in counts(20), supers in 1usize..4, n in 1usize..40, threads in 1usize..3,
    ) {
        let k = supers * SUPER;
        for format in factored() {
            let made = Made::with_factors(seed, format, (n, k));
            let packed = made.pack(&Team::new(threads));
            let expanded = Made { factors: false, ..Made::with_factors(seed, format, (n, k)) };
            prop_assert!(packed.bytes() < expanded.pack(&Team::new(1)).bytes());
            let x = numbers(seed + 5, rows * k);
            let each = |twin: fn(&Made, usize, &[f32]) -> f32| -> Vec<f32> {
                (0..rows * n).map(|at| twin(&made, at % n, &x[at / n * k..][..k])).collect()
            };
            let (expected, exact) = (each(twin), each(exact_twin));
            for isa in every_isa() {
                prop_assert_eq!(bits(&product(isa, threads, &x, &packed)), bits(&expected), "{:?} {:?}", isa, format);
            }
            let mut row = vec![f32::NAN; k];
            packed.row(n - 1, &mut row);
            let values: Vec<f32> = (0..k).map(|column| made.value(n - 1, column)).collect();
            prop_assert_eq!(row, values);
            let packed = packed.with_activations(Activations::F32);
            for isa in every_isa() {
                prop_assert_eq!(bits(&product(isa, threads, &x, &packed)), bits(&exact), "{:?} {:?}", isa, format);
            }
        }
    }

    #[test]
    fn every_path_gives_the_twins_bits(
        seed in 0u64..1000, rows in counts(40), k in 1usize..300, n in 1usize..40, threads in 1usize..3, kind in 0usize..3,
    ) {
        let kind = [Scales::F16, Scales::Bf16, Scales::F32][kind];
        for format in formats() {
            let made = Made::new(seed, format, (n, k), kind);
            let packed = made.pack(&Team::new(threads));
            let x = numbers(seed + 5, rows * k);
            let each = |twin: fn(&Made, usize, &[f32]) -> f32| -> Vec<f32> {
                (0..rows * n).map(|at| twin(&made, at % n, &x[at / n * k..][..k])).collect()
            };
            let (expected, exact) = (each(twin), each(exact_twin));
            for isa in every_isa() {
                prop_assert_eq!(bits(&product(isa, threads, &x, &packed)), bits(&expected), "{:?} {:?}", isa, format);
            }
            let packed = packed.with_activations(Activations::F32);
            for isa in every_isa() {
                prop_assert_eq!(bits(&product(isa, threads, &x, &packed)), bits(&exact), "{:?} {:?}", isa, format);
            }
        }
    }

    #[test]
    fn rounded_activations_cost_no_more_than_half_a_step_each(
        seed in 0u64..1000, rows in 1usize..10, k in 1usize..400, n in 1usize..20,
    ) {
        for format in formats() {
            let made = Made::new(seed, format, (n, k), Scales::F16);
            let packed = made.pack(&Team::new(1));
            let x = numbers(seed + 5, rows * k);
            for isa in Isa::available() {
                for (at, &got) in product(isa, 1, &x, &packed).iter().enumerate() {
                    let x = &x[at / n * k..][..k];
                    let mut exact = 0.0f64;
                    let mut bound = 1e-4f64;
                    let row = at % n;
                    for (column, &x) in x.iter().enumerate() {
                        exact += f64::from(made.value(row, column)) * f64::from(x);
                    }
                    for (block, x) in x.chunks(BLOCK).enumerate() {
                        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                        for column in 0..x.len() {
                            let weight = f64::from(made.value(row, block * BLOCK + column)).abs();
                            bound += weight * f64::from(largest) * (0.5 / 127.0 + 1e-4);
                        }
                    }
                    prop_assert!((f64::from(got) - exact).abs() <= bound, "{:?} {:?}: {} for {}", isa, format, got, exact);
                }
            }
        }
    }
}

#[test]
fn a_row_is_bitwise_the_same_alone_and_among_many_rows() {
    for format in formats() {
        let (k, n) = (320, 100);
        let made = Made::new(7, format, (n, k), Scales::F16);
        let x = numbers(11, 131 * k);
        for activations in [Activations::Int8, Activations::F32] {
            let packed = made.pack(&Team::new(2)).with_activations(activations);
            for isa in Isa::available() {
                let together = product(isa, 3, &x, &packed);
                for rows in [1, 2, 3, 5, 7, 8, 9, 13, 36, 95, 96, 97, 112] {
                    let fewer = product(isa, 1, &x[..rows * k], &packed);
                    assert_eq!(bits(&fewer), bits(&together[..rows * n]), "{isa:?} {format:?} {rows}");
                }
            }
        }
    }
}

#[test]
fn rows_read_back_as_what_their_codes_stand_for() {
    for format in formats() {
        for columns in [1, 16, 33, 130, 256] {
            let made = Made::new(3, format, (21, columns), Scales::F32);
            let packed = made.pack(&Team::new(2));
            assert_eq!((packed.rows(), packed.columns()), (21, columns));
            for row in 0..21 {
                let mut out = vec![f32::NAN; columns];
                packed.row(row, &mut out);
                let expected: Vec<f32> = (0..columns).map(|column| made.value(row, column)).collect();
                assert_eq!(out, expected, "{format:?}");
            }
        }
    }
}

#[test]
fn unlike_parts_stack_and_biases_and_addition_come_on_top() {
    let (k, team) = (96, Team::new(2));
    let four =
        Made::new(1, GroupedFormat { codes: Codes::Affine4, group: 32, zero: Some(8) }, (19, k), Scales::F16);
    let eight =
        Made::new(2, GroupedFormat { codes: Codes::Affine8, group: 16, zero: None }, (5, k), Scales::F32);
    let values = numbers(3, 7 * k);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let element = crate::WeightElement::F32;
    let part = crate::WeightBytes { element, rows: 7, columns: k, bytes: &bytes };
    let float = PackedMatrix::pack(&[part], element, &team).unwrap();
    let x = numbers(4, 3 * k);
    for isa in Isa::available() {
        let parts = || {
            vec![four.pack(&team), PackedMatrix::pack(&[part], element, &team).unwrap(), eight.pack(&team)]
        };
        let apart: Vec<Vec<f32>> = parts().iter().map(|part| product(isa, 1, &x, part)).collect();
        let stacked = PackedMatrix::stack(parts()).unwrap();
        assert_eq!((stacked.rows(), stacked.columns()), (31, k));
        let (bias, before) = (numbers(8, 31), numbers(9, 93));
        let mut out = before.clone();
        linear(&team, isa, &x, &stacked, Some(&bias), Store::Add, &mut out);
        for row in 0..3 {
            let plain = apart.iter().zip([19, 7, 5]).flat_map(|(part, n)| &part[row * n..][..n]);
            for (at, plain) in plain.enumerate() {
                assert_eq!(out[row * 31 + at], before[row * 31 + at] + (plain + bias[at]));
            }
        }
        let (mut direct, mut through) = (vec![0.0; k], vec![0.0; k]);
        float.row(6, &mut direct);
        stacked.row(25, &mut through);
        assert_eq!(direct, through);
    }
    assert!(matches!(PackedMatrix::stack(Vec::new()), Err(PackError::Nothing)));
}

#[test]
fn what_is_no_number_stays_none_and_does_not_spread() {
    let format = GroupedFormat { codes: Codes::Affine4, group: 32, zero: Some(8) };
    let packed = Made::new(1, format, (16, 64), Scales::F16).pack(&Team::new(1));
    let mut x = numbers(4, 3 * 64);
    (x[70], x[5]) = (f32::NAN, 1e-38);
    for isa in Isa::available() {
        let out = product(isa, 1, &x, &packed);
        assert!(
            out[16..32].iter().all(|x| x.is_nan())
                && out[..16].iter().chain(&out[32..]).all(|x| x.is_finite())
        );
    }
    let mut infinite = Made::new(1, format, (16, 64), Scales::F16);
    infinite.scales[9] = f32::INFINITY;
    let error = PackedMatrix::pack_grouped(&[&infinite], format, &Team::new(1)).unwrap_err();
    assert_eq!(error.to_string(), "row 4 has a scale or minimum that is infinite or not a number");
    let wrong = GroupedFormat { group: 48, ..format };
    let error = PackedMatrix::pack_grouped(&[&infinite], wrong, &Team::new(1)).unwrap_err();
    assert!(error.to_string().starts_with("groups of 48 columns"));
}
