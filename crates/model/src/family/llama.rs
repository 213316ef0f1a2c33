//! Llama 2 and 3 (`LlamaForCausalLM`): grouped attention, rope, gated SiLU feed-forward.
//!
//! Source: `models/llama` of transformers; Llama 3's rope scaling from its `modeling_rope_utils.py`.

use super::decoder::{Sizes, decoder};
use super::{ConfigError, Family, Fields, rope};
use crate::spec::{AttentionSpec, ModelSpec};

pub(super) const FAMILY: Family =
    Family { name: "llama", architecture: "LlamaForCausalLM", model_type: "llama", read };

/// What transformers takes where `eos_token_id` is absent (null means none).
const STOP_TOKEN_DEFAULT: u32 = 2;

fn read(fields: &Fields<'_>) -> Result<ModelSpec, ConfigError> {
    let sizes = Sizes::read(fields, None)?;
    let rope = rope::rope(fields, sizes.head_dim, sizes.context)?;
    let bias = fields.flag("attention_bias")?;
    let mut spec = decoder(fields, FAMILY.name, &sizes, |_| {
        let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head_dim, rope.clone());
        Ok(AttentionSpec { qkv_bias: bias, output_bias: bias, ..plain })
    })?;
    let absent = !fields.has("eos_token_id") && !fields.is_null("eos_token_id");
    if absent && sizes.vocabulary > STOP_TOKEN_DEFAULT as usize {
        spec.stop_tokens = vec![STOP_TOKEN_DEFAULT];
    }
    Ok(spec)
}
