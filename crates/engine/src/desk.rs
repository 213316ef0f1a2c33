//! Where callers and the engine's thread meet: what has arrived, what is wanted no more, and how full the engine is.
//!
//! A submission is decided here, under a lock that is held for microseconds, so that callers never wait for a step.
//! Every queue is bounded: arrivals by the places there are, cancels by the attempts there are, questions by
//! [`QUESTIONS_MAX`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use base::{AttemptId, Micros, Tokens};
use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};
use wire::job::Job;

use crate::group::GroupReport;
use crate::guides::Guided;
use crate::sink::{Refusal, Sink};

/// Questions for logits that wait at most. They are asked by tools, one at a time.
const QUESTIONS_MAX: usize = 4;

/// How an engine is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineReport {
    /// Requests it computes together at most.
    pub slots: u32,
    /// Requests it takes beyond those, to wait for a place.
    pub waiting_max: u32,
    /// Requests it computes now.
    pub running: u32,
    /// Requests that wait inside it.
    pub waiting: u32,
    /// The longest context it serves, prompt and answer together.
    pub context: Tokens,
    /// Tokens that its KV cache can hold in all.
    pub kv_tokens: u64,
    /// Of these, free (or held only as reusable prefixes), what waits inside taken off.
    pub kv_tokens_free: u64,
    /// Prompt tokens that wait to be prefilled.
    pub prefill_tokens_waiting: u64,
    /// Measured: prompt tokens a second, one request.
    pub prefill_tokens_per_s: f32,
    /// Measured: generated tokens a second, one request alone.
    pub decode_tokens_per_s: f32,
    /// Steps computed.
    pub steps: u64,
    /// Tokens computed, those of prompts included.
    pub computed_tokens: u64,
    /// Prompt tokens that were found in cache instead.
    pub cached_tokens: u64,
    /// Tokens that were guessed ahead and computed.
    pub guessed_tokens: u64,
    /// Of these, those that were drawn.
    pub guessed_right: u64,
    /// Times that a request lost its pages and was computed again.
    pub preemptions: u64,
    /// Where the time goes, of an engine that leads a group.
    pub group: Option<GroupReport>,
    /// Why the engine serves no more, if so.
    pub failed: Option<String>,
}

/// An attempt that was taken.
pub(crate) struct Accepted {
    pub(crate) attempt: AttemptId,
    pub(crate) at: Micros,
    pub(crate) job: Job,
    pub(crate) sink: Box<dyn Sink>,
    /// What its answer must be; filled in before it enters.
    pub(crate) guide: Option<Guided>,
}

impl Accepted {
    fn tokens(&self) -> u64 {
        (self.job.prompt.len() + self.job.generated.len()) as u64
    }
}

/// Someone wants logits.
pub(crate) struct Question {
    pub(crate) tokens: Vec<u32>,
    pub(crate) all: bool,
    pub(crate) answer: Sender<Result<Vec<Vec<f32>>, String>>,
}

/// What the engine's thread finds.
#[derive(Default)]
pub(crate) struct Intake {
    pub(crate) arrivals: Vec<Accepted>,
    pub(crate) cancels: Vec<AttemptId>,
    pub(crate) questions: VecDeque<Question>,
    pub(crate) stopping: bool,
}

impl Intake {
    fn is_empty(&self) -> bool {
        self.arrivals.is_empty() && self.cancels.is_empty() && self.questions.is_empty() && !self.stopping
    }
}

struct State {
    intake: Intake,
    /// Attempts that were taken and have not ended.
    live: HashSet<AttemptId>,
    /// Pages that the batch needs for the tokens it has.
    batch_pages: u64,
    /// Pages that arrivals will need.
    arriving_pages: u64,
    arriving_tokens: u64,
    /// Attempts that were taken and whose constraints are being compiled; whether they are wanted no more.
    preparing: HashMap<AttemptId, bool>,
    preparing_pages: u64,
    report: EngineReport,
}

/// The meeting place.
pub(crate) struct Desk {
    state: Mutex<State>,
    bell: Condvar,
    page_tokens: u64,
    pages: u64,
}

impl Desk {
    /// For an engine with so many pages; `report` says how it is at first.
    pub(crate) fn new(pages: u64, page_tokens: u64, report: EngineReport) -> Self {
        let state = State {
            intake: Intake::default(),
            live: HashSet::new(),
            batch_pages: 0,
            arriving_pages: 0,
            arriving_tokens: 0,
            preparing: HashMap::new(),
            preparing_pages: 0,
            report,
        };
        Self { state: Mutex::new(state), bell: Condvar::new(), page_tokens, pages }
    }

    /// Takes an attempt, or says why not.
    pub(crate) fn submit(&self, accepted: Accepted) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        self.take_place(&mut state, &accepted)?;
        self.push(&mut state, accepted);
        Ok(())
    }

    /// Takes an attempt that enters later ([`Desk::enter`], [`Desk::withdraw`]), or says why not.
    pub(crate) fn reserve(&self, accepted: &Accepted) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        self.take_place(&mut state, accepted)?;
        state.preparing.insert(accepted.attempt, false);
        state.preparing_pages += accepted.tokens().div_ceil(self.page_tokens);
        Ok(())
    }

    /// What was reserved is ready.
    pub(crate) fn enter(&self, mut accepted: Accepted) {
        let mut state = self.state.lock();
        let cancelled = self.prepared(&mut state, &accepted);
        let gone = match &state.report.failed {
            Some(detail) => Some(detail.clone()),
            None => state.intake.stopping.then(|| "the engine is stopping".to_owned()),
        };
        match gone {
            Some(why) => {
                state.live.remove(&accepted.attempt);
                drop(state);
                accepted.sink.failed(&why);
            }
            None => {
                if cancelled {
                    state.intake.cancels.push(accepted.attempt);
                }
                self.push(&mut state, accepted);
            }
        }
    }

    /// What was reserved is not wanted.
    pub(crate) fn withdraw(&self, accepted: &Accepted) {
        let mut state = self.state.lock();
        self.prepared(&mut state, accepted);
        state.live.remove(&accepted.attempt);
    }

    /// It is being prepared no more; whether it was cancelled meanwhile.
    fn prepared(&self, state: &mut State, accepted: &Accepted) -> bool {
        state.preparing_pages -= accepted.tokens().div_ceil(self.page_tokens);
        state.preparing.remove(&accepted.attempt).unwrap_or(false)
    }

    fn take_place(&self, state: &mut State, accepted: &Accepted) -> Result<(), Refusal> {
        let tokens = accepted.tokens();
        if let Some(detail) = &state.report.failed {
            return Err(Refusal::NotReady { detail: detail.clone() });
        }
        if state.intake.stopping {
            return Err(Refusal::NotReady { detail: "it is stopping".to_owned() });
        }
        // A text that is embedded may fill the context: nothing comes after it.
        let more = u64::from(!accepted.job.ask.embed);
        if tokens + more > u64::from(state.report.context.0) {
            return Err(Refusal::TooLong { tokens, context: state.report.context.0 });
        }
        if state.live.contains(&accepted.attempt) {
            return Err(Refusal::Unreadable { detail: format!("{} is here already", accepted.attempt) });
        }
        let (slots, waiting_max) = (state.report.slots, state.report.waiting_max);
        let live = state.live.len() as u32;
        if live >= slots + waiting_max {
            let running = live.min(slots);
            return Err(Refusal::NoSlot { running, waiting: live - running });
        }
        let pages = tokens.div_ceil(self.page_tokens);
        let free =
            self.pages.saturating_sub(state.batch_pages + state.arriving_pages + state.preparing_pages);
        if pages > free {
            let [needed, free] = [pages, free].map(|pages| pages * self.page_tokens);
            return Err(Refusal::NoKvRoom { needed, free });
        }
        state.live.insert(accepted.attempt);
        Ok(())
    }

    fn push(&self, state: &mut State, accepted: Accepted) {
        let tokens = accepted.tokens();
        state.arriving_pages += tokens.div_ceil(self.page_tokens);
        state.arriving_tokens += tokens;
        state.intake.arrivals.push(accepted);
        self.bell.notify_one();
    }

    /// The attempt is wanted no more. Nothing where it has ended.
    pub(crate) fn cancel(&self, attempt: AttemptId) {
        let mut state = self.state.lock();
        if let Some(cancelled) = state.preparing.get_mut(&attempt) {
            *cancelled = true;
            return;
        }
        if state.live.contains(&attempt) && !state.intake.cancels.contains(&attempt) {
            state.intake.cancels.push(attempt);
            self.bell.notify_one();
        }
    }

    /// Asks for logits; false where too many ask or the engine is going.
    pub(crate) fn ask(&self, question: Question) -> bool {
        let mut state = self.state.lock();
        let closed = state.intake.stopping || state.report.failed.is_some();
        if closed || state.intake.questions.len() >= QUESTIONS_MAX {
            return false;
        }
        state.intake.questions.push_back(question);
        self.bell.notify_one();
        true
    }

    /// The engine shall end.
    pub(crate) fn stop(&self) {
        self.state.lock().intake.stopping = true;
        self.bell.notify_one();
    }

    /// Wakes the engine's thread, so that it looks again which readers have room.
    pub(crate) fn ring(&self) {
        self.bell.notify_one();
    }

    /// What has come, at once; with `wait`, after waiting so long for something to come.
    pub(crate) fn take(&self, wait: Option<Duration>) -> Intake {
        let mut state = self.state.lock();
        if let Some(wait) = wait
            && state.intake.is_empty()
        {
            self.bell.wait_for(&mut state, wait);
        }
        // What arrived counts as the batch's from here on; the next settlement makes it exact.
        state.batch_pages += std::mem::take(&mut state.arriving_pages);
        state.arriving_tokens = 0;
        let stopping = state.intake.stopping;
        let intake = std::mem::take(&mut state.intake);
        state.intake.stopping = stopping;
        intake
    }

    /// The engine's thread tells what has ended and how it is now.
    pub(crate) fn settle(
        &self,
        ended: &[AttemptId],
        batch_pages: u64,
        update: impl FnOnce(&mut EngineReport),
    ) {
        let mut state = self.state.lock();
        for attempt in ended {
            state.live.remove(attempt);
        }
        state.batch_pages = batch_pages;
        update(&mut state.report);
    }

    /// The engine's thread is gone, or about to: nothing more is taken. What had arrived comes back.
    pub(crate) fn close(&self, failed: &str) -> Intake {
        let mut state = self.state.lock();
        state.report.failed.get_or_insert_with(|| failed.to_owned());
        state.report.running = 0;
        state.report.waiting = 0;
        state.live.clear();
        std::mem::take(&mut state.intake)
    }

    /// How the engine is.
    pub(crate) fn report(&self) -> EngineReport {
        let state = self.state.lock();
        let mut report = state.report.clone();
        let live = state.live.len() as u32;
        report.running = report.running.min(live);
        report.waiting = live - report.running;
        let needed = state.batch_pages + state.arriving_pages + state.preparing_pages;
        report.kv_tokens_free = self.pages.saturating_sub(needed) * self.page_tokens;
        report.prefill_tokens_waiting += state.arriving_tokens;
        report
    }
}
