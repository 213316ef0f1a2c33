//! Gated delta nets, a token at a time.

use candle_core::{D, DType as Element, Device, Result, Tensor};
use model::spec::DeltaNetSpec;

use super::{Candle, rms_norm, sigmoid};
use crate::backend::{DeltaSegment, DeltaStep, Wipe};

/// Added under the root of q's and k's lengths.
const LENGTH_EPSILON: f64 = 1e-6;

/// What a delta net carries of one sequence.
#[derive(Debug)]
pub struct State {
    /// The convolution's last inputs, oldest first: `[taps - 1, C]`.
    history: Tensor,
    /// `[Hv, Dk, Dv]`.
    heads: Tensor,
}

impl State {
    pub(super) fn new(device: &Device, spec: &DeltaNetSpec) -> Result<Self> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, Element::F32, device);
        Ok(Self {
            history: zeros(&[spec.conv_width - 1, channels(spec)])?,
            heads: zeros(&[spec.value_heads, spec.key_dim, spec.value_dim])?,
        })
    }
}

impl Wipe for State {
    /// Tensors are never changed in place: letting go is all there is.
    fn wipe(&mut self) {
        for tensor in [&mut self.history, &mut self.heads] {
            if let Ok(zeros) = tensor.zeros_like() {
                *tensor = zeros;
            }
        }
    }
}

fn channels(spec: &DeltaNetSpec) -> usize {
    2 * spec.key_heads * spec.key_dim + spec.value_heads * spec.value_dim
}

/// Each last dimension scaled to `length`.
fn to_length(x: &Tensor, length: f64) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    x.broadcast_mul(&((squares + LENGTH_EPSILON)?.sqrt()?.recip()? * length)?)
}

/// `ln(1 + e^x)`, for any `x`.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// All segments' tokens through their states.
pub(super) fn run(
    rows: &Tensor,
    step: &DeltaStep<'_, Candle>,
    segments: &mut [DeltaSegment<'_, Candle>],
) -> Result<Tensor> {
    let spec = step.spec;
    let out = Tensor::zeros((rows.dim(0)?, spec.value_heads * spec.value_dim), Element::F32, rows.device())?;
    for segment in segments {
        let mixed = run_one(&rows.narrow(0, segment.row, segment.tokens)?, step, segment.state)?;
        out.slice_set(&mixed, 0, segment.row)?;
    }
    Ok(out)
}

fn run_one(rows: &Tensor, step: &DeltaStep<'_, Candle>, state: &mut State) -> Result<Tensor> {
    let &DeltaNetSpec { key_heads, value_heads, key_dim, value_dim, conv_width: taps, .. } = step.spec;
    let (tokens, channels) = (rows.dim(0)?, channels(step.spec));
    let inputs = Tensor::cat(&[&state.history, &rows.narrow(1, 0, channels)?.contiguous()?], 0)?;
    let weights = step.convolution.reshape((taps, channels))?;
    let mut mixed = inputs.narrow(0, 0, tokens)?.broadcast_mul(&weights.narrow(0, 0, 1)?)?;
    for tap in 1..taps {
        mixed = (mixed + inputs.narrow(0, tap, tokens)?.broadcast_mul(&weights.narrow(0, tap, 1)?)?)?;
    }
    let mixed = mixed.silu()?;

    let group = value_heads / key_heads;
    // Of each value head: that of the key head which serves it.
    let keys = |first: usize, length: f64| {
        let x = mixed.narrow(1, first, key_heads * key_dim)?.reshape((tokens, key_heads, 1, key_dim))?;
        let x = to_length(&x, length)?.broadcast_as((tokens, key_heads, group, key_dim))?;
        x.contiguous()?.reshape((tokens, value_heads, key_dim, 1))
    };
    let queries = keys(0, 1.0 / (key_dim as f64).sqrt())?;
    let keys = keys(key_heads * key_dim, 1.0)?;
    let values = mixed.narrow(1, 2 * key_heads * key_dim, value_heads * value_dim)?;
    let values = values.reshape((tokens, value_heads, value_dim))?;
    let numbers = channels + value_heads * value_dim;
    let beta = sigmoid(&rows.narrow(1, numbers, value_heads)?)?.reshape((tokens, value_heads, 1))?;
    let time = rows.narrow(1, numbers + value_heads, value_heads)?.broadcast_add(step.time_bias)?;
    let keep = softplus(&time)?.broadcast_mul(step.decay)?.neg()?.exp()?;
    let keep = keep.reshape((tokens, value_heads, 1, 1))?;

    let mut outputs = Vec::with_capacity(tokens);
    let mut heads = state.heads.clone();
    for token in 0..tokens {
        let at = |x: &Tensor| x.get(token);
        let key = at(&keys)?;
        heads = heads.broadcast_mul(&at(&keep)?)?;
        let read = heads.broadcast_mul(&key)?.sum(1)?;
        let new = (at(&values)? - read)?.broadcast_mul(&at(&beta)?)?;
        heads = (heads + key.broadcast_mul(&new.unsqueeze(1)?)?)?;
        outputs.push(heads.broadcast_mul(&at(&queries)?)?.sum(1)?);
    }
    state.history = inputs.narrow(0, tokens, taps - 1)?.contiguous()?;
    state.heads = heads;

    let out = rms_norm(&Tensor::stack(&outputs, 0)?, step.norm, step.spec.norm.epsilon)?;
    let gates = rows.narrow(1, channels, value_heads * value_dim)?.silu()?;
    out.reshape((tokens, value_heads * value_dim))? * gates
}
