//! Bytes of a file of weights, wherever they are.

use std::io;
use std::path::Path;

/// A file of weights.
pub(crate) enum FileBytes {
    /// Inside the program.
    Bundled(&'static [u8]),
    /// In memory.
    Read(Vec<u8>),
}

impl FileBytes {
    /// Opens the file at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        std::fs::read(path).map(Self::Read)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bundled(bytes) => bytes,
            Self::Read(bytes) => bytes,
        }
    }
}
