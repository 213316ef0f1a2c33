//! A whole decoder: its weights, and the forward pass over them.

mod forward;
mod load;
mod logits;
mod states;
mod step;

use base::Bytes;
use model::shard::Part;
use model::spec::ModelSpec;

use crate::backend::Backend;
use crate::blocks::{Attention, DeltaNet, FeedForward, LayerInput, LayerInputs, Linear, Norm, Rope};
use crate::cpu::Cpu;

pub use forward::{ForwardError, LogitRows, Output, Scratch, Span};
pub use load::{LoadError, LoadOptions, Weights};
pub use logits::Logits;

/// A decoder with its weights. Cheap to share: a forward pass changes nothing in it.
pub struct Decoder<B: Backend = Cpu> {
    spec: ModelSpec,
    /// Which part of the model it is; its spec is `spec`.
    part: Part,
    backend: B,
    /// Absent where the stage before gives rows.
    embedding: Option<B::Matrix>,
    layers: Vec<Layer<B>>,
    /// Absent where there is no head.
    final_norm: Option<Norm<B>>,
    /// Absent where the head is the embedding, or elsewhere.
    head: Option<Linear<B>>,
    /// The distinct ropes of its layers.
    ropes: Vec<Rope>,
    layer_inputs: Option<LayerInputs<B>>,
}

struct Layer<B: Backend> {
    mixer_norm: Norm<B>,
    mixer: Mixer<B>,
    mixer_post_norm: Option<Norm<B>>,
    feed_forward_norm: Norm<B>,
    feed_forward: FeedForward<B>,
    feed_forward_post_norm: Option<Norm<B>>,
    input: Option<LayerInput<B>>,
    output_scale: Option<f32>,
}

enum Mixer<B: Backend> {
    Attention(Attention<B>),
    DeltaNet(DeltaNet<B>),
}

impl<B: Backend> Decoder<B> {
    /// What it is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Which part of its model it is.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// Memory that its matrices take (vectors are a few kilobytes a layer and not counted).
    pub fn weight_bytes(&self) -> Bytes {
        let mut bytes = Bytes::ZERO;
        if let Some(embedding) = &self.embedding {
            bytes += self.backend.matrix_bytes(embedding);
        }
        for layer in &self.layers {
            let mut linears = match &layer.mixer {
                Mixer::Attention(attention) => attention.linears(),
                Mixer::DeltaNet(delta) => vec![&delta.projection, &delta.output],
            };
            linears.extend(layer.feed_forward.linears());
            linears.extend(layer.input.iter().flat_map(|input| [&input.gate, &input.projection]));
            for linear in linears {
                bytes += self.backend.matrix_bytes(&linear.weight);
            }
        }
        if let Some(inputs) = &self.layer_inputs {
            bytes += self.backend.matrix_bytes(&inputs.embedding);
            bytes += self.backend.matrix_bytes(&inputs.projection.weight);
        }
        if let Some(head) = &self.head {
            bytes += self.backend.matrix_bytes(&head.weight);
        }
        bytes
    }
}

impl<B: Backend> std::fmt::Debug for Decoder<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({}, {})", self.spec.family, self.weight_bytes())
    }
}
