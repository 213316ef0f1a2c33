//! Where a model's tensors lie: files that somebody else mapped, looked up by what each tensor is for.

mod dtype;
mod error;
mod index;
mod names;
mod quantisation;
mod safetensors;
mod spellings;
mod stored;
mod view;

use std::collections::{HashMap, HashSet};

use crate::spec::{ModelSpec, TensorRole};
use spellings::{Part, Spelling, spellings};
use stored::{Orders, Stored};

pub use dtype::DType;
pub use error::CheckpointError;
pub use index::ShardIndex;
pub use names::{expected_tensors, parameters, tensor_name};
pub use quantisation::Quantisation;
pub use safetensors::{SafetensorsFile, StoredTensor, safetensors_file_header, safetensors_header};
pub use view::{Columns, Order, Parts, TensorView};

/// Something that has a model's tensors.
pub trait TensorSource: Sync {
    /// The tensor for `role`. Its shape is as stored: whoever loads it compares.
    ///
    /// # Errors
    /// The tensor is not there, or its type is none that weights may have.
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError>;
}

/// A model's weights in the Hugging Face layout: one safetensors file, or several that share the tensors.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    files: Vec<SafetensorsFile<'a>>,
    /// By the name that most families give it.
    tensors: HashMap<String, Stored>,
    orders: Orders,
}

impl<'a> Checkpoint<'a> {
    /// Joins `files`, whose weights are floats.
    ///
    /// # Errors
    /// No file at all, or a tensor that two files have.
    pub fn new(files: Vec<SafetensorsFile<'a>>) -> Result<Self, CheckpointError> {
        Self::quantised(files, &Quantisation::default())
    }

    /// Joins `files`, whose weights may be quantised as `quantisation` says.
    ///
    /// # Errors
    /// As [`Checkpoint::new`]; a quantised tensor whose scales or biases are not there, or do not fit it.
    pub fn quantised(
        files: Vec<SafetensorsFile<'a>>,
        quantisation: &Quantisation,
    ) -> Result<Self, CheckpointError> {
        if files.is_empty() {
            return Err(CheckpointError::NoFiles);
        }
        let (tensors, orders) = stored::collect(&files, quantisation)?;
        Ok(Self { files, tensors, orders })
    }

    /// Joins `files` and holds them to what `index` says of them.
    ///
    /// # Errors
    /// As [`Checkpoint::quantised`]; a file of the index that is not given; a tensor that is not where the index says.
    pub fn sharded(
        index: &ShardIndex,
        files: Vec<SafetensorsFile<'a>>,
        quantisation: &Quantisation,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Self::quantised(files, quantisation)?;
        let found: HashMap<&str, &str> = checkpoint
            .files
            .iter()
            .flat_map(|file| file.names().map(|name| (name, file.file_name())))
            .collect();
        for (tensor, file) in index.placements() {
            match found.get(tensor) {
                Some(found) if *found == file => {}
                Some(found) => {
                    return Err(CheckpointError::Misplaced {
                        tensor: tensor.to_owned(),
                        index: index.file_name().to_owned(),
                        expected: file.to_owned(),
                        found: (*found).to_owned(),
                    });
                }
                None => {
                    return Err(CheckpointError::MissingTensor {
                        tensor: tensor.to_owned(),
                        file: file.to_owned(),
                    });
                }
            }
        }
        drop(found);
        Ok(checkpoint)
    }

    /// Holds the tensors to `spec`: each that it needs is there, of the right shape and a known type, and there is
    /// none that it has no place for (a bias that the configuration denies would silently be left out).
    ///
    /// # Errors
    /// The first tensor that is wrong, with its file.
    pub fn verify(&self, spec: &ModelSpec) -> Result<(), CheckpointError> {
        let mut used = HashSet::new();
        for (role, name, shape) in expected_tensors(spec) {
            if role == TensorRole::Embedding && !spec.tied_head && !self.tensors.contains_key(&name) {
                return Err(CheckpointError::MissingTensor { tensor: name, file: self.file_names() });
            }
            let (found, view) = self.find(role)?;
            if view.shape != shape.as_slice() {
                return Err(CheckpointError::WrongShape {
                    file: self.file_of(&found),
                    tensor: view.name.to_owned(),
                    found: view.shape.to_vec(),
                    expected: shape,
                });
            }
            used.insert(found);
        }
        let stray = |name: &&String| !used.contains(name.as_str()) && !names::is_ignored(name, spec);
        match self.tensors.keys().filter(stray).min() {
            Some(name) => {
                Err(CheckpointError::UnexpectedTensor { file: self.file_of(name), tensor: name.clone() })
            }
            None => Ok(()),
        }
    }

    /// Whether there is a head beside an embedding that it differs from. Where the configuration ties them, the weights
    /// are right and the configuration is not: so the reference implementation takes it.
    pub fn has_own_head(&self) -> bool {
        let stored = |role| {
            let stored = self.tensors.get(&tensor_name(role))?;
            stored.view(&self.files, Part::Whole, &self.orders).ok().flatten()
        };
        match (stored(TensorRole::Embedding), stored(TensorRole::Head)) {
            (Some(embedding), Some(head)) => {
                (embedding.dtype, embedding.shape, embedding.bytes) != (head.dtype, head.shape, head.bytes)
                    || embedding.parts.map(|parts| (parts.scales, parts.biases))
                        != head.parts.map(|parts| (parts.scales, parts.biases))
            }
            _ => false,
        }
    }

    /// Whether norms' weights are stored as they multiply, in families that elsewhere store their difference from one: so
    /// MLX writes the hybrids.
    pub fn has_plain_norms(&self) -> bool {
        stored::is_sanitised(&self.files)
    }

    /// How many bytes all tensors take.
    pub fn tensor_bytes(&self) -> u64 {
        self.files.iter().map(SafetensorsFile::tensor_bytes).sum()
    }

    /// The file that has the tensor called `name`; the files' names where none has.
    pub fn file_of(&self, name: &str) -> String {
        let place = self.tensors.get(name).map(|stored| stored.place.0);
        let place =
            place.or_else(|| self.files.iter().position(|file| file.names().any(|other| other == name)));
        place.map_or_else(|| self.file_names(), |file| self.files[file].file_name().to_owned())
    }

    /// The tensor for `role`, and the usual name of the stored one that it is (a part of).
    fn find(&self, role: TensorRole) -> Result<(String, TensorView<'_>), CheckpointError> {
        let mut spellings = spellings(role);
        if role == TensorRole::Embedding {
            // Of two tensors that share their memory some savers keep one: a tied embedding may be there as the head.
            spellings.push(Spelling { name: tensor_name(TensorRole::Head), part: Part::Whole });
        }
        for Spelling { name, part } in &spellings {
            let Some(stored) = self.tensors.get(name) else { continue };
            if part.is_turned() && !self.tensors.contains_key(&format!("{name}_bias")) {
                continue;
            }
            if let Some(view) = stored.view(&self.files, *part, &self.orders)? {
                return Ok((name.clone(), view));
            }
        }
        Err(CheckpointError::MissingTensor { tensor: tensor_name(role), file: self.file_names() })
    }

    fn file_names(&self) -> String {
        let names: Vec<&str> = self.files.iter().map(SafetensorsFile::file_name).take(4).collect();
        let more = if self.files.len() > names.len() { ", ..." } else { "" };
        format!("{}{more}", names.join(", "))
    }
}

impl TensorSource for Checkpoint<'_> {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        self.find(role).map(|(_, view)| view)
    }
}

#[cfg(test)]
mod tests;
