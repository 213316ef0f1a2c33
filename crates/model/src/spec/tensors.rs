//! What a decoder's tensors are for.

/// What a tensor is for. A checkpoint format maps each to a name (or a part of a stored tensor); nothing else spells
/// tensor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorRole {
    /// `[V, E]`.
    Embedding,
    /// The second embedding: `[V', L*W]`.
    LayerInputEmbedding,
    /// `[L*W, E]`.
    LayerInputModelProjection,
    /// `[W]`.
    LayerInputModelNorm,
    /// `[E]`.
    FinalNorm,
    /// `[V, E]`; absent where the head is tied.
    Head,
    /// One of a layer's.
    Layer(usize, LayerTensor),
}

/// A layer's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// `[E]`.
    MixerNorm,
    /// `[E]`.
    MixerPostNorm,
    /// `[H*D, E]`; with an output gate `[H*2D, E]`, of each head first the query, then the gate.
    Query,
    /// `[H*D]`, or `[H*2D]`.
    QueryBias,
    /// `[K*D, E]`.
    Key,
    /// `[K*D]`.
    KeyBias,
    /// `[K*D, E]`.
    Value,
    /// `[K*D]`.
    ValueBias,
    /// `[E, H*D]`.
    Output,
    /// `[E]`.
    OutputBias,
    /// `[D]`.
    QueryNorm,
    /// `[D]`.
    KeyNorm,
    /// `[H]`.
    Sinks,
    /// Of a delta net, q, k and v: `[2*Hk*Dk + Hv*Dv, E]`.
    DeltaProjection,
    /// z: `[Hv*Dv, E]`.
    DeltaGate,
    /// beta before its sigmoid: `[Hv, E]`.
    DeltaBeta,
    /// a, with `g = -exp(log_a) * softplus(a + time_bias)`: `[Hv, E]`.
    DeltaTime,
    /// `[Hv]`.
    DeltaTimeBias,
    /// `[Hv]`.
    DeltaLogA,
    /// `[2*Hk*Dk + Hv*Dv, 1, taps]`.
    DeltaConvolution,
    /// `[Dv]`.
    DeltaNorm,
    /// `[E, Hv*Dv]`.
    DeltaOutput,
    /// `[E]`.
    FeedForwardNorm,
    /// `[E]`.
    FeedForwardPostNorm,
    /// `[F, E]`.
    Gate,
    /// `[F]`.
    GateBias,
    /// `[F, E]`.
    Up,
    /// `[F]`.
    UpBias,
    /// `[E, F]`.
    Down,
    /// `[E]`.
    DownBias,
    /// `[X, E]`.
    Router,
    /// `[X]`.
    RouterBias,
    /// Weights of the router's norm: `[E]`.
    RouterNorm,
    /// `[X]`.
    RouterExpertScale,
    /// One expert's, as all below with a number: `[F, E]`.
    ExpertGate(u16),
    /// `[F]`.
    ExpertGateBias(u16),
    /// `[F, E]`.
    ExpertUp(u16),
    /// `[F]`.
    ExpertUpBias(u16),
    /// `[E, F]`.
    ExpertDown(u16),
    /// `[E]`.
    ExpertDownBias(u16),
    /// Of the expert that all tokens have: `[F, E]`.
    SharedGate,
    /// `[F, E]`.
    SharedUp,
    /// `[E, F]`.
    SharedDown,
    /// `[1, E]`.
    SharedOutputGate,
    /// Where there are a dense feed-forward and experts, norm of what the dense one gives: `[E]`.
    DensePostNorm,
    /// Norm before the experts: `[E]`.
    ExpertsNorm,
    /// Norm of what they give: `[E]`.
    ExpertsPostNorm,
    /// `[W, E]`.
    LayerInputGate,
    /// `[E, W]`.
    LayerInputProjection,
    /// `[E]`.
    LayerInputNorm,
    /// `[1]`.
    OutputScale,
}
