//! Qwen 2 and 2.5 (`Qwen2ForCausalLM`): Llama's block with biases on q, k and v, and layers that may see a window only.
//!
//! Source: `models/qwen2` of transformers.

use super::decoder::{SizeDefaults, Sizes, decoder, gated, layer_types, norm, plain_layer, window};
use super::{ConfigError, Family, Fields, rope};
use crate::spec::{AttentionSpec, FeedForwardSpec, ModelSpec};

pub(super) const FAMILY: Family =
    Family { name: "qwen2", architectures: &["Qwen2ForCausalLM"], model_types: &["qwen2"], read };

/// What transformers takes where they are absent.
const WINDOW_DEFAULT: usize = 4096;
const FULL_LAYERS_DEFAULT: usize = 28;

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, &SizeDefaults::default())?;
    let rope = rope::rope(fields, (sizes.head_dim, sizes.context), &rope::DEFAULTS)?;
    let (norm, gated) = (norm(fields)?, gated(fields, sizes.feed_forward)?);
    let windows = windows(fields, sizes.layers)?;
    decoder(fields, FAMILY.name, &sizes, |layer| {
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        let attention = AttentionSpec { qkv_bias: true, window: windows[layer], ..plain };
        Ok(plain_layer(norm, attention, FeedForwardSpec::Gated(gated)))
    })
}

/// Each layer's window: by `layer_types` where they are listed, else on the layers from `max_window_layers`.
pub(super) fn windows(fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let used = fields.flag("use_sliding_window")? && !fields.is_null("sliding_window");
    let full = fields.whole("max_window_layers", 0, usize::MAX)?.unwrap_or(FULL_LAYERS_DEFAULT);
    let types = layer_types(fields, layers, &["full_attention", "sliding_attention"], |layer| {
        usize::from(used && layer >= full)
    })?;
    if types.contains(&1) && !used {
        return Err(fields.missing("sliding_window"));
    }
    let size = if used { Some(window(fields, Some(WINDOW_DEFAULT))?) } else { None };
    Ok(types.into_iter().map(|kind| size.filter(|_| kind == 1)).collect())
}
