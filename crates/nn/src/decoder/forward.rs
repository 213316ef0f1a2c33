//! The forward pass: a step over spans of many sequences.

use super::logits::Logits;
use super::step::Step;
use super::{Decoder, Layer, Mixer};
use crate::backend::{Backend, BackendError, DeltaSegment, Segment, Store};
use crate::blocks::{AttentionRows, DeltaNetRows, FeedForwardRows, LayerInputRows, Residual};
use crate::cache::{KvCache, SequenceState};
use crate::cpu::Cpu;
use crate::peers::{Peers, ResidualError, again};

/// Consecutive tokens of one sequence: a chunk of its prompt, or the one token that was sampled last.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    /// The tokens; at least one.
    pub tokens: &'a [u32],
    /// Position of the first of them in its sequence. Those before it are in the cache already.
    pub position: usize,
    /// The sequence's pages from position 0 on, covering `position + tokens.len()` tokens.
    pub pages: &'a [u32],
    /// Whose logits are wanted.
    pub logits: LogitRows,
}

/// Which tokens of a span logits are wanted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogitRows {
    /// None: a prompt chunk that is not the last.
    None,
    /// The last one's.
    Last,
    /// All.
    All,
}

/// Why a step did not run. The cache may then hold some of the step's keys and values: the spans' positions count
/// as not written.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A span has no tokens.
    #[error("span {span} has no tokens")]
    Empty {
        /// Which.
        span: usize,
    },
    /// A token is not in the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// V.
        vocabulary: usize,
    },
    /// A span ends behind the longest context.
    #[error("a sequence of {tokens} tokens is longer than the context of {context}")]
    Context {
        /// Its length with this span.
        tokens: usize,
        /// The model's.
        context: usize,
    },
    /// A span names too few pages.
    #[error("span {span} names {found} pages where {needed} are needed")]
    Pages {
        /// Which.
        span: usize,
        /// For its tokens and those before.
        needed: usize,
        /// How many it names.
        found: usize,
    },
    /// A span names a page that the cache does not have.
    #[error("page {page} is outside the cache of {pages} pages")]
    Page {
        /// Which.
        page: u32,
        /// How many there are.
        pages: usize,
    },
    /// Two spans would write the same page, so that one would find the other's tokens in it.
    #[error("page {page} would be written by two spans")]
    PageTwice {
        /// Which.
        page: u32,
    },
    /// A span goes on where the state of its sequence is not: states can neither be cut nor stepped back.
    #[error("span {span} goes on at position {position}, but its sequence's state is {found}")]
    State {
        /// Which.
        span: usize,
        /// Of its first token.
        position: usize,
        /// Where the state is.
        found: String,
    },
    /// The cache was made for another model.
    #[error("the kv cache was made for another model")]
    Cache,
    /// A decoder that holds a part of a model was run as if it held all of it, or rows were given to one that embeds.
    #[error("this decoder holds a part of its model: {0}")]
    Part(&'static str),
    /// The other ranks could not be reached.
    #[error("the other ranks cannot be reached")]
    Peers(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The backend failed.
    #[error("the step could not be computed")]
    Backend(#[source] BackendError),
}

impl From<BackendError> for ForwardError {
    fn from(cause: BackendError) -> Self {
        Self::Backend(cause)
    }
}

impl From<ResidualError> for ForwardError {
    fn from(cause: ResidualError) -> Self {
        match cause {
            ResidualError::Backend(cause) => Self::Backend(cause),
            ResidualError::Peers(cause) => Self::Peers(cause),
        }
    }
}

/// Memory that steps reuse. One for each thread that runs steps.
pub struct Scratch<B: Backend = Cpu> {
    x: B::Rows,
    normed: B::Rows,
    kept: B::Rows,
    post: B::Rows,
    /// This rank's part of a block's result.
    partial: B::Rows,
    attention: AttentionRows<B>,
    delta: DeltaNetRows<B>,
    layer_inputs: LayerInputRows<B>,
    feed_forward: FeedForwardRows<B>,
    /// Of each distinct rope: cosines and sines of the step's rows.
    angles: Vec<(B::Rows, B::Rows)>,
    host: (Vec<f32>, Vec<f32>),
    logits: B::Rows,
}

impl Scratch {
    /// No memory yet: it grows to what steps need.
    pub fn new() -> Self {
        Self::for_backend()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> Scratch<B> {
    /// No memory yet, for any backend.
    pub fn for_backend() -> Self {
        Self {
            x: B::Rows::default(),
            normed: B::Rows::default(),
            kept: B::Rows::default(),
            post: B::Rows::default(),
            partial: B::Rows::default(),
            attention: AttentionRows::default(),
            delta: DeltaNetRows::default(),
            layer_inputs: LayerInputRows::default(),
            feed_forward: FeedForwardRows::default(),
            angles: Vec::new(),
            host: (Vec::new(), Vec::new()),
            logits: B::Rows::default(),
        }
    }
}

/// What a decoder, or a part of one, gives.
pub enum Output<'a> {
    /// The logits of the part's rows of the head: all of V where it holds the whole head.
    Logits(Logits<'a>),
    /// The rows `[T, E]` for the next stage, of a part without a head.
    Rows(&'a [f32]),
}

impl<B: Backend> Decoder<B> {
    /// Runs one step: every span's tokens through all layers, their keys and values into the pages that the span
    /// names, and gives the logits that were asked for.
    ///
    /// A row's logits depend on its own sequence alone, bit for bit: not on other spans, nor on how its prompt was
    /// cut into steps. Nothing but the pages of the spans' own positions is written.
    ///
    /// # Errors
    /// A span is wrong (see [`ForwardError`]; nothing has run then), or the backend failed.
    pub fn forward<'s>(
        &self,
        workers: &B::Workers,
        scratch: &'s mut Scratch<B>,
        spans: &[Span<'_>],
        kv: &mut KvCache<B>,
    ) -> Result<Logits<'s>, ForwardError> {
        match self.forward_part(workers, scratch, (spans, None), kv, None)? {
            Output::Logits(logits) => Ok(logits),
            Output::Rows(_) => Err(ForwardError::Part("its last layers are elsewhere")),
        }
    }

    /// Runs this decoder's part of one step: `spans`, and the rows `[T, E]` that the stage before gave (none for a
    /// part that embeds). Partial results are summed with those of `peers`, who run the same spans.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; the peers cannot be reached; rows are missing, or not wanted.
    pub fn forward_part<'s>(
        &self,
        workers: &B::Workers,
        scratch: &'s mut Scratch<B>,
        (spans, rows): (&[Span<'_>], Option<&[f32]>),
        kv: &mut KvCache<B>,
        mut peers: Option<&mut dyn Peers>,
    ) -> Result<Output<'s>, ForwardError> {
        self.check(spans, kv)?;
        if self.part.summed != peers.is_some() {
            return Err(ForwardError::Part(
                "other ranks hold the rest of its layers, or it was told so wrongly",
            ));
        }
        let step = Step::of(spans);
        if step.tokens.is_empty() {
            return Ok(Output::Logits(Logits { values: &[], vocabulary: self.logit_columns() }));
        }
        // Where a step fails its states are gone: they may be anywhere in the middle of it.
        let mut states = self.take_states(spans, kv)?;
        self.angles(spans, scratch)?;
        self.begin(workers, &step, rows, scratch, again(&mut peers))?;
        let output = self.run(workers, &step, scratch, (kv, &mut states), peers)?;
        kv.put_states(spans, states);
        Ok(output)
    }

    fn run<'s>(
        &self,
        workers: &B::Workers,
        step: &Step<'_>,
        scratch: &'s mut Scratch<B>,
        (kv, states): (&mut KvCache<B>, &mut [SequenceState<B>]),
        mut peers: Option<&mut dyn Peers>,
    ) -> Result<Output<'s>, ForwardError> {
        let (last, layers) = self.layers.split_last().expect("a decoder has layers: loading refuses none");
        let all = (step.segments.as_slice(), None);
        for (at, layer) in layers.iter().enumerate() {
            self.mix_in(layer, (workers, at), &step.segments, scratch, (kv, states))?;
            self.mix_out(layer, (workers, at), all, (scratch, kv), again(&mut peers))?;
            self.feed(layer, (workers, at), scratch, again(&mut peers))?;
        }
        // Of the last layer everybody's keys and values are needed, but only those go on whose logits are wanted.
        let at = layers.len();
        self.mix_in(last, (workers, at), &step.segments, scratch, (kv, states))?;
        if self.part.head.is_none() {
            self.mix_out(last, (workers, at), all, (scratch, kv), again(&mut peers))?;
            self.feed(last, (workers, at), scratch, again(&mut peers))?;
            return Ok(Output::Rows(self.backend.download(&scratch.x)?));
        }
        if step.wanted.is_empty() {
            return Ok(Output::Logits(Logits { values: &[], vocabulary: self.logit_columns() }));
        }
        if let Some(wanted) = step.some() {
            self.backend.gather(&scratch.x, wanted, &mut scratch.kept)?;
            std::mem::swap(&mut scratch.x, &mut scratch.kept);
            if self.layer_inputs.is_some() {
                let rows = &mut scratch.layer_inputs;
                self.backend.gather(&rows.all, wanted, &mut rows.kept)?;
                std::mem::swap(&mut rows.all, &mut rows.kept);
            }
        }
        let wanted = (step.wanted.as_slice(), step.some());
        self.mix_out(last, (workers, at), wanted, (scratch, kv), again(&mut peers))?;
        self.feed(last, (workers, at), scratch, peers)?;
        Ok(Output::Logits(self.logits(workers, scratch)?))
    }

    /// The step's rows as they enter the first layer.
    fn begin(
        &self,
        workers: &B::Workers,
        step: &Step<'_>,
        rows: Option<&[f32]>,
        scratch: &mut Scratch<B>,
        peers: Option<&mut dyn Peers>,
    ) -> Result<(), ForwardError> {
        let e = self.spec.hidden;
        let Some(embedding) = &self.embedding else {
            let rows = rows.ok_or(ForwardError::Part("the rows of the stage before are missing"))?;
            if rows.len() != step.tokens.len() * e {
                return Err(ForwardError::Part("the stage before gave another number of rows"));
            }
            return Ok(self.backend.upload(rows, e, &mut scratch.x)?);
        };
        if rows.is_some() {
            return Err(ForwardError::Part("it embeds tokens itself and takes no rows"));
        }
        self.embed(embedding, step, scratch, peers)?;
        if self.spec.embedding_scale != 1.0 {
            self.backend.scale(&mut scratch.x, self.spec.embedding_scale)?;
        }
        if let Some(inputs) = &self.layer_inputs {
            let tokens = (step.tokens.as_slice(), &scratch.x);
            inputs.begin((&self.backend, workers), tokens, &mut scratch.layer_inputs)?;
        }
        Ok(())
    }

    fn embed(
        &self,
        embedding: &B::Matrix,
        step: &Step<'_>,
        scratch: &mut Scratch<B>,
        peers: Option<&mut dyn Peers>,
    ) -> Result<(), ForwardError> {
        let e = self.spec.hidden;
        let here = self.part.embedding.clone().unwrap_or_default();
        if here.len() == self.spec.vocabulary {
            return Ok(self.backend.embed(embedding, &step.tokens, &mut scratch.x)?);
        }
        // Each rank looks up the tokens whose rows it holds; the others' are zeros, so the sum is exact.
        let inside = |token: u32| here.contains(&(token as usize)).then(|| token - here.start as u32);
        let tokens: Vec<u32> = step.tokens.iter().map(|&token| inside(token).unwrap_or(0)).collect();
        self.backend.embed(embedding, &tokens, &mut scratch.x)?;
        let values = self.backend.values_mut(&mut scratch.x)?;
        for (row, &token) in values.chunks_exact_mut(e).zip(&step.tokens) {
            if inside(token).is_none() {
                row.fill(0.0);
            }
        }
        let peers = peers.ok_or(ForwardError::Part("other ranks hold the rest of its embedding"))?;
        peers.sum(values).map_err(ForwardError::Peers)
    }

    fn mix_in(
        &self,
        layer: &Layer<B>,
        (workers, at): (&B::Workers, usize),
        segments: &[Segment<'_>],
        scratch: &mut Scratch<B>,
        (kv, states): (&mut KvCache<B>, &mut [SequenceState<B>]),
    ) -> Result<(), BackendError> {
        let on = (&self.backend, workers);
        layer.mixer_norm.apply(on.0, workers, &scratch.x, &mut scratch.normed)?;
        match &layer.mixer {
            Mixer::Attention(attention) => attention.project(
                on,
                &scratch.normed,
                &scratch.angles[attention.rope],
                segments,
                (&mut kv.kv, at),
                &mut scratch.attention,
            ),
            Mixer::DeltaNet(delta) => {
                let with_state = segments.iter().zip(states);
                let mut segments: Vec<_> = with_state
                    .map(|(segment, state)| DeltaSegment {
                        row: segment.row,
                        tokens: segment.tokens,
                        state: &mut state.layers[delta.state],
                    })
                    .collect();
                delta.recur(on, &scratch.normed, &mut segments, &mut scratch.delta)
            }
        }
    }

    fn mix_out(
        &self,
        layer: &Layer<B>,
        (workers, at): (&B::Workers, usize),
        (segments, wanted): (&[Segment<'_>], Option<&[usize]>),
        (scratch, kv): (&mut Scratch<B>, &KvCache<B>),
        mut peers: Option<&mut dyn Peers>,
    ) -> Result<(), ResidualError> {
        let Scratch { x, partial, attention, delta, post, .. } = scratch;
        let on = (&self.backend, workers);
        let post_norm = layer.mixer_post_norm.as_ref();
        let mut residual = Residual { x, partial, post_norm, normed: post, peers: again(&mut peers) };
        match &layer.mixer {
            Mixer::Attention(mixer) => {
                mixer.attend(on, (segments, wanted), (&kv.kv, at), attention, &mut residual)
            }
            Mixer::DeltaNet(mixer) => mixer.give(on, wanted, delta, &mut residual),
        }
    }

    fn feed(
        &self,
        layer: &Layer<B>,
        (workers, at): (&B::Workers, usize),
        scratch: &mut Scratch<B>,
        mut peers: Option<&mut dyn Peers>,
    ) -> Result<(), ResidualError> {
        let Scratch { x, normed, partial, feed_forward, post, layer_inputs, .. } = scratch;
        layer.feed_forward_norm.apply(&self.backend, workers, x, normed)?;
        let on = (&self.backend, workers);
        let post_norm = layer.feed_forward_post_norm.as_ref();
        let mut residual = Residual { x, partial, post_norm, normed: post, peers: again(&mut peers) };
        layer.feed_forward.apply(on, normed, feed_forward, &mut residual)?;
        if let (Some(inputs), Some(input)) = (&self.layer_inputs, &layer.input) {
            input.apply(on, (at, &inputs.spec), layer_inputs, x)?;
        }
        if let Some(scale) = layer.output_scale {
            self.backend.scale(x, scale)?;
        }
        Ok(())
    }

    fn logits<'s>(
        &self,
        workers: &B::Workers,
        scratch: &'s mut Scratch<B>,
    ) -> Result<Logits<'s>, ForwardError> {
        let missing = ForwardError::Part("its head is elsewhere");
        let (Some(norm), Some(head)) = (&self.final_norm, self.head.as_ref()) else {
            let (Some(norm), Some(embedding)) = (&self.final_norm, &self.embedding) else {
                return Err(missing);
            };
            return self.apply_head(workers, norm, (embedding, None), scratch);
        };
        self.apply_head(workers, norm, (&head.weight, head.bias.as_ref()), scratch)
    }

    fn apply_head<'s>(
        &self,
        workers: &B::Workers,
        norm: &crate::blocks::Norm<B>,
        head: (&B::Matrix, Option<&B::Vector>),
        scratch: &'s mut Scratch<B>,
    ) -> Result<Logits<'s>, ForwardError> {
        norm.apply(&self.backend, workers, &scratch.x, &mut scratch.normed)?;
        if self.spec.pooling.is_some() {
            let values = self.backend.download(&scratch.normed)?;
            return Ok(Logits { values, vocabulary: self.logit_columns() });
        }
        self.backend.linear(workers, &scratch.normed, head, Store::Set, &mut scratch.logits)?;
        if let Some(cap) = self.spec.logit_soft_cap {
            self.backend.soft_cap(&mut scratch.logits, cap)?;
        }
        Ok(Logits { values: self.backend.download(&scratch.logits)?, vocabulary: self.logit_columns() })
    }

    /// How many logits a row has here.
    fn logit_columns(&self) -> usize {
        if self.spec.pooling.is_some() {
            return self.spec.hidden;
        }
        self.part.head.as_ref().map_or(1, |head| head.len().max(1))
    }

    /// The angles of every row's position, for each distinct rope.
    fn angles(&self, spans: &[Span<'_>], scratch: &mut Scratch<B>) -> Result<(), BackendError> {
        let (cos, sin) = &mut scratch.host;
        scratch.angles.resize_with(self.ropes.len().max(scratch.angles.len()), Default::default);
        for (rope, angles) in self.ropes.iter().zip(&mut scratch.angles) {
            cos.clear();
            sin.clear();
            for span in spans {
                rope.angles(span.position..span.position + span.tokens.len(), cos, sin);
            }
            self.backend.upload(cos, rope.dims() / 2, &mut angles.0)?;
            self.backend.upload(sin, rope.dims() / 2, &mut angles.1)?;
        }
        Ok(())
    }
}
