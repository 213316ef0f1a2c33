//! Softmax attention with grouped KV heads.

use model::spec::AttentionSpec;

use super::{Linear, Norm, Residual};
use crate::backend::{AttentionStep, Backend, BackendError, HeadsStep, Segment, Store};
use crate::peers::ResidualError;

/// Projections in one product, norms of heads, rope, cache, attention, output projection.
pub(crate) struct Attention<B: Backend> {
    pub(crate) spec: AttentionSpec,
    /// Queries, keys and values: `[(H + 2K) * D, E]`.
    pub(crate) projection: Linear<B>,
    pub(crate) output: Linear<B>,
    pub(crate) query_norm: Option<Norm<B>>,
    pub(crate) key_norm: Option<Norm<B>>,
    /// Which of the decoder's ropes.
    pub(crate) rope: usize,
}

/// Memory of the attention block, kept between steps.
pub(crate) struct AttentionRows<B: Backend> {
    projected: B::Rows,
    attended: B::Rows,
    memory: B::AttentionMemory,
}

impl<B: Backend> Default for AttentionRows<B> {
    fn default() -> Self {
        Self { projected: B::Rows::default(), attended: B::Rows::default(), memory: Default::default() }
    }
}

impl<B: Backend> Attention<B> {
    /// Projects `x` and puts keys and values into the cache.
    pub(crate) fn project(
        &self,
        (backend, workers): (&B, &B::Workers),
        x: &B::Rows,
        (cos, sin): &(B::Rows, B::Rows),
        segments: &[Segment<'_>],
        cache: (&mut B::Kv, usize),
        rows: &mut AttentionRows<B>,
    ) -> Result<(), BackendError> {
        self.projection.apply(backend, workers, x, Store::Set, &mut rows.projected)?;
        let step = HeadsStep {
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            query_norm: self.query_norm.as_ref().map(Norm::parts),
            key_norm: self.key_norm.as_ref().map(Norm::parts),
            value_norm: None,
            queries_only: false,
            rotated: self.spec.rope.dims / 2 * 2,
            cos,
            sin,
        };
        backend.prepare_heads(workers, &mut rows.projected, &step, segments, cache)
    }

    /// Adds the attention of the segments' tokens (of those just projected) to the residual's rows, one for each.
    pub(crate) fn attend(
        &self,
        (backend, workers): (&B, &B::Workers),
        segments: &[Segment<'_>],
        cache: (&B::Kv, usize),
        rows: &mut AttentionRows<B>,
        residual: &mut Residual<'_, B>,
    ) -> Result<(), ResidualError> {
        let step = AttentionStep {
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            scale: self.spec.scale,
            window: self.spec.window,
            soft_cap: self.spec.soft_cap,
            sinks: None,
            queries_only: false,
        };
        let AttentionRows { projected, attended, memory } = rows;
        backend.attention(workers, projected, &step, segments, cache, memory, attended)?;
        residual.add((backend, workers), attended, &self.output)
    }
}
