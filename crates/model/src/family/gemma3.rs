//! Gemma 3 (`Gemma3ForCausalLM`, and the text part of `Gemma3ForConditionalGeneration`): Gemma 2's block with norms on q and
//! k, five layers with a window for each without, and a rope for either kind.
//!
//! Source: `models/gemma3` of transformers, whose attention leaves `attn_logit_softcapping` alone: so does this.

use super::decoder::{SizeDefaults, Sizes, layer_types, norm, window};
use super::rope::RopeDefaults;
use super::{ConfigError, Family, Fields, gemma2, rope};
use crate::spec::{AttentionSpec, ModelSpec, NormSpec, RopeSpec};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3_text", "gemma3"],
    read,
};

/// What transformers takes where they are absent: the models that are published leave most of them out.
const SIZES: SizeDefaults = SizeDefaults {
    heads: Some(8),
    kv_heads: Some(4),
    kv_heads_free: false,
    head_dim: Some(256),
    feed_forward: Some(9216),
    vocabulary: Some(262_208),
    context: Some(131_072),
};
const WINDOW_DEFAULT: usize = 4096;
const PATTERN_DEFAULT: usize = 6;
const GLOBAL_THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, &SIZES)?;
    let pattern = fields.whole("sliding_window_pattern", 1, usize::MAX)?.unwrap_or(PATTERN_DEFAULT);
    let types = layer_types(fields, sizes.layers, &["full_attention", "sliding_attention"], |layer| {
        usize::from(!(layer + 1).is_multiple_of(pattern))
    })?;
    let window = if types.contains(&1) { Some(window(fields, Some(WINDOW_DEFAULT))?) } else { None };
    let (global, local) = (global_rope(fields, &sizes)?, local_rope(fields, &sizes)?);
    let norm = NormSpec { weight_offset: 1.0, ..norm(fields)? };
    let mut spec = gemma2::build(fields, FAMILY.name, &sizes, |layer| {
        let slides = types[layer] == 1;
        let rope = if slides { local.clone() } else { global.clone() };
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope);
        AttentionSpec { qk_norm: Some(norm), window: window.filter(|_| slides), ..plain }
    })?;
    spec.logit_soft_cap = gemma2::cap(fields, "final_logit_softcapping", None)?;
    Ok(spec)
}

/// The rope of layers without a window. What `rope_scaling` says is said of these alone.
fn global_rope(fields: &Fields<'_>, sizes: &Sizes) -> Result<RopeSpec, ConfigError> {
    let kind = ("full_attention", "rope_parameters.full_attention.");
    let parameters = rope::of_type(fields, kind)?;
    let theta = match &parameters {
        Some(parameters) => parameters.positive("rope_theta", false)?,
        None => None,
    };
    let beside = fields.positive("rope_theta", false)?;
    let theta = theta.or(beside).unwrap_or(GLOBAL_THETA);
    let older = fields.object("rope_scaling", "rope_scaling.")?;
    let defaults = RopeDefaults { theta, partial: None };
    rope::for_layers(fields, older.or(parameters), (sizes.head_dim, sizes.context), &defaults)
}

fn local_rope(fields: &Fields<'_>, sizes: &Sizes) -> Result<RopeSpec, ConfigError> {
    let kind = ("sliding_attention", "rope_parameters.sliding_attention.");
    let parameters = rope::of_type(fields, kind)?;
    let theta = fields.positive("rope_local_base_freq", false)?.unwrap_or(LOCAL_THETA);
    let defaults = RopeDefaults { theta, partial: None };
    rope::for_layers(fields, parameters, (sizes.head_dim, sizes.context), &defaults)
}
