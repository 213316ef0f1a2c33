//! How the Hugging Face layout spells each tensor, and which tensors of which shapes a model needs.

use crate::spec::{FeedForwardSpec, LayerSpec, LayerTensor, MixerSpec, ModelSpec, TensorRole};

/// The name of the tensor for `role`.
pub fn tensor_name(role: TensorRole) -> String {
    match role {
        TensorRole::Embedding => "model.embed_tokens.weight".to_owned(),
        TensorRole::FinalNorm => "model.norm.weight".to_owned(),
        TensorRole::Head => "lm_head.weight".to_owned(),
        TensorRole::Layer(layer, tensor) => format!("model.layers.{layer}.{}", layer_tensor_name(tensor)),
    }
}

/// What stands before every name but the head's.
const PREFIX: &str = "model.";

/// Whether the names are those of a decoder that was saved alone, without [`PREFIX`].
pub(super) fn is_bare(contains: impl Fn(&str) -> bool) -> bool {
    let norm = tensor_name(TensorRole::FinalNorm);
    !contains(&norm) && norm.strip_prefix(PREFIX).is_some_and(contains)
}

/// A name of a decoder that was saved alone, as [`tensor_name`] spells it.
pub(super) fn in_full(name: &str) -> String {
    if name.starts_with("lm_head.") { name.to_owned() } else { format!("{PREFIX}{name}") }
}

fn layer_tensor_name(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::MixerNorm => "input_layernorm.weight",
        LayerTensor::Query => "self_attn.q_proj.weight",
        LayerTensor::QueryBias => "self_attn.q_proj.bias",
        LayerTensor::Key => "self_attn.k_proj.weight",
        LayerTensor::KeyBias => "self_attn.k_proj.bias",
        LayerTensor::Value => "self_attn.v_proj.weight",
        LayerTensor::ValueBias => "self_attn.v_proj.bias",
        LayerTensor::Output => "self_attn.o_proj.weight",
        LayerTensor::OutputBias => "self_attn.o_proj.bias",
        LayerTensor::QueryNorm => "self_attn.q_norm.weight",
        LayerTensor::KeyNorm => "self_attn.k_norm.weight",
        LayerTensor::FeedForwardNorm => "post_attention_layernorm.weight",
        LayerTensor::Gate => "mlp.gate_proj.weight",
        LayerTensor::Up => "mlp.up_proj.weight",
        LayerTensor::Down => "mlp.down_proj.weight",
    }
}

/// Every tensor that `spec` needs: its role, its name in the Hugging Face layout, its shape. Embedding first, then
/// the layers in order, then the final norm and the head.
pub fn expected_tensors(spec: &ModelSpec) -> Vec<(TensorRole, String, Vec<usize>)> {
    let mut tensors = vec![(TensorRole::Embedding, vec![spec.vocabulary, spec.hidden])];
    for (number, layer) in spec.layers.iter().enumerate() {
        let of_layer = layer_shapes(spec.hidden, layer);
        tensors
            .extend(of_layer.into_iter().map(|(tensor, shape)| (TensorRole::Layer(number, tensor), shape)));
    }
    tensors.push((TensorRole::FinalNorm, vec![spec.hidden]));
    if !spec.tied_head {
        tensors.push((TensorRole::Head, vec![spec.vocabulary, spec.hidden]));
    }
    tensors.into_iter().map(|(role, shape)| (role, tensor_name(role), shape)).collect()
}

fn layer_shapes(hidden: usize, layer: &LayerSpec) -> Vec<(LayerTensor, Vec<usize>)> {
    let MixerSpec::Attention(attention) = &layer.mixer;
    let FeedForwardSpec::Gated { width, .. } = layer.feed_forward;
    let queries = attention.heads * attention.head_dim;
    let keys = attention.kv_heads * attention.head_dim;
    let mut shapes = vec![
        (LayerTensor::MixerNorm, vec![hidden]),
        (LayerTensor::Query, vec![queries, hidden]),
        (LayerTensor::Key, vec![keys, hidden]),
        (LayerTensor::Value, vec![keys, hidden]),
        (LayerTensor::Output, vec![hidden, queries]),
    ];
    if attention.qkv_bias {
        shapes.push((LayerTensor::QueryBias, vec![queries]));
        shapes.push((LayerTensor::KeyBias, vec![keys]));
        shapes.push((LayerTensor::ValueBias, vec![keys]));
    }
    if attention.output_bias {
        shapes.push((LayerTensor::OutputBias, vec![hidden]));
    }
    if attention.qk_norm.is_some() {
        shapes.push((LayerTensor::QueryNorm, vec![attention.head_dim]));
        shapes.push((LayerTensor::KeyNorm, vec![attention.head_dim]));
    }
    shapes.push((LayerTensor::FeedForwardNorm, vec![hidden]));
    shapes.push((LayerTensor::Gate, vec![width, hidden]));
    shapes.push((LayerTensor::Up, vec![width, hidden]));
    shapes.push((LayerTensor::Down, vec![hidden, width]));
    shapes
}

/// How many weights `spec` has; the largest number where they cannot be counted.
pub fn parameters(spec: &ModelSpec) -> u64 {
    expected_tensors(spec)
        .iter()
        .map(|(_, _, shape)| shape.iter().fold(1u64, |product, &side| product.saturating_mul(side as u64)))
        .fold(0, u64::saturating_add)
}

/// Tensors that older exporters wrote and that nothing is computed from: rope's frequencies, and a head that is
/// the embedding once more.
pub(super) fn is_ignored(name: &str, spec: &ModelSpec) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (spec.tied_head && name == "lm_head.weight")
}
