//! Mistral (`MistralForCausalLM`, and the text part of `Mistral3ForConditionalGeneration`): Llama's block, where all layers
//! may see a window only.
//!
//! Source: `models/mistral` and `models/mistral3` of transformers.

use super::decoder::{SizeDefaults, Sizes, decoder, gated, norm, plain_layer, stop_default, window};
use super::{ConfigError, Family, Fields, rope};
use crate::spec::{AttentionSpec, FeedForwardSpec, ModelSpec};

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM", "Mistral3ForConditionalGeneration"],
    model_types: &["mistral", "mistral3"],
    read,
};

/// What transformers takes where they are absent.
const STOP_TOKEN_DEFAULT: u32 = 2;
const WINDOW_DEFAULT: usize = 4096;
const SIZES: SizeDefaults = SizeDefaults {
    heads: None,
    kv_heads: Some(8),
    kv_heads_free: false,
    head_dim: None,
    feed_forward: None,
    vocabulary: None,
    context: None,
};

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    if fields.is_nested() && fields.has("model_type") && fields.text("model_type")? != "mistral" {
        return Err(fields.unsupported("model_type", "the text part must be a mistral".to_owned()));
    }
    let sizes = Sizes::read(fields, &SIZES)?;
    let rope = rope::rope(fields, (sizes.head_dim, sizes.context), &rope::DEFAULTS)?;
    let window = match fields.is_null("sliding_window") {
        true => None,
        false => Some(window(fields, Some(WINDOW_DEFAULT))?),
    };
    let (norm, gated) = (norm(fields)?, gated(fields, sizes.feed_forward)?);
    let mut spec = decoder(fields, FAMILY.name, &sizes, |_| {
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        let attention = AttentionSpec { window, ..plain };
        Ok(plain_layer(norm, attention, FeedForwardSpec::Gated(gated)))
    })?;
    stop_default(fields, &mut spec, STOP_TOKEN_DEFAULT);
    Ok(spec)
}
