//! The delta net against its definition in f64, and against itself cut otherwise.

use proptest::prelude::*;

use super::*;
use crate::numbers::{bits, numbers};

#[derive(Debug, Clone)]
struct Net {
    sizes: [usize; 5],
    convolution: Vec<f32>,
    decay: Vec<f32>,
    time_bias: Vec<f32>,
    norm: Vec<f32>,
}

impl Net {
    fn new(sizes: [usize; 5], seed: u64) -> Self {
        let [key_heads, value_heads, key_dim, value_dim, taps] = sizes;
        let channels = 2 * key_heads * key_dim + value_heads * value_dim;
        Self {
            sizes,
            convolution: numbers(seed, taps * channels),
            decay: numbers(seed + 1, value_heads).iter().map(|x| x.abs() + 0.05).collect(),
            time_bias: numbers(seed + 2, value_heads),
            norm: numbers(seed + 3, value_dim),
        }
    }

    fn shape(&self) -> DeltaShape<'_> {
        let [key_heads, value_heads, key_dim, value_dim, taps] = self.sizes;
        DeltaShape {
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            taps,
            convolution: &self.convolution,
            decay: &self.decay,
            time_bias: &self.time_bias,
            norm: (&self.norm, 1e-6),
        }
    }

    fn run(&self, isa: Isa, threads: usize, rows: &[f32], chunks: &[usize]) -> Vec<f32> {
        let shape = self.shape();
        let (width, values) = (shape.width(), shape.value_heads * shape.value_dim);
        let mut state = vec![0.0; shape.state_elements()];
        let (team, mut scratch) = (Team::new(threads), DeltaScratch::default());
        let (mut out, mut at) = (Vec::new(), 0);
        for &chunk in chunks {
            let mut part = vec![f32::NAN; chunk * values];
            let mut spans = [DeltaSpan { row: 0, tokens: chunk, state: &mut state }];
            let rows = &rows[at * width..(at + chunk) * width];
            delta_net(&team, isa, rows, &shape, &mut spans, &mut scratch, &mut part);
            out.extend(part);
            at += chunk;
        }
        out
    }

    /// The definition.
    fn exact(&self, rows: &[f32], tokens: usize) -> Vec<f64> {
        let shape = self.shape();
        let [hk, hv, dk, dv, taps] = self.sizes;
        let (width, channels) = (shape.width(), shape.channels());
        let row = |t: usize, c: usize| f64::from(rows[t * width + c]);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let conv = |t: usize, c: usize| {
            let tap = |j: usize| f64::from(self.convolution[(taps - 1 - j) * channels + c]) * row(t - j, c);
            silu((0..taps.min(t + 1)).map(tap).sum())
        };
        let unit = |x: Vec<f64>| {
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.into_iter().map(|x| x / length).collect::<Vec<_>>()
        };
        let mut states = vec![vec![0.0; dk * dv]; hv];
        let mut out = Vec::new();
        for t in 0..tokens {
            for (head, state) in states.iter_mut().enumerate() {
                let key_head = head / (hv / hk);
                let q = unit((0..dk).map(|d| conv(t, key_head * dk + d)).collect());
                let k = unit((0..dk).map(|d| conv(t, (hk + key_head) * dk + d)).collect());
                let beta = 1.0 / (1.0 + (-row(t, channels + hv * dv + head)).exp());
                let time = row(t, channels + hv * dv + hv + head) + f64::from(self.time_bias[head]);
                let keep = (-f64::from(self.decay[head]) * time.exp().ln_1p()).exp();
                state.iter_mut().for_each(|x| *x *= keep);
                let mut mixed = vec![0.0; dv];
                for (d, mixed) in mixed.iter_mut().enumerate() {
                    let read: f64 = (0..dk).map(|i| state[i * dv + d] * k[i]).sum();
                    let delta = (conv(t, 2 * hk * dk + head * dv + d) - read) * beta;
                    (0..dk).for_each(|i| state[i * dv + d] += k[i] * delta);
                    *mixed = (0..dk).map(|i| state[i * dv + d] * q[i]).sum::<f64>() / (dk as f64).sqrt();
                }
                let mean = mixed.iter().map(|x| x * x).sum::<f64>() / dv as f64;
                for (d, x) in mixed.iter().enumerate() {
                    let normed = x / (mean + 1e-6).sqrt() * f64::from(self.norm[d]);
                    out.push(normed * silu(row(t, channels + head * dv + d)));
                }
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn it_is_the_definition_and_cuts_and_threads_change_no_bit(
        seed in 0u64..1000, key_heads in 1usize..4, group in 1usize..3, key_dim in 1usize..40, value_dim in 1usize..40,
        taps in 1usize..6, tokens in 1usize..70, cut in 1usize..70,
    ) {
        let net = Net::new([key_heads, key_heads * group, key_dim, value_dim, taps], seed);
        let rows: Vec<f32> =
            numbers(seed + 9, tokens * net.shape().width()).iter().map(|x| 2.0 * x).collect();
        let exact = net.exact(&rows, tokens);
        let whole = net.run(Isa::detect(), 1, &rows, &[tokens]);
        for (got, exact) in whole.iter().zip(&exact) {
            prop_assert!((f64::from(*got) - exact).abs() <= 2e-4 * (1.0 + exact.abs()), "{got} for {exact}");
        }
        let cut = cut.min(tokens);
        prop_assert_eq!(bits(&net.run(Isa::detect(), 2, &rows, &[cut, tokens - cut])), bits(&whole));
        prop_assert_eq!(bits(&net.run(Isa::detect(), 3, &rows, &vec![1; tokens])), bits(&whole));
        for isa in [Isa::avx512(), Isa::avx2(), Some(Isa::twin())].into_iter().flatten() {
            prop_assert_eq!(bits(&net.run(isa, 1, &rows, &[tokens])), bits(&whole), "{:?}", isa);
        }
    }
}

#[test]
fn sequences_in_one_step_keep_their_own_states() {
    let net = Net::new([2, 4, 8, 12, 4], 3);
    let shape = net.shape();
    let rows = numbers(5, 9 * shape.width());
    let (mut a, mut b) = (vec![0.0; shape.state_elements()], vec![0.0; shape.state_elements()]);
    let mut out = vec![0.0; 9 * 48];
    let mut spans =
        [DeltaSpan { row: 5, tokens: 4, state: &mut a }, DeltaSpan { row: 0, tokens: 5, state: &mut b }];
    let isa = Isa::detect();
    delta_net(&Team::new(2), isa, &rows, &shape, &mut spans, &mut DeltaScratch::default(), &mut out);
    let first = net.run(isa, 1, &rows[..5 * shape.width()], &[5]);
    let second = net.run(isa, 1, &rows[5 * shape.width()..], &[4]);
    assert_eq!(bits(&out), bits(&[first, second].concat()));
}
