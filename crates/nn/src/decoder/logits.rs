//! What a step gives.

/// The logits of a step: `[N, V]`, in the order of the spans and, within a span, of its tokens. Of a model that gives
/// embeddings they are the rows behind the final norm instead: `[N, E]`.
#[derive(Clone, Copy)]
pub struct Logits<'a> {
    pub(super) values: &'a [f32],
    pub(super) vocabulary: usize,
}

impl<'a> Logits<'a> {
    /// N.
    pub fn len(&self) -> usize {
        self.values.len() / self.vocabulary
    }

    /// Whether no span asked for any.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The `row`-th: V logits.
    ///
    /// # Panics
    /// There is no such row.
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.vocabulary..][..self.vocabulary]
    }

    /// All of them, row by row.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// All rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f32]> {
        self.values.chunks_exact(self.vocabulary)
    }
}
