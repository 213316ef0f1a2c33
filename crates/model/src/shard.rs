//! One model divided over ranks: who holds which layers, and which slices of each.

use std::ops::Range;

use crate::spec::ModelSpec;

/// What one rank holds of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The decoder that it runs: its own layers, with as many heads and as wide as its slices are. V is the model's.
    pub spec: ModelSpec,
    /// Which of the model's layers these are.
    pub layers: Range<usize>,
    /// The rows of the embedding that it holds; none where another stage embeds.
    pub embedding: Option<Range<usize>>,
    /// The rows of the head that it holds; none where another stage has the head.
    pub head: Option<Range<usize>>,
    /// Whether other ranks hold other slices of the same layers, so that what each computes must be summed.
    pub summed: bool,
}

impl Part {
    /// All of a model.
    pub fn whole(spec: &ModelSpec) -> Self {
        Self {
            spec: spec.clone(),
            layers: 0..spec.layers.len(),
            embedding: Some(0..spec.vocabulary),
            head: Some(0..spec.vocabulary),
            summed: false,
        }
    }
}
