//! Where a block's result goes: onto the residual stream, summed over the ranks first where each computes a part, and
//! normed where the family norms what a block gives.

use super::{Linear, Norm};
use crate::backend::{Backend, Store};
use crate::peers::{Peers, ResidualError};

/// The residual stream `x`, and who computes the other parts of what is added to it.
pub(crate) struct Residual<'a, B: Backend> {
    pub(crate) x: &'a mut B::Rows,
    /// Memory for this rank's part.
    pub(crate) partial: &'a mut B::Rows,
    /// Norm of the result, and memory for it.
    pub(crate) post_norm: Option<&'a Norm<B>>,
    pub(crate) normed: &'a mut B::Rows,
    pub(crate) peers: Option<&'a mut dyn Peers>,
}

impl<B: Backend> Residual<'_, B> {
    /// Adds `linear(rows)`, of all ranks together, to the stream.
    pub(crate) fn add(
        &mut self,
        (backend, workers): (&B, &B::Workers),
        rows: &B::Rows,
        linear: &Linear<B>,
    ) -> Result<(), ResidualError> {
        if self.peers.is_none() && self.post_norm.is_none() {
            return Ok(linear.apply(backend, workers, rows, Store::Add, self.x)?);
        }
        linear.apply(backend, workers, rows, Store::Set, self.partial)?;
        self.sum(backend)?;
        self.add_partial((backend, workers))
    }

    /// Sums [`Residual::partial`] over the ranks.
    pub(crate) fn sum(&mut self, backend: &B) -> Result<(), ResidualError> {
        match &mut self.peers {
            Some(peers) => peers.sum(backend.values_mut(self.partial)?).map_err(ResidualError::Peers),
            None => Ok(()),
        }
    }

    /// Adds [`Residual::partial`], summed already, to the stream.
    pub(crate) fn add_partial(&mut self, (backend, workers): (&B, &B::Workers)) -> Result<(), ResidualError> {
        match self.post_norm {
            Some(norm) => {
                norm.apply(backend, workers, self.partial, self.normed)?;
                Ok(backend.add(self.normed, self.x)?)
            }
            None => Ok(backend.add(self.partial, self.x)?),
        }
    }
}
