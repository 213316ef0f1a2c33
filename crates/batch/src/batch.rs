//! The batch itself: sequences by arrival, and the decisions of each step.

use std::collections::{BTreeMap, HashMap};

use base::{AttemptId, Micros};

use crate::limits::{Limits, LimitsError};
use crate::pages::Pages;
use crate::plan::{Cause, Draw, Drawn, Ended, Pace, Plan, Span};
use crate::sequence::{Arrival, Refusal, Sequence};
use crate::share::share;

/// Sequences, pages, and what is computed next.
///
/// ```
/// # use base::{AttemptId, Micros};
/// # use batch::{Arrival, Batch, Drawn, Limits, Pace};
/// let mut batch = Batch::new(Limits {
///     pages: 4, page_tokens: 4, context: 16, running_max: 2, waiting_max: 2, step_tokens_max: 8,
///     pause_us_max: Micros::ZERO,
/// })?;
/// let arrival = Arrival {
///     attempt: AttemptId(1), tokens: vec![5, 6, 7], prompt: 3, generated_max: 1, deadline: None,
/// };
/// batch.submit(Micros(0), arrival).expect("there is room");
/// let plan = batch.plan(Micros(1), &Pace::prefill(usize::MAX), |_| true);
/// assert_eq!(batch.tokens(&plan.spans[0]), [5, 6, 7]);
/// let ended = batch.commit(Micros(2), plan, &[Drawn::Token(8).into()]);
/// assert_eq!(ended[0].account.generated_tokens, 1);
/// # Ok::<(), batch::LimitsError>(())
/// ```
pub struct Batch {
    limits: Limits,
    /// By order of arrival.
    sequences: BTreeMap<u64, Sequence>,
    orders: HashMap<AttemptId, u64>,
    next_order: u64,
    pages: Pages,
    prefixes: bool,
    lanes: usize,
}

/// How full a batch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that hold a place.
    pub running: usize,
    /// Sequences that wait for one.
    pub waiting: usize,
    /// Pages that the tokens there are now need, of running and waiting sequences.
    pub pages_needed: usize,
    /// Pages that can be had now.
    pub pages_available: usize,
    /// Tokens still to prefill.
    pub prefill_tokens: usize,
}

impl Batch {
    /// An empty batch.
    ///
    /// # Errors
    /// Bounds within which it might not get on.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.check()?;
        Ok(Self {
            pages: Pages::new(limits.pages),
            lanes: 1,
            limits,
            sequences: BTreeMap::new(),
            orders: HashMap::new(),
            next_order: 0,
            prefixes: true,
        })
    }

    /// Whether pages may serve several sequences that begin alike, as they do from the start. Not where sequences carry
    /// states beside their pages: those are no sequence's but its own.
    pub fn reuse_prefixes(&mut self, reuse: bool) {
        self.prefixes = reuse;
        if !reuse {
            self.forget_prefixes();
        }
    }

    /// Its bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a sequence. From here on it ends exactly once.
    ///
    /// # Errors
    /// It cannot be computed, or there is no place; nothing is kept of it.
    pub fn submit(&mut self, now: Micros, arrival: Arrival) -> Result<(), Refusal> {
        assert!(arrival.prompt <= arrival.tokens.len(), "a prompt longer than its sequence");
        let generated = arrival.tokens.len() - arrival.prompt;
        if arrival.prompt == 0 {
            return Err(Refusal::Empty);
        }
        // Where nothing is to be generated, the prompt alone is wanted, and it may fill the context.
        let generates = arrival.generated_max > 0;
        if generates && generated >= arrival.generated_max {
            return Err(Refusal::Complete { generated, generated_max: arrival.generated_max });
        }
        if arrival.tokens.len() + usize::from(generates) > self.limits.context as usize {
            return Err(Refusal::TooLong { tokens: arrival.tokens.len(), context: self.limits.context });
        }
        if self.orders.contains_key(&arrival.attempt) {
            return Err(Refusal::Duplicate);
        }
        let places = (self.limits.running_max + self.limits.waiting_max) as usize;
        if self.sequences.len() >= places {
            let running = self.running();
            return Err(Refusal::NoSlot { running, waiting: self.sequences.len() - running });
        }
        let order = self.next_order;
        self.next_order += 1;
        self.orders.insert(arrival.attempt, order);
        self.sequences.insert(order, Sequence::new(now, arrival, &self.limits));
        Ok(())
    }

    /// Ends a sequence before its time. Nothing where it has ended already.
    pub fn end(&mut self, now: Micros, attempt: AttemptId, cause: Cause) -> Option<Ended> {
        let order = self.orders.get(&attempt).copied()?;
        Some(self.remove(now, order, cause))
    }

    /// Decides the next step.
    ///
    /// `pace`: how it is divided; the step's own bound holds in any case. `has_room`: whether a sequence's reader can
    /// take more. A plan that is dropped instead of committed computed nothing.
    pub fn plan(&mut self, now: Micros, pace: &Pace, has_room: impl Fn(AttemptId) -> bool) -> Plan {
        for sequence in self.sequences.values_mut() {
            sequence.note_room(now, has_room(sequence.attempt));
        }
        let mut plan = Plan { ended: self.expire(now), ..Plan::default() };
        let next_time = self.plan_decode(now, &mut plan);
        self.admit();
        self.plan_prefill(now, pace.prefill_beside_decode, &next_time, &mut plan);
        self.plan_guesses(pace, &mut plan);
        plan.tokens = plan.spans.iter().map(|span| span.count).sum();
        plan.wipe = self.wipes_for(&plan.spans);
        plan.paused = self.sequences.values().any(Sequence::paused);
        plan.next_deadline =
            self.sequences.values().filter_map(|s| s.expires(self.limits.pause_us_max)).min();
        plan
    }

    /// `plan` is being computed, and others will be planned before it is committed: what it has stays out of them.
    pub fn depart(&mut self, plan: &Plan) {
        for span in &plan.spans {
            if let Some(sequence) = self.sequences.get_mut(&span.order) {
                sequence.in_flight = true;
            }
        }
    }

    /// Into how many plans sequences that decode are divided, so that so many can be computed at the same time.
    pub fn set_lanes(&mut self, lanes: usize) {
        self.lanes = lanes.max(1);
    }

    /// Whether the span's sequence is still there.
    pub fn has(&self, span: &Span) -> bool {
        self.sequences.contains_key(&span.order)
    }

    /// Takes in what `plan` computed: `drawn` has one entry for each span that draws, in their order. Of guesses that were
    /// wrong nothing counts: what was computed of them is written over by what comes instead.
    pub fn commit(&mut self, now: Micros, plan: Plan, drawn: &[Draw]) -> Vec<Ended> {
        let drawing = plan.spans.iter().filter(|span| span.draws).count();
        assert_eq!(drawing, drawn.len(), "tokens drawn for another plan");
        let mut drawn = drawn.iter();
        let mut ended = Vec::new();
        for span in &plan.spans {
            let token = if span.draws { drawn.next() } else { None };
            let Some(sequence) = self.sequences.get_mut(&span.order) else {
                continue;
            };
            assert_eq!(sequence.computed, span.start, "a plan was committed out of order");
            sequence.in_flight = false;
            let accepted = token.map_or(0, |draw| draw.accepted);
            assert!(accepted <= span.guesses, "more guesses were right than were computed");
            if let Some(draw) = token {
                sequence.learn(accepted, draw.drawn.token());
            }
            sequence.computed += span.count - span.guesses + accepted;
            if self.prefixes {
                enter_full_pages(sequence, &mut self.pages, self.limits.page_tokens as usize);
            }
            let cause = token.and_then(|draw| take(sequence, now, draw.drawn));
            if let Some(cause) = cause {
                ended.push(self.remove(now, span.order, cause));
            }
        }
        ended
    }

    /// The tokens of a span of the last plan, guesses last.
    pub fn tokens(&self, span: &Span) -> &[u32] {
        &self.sequences[&span.order].tokens.with_guesses()[span.start..span.start + span.count]
    }

    /// How many sequences the next step would decode at most.
    pub fn decoding(&self) -> usize {
        self.sequences.values().filter(|s| s.runs() && s.decodes() && !s.paused()).count()
    }

    /// The pages of a span of the last plan: of all positions up to its end.
    pub fn pages(&self, span: &Span) -> &[u32] {
        let count = self.limits.pages_for(span.start + span.count);
        &self.sequences[&span.order].pages[..count]
    }

    /// All tokens of a sequence, prompt first, and how many of them are the prompt.
    pub fn history(&self, attempt: AttemptId) -> Option<(&[u32], usize)> {
        let sequence = &self.sequences[self.orders.get(&attempt)?];
        Some((sequence.tokens.as_slice(), sequence.prompt))
    }

    /// Pages to wipe that no plan has named yet: for when there is nothing to compute.
    pub fn drain_wipes(&mut self) -> Vec<u32> {
        self.pages.drain_wipes()
    }

    /// Lets all reusable prefixes go.
    pub fn forget_prefixes(&mut self) {
        self.pages.forget_kept();
    }

    /// Whether there is no sequence at all.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The sequences there are, oldest first.
    pub fn attempts(&self) -> Vec<AttemptId> {
        self.sequences.values().map(|sequence| sequence.attempt).collect()
    }

    /// How full it is.
    pub fn load(&self) -> Load {
        let mut load = Load { pages_available: self.pages.available(), ..Load::default() };
        for sequence in self.sequences.values() {
            if sequence.runs() {
                load.running += 1;
            } else {
                load.waiting += 1;
            }
            load.pages_needed += self.limits.pages_for(sequence.tokens.len()).max(sequence.pages.len());
            if !sequence.decodes() {
                load.prefill_tokens += sequence.remaining();
            }
        }
        load
    }

    /// The pages to wipe before `spans` are computed.
    fn wipes_for(&mut self, spans: &[Span]) -> Vec<u32> {
        let page_tokens = self.limits.page_tokens as usize;
        let written = spans.iter().flat_map(|span| {
            let range = span.start / page_tokens..self.limits.pages_for(span.start + span.count);
            self.sequences[&span.order].pages[range].iter().copied()
        });
        self.pages.wipes_for(written)
    }

    fn running(&self) -> usize {
        self.sequences.values().filter(|sequence| sequence.runs()).count()
    }

    fn remove(&mut self, now: Micros, order: u64, cause: Cause) -> Ended {
        let mut sequence = self.sequences.remove(&order).expect("the caller found it");
        self.orders.remove(&sequence.attempt);
        let ended = sequence.ended(now, cause);
        self.pages.release(&sequence.leave());
        ended
    }

    fn expire(&mut self, now: Micros) -> Vec<Ended> {
        let pause_max = self.limits.pause_us_max;
        let over = |(&order, s): (&u64, &Sequence)| {
            s.expires(pause_max).is_some_and(|at| at <= now).then_some(order)
        };
        let over: Vec<u64> = self.sequences.iter().filter_map(over).collect();
        over.into_iter().map(|order| self.remove(now, order, Cause::Expired)).collect()
    }

    /// One token for every sequence that decodes, oldest first; the youngest give way where pages run out.
    /// Those that another lane takes come back.
    fn plan_decode(&mut self, now: Micros, plan: &mut Plan) -> Vec<u64> {
        let decoding =
            |(&order, s): (&u64, &Sequence)| (s.runs() && s.decodes() && !s.paused()).then_some(order);
        let decoding: Vec<u64> = self.sequences.iter().filter_map(decoding).collect();
        let lane = decoding.len().div_ceil(self.lanes);
        let mut free: Vec<u64> =
            decoding.into_iter().filter(|order| !self.sequences[order].in_flight).collect();
        let next_time = free.split_off(lane.min(free.len()));
        for order in free {
            if !self.make_room(order) {
                continue;
            }
            let sequence = self.sequences.get_mut(&order).expect("it was found above");
            plan.spans.push(sequence.span(now, order, 1));
        }
        plan.decoding = plan.spans.len();
        next_time
    }

    /// Gives the sequence a page for its next token if it lacks one. False where it lost its own place.
    fn make_room(&mut self, order: u64) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&order).expect("the caller found it");
            if !sequence.runs() {
                return false;
            }
            if self.limits.pages_for(sequence.tokens.len()) <= sequence.pages.len() {
                return true;
            }
            match self.pages.take() {
                Some(page) => sequence.pages.push(page),
                None => {
                    // Where all others are being computed, it waits for one of them to come back.
                    let Some(victim) = self.victim() else {
                        return false;
                    };
                    self.preempt(victim);
                    self.sequences.get_mut(&victim).expect("it was found above").outgrown = true;
                }
            }
        }
    }

    /// Who gives way: the youngest paused sequence, else the youngest.
    fn victim(&self) -> Option<u64> {
        self.youngest_paused().or_else(|| {
            let can = |(_, sequence): &(&u64, &Sequence)| sequence.runs() && !sequence.in_flight;
            self.sequences.iter().rev().find(can).map(|(&order, _)| order)
        })
    }

    fn youngest_paused(&self) -> Option<u64> {
        let paused =
            |(_, sequence): &(&u64, &Sequence)| sequence.runs() && sequence.paused() && !sequence.in_flight;
        self.sequences.iter().rev().find(paused).map(|(&order, _)| order)
    }

    fn preempt(&mut self, order: u64) {
        let sequence = self.sequences.get_mut(&order).expect("the caller found it");
        sequence.preemptions += 1;
        let pages = sequence.leave();
        self.pages.release(&pages);
    }

    /// Lets waiting sequences in, oldest first, until the first that does not fit: passing it over would starve it.
    fn admit(&mut self) {
        let waiting = |(&order, s): (&u64, &Sequence)| (!s.runs() && !s.paused()).then_some(order);
        let waiting: Vec<u64> = self.sequences.iter().filter_map(waiting).collect();
        for order in waiting {
            if self.follows(order) {
                // Passed over, not passed by: it enters once what it shares is there, with nothing left to compute of it.
                continue;
            }
            while self.running() >= self.limits.running_max as usize || !self.try_enter(order) {
                let Some(paused) = self.youngest_paused() else {
                    return;
                };
                self.preempt(paused);
            }
        }
    }

    /// Whether another sequence is just computing what this one begins with: several answers to one prompt, say. The other
    /// gets on with every step or leaves, so the wait ends; and it is shorter than computing the same.
    fn follows(&self, order: u64) -> bool {
        let page_tokens = self.limits.page_tokens as usize;
        let tokens = self.sequences[&order].tokens.as_slice();
        let shareable = (tokens.len() - 1) / page_tokens;
        let pages = |other: &Sequence| {
            let same = tokens.iter().zip(other.tokens.as_slice()).take_while(|(one, two)| one == two).count();
            (same / page_tokens).min(shareable)
        };
        let mut leaders = self
            .sequences
            .values()
            .filter(|other| other.runs() && !other.paused() && !other.decodes() && other.remaining() > 1);
        leaders.any(|leader| pages(leader) > leader.entered)
    }

    /// Lets one sequence in if its pages can be had.
    fn try_enter(&mut self, order: u64) -> bool {
        let running = self.running();
        let page_tokens = self.limits.page_tokens as usize;
        let sequence = self.sequences.get_mut(&order).expect("the caller found it");
        let tokens = sequence.tokens.as_slice();
        // The last token is computed in any case: its row is what the next token is drawn from.
        let (node, mut pages) = self.pages.find(&tokens[..tokens.len() - 1], page_tokens);
        let shared = pages.len();
        let needed = self.limits.pages_for(tokens.len()) - shared;
        let wanted =
            if sequence.outgrown { self.limits.pages_for(sequence.length_max) - shared } else { needed };
        let available = self.pages.available() - self.pages.kept_among(&pages);
        // One spare page for each sequence that runs: else the next step might throw this one out again.
        if available < wanted + running {
            return false;
        }
        for &page in &pages {
            self.pages.share(page);
        }
        for _ in 0..needed {
            pages.push(self.pages.take().expect("as many were available"));
        }
        sequence.enter(node, shared, shared * page_tokens, pages);
        true
    }

    fn plan_prefill(&mut self, now: Micros, beside_decode: usize, next_time: &[u64], plan: &mut Plan) {
        let left = self.limits.step_tokens_max as usize - plan.decoding;
        let budget = if plan.decoding > 0 { left.min(beside_decode) } else { left };
        let planned = |order: &u64| plan.spans.iter().any(|span| span.order == *order);
        let prefilling: Vec<u64> = self
            .sequences
            .iter()
            .filter(|(order, s)| {
                s.runs()
                    && !s.in_flight
                    && !next_time.contains(order)
                    && !s.paused()
                    && (!s.decodes() || !planned(order))
            })
            .map(|(&order, _)| order)
            .collect();
        let remaining: Vec<usize> =
            prefilling.iter().map(|order| self.sequences[order].remaining()).collect();
        for (order, part) in prefilling.into_iter().zip(share(budget, &remaining)) {
            if part > 0 {
                let sequence = self.sequences.get_mut(&order).expect("it was found above");
                plan.spans.push(sequence.span(now, order, part));
            }
        }
    }
}

impl Batch {
    /// Lengthens the spans of a step that only decodes by guesses that are likely enough for what they cost. They take
    /// pages that nobody needs, and never anybody's place.
    fn plan_guesses(&mut self, pace: &Pace, plan: &mut Plan) {
        if pace.guessing.tokens_max == 0 || plan.spans.len() > plan.decoding {
            return;
        }
        let running = self.running();
        let page_tokens = self.limits.page_tokens as usize;
        let mut left = self.limits.step_tokens_max as usize - plan.decoding;
        for span in &mut plan.spans {
            let sequence = self.sequences.get_mut(&span.order).expect("it was planned just now");
            let wanted = sequence.guess(&pace.guessing).min(left);
            let mut room = sequence.pages.len() * page_tokens - sequence.tokens.len();
            while room < wanted && self.pages.available() > running {
                sequence.pages.push(self.pages.take().expect("there are more than one available"));
                room += page_tokens;
            }
            span.guesses = wanted.min(room);
            span.count += span.guesses;
            plan.guesses += span.guesses;
            left -= span.guesses;
        }
    }
}

/// Makes the pages that are full now findable.
fn enter_full_pages(sequence: &mut Sequence, pages: &mut Pages, page_tokens: usize) {
    while (sequence.entered + 1) * page_tokens <= sequence.computed {
        let at = sequence.entered;
        let block = &sequence.tokens.as_slice()[at * page_tokens..(at + 1) * page_tokens];
        sequence.node = pages.enter(sequence.node, block, sequence.pages[at]);
        sequence.entered += 1;
    }
}

/// Gives `sequence` what was drawn for it last; why it ends, if it does.
fn take(sequence: &mut Sequence, now: Micros, drawn: Drawn) -> Option<Cause> {
    match drawn {
        Drawn::Stop => return Some(Cause::Stop),
        Drawn::Last(token) => {
            sequence.push(now, token);
            return Some(Cause::Stop);
        }
        Drawn::Token(token) => sequence.push(now, token),
    }
    (sequence.tokens.len() >= sequence.length_max).then_some(Cause::Length)
}
