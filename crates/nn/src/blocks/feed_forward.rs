//! The feed-forward: gated, or experts, or both.

use model::spec::Activation;

use super::experts::{Experts, ExpertsRows};
use super::{Linear, Norm, Residual};
use crate::backend::{Backend, BackendError, Store};
use crate::peers::ResidualError;

/// `down(activation(gate(x), up(x)))`.
pub(crate) struct Gated<B: Backend> {
    /// Gate, then up: `[2F, E]`.
    pub(crate) gate_up: Linear<B>,
    pub(crate) down: Linear<B>,
    pub(crate) activation: Activation,
}

/// What mixes a layer's channels.
pub(crate) enum FeedForward<B: Backend> {
    Gated(Gated<B>),
    Experts(Experts<B>),
    Both(Box<DenseAndExperts<B>>),
}

/// See [`model::spec::DenseAndExpertsSpec`].
pub(crate) struct DenseAndExperts<B: Backend> {
    pub(crate) dense: Gated<B>,
    pub(crate) dense_post_norm: Norm<B>,
    pub(crate) experts_norm: Norm<B>,
    pub(crate) experts: Experts<B>,
    pub(crate) experts_post_norm: Norm<B>,
}

/// Memory of the feed-forward, kept between steps.
pub(crate) struct FeedForwardRows<B: Backend> {
    pub(super) both: B::Rows,
    pub(super) gated: B::Rows,
    pub(super) experts: ExpertsRows<B>,
    dense: B::Rows,
    normed: B::Rows,
}

impl<B: Backend> Default for FeedForwardRows<B> {
    fn default() -> Self {
        Self {
            both: B::Rows::default(),
            gated: B::Rows::default(),
            experts: ExpertsRows::default(),
            dense: B::Rows::default(),
            normed: B::Rows::default(),
        }
    }
}

impl<B: Backend> Gated<B> {
    /// What goes into the last product.
    pub(super) fn inner(
        &self,
        (backend, workers): (&B, &B::Workers),
        x: &B::Rows,
        both: &mut B::Rows,
        gated: &mut B::Rows,
    ) -> Result<(), BackendError> {
        self.gate_up.apply(backend, workers, x, Store::Set, both)?;
        backend.gate(workers, both, self.activation, gated)
    }

    /// The bytes of its matrices.
    pub(crate) fn linears(&self) -> [&Linear<B>; 2] {
        [&self.gate_up, &self.down]
    }
}

impl<B: Backend> FeedForward<B> {
    /// Adds the feed-forward of `x`, the stream under its norm, to the residual.
    pub(crate) fn apply(
        &self,
        on: (&B, &B::Workers),
        x: &B::Rows,
        rows: &mut FeedForwardRows<B>,
        residual: &mut Residual<'_, B>,
    ) -> Result<(), ResidualError> {
        match self {
            Self::Gated(gated) => {
                gated.inner(on, x, &mut rows.both, &mut rows.gated)?;
                residual.add(on, &rows.gated, &gated.down)
            }
            Self::Experts(experts) => {
                experts.apply(on, (residual.x, x), rows, residual.partial)?;
                residual.sum(on.0)?;
                residual.add_partial(on)
            }
            Self::Both(both) => both.apply(on, x, rows, residual),
        }
    }

    /// All its matrices.
    pub(crate) fn linears(&self) -> Vec<&Linear<B>> {
        match self {
            Self::Gated(gated) => gated.linears().to_vec(),
            Self::Experts(experts) => experts.linears(),
            Self::Both(both) => {
                let mut linears = both.experts.linears();
                linears.extend(both.dense.linears());
                linears
            }
        }
    }
}

impl<B: Backend> DenseAndExperts<B> {
    fn apply(
        &self,
        on: (&B, &B::Workers),
        x: &B::Rows,
        rows: &mut FeedForwardRows<B>,
        residual: &mut Residual<'_, B>,
    ) -> Result<(), ResidualError> {
        let (backend, workers) = on;
        self.dense.inner(on, x, &mut rows.both, &mut rows.gated)?;
        self.dense.down.apply(backend, workers, &rows.gated, Store::Set, residual.partial)?;
        residual.sum(backend)?;
        self.dense_post_norm.apply(backend, workers, residual.partial, &mut rows.dense)?;
        let mut normed = std::mem::take(&mut rows.normed);
        self.experts_norm.apply(backend, workers, residual.x, &mut normed)?;
        self.experts.apply(on, (residual.x, &normed), rows, residual.partial)?;
        residual.sum(backend)?;
        self.experts_post_norm.apply(backend, workers, residual.partial, &mut normed)?;
        backend.add(&normed, &mut rows.dense)?;
        std::mem::swap(&mut rows.dense, residual.partial);
        rows.normed = normed;
        residual.add_partial(on)
    }
}
