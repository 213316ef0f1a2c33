//! The gated feed-forward.

use model::spec::Activation;

use super::{Linear, Residual};
use crate::backend::{Backend, Store};
use crate::peers::ResidualError;

/// `down(activation(gate(x)) * up(x))`.
pub(crate) struct FeedForward<B: Backend> {
    /// Gate, then up: `[2F, E]`.
    pub(crate) gate_up: Linear<B>,
    pub(crate) down: Linear<B>,
    pub(crate) activation: Activation,
}

/// Memory of the feed-forward, kept between steps.
pub(crate) struct FeedForwardRows<B: Backend> {
    both: B::Rows,
    gated: B::Rows,
}

impl<B: Backend> Default for FeedForwardRows<B> {
    fn default() -> Self {
        Self { both: B::Rows::default(), gated: B::Rows::default() }
    }
}

impl<B: Backend> FeedForward<B> {
    /// Adds the feed-forward of `x` to the residual.
    pub(crate) fn apply(
        &self,
        (backend, workers): (&B, &B::Workers),
        x: &B::Rows,
        rows: &mut FeedForwardRows<B>,
        residual: &mut Residual<'_, B>,
    ) -> Result<(), ResidualError> {
        self.gate_up.apply(backend, workers, x, Store::Set, &mut rows.both)?;
        backend.gate(workers, &rows.both, self.activation, &mut rows.gated)?;
        residual.add((backend, workers), &rows.gated, &self.down)
    }
}
