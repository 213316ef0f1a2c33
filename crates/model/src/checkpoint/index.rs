//! The index of a checkpoint in several files (`model.safetensors.index.json`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::CheckpointError;

/// Which tensor is in which file.
#[derive(Debug)]
pub struct ShardIndex {
    file_name: String,
    placements: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct IndexJson {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads the index; `file_name` is what errors call it.
    ///
    /// # Errors
    /// Not JSON, no `weight_map`, an empty one, or a file name that would lead out of the folder.
    pub fn parse(file_name: &str, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let bad = |detail: String| CheckpointError::BadHeader { file: file_name.to_owned(), detail };
        let index: IndexJson = serde_json::from_slice(bytes).map_err(|e| bad(format!("bad JSON: {e}")))?;
        if index.weight_map.is_empty() {
            return Err(bad("its weight_map has no tensors".to_owned()));
        }
        for (tensor, file) in &index.weight_map {
            let plain = !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\', ':', '\0']);
            if !plain {
                return Err(CheckpointError::BadTensor {
                    file: file_name.to_owned(),
                    tensor: tensor.clone(),
                    detail: format!(
                        "is said to be in {file:?}, which is not the plain name of a file beside the index"
                    ),
                });
            }
        }
        Ok(Self { file_name: file_name.to_owned(), placements: index.weight_map })
    }

    /// What errors call the index.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// The files to read, each once, sorted.
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.placements.values().map(String::as_str).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Each tensor with its file.
    pub fn placements(&self) -> impl Iterator<Item = (&str, &str)> {
        self.placements.iter().map(|(tensor, file)| (tensor.as_str(), file.as_str()))
    }
}
