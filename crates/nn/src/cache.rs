//! The KV cache: pages of keys and values for all layers of a decoder.

use std::collections::HashMap;

use base::Bytes;
use kernels::{Isa, KvElement};
use model::spec::{AttentionSpec, KvSource, MixerSpec, ModelSpec};

use crate::backend::{Backend, BackendError, Pages, Wipe};
use crate::cpu::Cpu;

/// How keys and values are stored.
///
/// The default is `F32`: what was computed is what is read, so logits and greedy tokens are those of an f32
/// reference, whatever the length. `F16` halves memory and traffic and moves a logit by about a thousandth of its
/// size: the choice where memory bounds how many sequences run. `Bf16` keeps f32's range with eight bits of
/// precision, for models whose keys leave f16's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvDType {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Bytes, with a scale for each key and value of a head: a quarter of the memory, and a logit moves by a
    /// hundredth of its size or so.
    Int8,
}

impl KvDType {
    pub(crate) fn element(self) -> KvElement {
        match self {
            Self::F32 => KvElement::F32,
            Self::F16 => KvElement::F16,
            Self::Bf16 => KvElement::Bf16,
            Self::Int8 => KvElement::Int8,
        }
    }
}

/// Why there is no such cache.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a kv cache of {pages} pages of {page_tokens} tokens ({bytes})")]
pub struct CacheError {
    pages: usize,
    page_tokens: usize,
    bytes: Bytes,
    #[source]
    cause: BackendError,
}

/// Paged keys and values of many sequences. Which page belongs to whom is the caller's book-keeping: a forward
/// pass reads and writes the pages that its spans name.
pub struct KvCache<B: Backend = Cpu> {
    pub(crate) kv: B::Kv,
    /// (K, D) of each layer.
    pub(crate) layers: Vec<(usize, usize)>,
    pub(crate) pages: usize,
    pub(crate) page_tokens: usize,
    /// Of recurrent models, by a sequence's first page: nobody else has that page, and it is wiped when the sequence
    /// lets it go.
    pub(crate) states: HashMap<u32, SequenceState<B>>,
    dtype: KvDType,
}

/// What one sequence of a recurrent model carries.
pub(crate) struct SequenceState<B: Backend> {
    /// How many tokens it has gone through.
    pub(crate) tokens: usize,
    /// Of each recurrent layer, in their order.
    pub(crate) layers: Vec<B::State>,
}

/// (K, D) of each layer; none where it keeps no keys and values.
pub(crate) fn kv_shapes(spec: &ModelSpec) -> Vec<(usize, usize)> {
    let shape = |mixer: &MixerSpec| match mixer {
        MixerSpec::Attention(AttentionSpec { kv: KvSource::Layer(_), .. }) | MixerSpec::DeltaNet(_) => (0, 0),
        MixerSpec::Attention(attention) => (attention.kv_heads, attention.head_dim),
    };
    spec.layers.iter().map(|layer| shape(&layer.mixer)).collect()
}

impl KvCache {
    /// A cache for the CPU: see [`KvCache::on`].
    ///
    /// # Errors
    /// As [`KvCache::on`].
    pub fn new(
        spec: &ModelSpec,
        pages: usize,
        page_tokens: usize,
        dtype: KvDType,
    ) -> Result<Self, CacheError> {
        // Where the cache lies does not depend on the instructions that it is used with.
        Self::on(&Cpu::new(Isa::portable()), spec, pages, page_tokens, dtype)
    }

    /// Memory that a token takes in all layers.
    pub fn bytes_per_token(spec: &ModelSpec, dtype: KvDType) -> Bytes {
        let element = dtype.element();
        let bytes: usize = kv_shapes(spec).into_iter().map(|layer| element.bytes_per_token(layer)).sum();
        Bytes(bytes as u64)
    }

    /// Memory that each sequence takes besides, whatever its length: the states of recurrent layers.
    pub fn bytes_per_sequence(spec: &ModelSpec) -> Bytes {
        let elements = |mixer: &MixerSpec| match mixer {
            MixerSpec::Attention(_) => 0,
            MixerSpec::DeltaNet(delta) => delta.state_elements(),
        };
        let elements: usize = spec.layers.iter().map(|layer| elements(&layer.mixer)).sum();
        Bytes((elements * size_of::<f32>()) as u64)
    }
}

impl<B: Backend> KvCache<B> {
    /// `pages` pages of `page_tokens` tokens each (a multiple of sixteen) where `backend` computes. Memory of the CPU is
    /// taken from the machine as pages are first written.
    ///
    /// # Errors
    /// `page_tokens` is no positive multiple of sixteen, or there is no memory.
    pub fn on(
        backend: &B,
        spec: &ModelSpec,
        pages: usize,
        page_tokens: usize,
        dtype: KvDType,
    ) -> Result<Self, CacheError> {
        let layers = kv_shapes(spec);
        let kv = backend.kv(&layers, pages, page_tokens, dtype).map_err(|cause| {
            let tokens = (pages as u64).saturating_mul(page_tokens as u64);
            let bytes = Bytes(KvCache::bytes_per_token(spec, dtype).0.saturating_mul(tokens));
            CacheError { pages, page_tokens, bytes, cause }
        })?;
        Ok(Self { kv, layers, pages, page_tokens, states: HashMap::new(), dtype })
    }

    /// Overwrites a page with zeros, and the state of the sequence that began in it, so that nothing of the sequence
    /// that had it is left.
    ///
    /// # Panics
    /// There is no such page.
    pub fn wipe(&mut self, page: u32) {
        self.kv.wipe(page);
        if let Some(mut state) = self.states.remove(&page) {
            state.layers.iter_mut().for_each(Wipe::wipe);
        }
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Tokens in a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// How keys and values are stored.
    pub fn dtype(&self) -> KvDType {
        self.dtype
    }
}
