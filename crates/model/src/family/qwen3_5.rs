//! Qwen 3.5, dense and with experts (`Qwen3_5ForCausalLM`, `Qwen3_5MoeForCausalLM`, and the text parts of the models for
//! images): gated delta nets with a layer of gated attention after every few.
//!
//! Source: `models/qwen3_5` and `models/qwen3_5_moe` of transformers.

use super::decoder::{SizeDefaults, Sizes, decoder, gated, layer_types, norm, width};
use super::rope::RopeDefaults;
use super::{ConfigError, Family, Fields, qwen3, rope};
use crate::spec::{
    AttentionSpec, DeltaNetSpec, ExpertsSpec, FeedForwardSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec,
    SharedSpec,
};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_5",
    architectures: &["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"],
    model_types: &["qwen3_5_text", "qwen3_5"],
    read,
};

pub(super) const WITH_EXPERTS: Family = Family {
    name: "qwen3_5_moe",
    architectures: &["Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"],
    model_types: &["qwen3_5_moe_text", "qwen3_5_moe"],
    read: read_with_experts,
};

/// What transformers takes where they are absent.
const ROPE: RopeDefaults = RopeDefaults { theta: 10_000.0, partial: Some(0.25) };
const INTERVAL_DEFAULT: usize = 4;
/// Far above any model; no product of sizes leaves 64 bits.
const HEADS_MAX: usize = 1 << 12;
const DIM_MAX: usize = 1 << 12;
const TAPS_MAX: usize = 64;

fn defaults() -> SizeDefaults {
    SizeDefaults { head_dim: Some(256), feed_forward: Some(1), ..SizeDefaults::default() }
}

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, &SizeDefaults { feed_forward: None, ..defaults() })?;
    let gated = gated(fields, sizes.feed_forward)?;
    build(fields, FAMILY.name, &sizes, &FeedForwardSpec::Gated(gated))
}

fn read_with_experts(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, &defaults())?;
    let experts = qwen3::chosen(fields, true)?;
    let mut shared = experts.expert;
    shared.width = width(fields, "shared_expert_intermediate_size")?;
    let shared = Some(SharedSpec { gated: shared, output_gate: true });
    build(fields, WITH_EXPERTS.name, &sizes, &FeedForwardSpec::Experts(ExpertsSpec { shared, ..experts }))
}

fn build(
    fields: &Fields<'_>,
    family: &'static str,
    sizes: &Sizes,
    feed_forward: &FeedForwardSpec,
) -> Result<ModelSpec, ConfigError> {
    let interval = fields.whole("full_attention_interval", 1, usize::MAX)?.unwrap_or(INTERVAL_DEFAULT);
    let types = layer_types(fields, sizes.layers, &["full_attention", "linear_attention"], |layer| {
        usize::from(!(layer + 1).is_multiple_of(interval))
    })?;
    let rope = rope::rope(fields, (sizes.head_dim, sizes.context), &ROPE)?;
    let bias = fields.flag("attention_bias")?;
    let plain = norm(fields)?;
    // These norms store the difference from one; the delta net's own does not.
    let norm = NormSpec { weight_offset: 1.0, ..plain };
    let delta = delta_net(fields, plain)?;
    let mut spec = decoder(fields, family, sizes, |layer| {
        let mixer = if types[layer] == 1 {
            MixerSpec::DeltaNet(delta.clone())
        } else {
            let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
            let biased = AttentionSpec { qkv_bias: bias, output_bias: bias, ..plain };
            MixerSpec::Attention(AttentionSpec { qk_norm: Some(norm), output_gate: true, ..biased })
        };
        Ok(LayerSpec::plain(norm, mixer, feed_forward.clone()))
    })?;
    spec.final_norm = norm;
    // Layers for guessing ahead may be there in the text model too.
    if spec.ignored_tensors.is_empty() {
        spec.ignored_tensors = &["model.mtp.", "mtp."];
    }
    Ok(spec)
}

fn delta_net(fields: &Fields<'_>, norm: NormSpec) -> Result<DeltaNetSpec, ConfigError> {
    let size = |field: &str, max: usize, default: usize| {
        fields.whole(field, 1, max).map(|size| size.unwrap_or(default))
    };
    let spec = DeltaNetSpec {
        key_heads: size("linear_num_key_heads", HEADS_MAX, 16)?,
        value_heads: size("linear_num_value_heads", HEADS_MAX, 32)?,
        key_dim: size("linear_key_head_dim", DIM_MAX, 128)?,
        value_dim: size("linear_value_head_dim", DIM_MAX, 128)?,
        conv_width: size("linear_conv_kernel_dim", TAPS_MAX, 4)?,
        norm,
    };
    if fields.has("hidden_act") && !["silu", "swish"].contains(&fields.text("hidden_act")?) {
        return Err(fields.unsupported("hidden_act", "delta nets have silu".to_owned()));
    }
    if !spec.value_heads.is_multiple_of(spec.key_heads) {
        let expected = format!("a multiple of linear_num_key_heads, {}", spec.key_heads);
        return Err(fields.out_of_range("linear_num_value_heads", expected));
    }
    Ok(spec)
}
