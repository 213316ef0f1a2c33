//! A decoder as data: what every family's configuration is turned into, and all that the compute side ever sees.
//!
//! Shapes use one alphabet: T tokens in the step, E hidden, H heads, K KV heads, D head dimension, F feed-forward,
//! V vocabulary. A linear layer's weight is `[out, in]`, as checkpoints store it.

/// A whole decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Which family it came from (`llama`, `qwen3`): for people and telemetry; nothing computes by it.
    pub family: &'static str,
    /// E.
    pub hidden: usize,
    /// V: rows of the embedding, which may be more than the tokenizer has tokens.
    pub vocabulary: usize,
    /// The longest context the weights are meant for, in tokens.
    pub context: usize,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// One for each layer, first to last.
    pub layers: Vec<LayerSpec>,
    /// Norm before the head.
    pub final_norm: NormSpec,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
}

/// One layer: `x += mixer(norm(x)); x += feed_forward(norm(x))`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Norm before the mixer.
    pub mixer_norm: NormSpec,
    /// What mixes positions.
    pub mixer: MixerSpec,
    /// Norm before the feed-forward.
    pub feed_forward_norm: NormSpec,
    /// What mixes channels.
    pub feed_forward: FeedForwardSpec,
}

/// RMS norm: `x / sqrt(mean(x^2) + epsilon) * (weight + weight_offset)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added under the root.
    pub epsilon: f32,
    /// Added to the stored weight (1 in families that store the difference from one, else 0).
    pub weight_offset: f32,
}

/// What mixes positions.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    /// Softmax attention with grouped KV heads.
    Attention(AttentionSpec),
}

/// Softmax attention: `q: [H*D, E]`, `k: [K*D, E]`, `v: [K*D, E]`, `o: [E, H*D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// H.
    pub heads: usize,
    /// K; divides H.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub output_bias: bool,
    /// RMS norm of each head's q and k, before rope: `[D]` weights.
    pub qk_norm: Option<NormSpec>,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// How many positions back a token sees, itself included; all where absent.
    pub window: Option<usize>,
}

/// Rotary position embedding over the first `dims` of each head, in halves (`x[i]` with `x[i + dims/2]`).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// How many of D are rotated.
    pub dims: usize,
    /// Base of the frequencies: `theta^(-2i/dims)`.
    pub theta: f32,
    /// How the frequencies are stretched for contexts beyond the trained one.
    pub scaling: RopeScaling,
}

/// How rope's frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor`.
    Linear {
        /// By how much.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// By how much.
        factor: f32,
        /// Below `original_context / this` wavelengths are divided.
        low_freq_factor: f32,
        /// Above `original_context / this` wavelengths are kept.
        high_freq_factor: f32,
        /// The context that was trained first, in tokens.
        original_context: usize,
    },
}

/// What mixes channels.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForwardSpec {
    /// `down(act(gate(x)) * up(x))`: `gate: [F, E]`, `up: [F, E]`, `down: [E, F]`, no biases.
    Gated {
        /// F.
        width: usize,
        /// On the gate.
        activation: Activation,
    },
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU, tanh form.
    GeluTanh,
}

/// What a tensor is for. A checkpoint format maps each to a name; nothing else spells tensor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorRole {
    /// `[V, E]`.
    Embedding,
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
    /// `[H*D, E]`.
    Query,
    /// `[H*D]`.
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
    /// `[E]`.
    FeedForwardNorm,
    /// `[F, E]`.
    Gate,
    /// `[F, E]`.
    Up,
    /// `[E, F]`.
    Down,
}
