//! Requests to a group of processes, and what came of each.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use base::{AttemptId, ModelName, RequestId};
use engine::{Engine, Sink};
use wire::chunk::Chunk;
use wire::job::{Ask, Job, Sampling};

/// Longer than anything here takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const NAME: &str = "model";

struct Relay(SyncSender<Result<Chunk, String>>);

impl Sink for Relay {
    fn room(&self) -> bool {
        true
    }

    fn deliver(&mut self, chunk: Chunk) {
        // Whoever reads may have given up.
        let _ = self.0.send(Ok(chunk));
    }

    fn failed(&mut self, message: &str) {
        let _ = self.0.send(Err(message.to_owned()));
    }
}

/// An answer in the making.
pub(crate) struct Reader(Receiver<Result<Chunk, String>>);

/// The tokens that came, and why no more did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) failed: Option<String>,
}

impl Reader {
    /// All of it. Panics where it takes longer than anything does.
    pub(crate) fn rest(self) -> Answer {
        let mut answer = Answer { tokens: Vec::new(), failed: None };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(chunk)) => {
                    answer.tokens.extend(&chunk.tokens);
                    if chunk.finish.is_some() {
                        return answer;
                    }
                }
                Ok(Err(message)) => {
                    answer.failed = Some(message);
                    return answer;
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("a request hangs after {} tokens", answer.tokens.len())
                }
                Err(RecvTimeoutError::Disconnected) => panic!("a request ended without a word"),
            }
        }
    }
}

/// A prompt of printable bytes, another for each `number`.
pub(crate) fn prompt(number: usize, length: usize) -> Vec<u32> {
    (0..length).map(|at| 32 + ((at * at * 7 + number * 31 + at) % 90) as u32).collect()
}

/// Asks for `max_tokens` more, greedily; a refusal is an answer that failed.
pub(crate) fn submit(engine: &Engine, attempt: u128, prompt: Vec<u32>, max_tokens: u32) -> Reader {
    let ask = Ask {
        request: RequestId(attempt),
        model: ModelName::new(NAME),
        max_tokens,
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
    let (say, hear) = sync_channel(4096);
    let job = Job { ask, prompt, generated: Vec::new() };
    if let Err(refusal) = engine.submit(AttemptId(attempt), job, Box::new(Relay(say.clone()))) {
        let _ = say.send(Err(refusal.to_string()));
    }
    Reader(hear)
}
