//! Synthetic models: checkpoints of any shape with seeded random weights, for benches and tests. They answer nonsense at
//! the true speed.

mod vocabulary;
mod weights;

use std::fmt::Write;

use crate::checkpoint::{DType, expected_tensors, safetensors_header};
use crate::family::{self, ConfigError};
use crate::kit::Kit;
use crate::spec::{ModelSpec, TensorRole};

pub use vocabulary::VOCABULARY_MIN;
pub use weights::TensorChunks;

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthRequest {
    /// A name of [`family::names`].
    pub family: String,
    /// E.
    pub hidden: usize,
    /// How many.
    pub layers: usize,
    /// H.
    pub heads: usize,
    /// K.
    pub kv_heads: usize,
    /// D; hidden size / heads where absent.
    pub head_dim: Option<usize>,
    /// F.
    pub feed_forward: usize,
    /// V, at least [`VOCABULARY_MIN`].
    pub vocabulary: usize,
    /// The longest context, in tokens.
    pub context: usize,
    /// How weights are stored.
    pub dtype: DType,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The whole model follows from it.
    pub seed: u64,
}

impl Default for SynthRequest {
    /// A small Llama that is made in a moment.
    fn default() -> Self {
        Self {
            family: "llama".to_owned(),
            hidden: 256,
            layers: 4,
            heads: 8,
            kv_heads: 4,
            head_dim: None,
            feed_forward: 704,
            vocabulary: 1024,
            context: 4096,
            dtype: DType::BF16,
            tied: false,
            seed: 0,
        }
    }
}

/// Why a synthetic model cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// No such family.
    #[error("family {found:?} is unknown; this build knows {known}")]
    UnknownFamily {
        /// As asked for.
        found: String,
        /// Those that are known.
        known: String,
    },
    /// Not even every byte has a token.
    #[error("a vocabulary of {found} is too small: 256 bytes and three marks need {VOCABULARY_MIN}")]
    VocabularyTooSmall {
        /// As asked for.
        found: usize,
    },
    /// Sizes that make no model.
    #[error("these sizes make no model")]
    Sizes(#[source] ConfigError),
}

/// A model that is made as it is written: nothing of its weights is held.
#[derive(Debug)]
pub struct Synth {
    request: SynthRequest,
    spec: ModelSpec,
    config: String,
    roles: Vec<TensorRole>,
    tensors: Vec<(String, DType, Vec<usize>)>,
}

impl Synth {
    /// Checks `request`.
    ///
    /// # Errors
    /// An unknown family, a vocabulary below [`VOCABULARY_MIN`], or sizes that the family refuses.
    pub fn new(request: &SynthRequest) -> Result<Self, SynthError> {
        let Some((architecture, model_type)) = family::identity(&request.family) else {
            let known = family::names().join(", ");
            return Err(SynthError::UnknownFamily { found: request.family.clone(), known });
        };
        if request.vocabulary < VOCABULARY_MIN {
            return Err(SynthError::VocabularyTooSmall { found: request.vocabulary });
        }
        let config = config(request, architecture, model_type);
        let spec = family::spec_from_config(config.as_bytes(), None).map_err(SynthError::Sizes)?;
        let expected = expected_tensors(&spec);
        let roles = expected.iter().map(|(role, ..)| *role).collect();
        let tensors = expected.into_iter().map(|(_, name, shape)| (name, request.dtype, shape)).collect();
        Ok(Self { request: request.clone(), spec, config, roles, tensors })
    }

    /// What it computes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Everything but the weights.
    pub fn kit(&self) -> Kit {
        Kit {
            config: self.config.clone().into_bytes(),
            generation_config: None,
            tokenizer: vocabulary::tokenizer_json(self.request.vocabulary).into_bytes(),
            tokenizer_config: Some(vocabulary::tokenizer_config_json().into_bytes()),
            chat_template: None,
        }
    }

    /// The tensors in the order in which they are written: name, type, shape.
    pub fn tensors(&self) -> &[(String, DType, Vec<usize>)] {
        &self.tensors
    }

    /// What `model.safetensors` begins with, and how long it will be: after it come the chunks of every tensor, in order.
    pub fn header(&self) -> (Vec<u8>, u64) {
        safetensors_header(&self.tensors)
    }

    /// The bytes of the `index`-th of [`Synth::tensors`], in chunks of at most a MiB. Tensors may be made in any
    /// order, or side by side.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub fn chunks(&self, index: usize) -> TensorChunks {
        weights::chunks(&self.spec, self.roles[index], &self.tensors[index], self.request.seed, index as u64)
    }
}

fn config(request: &SynthRequest, architecture: &str, model_type: &str) -> String {
    let dtype = match request.dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    };
    let mut text =
        format!("{{\n  \"architectures\": [\"{architecture}\"],\n  \"model_type\": \"{model_type}\"");
    let mut field = |name: &str, value: &dyn std::fmt::Display| {
        let _ = write!(text, ",\n  \"{name}\": {value}");
    };
    field("hidden_size", &request.hidden);
    field("num_hidden_layers", &request.layers);
    field("num_attention_heads", &request.heads);
    field("num_key_value_heads", &request.kv_heads);
    match request.head_dim {
        Some(head_dim) => field("head_dim", &head_dim),
        None if request.heads > 0 && request.hidden.is_multiple_of(request.heads) => {
            field("head_dim", &(request.hidden / request.heads));
        }
        // Left to the family, which knows what is wrong with it.
        None => {}
    }
    field("intermediate_size", &request.feed_forward);
    field("vocab_size", &request.vocabulary);
    field("max_position_embeddings", &request.context);
    field("rms_norm_eps", &"1e-6");
    field("rope_theta", &"500000.0");
    field("hidden_act", &"\"silu\"");
    field("tie_word_embeddings", &request.tied);
    field("eos_token_id", &format_args!("[{}, {}]", vocabulary::END_OF_TEXT, vocabulary::END_OF_TURN));
    field("dtype", &format_args!("\"{dtype}\""));
    text.push_str("\n}\n");
    text
}

#[cfg(test)]
mod tests;
