//! One sequence: its tokens, its pages, and where it stands.

use base::{AttemptId, Micros};

use crate::guess::{Guessing, Record, guess};
use crate::limits::Limits;
use crate::plan::{Account, Cause, Ended, Span};
use crate::prefix::NodeId;
use crate::tokens::PrivateTokens;

/// A sequence that asks to be taken. Not `Debug`: it holds a prompt.
pub struct Arrival {
    /// Whose.
    pub attempt: AttemptId,
    /// The prompt, then the tokens that earlier attempts generated.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub prompt: usize,
    /// Generated tokens at most, earlier attempts' included. The context bounds it too.
    pub generated_max: usize,
    /// When the answer is no longer wanted.
    pub deadline: Option<Micros>,
}

/// Why a sequence was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to compute from.
    #[error("the prompt is empty")]
    Empty,
    /// All it may generate has been generated.
    #[error("{generated} tokens were generated already, and at most {generated_max} were asked for")]
    Complete {
        /// Tokens there are.
        generated: usize,
        /// Tokens there may be.
        generated_max: usize,
    },
    /// It leaves no room for an answer.
    #[error(
        "prompt and answer so far are {tokens} tokens; the context of {context} has no room for one more"
    )]
    TooLong {
        /// Tokens there are.
        tokens: usize,
        /// The longest sequence.
        context: u32,
    },
    /// Every place is taken.
    #[error("{running} sequences run and {waiting} wait, which is all there is place for")]
    NoSlot {
        /// Sequences computed now.
        running: usize,
        /// Sequences that wait.
        waiting: usize,
    },
    /// There is a sequence with this identity.
    #[error("this attempt is here already")]
    Duplicate,
}

/// Whether a sequence is among those computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has no pages.
    Waiting,
    /// It has pages for what is computed of it, at least.
    Running,
}

/// A sequence.
pub(crate) struct Sequence {
    pub(crate) attempt: AttemptId,
    pub(crate) tokens: PrivateTokens,
    pub(crate) prompt: usize,
    /// Tokens in all at most.
    pub(crate) length_max: usize,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    pub(crate) pages: Vec<u32>,
    /// The prefix index's node of the last page entered, and how many pages are entered.
    pub(crate) node: NodeId,
    pub(crate) entered: usize,
    pub(crate) phase: Phase,
    pub(crate) preemptions: u32,
    /// It was thrown out because answers outgrew the cache.
    pub(crate) outgrown: bool,
    pub(crate) paused_since: Option<Micros>,
    pub(crate) deadline: Option<Micros>,
    /// A plan that has it is being computed: it can be in no other, and keeps its pages.
    pub(crate) in_flight: bool,
    record: Record,
    cached: Option<usize>,
    arrived: Micros,
    started: Option<Micros>,
    first_token: Option<Micros>,
    last_token: Option<Micros>,
}

impl Sequence {
    pub(crate) fn new(now: Micros, arrival: Arrival, limits: &Limits) -> Self {
        let length_max = arrival.prompt.saturating_add(arrival.generated_max).min(limits.context as usize);
        Self {
            attempt: arrival.attempt,
            tokens: PrivateTokens::new(arrival.tokens, length_max),
            prompt: arrival.prompt,
            length_max,
            computed: 0,
            pages: Vec::new(),
            node: NodeId::ROOT,
            entered: 0,
            phase: Phase::Waiting,
            preemptions: 0,
            outgrown: false,
            paused_since: None,
            deadline: arrival.deadline,
            in_flight: false,
            record: Record::new(),
            cached: None,
            arrived: now,
            started: None,
            first_token: None,
            last_token: None,
        }
    }

    /// Tokens that are still to compute before one can be drawn.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether it is past its prompt: one token a step.
    pub(crate) fn decodes(&self) -> bool {
        self.remaining() == 1 && self.computed > 0
    }

    pub(crate) fn runs(&self) -> bool {
        self.phase == Phase::Running
    }

    pub(crate) fn paused(&self) -> bool {
        self.paused_since.is_some()
    }

    /// Notes whether its reader has room now.
    pub(crate) fn note_room(&mut self, now: Micros, room: bool) {
        match (room, self.paused_since) {
            (true, _) => self.paused_since = None,
            (false, None) => self.paused_since = Some(now),
            (false, Some(_)) => {}
        }
    }

    /// When it ends by itself, if nothing happens.
    pub(crate) fn expires(&self, pause_max: Micros) -> Option<Micros> {
        let pause = self.paused_since.filter(|_| pause_max > Micros::ZERO);
        let pause = pause.map(|since| since.saturating_add(pause_max));
        [self.deadline, pause].into_iter().flatten().min()
    }

    /// Takes its place with `pages`, of which the first hold `computed` tokens already.
    pub(crate) fn enter(&mut self, node: NodeId, shared: usize, computed: usize, pages: Vec<u32>) {
        self.phase = Phase::Running;
        self.node = node;
        self.entered = shared;
        self.computed = computed;
        self.pages = pages;
        self.cached.get_or_insert(computed);
    }

    /// Gives up its place; the pages to release come back.
    pub(crate) fn leave(&mut self) -> Vec<u32> {
        self.phase = Phase::Waiting;
        self.node = NodeId::ROOT;
        self.entered = 0;
        self.computed = 0;
        self.tokens.drop_guesses();
        std::mem::take(&mut self.pages)
    }

    /// The next `count` tokens, as a span.
    pub(crate) fn span(&mut self, now: Micros, order: u64, count: usize) -> Span {
        assert!(
            count > 0 && count <= self.remaining(),
            "a span of {count} tokens, {} left",
            self.remaining()
        );
        self.started.get_or_insert(now);
        let draws = count == self.remaining();
        Span { attempt: self.attempt, start: self.computed, count, draws, guesses: 0, order }
    }

    /// Guesses what comes next; how many of the guesses are worth computing. One token fewer than there may still be: what
    /// is drawn last needs no place.
    pub(crate) fn guess(&mut self, guessing: &Guessing) -> usize {
        let most = self.length_max.saturating_sub(self.tokens.len() + 1);
        guess(&mut self.tokens, guessing.tokens_max.min(most));
        self.record.worth(guessing).min(self.tokens.guesses().len())
    }

    /// Takes in that the first `accepted` guesses were drawn, and then `drawn`.
    pub(crate) fn learn(&mut self, accepted: usize, drawn: Option<u32>) {
        self.record.learn(self.tokens.guesses(), accepted, drawn);
        self.tokens.accept(accepted);
        self.tokens.drop_guesses();
    }

    /// Takes a drawn token.
    pub(crate) fn push(&mut self, now: Micros, token: u32) {
        self.tokens.push(token);
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// Its terminal.
    pub(crate) fn ended(&self, now: Micros, cause: Cause) -> Ended {
        let started = self.started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let tokens = |count: usize| u32::try_from(count).expect("a context is counted in u32");
        let account = Account {
            prompt_tokens: tokens(self.prompt),
            cached_tokens: tokens(self.cached.unwrap_or(0).min(self.prompt)),
            generated_tokens: tokens(self.tokens.len() - self.prompt),
            queue: started.saturating_sub(self.arrived),
            prefill: if self.started.is_some() { first.saturating_sub(started) } else { Micros::ZERO },
            decode: self.last_token.map_or(Micros::ZERO, |last| last.saturating_sub(first)),
            preemptions: self.preemptions,
        };
        Ended { attempt: self.attempt, cause, account }
    }
}
