//! What the families share: sizes and their limits, norms, gated feed-forward, stop tokens.

use super::{ConfigError, Fields};
use crate::spec::{
    Activation, AttentionSpec, FeedForwardSpec, GatedSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec,
};

/// Limits far above any model that exists, chosen so that no product of sizes overflows 64 bits: the largest tensor
/// then has 2^48 weights and the largest model 2^60.
const HIDDEN_MAX: usize = 1 << 20;
const VOCABULARY_MAX: usize = 1 << 24;
const FEED_FORWARD_MAX: usize = 1 << 24;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 14;
const HEAD_DIM_MAX: usize = 1 << 12;
const CONTEXT_MAX: usize = 1 << 30;
const STOP_TOKENS_MAX: usize = 64;

/// The sizes that every family has.
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) feed_forward: usize,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
}

impl Sizes {
    /// Reads them. `head_dim_default` is for families that do not derive it from hidden size and heads.
    pub(super) fn read(fields: &Fields<'_>, head_dim_default: Option<usize>) -> Result<Self, ConfigError> {
        let hidden = fields.required("hidden_size", 1, HIDDEN_MAX)?;
        let heads = fields.required("num_attention_heads", 1, HEADS_MAX)?;
        let kv_heads = fields.whole("num_key_value_heads", 1, HEADS_MAX)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(fields.out_of_range("num_key_value_heads", expected));
        }
        let head_dim = match fields.whole("head_dim", 1, HEAD_DIM_MAX)? {
            Some(head_dim) => head_dim,
            None => match head_dim_default {
                Some(head_dim) => head_dim,
                None if hidden.is_multiple_of(heads) => hidden / heads,
                None => {
                    let expected =
                        format!("a multiple of num_attention_heads, {heads}, as there is no head_dim");
                    return Err(fields.out_of_range("hidden_size", expected));
                }
            },
        };
        if !head_dim.is_multiple_of(2) || head_dim > HEAD_DIM_MAX {
            let field = if fields.has("head_dim") { "head_dim" } else { "hidden_size" };
            let expected = format!("to make heads of an even size up to {HEAD_DIM_MAX}, not {head_dim}");
            return Err(fields.out_of_range(field, expected));
        }
        Ok(Self {
            hidden,
            layers: fields.required("num_hidden_layers", 1, LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            feed_forward: fields.required("intermediate_size", 1, FEED_FORWARD_MAX)?,
            vocabulary: fields.required("vocab_size", 1, VOCABULARY_MAX)?,
            context: fields.required("max_position_embeddings", 1, CONTEXT_MAX)?,
        })
    }
}

/// RMS norms as Llama has them.
pub(super) fn norm(fields: &Fields<'_>) -> Result<NormSpec, ConfigError> {
    // 1e-6 is the default of both families in transformers.
    let epsilon = fields.positive("rms_norm_eps", true)?.unwrap_or(1e-6);
    Ok(NormSpec { epsilon: epsilon as f32, weight_offset: 0.0 })
}

/// The activation on the gate.
pub(super) fn activation(fields: &Fields<'_>) -> Result<Activation, ConfigError> {
    if !fields.has("hidden_act") {
        return Ok(Activation::Silu);
    }
    match fields.text("hidden_act")? {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        _ => Err(fields.unsupported("hidden_act", "this build knows silu and gelu_pytorch_tanh".to_owned())),
    }
}

/// `eos_token_id`: one, several or none. Those outside the vocabulary are left out, as they can never be drawn: models
/// cut down from larger ones keep them.
pub(super) fn stop_tokens(fields: &Fields<'_>, vocabulary: usize) -> Result<Vec<u32>, ConfigError> {
    let tokens = fields.wholes("eos_token_id")?.into_iter().filter_map(|token| u32::try_from(token).ok());
    let mut tokens: Vec<u32> = tokens.filter(|&token| (token as usize) < vocabulary).collect();
    tokens.sort_unstable();
    tokens.dedup();
    if tokens.len() > STOP_TOKENS_MAX {
        return Err(fields.out_of_range("eos_token_id", format!("at most {STOP_TOKENS_MAX} tokens")));
    }
    Ok(tokens)
}

/// A decoder whose layers are pre-norm attention and a gated feed-forward, alike but for `attention`'s say per layer.
pub(super) fn decoder(
    fields: &Fields<'_>,
    family: &'static str,
    sizes: &Sizes,
    attention: impl Fn(usize) -> Result<AttentionSpec, ConfigError>,
) -> Result<ModelSpec, ConfigError> {
    if fields.flag("mlp_bias")? {
        return Err(fields.unsupported("mlp_bias", "feed-forwards have no biases".to_owned()));
    }
    let norm = norm(fields)?;
    let activation = activation(fields)?;
    let layer = |number| {
        let feed_forward = GatedSpec { width: sizes.feed_forward, activation, bias: false };
        let mixer = MixerSpec::Attention(attention(number)?);
        Ok(LayerSpec::plain(norm, mixer, FeedForwardSpec::Gated(feed_forward)))
    };
    Ok(ModelSpec {
        family,
        hidden: sizes.hidden,
        vocabulary: sizes.vocabulary,
        context: sizes.context,
        embedding_scale: 1.0,
        tied_head: fields.flag("tie_word_embeddings")?,
        layers: (0..sizes.layers).map(layer).collect::<Result<_, _>>()?,
        layer_inputs: None,
        final_norm: norm,
        logit_soft_cap: None,
        stop_tokens: stop_tokens(fields, sizes.vocabulary)?,
        ignored_tensors: &[],
    })
}
