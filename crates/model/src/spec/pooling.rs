//! How a model that gives embeddings makes one vector of a text.

/// What a model's card says of its embeddings. A model that has it gives embeddings and no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolingSpec {
    /// Which of the text's rows, `[T, E]` behind the final norm, become the vector `[E]`.
    pub rows: PooledRows,
    /// Whether the vector is made one of length 1.
    pub normalise: bool,
}

/// Which rows become the vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PooledRows {
    /// The mean of all.
    Mean,
    /// The first one.
    First,
    /// The last one.
    Last,
}

impl PooledRows {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::First => "first token",
            Self::Last => "last token",
        }
    }
}
