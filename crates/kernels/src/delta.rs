//! The gated delta rule: a causal convolution over channels, a recurrence over a state for each head, and the gated
//! norm of what comes out.
//!
//! Tokens go through one by one and each sum is added up in one order, so that a token's result is bitwise the same
//! however its sequence was cut into steps and whatever else is in the batch. Source: Yang et al., "Gated delta
//! networks" (2024), with the layout of Qwen 3.5.

use crate::isa::Isa;
use crate::lanes::{Kernel, LANES, Lanes};
use crate::math;
use crate::rows::NormInPlace;
use crate::shared::SharedMut;
use crate::team::Team;

/// Below so many multiply-adds the loop runs on the caller alone: see the same constant of the matrix product.
const ALONE_BELOW: usize = 128 * 1024;
/// Added under the root of q's and k's lengths.
const LENGTH_EPSILON: f32 = 1e-6;

/// The shape of a delta net, and its small weights. Channels C are `2 * Hk * Dk + Hv * Dv`: q, k and v of all heads.
#[derive(Debug, Clone, Copy)]
pub struct DeltaShape<'a> {
    /// Hk; divides Hv.
    pub key_heads: usize,
    /// Hv.
    pub value_heads: usize,
    /// Dk.
    pub key_dim: usize,
    /// Dv.
    pub value_dim: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// `[taps, C]`, the newest token's last.
    pub convolution: &'a [f32],
    /// How fast each head forgets: `[Hv]`, above 0.
    pub decay: &'a [f32],
    /// Added to the time before its softplus: `[Hv]`.
    pub time_bias: &'a [f32],
    /// Weights `[Dv]` and epsilon of the norm of each head's output.
    pub norm: (&'a [f32], f32),
}

impl DeltaShape<'_> {
    fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Elements of a projected row: channels, then z of all heads, then their beta, then their time.
    fn width(&self) -> usize {
        self.channels() + self.value_heads * (self.value_dim + 2)
    }

    fn history(&self) -> usize {
        (self.taps - 1) * self.channels()
    }

    /// Elements of a state: the convolution's last inputs, oldest first, `[taps - 1, C]`, then `[Hv, Dk, Dv]`. All
    /// zeros before the first token.
    pub fn state_elements(&self) -> usize {
        self.history() + self.value_heads * self.key_dim * self.value_dim
    }
}

/// Consecutive tokens of one sequence in a step.
#[derive(Debug)]
pub struct DeltaSpan<'a> {
    /// The projected row of its first token.
    pub row: usize,
    /// How many.
    pub tokens: usize,
    /// The sequence's state after the tokens before; after these when the call returns.
    pub state: &'a mut [f32],
}

/// Each worker's own memory, kept between steps.
#[derive(Debug, Default)]
pub struct DeltaScratch {
    workers: Vec<Vec<f32>>,
}

/// `out: [T, Hv * Dv]` = the delta net of `rows: [T, C + Hv * (Dv + 2)]`, which hold of every token q, k and v of all
/// heads before their convolution, then z, beta before its sigmoid, and time. Rows of no span are left alone.
///
/// # Panics
/// Lengths do not fit each other, or a span has rows that are not there.
pub fn delta_net(
    team: &Team,
    isa: Isa,
    rows: &[f32],
    shape: &DeltaShape<'_>,
    spans: &mut [DeltaSpan<'_>],
    scratch: &mut DeltaScratch,
    out: &mut [f32],
) {
    let (width, values) = (shape.width(), shape.value_heads * shape.value_dim);
    assert!(shape.taps > 0 && rows.len().is_multiple_of(width), "{} elements, rows of {width}", rows.len());
    assert!(shape.value_heads.is_multiple_of(shape.key_heads), "key heads divide value heads");
    assert_eq!(shape.convolution.len(), shape.taps * shape.channels(), "a tap for each channel");
    assert!(
        shape.decay.len() == shape.value_heads && shape.time_bias.len() == shape.value_heads,
        "one for each head"
    );
    assert_eq!(out.len(), rows.len() / width * values, "an output for each row");
    for span in spans.iter() {
        assert!(span.row + span.tokens <= rows.len() / width, "rows {}+{}", span.row, span.tokens);
        assert_eq!(span.state.len(), shape.state_elements(), "a state of this shape");
    }
    let tokens: usize = spans.iter().map(|span| span.tokens).sum();
    let items = spans.len() * shape.key_heads;
    let alone = tokens * shape.value_heads * shape.key_dim * shape.value_dim < ALONE_BELOW;
    let places: Vec<(usize, usize)> = spans.iter().map(|span| (span.row, span.tokens)).collect();
    let states: Vec<_> = spans.iter_mut().map(|span| SharedMut::new(&mut *span.state)).collect();
    scratch.workers.resize_with(team.workers().max(scratch.workers.len()), Vec::new);
    let memories = SharedMut::new(&mut scratch.workers);
    let out = SharedMut::new(out);
    team.share(items, if alone { items } else { 1 }, &|worker, items| {
        // SAFETY: each worker has its own memory, and runs one part at a time.
        let memory = unsafe { &mut memories.part(worker, 1)[0] };
        for item in items {
            let (span, head) = (item / shape.key_heads, item % shape.key_heads);
            let (row, tokens) = places[span];
            isa.dispatch(Head { rows, shape, row, tokens, head, state: &states[span], memory, out: &out });
        }
    });
}

/// One key head and the value heads that it serves, over one span.
struct Head<'a> {
    rows: &'a [f32],
    shape: &'a DeltaShape<'a>,
    row: usize,
    tokens: usize,
    head: usize,
    state: &'a SharedMut<'a, f32>,
    memory: &'a mut Vec<f32>,
    out: &'a SharedMut<'a, f32>,
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *self.shape;
        let group = value_heads / key_heads;
        let (keys, values) = (key_dim.next_multiple_of(LANES), value_dim.next_multiple_of(LANES));
        let mut memory = std::mem::take(self.memory);
        memory.clear();
        memory.resize(2 * keys + 3 * values, 0.0);
        let (q, rest) = memory.split_at_mut(keys);
        let (k, rest) = rest.split_at_mut(keys);
        let (v, rest) = rest.split_at_mut(values);
        let (read, mixed) = rest.split_at_mut(values);
        let all_keys = key_heads * key_dim;
        for token in 0..self.tokens {
            // SAFETY: the caller vouches for the instructions; all are as long as their channels, padded.
            unsafe {
                self.convolve::<L>(token, self.head * key_dim, key_dim, q);
                self.convolve::<L>(token, all_keys + self.head * key_dim, key_dim, k);
            }
            to_length(&mut q[..key_dim], 1.0 / (key_dim as f32).sqrt());
            to_length(&mut k[..key_dim], 1.0);
            for head in self.head * group..(self.head + 1) * group {
                // SAFETY: as above.
                unsafe { self.convolve::<L>(token, 2 * all_keys + head * value_dim, value_dim, v) };
                self.recur(token, head, (q, k, v), read, mixed);
                // SAFETY: as above.
                unsafe { self.finish::<L>(token, head, read, mixed) };
            }
        }
        self.remember(self.head * key_dim, key_dim);
        self.remember(all_keys + self.head * key_dim, key_dim);
        self.remember(2 * all_keys + self.head * group * value_dim, group * value_dim);
        *self.memory = memory;
    }
}

impl Head<'_> {
    fn place(&self, token: usize, column: usize) -> usize {
        (self.row + token) * self.shape.width() + column
    }

    /// The convolution of `len` channels from `first` at `token`, through SiLU, into `out`.
    #[inline(always)]
    unsafe fn convolve<L: Lanes>(&self, token: usize, first: usize, len: usize, out: &mut [f32]) {
        let (taps, channels) = (self.shape.taps, self.shape.channels());
        out.fill(0.0);
        for tap in 0..taps {
            let weights = &self.shape.convolution[tap * channels + first..][..len];
            // How many tokens back this tap reaches; before the span they are the state's.
            let back = taps - 1 - tap;
            if back <= token {
                let inputs = &self.rows[self.place(token - back, first)..][..len];
                add_products(out, inputs, weights);
            } else {
                let at = (taps - 1 + token - back) * channels + first;
                // SAFETY: these channels of the history are this head's alone.
                let inputs = unsafe { self.state.part(at, len) };
                add_products(out, inputs, weights);
            }
        }
        for at in (0..out.len()).step_by(LANES) {
            // SAFETY: `out` is whole vectors; the caller vouches for the instructions.
            unsafe {
                let place = out.as_mut_ptr().add(at);
                L::store(place, math::silu::<L>(L::load(place)));
            }
        }
    }

    /// One token through one head's state: what it reads is left in `mixed`; `read` is memory.
    #[inline(always)]
    fn recur(
        &self,
        token: usize,
        head: usize,
        (q, k, v): (&[f32], &[f32], &mut [f32]),
        read: &mut [f32],
        mixed: &mut [f32],
    ) {
        let DeltaShape { value_heads, key_dim, value_dim, .. } = *self.shape;
        let numbers = self.place(token, self.shape.channels() + value_heads * value_dim);
        let beta = sigmoid(self.rows[numbers + head]);
        let time = softplus(self.rows[numbers + value_heads + head] + self.shape.time_bias[head]);
        let keep = (-f64::from(self.shape.decay[head]) * f64::from(time)).exp() as f32;
        let size = key_dim * value_dim;
        // SAFETY: this head's state, which only this worker touches.
        let state = unsafe { self.state.part(self.shape.history() + head * size, size) };
        let (v, read, mixed) = (&mut v[..value_dim], &mut read[..value_dim], &mut mixed[..value_dim]);
        read.fill(0.0);
        for (row, &key) in state.chunks_exact_mut(value_dim).zip(k) {
            for (x, read) in row.iter_mut().zip(&mut *read) {
                *x *= keep;
                *read += *x * key;
            }
        }
        for (v, read) in v.iter_mut().zip(&*read) {
            *v = (*v - read) * beta;
        }
        mixed.fill(0.0);
        for (row, (&key, &query)) in state.chunks_exact_mut(value_dim).zip(k.iter().zip(q)) {
            for ((x, v), mixed) in row.iter_mut().zip(&*v).zip(&mut *mixed) {
                *x += key * v;
                *mixed += *x * query;
            }
        }
    }

    /// Norm of a head's output, times SiLU of z.
    #[inline(always)]
    unsafe fn finish<L: Lanes>(&self, token: usize, head: usize, gates: &mut [f32], mixed: &mut [f32]) {
        let DeltaShape { value_heads, value_dim, norm: (weight, epsilon), .. } = *self.shape;
        let mixed = &mut mixed[..value_dim];
        // SAFETY: the caller vouches for the instructions.
        unsafe { NormInPlace { x: &mut *mixed, weight, epsilon }.run::<L>() };
        let z = self.place(token, self.shape.channels() + head * value_dim);
        gates[..value_dim].copy_from_slice(&self.rows[z..z + value_dim]);
        for at in (0..gates.len()).step_by(LANES) {
            // SAFETY: `gates` is whole vectors; the caller vouches for the instructions.
            unsafe {
                let place = gates.as_mut_ptr().add(at);
                L::store(place, math::silu::<L>(L::load(place)));
            }
        }
        let at = ((self.row + token) * value_heads + head) * value_dim;
        // SAFETY: each row's head is one worker's.
        let out = unsafe { self.out.part(at, value_dim) };
        for ((out, x), gate) in out.iter_mut().zip(mixed).zip(gates) {
            *out = *x * *gate;
        }
    }

    /// Keeps the last inputs of `len` channels from `first` for the tokens to come.
    fn remember(&self, first: usize, len: usize) {
        let channels = self.shape.channels();
        let kept = self.shape.taps - 1;
        for slot in 0..kept {
            // Slots are in the order of tokens: what is read lies behind what is written.
            let at = slot + self.tokens;
            if at < kept {
                // SAFETY: these channels of the history are this head's alone.
                let from = unsafe { self.state.part(at * channels + first, len) }.to_vec();
                // SAFETY: as above.
                unsafe { self.state.part(slot * channels + first, len) }.copy_from_slice(&from);
            } else {
                let from = &self.rows[self.place(at - kept, first)..][..len];
                // SAFETY: as above.
                unsafe { self.state.part(slot * channels + first, len) }.copy_from_slice(from);
            }
        }
    }
}

#[inline(always)]
fn add_products(out: &mut [f32], a: &[f32], b: &[f32]) {
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out += a * b;
    }
}

/// Scales `x` to the given length.
#[inline(always)]
fn to_length(x: &mut [f32], length: f32) {
    let squares: f32 = x.iter().map(|x| x * x).sum();
    let scale = length / (squares + LENGTH_EPSILON).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}

fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

/// `ln(1 + e^x)`.
fn softplus(x: f32) -> f32 {
    // Beyond it the difference from `x` is below f32's precision.
    if x > 20.0 { x } else { f64::from(x).exp().ln_1p() as f32 }
}

#[cfg(test)]
mod tests;
