//! A model's files, found and checked, before anything is computed.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base::Bytes;
use model::checkpoint::{
    Checkpoint, CheckpointError, SafetensorsFile, ShardIndex, TensorSource, expected_tensors, parameters,
};
use model::family::{ConfigError, spec_from_config};
use model::kit::{Kit, KitError, OpenKit};
use model::spec::ModelSpec;
use model::tokenizer::Tokenizer;
use nn::KvCache;

use crate::bundled;
use crate::config::KvFormat;
use crate::files::{self, FileBytes};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ModelSource {
    /// The one inside the program.
    Bundled,
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled => f.write_str("the bundled model"),
            Self::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Refuse a model without a tokenizer. Without one there are tokens and logits, but no text.
    pub tokenizer_needed: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { tokenizer_needed: true }
    }
}

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file that must be there cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder without weights.
    #[error("{path} has neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// Which.
        path: PathBuf,
    },
    /// Configuration, tokenizer or chat template.
    #[error("the model in {folder} cannot be used")]
    Kit {
        /// Where it is.
        folder: String,
        /// Why.
        #[source]
        source: Box<KitError>,
    },
    /// Configuration alone.
    #[error("the model in {folder} cannot be used")]
    Config {
        /// Where it is.
        folder: String,
        /// Why.
        #[source]
        source: Box<ConfigError>,
    },
    /// The weights.
    #[error("the weights in {folder} cannot be used")]
    Checkpoint {
        /// Where they are.
        folder: String,
        /// Why: names file and tensor.
        #[source]
        source: Box<CheckpointError>,
    },
}

/// One file of weights.
struct WeightFile {
    name: String,
    bytes: FileBytes,
}

/// A model whose files have been found and checked: every tensor is there, of the right shape and a known type. Its
/// weights are mapped, not read.
pub struct LoadedModel {
    source: ModelSource,
    kit: Kit,
    open: Option<OpenKit>,
    spec: ModelSpec,
    index: Option<Vec<u8>>,
    files: Vec<WeightFile>,
    weight_bytes: Bytes,
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Finds and checks a model's files.
///
/// # Errors
/// The first file, and in weights the first tensor, that is missing, truncated or not what the configuration says.
pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let (kit, index, files) = match source {
        ModelSource::Bundled => bundled::files(),
        ModelSource::Folder(folder) => read_folder(folder, options)?,
    };
    let folder = source.to_string();
    let open = if kit.tokenizer.is_empty() && !options.tokenizer_needed {
        None
    } else {
        Some(
            kit.open()
                .map_err(|source| LoadError::Kit { folder: folder.clone(), source: Box::new(source) })?,
        )
    };
    let spec = match &open {
        Some(open) => open.spec.clone(),
        None => spec_from_config(&kit.config, kit.generation_config.as_deref())
            .map_err(|source| LoadError::Config { folder: folder.clone(), source: Box::new(source) })?,
    };
    let files = files.into_iter().map(|(name, bytes)| WeightFile { name, bytes }).collect();
    let mut model =
        LoadedModel { source: source.clone(), kit, open, spec, index, files, weight_bytes: Bytes::ZERO };
    let check = |model: &LoadedModel| {
        let checkpoint = model.checkpoint()?;
        let tied_head = model.spec.tied_head && !checkpoint.has_own_head();
        checkpoint.verify(&ModelSpec { tied_head, ..model.spec.clone() })?;
        Ok((tied_head, Bytes(checkpoint.tensor_bytes())))
    };
    (model.spec.tied_head, model.weight_bytes) =
        check(&model).map_err(|source| LoadError::Checkpoint { folder, source: Box::new(source) })?;
    Ok(model)
}

impl LoadedModel {
    /// Where it came from.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// Everything but the weights.
    pub fn kit(&self) -> &Kit {
        &self.kit
    }

    /// The kit, read; absent where there is no tokenizer and none was needed.
    pub fn open_kit(&self) -> Option<&OpenKit> {
        self.open.as_ref()
    }

    /// The decoder.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The tokenizer, where there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.open.as_ref().map(|open| &open.tokenizer)
    }

    /// How many weights it has.
    pub fn parameters(&self) -> u64 {
        parameters(&self.spec)
    }

    /// What the weights take on disk.
    pub fn weight_bytes(&self) -> Bytes {
        self.weight_bytes
    }

    /// The number formats that its weights are stored in (`F32`, `F16`, `BF16`), each once.
    pub fn formats(&self) -> Vec<&'static str> {
        let checkpoint = self.checkpoint().expect("it was checked when it was loaded");
        let name = |role| checkpoint.tensor(role).expect("it was checked when it was loaded").dtype.name();
        let names = expected_tensors(&self.spec).into_iter().map(|(role, _, _)| name(role));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Memory that a token takes in an engine's KV cache.
    pub fn kv_bytes_per_token(&self, format: KvFormat) -> Bytes {
        KvCache::bytes_per_token(&self.spec, format.dtype())
    }

    /// What to hash so that two machines know that they hold the same weights: (name, contents) of the index, where there
    /// is one, and of each file of weights, in the order of their names. Reading it reads the whole model.
    pub fn weight_files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let index = self.index.iter().map(|bytes| (INDEX, bytes.as_slice()));
        index.chain(self.files.iter().map(|file| (file.name.as_str(), file.bytes.as_slice())))
    }

    /// The tensors.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint<'_>, CheckpointError> {
        let files: Result<Vec<_>, _> =
            self.files.iter().map(|file| SafetensorsFile::parse(&file.name, file.bytes.as_slice())).collect();
        match &self.index {
            Some(index) => Checkpoint::sharded(&ShardIndex::parse(INDEX, index)?, files?),
            None => Checkpoint::new(files?),
        }
    }
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A model's kit, its shard index where there is one, and its files of weights.
pub(crate) type ModelFiles = (Kit, Option<Vec<u8>>, Vec<(String, FileBytes)>);

fn read_folder(folder: &Path, options: &LoadOptions) -> Result<ModelFiles, LoadError> {
    let needed = |name: &str| read(&folder.join(name));
    let optional = |name: &str| read_optional(&folder.join(name));
    let tokenizer = match optional("tokenizer.json")? {
        Some(tokenizer) => tokenizer,
        None if options.tokenizer_needed => needed("tokenizer.json")?,
        None => Vec::new(),
    };
    let kit = Kit {
        config: needed("config.json")?,
        generation_config: optional("generation_config.json")?,
        tokenizer,
        tokenizer_config: optional("tokenizer_config.json")?,
        chat_template: optional("chat_template.jinja")?,
    };
    // One file wins over an index that was left beside it, as in transformers.
    let single = folder.join(SINGLE).exists();
    let index = if single { None } else { optional(INDEX)? };
    let names = match &index {
        None if !single => return Err(LoadError::NoWeights { path: folder.to_owned() }),
        None => vec![SINGLE.to_owned()],
        Some(index) => {
            let index = ShardIndex::parse(INDEX, index).map_err(|source| LoadError::Checkpoint {
                folder: folder.display().to_string(),
                source: Box::new(source),
            })?;
            let mut names: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
            names.sort_unstable();
            names
        }
    };
    let open = |name: String| {
        let path = folder.join(&name);
        let bytes = files::regular(&path)
            .and_then(|_| FileBytes::open(&path))
            .map_err(|source| LoadError::File { path, source })?;
        Ok((name, bytes))
    };
    Ok((kit, index, names.into_iter().map(open).collect::<Result<_, LoadError>>()?))
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    files::read(path).map_err(|source| LoadError::File { path: path.to_owned(), source })
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match files::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::File { path: path.to_owned(), source }),
    }
}
