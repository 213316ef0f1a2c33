//! Llama 2 and 3 (`LlamaForCausalLM`): grouped attention, rope, gated SiLU feed-forward.
//!
//! Source: `models/llama` of transformers; Llama 3's rope scaling from its `modeling_rope_utils.py`.

use super::decoder::{SizeDefaults, Sizes, decoder, gated, norm, plain_layer, stop_default};
use super::{ConfigError, Family, Fields, rope};
use crate::spec::{AttentionSpec, FeedForwardSpec, ModelSpec};

pub(super) const FAMILY: Family =
    Family { name: "llama", architectures: &["LlamaForCausalLM"], model_types: &["llama"], read };

/// What transformers takes where `eos_token_id` is absent (null means none).
const STOP_TOKEN_DEFAULT: u32 = 2;

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, &SizeDefaults { kv_heads_free: true, ..SizeDefaults::default() })?;
    let rope = rope::rope(fields, (sizes.head_dim, sizes.context), &rope::DEFAULTS)?;
    let bias = fields.flag("attention_bias")?;
    let (norm, gated) = (norm(fields)?, gated(fields, sizes.feed_forward)?);
    let mut spec = decoder(fields, FAMILY.name, &sizes, |_| {
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        let attention = AttentionSpec { qkv_bias: bias, output_bias: bias, ..plain };
        Ok(plain_layer(norm, attention, FeedForwardSpec::Gated(gated)))
    })?;
    stop_default(fields, &mut spec, STOP_TOKEN_DEFAULT);
    Ok(spec)
}
