//! A batch driven by a stand-in for the model that remembers every token place, and so sees each mix-up.

#[path = "serving/day.rs"]
mod day;
#[path = "serving/guessing.rs"]
mod guessing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{AttemptId, Micros, Rng};
use batch::{Arrival, Batch, Cause, Draw, Drawn, Ended, Guessing, Limits, Pace, Plan};
use proptest::prelude::*;

/// What stops an answer: one draw in 29, so that answers are often long enough to outgrow a small cache.
const STOP: u32 = 0;

/// What one token place holds: a digest of every token up to it. Nothing is a wiped place.
type Place = Option<u64>;

fn digest(before: u64, token: u32, position: usize) -> u64 {
    Rng::new(before ^ (u64::from(token) << 32) ^ position as u64).next_u64()
}

fn draw(digest: u64) -> u32 {
    if digest.is_multiple_of(29) { STOP } else { 1 + (digest % 5) as u32 }
}

/// The tokens an answer must have, whatever else is going on; and whether it ends with a stop token.
fn alone(prompt: &[u32], generated_max: usize, context: usize) -> (Vec<u32>, bool) {
    let mut tokens = prompt.to_vec();
    let mut state = 0;
    for (position, &token) in prompt.iter().enumerate() {
        state = digest(state, token, position);
    }
    while tokens.len() < context && tokens.len() - prompt.len() < generated_max {
        let token = draw(state);
        if token == STOP {
            return (tokens[prompt.len()..].to_vec(), true);
        }
        state = digest(state, token, tokens.len());
        tokens.push(token);
    }
    (tokens[prompt.len()..].to_vec(), false)
}

struct Harness {
    batch: Batch,
    places: Vec<Place>,
    now: u64,
    answers: BTreeMap<AttemptId, Vec<u32>>,
    terminals: BTreeMap<AttemptId, Ended>,
    paused: BTreeSet<AttemptId>,
    /// How many plans are computed at the same time, and those that are, with what was drawn.
    lanes: usize,
    under_way: VecDeque<(Plan, Vec<Vec<u32>>)>,
    guessing: Guessing,
    /// Guesses that were computed, and how many of them were right.
    guesses: (usize, usize),
}

impl Harness {
    fn new(limits: Limits) -> Self {
        Self::with_lanes(limits, 1)
    }

    fn with_lanes(limits: Limits, lanes: usize) -> Self {
        let places = vec![None; (limits.pages * limits.page_tokens) as usize];
        let mut batch = Batch::new(limits).expect("these limits work");
        batch.set_lanes(lanes);
        Self {
            lanes,
            under_way: VecDeque::new(),
            guessing: Guessing::default(),
            guesses: (0, 0),
            batch,
            places,
            now: 0,
            answers: BTreeMap::new(),
            terminals: BTreeMap::new(),
            paused: BTreeSet::new(),
        }
    }

    fn submit(&mut self, attempt: AttemptId, prompt: &[u32], generated_max: usize) -> bool {
        let arrival =
            Arrival { attempt, tokens: prompt.to_vec(), prompt: prompt.len(), generated_max, deadline: None };
        let taken = self.batch.submit(Micros(self.now), arrival).is_ok();
        if taken {
            self.answers.insert(attempt, Vec::new());
        }
        taken
    }

    fn wipe(&mut self, pages: &[u32]) {
        let size = self.batch.limits().page_tokens as usize;
        for &page in pages {
            self.places[page as usize * size..(page as usize + 1) * size].fill(None);
        }
    }

    fn end(&mut self, ended: Vec<Ended>) {
        for ended in ended {
            self.paused.remove(&ended.attempt);
            let before = self.terminals.insert(ended.attempt, ended);
            assert!(before.is_none(), "a second terminal");
        }
    }

    /// One step; what was planned.
    fn step(&mut self, beside_decode: usize) -> Plan {
        self.now += 10;
        let paused = self.paused.clone();
        let beside_decode = beside_decode.max(1);
        let pace = Pace { prefill_beside_decode: beside_decode, guessing: self.guessing };
        let mut plan = self.batch.plan(Micros(self.now), &pace, |attempt| !paused.contains(&attempt));
        self.check(&plan, beside_decode);
        let (wipe, ended) = (std::mem::take(&mut plan.wipe), std::mem::take(&mut plan.ended));
        self.wipe(&wipe);
        self.end(ended);
        let size = self.batch.limits().page_tokens as usize;
        let mut drawn = Vec::new();
        for span in &plan.spans {
            let (tokens, pages) = (self.batch.tokens(span).to_vec(), self.batch.pages(span).to_vec());
            let at = |position: usize| pages[position / size] as usize * size + position % size;
            let mut state = match span.start {
                0 => 0,
                start => self.places[at(start - 1)].expect("what comes before a span is in the cache"),
            };
            let mut rows = Vec::new();
            for (position, token) in (span.start..).zip(tokens) {
                state = digest(state, token, position);
                let place = &mut self.places[at(position)];
                assert_eq!(*place, None, "a place was taken without being wiped");
                *place = Some(state);
                if position + span.guesses + 1 >= span.start + span.count {
                    rows.push(draw(state));
                }
            }
            if span.draws {
                assert_eq!(rows.len(), 1 + span.guesses);
                drawn.push(rows);
            }
        }
        if !plan.spans.is_empty() {
            self.batch.depart(&plan);
            self.under_way.push_back((plan.clone(), drawn));
        }
        if self.under_way.len() >= self.lanes || plan.spans.is_empty() {
            self.land();
        }
        plan
    }

    /// The oldest plan that is under way comes back.
    fn land(&mut self) {
        let Some((plan, tokens)) = self.under_way.pop_front() else {
            return;
        };
        let mut drawn = Vec::new();
        let size = self.batch.limits().page_tokens as usize;
        for (span, rows) in plan.spans.iter().filter(|span| span.draws).zip(tokens) {
            if !self.batch.has(span) {
                drawn.push(Drawn::Stop.into());
                continue;
            }
            let guesses = self.batch.tokens(span)[span.count - span.guesses..].to_vec();
            let accepted = guesses.iter().zip(&rows).take_while(|(guess, drawn)| guess == drawn).count();
            self.guesses = (self.guesses.0 + guesses.len(), self.guesses.1 + accepted);
            let answer = self.answers.get_mut(&span.attempt).expect("it was submitted");
            answer.extend_from_slice(&guesses[..accepted]);
            let last = rows[accepted];
            drawn.push(match last {
                STOP => Draw { accepted, drawn: Drawn::Stop },
                token => Draw { accepted, drawn: Drawn::Token(token) },
            });
            answer.extend((last != STOP).then_some(last));
            // What was computed of wrong guesses is written over by what comes instead.
            let pages = self.batch.pages(span);
            for position in span.start + span.count - span.guesses + accepted..span.start + span.count {
                self.places[pages[position / size] as usize * size + position % size] = None;
            }
        }
        let ended = self.batch.commit(Micros(self.now + 5), plan, &drawn);
        self.end(ended);
    }

    fn check(&self, plan: &Plan, beside_decode: usize) {
        let limits = self.batch.limits();
        assert!(plan.tokens <= limits.step_tokens_max as usize);
        assert!(plan.spans.len() <= limits.running_max as usize);
        assert!(plan.spans[..plan.decoding].iter().all(|span| span.count == 1 + span.guesses && span.draws));
        assert!(plan.spans[plan.decoding..].iter().all(|span| span.guesses == 0));
        assert_eq!(plan.guesses, plan.spans.iter().map(|span| span.guesses).sum::<usize>());
        if plan.decoding > 0 {
            assert!(plan.tokens - plan.guesses - plan.decoding <= beside_decode);
        }
        let attempts: BTreeSet<_> = plan.spans.iter().map(|span| span.attempt).collect();
        assert_eq!(attempts.len(), plan.spans.len(), "two spans of one sequence");
        assert!(attempts.is_disjoint(&self.paused), "a paused sequence was computed");
    }

    /// Steps until nothing is left; how many that took.
    fn finish(&mut self, beside_decode: usize) -> usize {
        let mut steps = 0;
        while !self.batch.is_empty() {
            steps += 1;
            assert!(steps < 20_000, "it does not come to an end");
            let under_way = self.under_way.len();
            let plan = self.step(beside_decode);
            assert!(
                under_way > 0 || !plan.spans.is_empty() || !plan.ended.is_empty(),
                "an empty step with work waiting"
            );
        }
        steps
    }
}

fn limits(pages: u32) -> Limits {
    Limits {
        pages,
        page_tokens: 4,
        context: 32,
        running_max: 4,
        waiting_max: 8,
        step_tokens_max: 8,
        pause_us_max: Micros::ZERO,
    }
}

#[derive(Debug, Clone)]
enum Act {
    /// Prompts share beginnings: `family` picks the tokens, `length` how many.
    Submit {
        family: u32,
        length: usize,
        tail: u32,
        generated_max: usize,
    },
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    Steps(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..3u32, 1..30usize, 0..3u32, 1..20usize).prop_map(|(family, length, tail, generated_max)| {
            Act::Submit { family, length, tail, generated_max }
        }),
        1 => any::<usize>().prop_map(Act::Cancel),
        1 => any::<usize>().prop_map(Act::Pause),
        1 => any::<usize>().prop_map(Act::Resume),
        4 => (1..6usize).prop_map(Act::Steps),
    ]
}

fn prompt(family: u32, length: usize, tail: u32) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..length as u32).map(|at| 1 + (family * 7 + at * at) % 11).collect();
    *tokens.last_mut().expect("a prompt has a token") = 20 + tail;
    tokens
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_ends_once_and_says_what_it_would_have_said_alone(
        acts in prop::collection::vec(act(), 1..60),
        pages in 8..24u32,
        beside_decode in 0..9usize,
        lanes in 1..4usize,
        (tokens_max, cost) in (0..6usize, 0.0..1.2),
    ) {
        let mut harness = Harness::with_lanes(limits(pages), lanes);
        harness.guessing = Guessing { tokens_max, cost };
        let mut asked: Vec<(AttemptId, Vec<u32>, usize)> = Vec::new();
        let mut cancelled = BTreeSet::new();
        for act in acts {
            match act {
                Act::Submit { family, length, tail, generated_max } => {
                    let attempt = AttemptId(asked.len() as u128);
                    let prompt = prompt(family, length, tail);
                    if harness.submit(attempt, &prompt, generated_max) {
                        asked.push((attempt, prompt, generated_max));
                    }
                }
                Act::Cancel(which) if !asked.is_empty() => {
                    let attempt = asked[which % asked.len()].0;
                    if let Some(ended) = harness.batch.end(Micros(harness.now), attempt, Cause::Cancelled) {
                        cancelled.insert(attempt);
                        harness.end(vec![ended]);
                        prop_assert_eq!(harness.batch.end(Micros(harness.now), attempt, Cause::Stop), None);
                    }
                }
                Act::Pause(which) if !asked.is_empty() => {
                    let attempt = asked[which % asked.len()].0;
                    if !harness.terminals.contains_key(&attempt) {
                        harness.paused.insert(attempt);
                    }
                }
                Act::Resume(which) if !asked.is_empty() => {
                    harness.paused.remove(&asked[which % asked.len()].0);
                }
                Act::Steps(count) => (0..count).for_each(|_| { harness.step(beside_decode); }),
                _ => {}
            }
        }
        harness.paused.clear();
        harness.finish(beside_decode);
        while !harness.under_way.is_empty() {
            harness.land();
        }
        prop_assert_eq!(harness.terminals.len(), asked.len());
        for (attempt, prompt, generated_max) in asked {
            let ended = &harness.terminals[&attempt];
            let (answer, stops) = alone(&prompt, generated_max, 32);
            let said = &harness.answers[&attempt];
            prop_assert_eq!(ended.account.generated_tokens as usize, said.len());
            prop_assert_eq!(ended.account.prompt_tokens as usize, prompt.len());
            if cancelled.contains(&attempt) {
                prop_assert_eq!(ended.cause, Cause::Cancelled);
                prop_assert!(answer.starts_with(said));
            } else {
                prop_assert_eq!(said, &answer);
                prop_assert_eq!(ended.cause, if stops { Cause::Stop } else { Cause::Length });
            }
        }
        prop_assert_eq!(harness.batch.load().pages_available, pages as usize, "pages were lost");
        harness.batch.forget_prefixes();
        let wipes = harness.batch.drain_wipes();
        harness.wipe(&wipes);
        prop_assert!(harness.places.iter().all(Option::is_none), "something of a sequence stayed");
    }
}

#[test]
fn a_prompt_that_begins_like_an_earlier_one_is_computed_from_where_it_differs() {
    let mut harness = Harness::new(limits(24));
    let long: Vec<u32> = (1..=20).collect();
    harness.submit(AttemptId(1), &long, 1);
    harness.finish(8);
    let mut other = long.clone();
    other[18] = 99;
    harness.submit(AttemptId(2), &other, 1);
    let plan = harness.step(8);
    assert_eq!((plan.spans[0].start, plan.spans[0].count), (16, 4));
    harness.submit(AttemptId(3), &long, 1);
    harness.finish(8);
    assert_eq!(harness.terminals[&AttemptId(2)].account.cached_tokens, 16);
    assert_eq!(
        harness.terminals[&AttemptId(3)].account.cached_tokens,
        16,
        "the last token is always computed"
    );
}

#[test]
fn a_long_prompt_does_not_stall_a_running_stream() {
    let mut harness = Harness::new(limits(24));
    harness.submit(AttemptId(1), &[5, 6], 20);
    harness.step(3);
    assert!(!harness.batch.is_empty());
    harness.submit(AttemptId(2), &prompt(1, 29, 0), 1);
    while !harness.terminals.contains_key(&AttemptId(1)) && !harness.terminals.contains_key(&AttemptId(2)) {
        let plan = harness.step(3);
        assert_eq!(plan.spans[0].attempt, AttemptId(1), "the stream gets its token in every step");
        assert!(plan.tokens <= 4);
    }
}

#[test]
fn a_short_prompt_is_not_kept_waiting_by_a_long_one() {
    let mut harness = Harness::new(limits(24));
    harness.submit(AttemptId(1), &prompt(1, 30, 0), 1);
    harness.submit(AttemptId(2), &[7, 8, 9], 1);
    let plan = harness.step(8);
    assert!(plan.spans.iter().any(|span| span.attempt == AttemptId(2) && span.draws));
}

#[test]
fn a_paused_sequence_gives_up_its_place_when_another_needs_it() {
    let mut harness = Harness::new(Limits { running_max: 1, ..limits(8) });
    harness.submit(AttemptId(1), &[5, 6, 7, 8, 9], 20);
    harness.step(8);
    harness.paused.insert(AttemptId(1));
    harness.submit(AttemptId(2), &[5, 6], 3);
    let plan = harness.step(8);
    assert!(plan.paused);
    assert_eq!(plan.spans[0].attempt, AttemptId(2));
}

#[test]
fn a_deadline_and_a_reader_that_stays_away_both_end_a_sequence_as_expired() {
    let mut harness = Harness::new(Limits { pause_us_max: Micros(100), ..limits(8) });
    harness.submit(AttemptId(1), &[5, 6], 30);
    harness.paused.insert(AttemptId(1));
    let arrival = Arrival {
        attempt: AttemptId(2),
        tokens: vec![5],
        prompt: 1,
        generated_max: 30,
        deadline: Some(Micros(10)),
    };
    harness.batch.submit(Micros(0), arrival).unwrap();
    let pace = Pace::prefill(8);
    let plan = harness.batch.plan(Micros(9), &pace, |attempt| attempt != AttemptId(1));
    assert_eq!(plan.next_deadline, Some(Micros(10)));
    assert!(plan.ended.is_empty());
    let plan = harness.batch.plan(Micros(10), &pace, |attempt| attempt != AttemptId(1));
    assert_eq!((plan.ended[0].attempt, plan.ended[0].cause), (AttemptId(2), Cause::Expired));
    assert_eq!(plan.next_deadline, Some(Micros(109)));
    let plan = harness.batch.plan(Micros(109), &pace, |_| false);
    assert_eq!((plan.ended[0].attempt, plan.ended[0].cause), (AttemptId(1), Cause::Expired));
    assert!(harness.batch.is_empty());
}

#[test]
fn what_cannot_be_computed_or_has_no_place_is_refused_with_the_numbers() {
    let mut batch = Batch::new(Limits { running_max: 1, waiting_max: 1, ..limits(8) }).unwrap();
    let mut submit = |attempt: u128, prompt: usize, generated: usize, generated_max: usize| {
        let arrival = Arrival {
            attempt: AttemptId(attempt),
            tokens: vec![1; prompt + generated],
            prompt,
            generated_max,
            deadline: None,
        };
        batch.submit(Micros(0), arrival).map_err(|refusal| refusal.to_string())
    };
    assert!(submit(1, 0, 0, 5).unwrap_err().contains("empty"));
    assert!(submit(1, 32, 0, 5).unwrap_err().contains("32 tokens; the context of 32"));
    assert!(submit(1, 3, 5, 5).unwrap_err().contains("5 tokens were generated already"));
    submit(1, 3, 0, 5).unwrap();
    assert!(submit(1, 3, 0, 5).unwrap_err().contains("here already"));
    submit(2, 3, 0, 5).unwrap();
    assert!(submit(3, 3, 0, 5).unwrap_err().contains("0 sequences run and 2 wait"));
}

#[test]
fn answers_that_outgrow_the_cache_are_computed_again_and_come_out_the_same() {
    let mut harness = Harness::new(limits(9));
    let prompts: Vec<Vec<u32>> = (0..4).map(|at| vec![3 + at, 40]).collect();
    for (at, prompt) in prompts.iter().enumerate() {
        assert!(harness.submit(AttemptId(at as u128), prompt, 20));
    }
    harness.finish(8);
    let preempted = harness.terminals.values().filter(|ended| ended.account.preemptions > 0).count();
    assert!(preempted > 0, "this is meant to outgrow the cache");
    for (at, prompt) in prompts.iter().enumerate() {
        assert_eq!(harness.answers[&AttemptId(at as u128)], alone(prompt, 20, 32).0);
    }
    assert_eq!(harness.terminals[&AttemptId(0)].account.preemptions, 0, "the oldest never gives way");
}

#[test]
fn a_cancel_gives_pages_back_at_once() {
    let mut harness = Harness::new(limits(8));
    harness.submit(AttemptId(1), &prompt(0, 30, 0), 1);
    harness.step(8);
    assert!(harness.batch.load().pages_available < 8);
    harness.batch.end(Micros(50), AttemptId(1), Cause::Cancelled).unwrap();
    assert_eq!(harness.batch.load().pages_available, 8);
}

#[test]
fn several_answers_to_one_prompt_compute_it_once() {
    let mut harness = Harness::new(limits(24));
    let long: Vec<u32> = (1..=22).collect();
    for attempt in 0..4 {
        assert!(harness.submit(AttemptId(attempt), &long, 2));
    }
    let mut computed = 0;
    while !harness.batch.is_empty() {
        computed += harness.step(8).tokens;
    }
    // The last page's two tokens and one decoded token each, but the shared five pages only once.
    assert_eq!(computed, 20 + 4 * 2 + 4);
    assert_eq!(harness.terminals[&AttemptId(3)].account.cached_tokens, 20);
    assert_eq!(harness.answers.values().collect::<BTreeSet<_>>().len(), 1);
}
