//! A root-mean-square norm.

use crate::backend::{Backend, BackendError};

/// `x / sqrt(mean(x^2) + epsilon) * weight`; a family's weight offset is in the weight already.
pub(crate) struct Norm<B: Backend> {
    pub(crate) weight: B::Vector,
    pub(crate) epsilon: f32,
}

impl<B: Backend> Norm<B> {
    pub(crate) fn apply(
        &self,
        backend: &B,
        workers: &B::Workers,
        x: &B::Rows,
        out: &mut B::Rows,
    ) -> Result<(), BackendError> {
        backend.norm(workers, x, (&self.weight, self.epsilon), out)
    }

    pub(crate) fn parts(&self) -> (&B::Vector, f32) {
        (&self.weight, self.epsilon)
    }
}
