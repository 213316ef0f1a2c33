//! What the step loop asks of a model: so much, so that the loop can be tested with a scripted one.

/// Some tokens of one sequence, to be computed in one step.
pub(crate) struct Work<'a> {
    /// The tokens.
    pub(crate) tokens: &'a [u32],
    /// Position of the first.
    pub(crate) position: usize,
    /// Pages of all positions up to the last token's.
    pub(crate) pages: &'a [u32],
    /// Whether the last token's logits are wanted.
    pub(crate) draws: bool,
}

/// A model that computes steps over one paged KV cache.
pub(crate) trait Compute {
    /// Overwrites pages.
    fn wipe(&mut self, pages: &[u32]);
    /// Computes a step: the logits, `[V]`, of each piece of work that draws, in order.
    fn step(&mut self, work: &[Work<'_>]) -> Result<Vec<&[f32]>, String>;
    /// Logits of `tokens` from position 0, of all positions or the last, beside the cache.
    fn logits(&mut self, tokens: &[u32], all: bool) -> Result<Vec<Vec<f32>>, String>;
}
