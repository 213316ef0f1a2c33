//! Synthetic models: checkpoints of any shape with seeded random weights, for benches and tests. They answer nonsense at
//! the true speed.

mod config;
mod layout;
mod metadata;
mod stored;
mod vocabulary;
mod weights;

use crate::checkpoint::DType;
use crate::family::{self, ConfigError};
use crate::kit::Kit;
use crate::spec::ModelSpec;
use stored::Piece;

pub use vocabulary::VOCABULARY_MIN;
pub use weights::TensorChunks;

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
    /// F, of a dense feed-forward and of each expert.
    pub feed_forward: usize,
    /// X; eight where absent, in families that are all experts.
    pub experts: Option<usize>,
    /// How many of them a token has; two where absent.
    pub experts_per_token: Option<usize>,
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
            experts: None,
            experts_per_token: None,
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
    /// Experts for a family that has none.
    #[error("models of family {family:?} have no experts; {with} have")]
    NoExperts {
        /// As asked for.
        family: String,
        /// Those that have.
        with: String,
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
        if request.experts.is_some() && !config::has_experts(&request.family) {
            let with: Vec<_> = family::names().into_iter().filter(|name| config::has_experts(name)).collect();
            return Err(SynthError::NoExperts { family: request.family.clone(), with: with.join(", ") });
        }
        let config = config::text(request, architecture, model_type);
        let spec = family::spec_from_config(config.as_bytes(), None).map_err(SynthError::Sizes)?;
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
            pooling: None,
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

#[cfg(test)]
mod tests;
