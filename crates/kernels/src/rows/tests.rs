//! Norms and gates against exact arithmetic and, bit for bit, against the scalar twin.

use proptest::prelude::*;

use super::*;
use crate::numbers::{bits, numbers};

fn normed(isa: Isa, threads: usize, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    rms_norm(&Team::new(threads), isa, x, weight, 1e-5, &mut out);
    out
}

fn gated(isa: Isa, threads: usize, both: &[f32], width: usize, activation: Activation) -> Vec<f32> {
    let mut out = vec![f32::NAN; both.len() / 2];
    gate(&Team::new(threads), isa, both, width, activation, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_norm_is_the_definitions_in_every_path(seed in 0u64..1000, rows in 1usize..4, columns in 1usize..200) {
        let (x, weight) = (numbers(seed, rows * columns), numbers(seed + 1, columns));
        let twin = normed(Isa::twin(), 1, &x, &weight);
        for isa in Isa::available() {
            let got = normed(isa, 2, &x, &weight);
            if isa != Isa::portable() {
                prop_assert_eq!(bits(&got), bits(&twin), "{:?}", isa);
            }
            for (row, (x, got)) in x.chunks(columns).zip(got.chunks(columns)).enumerate() {
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / columns as f64;
                for (column, &got) in got.iter().enumerate() {
                    let exact = f64::from(x[column]) / (mean + 1e-5).sqrt() * f64::from(weight[column]);
                    prop_assert!((f64::from(got) - exact).abs() <= 2e-6 * (1.0 + exact.abs()), "row {}", row);
                }
            }
        }
    }

    #[test]
    fn a_gate_is_the_definitions_in_every_path(seed in 0u64..1000, rows in 1usize..4, width in 1usize..100) {
        let both: Vec<f32> = numbers(seed, rows * 2 * width).iter().map(|x| x * 9.0).collect();
        let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu, clamped] {
            let twin = gated(Isa::twin(), 1, &both, width, activation);
            for isa in Isa::available() {
                let got = gated(isa, 2, &both, width, activation);
                if isa != Isa::portable() {
                    prop_assert_eq!(bits(&got), bits(&twin), "{:?}", isa);
                }
                for (at, &got) in got.iter().enumerate() {
                    let (row, column) = (at / width, at % width);
                    let x = f64::from(both[row * 2 * width + column]);
                    let up = f64::from(both[row * 2 * width + width + column]);
                    let sigmoid = |u: f64| 1.0 / (1.0 + (-u).exp());
                    let cubic = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                    let exact = match activation {
                        Activation::Silu => x * sigmoid(x) * up,
                        Activation::GeluTanh => x * sigmoid(cubic) * up,
                        Activation::Gelu => x * crate::numbers::normal_cdf(x) * up,
                        Activation::ClampedSwiglu { alpha, limit } => {
                            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                            let x = x.min(limit);
                            (up.clamp(-limit, limit) + 1.0) * x * sigmoid(alpha * x)
                        }
                    };
                    prop_assert!((f64::from(got) - exact).abs() <= 1e-5 * (1.0 + exact.abs()));
                }
            }
        }
    }
}

#[test]
fn many_rows_shared_out_are_those_of_one_worker() {
    let (x, weight) = (numbers(1, 300 * 100), numbers(2, 100));
    for isa in Isa::available() {
        assert_eq!(bits(&normed(isa, 3, &x, &weight)), bits(&normed(isa, 1, &x, &weight)));
        let gate = |threads| gated(isa, threads, &x, 50, Activation::Silu);
        assert_eq!(bits(&gate(3)), bits(&gate(1)));
    }
}

#[test]
fn a_sigmoid_gate_is_its_definition_in_every_path() {
    let (gates, x) = (numbers(3, 9001), numbers(4, 9001));
    let run = |isa, threads| {
        let mut out = x.clone();
        sigmoid_gate(&Team::new(threads), isa, &gates, &mut out);
        out
    };
    let twin = bits(&run(Isa::twin(), 1));
    for isa in [Isa::avx512(), Isa::avx2()].into_iter().flatten() {
        assert_eq!(bits(&run(isa, 3)), twin, "{isa:?}");
    }
    for ((got, x), gate) in run(Isa::detect(), 2).iter().zip(&x).zip(&gates) {
        let exact = f64::from(*x) / (1.0 + (-f64::from(*gate)).exp());
        assert!((f64::from(*got) - exact).abs() <= 1e-6, "{got} for {exact}");
    }
}
