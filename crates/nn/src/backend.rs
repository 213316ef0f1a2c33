//! What a decoder needs of something that computes: a few coarse operations over rows of activations.
//!
//! Operations are as large as whole matrix products and whole attention, so that a backend is free in how it lays
//! memory out and where it runs, and the boundary costs nothing. Shapes use the alphabet of [`model::spec`].

use base::Bytes;
pub use kernels::AttentionSpan as Segment;
use model::checkpoint::{DType, TensorView};
use model::spec::{Activation, DeltaNetSpec};

use crate::cache::KvDType;

/// Why a backend could not do something: no memory, or a device's fault.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed")]
pub struct BackendError {
    /// What it was about.
    pub operation: &'static str,
    /// What the device said.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// What happens with what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// It is replaced.
    Set,
    /// The result is added to it.
    Add,
}

/// How queries and keys are treated between projection and attention.
pub struct HeadsStep<'a, B: Backend> {
    /// H.
    pub heads: usize,
    /// K.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Weights `[D]` and epsilon of the queries' norm.
    pub query_norm: Option<(&'a B::Vector, f32)>,
    /// Weights `[D]` and epsilon of the keys' norm.
    pub key_norm: Option<(&'a B::Vector, f32)>,
    /// Weights `[D]` and epsilon of the values' norm.
    pub value_norm: Option<(&'a B::Vector, f32)>,
    /// How many of D are rotated.
    pub rotated: usize,
    /// `[T, rotated / 2]`.
    pub cos: &'a B::Rows,
    /// `[T, rotated / 2]`.
    pub sin: &'a B::Rows,
    /// Rows hold queries alone, and nothing goes into the cache.
    pub queries_only: bool,
}

/// The shape of attention.
pub struct AttentionStep<'a, B: Backend> {
    /// H.
    pub heads: usize,
    /// K.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// How many positions back a token sees, itself included.
    pub window: Option<usize>,
    /// Scaled scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// `[H]`: scores without a value.
    pub sinks: Option<&'a B::Vector>,
    /// Rows hold queries alone.
    pub queries_only: bool,
}

/// What a delta net does between its projections.
pub struct DeltaStep<'a, B: Backend> {
    /// Its sizes.
    pub spec: &'a DeltaNetSpec,
    /// `[taps, C]`.
    pub convolution: &'a B::Vector,
    /// `[Hv]`: how fast each head forgets.
    pub decay: &'a B::Vector,
    /// `[Hv]`.
    pub time_bias: &'a B::Vector,
    /// Weights `[Dv]` of the norm of what comes out.
    pub norm: &'a B::Vector,
}

/// Consecutive tokens of one sequence, and its state in one layer.
pub struct DeltaSegment<'a, B: Backend> {
    /// The projected row of its first token.
    pub row: usize,
    /// How many.
    pub tokens: usize,
    /// After the tokens before; after these when a step has run.
    pub state: &'a mut B::State,
}

/// A KV cache whose pages can be overwritten.
pub trait Pages {
    /// Overwrites a page with zeros.
    ///
    /// # Panics
    /// There is no such page.
    fn wipe(&mut self, page: u32);
}

/// What is overwritten before its memory is somebody else's.
pub trait Wipe {
    /// Overwrites it with zeros.
    fn wipe(&mut self);
}

/// Something that computes. Its values are handles: the decoder never looks inside, except for logits.
///
/// Each row of every result depends on the same row of the operands alone (and, in attention, on that sequence's
/// cache): backends keep the order of additions independent of the number of rows.
pub trait Backend: Send + Sync + Sized + 'static {
    /// The threads (or queues) that work on a step.
    type Workers: ?Sized;
    /// Activations `[rows, columns]` in f32.
    type Rows: Default + Send;
    /// Weights `[out, in]`.
    type Matrix: Send + Sync;
    /// A few f32.
    type Vector: Send + Sync;
    /// The KV cache.
    type Kv: Pages + Send + Sync;
    /// Memory that attention keeps between steps.
    type AttentionMemory: Default + Send;
    /// What a delta net carries of one sequence from token to token.
    type State: Wipe + Send + Sync;
    /// Memory that delta nets keep between steps.
    type DeltaMemory: Default + Send;

    /// Whether none of the tensor's values is infinite or not a number.
    fn finite(&self, workers: &Self::Workers, tensor: &TensorView<'_>) -> bool;

    /// Stacks `parts` (one below the other) into weights of the given type.
    ///
    /// # Errors
    /// No memory, or parts that do not fit each other.
    fn matrix(
        &self,
        workers: &Self::Workers,
        parts: &[TensorView<'_>],
        dtype: DType,
    ) -> Result<Self::Matrix, BackendError>;

    /// A vector of these values.
    ///
    /// # Errors
    /// No memory.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, BackendError>;

    /// Memory that a matrix takes.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> Bytes;

    /// Memory for keys and values: `pages` pages of `page_tokens` tokens each, for layers of (K, D).
    ///
    /// # Errors
    /// No memory, or pages of a size that it cannot have.
    fn kv(
        &self,
        layers: &[(usize, usize)],
        pages: usize,
        page_tokens: usize,
        dtype: KvDType,
    ) -> Result<Self::Kv, BackendError>;

    /// Makes `out` hold `rows x columns` values, of any content.
    ///
    /// # Errors
    /// No memory.
    fn shape(&self, rows: usize, columns: usize, out: &mut Self::Rows) -> Result<(), BackendError>;

    /// Fills `out: [rows, columns]` with `values`.
    ///
    /// # Errors
    /// As for all below: no memory, or a device's fault.
    fn upload(&self, values: &[f32], columns: usize, out: &mut Self::Rows) -> Result<(), BackendError>;

    /// The values of `rows`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn download<'a>(&self, rows: &'a Self::Rows) -> Result<&'a [f32], BackendError>;

    /// The values of `rows`, to be exchanged with other ranks in place.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn values_mut<'a>(&self, rows: &'a mut Self::Rows) -> Result<&'a mut [f32], BackendError>;

    /// `to += from`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn add(&self, from: &Self::Rows, to: &mut Self::Rows) -> Result<(), BackendError>;

    /// `out[t] = table[tokens[t]]`; the tokens are below the table's rows.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn embed(&self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Rows) -> Result<(), BackendError>;

    /// `out[i] = x[rows[i]]`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn gather(&self, x: &Self::Rows, rows: &[usize], out: &mut Self::Rows) -> Result<(), BackendError>;

    /// RMS norm of each row: weights and epsilon.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn norm(
        &self,
        workers: &Self::Workers,
        x: &Self::Rows,
        norm: (&Self::Vector, f32),
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// `out (+)= x w^T + bias`, the layer being weights and bias.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn linear(
        &self,
        workers: &Self::Workers,
        x: &Self::Rows,
        layer: (&Self::Matrix, Option<&Self::Vector>),
        store: Store,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// `out = activation(gate) * up`, where each row of `both` is gate, then up.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn gate(
        &self,
        workers: &Self::Workers,
        both: &Self::Rows,
        activation: Activation,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// Norm and rotary embedding of the heads in `rows: [T, (H + 2K) * D]`, in place; keys and values into the
    /// cache's `layer`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn prepare_heads(
        &self,
        workers: &Self::Workers,
        rows: &mut Self::Rows,
        step: &HeadsStep<'_, Self>,
        segments: &[Segment<'_>],
        cache: (&mut Self::Kv, usize),
    ) -> Result<(), BackendError>;

    /// Attention of the segments' queries in `rows` over the cache's `layer`, `out: [N, H * D]`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    #[expect(clippy::too_many_arguments, reason = "who, on what, how, where to")]
    fn attention(
        &self,
        workers: &Self::Workers,
        rows: &Self::Rows,
        step: &AttentionStep<'_, Self>,
        segments: &[Segment<'_>],
        cache: (&Self::Kv, usize),
        memory: &mut Self::AttentionMemory,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// Zeros, of the shape of `x`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn zero_like(&self, x: &Self::Rows, out: &mut Self::Rows) -> Result<(), BackendError>;

    /// `out[rows[i]] += weights[i] * from[i]`, in the order of i.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn scatter_add(
        &self,
        from: &Self::Rows,
        to: (&[usize], &[f32]),
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// Multiplies all of `x`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn scale(&self, x: &mut Self::Rows, factor: f32) -> Result<(), BackendError>;

    /// `x = cap * tanh(x / cap)`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn soft_cap(&self, x: &mut Self::Rows, cap: f32) -> Result<(), BackendError>;

    /// `x *= sigmoid(gates)`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn sigmoid_gate(
        &self,
        workers: &Self::Workers,
        gates: &Self::Rows,
        x: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// RMS norm of each part of each row, the weights being as long as a part.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn norm_parts(
        &self,
        workers: &Self::Workers,
        x: &Self::Rows,
        norm: (&Self::Vector, f32),
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// Each row of `out` is that of `left`, then the given columns of that of `right`.
    ///
    /// # Errors
    /// See [`Backend::upload`].
    fn beside(
        &self,
        left: &Self::Rows,
        right: (&Self::Rows, std::ops::Range<usize>),
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// The state of a sequence without tokens.
    ///
    /// # Errors
    /// No memory.
    fn state(&self, spec: &DeltaNetSpec) -> Result<Self::State, BackendError>;

    /// Takes `rows: [T, C + Hv * (Dv + 2)]` (q, k and v, then z, beta, time) of the segments through their states;
    /// `out: [T, Hv * Dv]`. A token's result and the state after it are bitwise the same however a sequence is cut.
    ///
    /// # Errors
    /// See [`Backend::upload`]. The states are then worth nothing.
    fn delta_net(
        &self,
        workers: &Self::Workers,
        rows: &Self::Rows,
        step: &DeltaStep<'_, Self>,
        segments: &mut [DeltaSegment<'_, Self>],
        memory: &mut Self::DeltaMemory,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;
}
