//! The states that sequences of a recurrent model carry: found by their first page, checked against their positions.

use model::spec::MixerSpec;

use super::{Decoder, ForwardError, Span};
use crate::backend::Backend;
use crate::cache::{KvCache, SequenceState};

impl<B: Backend> Decoder<B> {
    /// Takes the spans' states out of the cache; those of spans at position 0 are new.
    pub(super) fn take_states(
        &self,
        spans: &[Span<'_>],
        kv: &mut KvCache<B>,
    ) -> Result<Vec<SequenceState<B>>, ForwardError> {
        if !self.spec.is_recurrent() {
            return Ok(Vec::new());
        }
        let mut states = Vec::with_capacity(spans.len());
        for (at, span) in spans.iter().enumerate() {
            let found = kv.states.remove(&span.pages[0]);
            let state = match (span.position, found) {
                (0, _) => self.new_state()?,
                (position, Some(state)) if state.tokens == position => state,
                (position, found) => {
                    let found = found
                        .map_or_else(|| "gone".to_owned(), |state| format!("behind {} tokens", state.tokens));
                    return Err(ForwardError::State { span: at, position, found });
                }
            };
            states.push(state);
        }
        Ok(states)
    }

    fn new_state(&self) -> Result<SequenceState<B>, ForwardError> {
        let mut layers = Vec::new();
        for layer in &self.spec.layers {
            if let MixerSpec::DeltaNet(delta) = &layer.mixer {
                layers.push(self.backend.state(delta)?);
            }
        }
        Ok(SequenceState { tokens: 0, layers })
    }
}

impl<B: Backend> KvCache<B> {
    /// Puts the states back that the spans' tokens have gone through.
    pub(super) fn put_states(&mut self, spans: &[Span<'_>], states: Vec<SequenceState<B>>) {
        for (span, mut state) in spans.iter().zip(states) {
            state.tokens = span.position + span.tokens.len();
            self.states.insert(span.pages[0], state);
        }
    }
}
