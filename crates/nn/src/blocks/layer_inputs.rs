//! A second embedding that every layer gets its own part of.

use model::spec::LayerInputsSpec;

use super::{Linear, Norm};
use crate::backend::{Backend, BackendError, Store};

/// What the model has of it.
pub(crate) struct LayerInputs<B: Backend> {
    pub(crate) spec: LayerInputsSpec,
    /// `[V', L*W]`.
    pub(crate) embedding: B::Matrix,
    /// `[L*W, E]`.
    pub(crate) projection: Linear<B>,
    /// Its epsilon is E times the spec's, in place of `E^-1/2` on the projection; its weights are times `2^-1/2`.
    pub(crate) norm: Norm<B>,
}

/// What a layer has of it.
pub(crate) struct LayerInput<B: Backend> {
    pub(crate) gate: Linear<B>,
    pub(crate) projection: Linear<B>,
    pub(crate) norm: Norm<B>,
}

/// Memory of it, kept between steps.
pub(crate) struct LayerInputRows<B: Backend> {
    /// `[T, L*W]`: what the layers get.
    pub(crate) all: B::Rows,
    pub(crate) kept: B::Rows,
    one: B::Rows,
    gate: B::Rows,
    both: B::Rows,
    result: B::Rows,
}

impl<B: Backend> Default for LayerInputRows<B> {
    fn default() -> Self {
        Self {
            all: B::Rows::default(),
            kept: B::Rows::default(),
            one: B::Rows::default(),
            gate: B::Rows::default(),
            both: B::Rows::default(),
            result: B::Rows::default(),
        }
    }
}

impl<B: Backend> LayerInputs<B> {
    /// Fills [`LayerInputRows::all`] for `tokens`, whose embeddings are `x`.
    pub(crate) fn begin(
        &self,
        (backend, workers): (&B, &B::Workers),
        (tokens, x): (&[u32], &B::Rows),
        rows: &mut LayerInputRows<B>,
    ) -> Result<(), BackendError> {
        let LayerInputRows { all, one, result, .. } = rows;
        self.projection.apply(backend, workers, x, Store::Set, one)?;
        backend.norm_parts(workers, one, self.norm.parts(), result)?;
        backend.embed(&self.embedding, tokens, all)?;
        backend.scale(all, (self.spec.width as f32 / 2.0).sqrt())?;
        backend.add(result, all)
    }
}

impl<B: Backend> LayerInput<B> {
    /// Adds the layer's part to the stream.
    pub(crate) fn apply(
        &self,
        (backend, workers): (&B, &B::Workers),
        (at, spec): (usize, &LayerInputsSpec),
        rows: &mut LayerInputRows<B>,
        x: &mut B::Rows,
    ) -> Result<(), BackendError> {
        let LayerInputRows { all, one, gate, both, result, .. } = rows;
        self.gate.apply(backend, workers, x, Store::Set, gate)?;
        backend.beside(gate, (all, at * spec.width..(at + 1) * spec.width), both)?;
        backend.gate(workers, both, spec.activation, one)?;
        self.projection.apply(backend, workers, one, Store::Set, gate)?;
        self.norm.apply(backend, workers, gate, result)?;
        backend.add(result, x)
    }
}
