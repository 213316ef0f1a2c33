//! One answer in the making: draws its tokens, turns them into text, and hands both to its sink.

use base::Micros;
use batch::{Cause, Drawn, Ended};
use model::spec::PoolingSpec;
use model::tokenizer::{DecodeStream, Tokenizer};
use wire::chunk::{Chunk, Finish, FinishReason, TokenLogprob};
use wire::job::{Ask, Job};

use crate::guides::Guided;
use crate::pooling::Pooled;
use crate::sampling::{self, NotFinite, Sampler};
use crate::sink::{Refusal, Sink};
use crate::stop::StopTexts;

/// Stop texts of one request at most. Each is looked for at each token.
const STOP_TEXTS_MAX: usize = 64;
/// Bytes of a stop text at most: so much of an answer may be held back.
const STOP_TEXT_BYTES_MAX: usize = 4096;

/// What every answer of an engine needs to know of its model.
pub(crate) struct Terms {
    pub(crate) vocabulary: usize,
    pub(crate) stop_tokens: Vec<u32>,
    /// Absent where only logits can be had.
    pub(crate) tokenizer: Option<Tokenizer>,
    /// Present where the model gives embeddings, and no text.
    pub(crate) pooling: Option<PoolingSpec>,
}

/// Says what is wrong with a job that can be seen without any state, if anything is.
pub(crate) fn check(job: &Job, (vocabulary, embeds): (usize, bool)) -> Result<(), Refusal> {
    let unreadable = |detail: String| Err(Refusal::Unreadable { detail });
    if job.ask.embed != embeds {
        let gives = if embeds { "embeddings and no text" } else { "text and no embeddings" };
        return Err(Refusal::OtherKind { serves: job.ask.model.clone(), gives });
    }
    if job.prompt.is_empty() {
        return unreadable("the prompt is empty".to_owned());
    }
    if job.prompt.iter().chain(&job.generated).any(|&token| token as usize >= vocabulary) {
        return unreadable(format!("a token is beyond the model's vocabulary of {vocabulary}"));
    }
    let stop = &job.ask.stop;
    if stop.len() > STOP_TEXTS_MAX {
        return unreadable(format!("{} stop texts; at most {STOP_TEXTS_MAX} are taken", stop.len()));
    }
    if let Some(text) = stop.iter().find(|text| text.is_empty() || text.len() > STOP_TEXT_BYTES_MAX) {
        let bytes = text.len();
        return unreadable(format!("a stop text of {bytes} bytes; 1 to {STOP_TEXT_BYTES_MAX} are taken"));
    }
    sampling::check(&job.ask.sampling, vocabulary).or_else(unreadable)
}

/// Why no token could be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DrawError {
    /// The model's fault.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The constraint's.
    #[error("the answer cannot be held to its form: {0}")]
    Constraint(String),
}

/// An answer.
pub(crate) struct Answer {
    sink: Box<dyn Sink>,
    sampler: Sampler,
    tokenizer: Tokenizer,
    stream: DecodeStream,
    stops: StopTexts,
    stopped: bool,
    ignore_stop_tokens: bool,
    logprobs: Option<u8>,
    /// Where it stands in a trace that somebody records.
    trace: Option<String>,
    /// What it must be.
    guide: Option<Guided>,
    /// The prompt's vector, where it is what is wanted.
    pooled: Pooled,
    /// Tokens there are, those of earlier attempts included.
    generated: u32,
    /// What the current step made (several tokens, where guesses were right), to be delivered once it is known whether
    /// the answer ends with it.
    pending: Chunk,
}

impl Answer {
    /// The answer to a job, at the place where an earlier attempt left it: its text and stop texts stand where they
    /// stood there, so that what is delivered from here on continues what was delivered then.
    pub(crate) fn new(
        ask: &Ask,
        prompt: &[u32],
        generated: &[u32],
        tokenizer: &Tokenizer,
        sink: Box<dyn Sink>,
    ) -> Self {
        let mut answer = Self {
            sink,
            sampler: Sampler::new(ask.sampling.clone(), prompt, generated),
            stream: tokenizer.stream(!ask.special_tokens),
            tokenizer: tokenizer.clone(),
            stops: StopTexts::new(ask.stop.clone()),
            stopped: false,
            ignore_stop_tokens: ask.ignore_stop_tokens,
            logprobs: ask.logprobs,
            trace: ask.trace.clone(),
            guide: None,
            pooled: Pooled::default(),
            generated: generated.len() as u32,
            pending: Chunk { first_index: generated.len() as u32, ..Chunk::default() },
        };
        for &token in generated {
            answer.certain_text(token);
        }
        answer
    }

    /// The same answer, held to a form.
    pub(crate) fn guided(self, guide: Option<Guided>) -> Self {
        Self { guide, ..self }
    }

    /// Whether a stop text has come.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Where it stands in a trace that somebody records.
    pub(crate) fn trace(&self) -> Option<&str> {
        self.trace.as_deref()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.sink.room()
    }

    /// Takes in rows of the prompt: those of the span at `position`; where it is the `last` one, the vector is made.
    pub(crate) fn pool(
        &mut self,
        pooling: &PoolingSpec,
        (position, last): (usize, bool),
        rows: &[&[f32]],
    ) -> Result<(), DrawError> {
        self.pooled.take(pooling, position, rows);
        if last {
            let vector = std::mem::take(&mut self.pooled).vector(pooling);
            self.pending.vector = Some(vector.ok_or(NotFinite)?);
        }
        Ok(())
    }

    /// Draws the next token from `row`: `[V]`.
    pub(crate) fn draw(&mut self, row: &[f32], terms: &Terms) -> Result<Drawn, DrawError> {
        let mask = match &mut self.guide {
            Some(guide) => guide.next().map_err(DrawError::Constraint)?,
            None => None,
        };
        if mask.is_some_and(|mask| mask.over) {
            return Ok(Drawn::Stop);
        }
        let token = self.sampler.draw(row, self.generated, mask)?;
        if !self.ignore_stop_tokens && terms.stop_tokens.contains(&token) {
            return Ok(Drawn::Stop);
        }
        if let Some(count) = self.logprobs {
            let logprob = logprob(row, token, count, &self.tokenizer);
            self.pending.logprobs.get_or_insert_default().push(logprob);
        }
        self.pending.tokens.push(token);
        let text = self.certain_text(token);
        self.pending.text.push_str(&text);
        self.sampler.note(token);
        if let Some(guide) = &mut self.guide
            && !self.stopped
        {
            guide.advance(token);
        }
        self.generated += 1;
        Ok(if self.stopped { Drawn::Last(token) } else { Drawn::Token(token) })
    }

    /// The text that is certain once `token` is in the answer.
    fn certain_text(&mut self, token: u32) -> String {
        if self.stopped {
            return String::new();
        }
        let text = self.stream.push(token);
        let certain = self.stops.push(&text);
        self.stopped = certain.stopped;
        certain.text
    }

    /// Delivers what the current step made, if it did not end the answer.
    pub(crate) fn deliver(&mut self) {
        let next = Chunk { first_index: self.generated, ..Chunk::default() };
        self.sink.deliver(std::mem::replace(&mut self.pending, next));
    }

    /// Delivers the last chunk.
    pub(crate) fn finish(mut self, ended: &Ended) {
        let mut chunk = std::mem::take(&mut self.pending);
        if !self.stopped {
            let rest = self.stream.flush();
            let certain = self.stops.push(&rest);
            chunk.text.push_str(&certain.text);
            if !certain.stopped {
                chunk.text.push_str(&self.stops.flush());
            }
        }
        chunk.finish = Some(Finish { stop_text: self.stops.found(), ..finish(ended) });
        self.sink.deliver(chunk);
    }

    /// Ends it without a finish.
    pub(crate) fn fail(mut self, message: &str) {
        self.sink.failed(message);
    }
}

fn logprob(row: &[f32], token: u32, count: u8, tokenizer: &Tokenizer) -> TokenLogprob {
    let (logprob, top) = sampling::logprobs(row, token, usize::from(count));
    let bytes = |token: u32| tokenizer.token_bytes(token);
    let top = top.into_iter().map(|(token, logprob)| (token, bytes(token), logprob)).collect();
    TokenLogprob { token, bytes: bytes(token), logprob, top }
}

fn finish(ended: &Ended) -> Finish {
    let account = &ended.account;
    let us = |span: Micros| span.0;
    Finish {
        reason: match ended.cause {
            Cause::Stop => FinishReason::Stop,
            Cause::Length => FinishReason::Length,
            Cause::Cancelled => FinishReason::Cancelled,
            Cause::Expired => FinishReason::Expired,
        },
        prompt_tokens: account.prompt_tokens,
        cached_tokens: account.cached_tokens,
        generated_tokens: account.generated_tokens,
        queue_us: us(account.queue),
        prefill_us: us(account.prefill),
        decode_us: us(account.decode),
        stop_text: None,
        usage_signature: None,
    }
}
