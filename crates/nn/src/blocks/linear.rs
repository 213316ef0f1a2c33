//! A linear layer.

use crate::backend::{Backend, BackendError, Store};

/// `x w^T + bias`.
pub(crate) struct Linear<B: Backend> {
    pub(crate) weight: B::Matrix,
    pub(crate) bias: Option<B::Vector>,
}

impl<B: Backend> Linear<B> {
    pub(crate) fn apply(
        &self,
        backend: &B,
        workers: &B::Workers,
        x: &B::Rows,
        store: Store,
        out: &mut B::Rows,
    ) -> Result<(), BackendError> {
        backend.linear(workers, x, (&self.weight, self.bias.as_ref()), store, out)
    }
}
