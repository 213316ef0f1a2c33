//! How the Hugging Face layout spells each tensor, and which tensors of which shapes a model needs.

use crate::spec::{
    AttentionSpec, DeltaNetSpec, ExpertsSpec, FeedForwardSpec, GatedSpec, KvSource, LayerSpec, LayerTensor,
    MixerSpec, ModelSpec, TensorRole,
};

/// The name of the tensor for `role`, as most families spell it.
pub fn tensor_name(role: TensorRole) -> String {
    match role {
        TensorRole::Embedding => "model.embed_tokens.weight".to_owned(),
        TensorRole::LayerInputEmbedding => "model.embed_tokens_per_layer.weight".to_owned(),
        TensorRole::LayerInputModelProjection => "model.per_layer_model_projection.weight".to_owned(),
        TensorRole::LayerInputModelNorm => "model.per_layer_projection_norm.weight".to_owned(),
        TensorRole::FinalNorm => "model.norm.weight".to_owned(),
        TensorRole::Head => "lm_head.weight".to_owned(),
        TensorRole::Layer(layer, tensor) => format!("model.layers.{layer}.{}", layer_tensor_name(tensor)),
    }
}

/// What may stand before every name but the head's, where a decoder was saved alone, or in a model that also sees.
const PREFIXES: [&str; 5] =
    ["model.", "", "model.language_model.", "language_model.model.", "language_model."];

/// Which of [`PREFIXES`] a checkpoint has, by the final norm.
pub(super) fn prefix(contains: impl Fn(&str) -> bool) -> &'static str {
    PREFIXES.into_iter().find(|prefix| contains(&format!("{prefix}norm.weight"))).unwrap_or(PREFIXES[0])
}

/// The name that most families give the tensor called `name` in a checkpoint with `prefix`.
pub(super) fn usual(name: &str, prefix: &str) -> String {
    let head = name.strip_prefix("language_model.").unwrap_or(name);
    if head.starts_with("lm_head.") {
        return head.to_owned();
    }
    let foreign = ["mtp.", "vision", "audio", "multi_modal"].iter().any(|other| name.starts_with(other));
    match name.strip_prefix(prefix) {
        Some(rest) if !foreign => format!("{}{rest}", PREFIXES[0]),
        _ => name.to_owned(),
    }
}

fn layer_tensor_name(tensor: LayerTensor) -> String {
    let of_expert = |number: u16, rest: &str| format!("mlp.experts.{number}.{rest}");
    let name = match tensor {
        LayerTensor::MixerNorm => "input_layernorm.weight",
        LayerTensor::MixerPostNorm => "post_attention_layernorm.weight",
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
        LayerTensor::Sinks => "self_attn.sinks",
        LayerTensor::DeltaProjection => "linear_attn.in_proj_qkv.weight",
        LayerTensor::DeltaGate => "linear_attn.in_proj_z.weight",
        LayerTensor::DeltaBeta => "linear_attn.in_proj_b.weight",
        LayerTensor::DeltaTime => "linear_attn.in_proj_a.weight",
        LayerTensor::DeltaTimeBias => "linear_attn.dt_bias",
        LayerTensor::DeltaLogA => "linear_attn.A_log",
        LayerTensor::DeltaConvolution => "linear_attn.conv1d.weight",
        LayerTensor::DeltaNorm => "linear_attn.norm.weight",
        LayerTensor::DeltaOutput => "linear_attn.out_proj.weight",
        LayerTensor::FeedForwardNorm => "post_attention_layernorm.weight",
        LayerTensor::FeedForwardPostNorm => "post_feedforward_layernorm.weight",
        LayerTensor::Gate => "mlp.gate_proj.weight",
        LayerTensor::GateBias => "mlp.gate_proj.bias",
        LayerTensor::Up => "mlp.up_proj.weight",
        LayerTensor::UpBias => "mlp.up_proj.bias",
        LayerTensor::Down => "mlp.down_proj.weight",
        LayerTensor::DownBias => "mlp.down_proj.bias",
        LayerTensor::Router => "mlp.gate.weight",
        LayerTensor::RouterBias => "mlp.gate.bias",
        LayerTensor::RouterNorm => "router.scale",
        LayerTensor::RouterExpertScale => "router.per_expert_scale",
        LayerTensor::ExpertGate(number) => return of_expert(number, "gate_proj.weight"),
        LayerTensor::ExpertGateBias(number) => return of_expert(number, "gate_proj.bias"),
        LayerTensor::ExpertUp(number) => return of_expert(number, "up_proj.weight"),
        LayerTensor::ExpertUpBias(number) => return of_expert(number, "up_proj.bias"),
        LayerTensor::ExpertDown(number) => return of_expert(number, "down_proj.weight"),
        LayerTensor::ExpertDownBias(number) => return of_expert(number, "down_proj.bias"),
        LayerTensor::SharedGate => "mlp.shared_expert.gate_proj.weight",
        LayerTensor::SharedUp => "mlp.shared_expert.up_proj.weight",
        LayerTensor::SharedDown => "mlp.shared_expert.down_proj.weight",
        LayerTensor::SharedOutputGate => "mlp.shared_expert_gate.weight",
        LayerTensor::DensePostNorm => "post_feedforward_layernorm_1.weight",
        LayerTensor::ExpertsNorm => "pre_feedforward_layernorm_2.weight",
        LayerTensor::ExpertsPostNorm => "post_feedforward_layernorm_2.weight",
        LayerTensor::LayerInputGate => "per_layer_input_gate.weight",
        LayerTensor::LayerInputProjection => "per_layer_projection.weight",
        LayerTensor::LayerInputNorm => "post_per_layer_input_norm.weight",
        LayerTensor::OutputScale => "layer_scalar",
    };
    name.to_owned()
}

/// The name of the tensor for `role` in a model of this spec: where there is a norm behind the mixer, that one has the name
/// that elsewhere is the next one's.
fn name_in(spec: &ModelSpec, role: TensorRole) -> String {
    match role {
        TensorRole::Layer(layer, LayerTensor::FeedForwardNorm)
            if spec.layers[layer].mixer_post_norm.is_some() =>
        {
            format!("model.layers.{layer}.pre_feedforward_layernorm.weight")
        }
        _ => tensor_name(role),
    }
}

/// Every tensor that `spec` needs: its role, its name in the Hugging Face layout, its shape. Embedding first, then
/// the layers in order, then the final norm and the head.
pub fn expected_tensors(spec: &ModelSpec) -> Vec<(TensorRole, String, Vec<usize>)> {
    let mut tensors = vec![(TensorRole::Embedding, vec![spec.vocabulary, spec.hidden])];
    if let Some(inputs) = &spec.layer_inputs {
        let width = spec.layers.len() * inputs.width;
        tensors.push((TensorRole::LayerInputEmbedding, vec![inputs.vocabulary, width]));
        tensors.push((TensorRole::LayerInputModelProjection, vec![width, spec.hidden]));
        tensors.push((TensorRole::LayerInputModelNorm, vec![inputs.width]));
    }
    for (number, layer) in spec.layers.iter().enumerate() {
        let of_layer = layer_shapes(spec, layer);
        tensors
            .extend(of_layer.into_iter().map(|(tensor, shape)| (TensorRole::Layer(number, tensor), shape)));
    }
    tensors.push((TensorRole::FinalNorm, vec![spec.hidden]));
    if !spec.tied_head {
        tensors.push((TensorRole::Head, vec![spec.vocabulary, spec.hidden]));
    }
    tensors.into_iter().map(|(role, shape)| (role, name_in(spec, role), shape)).collect()
}

type Shapes = Vec<(LayerTensor, Vec<usize>)>;

fn layer_shapes(spec: &ModelSpec, layer: &LayerSpec) -> Shapes {
    let hidden = spec.hidden;
    let mut shapes = vec![(LayerTensor::MixerNorm, vec![hidden])];
    match &layer.mixer {
        MixerSpec::Attention(attention) => attention_shapes(hidden, attention, &mut shapes),
        MixerSpec::DeltaNet(delta) => delta_shapes(hidden, delta, &mut shapes),
    }
    if layer.mixer_post_norm.is_some() {
        shapes.push((LayerTensor::MixerPostNorm, vec![hidden]));
    }
    shapes.push((LayerTensor::FeedForwardNorm, vec![hidden]));
    match &layer.feed_forward {
        FeedForwardSpec::Gated(gated) => gated_shapes(hidden, gated, &mut shapes),
        FeedForwardSpec::Experts(experts) => expert_shapes(hidden, experts, &mut shapes),
        FeedForwardSpec::DenseAndExperts(both) => {
            gated_shapes(hidden, &both.dense, &mut shapes);
            expert_shapes(hidden, &both.experts, &mut shapes);
            let norms = [LayerTensor::DensePostNorm, LayerTensor::ExpertsNorm, LayerTensor::ExpertsPostNorm];
            shapes.extend(norms.map(|norm| (norm, vec![hidden])));
        }
    }
    if layer.feed_forward_post_norm.is_some() {
        shapes.push((LayerTensor::FeedForwardPostNorm, vec![hidden]));
    }
    if let Some(inputs) = &spec.layer_inputs {
        shapes.push((LayerTensor::LayerInputGate, vec![inputs.width, hidden]));
        shapes.push((LayerTensor::LayerInputProjection, vec![hidden, inputs.width]));
        shapes.push((LayerTensor::LayerInputNorm, vec![hidden]));
    }
    if layer.output_scale {
        shapes.push((LayerTensor::OutputScale, vec![1]));
    }
    shapes
}

fn attention_shapes(hidden: usize, attention: &AttentionSpec, shapes: &mut Shapes) {
    let mixed = attention.heads * attention.head_dim;
    let queries = if attention.output_gate { 2 * mixed } else { mixed };
    let keys = attention.kv_heads * attention.head_dim;
    let own_keys = !matches!(attention.kv, KvSource::Layer(_));
    let own_values = attention.kv == KvSource::Own;
    shapes.push((LayerTensor::Query, vec![queries, hidden]));
    if own_keys {
        shapes.push((LayerTensor::Key, vec![keys, hidden]));
    }
    if own_values {
        shapes.push((LayerTensor::Value, vec![keys, hidden]));
    }
    shapes.push((LayerTensor::Output, vec![hidden, mixed]));
    if attention.qkv_bias {
        shapes.push((LayerTensor::QueryBias, vec![queries]));
        if own_keys {
            shapes.push((LayerTensor::KeyBias, vec![keys]));
        }
        if own_values {
            shapes.push((LayerTensor::ValueBias, vec![keys]));
        }
    }
    if attention.output_bias {
        shapes.push((LayerTensor::OutputBias, vec![hidden]));
    }
    if attention.qk_norm.is_some() {
        shapes.push((LayerTensor::QueryNorm, vec![attention.head_dim]));
        if own_keys {
            shapes.push((LayerTensor::KeyNorm, vec![attention.head_dim]));
        }
    }
    if attention.sinks {
        shapes.push((LayerTensor::Sinks, vec![attention.heads]));
    }
}

fn delta_shapes(hidden: usize, delta: &DeltaNetSpec, shapes: &mut Shapes) {
    let (heads, values, channels) =
        (delta.value_heads, delta.value_heads * delta.value_dim, delta.channels());
    shapes.extend([
        (LayerTensor::DeltaProjection, vec![channels, hidden]),
        (LayerTensor::DeltaGate, vec![values, hidden]),
        (LayerTensor::DeltaBeta, vec![heads, hidden]),
        (LayerTensor::DeltaTime, vec![heads, hidden]),
        (LayerTensor::DeltaTimeBias, vec![heads]),
        (LayerTensor::DeltaLogA, vec![heads]),
        (LayerTensor::DeltaConvolution, vec![channels, 1, delta.conv_width]),
        (LayerTensor::DeltaNorm, vec![delta.value_dim]),
        (LayerTensor::DeltaOutput, vec![hidden, values]),
    ]);
}

fn gated_shapes(hidden: usize, gated: &GatedSpec, shapes: &mut Shapes) {
    shapes.push((LayerTensor::Gate, vec![gated.width, hidden]));
    shapes.push((LayerTensor::Up, vec![gated.width, hidden]));
    shapes.push((LayerTensor::Down, vec![hidden, gated.width]));
    if gated.bias {
        shapes.push((LayerTensor::GateBias, vec![gated.width]));
        shapes.push((LayerTensor::UpBias, vec![gated.width]));
        shapes.push((LayerTensor::DownBias, vec![hidden]));
    }
}

fn expert_shapes(hidden: usize, experts: &ExpertsSpec, shapes: &mut Shapes) {
    shapes.push((LayerTensor::Router, vec![experts.experts, hidden]));
    if experts.router.bias {
        shapes.push((LayerTensor::RouterBias, vec![experts.experts]));
    }
    if experts.router.norm.is_some() {
        shapes.push((LayerTensor::RouterNorm, vec![hidden]));
    }
    if experts.router.expert_scale {
        shapes.push((LayerTensor::RouterExpertScale, vec![experts.experts]));
    }
    let width = experts.expert.width;
    for number in 0..experts.experts {
        let number = u16::try_from(number).expect("no spec has more experts than sixteen bits count");
        shapes.push((LayerTensor::ExpertGate(number), vec![width, hidden]));
        shapes.push((LayerTensor::ExpertUp(number), vec![width, hidden]));
        shapes.push((LayerTensor::ExpertDown(number), vec![hidden, width]));
        if experts.expert.bias {
            shapes.push((LayerTensor::ExpertGateBias(number), vec![width]));
            shapes.push((LayerTensor::ExpertUpBias(number), vec![width]));
            shapes.push((LayerTensor::ExpertDownBias(number), vec![hidden]));
        }
    }
    if let Some(shared) = &experts.shared {
        shapes.push((LayerTensor::SharedGate, vec![shared.gated.width, hidden]));
        shapes.push((LayerTensor::SharedUp, vec![shared.gated.width, hidden]));
        shapes.push((LayerTensor::SharedDown, vec![hidden, shared.gated.width]));
        if shared.output_gate {
            shapes.push((LayerTensor::SharedOutputGate, vec![1, hidden]));
        }
    }
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
    name.ends_with(".rotary_emb.inv_freq")
        || (spec.tied_head && name == "lm_head.weight")
        || spec.ignored_tensors.iter().any(|prefix| name.starts_with(prefix))
        || is_of_shared_keys(name, spec)
}

/// Whether it makes keys or values in a layer that reads another's: exporters keep them, and nobody uses them.
fn is_of_shared_keys(name: &str, spec: &ModelSpec) -> bool {
    let Some((number, tensor)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    let layer = number.parse().ok().and_then(|number: usize| spec.layers.get(number));
    let shares = layer.is_some_and(|layer| match &layer.mixer {
        MixerSpec::Attention(attention) => matches!(attention.kv, KvSource::Layer(_)),
        MixerSpec::DeltaNet(_) => false,
    });
    shares && ["self_attn.k_", "self_attn.v_"].iter().any(|prefix| tensor.starts_with(prefix))
}
