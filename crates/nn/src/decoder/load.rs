//! Weights from a tensor source, checked against the spec and packed for the backend.

mod feed_forward;
mod mixer;

use kernels::{Activations, Isa, Team};
use model::checkpoint::{CheckpointError, DType, TensorSource, TensorView};
use model::quant::dequantise_all;
use model::shard::Part;
use model::spec::{LayerInputsSpec, LayerSpec, LayerTensor, MixerSpec, ModelSpec, NormSpec, TensorRole};

use super::{Decoder, Layer, Mixer};
use crate::backend::{Backend, BackendError};
use crate::blocks::{LayerInput, LayerInputs, Linear, Norm, Rope};
use crate::cpu::Cpu;

/// Where a layer's tensors are.
type Role<'r> = &'r dyn Fn(LayerTensor) -> TensorRole;

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
    /// How activations meet weights that are quantised or bf16.
    pub activations: Activations,
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
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let backend = Cpu::new(isa).with_activations(options.activations);
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
        check(part)?;
        let mut loading =
            Loading { backend: &backend, workers, source, options, spec, ropes: Vec::new(), states: 0 };
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
        let layer_inputs =
            spec.layer_inputs.as_ref().map(|inputs| loading.layer_inputs(inputs)).transpose()?;
        let ropes = loading.ropes;
        let (spec, part) = (spec.clone(), part.clone());
        Ok(Self { spec, part, backend, embedding, layers, final_norm, head, ropes, layer_inputs })
    }
}

/// Which parts of a decoder other than a whole one this build can hold.
fn check(part: &Part) -> Result<(), LoadError> {
    part.spec.check().map_err(|error| LoadError::Spec(error.to_string()))?;
    if part.embedding.is_none() && part.spec.layer_inputs.is_some() {
        return Err(LoadError::Spec(
            "layers that get inputs of their own from the tokens must be where the embedding is".to_owned(),
        ));
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
    /// How many recurrent layers came before.
    states: usize,
}

impl<'a, B: Backend> Loading<'a, B> {
    fn layer(&mut self, at: usize, layer: &LayerSpec) -> Result<Layer<B>, LoadError> {
        let e = self.spec.hidden;
        let role = |tensor| TensorRole::Layer(at, tensor);
        let mixer = match &layer.mixer {
            MixerSpec::Attention(attention) => Mixer::Attention(self.attention(&role, attention)?),
            MixerSpec::DeltaNet(delta) => Mixer::DeltaNet(self.delta_net(&role, delta)?),
        };
        let post_norm = |tensor, norm: &Option<NormSpec>| {
            norm.as_ref().map(|norm| self.norm(role(tensor), e, norm)).transpose()
        };
        let input = self.spec.layer_inputs.as_ref().map(|inputs| self.layer_input(&role, inputs));
        let output_scale = match layer.output_scale {
            true => Some(self.numbers(role(LayerTensor::OutputScale), &[1])?[0]),
            false => None,
        };
        Ok(Layer {
            mixer_norm: self.norm(role(LayerTensor::MixerNorm), e, &layer.mixer_norm)?,
            mixer,
            mixer_post_norm: post_norm(LayerTensor::MixerPostNorm, &layer.mixer_post_norm)?,
            feed_forward_norm: self.norm(role(LayerTensor::FeedForwardNorm), e, &layer.feed_forward_norm)?,
            feed_forward: self.feed_forward(&role, &layer.feed_forward)?,
            feed_forward_post_norm: post_norm(
                LayerTensor::FeedForwardPostNorm,
                &layer.feed_forward_post_norm,
            )?,
            input: input.transpose()?,
            output_scale,
        })
    }

    fn layer_inputs(&self, spec: &LayerInputsSpec) -> Result<LayerInputs<B>, LoadError> {
        let (e, width) = (self.spec.hidden, self.spec.layers.len() * spec.width);
        let numbers = self.numbers(TensorRole::LayerInputModelNorm, &[spec.width])?;
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let weight = numbers.into_iter().map(|x| (x + spec.norm.weight_offset) * half).collect();
        Ok(LayerInputs {
            spec: *spec,
            embedding: self.matrix(&[(TensorRole::LayerInputEmbedding, spec.vocabulary)], width)?,
            projection: self.linear(&[(TensorRole::LayerInputModelProjection, width)], e)?,
            norm: Norm {
                weight: self.vector(weight, "the layer inputs' norm")?,
                epsilon: spec.norm.epsilon * e as f32,
            },
        })
    }

    fn layer_input(&self, role: Role<'_>, spec: &LayerInputsSpec) -> Result<LayerInput<B>, LoadError> {
        let e = self.spec.hidden;
        Ok(LayerInput {
            gate: self.linear(&[(role(LayerTensor::LayerInputGate), spec.width)], e)?,
            projection: self.linear(&[(role(LayerTensor::LayerInputProjection), e)], spec.width)?,
            norm: self.norm(role(LayerTensor::LayerInputNorm), e, &spec.norm)?,
        })
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
        self.stack(&tensors.collect::<Result<Vec<_>, _>>()?)
    }

    /// A layer without bias.
    fn linear(&self, parts: &[(TensorRole, usize)], columns: usize) -> Result<Linear<B>, LoadError> {
        Ok(Linear { weight: self.matrix(parts, columns)?, bias: None })
    }

    /// `tensors`, one below the other.
    fn stack(&self, tensors: &[TensorView<'_>]) -> Result<B::Matrix, LoadError> {
        let first = tensors[0];
        let dtype = match self.options.weights {
            Weights::F32 => DType::F32,
            Weights::Bf16 => DType::BF16,
            // Where one is quantised, all stay as they are stored.
            Weights::Auto => match tensors.iter().find(|tensor| !tensor.dtype.is_float()) {
                Some(quantised) => quantised.dtype,
                None if tensors.iter().all(|tensor| tensor.dtype == first.dtype) => first.dtype,
                None => DType::F32,
            },
        };
        let matrix = self.backend.matrix(self.workers, tensors, dtype);
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
        self.vector(values, name)
    }

    fn vector(&self, values: Vec<f32>, name: &str) -> Result<B::Vector, LoadError> {
        self.backend.vector(values).map_err(|cause| LoadError::Backend { name: name.to_owned(), cause })
    }

    /// A small tensor's values.
    fn numbers(&self, role: TensorRole, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(dequantise_all(&self.tensor(role, shape)?))
    }

    fn norm(&self, role: TensorRole, len: usize, spec: &NormSpec) -> Result<Norm<B>, LoadError> {
        let tensor = self.tensor(role, &[len])?;
        let values = dequantise_all(&tensor).into_iter().map(|x| x + spec.weight_offset).collect();
        Ok(Norm { weight: self.vector(values, tensor.name)?, epsilon: spec.epsilon })
    }
}
