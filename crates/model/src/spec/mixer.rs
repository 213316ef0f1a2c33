//! What mixes positions: softmax attention with all that families do to it, and the gated delta rule.

use super::NormSpec;

/// What mixes positions.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    /// Softmax attention with grouped KV heads.
    Attention(AttentionSpec),
    /// A recurrence over a state of fixed size.
    DeltaNet(DeltaNetSpec),
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
    /// Where keys and values come from.
    pub kv: KvSource,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub output_bias: bool,
    /// RMS norm of each head's q and k, before rope: `[D]` weights.
    pub qk_norm: Option<NormSpec>,
    /// RMS norm of each head's v, without weights.
    pub value_norm: Option<NormSpec>,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// Scaled scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// How many positions back a token sees, itself included; all where absent.
    pub window: Option<usize>,
    /// Each head has one more score, stored and not computed (`[H]`), that takes part in the softmax and has no value.
    pub sinks: bool,
    /// What the heads give is multiplied with `sigmoid(gate(x))`, `gate: [H*D, E]`, before o. Checkpoints store q and gate
    /// as one tensor `[H*2D, E]`, of each head first q, then the gate, and so are their biases.
    pub output_gate: bool,
}

impl AttentionSpec {
    /// Attention as Llama has it: no biases, norms, windows; scores divided by the root of D.
    pub fn plain(heads: usize, kv_heads: usize, head_dim: usize, rope: RopeSpec) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            kv: KvSource::Own,
            qkv_bias: false,
            output_bias: false,
            qk_norm: None,
            value_norm: None,
            rope,
            scale: (head_dim as f32).powf(-0.5),
            soft_cap: None,
            window: None,
            sinks: false,
            output_gate: false,
        }
    }
}

/// Where a layer's keys and values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvSource {
    /// Projections of its own.
    Own,
    /// A projection of its own for keys; values are what it gives, before norm and rope.
    KeyIsValue,
    /// It has none, and reads what this earlier layer, of the same K and D, wrote.
    Layer(usize),
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
    /// Multiplies sines and cosines: 1 but for some ways of scaling.
    pub attention_factor: f32,
}

impl RopeSpec {
    /// Rope without scaling.
    pub fn plain(dims: usize, theta: f32) -> Self {
        Self { dims, theta, scaling: RopeScaling::None, attention_factor: 1.0 }
    }
}

/// How rope's frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
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
    /// YaRN: dimensions that turn less than `beta_slow` times in the original context are divided, those that turn more
    /// than `beta_fast` times kept, a ramp over dimensions between.
    Yarn {
        /// By how much.
        factor: f32,
        /// Turns.
        beta_fast: f32,
        /// Turns.
        beta_slow: f32,
        /// The context that was trained first, in tokens.
        original_context: usize,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
    },
    /// Each frequency divided by its own factor: `[dims / 2]`.
    Each {
        /// By how much.
        factors: Vec<f32>,
    },
    /// Only the first `turning` pairs turn, with the frequencies of all; these divided by `factor`.
    Proportional {
        /// Pairs.
        turning: usize,
        /// By how much.
        factor: f32,
    },
}

/// A gated delta net (Yang et al., 2024): a causal convolution over channels of q, k and v, then, for each value head, a
/// state `S: [Dk, Dv]` with `S = S * exp(g); S += k (beta * (v - k S)); out = q S`, q and k of unit length and q divided
/// by the root of Dk; the heads' outputs normed, multiplied with `silu(z)` and projected. Key head h serves the value
/// heads from `h * Hv / Hk` on.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaNetSpec {
    /// Hk.
    pub key_heads: usize,
    /// Hv; a multiple of Hk.
    pub value_heads: usize,
    /// Dk.
    pub key_dim: usize,
    /// Dv.
    pub value_dim: usize,
    /// Taps of the convolution.
    pub conv_width: usize,
    /// Norm of each head's output: `[Dv]` weights.
    pub norm: NormSpec,
}

impl DeltaNetSpec {
    /// Channels of the convolution: q, k and v.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Numbers that a sequence's state takes in this layer: the last inputs of the convolution, and every S.
    pub fn state_elements(&self) -> usize {
        (self.conv_width - 1) * self.channels() + self.value_heads * self.key_dim * self.value_dim
    }
}
