//! What can be wrong with a checkpoint's files, each naming the file and, where there is one, the tensor.

/// Why a checkpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Nothing to look into.
    #[error(
        "a checkpoint has no files: expected model.safetensors, or the files of model.safetensors.index.json"
    )]
    NoFiles,
    /// Reading was ended by whoever wanted it.
    #[error("reading the weights was cancelled")]
    Unwanted,
    /// A tensor cannot be cut for a rank of a group.
    #[error("tensor {tensor} cannot be divided: {detail}")]
    Cut {
        /// Which tensor.
        tensor: String,
        /// Why.
        detail: String,
    },
    /// The file ends before what it announces.
    #[error("{file} is truncated: it should have {expected} bytes and has {found}; fetch or copy it again")]
    Truncated {
        /// Which file.
        file: String,
        /// Bytes that it announces.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// The file goes on after its last tensor.
    #[error("{file} has {extra} bytes after its last tensor; fetch or copy it again")]
    Trailing {
        /// Which file.
        file: String,
        /// How many.
        extra: u64,
    },
    /// The header announces an absurd length.
    #[error("{file} is not a safetensors file: its header would take {found} bytes, the limit is {limit}")]
    HeaderTooLong {
        /// Which file.
        file: String,
        /// Bytes announced.
        found: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The header, or an index, is not what it should be.
    #[error("{file} is not readable: {detail}")]
    BadHeader {
        /// Which file.
        file: String,
        /// What is wrong, and where.
        detail: String,
    },
    /// One tensor's entry makes no sense.
    #[error("{file}: tensor {tensor:?}: {detail}")]
    BadTensor {
        /// Which file.
        file: String,
        /// Which tensor.
        tensor: String,
        /// What is wrong.
        detail: String,
    },
    /// A tensor that two files have.
    #[error("tensor {tensor:?} is in both {first} and {second}")]
    InTwoFiles {
        /// Which tensor.
        tensor: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// The index says another file.
    #[error("tensor {tensor:?} is in {found}, but {index} says {expected}")]
    Misplaced {
        /// Which tensor.
        tensor: String,
        /// The index file.
        index: String,
        /// Where the index says that it is.
        expected: String,
        /// Where it is.
        found: String,
    },
    /// A tensor that the model needs is not there.
    #[error("tensor {tensor:?} is missing in {file}")]
    MissingTensor {
        /// Which tensor.
        tensor: String,
        /// Where it was sought.
        file: String,
    },
    /// A tensor that the model has no place for.
    #[error("{file}: tensor {tensor:?} has no place in the model that config.json describes")]
    UnexpectedTensor {
        /// Which file.
        file: String,
        /// Which tensor.
        tensor: String,
    },
    /// A tensor of the wrong shape.
    #[error("{file}: tensor {tensor:?} has shape {found:?}, but config.json asks for {expected:?}")]
    WrongShape {
        /// Which file.
        file: String,
        /// Which tensor.
        tensor: String,
        /// As stored.
        found: Vec<usize>,
        /// As needed.
        expected: Vec<usize>,
    },
    /// A tensor of a type that weights may not have.
    #[error("{file}: tensor {tensor:?} is stored as {found}; weights may be F32, F16 or BF16")]
    UnsupportedType {
        /// Which file.
        file: String,
        /// Which tensor.
        tensor: String,
        /// As stored.
        found: String,
    },
}
