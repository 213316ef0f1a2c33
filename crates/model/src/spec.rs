//! A decoder as data: what every family's configuration is turned into, and all that the compute side ever sees.
//!
//! Shapes use one alphabet: T tokens in the step, E hidden, H heads, K KV heads, D head dimension, F feed-forward,
//! V vocabulary, X experts, L layers. A linear layer's weight is `[out, in]`, as checkpoints store it.

mod check;
mod feed_forward;
mod mixer;
mod pooling;
mod tensors;

pub use check::SpecError;
pub use feed_forward::{
    Activation, DenseAndExpertsSpec, ExpertsSpec, FeedForwardSpec, GatedSpec, RouterSpec, Scoring, SharedSpec,
};
pub use mixer::{AttentionSpec, DeltaNetSpec, KvSource, MixerSpec, RopeScaling, RopeSpec};
pub use pooling::{PooledRows, PoolingSpec};
pub use tensors::{LayerTensor, TensorRole};

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
    /// What an embedded token is multiplied with before the first layer: 1 in most families.
    pub embedding_scale: f32,
    /// Whether the head is the embedding (without its scale).
    pub tied_head: bool,
    /// One for each layer, first to last.
    pub layers: Vec<LayerSpec>,
    /// What each layer gets of the tokens besides the residual stream.
    pub layer_inputs: Option<LayerInputsSpec>,
    /// Norm before the head.
    pub final_norm: NormSpec,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_soft_cap: Option<f32>,
    /// How it makes a vector of a text; nothing where it makes text. Such a model needs no head: its head counts as tied.
    pub pooling: Option<PoolingSpec>,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// How the names of tensors begin that a checkpoint may hold and that are not loaded: towers for images and sound,
    /// layers for guessing ahead. Nothing else may be there that the decoder has no place for.
    pub ignored_tensors: &'static [&'static str],
}

impl ModelSpec {
    /// The same decoder as one that gives embeddings.
    #[must_use]
    pub fn pooled(self, pooling: PoolingSpec) -> Self {
        Self { pooling: Some(pooling), tied_head: true, ..self }
    }

    /// How many numbers a row of its results has: V logits, or E where it gives embeddings.
    pub fn row_length(&self) -> usize {
        if self.pooling.is_some() { self.hidden } else { self.vocabulary }
    }

    /// Whether some layer carries a state from token to token beside the KV cache: such a state can neither be cut to
    /// a prefix nor stepped back.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.mixer, MixerSpec::DeltaNet(_)))
    }
}

/// One layer: `x += post(mixer(norm(x))); x += post(feed_forward(norm(x)))`, then the layer's input (see
/// [`LayerInputsSpec`]), then the scale.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Norm before the mixer.
    pub mixer_norm: NormSpec,
    /// What mixes positions.
    pub mixer: MixerSpec,
    /// Norm of what the mixer gives, before it is added.
    pub mixer_post_norm: Option<NormSpec>,
    /// Norm before the feed-forward.
    pub feed_forward_norm: NormSpec,
    /// What mixes channels.
    pub feed_forward: FeedForwardSpec,
    /// Norm of what the feed-forward gives, before it is added.
    pub feed_forward_post_norm: Option<NormSpec>,
    /// Whether the residual stream is multiplied with a stored number at the layer's end.
    pub output_scale: bool,
}

impl LayerSpec {
    /// A layer as Llama has it: norms before, none after.
    pub fn plain(norm: NormSpec, mixer: MixerSpec, feed_forward: FeedForwardSpec) -> Self {
        Self {
            mixer_norm: norm,
            mixer,
            mixer_post_norm: None,
            feed_forward_norm: norm,
            feed_forward,
            feed_forward_post_norm: None,
            output_scale: false,
        }
    }
}

/// RMS norm: `x / sqrt(mean(x^2) + epsilon) * (weight + weight_offset)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added under the root.
    pub epsilon: f32,
    /// Added to the stored weight: 1 where the checkpoint stores the difference from one, else 0. It belongs to how
    /// weights are stored: a format that stores the sum has 0 for the same family.
    pub weight_offset: f32,
}

/// A second embedding, W wide for every layer (Gemma 4). With e the scaled embedding of a token, its row for layer l is
/// `p_l = (norm(model_projection(e)_l * E^-1/2) + embedding_l * W^1/2) * 2^-1/2`, and the layer does
/// `x += norm(projection(activation(gate(x)) * p_l))` after its feed-forward. All without biases.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerInputsSpec {
    /// W.
    pub width: usize,
    /// Rows of the second embedding.
    pub vocabulary: usize,
    /// On the gate.
    pub activation: Activation,
    /// Both norms: `[W]` once for the model, `[E]` in each layer.
    pub norm: NormSpec,
}
