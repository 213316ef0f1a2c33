//! A model's files, found and checked, before anything is computed.

mod found;
mod tensors;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use base::Bytes;
use model::checkpoint::{CheckpointError, DType, TensorSource, expected_tensors, parameters};
use model::family::ConfigError;
use model::kit::{Kit, KitError, OpenKit};
use model::shard::ShardMap;
use model::spec::ModelSpec;
use model::tokenizer::Tokenizer;
use nn::{FileStamp, KvCache};

use crate::bundled;
use crate::config::KvFormat;
use crate::files::FileBytes;

use found::INDEX;
pub use found::load_kit;
pub(crate) use found::{Found, Layout};
pub(crate) use tensors::Tensors;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ModelSource {
    /// The one inside the program.
    Bundled,
    /// A folder in the Hugging Face layout, a GGUF file (of several parts: any), or a folder that has one.
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

/// Told how many bytes of weights a load has come to; where it says no, the load ends with an error.
pub type Watch = Arc<dyn Fn(Bytes) -> bool + Send + Sync>;

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
    #[error("{path} has neither model.safetensors nor model.safetensors.index.json, nor one GGUF file")]
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

/// What a model stores in one number format. Experts count one by one, also where they are stored as one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredFormat {
    /// As in `BF16`.
    pub name: &'static str,
    /// How many.
    pub tensors: usize,
    /// With scales and biases.
    pub bytes: Bytes,
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
    layout: Layout,
    files: Vec<WeightFile>,
    weight_bytes: Bytes,
    watch: Option<Watch>,
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
    let found = match source {
        ModelSource::Bundled => bundled::files(),
        ModelSource::Folder(path) => found::find(path, Some(options))?,
    };
    let open = if found.kit.tokenizer.is_empty() && !options.tokenizer_needed {
        None
    } else {
        let wrong = |error| LoadError::Kit { folder: source.to_string(), source: Box::new(error) };
        Some(found.kit.open().map_err(wrong)?)
    };
    check(source, found, open)
}

/// As [`load`], without the tokenizer, and of the weights only the headers: what tells how large a model is, and whether
/// its files are whole. For many models at once.
///
/// # Errors
/// As [`load`].
pub fn look(source: &ModelSource) -> Result<LoadedModel, LoadError> {
    let found = match source {
        ModelSource::Bundled => bundled::files(),
        ModelSource::Folder(path) => found::find(path, None)?,
    };
    check(source, found, None)
}

fn check(source: &ModelSource, found: Found, open: Option<OpenKit>) -> Result<LoadedModel, LoadError> {
    let Found { kit, layout, files } = found;
    let folder = source.to_string();
    let spec = match &open {
        Some(open) => open.spec.clone(),
        None => kit
            .spec()
            .map_err(|source| LoadError::Config { folder: folder.clone(), source: Box::new(source) })?,
    };
    let files = files.into_iter().map(|(name, bytes)| WeightFile { name, bytes }).collect();
    let (source, weight_bytes, watch) = (source.clone(), Bytes::ZERO, None);
    let mut model = LoadedModel { source, kit, open, spec, layout, files, weight_bytes, watch };
    let stored = Tensors::check(&model.layout, &model.named_files(), &model.spec, &model.kit)
        .map_err(|source| LoadError::Checkpoint { folder, source: Box::new(source) })?;
    // One truth about the model, wherever it is asked for.
    if let Some(open) = &mut model.open {
        open.spec = stored.spec.clone();
    }
    (model.spec, model.weight_bytes) = (stored.spec, Bytes(stored.bytes));
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

    /// The number formats that its weights are stored in (`BF16`, `Q4_K`, `MLX 4-bit`), each once.
    pub fn formats(&self) -> Vec<&'static str> {
        self.stored().into_iter().map(|stored| stored.name).collect()
    }

    /// How many tensors there are of each number format, and what they take on disk, by name.
    pub fn stored(&self) -> Vec<StoredFormat> {
        let checkpoint = self.checkpoint().expect("it was checked when it was loaded");
        let mut found: BTreeMap<&'static str, StoredFormat> = BTreeMap::new();
        for (role, ..) in expected_tensors(&self.spec) {
            let view = checkpoint.tensor(role).expect("it was checked when it was loaded");
            let apart = view.parts.map_or(0, |parts| parts.scales.len() + parts.biases.len());
            let name = view.dtype.name();
            let stored = found.entry(name).or_insert(StoredFormat { name, tensors: 0, bytes: Bytes::ZERO });
            stored.tensors += 1;
            stored.bytes += Bytes((view.bytes.len() + apart) as u64);
        }
        found.into_values().collect()
    }

    /// What the weights take in memory, held whole as the engine holds them where nothing else is said: as they are
    /// stored, but for 16-bit floats, which become 32-bit ones.
    pub fn memory_bytes(&self) -> Bytes {
        let held = |stored: &StoredFormat| {
            if stored.name == DType::F16.name() { stored.bytes.0.saturating_mul(2) } else { stored.bytes.0 }
        };
        Bytes(self.stored().iter().map(held).sum())
    }

    /// Has `watch` told how far reading the weights has come, in this call and never before it; it can end that.
    #[must_use]
    pub fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Says that so much of the weights is read; an error where whoever watches wants no more of it.
    pub(crate) fn has_read(&self, bytes: u64) -> Result<(), CheckpointError> {
        match &self.watch {
            Some(watch) if !watch(Bytes(bytes)) => Err(CheckpointError::Unwanted),
            _ => Ok(()),
        }
    }

    /// What its files are, in the words of their users.
    pub fn container(&self) -> &'static str {
        match &self.layout {
            Layout::Gguf => "GGUF",
            Layout::Safetensors { index: Some(_) } => "safetensors, several files",
            Layout::Safetensors { index: None } => "safetensors",
        }
    }

    /// Memory that a token takes in an engine's KV cache.
    pub fn kv_bytes_per_token(&self, format: KvFormat) -> Bytes {
        KvCache::bytes_per_token(&self.spec, format.dtype())
    }

    /// As [`Self::kv_bytes_per_token`], of one rank's part; nothing where the model cannot be divided so.
    pub fn part_kv_bytes_per_token(&self, map: &ShardMap, rank: usize, format: KvFormat) -> Option<Bytes> {
        let part = map.part(&self.spec, rank).ok()?;
        Some(KvCache::bytes_per_token(&part.spec, format.dtype()))
    }

    /// What to hash so that two machines know that they hold the same weights: (name, contents) of the index, where there
    /// is one, and of each file of weights, in the order of their names. Reading it reads the whole model.
    pub fn weight_files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let index = match &self.layout {
            Layout::Safetensors { index } => index.as_deref(),
            Layout::Gguf => None,
        };
        index.map(|bytes| (INDEX, bytes)).into_iter().chain(self.named_files())
    }

    /// Name and stamp of each file of weights, so that what [`Self::weight_files`] hashed to can be known again without
    /// reading them; nothing where they are not files, or the system does not tell.
    pub fn weight_stamps(&self) -> Option<Vec<(&str, FileStamp)>> {
        self.files.iter().map(|file| Some((file.name.as_str(), file.bytes.stamp()?))).collect()
    }

    /// A file that was written to since it was opened: what was read of it may be half of one model, half of another.
    pub(crate) fn changed_file(&self) -> Option<&str> {
        self.files.iter().find(|file| !file.bytes.is_as_it_was()).map(|file| file.name.as_str())
    }

    /// Lets go of the memory that reading the weights has taken so far.
    pub(crate) fn let_go(&self) {
        self.files.iter().for_each(|file| file.bytes.let_go());
    }

    /// The tensors.
    pub(crate) fn checkpoint(&self) -> Result<Tensors<'_>, CheckpointError> {
        Tensors::open(&self.layout, &self.named_files(), &self.spec, &self.kit)
    }

    fn named_files(&self) -> Vec<(&str, &[u8])> {
        self.files.iter().map(|file| (file.name.as_str(), file.bytes.as_slice())).collect()
    }
}
