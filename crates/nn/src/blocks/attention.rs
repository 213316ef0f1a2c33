//! Softmax attention with grouped KV heads.

use model::spec::{AttentionSpec, KvSource};

use super::{Linear, Norm, Residual};
use crate::backend::{AttentionStep, Backend, BackendError, HeadsStep, Segment, Store};
use crate::peers::ResidualError;

/// Projections in one product, norms of heads, rope, cache, attention, output projection.
pub(crate) struct Attention<B: Backend> {
    pub(crate) spec: AttentionSpec,
    /// Queries, keys and values: `[(H + 2K) * D, E]`; queries alone where keys and values are another layer's.
    pub(crate) projection: Linear<B>,
    /// `[H * D, E]`: its sigmoid multiplies what the heads give.
    pub(crate) gate: Option<Linear<B>>,
    pub(crate) output: Linear<B>,
    pub(crate) query_norm: Option<Norm<B>>,
    pub(crate) key_norm: Option<Norm<B>>,
    pub(crate) value_norm: Option<Norm<B>>,
    pub(crate) sinks: Option<B::Vector>,
    /// Which of the decoder's ropes.
    pub(crate) rope: usize,
}

/// Memory of the attention block, kept between steps.
pub(crate) struct AttentionRows<B: Backend> {
    projected: B::Rows,
    gates: B::Rows,
    kept: B::Rows,
    attended: B::Rows,
    memory: B::AttentionMemory,
}

impl<B: Backend> Default for AttentionRows<B> {
    fn default() -> Self {
        Self {
            projected: B::Rows::default(),
            gates: B::Rows::default(),
            kept: B::Rows::default(),
            attended: B::Rows::default(),
            memory: Default::default(),
        }
    }
}

impl<B: Backend> Attention<B> {
    fn queries_only(&self) -> bool {
        matches!(self.spec.kv, KvSource::Layer(_))
    }

    /// Which layer's cache it reads.
    fn source(&self, at: usize) -> usize {
        match self.spec.kv {
            KvSource::Layer(source) => source,
            KvSource::Own | KvSource::KeyIsValue => at,
        }
    }

    /// Projects `x` and puts keys and values into the cache.
    pub(crate) fn project(
        &self,
        (backend, workers): (&B, &B::Workers),
        x: &B::Rows,
        (cos, sin): &(B::Rows, B::Rows),
        segments: &[Segment<'_>],
        (kv, at): (&mut B::Kv, usize),
        rows: &mut AttentionRows<B>,
    ) -> Result<(), BackendError> {
        self.projection.apply(backend, workers, x, Store::Set, &mut rows.projected)?;
        if let Some(gate) = &self.gate {
            gate.apply(backend, workers, x, Store::Set, &mut rows.gates)?;
        }
        let step = HeadsStep {
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            query_norm: self.query_norm.as_ref().map(Norm::parts),
            key_norm: self.key_norm.as_ref().map(Norm::parts),
            value_norm: self.value_norm.as_ref().map(Norm::parts),
            rotated: self.spec.rope.dims / 2 * 2,
            cos,
            sin,
            queries_only: self.queries_only(),
        };
        backend.prepare_heads(workers, &mut rows.projected, &step, segments, (kv, self.source(at)))
    }

    /// Adds the attention of the segments' tokens (of those just projected; their rows are `wanted` where they are not
    /// all) to the residual's rows, one for each.
    pub(crate) fn attend(
        &self,
        on: (&B, &B::Workers),
        (segments, wanted): (&[Segment<'_>], Option<&[usize]>),
        (kv, at): (&B::Kv, usize),
        rows: &mut AttentionRows<B>,
        residual: &mut Residual<'_, B>,
    ) -> Result<(), ResidualError> {
        let (backend, workers) = on;
        let step = AttentionStep {
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            scale: self.spec.scale,
            window: self.spec.window,
            soft_cap: self.spec.soft_cap,
            sinks: self.sinks.as_ref(),
            queries_only: self.queries_only(),
        };
        let AttentionRows { projected, gates, kept, attended, memory } = rows;
        let cache = (kv, self.source(at));
        backend.attention(workers, projected, &step, segments, cache, memory, attended)?;
        if self.gate.is_some() {
            if let Some(wanted) = wanted {
                backend.gather(gates, wanted, kept)?;
                std::mem::swap(gates, kept);
            }
            backend.sigmoid_gate(workers, gates, attended)?;
        }
        residual.add(on, attended, &self.output)
    }

    /// Its matrices.
    pub(crate) fn linears(&self) -> Vec<&Linear<B>> {
        [Some(&self.projection), self.gate.as_ref(), Some(&self.output)].into_iter().flatten().collect()
    }
}
