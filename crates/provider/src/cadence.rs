//! A stand-in for an engine: it computes nothing and answers at a fixed cadence, so that what a bench measures is
//! everything else.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base::{AttemptId, Tokens};
use engine::{EngineReport, Refusal, Sink};
use parking_lot::{Condvar, Mutex};
use wire::chunk::{Chunk, Finish, FinishReason};
use wire::job::Job;

/// The one token that it says, and its text.
const TOKEN: u32 = 7;
const TEXT: &str = "w";

/// How soon to look again at an answer whose way out is full.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// When its tokens come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From an attempt's arrival to its first token.
    pub first: Duration,
    /// Between two tokens.
    pub each: Duration,
}

/// A running stand-in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cadence {
    shared: Arc<Shared>,
}

struct Shared {
    pace: Pace,
    slots: u32,
    context: u32,
    state: Mutex<State>,
    sooner: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    due: BinaryHeap<Reverse<(Instant, AttemptId)>>,
    answers: HashMap<AttemptId, Answer>,
    stopping: bool,
}

struct Answer {
    sink: Box<dyn Sink>,
    began: Instant,
    prompt: u32,
    generated: u32,
    max_tokens: u32,
    cancelled: bool,
}

impl Cadence {
    /// Starts its thread.
    pub(crate) fn start(pace: Pace, slots: u32, context: u32) -> Self {
        let shared = Arc::new(Shared {
            pace,
            slots,
            context,
            state: Mutex::default(),
            sooner: Condvar::new(),
            thread: Mutex::new(None),
        });
        let of_thread = Arc::clone(&shared);
        let spawned =
            std::thread::Builder::new().name("phalanx-cadence".into()).spawn(move || of_thread.run());
        *shared.thread.lock() = spawned.ok();
        Self { shared }
    }

    pub(crate) fn submit(&self, attempt: AttemptId, job: &Job, sink: Box<dyn Sink>) -> Result<(), Refusal> {
        let shared = &self.shared;
        let now = Instant::now();
        let mut state = shared.state.lock();
        if state.stopping {
            return Err(Refusal::NotReady { detail: "it is stopping".to_owned() });
        }
        let running = u32::try_from(state.answers.len()).unwrap_or(u32::MAX);
        if running >= shared.slots {
            return Err(Refusal::NoSlot { running, waiting: 0 });
        }
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let answer = Answer {
            sink,
            began: now,
            prompt: number(job.prompt.len()),
            generated: number(job.generated.len()),
            max_tokens: job.ask.max_tokens,
            cancelled: false,
        };
        state.answers.insert(attempt, answer);
        state.due.push(Reverse((now + shared.pace.first, attempt)));
        drop(state);
        shared.sooner.notify_one();
        Ok(())
    }

    pub(crate) fn cancel(&self, attempt: AttemptId) {
        let mut state = self.shared.state.lock();
        if let Some(answer) = state.answers.get_mut(&attempt) {
            answer.cancelled = true;
            state.due.push(Reverse((Instant::now(), attempt)));
            drop(state);
            self.shared.sooner.notify_one();
        }
    }

    pub(crate) fn load_now(&self) -> EngineReport {
        let Shared { slots, context, pace, .. } = *self.shared;
        let state = self.shared.state.lock();
        let kv_tokens = u64::from(slots) * u64::from(context);
        let used: u64 = state.answers.values().map(|a| u64::from(a.prompt) + u64::from(a.max_tokens)).sum();
        EngineReport {
            slots,
            running: u32::try_from(state.answers.len()).unwrap_or(u32::MAX),
            context: Tokens(context),
            kv_tokens,
            kv_tokens_free: kv_tokens.saturating_sub(used),
            prefill_tokens_per_s: 100_000.0,
            decode_tokens_per_s: (1.0 / pace.each.as_secs_f32().max(1e-4)).min(10_000.0),
            ..EngineReport::default()
        }
    }

    pub(crate) fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.sooner.notify_one();
        if let Some(thread) = self.shared.thread.lock().take() {
            // A panic there has been said by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                for (_, mut answer) in state.answers.drain() {
                    answer.sink.failed("the engine is stopping");
                }
                return;
            }
            let now = Instant::now();
            match state.due.peek() {
                None => {
                    self.sooner.wait(&mut state);
                }
                Some(Reverse((at, _))) if *at > now => {
                    let at = *at;
                    self.sooner.wait_until(&mut state, at);
                }
                Some(_) => {
                    let Some(Reverse((at, attempt))) = state.due.pop() else { continue };
                    if let Some(next) = self.token(&mut state, attempt, at) {
                        state.due.push(Reverse((next, attempt)));
                    }
                }
            }
        }
    }

    /// Says what is due at `at`; gives when the next is.
    fn token(&self, state: &mut State, attempt: AttemptId, at: Instant) -> Option<Instant> {
        let answer = state.answers.get_mut(&attempt)?;
        if !answer.cancelled && !answer.sink.room() {
            return Some(Instant::now() + FULL_PAUSE);
        }
        let mut chunk = Chunk { first_index: answer.generated, ..Chunk::default() };
        if !answer.cancelled {
            chunk.tokens = vec![TOKEN];
            chunk.text = TEXT.to_owned();
            answer.generated += 1;
        }
        let last = answer.cancelled || answer.generated >= answer.max_tokens;
        if last {
            let us = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
            chunk.finish = Some(Finish {
                reason: if answer.cancelled { FinishReason::Cancelled } else { FinishReason::Length },
                prompt_tokens: answer.prompt,
                cached_tokens: 0,
                generated_tokens: answer.generated,
                queue_us: 0,
                prefill_us: us(self.pace.first),
                decode_us: us(answer.began.elapsed().saturating_sub(self.pace.first)),
                stop_text: None,
                usage_signature: None,
            });
        }
        answer.sink.deliver(chunk);
        if last {
            state.answers.remove(&attempt);
            return None;
        }
        // From when it was due, not from now: lateness does not add up.
        Some(at + self.pace.each)
    }
}
