//! The handle: starts the engine's thread, and speaks with it over the desk.

use std::sync::Arc;
use std::time::Duration;

use base::{AttemptId, ModelName};
use batch::{Batch, Limits, LimitsError};
use crossbeam_channel::{RecvTimeoutError, bounded};
use model::spec::{PooledRows, PoolingSpec};
use parking_lot::Mutex;
use wire::job::Job;

use crate::answer::{self, Terms};
use crate::backend::{self, BackendError};
use crate::capacity::CapacityError;
use crate::compute::Compute;
use crate::config::EngineConfig;
use crate::desk::{Accepted, Desk, EngineReport, Question};
use crate::grammar::Grammars;
use crate::group::{self, GroupEnd, GroupError, GroupSeat};
use crate::guides::Guides;
use crate::load::LoadedModel;
use crate::sink::{Refusal, Sink};
use crate::speed::Speed;
use crate::worker::{Clock, Worker};

/// How long to wait for logits at most: a whole context on a slow machine.
const LOGITS_WAIT_MAX: Duration = Duration::from_secs(600);

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The KV cache.
    #[error("the kv cache does not fit")]
    Capacity(#[from] CapacityError),
    /// The bounds.
    #[error("the engine's configuration cannot work")]
    Limits(#[from] LimitsError),
    /// Weights and memory.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The system gives no thread.
    #[error("cannot start the engine's thread")]
    Thread(#[source] std::io::Error),
    /// The model cannot be divided so, or a rank of the group was lost.
    #[error("the group did not start")]
    Group(#[from] GroupError),
    /// The thread broke down while it loaded.
    #[error("the engine broke down while it loaded the model")]
    Broke,
}

/// Why there are no logits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogitsError {
    /// The tokens cannot be computed.
    #[error("{detail}")]
    Tokens {
        /// Why.
        detail: String,
    },
    /// The engine is going, or too many ask.
    #[error("the engine takes no question now")]
    Busy,
    /// It took too long.
    #[error("no answer within {seconds} s")]
    Late {
        /// How long was waited.
        seconds: u64,
    },
    /// The computation failed.
    #[error("the logits could not be computed: {detail}")]
    Failed {
        /// Why.
        detail: String,
    },
}

/// An engine that serves one model. Cheap to clone; the last clone to go stops it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    name: ModelName,
    vocabulary: usize,
    pooling: Option<PoolingSpec>,
    has_tokenizer: bool,
    notice: Option<String>,
    clock: Clock,
    desk: Arc<Desk>,
    /// Absent where there is no tokenizer, and once it is stopped.
    guides: Mutex<Option<Guides>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the engine's thread has made ready.
pub(crate) struct Ready<C> {
    pub(crate) compute: C,
    pub(crate) limits: Limits,
    pub(crate) speed: Speed,
    pub(crate) notice: Option<String>,
    /// Tokens to guess ahead at most.
    pub(crate) speculate: usize,
}

impl Engine {
    /// Loads the weights, measures the speed, and serves `model` as `name`. Returns when it is ready; loading a large
    /// model takes as long as reading it. A model without a tokenizer gives logits only.
    ///
    /// # Errors
    /// Weights or KV cache do not fit, or the configuration cannot work.
    pub fn start(name: ModelName, model: LoadedModel, config: EngineConfig) -> Result<Self, StartError> {
        let spec = model.spec();
        let terms = Terms {
            vocabulary: spec.vocabulary,
            stop_tokens: spec.stop_tokens.clone(),
            tokenizer: model.tokenizer().cloned(),
            pooling: spec.pooling,
        };
        backend::built(config.device)?;
        match config.device {
            #[cfg(feature = "candle")]
            crate::Device::CandleCpu | crate::Device::Metal(_) | crate::Device::Cuda(_) => {
                Self::start_with(name, terms, move || backend::open_candle(&model, &config))
            }
            _ => Self::start_with(name, terms, move || backend::open_cpu(&model, &config)),
        }
    }

    /// Loads rank 0's part of `model` and serves it together with the other ranks, each of which runs
    /// [`crate::group::follow`]. Requests, limits and answers are those of an engine alone. `on_end` is told once why the
    /// group is over, on the engine's thread: by a fault, or because the engine was stopped.
    ///
    /// # Errors
    /// The model cannot be divided so, the weights do not fit, or a rank was lost or disagrees.
    pub fn start_group(
        name: ModelName,
        model: LoadedModel,
        config: EngineConfig,
        seat: GroupSeat,
        on_end: impl FnOnce(GroupEnd) + Send + 'static,
    ) -> Result<Self, StartError> {
        let spec = model.spec();
        let terms = Terms {
            vocabulary: spec.vocabulary,
            stop_tokens: spec.stop_tokens.clone(),
            tokenizer: model.tokenizer().cloned(),
            pooling: spec.pooling,
        };
        Self::start_with(name, terms, move || group::lead(&model, &config, seat, Box::new(on_end)))
    }

    /// Starts an engine around whatever `open`, called on the engine's thread, makes ready.
    pub(crate) fn start_with<C: Compute>(
        name: ModelName,
        terms: Terms,
        open: impl FnOnce() -> Result<Ready<C>, StartError> + Send + 'static,
    ) -> Result<Self, StartError> {
        let clock = Clock::new();
        let (vocabulary, has_tokenizer) = (terms.vocabulary, terms.tokenizer.is_some());
        let pooling = terms.pooling;
        let grammars = terms
            .tokenizer
            .as_ref()
            .map(|tokenizer| Grammars::new(tokenizer.clone(), vocabulary, terms.stop_tokens.clone()));
        let (tell, told) = bounded(1);
        let body = move || {
            crate::machine::yield_to_others();
            let (worker, opened) = match open().and_then(|ready| assemble(ready, terms, clock)) {
                Ok((worker, desk, notice)) => (Some(worker), Ok((desk, notice))),
                Err(error) => (None, Err(error)),
            };
            // Where nobody listens any more, the worker below is dropped with its desk.
            if tell.send(opened).is_ok()
                && let Some(worker) = worker
            {
                worker.run();
            }
        };
        let thread =
            std::thread::Builder::new().name("engine".to_owned()).spawn(body).map_err(StartError::Thread)?;
        // No deadline: how long a model takes to read is the disk's affair, and the sender's end is noticed.
        let (desk, notice) = told.recv().map_err(|_| StartError::Broke)??;
        let report = desk.report();
        let places = (report.slots + report.waiting_max) as usize;
        let guides = grammars.map(|grammars| Guides::start(grammars, desk.clone(), places)).transpose();
        let guides = Mutex::new(guides.map_err(StartError::Thread)?);
        let thread = Mutex::new(Some(thread));
        let shared = Shared { name, vocabulary, pooling, has_tokenizer, notice, clock, desk, guides, thread };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The model's name.
    pub fn name(&self) -> &ModelName {
        &self.shared.name
    }

    /// What its owner should know, in words: a context that had to be shortened.
    pub fn notice(&self) -> Option<&str> {
        self.shared.notice.as_deref()
    }

    /// Takes an attempt: from here on `sink` gets its answer, and exactly one end. Returns at once.
    ///
    /// # Errors
    /// It is not taken; nothing was computed and `sink` was dropped.
    pub fn submit(&self, attempt: AttemptId, job: Job, sink: Box<dyn Sink>) -> Result<(), Refusal> {
        if job.ask.model != self.shared.name {
            let serves = self.shared.name.clone();
            return Err(Refusal::WrongModel { asked: job.ask.model, serves });
        }
        if !self.shared.has_tokenizer {
            return Err(Refusal::NotReady { detail: "its model has no tokenizer".to_owned() });
        }
        answer::check(&job, (self.shared.vocabulary, self.shared.pooling.is_some()))?;
        let accepted = Accepted { attempt, at: self.shared.clock.now(), job, sink, guide: None };
        if accepted.job.ask.constraint.is_none() {
            return self.shared.desk.submit(accepted);
        }
        self.shared.desk.reserve(&accepted)?;
        let guides = self.shared.guides.lock();
        let sent = match guides.as_ref() {
            Some(guides) => guides.prepare(accepted),
            None => Err(Box::new(accepted)),
        };
        sent.map_err(|accepted| {
            self.shared.desk.withdraw(&accepted);
            Refusal::NotReady { detail: "it is stopping".to_owned() }
        })
    }

    /// The attempt is wanted no more: its sink gets a finish that says so, within a step. Nothing where it has ended.
    pub fn cancel(&self, attempt: AttemptId) {
        self.shared.desk.cancel(attempt);
    }

    /// A sink that had no room has some now. Without this the engine finds out by itself, a little later.
    pub fn room_again(&self) {
        self.shared.desk.ring();
    }

    /// How it is, as of its last step.
    pub fn load_now(&self) -> EngineReport {
        self.shared.desk.report()
    }

    /// Logits of `tokens`, `[V]` for the last position or for each. Waits for the result; other requests wait meanwhile,
    /// so this is for tools.
    ///
    /// # Errors
    /// Tokens that cannot be computed, too many questions, or a failure.
    pub fn logits(&self, tokens: &[u32], all: bool) -> Result<Vec<Vec<f32>>, LogitsError> {
        let (context, vocabulary) = (self.load_now().context.0 as usize, self.shared.vocabulary);
        if tokens.is_empty() || tokens.len() > context {
            let detail = format!("{} tokens; 1 to {context} can be computed", tokens.len());
            return Err(LogitsError::Tokens { detail });
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            let detail = format!("token {token} is beyond the model's vocabulary of {vocabulary}");
            return Err(LogitsError::Tokens { detail });
        }
        let (answer, answered) = bounded(1);
        if !self.shared.desk.ask(Question { tokens: tokens.to_vec(), all, answer }) {
            return Err(LogitsError::Busy);
        }
        match answered.recv_timeout(LOGITS_WAIT_MAX) {
            Ok(logits) => logits.map_err(|detail| LogitsError::Failed { detail }),
            Err(RecvTimeoutError::Timeout) => Err(LogitsError::Late { seconds: LOGITS_WAIT_MAX.as_secs() }),
            Err(RecvTimeoutError::Disconnected) => Err(LogitsError::Busy),
        }
    }

    /// Ends the engine: attempts in flight fail, and its threads are joined. Once is enough; more do nothing.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

impl Shared {
    fn stop(&self) {
        self.desk.stop();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // The worker catches its own panics; there is nothing to learn from the result.
            let _ = thread.join();
        }
        // After the answers are gone that their threads work for.
        let guides = self.guides.lock().take();
        if let Some(guides) = guides {
            guides.stop();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

type Assembled<C> = (Worker<C>, Arc<Desk>, Option<String>);

fn assemble<C: Compute>(ready: Ready<C>, terms: Terms, clock: Clock) -> Result<Assembled<C>, StartError> {
    let Ready { compute, limits, mut speed, notice, speculate } = ready;
    speed.set_guesses(if compute.takes_guesses() && terms.pooling.is_none() { speculate } else { 0 });
    let report = EngineReport {
        slots: limits.running_max,
        waiting_max: limits.waiting_max,
        context: base::Tokens(limits.context),
        kv_tokens: u64::from(limits.pages) * u64::from(limits.page_tokens),
        kv_tokens_free: u64::from(limits.pages) * u64::from(limits.page_tokens),
        prefill_tokens_per_s: speed.prefill_tokens_per_s(),
        decode_tokens_per_s: speed.decode_tokens_per_s(),
        ..EngineReport::default()
    };
    let desk = Arc::new(Desk::new(u64::from(limits.pages), u64::from(limits.page_tokens), report));
    let mut batch = Batch::new(limits)?;
    // A cached beginning gives no rows: where pooling needs them all, nothing is reused.
    let all_rows = terms.pooling.is_some_and(|pooling| pooling.rows != PooledRows::Last);
    batch.reuse_prefixes(!compute.is_recurrent() && !all_rows);
    batch.set_lanes(compute.depth());
    let worker = Worker::new(desk.clone(), Arc::new(terms), clock, batch, compute, speed);
    Ok((worker, desk, notice))
}

#[cfg(test)]
mod tests;
