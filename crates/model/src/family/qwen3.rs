//! Qwen 3, dense and with experts (`Qwen3ForCausalLM`, `Qwen3MoeForCausalLM`): Llama's block with norms on q and k, heads
//! of their own size, and layers that may see a window only.
//!
//! Source: `models/qwen3` and `models/qwen3_moe` of transformers.

use super::decoder::{
    SizeDefaults, Sizes, activation, decoder, experts, gated, norm, plain_layer, width, window,
};
use super::{ConfigError, Family, Fields, qwen2, rope};
use crate::spec::{
    Activation, AttentionSpec, ExpertsSpec, FeedForwardSpec, GatedSpec, ModelSpec, RouterSpec, Scoring,
};

pub(super) const FAMILY: Family =
    Family { name: "qwen3", architectures: &["Qwen3ForCausalLM"], model_types: &["qwen3"], read };

pub(super) const WITH_EXPERTS: Family = Family {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    model_types: &["qwen3_moe"],
    read: read_with_experts,
};

/// What transformers takes where it is absent.
const HEAD_DIM_DEFAULT: usize = 128;

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let defaults = SizeDefaults { head_dim: Some(HEAD_DIM_DEFAULT), ..SizeDefaults::default() };
    let sizes = Sizes::read(fields, &defaults)?;
    let windows = qwen2::windows(fields, sizes.layers)?;
    let gated = gated(fields, sizes.feed_forward)?;
    build(fields, FAMILY.name, &sizes, |layer| (windows[layer], FeedForwardSpec::Gated(gated)))
}

fn read_with_experts(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    // Where every layer has experts nothing is as wide as `intermediate_size`.
    let defaults = SizeDefaults { feed_forward: Some(1), ..SizeDefaults::default() };
    let sizes = Sizes::read(fields, &defaults)?;
    // Here all layers see the window, or none.
    let used = fields.flag("use_sliding_window")? && !fields.is_null("sliding_window");
    let window = if used { Some(window(fields, Some(4096))?) } else { None };
    let dense = gated(fields, sizes.feed_forward)?;
    let experts = chosen(fields, fields.flag("norm_topk_prob")?)?;
    let only = fields.wholes("mlp_only_layers")?;
    let step = fields.whole("decoder_sparse_step", 1, usize::MAX)?.unwrap_or(1);
    build(fields, WITH_EXPERTS.name, &sizes, |layer| {
        let has_experts = !only.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step);
        let experts = || FeedForwardSpec::Experts(experts.clone());
        (window, if has_experts { experts() } else { FeedForwardSpec::Gated(dense) })
    })
}

/// Experts as Qwen has them.
pub(super) fn chosen(fields: &Fields<'_>, normalise: bool) -> Result<ExpertsSpec, ConfigError> {
    let (experts, per_token) =
        experts(fields, (["num_local_experts", "num_experts"], "num_experts_per_tok"))?;
    let activation = activation(fields, "hidden_act", Activation::Silu)?;
    Ok(ExpertsSpec {
        experts,
        per_token,
        expert: GatedSpec { width: width(fields, "moe_intermediate_size")?, activation, bias: false },
        router: RouterSpec {
            scoring: Scoring::SoftmaxThenTopK { normalise },
            bias: false,
            norm: None,
            expert_scale: false,
        },
        shared: None,
    })
}

fn build(
    fields: &Fields<'_>,
    family: &'static str,
    sizes: &Sizes,
    layer: impl Fn(usize) -> (Option<usize>, FeedForwardSpec),
) -> Result<ModelSpec, ConfigError> {
    let rope = rope::rope(fields, (sizes.head_dim, sizes.context), &rope::DEFAULTS)?;
    let bias = fields.flag("attention_bias")?;
    let norm = norm(fields)?;
    decoder(fields, family, sizes, |number| {
        let (window, feed_forward) = layer(number);
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        let biased = AttentionSpec { qkv_bias: bias, output_bias: bias, ..plain };
        let attention = AttentionSpec { qk_norm: Some(norm), window, ..biased };
        Ok(plain_layer(norm, attention, feed_forward))
    })
}
