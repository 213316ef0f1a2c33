//! Engines around the fixtures' models, and readers of their answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use base::{AttemptId, RequestId};
use engine::{Engine, EngineConfig, LoadOptions, ModelSource, Refusal, Sink, load};
use wire::chunk::{Chunk, Finish, TokenLogprob};
use wire::job::{Ask, Job, Sampling};

/// Longer than anything here takes on the slowest machine: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const MODEL: &str = "model";

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub(crate) fn tiny(name: &str) -> ModelSource {
    ModelSource::Folder(fixtures().join("tiny").join(name))
}

/// One thread, so that tests beside each other do not wait for each other's cores.
pub(crate) fn config() -> EngineConfig {
    EngineConfig { threads: Some(1), ..EngineConfig::default() }
}

pub(crate) fn start(source: &ModelSource, config: EngineConfig) -> Engine {
    let model = load(source, &LoadOptions::default()).expect("the fixture is whole");
    Engine::start(MODEL.into(), model, config).expect("the fixture fits")
}

pub(crate) fn job(prompt: &[u32], max_tokens: u32, sampling: Sampling) -> Job {
    let ask = Ask {
        request: RequestId(7),
        model: MODEL.into(),
        max_tokens,
        sampling,
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
    Job { ask, prompt: prompt.to_vec(), generated: Vec::new() }
}

/// A prompt of printable bytes, which are tokens of the tiny models; another for each `number`.
pub(crate) fn prompt(number: usize, length: usize) -> Vec<u32> {
    (0..length).map(|at| 32 + ((at * at * 7 + number * 31 + at) % 90) as u32).collect()
}

enum Event {
    Chunk(Chunk),
    Failed(String),
}

struct ChannelSink {
    sender: Sender<Event>,
    delivered: u64,
    room: Arc<AtomicU64>,
}

impl Sink for ChannelSink {
    fn room(&self) -> bool {
        self.delivered < self.room.load(Ordering::SeqCst)
    }

    fn deliver(&mut self, chunk: Chunk) {
        self.delivered += 1;
        // Whoever reads may have given up.
        let _ = self.sender.send(Event::Chunk(chunk));
    }

    fn failed(&mut self, message: &str) {
        let _ = self.sender.send(Event::Failed(message.to_owned()));
    }
}

/// What came of an attempt.
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) finish: Finish,
}

/// The other end of a sink.
pub(crate) struct Reader {
    pub(crate) attempt: AttemptId,
    receiver: Receiver<Event>,
    room: Arc<AtomicU64>,
}

impl Reader {
    /// There is room for all of it from now on.
    pub(crate) fn resume(&self) {
        self.room.store(u64::MAX, Ordering::SeqCst);
    }

    fn next(&self) -> Result<Chunk, String> {
        match self.receiver.recv_timeout(PATIENCE) {
            Ok(Event::Chunk(chunk)) => Ok(chunk),
            Ok(Event::Failed(message)) => Err(message),
            Err(RecvTimeoutError::Timeout) => panic!("no chunk within {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => panic!("the sink was dropped without an end"),
        }
    }

    /// One chunk.
    pub(crate) fn chunk(&self) -> Chunk {
        self.next().expect("the attempt goes on")
    }

    /// Everything from here to the end; also that nothing comes after it, and that indices have no gap.
    pub(crate) fn rest(self) -> Result<Answer, String> {
        let mut answer: Option<(u32, Vec<u32>, String, Vec<TokenLogprob>)> = None;
        loop {
            let chunk = self.next()?;
            let (first, tokens, text, logprobs) =
                answer.get_or_insert_with(|| (chunk.first_index, Vec::new(), String::new(), Vec::new()));
            assert_eq!(chunk.first_index as usize, *first as usize + tokens.len(), "indices have no gap");
            tokens.extend(chunk.tokens);
            text.push_str(&chunk.text);
            logprobs.extend(chunk.logprobs.unwrap_or_default());
            if let Some(finish) = chunk.finish {
                let (_, tokens, text, logprobs) = answer.take().expect("it was set above");
                let after = self.receiver.recv_timeout(PATIENCE).err();
                assert_eq!(after, Some(RecvTimeoutError::Disconnected), "something came after the end");
                return Ok(Answer { tokens, text, logprobs, finish });
            }
        }
    }
}

/// Submits `job` under a fresh attempt.
pub(crate) fn submit(engine: &Engine, job: Job) -> Result<Reader, Refusal> {
    submit_slow(engine, job, u64::MAX)
}

/// Submits `job` with a sink that has room for so many chunks until it is resumed.
pub(crate) fn submit_slow(engine: &Engine, job: Job, chunks: u64) -> Result<Reader, Refusal> {
    submit_gated(engine, job, Arc::new(AtomicU64::new(chunks)))
}

/// Submits `job` with a sink that has room for as many chunks as `room` says, which several can share.
pub(crate) fn submit_gated(engine: &Engine, job: Job, room: Arc<AtomicU64>) -> Result<Reader, Refusal> {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(1);
    let attempt = AttemptId(ATTEMPTS.fetch_add(1, Ordering::SeqCst).into());
    let (sender, receiver) = channel();
    engine.submit(attempt, job, Box::new(ChannelSink { sender, delivered: 0, room: room.clone() }))?;
    Ok(Reader { attempt, receiver, room })
}

/// Submits `job` and reads its whole answer.
pub(crate) fn answer(engine: &Engine, job: Job) -> Answer {
    submit(engine, job).expect("there is room").rest().expect("it is answered")
}
