//! A gated delta net: a recurrence instead of attention.

use model::spec::DeltaNetSpec;

use super::{Linear, Residual};
use crate::backend::{Backend, BackendError, DeltaSegment, DeltaStep, Store};
use crate::peers::ResidualError;

/// One projection, convolution, recurrence and gated norm, output projection.
pub(crate) struct DeltaNet<B: Backend> {
    pub(crate) spec: DeltaNetSpec,
    /// Channels, z, beta, time: `[C + Hv * (Dv + 2), E]`.
    pub(crate) projection: Linear<B>,
    pub(crate) convolution: B::Vector,
    pub(crate) decay: B::Vector,
    pub(crate) time_bias: B::Vector,
    pub(crate) norm: B::Vector,
    pub(crate) output: Linear<B>,
    /// Which of the decoder's states.
    pub(crate) state: usize,
}

/// Memory of the delta net, kept between steps.
pub(crate) struct DeltaNetRows<B: Backend> {
    projected: B::Rows,
    mixed: B::Rows,
    kept: B::Rows,
    memory: B::DeltaMemory,
}

impl<B: Backend> Default for DeltaNetRows<B> {
    fn default() -> Self {
        Self {
            projected: B::Rows::default(),
            mixed: B::Rows::default(),
            kept: B::Rows::default(),
            memory: Default::default(),
        }
    }
}

impl<B: Backend> DeltaNet<B> {
    /// Takes the segments' tokens through their states.
    pub(crate) fn recur(
        &self,
        (backend, workers): (&B, &B::Workers),
        x: &B::Rows,
        segments: &mut [DeltaSegment<'_, B>],
        rows: &mut DeltaNetRows<B>,
    ) -> Result<(), BackendError> {
        self.projection.apply(backend, workers, x, Store::Set, &mut rows.projected)?;
        let step = DeltaStep {
            spec: &self.spec,
            convolution: &self.convolution,
            decay: &self.decay,
            time_bias: &self.time_bias,
            norm: &self.norm,
        };
        backend.delta_net(workers, &rows.projected, &step, segments, &mut rows.memory, &mut rows.mixed)
    }

    /// Adds what came out to the residual's rows: all of them, or those that are wanted.
    pub(crate) fn give(
        &self,
        on: (&B, &B::Workers),
        wanted: Option<&[usize]>,
        rows: &mut DeltaNetRows<B>,
        residual: &mut Residual<'_, B>,
    ) -> Result<(), ResidualError> {
        match wanted {
            Some(wanted) => {
                on.0.gather(&rows.mixed, wanted, &mut rows.kept)?;
                residual.add(on, &rows.kept, &self.output)
            }
            None => residual.add(on, &rows.mixed, &self.output),
        }
    }
}
