//! The engine's thread: takes in, plans, computes, draws, delivers, and settles; step by step.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{AttemptId, Micros};
use batch::{Account, Arrival, Batch, Cause, Draw, Drawn, Ended, Plan};
use nn::LogitRows;

use crate::answer::{Answer, DrawError, Terms};
use crate::compute::{Compute, Work};
use crate::desk::{Accepted, Desk, Intake};
use crate::pooling;
use crate::speed::{Speed, Step};

/// How soon to look again whether a slow reader has room: sinks cannot ring. Short against what a person notices, long
/// against what looking costs.
const PAUSED_LOOK: Duration = Duration::from_millis(2);
/// How long to wait for work at most. Work rings; this only bounds what a lost ring could cost.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// Time since the engine's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(self) -> Micros {
        self.origin.elapsed().into()
    }
}

/// How an answer ends.
enum Ending {
    Finished(Ended),
    Failed(String),
}

/// What the engine's thread owns.
pub(crate) struct Worker<C> {
    desk: Arc<Desk>,
    terms: Arc<Terms>,
    clock: Clock,
    batch: Batch,
    compute: C,
    speed: Speed,
    answers: HashMap<AttemptId, Answer>,
    /// How long to wait for work before the next step.
    wait: Option<Duration>,
    /// Answers that ended in this round. They are told so once the desk knows that their places are free: whoever hears
    /// of an end may ask for the place at once.
    endings: VecDeque<(AttemptId, Answer, Ending)>,
    /// Steps that were begun and not finished, and when.
    under_way: VecDeque<(Plan, Micros)>,
    counts: Counts,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    steps: u64,
    computed_tokens: u64,
    cached_tokens: u64,
    guessed_tokens: u64,
    guessed_right: u64,
    preemptions: u64,
}

impl<C: Compute> Worker<C> {
    pub(crate) fn new(
        desk: Arc<Desk>,
        terms: Arc<Terms>,
        clock: Clock,
        batch: Batch,
        compute: C,
        speed: Speed,
    ) -> Self {
        Self {
            desk,
            terms,
            clock,
            batch,
            compute,
            speed,
            answers: HashMap::new(),
            wait: Some(IDLE_WAIT),
            endings: VecDeque::new(),
            under_way: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Serves until the desk says stop. Whatever happens, every answer gets its end.
    pub(crate) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let why = served.unwrap_or_else(|_| {
            tracing::error!("an engine broke down");
            "the engine broke down; restart the provider and report its log".to_owned()
        });
        self.close(&why);
    }

    /// Serves until there is a reason not to, and says which.
    fn serve(&mut self) -> String {
        loop {
            let intake = self.desk.take(self.wait);
            if intake.stopping {
                self.turn_away(intake, "the engine is stopping");
                return "the engine has stopped".to_owned();
            }
            self.take_in(intake);
            self.step();
            // Before anybody hears of an end: nothing more may be taken then.
            if let Some(why) = self.compute.broken() {
                tracing::error!(why, "an engine cannot go on");
                return why;
            }
            self.settle();
        }
    }

    fn take_in(&mut self, intake: Intake) {
        for accepted in intake.arrivals {
            self.accept(accepted);
        }
        let now = self.clock.now();
        for attempt in intake.cancels {
            if let Some(ended) = self.batch.end(now, attempt, Cause::Cancelled) {
                self.finish(ended);
            }
        }
        for question in intake.questions {
            let logits = self.compute.logits(&question.tokens, question.all);
            // Whoever asked may have given up.
            let _ = question.answer.send(logits);
        }
    }

    fn accept(&mut self, accepted: Accepted) {
        let Accepted { attempt, at, job, sink, guide } = accepted;
        let tokenizer = self.terms.tokenizer.as_ref().expect("nothing is accepted without a tokenizer");
        let answer = Answer::new(&job.ask, &job.prompt, &job.generated, tokenizer, sink).guided(guide);
        let (prompt_tokens, generated) = (job.prompt.len(), job.generated.len());
        let tokens = joined(job.prompt, job.generated);
        let done = if answer.stopped() {
            Some(Cause::Stop)
        } else if !job.ask.embed && generated >= job.ask.max_tokens as usize {
            Some(Cause::Length)
        } else {
            None
        };
        if let Some(cause) = done {
            // An earlier attempt delivered all of it, but was lost before it could say so.
            let account = Account {
                prompt_tokens: prompt_tokens as u32,
                generated_tokens: generated as u32,
                ..Account::default()
            };
            let ended = Ended { attempt, cause, account };
            self.endings.push_back((attempt, answer, Ending::Finished(ended)));
            return;
        }
        let deadline = (job.ask.deadline_us > 0).then(|| at.saturating_add(Micros(job.ask.deadline_us)));
        let generated_max = if job.ask.embed { 0 } else { job.ask.max_tokens as usize };
        match self
            .batch
            .submit(at, Arrival { attempt, tokens, prompt: prompt_tokens, generated_max, deadline })
        {
            Ok(()) => {
                self.answers.insert(attempt, answer);
            }
            Err(refusal) => {
                // The desk has checked all of this: it and the batch would have to disagree.
                tracing::error!(%attempt, %refusal, "an accepted attempt was refused");
                self.endings.push_back((attempt, answer, Ending::Failed(refusal.to_string())));
            }
        }
    }

    fn step(&mut self) {
        let answers = &self.answers;
        let pace = self.speed.pace(self.batch.decoding());
        let mut plan = self
            .batch
            .plan(self.clock.now(), &pace, |attempt| answers.get(&attempt).is_none_or(Answer::has_room));
        self.compute.wipe(&plan.wipe);
        for ended in std::mem::take(&mut plan.ended) {
            self.finish(ended);
        }
        if plan.spans.is_empty() {
            if self.land() {
                self.wait = None;
                return;
            }
            self.compute.wipe(&self.batch.drain_wipes());
            self.compute.idle();
            self.wait = Some(self.idle_wait(&plan));
            return;
        }
        self.wait = None;
        let started = self.clock.now();
        if self.compute.depth() > 1 {
            self.depart(plan, started);
            return;
        }
        let rows = self.compute.step(&work(&self.batch, &plan, &self.terms));
        let drawn = rows.map(|rows| draw(&self.batch, &mut self.answers, &self.terms, &plan, rows));
        self.commit(plan, started, drawn);
    }

    /// Begins a step, and finishes the oldest where as many are under way as can be.
    fn depart(&mut self, plan: Plan, started: Micros) {
        if let Err(message) = self.compute.begin(&work(&self.batch, &plan, &self.terms)) {
            return self.fail_step(&plan, &message);
        }
        self.batch.depart(&plan);
        let draws = plan.spans.iter().any(|span| span.draws);
        self.under_way.push_back((plan, started));
        // What draws nothing is waited for by nobody: the next piece of its prompt can follow at once.
        if self.under_way.len() >= self.compute.depth() || (!draws && self.under_way.len() == 1) {
            self.land();
        }
    }

    /// Finishes the oldest step that is under way; whether there was one.
    fn land(&mut self) -> bool {
        let Some((plan, started)) = self.under_way.pop_front() else {
            return false;
        };
        let rows = self.compute.finish();
        let drawn = rows.map(|rows| draw(&self.batch, &mut self.answers, &self.terms, &plan, rows));
        self.commit(plan, started, drawn);
        true
    }

    fn commit(&mut self, plan: Plan, started: Micros, drawn: Result<DrawnRows, String>) {
        match drawn {
            Ok((drawn, damaged)) => {
                let right: usize = drawn.iter().map(|draw| draw.accepted).sum();
                let step = Step {
                    decoding: plan.decoding,
                    guesses: plan.guesses,
                    right,
                    prefill: plan.tokens - plan.decoding - plan.guesses,
                };
                self.speed.observe(step, self.clock.now().saturating_sub(started));
                self.counts.steps += 1;
                self.counts.computed_tokens += plan.tokens as u64;
                self.counts.guessed_tokens += plan.guesses as u64;
                self.counts.guessed_right += right as u64;
                self.hand_out(plan, &drawn, &damaged);
            }
            Err(message) => self.fail_step(&plan, &message),
        }
    }

    fn idle_wait(&self, plan: &Plan) -> Duration {
        let deadline = plan.next_deadline.map(|at| Duration::from(at.saturating_sub(self.clock.now())));
        let look = if plan.paused { PAUSED_LOOK } else { IDLE_WAIT };
        deadline.map_or(look, |deadline| deadline.min(look))
    }

    /// Gives what was drawn to the batch and the answers' sinks.
    fn hand_out(&mut self, plan: Plan, drawn: &[Draw], damaged: &[(AttemptId, DrawError)]) {
        let drawing: Vec<AttemptId> =
            plan.spans.iter().filter(|span| span.draws).map(|span| span.attempt).collect();
        let ended = self.batch.commit(self.clock.now(), plan, drawn);
        for ended in ended {
            match damaged.iter().find(|(attempt, _)| *attempt == ended.attempt) {
                Some((attempt, error)) => self.end(*attempt, Ending::Failed(error.to_string())),
                None => self.finish(ended),
            }
        }
        for attempt in drawing {
            if let Some(answer) = self.answers.get_mut(&attempt) {
                answer.deliver();
            }
        }
    }

    /// A step that could not be computed ends what was in it, and nothing else.
    fn fail_step(&mut self, plan: &Plan, message: &str) {
        tracing::error!(message, "a step failed");
        let now = self.clock.now();
        for span in &plan.spans {
            if !self.batch.has(span) {
                continue;
            }
            self.batch.end(now, span.attempt, Cause::Stop);
            self.end(span.attempt, Ending::Failed(message.to_owned()));
        }
    }

    fn finish(&mut self, ended: Ended) {
        self.counts.cached_tokens += u64::from(ended.account.cached_tokens);
        self.counts.preemptions += u64::from(ended.account.preemptions);
        self.end(ended.attempt, Ending::Finished(ended));
    }

    fn end(&mut self, attempt: AttemptId, ending: Ending) {
        let answer = self.answers.remove(&attempt).expect("every sequence has its answer until it ends");
        self.endings.push_back((attempt, answer, ending));
    }

    fn settle(&mut self) {
        let load = self.batch.load();
        let (speed, counts) = (&self.speed, self.counts);
        let group = self.compute.group();
        let ended: Vec<AttemptId> = self.endings.iter().map(|(attempt, ..)| *attempt).collect();
        self.desk.settle(&ended, load.pages_needed as u64, |report| {
            report.running = load.running as u32;
            report.prefill_tokens_waiting = load.prefill_tokens as u64;
            report.prefill_tokens_per_s = speed.prefill_tokens_per_s();
            report.decode_tokens_per_s = speed.decode_tokens_per_s();
            report.steps = counts.steps;
            report.computed_tokens = counts.computed_tokens;
            report.cached_tokens = counts.cached_tokens;
            report.guessed_tokens = counts.guessed_tokens;
            report.guessed_right = counts.guessed_right;
            report.preemptions = counts.preemptions;
            report.group = group;
        });
        while let Some((_, answer, ending)) = self.endings.pop_front() {
            match ending {
                Ending::Finished(ended) => {
                    let took = ended.account.prefill.saturating_add(ended.account.decode);
                    if let Some(at) = answer.trace().filter(|_| took > Micros::ZERO) {
                        self.compute.trace(at, took);
                    }
                    answer.finish(&ended);
                }
                Ending::Failed(message) => answer.fail(&message),
            }
        }
    }

    fn close(mut self, why: &str) {
        let intake = self.desk.close(why);
        let undelivered = self.endings.drain(..).map(|(_, answer, _)| answer);
        for answer in undelivered.chain(self.answers.drain().map(|(_, answer)| answer)) {
            // A sink that panics must not keep the others from their end.
            let _ = catch_unwind(AssertUnwindSafe(|| answer.fail(why)));
        }
        self.turn_away(intake, why);
    }

    fn turn_away(&self, intake: Intake, why: &str) {
        for mut accepted in intake.arrivals {
            let _ = catch_unwind(AssertUnwindSafe(|| accepted.sink.failed(why)));
        }
    }
}

/// What a plan asks to be computed.
fn work<'a>(batch: &'a Batch, plan: &Plan, terms: &Terms) -> Vec<Work<'a>> {
    let work = |span: &batch::Span| Work {
        tokens: batch.tokens(span),
        position: span.start,
        pages: batch.pages(span),
        logits: rows_of(span, terms),
    };
    plan.spans.iter().map(work).collect()
}

/// Whose rows a span needs.
fn rows_of(span: &batch::Span, terms: &Terms) -> LogitRows {
    match (&terms.pooling, span.draws, span.guesses) {
        (Some(pooling), last, _) => pooling::wanted(pooling, span.start, last),
        (None, false, _) => LogitRows::None,
        (None, true, 0) => LogitRows::Last,
        // A span with guesses has one known token, and is drawn from at each.
        (None, true, _) => LogitRows::All,
    }
}

/// What was drawn for each span that draws, and the attempts among them for which nothing could be.
type DrawnRows = (Vec<Draw>, Vec<(AttemptId, DrawError)>);

/// Draws the tokens of a plan from its logits.
fn draw(
    batch: &Batch,
    answers: &mut HashMap<AttemptId, Answer>,
    terms: &Terms,
    plan: &Plan,
    rows: Vec<&[f32]>,
) -> DrawnRows {
    let (mut drawn, mut damaged) = (Vec::new(), Vec::new());
    let mut rows = rows.as_slice();
    if let Some(pooling) = &terms.pooling {
        for span in &plan.spans {
            let count = match rows_of(span, terms) {
                LogitRows::None => 0,
                LogitRows::Last => 1,
                LogitRows::All => span.count,
            };
            let (own, others) = rows.split_at(count);
            rows = others;
            let answer = if batch.has(span) { answers.get_mut(&span.attempt) } else { None };
            let pooled = answer.map_or(Ok(()), |answer| answer.pool(pooling, (span.start, span.draws), own));
            if let Err(error) = pooled {
                damaged.push((span.attempt, error));
            }
            if span.draws {
                drawn.push(Drawn::Stop.into());
            }
        }
        return (drawn, damaged);
    }
    for span in plan.spans.iter().filter(|span| span.draws) {
        let (own, others) = rows.split_at(1 + span.guesses);
        rows = others;
        // One that ended while its step was under way draws nothing: the batch no longer knows it.
        let answer = if batch.has(span) { answers.get_mut(&span.attempt) } else { None };
        let Some(answer) = answer else {
            drawn.push(Drawn::Stop.into());
            continue;
        };
        let guesses = &batch.tokens(span)[span.count - span.guesses..];
        drawn.push(draw_ahead(answer, terms, own, guesses).unwrap_or_else(|error| {
            damaged.push((span.attempt, error));
            Drawn::Stop.into()
        }));
    }
    (drawn, damaged)
}

/// Draws an answer's tokens from its rows as far as the guesses are what is drawn: the row after a guess says what comes
/// after it.
fn draw_ahead(
    answer: &mut Answer,
    terms: &Terms,
    rows: &[&[f32]],
    guesses: &[u32],
) -> Result<Draw, DrawError> {
    let mut accepted = 0;
    loop {
        let drawn = answer.draw(rows[accepted], terms)?;
        match drawn {
            Drawn::Token(token) if guesses.get(accepted) == Some(&token) => accepted += 1,
            drawn => return Ok(Draw { accepted, drawn }),
        }
    }
}

/// Both, one after the other, with nothing left of them elsewhere: growing the first would leave a copy behind.
fn joined(mut prompt: Vec<u32>, mut generated: Vec<u32>) -> Vec<u32> {
    if generated.is_empty() {
        return prompt;
    }
    let mut tokens = Vec::with_capacity(prompt.len() + generated.len());
    for part in [&mut prompt, &mut generated] {
        tokens.extend_from_slice(part);
        part.fill(0);
        // Else the optimiser may leave out stores to memory that is freed next.
        std::hint::black_box(part);
    }
    tokens
}
