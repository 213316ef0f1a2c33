//! Where a model's tensors lie: files that somebody else mapped, looked up by what each tensor is for.

mod dtype;
mod error;
mod index;
mod names;
mod safetensors;
mod view;

use std::collections::{HashMap, HashSet};

use crate::spec::{ModelSpec, TensorRole};

pub use dtype::DType;
pub use error::CheckpointError;
pub use index::ShardIndex;
pub use names::{expected_tensors, parameters, tensor_name};
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
    /// Tensor name to (file, place in the file).
    places: HashMap<String, (usize, usize)>,
}

impl<'a> Checkpoint<'a> {
    /// Joins `files`.
    ///
    /// # Errors
    /// No file at all, or a tensor that two files have.
    pub fn new(files: Vec<SafetensorsFile<'a>>) -> Result<Self, CheckpointError> {
        if files.is_empty() {
            return Err(CheckpointError::NoFiles);
        }
        let mut places = HashMap::new();
        for (number, file) in files.iter().enumerate() {
            for (place, name) in file.names().enumerate() {
                if let Some((other, _)) = places.insert(name.to_owned(), (number, place)) {
                    return Err(CheckpointError::InTwoFiles {
                        tensor: name.to_owned(),
                        first: files[other].file_name().to_owned(),
                        second: file.file_name().to_owned(),
                    });
                }
            }
        }
        if names::is_bare(|name| places.contains_key(name)) {
            places = places.into_iter().map(|(name, place)| (names::in_full(&name), place)).collect();
        }
        Ok(Self { files, places })
    }

    /// Joins `files` and holds them to what `index` says of them.
    ///
    /// # Errors
    /// As [`Checkpoint::new`]; a file of the index that is not given; a tensor that is not where the index says.
    pub fn sharded(index: &ShardIndex, files: Vec<SafetensorsFile<'a>>) -> Result<Self, CheckpointError> {
        let checkpoint = Self::new(files)?;
        for (tensor, file) in index.placements() {
            let place =
                checkpoint.places.get(tensor).or_else(|| checkpoint.places.get(&names::in_full(tensor)));
            let Some(&(number, _)) = place else {
                return Err(CheckpointError::MissingTensor {
                    tensor: tensor.to_owned(),
                    file: file.to_owned(),
                });
            };
            let found = checkpoint.files[number].file_name();
            if found != file {
                return Err(CheckpointError::Misplaced {
                    tensor: tensor.to_owned(),
                    index: index.file_name().to_owned(),
                    expected: file.to_owned(),
                    found: found.to_owned(),
                });
            }
        }
        Ok(checkpoint)
    }

    /// Holds the tensors to `spec`: each that it needs is there, of the right shape and a known type, and there is
    /// none that it has no place for (a bias that the configuration denies would silently be left out).
    ///
    /// # Errors
    /// The first tensor that is wrong, with its file.
    pub fn verify(&self, spec: &ModelSpec) -> Result<(), CheckpointError> {
        let expected = expected_tensors(spec);
        for (role, name, shape) in &expected {
            if *role == TensorRole::Embedding && !spec.tied_head && !self.places.contains_key(name) {
                return Err(CheckpointError::MissingTensor { tensor: name.clone(), file: self.file_names() });
            }
            let view = self.tensor(*role)?;
            if view.shape != shape.as_slice() {
                return Err(CheckpointError::WrongShape {
                    file: self.file_of(name),
                    tensor: name.clone(),
                    found: view.shape.to_vec(),
                    expected: shape.clone(),
                });
            }
        }
        let known: HashSet<&str> = expected.iter().map(|(_, name, _)| name.as_str()).collect();
        let stray = |name: &&String| !known.contains(name.as_str()) && !names::is_ignored(name, spec);
        match self.places.keys().filter(stray).min() {
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
            let &(number, place) = self.places.get(&tensor_name(role))?;
            self.files[number].view(place).ok()
        };
        match (stored(TensorRole::Embedding), stored(TensorRole::Head)) {
            (Some(embedding), Some(head)) => {
                (embedding.dtype, embedding.shape, embedding.bytes) != (head.dtype, head.shape, head.bytes)
            }
            _ => false,
        }
    }

    /// How many bytes all tensors take.
    pub fn tensor_bytes(&self) -> u64 {
        self.files.iter().map(SafetensorsFile::tensor_bytes).sum()
    }

    /// The file that has the tensor called `name`; the files' names where none has.
    pub fn file_of(&self, name: &str) -> String {
        match self.places.get(name) {
            Some(&(number, _)) => self.files[number].file_name().to_owned(),
            None => self.file_names(),
        }
    }

    fn file_names(&self) -> String {
        let names: Vec<&str> = self.files.iter().map(SafetensorsFile::file_name).take(4).collect();
        let more = if self.files.len() > names.len() { ", ..." } else { "" };
        format!("{}{more}", names.join(", "))
    }
}

impl TensorSource for Checkpoint<'_> {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        let name = tensor_name(role);
        let found = self.places.get(&name).or_else(|| match role {
            // Of two tensors that share their memory some savers keep one: a tied embedding may be there as the head.
            TensorRole::Embedding => self.places.get(&tensor_name(TensorRole::Head)),
            _ => None,
        });
        match found {
            Some(&(number, place)) => self.files[number].view(place),
            None => Err(CheckpointError::MissingTensor { tensor: name, file: self.file_names() }),
        }
    }
}

#[cfg(test)]
mod tests;
