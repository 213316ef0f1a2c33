//! gpt-oss (`GptOssForCausalLM`): attention with sinks, windows in every second layer, experts with biases.
//!
//! Source: `models/gpt_oss` of transformers.

use super::decoder::{SizeDefaults, Sizes, decoder, experts, layer_types, norm, plain_layer, window};
use super::rope::RopeDefaults;
use super::{ConfigError, Family, Fields, rope};
use crate::spec::{
    Activation, AttentionSpec, ExpertsSpec, FeedForwardSpec, GatedSpec, ModelSpec, NormSpec, RopeScaling,
    RouterSpec, Scoring,
};

pub(super) const FAMILY: Family =
    Family { name: "gpt_oss", architectures: &["GptOssForCausalLM"], model_types: &["gpt_oss"], read };

/// What transformers takes where they are absent.
const ROPE: RopeDefaults = RopeDefaults { theta: 150_000.0, partial: None };
const WINDOW_DEFAULT: usize = 128;
const EPSILON_DEFAULT: f32 = 1e-5;
const ALPHA_DEFAULT: f64 = 1.702;
const LIMIT_DEFAULT: f64 = 7.0;
const SCALING_DEFAULT: RopeScaling = RopeScaling::Yarn {
    factor: 32.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    original_context: 4096,
    truncate: false,
};

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let defaults = SizeDefaults { kv_heads: Some(8), head_dim: Some(64), ..SizeDefaults::default() };
    let sizes = Sizes::read(fields, &defaults)?;
    let mut rope = rope::rope(fields, (sizes.head_dim, sizes.context), &ROPE)?;
    if !fields.has("rope_scaling") && !fields.has("rope_parameters") {
        rope.scaling = SCALING_DEFAULT;
        rope.attention_factor = 0.1 * 32f32.ln() + 1.0;
    }
    let types = layer_types(fields, sizes.layers, &["full_attention", "sliding_attention"], |layer| {
        usize::from(layer.is_multiple_of(2))
    })?;
    let window = if types.contains(&1) { Some(window(fields, Some(WINDOW_DEFAULT))?) } else { None };
    let bias = fields.flag_or("attention_bias", true)?;
    let mut norm = norm(fields)?;
    if !fields.has("rms_norm_eps") {
        norm = NormSpec { epsilon: EPSILON_DEFAULT, ..norm };
    }
    let experts = chosen(fields, &sizes)?;
    let mut spec = decoder(fields, FAMILY.name, &sizes, |layer| {
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        let biased = AttentionSpec { qkv_bias: bias, output_bias: bias, ..plain };
        let window = window.filter(|_| types[layer] == 1);
        let attention = AttentionSpec { sinks: true, window, ..biased };
        Ok(plain_layer(norm, attention, FeedForwardSpec::Experts(experts.clone())))
    })?;
    spec.final_norm = norm;
    Ok(spec)
}

fn chosen(fields: &Fields<'_>, sizes: &Sizes) -> Result<ExpertsSpec, ConfigError> {
    let (experts, per_token) =
        experts(fields, (["num_experts", "num_local_experts"], "num_experts_per_tok"))?;
    if fields.has("hidden_act") && fields.text("hidden_act")? != "silu" {
        return Err(fields.unsupported("hidden_act", "its experts have a clamped silu".to_owned()));
    }
    let activation = Activation::ClampedSwiglu {
        alpha: fields.positive("swiglu_alpha", false)?.unwrap_or(ALPHA_DEFAULT) as f32,
        limit: fields.positive("swiglu_limit", false)?.unwrap_or(LIMIT_DEFAULT) as f32,
    };
    Ok(ExpertsSpec {
        experts,
        per_token,
        expert: GatedSpec { width: sizes.feed_forward, activation, bias: true },
        router: RouterSpec { scoring: Scoring::TopKThenSoftmax, bias: true, norm: None, expert_scale: false },
        shared: None,
    })
}
