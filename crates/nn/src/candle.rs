//! The candle backend: the same operations over candle's tensors, on its CPU device, on Metal, or on CUDA.
//!
//! The CPU device is what tests run, against the CPU backend and transformers' logits; it is slower than that backend.
//! Metal and CUDA are the same code on another device: neither was ever run. Weights become floats of 16 or 32 bits when
//! they are loaded (f32 on the CPU device), quantised ones too. Unlike [`crate::Cpu`] a row's last bits may depend on how
//! many rows there are: that is up to the library's products.

mod attention;
mod delta;
mod rows;

use std::ops::Range;

use base::Bytes;
use candle_core::{D, DType as Element, Device, Result, Tensor};
use kernels::Team;
use model::checkpoint::{DType, TensorView};
use model::quant::dequantise;
use model::spec::{Activation, DeltaNetSpec};

use crate::backend::{
    AttentionStep, Backend, BackendError, DeltaSegment, DeltaStep, HeadsStep, Segment, Store,
};
use crate::cache::KvDType;

pub use attention::Kv;
pub use delta::State;
pub use rows::Rows;

/// A device that candle computes on.
#[derive(Debug, Clone)]
pub struct Candle {
    device: Device,
}

impl Candle {
    /// The CPU, by candle's own loops.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu }
    }

    /// The `ordinal`-th Metal device.
    ///
    /// # Errors
    /// There is none, or this build has no Metal.
    pub fn metal(ordinal: usize) -> std::result::Result<Self, BackendError> {
        Ok(Self { device: Device::new_metal(ordinal).map_err(failed("opening a Metal device"))? })
    }

    /// The `ordinal`-th CUDA device.
    ///
    /// # Errors
    /// There is none, or this build has no CUDA.
    pub fn cuda(ordinal: usize) -> std::result::Result<Self, BackendError> {
        Ok(Self { device: Device::new_cuda(ordinal).map_err(failed("opening a CUDA device"))? })
    }

    /// How matrices of `dtype` are held.
    fn element(&self, dtype: DType) -> Element {
        match dtype {
            _ if self.device.is_cpu() => Element::F32,
            DType::F32 => Element::F32,
            DType::BF16 => Element::BF16,
            _ => Element::F16,
        }
    }

    fn indices(&self, rows: impl Iterator<Item = u32>) -> Result<Tensor> {
        let rows: Vec<u32> = rows.collect();
        let len = rows.len();
        Tensor::from_vec(rows, len, &self.device)
    }
}

fn failed(operation: &'static str) -> impl FnOnce(candle_core::Error) -> BackendError {
    move |cause| BackendError { operation, cause: Box::new(cause) }
}

/// Norm of the last dimension.
fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(weight)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let powers = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

fn activate(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => gate.silu()? * up,
        Activation::GeluTanh => gate.gelu()? * up,
        Activation::Gelu => gate.gelu_erf()? * up,
        Activation::ClampedSwiglu { alpha, limit } => {
            let gate = gate.minimum(limit)?;
            let up = up.clamp(-limit, limit)?;
            (&gate * sigmoid(&(&gate * f64::from(alpha))?)?)? * (up + 1.0)?
        }
    }
}

impl Backend for Candle {
    type Workers = Team;
    type Rows = Rows;
    type Matrix = Tensor;
    type Vector = Tensor;
    type Kv = Kv;
    type AttentionMemory = ();
    type State = State;
    type DeltaMemory = ();

    fn finite(&self, _: &Team, tensor: &TensorView<'_>) -> bool {
        let mut values = vec![0.0; tensor.columns()];
        (0..tensor.rows()).all(|row| {
            dequantise(tensor, row, &mut values);
            values.iter().all(|x| x.is_finite())
        })
    }

    fn matrix(
        &self,
        _: &Team,
        parts: &[TensorView<'_>],
        dtype: DType,
    ) -> std::result::Result<Tensor, BackendError> {
        let columns = parts.first().map_or(0, TensorView::columns);
        let element = self.element(dtype);
        let stack = |part: &TensorView<'_>| {
            let mut values = vec![0.0; part.rows() * columns];
            let rows = values.chunks_exact_mut(columns.max(1)).enumerate();
            rows.for_each(|(row, values)| dequantise(part, row, values));
            // Made small before it goes to the device.
            Tensor::from_vec(values, (part.rows(), columns), &Device::Cpu)?.to_dtype(element)
        };
        let parts = parts.iter().map(stack).collect::<Result<Vec<_>>>();
        let matrix = parts.and_then(|parts| Tensor::cat(&parts, 0)?.to_device(&self.device));
        matrix.map_err(failed("taking weights"))
    }

    fn vector(&self, values: Vec<f32>) -> std::result::Result<Tensor, BackendError> {
        let len = values.len();
        Tensor::from_vec(values, len, &self.device).map_err(failed("taking a vector"))
    }

    fn matrix_bytes(&self, matrix: &Tensor) -> Bytes {
        Bytes((matrix.elem_count() * matrix.dtype().size_in_bytes()) as u64)
    }

    fn kv(
        &self,
        layers: &[(usize, usize)],
        pages: usize,
        page_tokens: usize,
        dtype: KvDType,
    ) -> std::result::Result<Kv, BackendError> {
        let element = match dtype {
            KvDType::F32 => Element::F32,
            KvDType::F16 => Element::F16,
            KvDType::Bf16 => Element::BF16,
            KvDType::Int8 => {
                return Err(BackendError {
                    operation: "allocating the KV cache",
                    cause: "candle holds keys and values as f32, f16 or bf16, not as int8".into(),
                });
            }
        };
        Kv::new(&self.device, layers, (pages, page_tokens), element)
            .map_err(failed("allocating the KV cache"))
    }

    fn shape(&self, rows: usize, columns: usize, out: &mut Rows) -> std::result::Result<(), BackendError> {
        out.set(Tensor::zeros((rows, columns), Element::F32, &self.device))
            .map_err(failed("allocating activations"))
    }

    fn upload(
        &self,
        values: &[f32],
        columns: usize,
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        out.set(Tensor::from_slice(values, (values.len() / columns.max(1), columns), &self.device))
            .map_err(failed("copying to the device"))
    }

    fn download<'a>(&self, rows: &'a Rows) -> std::result::Result<&'a [f32], BackendError> {
        rows.host().map_err(failed("copying from the device"))
    }

    fn values_mut<'a>(&self, rows: &'a mut Rows) -> std::result::Result<&'a mut [f32], BackendError> {
        rows.host_mut().map_err(failed("copying from the device"))
    }

    fn add(&self, from: &Rows, to: &mut Rows) -> std::result::Result<(), BackendError> {
        let sum = || to.on(&self.device)? + from.on(&self.device)?;
        let sum = sum();
        to.set(sum).map_err(failed("adding"))
    }

    fn embed(&self, table: &Tensor, tokens: &[u32], out: &mut Rows) -> std::result::Result<(), BackendError> {
        let rows = || table.index_select(&self.indices(tokens.iter().copied())?, 0)?.to_dtype(Element::F32);
        out.set(rows()).map_err(failed("embedding"))
    }

    fn gather(&self, x: &Rows, rows: &[usize], out: &mut Rows) -> std::result::Result<(), BackendError> {
        let gathered =
            || x.on(&self.device)?.index_select(&self.indices(rows.iter().map(|&row| row as u32))?, 0);
        out.set(gathered()).map_err(failed("gathering rows"))
    }

    fn norm(
        &self,
        _: &Team,
        x: &Rows,
        (weight, epsilon): (&Tensor, f32),
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let normed = || rms_norm(&x.on(&self.device)?, weight, epsilon);
        out.set(normed()).map_err(failed("a norm"))
    }

    fn linear(
        &self,
        _: &Team,
        x: &Rows,
        (weight, bias): (&Tensor, Option<&Tensor>),
        store: Store,
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let product = || {
            let x = x.on(&self.device)?.to_dtype(weight.dtype())?;
            let mut product = x.matmul(&weight.t()?)?.to_dtype(Element::F32)?;
            if let Some(bias) = bias {
                product = product.broadcast_add(bias)?;
            }
            match store {
                Store::Set => Ok(product),
                Store::Add => out.on(&self.device)? + product,
            }
        };
        let product = product();
        out.set(product).map_err(failed("a product"))
    }

    fn gate(
        &self,
        _: &Team,
        both: &Rows,
        activation: Activation,
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let gated = || {
            let both = both.on(&self.device)?;
            let width = both.dim(1)? / 2;
            activate(&both.narrow(1, 0, width)?, &both.narrow(1, width, width)?, activation)
        };
        out.set(gated()).map_err(failed("an activation"))
    }

    fn prepare_heads(
        &self,
        _: &Team,
        rows: &mut Rows,
        step: &HeadsStep<'_, Self>,
        segments: &[Segment<'_>],
        (kv, layer): (&mut Kv, usize),
    ) -> std::result::Result<(), BackendError> {
        let prepared = attention::prepare(&self.device, rows, step, segments, (kv, layer));
        rows.set(prepared).map_err(failed("preparing heads"))
    }

    fn attention(
        &self,
        _: &Team,
        rows: &Rows,
        step: &AttentionStep<'_, Self>,
        segments: &[Segment<'_>],
        (kv, layer): (&Kv, usize),
        _: &mut (),
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let rows = rows.on(&self.device);
        let attended = rows.and_then(|rows| attention::attend(&rows, step, segments, (kv, layer)));
        out.set(attended).map_err(failed("attention"))
    }

    fn zero_like(&self, x: &Rows, out: &mut Rows) -> std::result::Result<(), BackendError> {
        out.set(x.on(&self.device).and_then(|x| x.zeros_like())).map_err(failed("allocating activations"))
    }

    fn scatter_add(
        &self,
        from: &Rows,
        (rows, weights): (&[usize], &[f32]),
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let sum = || {
            let weights = Tensor::from_slice(weights, (weights.len(), 1), &self.device)?;
            let from = from.on(&self.device)?.broadcast_mul(&weights)?;
            out.on(&self.device)?.index_add(&self.indices(rows.iter().map(|&row| row as u32))?, &from, 0)
        };
        let sum = sum();
        out.set(sum).map_err(failed("scattering rows"))
    }

    fn scale(&self, x: &mut Rows, factor: f32) -> std::result::Result<(), BackendError> {
        let scaled = x.on(&self.device).and_then(|x| x * f64::from(factor));
        x.set(scaled).map_err(failed("scaling"))
    }

    fn soft_cap(&self, x: &mut Rows, cap: f32) -> std::result::Result<(), BackendError> {
        let capped = x.on(&self.device).and_then(|x| (x / f64::from(cap))?.tanh()? * f64::from(cap));
        x.set(capped).map_err(failed("a soft cap"))
    }

    fn sigmoid_gate(&self, _: &Team, gates: &Rows, x: &mut Rows) -> std::result::Result<(), BackendError> {
        let gated = || x.on(&self.device)? * sigmoid(&gates.on(&self.device)?)?;
        let gated = gated();
        x.set(gated).map_err(failed("a gate"))
    }

    fn norm_parts(
        &self,
        _: &Team,
        x: &Rows,
        (weight, epsilon): (&Tensor, f32),
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let normed = || {
            let x = x.on(&self.device)?;
            let (rows, columns) = x.dims2()?;
            let parts = x.reshape((rows, (), weight.dim(0)?))?;
            rms_norm(&parts, weight, epsilon)?.reshape((rows, columns))
        };
        out.set(normed()).map_err(failed("a norm"))
    }

    fn beside(
        &self,
        left: &Rows,
        (right, columns): (&Rows, Range<usize>),
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let both = || {
            let right = right.on(&self.device)?.narrow(1, columns.start, columns.len())?;
            Tensor::cat(&[left.on(&self.device)?, right], 1)
        };
        out.set(both()).map_err(failed("putting rows together"))
    }

    fn state(&self, spec: &DeltaNetSpec) -> std::result::Result<State, BackendError> {
        State::new(&self.device, spec).map_err(failed("allocating a sequence's state"))
    }

    fn delta_net(
        &self,
        _: &Team,
        rows: &Rows,
        step: &DeltaStep<'_, Self>,
        segments: &mut [DeltaSegment<'_, Self>],
        _: &mut (),
        out: &mut Rows,
    ) -> std::result::Result<(), BackendError> {
        let rows = rows.on(&self.device);
        let mixed = rows.and_then(|rows| delta::run(&rows, step, segments));
        out.set(mixed).map_err(failed("a delta net"))
    }
}
