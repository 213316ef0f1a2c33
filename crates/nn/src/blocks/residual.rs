//! Where a block's result goes: onto the residual stream, summed over the ranks first where each computes a part.

use super::Linear;
use crate::backend::{Backend, Store};
use crate::peers::{Peers, ResidualError};

/// The residual stream `x`, and who computes the other parts of what is added to it.
pub(crate) struct Residual<'a, B: Backend> {
    pub(crate) x: &'a mut B::Rows,
    /// Memory for this rank's part.
    pub(crate) partial: &'a mut B::Rows,
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
        let Some(peers) = &mut self.peers else {
            return Ok(linear.apply(backend, workers, rows, Store::Add, self.x)?);
        };
        linear.apply(backend, workers, rows, Store::Set, self.partial)?;
        peers.sum(backend.values_mut(self.partial)?).map_err(ResidualError::Peers)?;
        Ok(backend.add(self.partial, self.x)?)
    }
}
