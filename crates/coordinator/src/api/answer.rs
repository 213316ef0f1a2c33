//! The answers to one call as one stream of pieces: text, reasoning and tool calls told apart, choices interleaved as they
//! come, with one end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use wire::chunk::{FinishReason, TokenLogprob};
use wire::openai::response::Usage;

use super::reader::{Reader, Reading};
use crate::dispatch::{Delta, Event, Finished};
use crate::problem::Problem;
use crate::segments::Timings;

/// A piece of an answer, whatever API it goes to. Not `Debug`.
pub(super) enum Part {
    /// What the caller reads.
    Content(String),
    /// What the model thought.
    Reasoning(String),
    /// A call begins: its place among the answer's calls, and its tool.
    Call { index: usize, name: String },
    /// More of a call's arguments, as JSON text.
    Arguments { index: usize, text: String },
    /// A call is whole.
    CallEnd { index: usize },
}

impl Part {
    /// How much it says: bytes of text; for the beginning and the end of a call one each.
    fn weight(&self) -> u64 {
        match self {
            Self::Content(text) | Self::Reasoning(text) | Self::Arguments { text, .. } => text.len() as u64,
            Self::Call { .. } | Self::CallEnd { .. } => 1,
        }
    }

    /// In two, after so many bytes; a character that a caller named the middle of goes with the rest.
    fn split(self, bytes: usize) -> (Self, Self) {
        let cut = |mut text: String| {
            let mut at = bytes.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let rest = text.split_off(at);
            (text, rest)
        };
        match self {
            Self::Content(text) => {
                let (had, rest) = cut(text);
                (Self::Content(had), Self::Content(rest))
            }
            Self::Reasoning(text) => {
                let (had, rest) = cut(text);
                (Self::Reasoning(had), Self::Reasoning(rest))
            }
            Self::Arguments { index, text } => {
                let (had, rest) = cut(text);
                (Self::Arguments { index, text: had }, Self::Arguments { index, text: rest })
            }
            // They are one and have no middle.
            whole @ (Self::Call { .. } | Self::CallEnd { .. }) => (Self::Content(String::new()), whole),
        }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The model was through, or a stop text came.
    Stop,
    /// It has as many tokens as it may.
    Length,
    /// It waits for tools.
    Calls,
}

/// What the stream says. `Waiting` any number of times, `Started`, parts and ends, `Complete`, `Settled`; or `Failed`
/// instead of any of it.
pub(super) enum Told {
    /// It has waited long, and waits still.
    Waiting,
    /// The first token came.
    Started(Box<Timings>),
    /// A piece of a choice.
    Part { choice: u32, part: Part, logprobs: Option<Vec<TokenLogprob>> },
    /// A piece of a choice that its caller, who came back, has already.
    Had { choice: u32, part: Part, logprobs: Option<Vec<TokenLogprob>> },
    /// A choice is whole.
    End { choice: u32, end: End, stop_text: Option<String> },
    /// All are. Whoever answers a caller ends here: the settlement is the ledger's time, and no caller's.
    Complete(Usage, Box<Timings>),
    /// And settled.
    Settled(Box<Timings>),
    /// There is no (more) answer.
    Failed(Box<Problem>),
}

/// One choice on its way.
struct Lane {
    events: mpsc::Receiver<Event>,
    reader: Reader,
    usage: Option<Usage>,
    settled: bool,
}

/// A call's answers on their way. Dropped, they are cancelled.
pub(super) struct Answering {
    lanes: Vec<Lane>,
    told: VecDeque<Told>,
    started: bool,
    /// Where to look first: no choice is always looked at before the others.
    next: usize,
    over: bool,
    /// Whether its caller is told where it is, to come back there.
    marked: bool,
    /// How much has been said, as [`Part::weight`] counts. The same for the same answer, however its text was cut.
    said: u64,
    /// How much of it the caller has already.
    has: u64,
}

impl Answering {
    pub(super) fn new(events: Vec<mpsc::Receiver<Event>>, reading: &Reading) -> Self {
        let lane = |events| Lane { events, reader: Reader::new(reading), usage: None, settled: false };
        Self {
            lanes: events.into_iter().map(lane).collect(),
            told: VecDeque::new(),
            started: false,
            next: 0,
            over: false,
            marked: false,
            said: 0,
            has: 0,
        }
    }

    /// Whether its caller is told where it is.
    pub(super) fn marked(self, marked: bool) -> Self {
        Self { marked, ..self }
    }

    /// Leaves out what the caller has: everything up to a mark.
    pub(super) fn after(self, has: u64) -> Self {
        Self { has, ..self }
    }

    /// Whether its caller has its beginning.
    pub(super) fn is_resumed(&self) -> bool {
        self.has > 0
    }

    /// Where the caller is once it has read all that was told; nothing where nobody wants to know.
    pub(super) fn mark(&self) -> Option<u64> {
        self.marked.then_some(self.said)
    }

    /// How many there are.
    pub(super) fn choices(&self) -> u32 {
        u32::try_from(self.lanes.len()).unwrap_or(u32::MAX)
    }

    /// What comes next; nothing after the end.
    pub(super) async fn next(&mut self) -> Option<Told> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What is there already.
    pub(super) fn ready(&mut self) -> Option<Told> {
        let waker = std::task::Waker::noop();
        match self.poll_next(&mut Context::from_waker(waker)) {
            Poll::Ready(told) => told,
            Poll::Pending => None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Told>> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Poll::Ready(Some(self.had(told)));
            }
            if self.over {
                return Poll::Ready(None);
            }
            let count = self.lanes.len();
            let mut heard = None;
            for step in 0..count {
                let at = (self.next + step) % count;
                if self.lanes[at].settled {
                    continue;
                }
                if let Poll::Ready(event) = self.lanes[at].events.poll_recv(cx) {
                    heard = Some((at, event));
                    break;
                }
            }
            let Some((at, event)) = heard else { return Poll::Pending };
            self.next = at + 1;
            // A task that ends without a terminal has panicked.
            let event = event
                .unwrap_or_else(|| Event::Failed(Box::new(Problem::Internal("the request's task ended"))));
            self.take(at, event);
        }
    }

    /// Tells what the caller has already from what it does not.
    fn had(&mut self, told: Told) -> Told {
        let Told::Part { choice, part, logprobs } = told else { return told };
        let had = self.has.saturating_sub(self.said);
        let weight = part.weight();
        if had == 0 {
            self.said += weight;
            return Told::Part { choice, part, logprobs };
        }
        if had >= weight {
            self.said += weight;
            return Told::Had { choice, part, logprobs };
        }
        let (part, rest) = part.split(usize::try_from(had).unwrap_or(usize::MAX));
        self.said += part.weight();
        self.has = self.said;
        self.told.push_front(Told::Part { choice, part: rest, logprobs });
        Told::Had { choice, part, logprobs: None }
    }

    fn take(&mut self, at: usize, event: Event) {
        match event {
            Event::Waiting => self.told.push_back(Told::Waiting),
            Event::Started(timings) => {
                if !std::mem::replace(&mut self.started, true) {
                    self.told.push_back(Told::Started(timings));
                }
            }
            Event::Delta(delta) => self.delta(at, delta),
            Event::Finished(finished) => self.finish(at, finished),
            Event::Settled(timings) => {
                self.lanes[at].settled = true;
                if self.lanes.iter().all(|lane| lane.settled) {
                    self.told.push_back(Told::Settled(timings));
                    self.over = true;
                }
            }
            Event::Failed(problem) => {
                // The others are not wanted any more: dropped, they are cancelled.
                self.lanes.clear();
                self.told.push_back(Told::Failed(problem));
                self.over = true;
            }
        }
    }

    fn delta(&mut self, at: usize, delta: Delta) {
        let choice = u32::try_from(at).unwrap_or(u32::MAX);
        let parts = self.lanes[at].reader.push(&delta.text, delta.tokens);
        let silent = parts.is_empty();
        let mut logprobs = delta.logprobs;
        for part in parts {
            // They belong to what is read; of reasoning and calls none are told.
            let with = if matches!(part, Part::Content(_)) { logprobs.take() } else { None };
            self.told.push_back(Told::Part { choice, part, logprobs: with });
        }
        if silent && logprobs.is_some() {
            let part = Part::Content(String::new());
            self.told.push_back(Told::Part { choice, part, logprobs });
        }
    }

    fn finish(&mut self, at: usize, finished: Finished) {
        let choice = u32::try_from(at).unwrap_or(u32::MAX);
        let lane = &mut self.lanes[at];
        for part in lane.reader.finish() {
            self.told.push_back(Told::Part { choice, part, logprobs: None });
        }
        let end = match finished.reason {
            FinishReason::Stop if lane.reader.called() => End::Calls,
            FinishReason::Stop => End::Stop,
            FinishReason::Length | FinishReason::Expired | FinishReason::Cancelled => End::Length,
        };
        lane.usage = Some(finished.usage.with_reasoning(lane.reader.reasoning_tokens()));
        self.told.push_back(Told::End { choice, end, stop_text: finished.stop_text });
        if self.lanes.iter().all(|lane| lane.usage.is_some()) {
            let sum = self.lanes.iter().filter_map(|lane| lane.usage).fold(Usage::default(), Usage::plus);
            self.told.push_back(Told::Complete(sum, finished.timings));
        }
    }
}

/// A tool call, whole. Not `Debug`.
#[derive(Clone, Default)]
pub(super) struct Called {
    pub(super) name: String,
    pub(super) arguments: String,
}

/// A choice, whole. Not `Debug`.
pub(super) struct Choice {
    pub(super) content: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<Called>,
    pub(super) logprobs: Option<Vec<TokenLogprob>>,
    pub(super) end: End,
    /// The stop text that ended it.
    pub(super) stop_text: Option<String>,
}

/// A whole answer. Not `Debug`.
pub(super) struct Whole {
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Usage,
    pub(super) timings: Timings,
}

impl Choice {
    pub(super) fn empty() -> Self {
        Self {
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            logprobs: None,
            end: End::Stop,
            stop_text: None,
        }
    }

    /// Adds a piece.
    pub(super) fn add(&mut self, part: Part, logprobs: Option<Vec<TokenLogprob>>) {
        match part {
            Part::Content(text) => self.content.push_str(&text),
            Part::Reasoning(text) => self.reasoning.push_str(&text),
            Part::Call { index, name } => {
                if self.calls.len() <= index {
                    self.calls.resize_with(index + 1, Called::default);
                }
                self.calls[index].name = name;
            }
            Part::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&text);
                }
            }
            Part::CallEnd { .. } => {}
        }
        if let Some(more) = logprobs {
            self.logprobs.get_or_insert_default().extend(more);
        }
    }
}

/// Waits for the whole answer.
pub(super) async fn collect(mut answering: Answering) -> Result<Whole, Problem> {
    let mut choices: Vec<Choice> = Vec::new();
    choices.resize_with(answering.lanes.len(), Choice::empty);
    while let Some(told) = answering.next().await {
        match told {
            Told::Waiting | Told::Started(_) => {}
            Told::Part { choice, part, logprobs } | Told::Had { choice, part, logprobs } => {
                choices[choice as usize].add(part, logprobs);
            }
            Told::End { choice, end, stop_text } => {
                choices[choice as usize].end = end;
                choices[choice as usize].stop_text = stop_text;
            }
            Told::Complete(usage, timings) => {
                return Ok(Whole { choices, usage, timings: *timings });
            }
            Told::Settled(_) => {}
            Told::Failed(problem) => return Err(*problem),
        }
    }
    Err(Problem::Internal("an answer ended without its end"))
}
