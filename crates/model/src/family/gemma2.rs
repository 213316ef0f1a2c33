//! Gemma 2 (`Gemma2ForCausalLM`): norms before and after each block, capped scores and logits, windows in every second
//! layer, a scaled embedding.
//!
//! Source: `models/gemma2` of transformers.

use super::decoder::{
    SizeDefaults, Sizes, activation, decoder, layer_types, norm, stop_default, tied_by_default, window,
};
use super::{ConfigError, Family, Fields, rope};
use crate::spec::{
    Activation, AttentionSpec, FeedForwardSpec, GatedSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec,
};

pub(super) const FAMILY: Family =
    Family { name: "gemma2", architectures: &["Gemma2ForCausalLM"], model_types: &["gemma2"], read };

/// What transformers takes where they are absent.
const SIZES: SizeDefaults = SizeDefaults {
    heads: Some(8),
    kv_heads: Some(4),
    kv_heads_free: false,
    head_dim: Some(256),
    feed_forward: Some(9216),
    vocabulary: Some(256_000),
    context: Some(8192),
};
const WINDOW_DEFAULT: usize = 4096;
const STOP_TOKEN_DEFAULT: u32 = 1;
const QUERY_SCALAR_DEFAULT: f64 = 256.0;

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, &SIZES)?;
    let rope = rope::rope(fields, (sizes.head_dim, sizes.context), &rope::DEFAULTS)?;
    let types = layer_types(fields, sizes.layers, &["full_attention", "sliding_attention"], |layer| {
        usize::from(layer.is_multiple_of(2))
    })?;
    let window = if types.contains(&1) { Some(window(fields, Some(WINDOW_DEFAULT))?) } else { None };
    let soft_cap = cap(fields, "attn_logit_softcapping", Some(50.0))?;
    let mut spec = build(fields, FAMILY.name, &sizes, |layer| {
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        AttentionSpec { soft_cap, window: window.filter(|_| types[layer] == 1), ..plain }
    })?;
    spec.logit_soft_cap = cap(fields, "final_logit_softcapping", Some(30.0))?;
    Ok(spec)
}

/// A cap: `default` where absent, none where null.
pub(super) fn cap(
    fields: &Fields<'_>,
    field: &str,
    default: Option<f32>,
) -> Result<Option<f32>, ConfigError> {
    let cap = fields.positive(field, false)?.map(|cap| cap as f32);
    Ok(cap.or(default.filter(|_| !fields.is_null(field))))
}

/// The block that Gemma 2 and 3 share, around any attention.
pub(super) fn build(
    fields: &Fields<'_>,
    family: &'static str,
    sizes: &Sizes,
    attention: impl Fn(usize) -> AttentionSpec,
) -> Result<ModelSpec, ConfigError> {
    if fields.flag("use_bidirectional_attention")? {
        let remedy = "tokens see those before them only".to_owned();
        return Err(fields.unsupported("use_bidirectional_attention", remedy));
    }
    let norm = NormSpec { weight_offset: 1.0, ..norm(fields)? };
    let activation = activation(fields, "hidden_activation", Activation::GeluTanh)?;
    let gated = GatedSpec { width: sizes.feed_forward, activation, bias: false };
    let bias = fields.flag("attention_bias")?;
    let scalar = fields.positive("query_pre_attn_scalar", false)?.unwrap_or(QUERY_SCALAR_DEFAULT);
    let mut spec = decoder(fields, family, sizes, |layer| {
        let scale = scalar.powf(-0.5) as f32;
        let attention = AttentionSpec { qkv_bias: bias, output_bias: bias, scale, ..attention(layer) };
        Ok(LayerSpec {
            mixer_post_norm: Some(norm),
            feed_forward_post_norm: Some(norm),
            ..LayerSpec::plain(norm, MixerSpec::Attention(attention), FeedForwardSpec::Gated(gated))
        })
    })?;
    spec.final_norm = norm;
    spec.embedding_scale = (sizes.hidden as f32).sqrt();
    spec.tied_head = tied_by_default(fields)?;
    stop_default(fields, &mut spec, STOP_TOKEN_DEFAULT);
    Ok(spec)
}
