//! Bytes of a file of weights, wherever they are.

use std::io;
use std::path::Path;

use nn::{FileStamp, MappedFile};

/// No configuration, tokenizer or index comes near it; without a limit a wrong file would take all memory.
const TEXT_BYTES_MAX: u64 = 1 << 30;

/// The length of a regular file. Opening anything else (a pipe, a device) could wait for ever, or never end.
pub(crate) fn regular(path: &Path) -> io::Result<u64> {
    let metadata = std::fs::metadata(path)?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Reads a file of texts.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    match regular(path)? {
        0 => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty; fetch or copy it again")),
        1..=TEXT_BYTES_MAX => std::fs::read(path),
        long => {
            let words = format!("it has {long} bytes, the limit is {TEXT_BYTES_MAX}");
            Err(io::Error::new(io::ErrorKind::InvalidData, words))
        }
    }
}

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

    /// Lets go of the memory that reading has taken.
    pub(crate) fn let_go(&self) {
        match self {
            Self::Bundled(_) => {}
            Self::Mapped(file) => file.let_go(),
        }
    }

    /// Which contents these are, of a file on disk where the system tells.
    pub(crate) fn stamp(&self) -> Option<FileStamp> {
        match self {
            Self::Bundled(_) => None,
            Self::Mapped(file) => file.stamp(),
        }
    }

    /// Whether nobody has written to it since it was opened.
    pub(crate) fn is_as_it_was(&self) -> bool {
        match self {
            Self::Bundled(_) => true,
            Self::Mapped(file) => file.is_as_it_was(),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bundled(bytes) => bytes,
            Self::Mapped(file) => file.bytes(),
        }
    }
}
