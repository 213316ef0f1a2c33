//! Tiny decoders with random weights, as specs and tensors in memory.

use std::collections::HashMap;

use base::Rng;
use half::{bf16, f16};
use model::checkpoint::{CheckpointError, DType, TensorSource, TensorView, expected_tensors};
use model::spec::{
    Activation, AttentionSpec, FeedForwardSpec, GatedSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec,
    RopeSpec, TensorRole,
};

/// What a test varies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) width: usize,
    pub(crate) vocabulary: usize,
    pub(crate) tied: bool,
    pub(crate) bias: bool,
    pub(crate) qk_norm: bool,
    pub(crate) window: Option<usize>,
    pub(crate) activation: Activation,
}

/// Grouped heads, plain norms: the Llama way.
pub(crate) const LLAMA: Shape = Shape {
    hidden: 48,
    layers: 3,
    heads: 6,
    kv_heads: 2,
    head_dim: 8,
    width: 72,
    vocabulary: 101,
    tied: false,
    bias: false,
    qk_norm: false,
    window: None,
    activation: Activation::Silu,
};

/// Norms of heads, and heads that are wider than hidden / heads: the Qwen 3 way, with biases and a window on top.
pub(crate) const QWEN: Shape = Shape {
    hidden: 40,
    layers: 2,
    heads: 4,
    kv_heads: 4,
    head_dim: 20,
    width: 65,
    vocabulary: 77,
    tied: true,
    bias: true,
    qk_norm: true,
    window: Some(21),
    activation: Activation::GeluTanh,
};

pub(crate) fn spec(shape: &Shape) -> ModelSpec {
    let norm = NormSpec { epsilon: 1e-5, weight_offset: if shape.bias { 1.0 } else { 0.0 } };
    let layer = |at: usize| {
        // Two kinds of layers, two ropes.
        let rope = RopeSpec::plain(shape.head_dim, if at == 1 { 500.0 } else { 10_000.0 });
        let attention = AttentionSpec {
            qkv_bias: shape.bias,
            output_bias: shape.bias,
            qk_norm: shape.qk_norm.then_some(norm),
            window: if at == 0 { shape.window } else { None },
            ..AttentionSpec::plain(shape.heads, shape.kv_heads, shape.head_dim, rope)
        };
        let feed_forward = GatedSpec { width: shape.width, activation: shape.activation, bias: false };
        LayerSpec::plain(norm, MixerSpec::Attention(attention), FeedForwardSpec::Gated(feed_forward))
    };
    ModelSpec {
        family: "tiny",
        hidden: shape.hidden,
        vocabulary: shape.vocabulary,
        context: 256,
        embedding_scale: 1.0,
        tied_head: shape.tied,
        layers: (0..shape.layers).map(layer).collect(),
        layer_inputs: None,
        final_norm: norm,
        logit_soft_cap: None,
        pooling: None,
        stop_tokens: vec![0],
        ignored_tensors: &[],
    }
}

pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
    /// What the bytes stand for.
    pub(crate) values: Vec<f32>,
}

/// Random tensors for a spec.
pub(crate) struct Tensors(pub(crate) HashMap<TensorRole, Stored>);

impl Tensors {
    pub(crate) fn random(spec: &ModelSpec, dtype: DType, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let stored = expected_tensors(spec).into_iter().map(|(role, name, shape)| {
            // Of a size that keeps activations near one from layer to layer.
            let scale = if shape.len() == 2 { 1.5 / (shape[1] as f32).sqrt() } else { 0.5 };
            let count = shape.iter().product();
            let mut bytes = Vec::new();
            let values = (0..count).map(|_| {
                let x = rng.next_normal() * scale;
                match dtype {
                    DType::F32 => bytes.extend(x.to_le_bytes()),
                    DType::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                    _ => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                }
                match dtype {
                    DType::F32 => x,
                    DType::F16 => f16::from_f32(x).to_f32(),
                    _ => bf16::from_f32(x).to_f32(),
                }
            });
            let values = values.collect();
            (role, Stored { name, dtype, shape, bytes, values })
        });
        Self(stored.collect())
    }

    pub(crate) fn values(&self, role: TensorRole) -> &[f32] {
        &self.0[&role].values
    }
}

impl TensorSource for Tensors {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        let stored = &self.0[&role];
        let Stored { name, dtype, shape, bytes, .. } = stored;
        Ok(TensorView::new(name, *dtype, shape, bytes))
    }
}
