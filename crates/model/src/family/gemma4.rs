//! Gemma 4 (`Gemma4ForCausalLM`, and the text part of `Gemma4ForConditionalGeneration`): heads and ropes of their own for
//! layers without a window, last layers that read the keys and values of earlier ones, a second embedding for every
//! layer, experts beside the dense feed-forward.
//!
//! Source: `models/gemma4` of transformers.

use super::decoder::{
    SizeDefaults, Sizes, activation, check_groups, check_head_dim, decoder, experts, layer_types, norm,
    stop_default, tied_by_default, width, window,
};
use super::rope::RopeDefaults;
use super::{ConfigError, Family, Fields, gemma2, rope};
use crate::spec::{
    Activation, AttentionSpec, DenseAndExpertsSpec, ExpertsSpec, FeedForwardSpec, GatedSpec, KvSource,
    LayerInputsSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec, RopeScaling, RopeSpec, RouterSpec, Scoring,
};

pub(super) const FAMILY: Family = Family {
    name: "gemma4",
    architectures: &["Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"],
    model_types: &["gemma4_text", "gemma4"],
    read,
};

/// What transformers takes where they are absent.
const SIZES: SizeDefaults = SizeDefaults {
    heads: Some(8),
    kv_heads: Some(4),
    kv_heads_free: false,
    head_dim: Some(256),
    feed_forward: Some(9216),
    vocabulary: Some(262_144),
    context: Some(131_072),
};
const GLOBAL_HEAD_DIM: usize = 512;
const KV_HEADS: &str = "num_global_key_value_heads";
/// Far above any model: of heads and of their size.
const HEADS_MAX: usize = 1 << 14;
const WINDOW_DEFAULT: usize = 512;
const PATTERN: usize = 6;
const STOP_TOKEN_DEFAULT: u32 = 1;
const INPUT_WIDTH_DEFAULT: usize = 256;
const INPUT_WIDTH_MAX: usize = 1 << 16;
const GLOBAL: RopeDefaults = RopeDefaults { theta: 1_000_000.0, partial: None };
const LOCAL: RopeDefaults = RopeDefaults { theta: 10_000.0, partial: None };
/// Of a rope that nothing is said of: which part of a head turns.
const GLOBAL_PART: usize = 4;

/// What distinguishes a kind of layers.
struct Kind {
    kv_heads: usize,
    head_dim: usize,
    rope: RopeSpec,
    window: Option<usize>,
    kv: KvSource,
}

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, &SIZES)?;
    refuse_what_is_not_text(fields)?;
    let mut types = layer_types(fields, sizes.layers, &["full_attention", "sliding_attention"], |layer| {
        usize::from(!(layer + 1).is_multiple_of(PATTERN))
    })?;
    // The last layer sees everything, whatever is said.
    types[sizes.layers - 1] = 0;
    let kinds = [global(fields, &sizes, &types)?, local(fields, &sizes)?];
    let shared = fields.whole("num_kv_shared_layers", 0, sizes.layers - 1)?.unwrap_or(0);
    let own = sizes.layers - shared;
    let norm = norm(fields)?;
    let bias = fields.flag("attention_bias")?;
    let double = fields.flag("use_double_wide_mlp")?;
    let activation = activation(fields, "hidden_activation", Activation::GeluTanh)?;
    let experts = experts_beside(fields, activation, norm)?;
    let mut spec = decoder(fields, FAMILY.name, &sizes, |layer| {
        let kind = &kinds[types[layer]];
        let kv = if layer < own {
            kind.kv
        } else {
            let source = types[..own].iter().rposition(|&other| other == types[layer]);
            let expected = "layers of every kind before those that share keys and values".to_owned();
            KvSource::Layer(source.ok_or_else(|| fields.out_of_range("num_kv_shared_layers", expected))?)
        };
        let attention = AttentionSpec {
            kv,
            qkv_bias: bias,
            output_bias: bias,
            qk_norm: Some(norm),
            value_norm: Some(norm),
            scale: 1.0,
            window: kind.window,
            ..AttentionSpec::plain(sizes.heads, kind.kv_heads, kind.head_dim, kind.rope.clone())
        };
        let times = if double && layer >= own { 2 } else { 1 };
        let dense = GatedSpec { width: times * sizes.feed_forward, activation, bias: false };
        let feed_forward = experts.as_ref().map_or(FeedForwardSpec::Gated(dense), |experts| {
            FeedForwardSpec::DenseAndExperts(Box::new(DenseAndExpertsSpec { dense, ..experts.clone() }))
        });
        Ok(LayerSpec {
            mixer_post_norm: Some(norm),
            feed_forward_post_norm: Some(norm),
            output_scale: true,
            ..LayerSpec::plain(norm, MixerSpec::Attention(attention), feed_forward)
        })
    })?;
    spec.layer_inputs = layer_inputs(fields, activation, norm)?;
    spec.embedding_scale = (sizes.hidden as f32).sqrt();
    spec.logit_soft_cap = gemma2::cap(fields, "final_logit_softcapping", None)?;
    spec.tied_head = tied_by_default(fields)?;
    stop_default(fields, &mut spec, STOP_TOKEN_DEFAULT);
    Ok(spec)
}

fn refuse_what_is_not_text(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let field = "use_bidirectional_attention";
    // "vision" is about the tokens of images, of which there are none.
    if fields.has(field) && fields.text(field)? != "vision" {
        return Err(fields.unsupported(field, "tokens see those before them only".to_owned()));
    }
    Ok(())
}

fn global(fields: &Fields<'_>, sizes: &Sizes, types: &[usize]) -> Result<Kind, ConfigError> {
    let key_is_value = fields.flag("attention_k_eq_v")?;
    let (head_dim, kv_heads) = match overrides(fields, types)? {
        Some(own) => {
            let own = |field: &str| own.map_or(Ok(None), |own| own.whole(field, 1, HEADS_MAX));
            (own("head_dim")?.unwrap_or(sizes.head_dim), own("num_key_value_heads")?)
        }
        None => (
            fields.whole("global_head_dim", 1, usize::MAX)?.unwrap_or(GLOBAL_HEAD_DIM),
            fields.whole(KV_HEADS, 1, sizes.heads)?.filter(|_| key_is_value),
        ),
    };
    check_head_dim(fields, "global_head_dim", head_dim)?;
    let kv_heads = kv_heads.unwrap_or(sizes.kv_heads);
    check_groups(fields, KV_HEADS, (sizes.heads, kv_heads))?;
    let parameters = rope::of_type(fields, ("full_attention", "rope_parameters.full_attention."))?;
    let mut rope = rope::for_layers(fields, parameters, (head_dim, sizes.context), &GLOBAL)?;
    if !fields.has("rope_parameters") {
        rope.scaling = RopeScaling::Proportional { turning: head_dim / 2 / GLOBAL_PART, factor: 1.0 };
    }
    let kv = if key_is_value { KvSource::KeyIsValue } else { KvSource::Own };
    Ok(Kind { kv_heads, head_dim, rope, window: None, kv })
}

/// What transformers since 5.2x writes of the layers without a window, where it writes `per_layer_config` in place of
/// `global_head_dim` and `num_global_key_value_heads`; nothing inside where it is as in the other layers.
fn overrides<'a>(fields: &Fields<'a>, types: &[usize]) -> Result<Option<Option<Fields<'a>>>, ConfigError> {
    let field = "per_layer_config";
    if !fields.has(field) {
        return Ok(None);
    }
    let Some(all) = fields.object(field, "per_layer_config.")? else { return Ok(Some(None)) };
    let wrong =
        |what: &str| Err(fields.unsupported(field, format!("it may differ by type of layer: {what}")));
    let mut found: Vec<Option<Fields<'a>>> = vec![None; types.len()];
    for number in all.nested() {
        let Some(layer) = number.parse().ok().filter(|&layer: &usize| layer < types.len()) else {
            return wrong("its keys are numbers of layers");
        };
        found[layer] = all.object(number, "per_layer_config.N.")?;
    }
    let mut global = types.iter().zip(&found).filter(|(kind, _)| **kind == 0).map(|(_, own)| own);
    let local = types.iter().zip(&found).filter(|(kind, _)| **kind != 0).map(|(_, own)| own);
    let Some(first) = global.next() else { return Ok(Some(None)) };
    let known =
        |own: &Fields<'_>| own.names().all(|name| ["head_dim", "num_key_value_heads"].contains(&name));
    if first.as_ref().is_some_and(|own| !known(own)) {
        return wrong("in head_dim and num_key_value_heads");
    }
    let same = |other: &Option<Fields<'_>>| match (first, other) {
        (Some(a), Some(b)) => a.is_same(b),
        (a, b) => a.is_none() && b.is_none(),
    };
    if !global.all(same) || local.into_iter().any(Option::is_some) {
        return wrong("all full_attention layers are alike, and others as config.json says");
    }
    Ok(Some(*first))
}

fn local(fields: &Fields<'_>, sizes: &Sizes) -> Result<Kind, ConfigError> {
    let parameters = rope::of_type(fields, ("sliding_attention", "rope_parameters.sliding_attention."))?;
    let rope = rope::for_layers(fields, parameters, (sizes.head_dim, sizes.context), &LOCAL)?;
    let window = Some(window(fields, Some(WINDOW_DEFAULT))?);
    let (kv_heads, head_dim) = (sizes.kv_heads, sizes.head_dim);
    Ok(Kind { kv_heads, head_dim, rope, window, kv: KvSource::Own })
}

fn layer_inputs(
    fields: &Fields<'_>,
    activation: Activation,
    norm: NormSpec,
) -> Result<Option<LayerInputsSpec>, ConfigError> {
    let field = "hidden_size_per_layer_input";
    let absent = if fields.is_null(field) { 0 } else { INPUT_WIDTH_DEFAULT };
    let width = fields.whole(field, 0, INPUT_WIDTH_MAX)?.unwrap_or(absent);
    let tokens = fields.whole("vocab_size_per_layer_input", 1, 1 << 24)?;
    let vocabulary = tokens.unwrap_or_else(|| SIZES.vocabulary.unwrap_or_default());
    Ok((width > 0).then_some(LayerInputsSpec { width, vocabulary, activation, norm }))
}

/// The experts, beside a dense feed-forward that each layer puts in.
fn experts_beside(
    fields: &Fields<'_>,
    activation: Activation,
    norm: NormSpec,
) -> Result<Option<DenseAndExpertsSpec>, ConfigError> {
    if !fields.flag("enable_moe_block")? {
        return Ok(None);
    }
    let (experts, per_token) = experts(fields, (["num_local_experts", "num_experts"], "top_k_experts"))?;
    let expert = GatedSpec { width: width(fields, "moe_intermediate_size")?, activation, bias: false };
    let router = RouterSpec {
        scoring: Scoring::SoftmaxThenTopK { normalise: true },
        bias: false,
        norm: Some(norm),
        expert_scale: true,
    };
    Ok(Some(DenseAndExpertsSpec {
        dense: expert,
        dense_post_norm: norm,
        experts_norm: norm,
        experts: ExpertsSpec { experts, per_token, expert, router, shared: None },
        experts_post_norm: norm,
    }))
}
