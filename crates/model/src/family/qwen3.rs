//! Qwen 3, dense (`Qwen3ForCausalLM`): Llama's block with norms on q and k, heads of their own size, and layers that
//! may see a window only.
//!
//! Source: `models/qwen3` of transformers.

use super::decoder::{Sizes, decoder, norm};
use super::{ConfigError, Family, Fields, rope};
use crate::spec::{AttentionSpec, ModelSpec};

pub(super) const FAMILY: Family =
    Family { name: "qwen3", architecture: "Qwen3ForCausalLM", model_type: "qwen3", read };

/// What transformers takes where they are absent.
const HEAD_DIM_DEFAULT: usize = 128;
const WINDOW_DEFAULT: usize = 4096;
const FULL_LAYERS_DEFAULT: usize = 28;

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    if !fields.has("num_key_value_heads") && !fields.is_null("num_key_value_heads") {
        return Err(fields.missing("num_key_value_heads"));
    }
    let sizes = Sizes::read(fields, Some(HEAD_DIM_DEFAULT))?;
    let rope = rope::rope(fields, sizes.head_dim, sizes.context)?;
    let bias = fields.flag("attention_bias")?;
    let norm = norm(fields)?;
    let windows = windows(fields, sizes.layers)?;
    decoder(fields, FAMILY.name, &sizes, |layer| {
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        Ok(AttentionSpec {
            qkv_bias: bias,
            output_bias: bias,
            qk_norm: Some(norm),
            window: windows[layer],
            ..plain
        })
    })
}

/// Each layer's window: by `layer_types` where they are listed, else on the layers from `max_window_layers`.
fn windows(fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let window = if !fields.flag("use_sliding_window")? || fields.is_null("sliding_window") {
        None
    } else {
        Some(fields.whole("sliding_window", 1, usize::MAX)?.unwrap_or(WINDOW_DEFAULT))
    };
    let types = fields.texts("layer_types")?;
    if types.is_empty() {
        let full = fields.whole("max_window_layers", 0, usize::MAX)?.unwrap_or(FULL_LAYERS_DEFAULT);
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= full)).collect());
    }
    if types.len() != layers {
        return Err(fields.out_of_range("layer_types", format!("one for each of the {layers} layers")));
    }
    let of_type =
        |&kind: &&str| match kind {
            "full_attention" => Ok(None),
            "sliding_attention" if window.is_some() => Ok(window),
            "sliding_attention" => Err(fields.missing("sliding_window")),
            _ => Err(fields
                .unsupported("layer_types", "layers are full_attention or sliding_attention".to_owned())),
        };
    types.iter().map(of_type).collect()
}
