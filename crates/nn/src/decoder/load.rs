//! Weights from a tensor source, checked against the spec and packed for the backend.

use kernels::{Isa, Team};
use model::checkpoint::{CheckpointError, DType, TensorSource, TensorView};
use model::quant::dequantise_all;
use model::shard::Part;
use model::spec::{
    AttentionSpec, FeedForwardSpec, GatedSpec, KvSource, LayerSpec, LayerTensor, MixerSpec, ModelSpec,
    NormSpec, TensorRole,
};

use super::{Decoder, Layer};
use crate::backend::{Backend, BackendError};
use crate::blocks::{Attention, FeedForward, Linear, Norm, Rope};
use crate::cpu::Cpu;

/// Why a decoder cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The spec describes nothing that can run.
    #[error("the model's configuration cannot run: {0}")]
    Spec(String),
    /// A tensor is not there.
    #[error("a tensor is missing or unreadable")]
    Tensor(#[source] CheckpointError),
    /// A tensor has another shape than the spec says.
    #[error("tensor {name} has shape {found:?} where the configuration needs {expected:?}")]
    Shape {
        /// As the checkpoint spells it.
        name: String,
        /// By the spec.
        expected: Vec<usize>,
        /// In the checkpoint.
        found: Vec<usize>,
    },
    /// A tensor holds something that is no number: every answer would be nonsense.
    #[error(
        "tensor {name} holds values that are infinite or not a number; fetch it again, or repair the model"
    )]
    NotFinite {
        /// As the checkpoint spells it.
        name: String,
    },
    /// The backend could not take a tensor.
    #[error("tensor {name} could not be loaded")]
    Backend {
        /// As the checkpoint spells it (the first of those that are stacked).
        name: String,
        /// Why.
        #[source]
        cause: BackendError,
    },
}

/// How matrices are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Weights {
    /// As the checkpoint stores them: nothing is rounded.
    #[default]
    Auto,
    /// In f32: twice the memory of halves, and the same results bit for bit.
    F32,
    /// In bf16: f32 and f16 checkpoints are rounded to eight bits.
    Bf16,
}

/// How to load.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// How matrices are kept in memory.
    pub weights: Weights,
    /// The instruction set to run with; the fastest of this machine where absent.
    pub isa: Option<Isa>,
}

impl Decoder {
    /// Loads the decoder that `spec` describes from `source` for the CPU. Tensors are copied (repacked): the
    /// source may go afterwards.
    ///
    /// # Errors
    /// The spec cannot run, a tensor is missing or has another shape than the spec says, or there is no memory.
    pub fn load(
        spec: &ModelSpec,
        source: &dyn TensorSource,
        options: &LoadOptions,
        team: &Team,
    ) -> Result<Self, LoadError> {
        Self::load_part(&Part::whole(spec), source, options, team)
    }

    /// Loads a part of a decoder from a source that shows that part of its tensors, for the CPU.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_part(
        part: &Part,
        source: &dyn TensorSource,
        options: &LoadOptions,
        team: &Team,
    ) -> Result<Self, LoadError> {
        let backend = Cpu::new(options.isa.unwrap_or_else(Isa::detect));
        Self::load_with(backend, part, source, options, team)
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads a decoder, or a part of one, from `source` for any backend.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_with(
        backend: B,
        part: &Part,
        source: &dyn TensorSource,
        options: &LoadOptions,
        workers: &B::Workers,
    ) -> Result<Self, LoadError> {
        let spec = &part.spec;
        check(spec)?;
        let mut loading = Loading { backend: &backend, workers, source, options, spec, ropes: Vec::new() };
        let e = spec.hidden;
        let table = |role, rows: usize| loading.matrix(&[(role, rows)], e);
        let embedding = part.embedding.as_ref().map(|rows| table(TensorRole::Embedding, rows.len()));
        let embedding = embedding.transpose()?;
        let head = match (&part.head, spec.tied_head, &embedding) {
            (None, ..) | (_, true, Some(_)) => None,
            (Some(rows), true, None) => Some(table(TensorRole::Embedding, rows.len())?),
            (Some(rows), false, _) => Some(table(TensorRole::Head, rows.len())?),
        };
        let head = head.map(|weight| Linear { weight, bias: None });
        let layers = spec.layers.iter().enumerate();
        let layers = layers.map(|(at, layer)| loading.layer(at, layer)).collect::<Result<_, _>>()?;
        let final_norm = part.head.as_ref().map(|_| loading.norm(TensorRole::FinalNorm, e, &spec.final_norm));
        let final_norm = final_norm.transpose()?;
        let ropes = loading.ropes;
        let (spec, part) = (spec.clone(), part.clone());
        Ok(Self { spec, part, backend, embedding, layers, final_norm, head, ropes })
    }
}

/// A spec may come from a file that anybody wrote: what the loops divide by or index with is checked once, here.
fn check(spec: &ModelSpec) -> Result<(), LoadError> {
    spec.check().map_err(|error| LoadError::Spec(error.to_string()))?;
    let plain = |layer: &LayerSpec| {
        let MixerSpec::Attention(attention) = &layer.mixer else { return false };
        let of_attention = attention.kv == KvSource::Own
            && attention.value_norm.is_none()
            && attention.soft_cap.is_none()
            && !attention.sinks
            && !attention.output_gate;
        of_attention
            && matches!(layer.feed_forward, FeedForwardSpec::Gated(GatedSpec { bias: false, .. }))
            && layer.mixer_post_norm.is_none()
            && layer.feed_forward_post_norm.is_none()
            && !layer.output_scale
    };
    let whole = spec.embedding_scale == 1.0 && spec.logit_soft_cap.is_none() && spec.layer_inputs.is_none();
    if !whole || !spec.layers.iter().all(plain) {
        return Err(LoadError::Spec("it has parts that this build cannot compute yet".to_owned()));
    }
    Ok(())
}

struct Loading<'a, B: Backend> {
    backend: &'a B,
    workers: &'a B::Workers,
    source: &'a dyn TensorSource,
    options: &'a LoadOptions,
    spec: &'a ModelSpec,
    ropes: Vec<Rope>,
}

impl<'a, B: Backend> Loading<'a, B> {
    fn layer(&mut self, at: usize, layer: &LayerSpec) -> Result<Layer<B>, LoadError> {
        let e = self.spec.hidden;
        let role = |tensor| TensorRole::Layer(at, tensor);
        let (MixerSpec::Attention(attention), FeedForwardSpec::Gated(GatedSpec { width, activation, .. })) =
            (&layer.mixer, &layer.feed_forward)
        else {
            unreachable!("checked before anything is loaded")
        };
        let (width, activation) = (*width, *activation);
        let gate_up = self.matrix(&[(role(LayerTensor::Gate), width), (role(LayerTensor::Up), width)], e)?;
        let down = self.matrix(&[(role(LayerTensor::Down), e)], width)?;
        Ok(Layer {
            mixer_norm: self.norm(role(LayerTensor::MixerNorm), e, &layer.mixer_norm)?,
            attention: self.attention(&role, attention)?,
            feed_forward_norm: self.norm(role(LayerTensor::FeedForwardNorm), e, &layer.feed_forward_norm)?,
            feed_forward: FeedForward {
                gate_up: Linear { weight: gate_up, bias: None },
                down: Linear { weight: down, bias: None },
                activation,
            },
        })
    }

    fn attention(
        &mut self,
        role: &dyn Fn(LayerTensor) -> TensorRole,
        spec: &AttentionSpec,
    ) -> Result<Attention<B>, LoadError> {
        use LayerTensor::{
            Key, KeyBias, KeyNorm, Output, OutputBias, Query, QueryBias, QueryNorm, Value, ValueBias,
        };
        let (e, d) = (self.spec.hidden, spec.head_dim);
        let (queries, keys) = (spec.heads * d, spec.kv_heads * d);
        let parts = [(role(Query), queries), (role(Key), keys), (role(Value), keys)];
        let biases = [(role(QueryBias), queries), (role(KeyBias), keys), (role(ValueBias), keys)];
        let projection = Linear {
            weight: self.matrix(&parts, e)?,
            bias: spec.qkv_bias.then(|| self.biases(&biases)).transpose()?,
        };
        let output = Linear {
            weight: self.matrix(&[(role(Output), e)], queries)?,
            bias: spec.output_bias.then(|| self.biases(&[(role(OutputBias), e)])).transpose()?,
        };
        let head_norm = |tensor| {
            let norm = spec.qk_norm.as_ref();
            norm.map(|norm| self.norm(role(tensor), d, norm)).transpose()
        };
        let (query_norm, key_norm) = (head_norm(QueryNorm)?, head_norm(KeyNorm)?);
        let rope = Rope::new(&spec.rope);
        let known = self.ropes.iter().position(|other| *other == rope);
        let rope = known.unwrap_or_else(|| {
            self.ropes.push(rope);
            self.ropes.len() - 1
        });
        Ok(Attention { spec: spec.clone(), projection, output, query_norm, key_norm, rope })
    }

    fn tensor(&self, role: TensorRole, shape: &[usize]) -> Result<TensorView<'a>, LoadError> {
        let tensor = self.source.tensor(role).map_err(LoadError::Tensor)?;
        if tensor.shape != shape {
            return Err(LoadError::Shape {
                name: tensor.name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.to_vec(),
            });
        }
        if !self.backend.finite(self.workers, &tensor) {
            return Err(LoadError::NotFinite { name: tensor.name.to_owned() });
        }
        Ok(tensor)
    }

    /// The tensors of the given roles and rows, one below the other.
    fn matrix(&self, parts: &[(TensorRole, usize)], columns: usize) -> Result<B::Matrix, LoadError> {
        let tensors = parts.iter().map(|&(role, rows)| self.tensor(role, &[rows, columns]));
        let tensors: Vec<_> = tensors.collect::<Result<_, _>>()?;
        let first = tensors[0];
        let dtype = match self.options.weights {
            Weights::F32 => DType::F32,
            Weights::Bf16 => DType::BF16,
            // What the backend does with the quantised ones among them is its own affair.
            Weights::Auto => {
                match tensors.iter().map(|tensor| tensor.dtype).filter(|d| d.is_float()).collect::<Vec<_>>()[..]
                {
                    [] => first.dtype,
                    [one, ref others @ ..] if others.iter().all(|other| *other == one) => one,
                    _ => DType::F32,
                }
            }
        };
        let matrix = self.backend.matrix(self.workers, &tensors, dtype);
        matrix.map_err(|cause| LoadError::Backend { name: first.name.to_owned(), cause })
    }

    fn biases(&self, parts: &[(TensorRole, usize)]) -> Result<B::Vector, LoadError> {
        let mut values = Vec::new();
        let mut name = "";
        for &(role, len) in parts {
            let tensor = self.tensor(role, &[len])?;
            name = tensor.name;
            values.extend(dequantise_all(&tensor));
        }
        self.backend.vector(values).map_err(|cause| LoadError::Backend { name: name.to_owned(), cause })
    }

    fn norm(&self, role: TensorRole, len: usize, spec: &NormSpec) -> Result<Norm<B>, LoadError> {
        let tensor = self.tensor(role, &[len])?;
        let values = dequantise_all(&tensor).into_iter().map(|x| x + spec.weight_offset).collect();
        let weight = self.backend.vector(values);
        let weight = weight.map_err(|cause| LoadError::Backend { name: tensor.name.to_owned(), cause })?;
        Ok(Norm { weight, epsilon: spec.epsilon })
    }
}
