//! The CPU backend: every operation is one call of crate `kernels`.

mod weights;

use std::sync::atomic::{AtomicBool, Ordering};

use base::Bytes;
use kernels::{
    Activations, AttentionScratch, AttentionShape, Buffer, DeltaScratch, DeltaShape, DeltaSpan, HeadsShape,
    Isa, KvPages, PackedMatrix, Rotation, Team,
};
use model::checkpoint::{DType, TensorView};
use model::quant::row_is_finite;
use model::spec::{Activation, DeltaNetSpec};

use crate::backend::{
    AttentionStep, Backend, BackendError, DeltaSegment, DeltaStep, HeadsStep, Pages, Segment, Store, Wipe,
};
use crate::cache::KvDType;

/// The CPU of this machine, with one of the instruction sets that it has.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    isa: Isa,
    activations: Activations,
}

impl Cpu {
    /// The CPU, used with `isa`.
    pub fn new(isa: Isa) -> Self {
        Self { isa, activations: Activations::default() }
    }

    /// The same, with which quantised weights are multiplied so.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }
}

/// Activations in memory that grows and never shrinks.
#[derive(Debug, Default)]
pub struct Rows {
    memory: Option<Buffer<f32>>,
    len: usize,
    columns: usize,
}

impl Rows {
    fn shape(&mut self, rows: usize, columns: usize) -> Result<(), BackendError> {
        let len = rows * columns;
        if self.memory.as_ref().is_none_or(|memory| memory.len() < len) {
            // A half more than asked for, so that a step that is one row larger is not one more allocation.
            let memory = Buffer::zeroed(len + len / 2);
            self.memory = Some(memory.map_err(|cause| failed("allocating activations", cause))?);
        }
        (self.len, self.columns) = (len, columns);
        Ok(())
    }

    fn values(&self) -> &[f32] {
        self.memory.as_ref().map_or(&[], |memory| &memory[..self.len])
    }

    fn values_mut(&mut self) -> &mut [f32] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory[..self.len])
    }
}

fn failed(
    operation: &'static str,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> BackendError {
    BackendError { operation, cause: cause.into() }
}

impl Pages for KvPages {
    fn wipe(&mut self, page: u32) {
        KvPages::wipe(self, page);
    }
}

impl Wipe for Vec<f32> {
    fn wipe(&mut self) {
        self.fill(0.0);
    }
}

impl Backend for Cpu {
    type Workers = Team;
    type Rows = Rows;
    type Matrix = PackedMatrix;
    type Vector = Vec<f32>;
    type Kv = KvPages;
    type AttentionMemory = AttentionScratch;
    type State = Vec<f32>;
    type DeltaMemory = DeltaScratch;

    fn finite(&self, workers: &Team, tensor: &TensorView<'_>) -> bool {
        match tensor.dtype.is_float() {
            true => kernels::all_finite(weights::element(tensor.dtype), &tensor.ordered_bytes(), workers),
            false => {
                let finite = AtomicBool::new(true);
                workers.share(tensor.rows(), 16, &|_, mut rows| {
                    if finite.load(Ordering::Relaxed) && !rows.all(|row| row_is_finite(tensor, row)) {
                        finite.store(false, Ordering::Relaxed);
                    }
                });
                finite.into_inner()
            }
        }
    }

    fn matrix(
        &self,
        workers: &Team,
        parts: &[TensorView<'_>],
        dtype: DType,
    ) -> Result<PackedMatrix, BackendError> {
        let matrix =
            weights::stack(workers, parts, dtype).map_err(|cause| failed("packing weights", cause))?;
        Ok(matrix.with_activations(self.activations))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, BackendError> {
        Ok(values)
    }

    fn matrix_bytes(&self, matrix: &PackedMatrix) -> Bytes {
        Bytes(matrix.bytes() as u64)
    }

    fn kv(
        &self,
        layers: &[(usize, usize)],
        pages: usize,
        page_tokens: usize,
        dtype: KvDType,
    ) -> Result<KvPages, BackendError> {
        let kv = KvPages::new(layers, pages, page_tokens, dtype.element());
        kv.map_err(|cause| failed("allocating the KV cache", cause))
    }

    fn shape(&self, rows: usize, columns: usize, out: &mut Rows) -> Result<(), BackendError> {
        out.shape(rows, columns)
    }

    fn upload(&self, values: &[f32], columns: usize, out: &mut Rows) -> Result<(), BackendError> {
        out.shape(values.len() / columns.max(1), columns)?;
        out.values_mut().copy_from_slice(values);
        Ok(())
    }

    fn download<'a>(&self, rows: &'a Rows) -> Result<&'a [f32], BackendError> {
        Ok(rows.values())
    }

    fn values_mut<'a>(&self, rows: &'a mut Rows) -> Result<&'a mut [f32], BackendError> {
        Ok(rows.values_mut())
    }

    fn add(&self, from: &Rows, to: &mut Rows) -> Result<(), BackendError> {
        for (to, from) in to.values_mut().iter_mut().zip(from.values()) {
            *to += from;
        }
        Ok(())
    }

    fn embed(&self, table: &PackedMatrix, tokens: &[u32], out: &mut Rows) -> Result<(), BackendError> {
        out.shape(tokens.len(), table.columns())?;
        for (out, &token) in out.values_mut().chunks_exact_mut(table.columns()).zip(tokens) {
            table.row(token as usize, out);
        }
        Ok(())
    }

    fn gather(&self, x: &Rows, rows: &[usize], out: &mut Rows) -> Result<(), BackendError> {
        out.shape(rows.len(), x.columns)?;
        for (out, row) in out.values_mut().chunks_exact_mut(x.columns).zip(rows) {
            out.copy_from_slice(&x.values()[row * x.columns..][..x.columns]);
        }
        Ok(())
    }

    fn norm(
        &self,
        workers: &Team,
        x: &Rows,
        (weight, epsilon): (&Vec<f32>, f32),
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        out.shape(x.len / x.columns.max(1), x.columns)?;
        kernels::rms_norm(workers, self.isa, x.values(), weight, epsilon, out.values_mut());
        Ok(())
    }

    fn linear(
        &self,
        workers: &Team,
        x: &Rows,
        (weight, bias): (&PackedMatrix, Option<&Vec<f32>>),
        store: Store,
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        let store = match store {
            Store::Set => {
                out.shape(x.len / x.columns.max(1), weight.rows())?;
                kernels::Store::Set
            }
            Store::Add => kernels::Store::Add,
        };
        let bias = bias.map(Vec::as_slice);
        kernels::linear(workers, self.isa, x.values(), weight, bias, store, out.values_mut());
        Ok(())
    }

    fn gate(
        &self,
        workers: &Team,
        both: &Rows,
        activation: Activation,
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        let width = both.columns / 2;
        out.shape(both.len / both.columns.max(1), width)?;
        let activation = match activation {
            Activation::Silu => kernels::Activation::Silu,
            Activation::GeluTanh => kernels::Activation::GeluTanh,
            Activation::Gelu => kernels::Activation::Gelu,
            Activation::ClampedSwiglu { alpha, limit } => kernels::Activation::ClampedSwiglu { alpha, limit },
        };
        kernels::gate(workers, self.isa, both.values(), width, activation, out.values_mut());
        Ok(())
    }

    fn prepare_heads(
        &self,
        workers: &Team,
        rows: &mut Rows,
        step: &HeadsStep<'_, Self>,
        segments: &[Segment<'_>],
        (kv, layer): (&mut KvPages, usize),
    ) -> Result<(), BackendError> {
        let shape = HeadsShape {
            heads: step.heads,
            kv_heads: step.kv_heads,
            head_dim: step.head_dim,
            query_norm: step.query_norm.map(|(weight, epsilon)| (weight.as_slice(), epsilon)),
            key_norm: step.key_norm.map(|(weight, epsilon)| (weight.as_slice(), epsilon)),
            value_norm: step.value_norm.map(|(weight, epsilon)| (weight.as_slice(), epsilon)),
            queries_only: step.queries_only,
            rotation: Rotation { dims: step.rotated, cos: step.cos.values(), sin: step.sin.values() },
        };
        kernels::prepare_heads(workers, self.isa, rows.values_mut(), &shape, segments, kv, layer);
        Ok(())
    }

    fn attention(
        &self,
        workers: &Team,
        rows: &Rows,
        step: &AttentionStep<'_, Self>,
        segments: &[Segment<'_>],
        cache: (&KvPages, usize),
        memory: &mut AttentionScratch,
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        let shape = AttentionShape {
            heads: step.heads,
            kv_heads: step.kv_heads,
            head_dim: step.head_dim,
            scale: step.scale,
            window: step.window,
            soft_cap: step.soft_cap,
            sinks: step.sinks.map(Vec::as_slice),
            queries_only: step.queries_only,
        };
        let tokens = segments.iter().map(|segment| segment.tokens).sum();
        out.shape(tokens, step.heads * step.head_dim)?;
        let rows = rows.values();
        kernels::attention(workers, self.isa, rows, &shape, segments, cache, memory, out.values_mut());
        Ok(())
    }

    fn zero_like(&self, x: &Rows, out: &mut Rows) -> Result<(), BackendError> {
        out.shape(x.len / x.columns.max(1), x.columns)?;
        out.values_mut().fill(0.0);
        Ok(())
    }

    fn scatter_add(
        &self,
        from: &Rows,
        (rows, weights): (&[usize], &[f32]),
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        let columns = from.columns;
        let from = from.values().chunks_exact(columns.max(1));
        for ((from, row), weight) in from.zip(rows).zip(weights) {
            let out = &mut out.values_mut()[row * columns..][..columns];
            out.iter_mut().zip(from).for_each(|(out, from)| *out += weight * from);
        }
        Ok(())
    }

    fn scale(&self, x: &mut Rows, factor: f32) -> Result<(), BackendError> {
        x.values_mut().iter_mut().for_each(|x| *x *= factor);
        Ok(())
    }

    fn soft_cap(&self, x: &mut Rows, cap: f32) -> Result<(), BackendError> {
        x.values_mut().iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        Ok(())
    }

    fn sigmoid_gate(&self, workers: &Team, gates: &Rows, x: &mut Rows) -> Result<(), BackendError> {
        kernels::sigmoid_gate(workers, self.isa, gates.values(), x.values_mut());
        Ok(())
    }

    fn norm_parts(
        &self,
        workers: &Team,
        x: &Rows,
        (weight, epsilon): (&Vec<f32>, f32),
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        out.shape(x.len / x.columns.max(1), x.columns)?;
        kernels::rms_norm(workers, self.isa, x.values(), weight, epsilon, out.values_mut());
        Ok(())
    }

    fn beside(
        &self,
        left: &Rows,
        (right, columns): (&Rows, std::ops::Range<usize>),
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        out.shape(left.len / left.columns.max(1), left.columns + columns.len())?;
        let rows = left.values().chunks_exact(left.columns).zip(right.values().chunks_exact(right.columns));
        let width = out.columns;
        for (out, (left, right)) in out.values_mut().chunks_exact_mut(width).zip(rows) {
            out[..left.len()].copy_from_slice(left);
            out[left.len()..].copy_from_slice(&right[columns.clone()]);
        }
        Ok(())
    }

    fn state(&self, spec: &DeltaNetSpec) -> Result<Vec<f32>, BackendError> {
        let mut state = Vec::new();
        let reserved = state.try_reserve_exact(spec.state_elements());
        reserved.map_err(|cause| failed("allocating a sequence's state", cause))?;
        state.resize(spec.state_elements(), 0.0);
        Ok(state)
    }

    fn delta_net(
        &self,
        workers: &Team,
        rows: &Rows,
        step: &DeltaStep<'_, Self>,
        segments: &mut [DeltaSegment<'_, Self>],
        memory: &mut DeltaScratch,
        out: &mut Rows,
    ) -> Result<(), BackendError> {
        let spec = step.spec;
        let shape = DeltaShape {
            key_heads: spec.key_heads,
            value_heads: spec.value_heads,
            key_dim: spec.key_dim,
            value_dim: spec.value_dim,
            taps: spec.conv_width,
            convolution: step.convolution,
            decay: step.decay,
            time_bias: step.time_bias,
            norm: (step.norm, spec.norm.epsilon),
        };
        let mut spans: Vec<_> = segments
            .iter_mut()
            .map(|segment| DeltaSpan { row: segment.row, tokens: segment.tokens, state: segment.state })
            .collect();
        out.shape(rows.len / rows.columns.max(1), spec.value_heads * spec.value_dim)?;
        kernels::delta_net(workers, self.isa, rows.values(), &shape, &mut spans, memory, out.values_mut());
        Ok(())
    }
}
