//! Jobs through a real engine, timed by their chunks.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base::{AttemptId, ModelName, RequestId, Rng};
use engine::{Engine, Sink};
use wire::chunk::{Chunk, Finish, FinishReason};
use wire::job::{Ask, Job, Sampling};

use crate::spread::Spread;

/// A model of many gigabytes on a slow machine still answers a bench's job within this.
const ANSWER_MAX: Duration = Duration::from_secs(3600);
/// Prompt tokens where only decode is measured.
const SHORT_PROMPT: u32 = 16;
/// Tokens that a repeating prompt repeats.
const REPEATED: u32 = 12;

/// An engine and what its jobs are made of.
pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) name: ModelName,
    pub(crate) vocabulary: u32,
    pub(crate) rng: Rng,
    pub(crate) attempts: u128,
}

/// One job to start.
pub(crate) struct Start {
    prompt_tokens: u32,
    max_tokens: u32,
    /// The prompt's own seed, where two jobs are to be equal.
    seed: Option<u64>,
    /// So many tokens come from that seed, and those behind them from none.
    known: Option<u32>,
    /// After so many tokens the prompt begins again.
    period: Option<u32>,
}

impl Start {
    pub(crate) fn new(prompt_tokens: u32, max_tokens: u32) -> Self {
        Self { prompt_tokens, max_tokens, seed: None, known: None, period: None }
    }
}

/// What came back.
pub(crate) struct Answered {
    tokens: Vec<u32>,
    finish: Finish,
    /// When each chunk with tokens came.
    times: Vec<Instant>,
    /// How many tokens each of them had.
    counts: Vec<usize>,
}

/// Tokens a second of all together, while all of them run: from when the last has begun until the first has ended. Else a
/// batch whose prompts come in one after the other would look faster than it is. Nothing where they never did.
fn together(answered: &[Answered]) -> anyhow::Result<Option<f64>> {
    let edge = |of: fn(&Answered) -> Option<&Instant>| {
        answered.iter().map(|answer| of(answer).copied()).collect::<Option<Vec<_>>>()
    };
    let begun = edge(|answer| answer.times.first()).and_then(|times| times.into_iter().max());
    let ended = edge(|answer| answer.times.last()).and_then(|times| times.into_iter().min());
    let (begun, ended) = begun.zip(ended).context("an answer without a token")?;
    if begun >= ended {
        return Ok(None);
    }
    let chunks = answered.iter().flat_map(|answer| answer.times.iter().zip(&answer.counts));
    let tokens: usize = chunks.filter(|(at, _)| **at > begun && **at <= ended).map(|(_, count)| count).sum();
    Ok(Some(tokens as f64 / (ended - begun).as_secs_f64()))
}

/// A chunk and when it came, or why there is none.
type Event = Result<(Instant, Chunk), String>;

struct Relay(SyncSender<Event>);

impl Sink for Relay {
    fn room(&self) -> bool {
        true
    }

    fn deliver(&mut self, chunk: Chunk) {
        // There is room for one event a token and more: a full channel cannot be, a closed one is nobody's loss.
        let _ = self.0.try_send(Ok((Instant::now(), chunk)));
    }

    fn failed(&mut self, message: &str) {
        let _ = self.0.try_send(Err(message.to_owned()));
    }
}

impl Bench {
    /// Seconds to the first token of a prompt whose first `known` tokens are always the same, and how many of them were
    /// found computed.
    pub(crate) fn first_token(&mut self, prompt_tokens: u32, known: u32) -> anyhow::Result<(f64, u32)> {
        let start = Start { seed: Some(78), known: Some(known), ..Start::new(prompt_tokens, 1) };
        let begun = Instant::now();
        let answered = self.answers(vec![start])?;
        let first = answered[0].times.first().context("an answer without a token")?;
        Ok(((*first - begun).as_secs_f64(), answered[0].finish.cached_tokens))
    }

    fn submit(&mut self, start: &Start) -> anyhow::Result<Receiver<Event>> {
        let mut rng = start.seed.map_or_else(|| self.rng.fork(1), Rng::new);
        let vocabulary = u64::from(self.vocabulary);
        let mut prompt: Vec<u32> = (0..start.prompt_tokens).map(|_| rng.below(vocabulary) as u32).collect();
        for token in prompt.iter_mut().skip(start.known.map_or(usize::MAX, |known| known as usize)) {
            *token = self.rng.below(vocabulary) as u32;
        }
        for at in start.period.map_or(usize::MAX, |period| period as usize)..prompt.len() {
            prompt[at] = prompt[at - start.period.unwrap_or_default() as usize];
        }
        let ask = Ask {
            request: RequestId::random(&mut self.rng),
            model: self.name.clone(),
            max_tokens: start.max_tokens,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_stop_tokens: true,
            logprobs: None,
            deadline_us: 0,
            constraint: None,
            special_tokens: false,
            embed: false,
            trace: None,
            hold_ms: 0,
        };
        self.attempts += 1;
        let (sender, receiver) = sync_channel(start.max_tokens as usize + 4);
        let job = Job { ask, prompt, generated: Vec::new() };
        self.engine
            .submit(AttemptId(self.attempts), job, Box::new(Relay(sender)))
            .context("the engine does not take a job")?;
        Ok(receiver)
    }

    /// Starts all at once and waits for all.
    pub(crate) fn answers(&mut self, starts: Vec<Start>) -> anyhow::Result<Vec<Answered>> {
        let receivers: Vec<_> =
            starts.iter().map(|start| self.submit(start)).collect::<anyhow::Result<_>>()?;
        starts.iter().zip(receivers).map(|(start, receiver)| gather(start, &receiver)).collect()
    }

    /// Prompt tokens a second of one request.
    pub(crate) fn prefill(&mut self, prompt_tokens: u32) -> anyhow::Result<f64> {
        let answered = self.answers(vec![Start::new(prompt_tokens, 1)])?;
        let seconds = answered[0].finish.prefill_us.max(1) as f64 / 1e6;
        Ok(f64::from(prompt_tokens) / seconds)
    }

    /// Generated tokens a second of `batch` requests together, while all run: about `tokens` each.
    pub(crate) fn decode(&mut self, batch: u32, tokens: u32) -> anyhow::Result<f64> {
        // A page that all begin with and one token of their own, so that they begin in the same step; where nothing is
        // shared (recurrent models), prompts come in one after the other and it takes longer answers.
        for more in [4, 8 * batch, 32 * batch] {
            let start = || Start {
                seed: Some(79),
                known: Some(SHORT_PROMPT),
                ..Start::new(SHORT_PROMPT + 1, tokens + more)
            };
            if let Some(speed) = together(&self.answers((0..batch).map(|_| start()).collect())?)? {
                return Ok(speed);
            }
        }
        bail!("{batch} requests never ran at the same time")
    }

    /// Generated tokens a second of one request whose prompt says the same few tokens again and again.
    pub(crate) fn decode_repeated(&mut self, tokens: u32) -> anyhow::Result<f64> {
        let start = Start { period: Some(REPEATED), ..Start::new(8 * REPEATED, tokens) };
        together(&self.answers(vec![start])?)?.context("an answer of one token has no speed")
    }

    /// Whether a greedy answer is the same alone and among `batch` requests.
    pub(crate) fn equal_at_any_batch(&mut self, batch: u32, tokens: u32) -> anyhow::Result<bool> {
        let one = || Start { seed: Some(77), ..Start::new(SHORT_PROMPT, tokens) };
        let alone = self.answers(vec![one()])?;
        let mut starts: Vec<Start> = (1..batch).map(|_| Start::new(SHORT_PROMPT, tokens)).collect();
        starts.push(one());
        let among = self.answers(starts)?;
        Ok(alone[0].tokens == among[among.len() - 1].tokens)
    }

    /// How long between a running stream's tokens, while a prompt of `long` tokens is prefilled or not; and how long that
    /// prompt took.
    pub(crate) fn between_tokens(
        &mut self,
        streams: u32,
        tokens: u32,
        long: Option<u32>,
    ) -> anyhow::Result<(Spread, Duration)> {
        let starts: Vec<Start> = (0..streams).map(|_| Start::new(SHORT_PROMPT, tokens)).collect();
        let receivers: Vec<_> =
            starts.iter().map(|start| self.submit(start)).collect::<anyhow::Result<_>>()?;
        // The long prompt comes when every stream runs.
        let mut firsts = Vec::new();
        for receiver in &receivers {
            firsts.push(next(receiver)?);
        }
        let long = long.map(|prompt| Start::new(prompt, 1));
        let disturbance = long.as_ref().map(|start| self.submit(start)).transpose()?;
        let mut gaps = Vec::new();
        for ((start, receiver), first) in starts.iter().zip(&receivers).zip(firsts) {
            let answered = gather_after(start, receiver, Some(first))?;
            gaps.extend(answered.times.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()));
        }
        let mut prefill = Duration::ZERO;
        if let (Some(start), Some(receiver)) = (&long, &disturbance) {
            prefill = Duration::from_micros(gather(start, receiver)?.finish.prefill_us);
        }
        Ok((Spread::of(gaps), prefill))
    }
}

fn next(receiver: &Receiver<Event>) -> anyhow::Result<(Instant, Chunk)> {
    match receiver.recv_timeout(ANSWER_MAX) {
        Ok(Ok(event)) => Ok(event),
        Ok(Err(message)) => bail!("the engine failed a job: {message}"),
        Err(_) => bail!("a job got no end within {ANSWER_MAX:?}"),
    }
}

fn gather(start: &Start, receiver: &Receiver<Event>) -> anyhow::Result<Answered> {
    gather_after(start, receiver, None)
}

/// The whole of an answer, checked: every token once, in order, as many as were asked for.
fn gather_after(
    start: &Start,
    receiver: &Receiver<Event>,
    first: Option<(Instant, Chunk)>,
) -> anyhow::Result<Answered> {
    let (mut tokens, mut times, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    let mut event = first;
    loop {
        let (at, chunk) = match event.take() {
            Some(event) => event,
            None => next(receiver)?,
        };
        ensure!(
            chunk.first_index as usize == tokens.len(),
            "a chunk begins at token {}, {} came before",
            chunk.first_index,
            tokens.len()
        );
        if !chunk.tokens.is_empty() {
            times.push(at);
            counts.push(chunk.tokens.len());
        }
        tokens.extend(chunk.tokens);
        let Some(finish) = chunk.finish else { continue };
        ensure!(
            finish.reason == FinishReason::Length && tokens.len() == start.max_tokens as usize,
            "{} tokens and {:?} where {} were asked for",
            tokens.len(),
            finish.reason,
            start.max_tokens
        );
        ensure!(finish.prompt_tokens == start.prompt_tokens, "the prompt was not counted right");
        return Ok(Answered { tokens, finish, times, counts });
    }
}
