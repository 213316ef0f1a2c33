//! Where the tensor for a role may be in a safetensors checkpoint: under its usual name, under another family's or
//! exporter's, or as a part of a stack.

use super::names::tensor_name;
use crate::spec::{LayerTensor, TensorRole};

/// A stored tensor, or a part of one.
pub(super) struct Spelling {
    pub(super) name: String,
    pub(super) part: Part,
}

/// Which part of a stored tensor a role is. Numbers are places on the outermost side of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Of(u16),
    /// The first half of its rows.
    FirstHalf(u16),
    SecondHalf(u16),
    /// Every second row from the first.
    Even(u16),
    Odd(u16),
    /// Stored with rows and columns changed.
    Turned(u16),
    TurnedEven(u16),
    TurnedOdd(u16),
}

/// The likeliest first; the first also is what errors call it.
pub(super) fn spellings(role: TensorRole) -> Vec<Spelling> {
    let usual = Spelling { name: tensor_name(role), part: Part::Whole };
    let TensorRole::Layer(layer, tensor) = role else { return vec![usual] };
    let others = others(tensor);
    let mut all: Vec<Spelling> = others
        .iter()
        .map(|&(name, part)| Spelling { name: format!("model.layers.{layer}.{name}"), part })
        .collect();
    // Gemma's norm before the feed-forward has a name of its own; the usual one is another norm's there.
    let at = if tensor == LayerTensor::FeedForwardNorm { all.len() } else { 0 };
    all.insert(at, usual);
    all
}

fn others(tensor: LayerTensor) -> Vec<(&'static str, Part)> {
    use Part::{Even, FirstHalf, Odd, Of, SecondHalf, Turned, TurnedEven, TurnedOdd, Whole};
    match tensor {
        LayerTensor::FeedForwardNorm => vec![("pre_feedforward_layernorm.weight", Whole)],
        LayerTensor::Router => vec![("mlp.router.weight", Whole), ("router.proj.weight", Whole)],
        LayerTensor::RouterBias => vec![("mlp.router.bias", Whole)],
        LayerTensor::ExpertGate(n) => vec![
            ("mlp.switch_mlp.gate_proj.weight", Of(n)),
            ("mlp.experts.gate_proj.weight", Of(n)),
            ("experts.switch_glu.gate_proj.weight", Of(n)),
            ("mlp.experts.gate_up_proj_blocks", Even(n)),
            ("mlp.experts.gate_up_proj", TurnedEven(n)),
            ("mlp.experts.gate_up_proj", FirstHalf(n)),
            ("experts.gate_up_proj", FirstHalf(n)),
        ],
        LayerTensor::ExpertUp(n) => vec![
            ("mlp.switch_mlp.up_proj.weight", Of(n)),
            ("mlp.experts.up_proj.weight", Of(n)),
            ("experts.switch_glu.up_proj.weight", Of(n)),
            ("mlp.experts.gate_up_proj_blocks", Odd(n)),
            ("mlp.experts.gate_up_proj", TurnedOdd(n)),
            ("mlp.experts.gate_up_proj", SecondHalf(n)),
            ("experts.gate_up_proj", SecondHalf(n)),
        ],
        LayerTensor::ExpertDown(n) => vec![
            ("mlp.switch_mlp.down_proj.weight", Of(n)),
            ("mlp.experts.down_proj.weight", Of(n)),
            ("experts.switch_glu.down_proj.weight", Of(n)),
            ("mlp.experts.down_proj_blocks", Of(n)),
            ("mlp.experts.down_proj", Turned(n)),
            ("mlp.experts.down_proj", Of(n)),
            ("experts.down_proj", Of(n)),
        ],
        LayerTensor::ExpertGateBias(n) => {
            vec![("mlp.experts.gate_up_proj_bias", Even(n)), ("mlp.experts.gate_proj.bias", Of(n))]
        }
        LayerTensor::ExpertUpBias(n) => {
            vec![("mlp.experts.gate_up_proj_bias", Odd(n)), ("mlp.experts.up_proj.bias", Of(n))]
        }
        LayerTensor::ExpertDownBias(n) => {
            vec![("mlp.experts.down_proj_bias", Of(n)), ("mlp.experts.down_proj.bias", Of(n))]
        }
        _ => Vec::new(),
    }
}

impl Part {
    /// Whether the part is stored turned: gpt-oss alone stores experts so, and it alone has biases in them.
    pub(super) fn is_turned(self) -> bool {
        matches!(self, Self::Turned(_) | Self::TurnedEven(_) | Self::TurnedOdd(_))
    }
}
