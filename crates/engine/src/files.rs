//! Bytes of a file of weights, wherever they are.

use std::io;
use std::path::Path;

use nn::MappedFile;

/// A file of weights.
pub(crate) enum FileBytes {
    /// Inside the program.
    Bundled(&'static [u8]),
    /// On disk, read as it is used.
    Mapped(MappedFile),
}

impl FileBytes {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        MappedFile::open(path).map(Self::Mapped)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bundled(bytes) => bytes,
            Self::Mapped(file) => file.bytes(),
        }
    }
}
