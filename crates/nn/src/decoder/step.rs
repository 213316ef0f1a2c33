//! One step's spans: whether they can run, and what they are as rows.

use super::{Decoder, ForwardError, LogitRows, Span};
use crate::backend::{Backend, Segment};
use crate::cache::{KvCache, kv_shapes};

impl<B: Backend> Decoder<B> {
    /// Holds the spans to the model and the cache.
    pub(super) fn check(&self, spans: &[Span<'_>], kv: &KvCache<B>) -> Result<(), ForwardError> {
        if kv.layers != kv_shapes(&self.spec) {
            return Err(ForwardError::Cache);
        }
        let mut written = Vec::with_capacity(spans.len());
        for (at, span) in spans.iter().enumerate() {
            if span.tokens.is_empty() {
                return Err(ForwardError::Empty { span: at });
            }
            let vocabulary = self.spec.vocabulary;
            if let Some(&token) = span.tokens.iter().find(|&&token| token as usize >= vocabulary) {
                return Err(ForwardError::Token { token, vocabulary });
            }
            let tokens = span.position.saturating_add(span.tokens.len());
            if tokens > self.spec.context {
                return Err(ForwardError::Context { tokens, context: self.spec.context });
            }
            let needed = tokens.div_ceil(kv.page_tokens);
            if span.pages.len() < needed {
                return Err(ForwardError::Pages { span: at, needed, found: span.pages.len() });
            }
            if let Some(&page) = span.pages.iter().find(|&&page| page as usize >= kv.pages) {
                return Err(ForwardError::Page { page, pages: kv.pages });
            }
            written.extend_from_slice(&span.pages[span.position / kv.page_tokens..needed]);
        }
        written.sort_unstable();
        match written.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ForwardError::PageTwice { page: pair[0] }),
            None => Ok(()),
        }
    }
}

/// A step's spans as rows.
pub(super) struct Step<'a> {
    pub(super) tokens: Vec<u32>,
    pub(super) segments: Vec<Segment<'a>>,
    /// The parts of segments whose logits are wanted.
    pub(super) wanted: Vec<Segment<'a>>,
    pub(super) wanted_rows: Vec<usize>,
}

impl<'a> Step<'a> {
    pub(super) fn of(spans: &[Span<'a>]) -> Self {
        let mut step =
            Self { tokens: Vec::new(), segments: Vec::new(), wanted: Vec::new(), wanted_rows: Vec::new() };
        for span in spans {
            let (row, tokens) = (step.tokens.len(), span.tokens.len());
            let segment = Segment { row, tokens, position: span.position, pages: span.pages };
            step.tokens.extend_from_slice(span.tokens);
            step.segments.push(segment);
            let skipped = match span.logits {
                LogitRows::None => continue,
                LogitRows::Last => tokens - 1,
                LogitRows::All => 0,
            };
            step.wanted.push(Segment {
                row: row + skipped,
                tokens: tokens - skipped,
                position: span.position + skipped,
                ..segment
            });
            step.wanted_rows.extend(row + skipped..row + tokens);
        }
        step
    }

    /// The rows whose logits are wanted, where these are not all.
    pub(super) fn some(&self) -> Option<&[usize]> {
        (self.wanted_rows.len() < self.tokens.len()).then_some(&self.wanted_rows)
    }
}
