//! What the step loop asks of a model: so much, so that the loop can be tested with a scripted one.

use nn::LogitRows;

use crate::group::GroupReport;

/// Some tokens of one sequence, to be computed in one step.
pub(crate) struct Work<'a> {
    /// The tokens.
    pub(crate) tokens: &'a [u32],
    /// Position of the first.
    pub(crate) position: usize,
    /// Pages of all positions up to the last token's.
    pub(crate) pages: &'a [u32],
    /// Whose logits are wanted.
    pub(crate) logits: LogitRows,
}

/// A model that computes steps over one paged KV cache.
pub(crate) trait Compute {
    /// Whether sequences carry states beside their pages, so that nothing of one can serve another.
    fn is_recurrent(&self) -> bool {
        false
    }
    /// Whether tokens that turn out to be wrong guesses may be among those of a step: what was computed of them is computed
    /// again from their position on, or never read.
    fn takes_guesses(&self) -> bool {
        false
    }
    /// Overwrites pages.
    fn wipe(&mut self, pages: &[u32]);
    /// Computes a step: the logits that are wanted, a row of `[V]` each, in order.
    fn step(&mut self, work: &[Work<'_>]) -> Result<Vec<&[f32]>, String>;
    /// Logits of `tokens` from position 0, of all positions or the last, beside the cache.
    fn logits(&mut self, tokens: &[u32], all: bool) -> Result<Vec<Vec<f32>>, String>;

    /// How many steps can be under way at once. Above 1 they are begun and finished instead of computed.
    fn depth(&self) -> usize {
        1
    }

    /// Begins a step that shares no sequence with those under way.
    fn begin(&mut self, _work: &[Work<'_>]) -> Result<(), String> {
        Err("steps cannot be begun here".to_owned())
    }

    /// The logits of the step that was begun first of those under way, as [`Compute::step`] gives them. At once for one
    /// that draws nothing.
    fn finish(&mut self) -> Result<Vec<&[f32]>, String> {
        Err("no step was begun".to_owned())
    }

    /// There is nothing to compute for the moment. Called again and again while that lasts.
    fn idle(&mut self) {}

    /// A request that stands `at` in a trace is through; its first step began so long ago. Others that computed it tell their
    /// parts.
    fn trace(&mut self, _at: &str, _took: base::Micros) {}

    /// Why no step will ever be computed again, if so.
    fn broken(&self) -> Option<String> {
        None
    }

    /// Where the time goes, of one that computes together with others.
    fn group(&self) -> Option<GroupReport> {
        None
    }
}
