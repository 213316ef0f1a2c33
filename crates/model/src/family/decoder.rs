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
const EXPERTS_MAX: usize = 1 << 12;
/// In all layers together: each has tensors that are listed one by one.
const ALL_EXPERTS_MAX: usize = 1 << 17;

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

/// What transformers takes where a size is absent; what is not here must be there.
#[derive(Clone, Copy, Default)]
pub(super) struct SizeDefaults {
    pub(super) heads: Option<usize>,
    /// Absent, as many as heads where `kv_heads_free`.
    pub(super) kv_heads: Option<usize>,
    pub(super) kv_heads_free: bool,
    /// Absent, hidden size / heads.
    pub(super) head_dim: Option<usize>,
    pub(super) feed_forward: Option<usize>,
    pub(super) vocabulary: Option<usize>,
    pub(super) context: Option<usize>,
}

impl Sizes {
    pub(super) fn read(fields: &Fields<'_>, defaults: &SizeDefaults) -> Result<Self, ConfigError> {
        let size =
            |field: &str, max: usize, default: Option<usize>| match (fields.whole(field, 1, max)?, default) {
                (Some(size), _) | (None, Some(size)) => Ok(size),
                (None, None) => Err(fields.missing(field)),
            };
        let hidden = size("hidden_size", HIDDEN_MAX, None)?;
        let heads = size("num_attention_heads", HEADS_MAX, defaults.heads)?;
        let free = defaults.kv_heads_free || fields.is_null("num_key_value_heads");
        let kv_heads =
            size("num_key_value_heads", HEADS_MAX, if free { Some(heads) } else { defaults.kv_heads })?;
        check_groups(fields, "num_key_value_heads", (heads, kv_heads))?;
        let head_dim = match fields.whole("head_dim", 1, HEAD_DIM_MAX)? {
            Some(head_dim) => head_dim,
            None => match defaults.head_dim {
                Some(head_dim) => head_dim,
                None if hidden.is_multiple_of(heads) => hidden / heads,
                None => {
                    let expected =
                        format!("a multiple of num_attention_heads, {heads}, as there is no head_dim");
                    return Err(fields.out_of_range("hidden_size", expected));
                }
            },
        };
        let field = if fields.has("head_dim") { "head_dim" } else { "hidden_size" };
        check_head_dim(fields, field, head_dim)?;
        Ok(Self {
            hidden,
            layers: fields.required("num_hidden_layers", 1, LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            feed_forward: size("intermediate_size", FEED_FORWARD_MAX, defaults.feed_forward)?,
            vocabulary: size("vocab_size", VOCABULARY_MAX, defaults.vocabulary)?,
            context: size("max_position_embeddings", CONTEXT_MAX, defaults.context)?,
        })
    }
}

/// KV heads divide heads.
pub(super) fn check_groups(
    fields: &Fields<'_>,
    field: &str,
    (heads, kv_heads): (usize, usize),
) -> Result<(), ConfigError> {
    if heads.is_multiple_of(kv_heads) {
        return Ok(());
    }
    Err(fields.out_of_range(field, format!("a divisor of num_attention_heads, {heads}")))
}

/// Heads are of an even size.
pub(super) fn check_head_dim(fields: &Fields<'_>, field: &str, head_dim: usize) -> Result<(), ConfigError> {
    if head_dim.is_multiple_of(2) && head_dim <= HEAD_DIM_MAX {
        return Ok(());
    }
    let expected = format!("to make heads of an even size up to {HEAD_DIM_MAX}, not {head_dim}");
    Err(fields.out_of_range(field, expected))
}

/// RMS norms as Llama has them.
pub(super) fn norm(fields: &Fields<'_>) -> Result<NormSpec, ConfigError> {
    // 1e-6 is the default of all families in transformers but gpt-oss.
    let epsilon = fields.positive("rms_norm_eps", true)?.unwrap_or(1e-6);
    Ok(NormSpec { epsilon: epsilon as f32, weight_offset: 0.0 })
}

/// The activation on the gate, as `field` says; `default` where it says nothing.
pub(super) fn activation(
    fields: &Fields<'_>,
    field: &str,
    default: Activation,
) -> Result<Activation, ConfigError> {
    if !fields.has(field) {
        return Ok(default);
    }
    match fields.text(field)? {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        _ => Err(fields.unsupported(field, "this build knows silu, gelu and gelu_pytorch_tanh".to_owned())),
    }
}

/// A gated feed-forward as Llama has it.
pub(super) fn gated(fields: &Fields<'_>, width: usize) -> Result<GatedSpec, ConfigError> {
    let activation = activation(fields, "hidden_act", Activation::Silu)?;
    Ok(GatedSpec { width, activation, bias: fields.flag("mlp_bias")? })
}

/// A feed-forward's width that must be there.
pub(super) fn width(fields: &Fields<'_>, field: &str) -> Result<usize, ConfigError> {
    fields.required(field, 1, FEED_FORWARD_MAX)
}

/// How many experts there are, and how many a token has. Of the two names for the first, exporters use either.
pub(super) fn experts(
    fields: &Fields<'_>,
    (all, per_token): ([&str; 2], &str),
) -> Result<(usize, usize), ConfigError> {
    let all = if fields.has(all[0]) { all[0] } else { all[1] };
    let experts = fields.required(all, 1, EXPERTS_MAX)?;
    Ok((experts, fields.required(per_token, 1, experts)?))
}

/// Which of `known` each layer is, as `layer_types` says; `default` where it says nothing.
pub(super) fn layer_types(
    fields: &Fields<'_>,
    layers: usize,
    known: &[&str],
    default: impl Fn(usize) -> usize,
) -> Result<Vec<usize>, ConfigError> {
    let types = fields.texts("layer_types")?;
    if types.is_empty() {
        return Ok((0..layers).map(default).collect());
    }
    if types.len() != layers {
        return Err(fields.out_of_range("layer_types", format!("one for each of the {layers} layers")));
    }
    let place = |kind: &&str| {
        let place = known.iter().position(|known| known == kind);
        place.ok_or_else(|| fields.unsupported("layer_types", format!("layers are {}", known.join(" or "))))
    };
    types.iter().map(place).collect()
}

/// A window that must be there where layers have one.
pub(super) fn window(fields: &Fields<'_>, default: Option<usize>) -> Result<usize, ConfigError> {
    let window = fields.whole("sliding_window", 1, usize::MAX)?;
    let absent = default.filter(|_| !fields.is_null("sliding_window"));
    window.or(absent).ok_or_else(|| fields.missing("sliding_window"))
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

/// Takes `default` for the token that ends an answer where `eos_token_id` is absent (null means none).
pub(super) fn stop_default(fields: &Fields<'_>, spec: &mut ModelSpec, default: u32) {
    let place = fields.shared("eos_token_id");
    let absent = !place.has("eos_token_id") && !place.is_null("eos_token_id");
    if absent && spec.vocabulary > default as usize {
        spec.stop_tokens = vec![default];
    }
}

/// Whether the head is the embedding, in families where it is unless something else is said.
pub(super) fn tied_by_default(fields: &Fields<'_>) -> Result<bool, ConfigError> {
    fields.shared("tie_word_embeddings").flag_or("tie_word_embeddings", true)
}

/// A decoder of these layers, with what is alike in most families.
pub(super) fn decoder(
    fields: &Fields<'_>,
    family: &'static str,
    sizes: &Sizes,
    layer: impl Fn(usize) -> Result<LayerSpec, ConfigError>,
) -> Result<ModelSpec, ConfigError> {
    let layers = (0..sizes.layers).map(layer).collect::<Result<Vec<_>, _>>()?;
    let experts: usize =
        layers.iter().filter_map(|layer| layer.feed_forward.experts()).map(|e| e.experts).sum();
    if experts > ALL_EXPERTS_MAX {
        let expected = format!("so many that there are at most {ALL_EXPERTS_MAX} experts, not {experts}");
        return Err(fields.out_of_range("num_hidden_layers", expected));
    }
    Ok(ModelSpec {
        family,
        hidden: sizes.hidden,
        vocabulary: sizes.vocabulary,
        context: sizes.context,
        embedding_scale: 1.0,
        tied_head: fields.shared("tie_word_embeddings").flag("tie_word_embeddings")?,
        layers,
        layer_inputs: None,
        final_norm: norm(fields)?,
        logit_soft_cap: None,
        pooling: None,
        stop_tokens: stop_tokens(&fields.shared("eos_token_id"), sizes.vocabulary)?,
        ignored_tensors: if fields.is_nested() { OTHER_PARTS } else { &[] },
    })
}

/// What a model for images and sound has besides the decoder.
const OTHER_PARTS: &[&str] = &[
    "model.visual.",
    "model.vision_tower.",
    "vision_tower.",
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "model.audio_tower.",
    "audio_tower.",
    "model.embed_vision.",
    "embed_vision.",
    "model.embed_audio.",
    "embed_audio.",
    "model.mtp.",
    "mtp.",
];

/// A layer as Llama has it, with any attention.
pub(super) fn plain_layer(
    norm: NormSpec,
    attention: AttentionSpec,
    feed_forward: FeedForwardSpec,
) -> LayerSpec {
    LayerSpec::plain(norm, MixerSpec::Attention(attention), feed_forward)
}
