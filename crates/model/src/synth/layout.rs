//! How each format lays out what families have many of: which tensors are written for a role, stacked or one by one.

use super::{SynthFormat, SynthRequest};
use crate::gguf::{gguf_architecture, gguf_name};
use crate::spec::{LayerTensor, ModelSpec, TensorRole};

/// A tensor of the file.
pub(super) struct Written {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// Whether MLX leaves it as floats.
pub(super) fn is_small(role: TensorRole) -> bool {
    let TensorRole::Layer(_, tensor) = role else { return false };
    matches!(
        tensor,
        LayerTensor::ExpertGateBias(_)
            | LayerTensor::ExpertUpBias(_)
            | LayerTensor::ExpertDownBias(_)
            | LayerTensor::DeltaConvolution
            | LayerTensor::Router
            | LayerTensor::SharedOutputGate
    )
}

/// What is written for `role`, called `name` where it is a tensor of its own: nothing where it is in a stack that another
/// role's turn writes.
pub(super) fn written(
    request: &SynthRequest,
    spec: &ModelSpec,
    (role, name, shape): (TensorRole, String, Vec<usize>),
) -> Vec<Written> {
    let part = expert(role);
    let family = request.family.as_str();
    if request.format == SynthFormat::Gguf {
        let architecture = gguf_architecture(family).expect("every family has an architecture in gguf");
        let name = gguf_name(architecture, role).expect("gguf has a tensor for every role");
        let shape = match role {
            // Without the side of one.
            TensorRole::Layer(_, LayerTensor::DeltaConvolution) => vec![shape[0], shape[2]],
            _ => shape,
        };
        return match part {
            None => vec![Written { name, shape }],
            Some((0, _)) => vec![Written { name, shape: stacked(spec, role, shape) }],
            Some(_) => Vec::new(),
        };
    }
    let TensorRole::Layer(layer, tensor) = role else { return vec![Written { name, shape }] };
    let named = |name: &str, shape| vec![Written { name: format!("model.layers.{layer}.{name}"), shape }];
    let Some((number, part)) = part else {
        return match (tensor, family) {
            (LayerTensor::Router, "gpt_oss") => named("mlp.router.weight", shape),
            (LayerTensor::RouterBias, "gpt_oss") => named("mlp.router.bias", shape),
            (LayerTensor::DeltaConvolution, _) if request.format == SynthFormat::Mlx => {
                vec![Written { name, shape: vec![shape[0], shape[2], 1] }]
            }
            (LayerTensor::Router, "gemma4") => named("router.proj.weight", shape),
            _ => vec![Written { name, shape }],
        };
    };
    if request.format == SynthFormat::Safetensors && family == "qwen3_moe" {
        return vec![Written { name, shape }];
    }
    if number > 0 {
        return Vec::new();
    }
    let all = stacked(spec, role, shape);
    if request.format == SynthFormat::Mlx {
        let stem = match family {
            "gpt_oss" => "mlp.experts",
            "gemma4" => "experts.switch_glu",
            _ => "mlp.switch_mlp",
        };
        let kind = if part.bias { "bias" } else { "weight" };
        return named(&format!("{stem}.{}.{kind}", part.projection), all);
    }
    let stem = if family == "gemma4" { "experts" } else { "mlp.experts" };
    let end = if part.bias { "_bias" } else { "" };
    let turned = family == "gpt_oss" && !part.bias;
    match part.projection {
        // Gate and up are one.
        "up_proj" => Vec::new(),
        "gate_proj" => {
            let mut both = all;
            both[1] *= 2;
            named(&format!("{stem}.gate_up_proj{end}"), turn(both, turned))
        }
        _ => named(&format!("{stem}.down_proj{end}"), turn(all, turned)),
    }
}

/// A tensor of one expert.
struct ExpertPart {
    projection: &'static str,
    bias: bool,
}

fn expert(role: TensorRole) -> Option<(u16, ExpertPart)> {
    let TensorRole::Layer(_, tensor) = role else { return None };
    let (number, projection, bias) = match tensor {
        LayerTensor::ExpertGate(number) => (number, "gate_proj", false),
        LayerTensor::ExpertUp(number) => (number, "up_proj", false),
        LayerTensor::ExpertDown(number) => (number, "down_proj", false),
        LayerTensor::ExpertGateBias(number) => (number, "gate_proj", true),
        LayerTensor::ExpertUpBias(number) => (number, "up_proj", true),
        LayerTensor::ExpertDownBias(number) => (number, "down_proj", true),
        _ => return None,
    };
    Some((number, ExpertPart { projection, bias }))
}

/// `shape` with a side of as many as there are experts before it.
fn stacked(spec: &ModelSpec, role: TensorRole, shape: Vec<usize>) -> Vec<usize> {
    let TensorRole::Layer(layer, _) = role else { return shape };
    let experts = spec.layers[layer].feed_forward.experts().map_or(1, |experts| experts.experts);
    [vec![experts], shape].concat()
}

fn turn(shape: Vec<usize>, turned: bool) -> Vec<usize> {
    match *shape {
        [experts, rows, columns] if turned => vec![experts, columns, rows],
        _ => shape,
    }
}
