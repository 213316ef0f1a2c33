//! Synthetic models: checkpoints of any shape with seeded random weights, for benches and tests. They answer nonsense at
//! the true speed.

mod stored;
mod vocabulary;
mod weights;

use std::fmt::Write;

use crate::checkpoint::DType;
use crate::family::{self, ConfigError};
use crate::gguf::gguf_architecture;
use crate::kit::Kit;
use crate::spec::ModelSpec;
use stored::Piece;

pub use vocabulary::VOCABULARY_MIN;
pub use weights::TensorChunks;

/// The base of rope's frequencies.
const ROPE_THETA: f32 = 500_000.0;

/// What a synthetic model is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthFormat {
    /// A folder in the Hugging Face layout, with floats.
    Safetensors,
    /// One GGUF file.
    Gguf,
    /// A folder in the Hugging Face layout, with MLX's codes.
    Mlx,
}

impl SynthFormat {
    /// As people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "gguf",
            Self::Mlx => "mlx",
        }
    }

    /// What the file of weights is called.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Gguf => "model.gguf",
            _ => "model.safetensors",
        }
    }
}

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
    /// What is written.
    pub format: SynthFormat,
    /// How matrices are stored.
    pub dtype: DType,
    /// Whether some matrices get more bits than `dtype`, as in GGUF files named `_K_M`.
    pub mixed: bool,
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
            format: SynthFormat::Safetensors,
            dtype: DType::BF16,
            mixed: false,
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
    /// A type that the format does not have.
    #[error("{format} does not store weights as {dtype}")]
    Format {
        /// As asked for.
        dtype: DType,
        /// As asked for.
        format: &'static str,
    },
    /// A family that is not written as GGUF.
    #[error("synthetic models of family {family:?} are not written as gguf; llama, qwen2 and qwen3 are")]
    NoGguf {
        /// As asked for.
        family: String,
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
    pieces: Vec<Piece>,
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
        if request.format == SynthFormat::Gguf && gguf_architecture(&request.family).is_none() {
            return Err(SynthError::NoGguf { family: request.family.clone() });
        }
        let pieces = stored::pieces(request, &spec)?;
        Ok(Self { request: request.clone(), spec, config, pieces })
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

    /// How many tensors are written.
    pub fn tensors(&self) -> usize {
        self.pieces.len()
    }

    /// What the file of weights begins with, and how long it will be: after it come the chunks of every tensor, in order.
    pub fn header(&self) -> (Vec<u8>, u64) {
        stored::header(&self.request, &self.spec, &self.pieces)
    }

    /// The bytes of the `index`-th tensor, in chunks of about a MiB. Tensors may be made in any order, or side by side.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub fn chunks(&self, index: usize) -> TensorChunks {
        let piece = &self.pieces[index];
        weights::chunks(&piece.fill, piece.padding, self.request.seed, index as u64)
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
    field("rope_theta", &format_args!("{ROPE_THETA:.1}"));
    field("hidden_act", &"\"silu\"");
    field("tie_word_embeddings", &request.tied);
    field("eos_token_id", &format_args!("[{}, {}]", vocabulary::END_OF_TEXT, vocabulary::END_OF_TURN));
    field("dtype", &format_args!("\"{dtype}\""));
    if let Some(quantization) = stored::quantization(request) {
        field("quantization", &quantization);
    }
    text.push_str("\n}\n");
    text
}

#[cfg(test)]
mod tests;
