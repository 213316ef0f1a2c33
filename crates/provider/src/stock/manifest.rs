//! What was fetched: written beside a model's files, and read to know them from files that are somebody's own.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Its name in a model's folder.
pub(super) const FILE: &str = ".phalanx-pull.json";
/// A listing of ten thousand files has two megabytes.
const BYTES_MAX: u64 = 16 << 20;

/// The files of one model, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// A commit of a hub's, or whatever else names the contents.
    pub revision: String,
    /// All of them.
    pub files: Vec<Entry>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Below the model's folder, with slashes.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of its contents, 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// Git's name for its contents, where it is small and has no other hash.
    pub blob: Option<String>,
}

impl Manifest {
    /// The one in `folder`; nothing where there is none, or none that can be read.
    pub fn read(folder: &Path) -> Option<Self> {
        let path = folder.join(FILE);
        if fs::metadata(&path).ok()?.len() > BYTES_MAX {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes it into `folder`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        fs::write(folder.join(FILE), serde_json::to_vec_pretty(self)?)
    }

    /// What its files take.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |all, file| all.saturating_add(file.size))
    }
}
