//! How GGUF spells each tensor, and which part of it a role is.

use crate::spec::{LayerTensor, TensorRole};

/// A stored tensor, or a part of one.
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) part: Part,
}

/// Which part of a stored tensor a role is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// One of a stack: its place on the outermost side.
    Of(u16),
    /// The first half of one of a stack.
    FirstHalf(u16),
    /// The second half of one of a stack.
    SecondHalf(u16),
}

/// Where the tensor for `role` may be, the likeliest first.
pub(super) fn places(architecture: &str, role: TensorRole) -> Vec<Stored> {
    let whole = |name: &str| vec![Stored { name: name.to_owned(), part: Part::Whole }];
    match role {
        TensorRole::Embedding => whole("token_embd.weight"),
        TensorRole::LayerInputEmbedding => whole("per_layer_token_embd.weight"),
        TensorRole::LayerInputModelProjection => whole("per_layer_model_proj.weight"),
        TensorRole::LayerInputModelNorm => whole("per_layer_proj_norm.weight"),
        TensorRole::FinalNorm => whole("output_norm.weight"),
        TensorRole::Head => whole("output.weight"),
        TensorRole::Layer(layer, tensor) => of_layer(architecture, tensor)
            .into_iter()
            .map(|(name, part)| Stored { name: format!("blk.{layer}.{name}"), part })
            .collect(),
    }
}

/// The name of the tensor that `role` is written in: one of its own, or a stack of all experts'.
pub(crate) fn written(architecture: &str, role: TensorRole) -> Option<String> {
    let mut places = places(architecture, role).into_iter();
    places.find(|stored| matches!(stored.part, Part::Whole | Part::Of(_))).map(|stored| stored.name)
}

fn of_layer(architecture: &str, tensor: LayerTensor) -> Vec<(&'static str, Part)> {
    let name = match tensor {
        LayerTensor::MixerNorm => "attn_norm.weight",
        LayerTensor::MixerPostNorm => "post_attention_norm.weight",
        LayerTensor::Query => "attn_q.weight",
        LayerTensor::QueryBias => "attn_q.bias",
        LayerTensor::Key => "attn_k.weight",
        LayerTensor::KeyBias => "attn_k.bias",
        LayerTensor::Value => "attn_v.weight",
        LayerTensor::ValueBias => "attn_v.bias",
        LayerTensor::Output => "attn_output.weight",
        LayerTensor::OutputBias => "attn_output.bias",
        LayerTensor::QueryNorm => "attn_q_norm.weight",
        LayerTensor::KeyNorm => "attn_k_norm.weight",
        LayerTensor::Sinks => "attn_sinks.weight",
        LayerTensor::DeltaProjection => "attn_qkv.weight",
        LayerTensor::DeltaGate => "attn_gate.weight",
        LayerTensor::DeltaBeta => "ssm_beta.weight",
        LayerTensor::DeltaTime => "ssm_alpha.weight",
        LayerTensor::DeltaTimeBias => "ssm_dt.bias",
        LayerTensor::DeltaLogA => "ssm_a",
        LayerTensor::DeltaConvolution => "ssm_conv1d.weight",
        LayerTensor::DeltaNorm => "ssm_norm.weight",
        LayerTensor::DeltaOutput => "ssm_out.weight",
        // Where a family norms after the mixer, this name is that norm's; elsewhere it is the next one's.
        LayerTensor::FeedForwardNorm => match architecture {
            "qwen35" | "qwen35moe" | "qwen3next" | "gpt-oss" => "post_attention_norm.weight",
            _ => "ffn_norm.weight",
        },
        LayerTensor::FeedForwardPostNorm => "post_ffw_norm.weight",
        LayerTensor::Gate => "ffn_gate.weight",
        LayerTensor::GateBias => "ffn_gate.bias",
        LayerTensor::Up => "ffn_up.weight",
        LayerTensor::UpBias => "ffn_up.bias",
        LayerTensor::Down => "ffn_down.weight",
        LayerTensor::DownBias => "ffn_down.bias",
        LayerTensor::Router => "ffn_gate_inp.weight",
        LayerTensor::RouterBias => "ffn_gate_inp.bias",
        LayerTensor::RouterNorm => "ffn_gate_inp.scale",
        LayerTensor::RouterExpertScale => "ffn_down_exps.scale",
        LayerTensor::SharedGate => "ffn_gate_shexp.weight",
        LayerTensor::SharedUp => "ffn_up_shexp.weight",
        LayerTensor::SharedDown => "ffn_down_shexp.weight",
        LayerTensor::SharedOutputGate => "ffn_gate_inp_shexp.weight",
        LayerTensor::DensePostNorm => "post_ffw_norm_1.weight",
        LayerTensor::ExpertsNorm => "pre_ffw_norm_2.weight",
        LayerTensor::ExpertsPostNorm => "post_ffw_norm_2.weight",
        LayerTensor::LayerInputGate => "inp_gate.weight",
        LayerTensor::LayerInputProjection => "proj.weight",
        LayerTensor::LayerInputNorm => "post_norm.weight",
        LayerTensor::OutputScale => "layer_output_scale.weight",
        LayerTensor::ExpertGate(expert) => {
            return vec![
                ("ffn_gate_exps.weight", Part::Of(expert)),
                ("ffn_gate_up_exps.weight", Part::FirstHalf(expert)),
            ];
        }
        LayerTensor::ExpertUp(expert) => {
            return vec![
                ("ffn_up_exps.weight", Part::Of(expert)),
                ("ffn_gate_up_exps.weight", Part::SecondHalf(expert)),
            ];
        }
        LayerTensor::ExpertDown(expert) => return vec![("ffn_down_exps.weight", Part::Of(expert))],
        LayerTensor::ExpertGateBias(expert) => return vec![("ffn_gate_exps.bias", Part::Of(expert))],
        LayerTensor::ExpertUpBias(expert) => return vec![("ffn_up_exps.bias", Part::Of(expert))],
        LayerTensor::ExpertDownBias(expert) => return vec![("ffn_down_exps.bias", Part::Of(expert))],
    };
    vec![(name, Part::Whole)]
}

/// Tensors that nothing is computed from here: rope's factors are read with the configuration, and layers that only
/// guess ahead are not loaded.
pub(super) fn is_ignored(name: &str, layers: usize, tied_head: bool) -> bool {
    let beyond = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split('.').next())
        .and_then(|number| number.parse::<usize>().ok())
        .is_some_and(|number| number >= layers);
    beyond
        || matches!(name, "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight")
        || name.ends_with(".attn_rot_embd")
        || (name.starts_with("blk.") && name.ends_with(".rope_freqs.weight"))
        || (tied_head && name == "output.weight")
}
