//! Loops over rows of activations: the root-mean-square norm and the gated activation.

use crate::isa::Isa;
use crate::lanes::{Kernel, LANES, Lanes};
use crate::math;
use crate::shared::SharedMut;
use crate::team::Team;

/// Below so many elements a loop runs on the caller alone: a few microseconds of work, which sharing would not shorten.
const ALONE_BELOW: usize = 24 * 1024;

/// How gate and up become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `gate * sigmoid(gate) * up`.
    Silu,
    /// GELU of the gate, tanh form, times up.
    GeluTanh,
    /// GELU of the gate by its definition, times up.
    Gelu,
    /// `(up + 1) * gate * sigmoid(alpha * gate)`, gate at most `limit`, up within `limit` of 0.
    ClampedSwiglu {
        /// Steepness.
        alpha: f32,
        /// Bound.
        limit: f32,
    },
}

/// `out = x / sqrt(mean(x^2) + epsilon) * weight` for each row of `x: [T, E]`; `weight: [E]`, `out: [T, E]`.
///
/// # Panics
/// Lengths do not fit each other.
pub fn rms_norm(team: &Team, isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let columns = weight.len();
    assert!(columns > 0 && x.len().is_multiple_of(columns), "{} elements are no rows of {columns}", x.len());
    assert_eq!(x.len(), out.len(), "a norm has as many outputs as inputs");
    let out = SharedMut::new(out);
    for_rows(team, x.len() / columns, columns, &|row| {
        // SAFETY: each row is handed out once.
        let out = unsafe { out.part(row * columns, columns) };
        isa.dispatch(Norm { x: &x[row * columns..][..columns], weight, epsilon, out });
    });
}

/// `out = activation(gate, up)` with `gate` the first and `up` the second half of each row of `both: [T, 2F]`;
/// `out: [T, F]`.
///
/// # Panics
/// Lengths do not fit each other.
pub fn gate(team: &Team, isa: Isa, both: &[f32], width: usize, activation: Activation, out: &mut [f32]) {
    assert!(
        width > 0 && both.len().is_multiple_of(2 * width),
        "{} elements are no rows of {}",
        both.len(),
        2 * width
    );
    assert_eq!(both.len(), 2 * out.len(), "half as many outputs as inputs");
    let out = SharedMut::new(out);
    for_rows(team, both.len() / (2 * width), 4 * width, &|row| {
        // SAFETY: each row is handed out once.
        let out = unsafe { out.part(row * width, width) };
        let (gate, up) = both[row * 2 * width..][..2 * width].split_at(width);
        isa.dispatch(Gate { gate, up, activation, out });
    });
}

/// `x *= sigmoid(gates)`, element by element.
///
/// # Panics
/// Lengths differ.
pub fn sigmoid_gate(team: &Team, isa: Isa, gates: &[f32], x: &mut [f32]) {
    /// Elements that a worker takes at a time: a few microseconds of work.
    const PART: usize = 4096;
    assert_eq!(gates.len(), x.len(), "a gate for each element");
    let len = x.len();
    let x = SharedMut::new(x);
    for_rows(team, len.div_ceil(PART), 4 * PART, &|part| {
        let (at, len) = (part * PART, (len - part * PART).min(PART));
        // SAFETY: each part is handed out once.
        let x = unsafe { x.part(at, len) };
        isa.dispatch(SigmoidGate { gates: &gates[at..at + len], x });
    });
}

struct SigmoidGate<'a> {
    gates: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for SigmoidGate<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (x, gates) in self.x.chunks_mut(LANES).zip(self.gates.chunks(LANES)) {
            let (mut values, mut last) = ([0.0f32; LANES], [0.0f32; LANES]);
            values[..x.len()].copy_from_slice(x);
            last[..gates.len()].copy_from_slice(gates);
            // SAFETY: both arrays are sixteen long; the caller vouches for the instructions.
            unsafe {
                let power = math::exp::<L>(L::sub(L::splat(0.0), L::load(last.as_ptr())));
                let gated = L::div(L::load(values.as_ptr()), L::add(L::splat(1.0), power));
                L::store(values.as_mut_ptr(), gated);
            }
            x.copy_from_slice(&values[..x.len()]);
        }
    }
}

/// Runs `job` for each of `rows` rows, of `work` elements each.
fn for_rows(team: &Team, rows: usize, work: usize, job: &(dyn Fn(usize) + Sync)) {
    let alone = rows * work < ALONE_BELOW;
    let step = if alone { rows } else { rows.div_ceil(team.workers() * 4) };
    team.share(rows, step, &|_, rows| rows.for_each(job));
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        assert!(self.x.len() == self.weight.len() && self.x.len() == self.out.len());
        // SAFETY: the two are as long as the weight, and the caller vouches for the instructions.
        unsafe { norm_row::<L>(self.x.as_ptr(), self.weight, self.epsilon, self.out.as_mut_ptr()) }
    }
}

/// One row's norm, in place.
pub(crate) struct NormInPlace<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
}

impl Kernel for NormInPlace<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        assert!(self.x.len() == self.weight.len());
        let x = self.x.as_mut_ptr();
        // SAFETY: it is as long as the weight, and the caller vouches for the instructions.
        unsafe { norm_row::<L>(x, self.weight, self.epsilon, x) }
    }
}

/// `x` and `out` have as many elements as `weight`, and may be the same.
#[inline(always)]
unsafe fn norm_row<L: Lanes>(x: *const f32, weight: &[f32], epsilon: f32, out: *mut f32) {
    let (len, weight) = (weight.len(), weight.as_ptr());
    let (whole, rest) = (len / LANES * LANES, len % LANES);
    // SAFETY: sixteen elements are there at each multiple of sixteen below `whole`, in all three; each is read
    // before it is written.
    unsafe {
        let mut squares = L::splat(0.0);
        for at in (0..whole).step_by(LANES) {
            let v = L::load(x.add(at));
            squares = L::fma(v, v, squares);
        }
        if rest > 0 {
            let mut last = [0.0f32; LANES];
            std::ptr::copy_nonoverlapping(x.add(whole), last.as_mut_ptr(), rest);
            let v = L::load(last.as_ptr());
            squares = L::fma(v, v, squares);
        }
        let scale = 1.0 / (L::sum(squares) / len as f32 + epsilon).sqrt();
        let scales = L::splat(scale);
        for at in (0..whole).step_by(LANES) {
            let v = L::mul(L::load(x.add(at)), scales);
            L::store(out.add(at), L::mul(v, L::load(weight.add(at))));
        }
        for at in whole..len {
            *out.add(at) = *x.add(at) * scale * *weight.add(at);
        }
    }
}

struct Gate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            match self.activation {
                Activation::Silu => gate_row::<L, _>(self.gate, self.up, self.out, Silu),
                Activation::GeluTanh => gate_row::<L, _>(self.gate, self.up, self.out, GeluTanh),
                Activation::Gelu => gate_row::<L, _>(self.gate, self.up, self.out, Gelu),
                Activation::ClampedSwiglu { alpha, limit } => {
                    gate_row::<L, _>(self.gate, self.up, self.out, ClampedSwiglu { alpha, limit });
                }
            }
        }
    }
}

/// One [`Activation`], as the loop has it.
trait Combine: Copy {
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn both<L: Lanes>(self, gate: L::V, up: L::V) -> L::V;
}

#[derive(Clone, Copy)]
struct Silu;
#[derive(Clone, Copy)]
struct GeluTanh;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}

impl Combine for Silu {
    #[inline(always)]
    unsafe fn both<L: Lanes>(self, gate: L::V, up: L::V) -> L::V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { L::mul(math::silu::<L>(gate), up) }
    }
}

impl Combine for GeluTanh {
    #[inline(always)]
    unsafe fn both<L: Lanes>(self, gate: L::V, up: L::V) -> L::V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { L::mul(math::gelu_tanh::<L>(gate), up) }
    }
}

impl Combine for Gelu {
    #[inline(always)]
    unsafe fn both<L: Lanes>(self, gate: L::V, up: L::V) -> L::V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { L::mul(math::gelu::<L>(gate), up) }
    }
}

impl Combine for ClampedSwiglu {
    #[inline(always)]
    unsafe fn both<L: Lanes>(self, gate: L::V, up: L::V) -> L::V {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let limit = L::splat(self.limit);
            // The value comes last: so what is no number stays none.
            let gate = L::min(limit, gate);
            let up = L::min(limit, L::max(L::splat(-self.limit), up));
            let power = L::mul(gate, L::splat(-self.alpha));
            let glu = L::div(gate, L::add(L::splat(1.0), math::exp::<L>(power)));
            L::mul(L::add(up, L::splat(1.0)), glu)
        }
    }
}

#[inline(always)]
unsafe fn gate_row<L: Lanes, C: Combine>(gate: &[f32], up: &[f32], out: &mut [f32], combine: C) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    let (whole, rest) = (out.len() / LANES * LANES, out.len() % LANES);
    // SAFETY: sixteen elements are there at each multiple of sixteen below `whole`; the rest goes through arrays.
    unsafe {
        for at in (0..whole).step_by(LANES) {
            let both = combine.both::<L>(L::load(gate.as_ptr().add(at)), L::load(up.as_ptr().add(at)));
            L::store(out.as_mut_ptr().add(at), both);
        }
        if rest > 0 {
            let (mut last, mut last_up) = ([0.0f32; LANES], [0.0f32; LANES]);
            last[..rest].copy_from_slice(&gate[whole..]);
            last_up[..rest].copy_from_slice(&up[whole..]);
            let both = combine.both::<L>(L::load(last.as_ptr()), L::load(last_up.as_ptr()));
            L::store(last.as_mut_ptr(), both);
            out[whole..].copy_from_slice(&last[..rest]);
        }
    }
}

#[cfg(test)]
mod tests;
