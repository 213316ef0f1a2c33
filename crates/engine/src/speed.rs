//! How fast this engine is, as observed, and how the next step is to be divided so that running streams stay quick.
//!
//! The model of a step's time: what it takes to decode so many sequences, one token each (kept for each number of them,
//! since most of it is reading the weights once), plus so much for each further row. Rows of a prompt and guessed
//! tokens are told apart, as the latter need logits.

use base::Micros;
use batch::{Guessing, Pace};

/// How much a new observation counts. With steps of tens of milliseconds the figure follows within about a second, and one
/// step that was held up by a neighbour moves it by a tenth.
const WEIGHT: f64 = 0.1;
/// How much it counts in the time of a row: chunks follow it, and a prompt of thousands of tokens has hundreds of them.
const ROW_WEIGHT: f64 = 0.2;
/// How much it counts in the time of a step that only decodes. While a long prompt comes in there is one such step in
/// [`UNDISTURBED_EVERY`].
const ALONE_WEIGHT: f64 = 0.25;
/// An observation counts as no further from what was known than this: a step that a neighbour held up must not undo what
/// many have taught.
const SCATTER: (f64, f64) = (0.5, 2.0);
/// Prefill steps below this many tokens say more about their fixed cost than about prefill.
const PREFILL_TOKENS_MIN: usize = 32;
/// A step that decodes and prefills may take so many times one that only decodes: below the two that running streams may
/// be slowed to, by what single steps scatter.
const MIXED_RATIO: f64 = 1.75;
/// A row beside decode takes at least such a part of an undisturbed step: what is measured as less is noise.
const ROW_PART_MIN: f64 = 0.005;
/// Steps with prefill or guesses beside decode until one of them only decodes, so that it stays known what that takes: else
/// a machine that has become slower looks as if prefill had.
const UNDISTURBED_EVERY: u32 = 24;
/// Batches up to this size are told apart one by one, larger ones by powers of two.
const ALONE_EXACT: usize = 16;
/// Of these there are so many.
const ALONE_SIZES: usize = ALONE_EXACT + 9;

/// What a step had in it, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Of sequences that decode: one each.
    pub(crate) decoding: usize,
    /// Guessed ahead.
    pub(crate) guesses: usize,
    /// Guessed right: drawn as well.
    pub(crate) right: usize,
    /// Of prompts.
    pub(crate) prefill: usize,
}

impl Step {
    /// One that only prefills.
    pub(crate) fn prefill(tokens: usize) -> Self {
        Self { prefill: tokens, ..Self::default() }
    }

    /// One that only decodes, without guesses.
    pub(crate) fn decode(sequences: usize) -> Self {
        Self { decoding: sequences, ..Self::default() }
    }
}

/// Exponentially weighted observations.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Speed {
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    /// What a step takes that only decodes, by how many sequences.
    alone_s: [Option<f64>; ALONE_SIZES],
    /// What a prompt's row takes beside decode.
    prefill_row_s: Option<f64>,
    /// What a guessed row takes.
    guess_row_s: Option<f64>,
    /// Steps with prefill or guesses beside decode since one without.
    disturbed: u32,
    guesses_max: usize,
}

impl Default for Speed {
    fn default() -> Self {
        Self {
            prefill_tokens_per_s: None,
            decode_tokens_per_s: None,
            alone_s: [None; ALONE_SIZES],
            prefill_row_s: None,
            guess_row_s: None,
            disturbed: 0,
            guesses_max: 0,
        }
    }
}

impl Speed {
    /// How many tokens may be guessed ahead.
    pub(crate) fn set_guesses(&mut self, most: usize) {
        self.guesses_max = most;
    }

    /// A step took `span`.
    pub(crate) fn observe(&mut self, step: Step, span: Micros) {
        let seconds = span.as_secs_f64().max(1e-6);
        let Step { decoding, guesses, right, prefill } = step;
        if decoding == 0 {
            if prefill >= PREFILL_TOKENS_MIN || self.prefill_tokens_per_s.is_none() {
                blend(&mut self.prefill_tokens_per_s, prefill as f64 / seconds, WEIGHT);
            }
            return;
        }
        if decoding == 1 && prefill == 0 {
            blend(&mut self.decode_tokens_per_s, (1 + right) as f64 / seconds, WEIGHT);
        }
        let rows = guesses + prefill;
        if rows == 0 {
            self.disturbed = 0;
            return blend_near(&mut self.alone_s[place(decoding)], seconds, ALONE_WEIGHT);
        }
        self.disturbed += 1;
        let Some(alone) = self.alone(decoding) else { return };
        let row = (seconds - alone).max(ROW_PART_MIN * alone * rows as f64) / rows as f64;
        // A step with both says nothing of either alone; none is planned.
        match guesses {
            0 => blend_near(&mut self.prefill_row_s, row, ROW_WEIGHT),
            _ if prefill == 0 => blend_near(&mut self.guess_row_s, row, ROW_WEIGHT),
            _ => {}
        }
    }

    /// With the higher of each of the two rates.
    pub(crate) fn better(self, other: Self) -> Self {
        Self {
            prefill_tokens_per_s: higher(self.prefill_tokens_per_s, other.prefill_tokens_per_s),
            decode_tokens_per_s: higher(self.decode_tokens_per_s, other.decode_tokens_per_s),
            ..self
        }
    }

    /// Prompt tokens a second, one request.
    pub(crate) fn prefill_tokens_per_s(&self) -> f32 {
        self.prefill_tokens_per_s.unwrap_or(0.0) as f32
    }

    /// Generated tokens a second, one request alone.
    pub(crate) fn decode_tokens_per_s(&self) -> f32 {
        self.decode_tokens_per_s.unwrap_or(0.0) as f32
    }

    /// How to divide a step that decodes so many sequences.
    pub(crate) fn pace(&self, decoding: usize) -> Pace {
        if self.disturbed >= UNDISTURBED_EVERY {
            return Pace::prefill(0);
        }
        let cost = match (self.alone(decoding), self.guess_row()) {
            (Some(alone), Some(row)) => row * decoding as f64 / alone,
            // Nothing was measured yet: find out.
            _ => 0.0,
        };
        let prefill_beside_decode = self.chunk(decoding);
        Pace { prefill_beside_decode, guessing: Guessing { tokens_max: self.guesses_max, cost } }
    }

    /// Prefill tokens beside so many sequences that decode: as many as fill the time that such a step may take longer, and
    /// one at least, so that a prompt comes to an end wherever a row is dear.
    fn chunk(&self, decoding: usize) -> usize {
        let row = self.prefill_row_s.or_else(|| Some(1.0 / self.prefill_tokens_per_s?));
        match (self.alone(decoding), row) {
            (Some(alone), Some(row)) => (((MIXED_RATIO - 1.0) * alone / row) as usize).max(1),
            _ => 1,
        }
    }

    /// What a guessed row takes; before one was seen, what a prompt's does.
    fn guess_row(&self) -> Option<f64> {
        self.guess_row_s.or(self.prefill_row_s).or_else(|| Some(1.0 / self.prefill_tokens_per_s?))
    }

    /// What a step takes that decodes so many sequences and nothing else. Of a number that was not seen yet, the least that
    /// those say that were: more take no less time, and fewer no less than their part of it.
    fn alone(&self, decoding: usize) -> Option<f64> {
        let at = place(decoding);
        let fewer = self.alone_s[..=at].iter().rev().find_map(|seen| *seen);
        fewer.or_else(|| {
            let more = (at..ALONE_SIZES).find_map(|size| Some((size, self.alone_s[size]?)));
            more.map(|(size, seconds)| seconds * (at + 1) as f64 / (size + 1) as f64)
        })
    }
}

/// Where the time of a batch of this size is kept.
fn place(decoding: usize) -> usize {
    match decoding {
        0 => 0,
        1..=ALONE_EXACT => decoding - 1,
        _ => {
            ALONE_EXACT
                + (decoding / ALONE_EXACT).ilog2().min((ALONE_SIZES - ALONE_EXACT - 1) as u32) as usize
        }
    }
}

fn blend(figure: &mut Option<f64>, observed: f64, weight: f64) {
    *figure = Some(match *figure {
        Some(before) => before + weight * (observed - before),
        None => observed,
    });
}

/// As [`blend`], with what is far off taken as less far.
fn blend_near(figure: &mut Option<f64>, observed: f64, weight: f64) {
    let near = figure.map_or(observed, |before| observed.clamp(before * SCATTER.0, before * SCATTER.1));
    blend(figure, near, weight);
}

fn higher(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    [one, other].into_iter().flatten().reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine: what a step takes, in microseconds.
    #[derive(Clone, Copy)]
    struct Model {
        /// The weights are read.
        base: f64,
        decode_row: f64,
        prefill_row: f64,
        /// Any prefill at all.
        prefill: f64,
    }

    impl Model {
        fn takes(self, decoding: usize, prefill: usize) -> Micros {
            let fixed = if prefill > 0 { self.prefill } else { 0.0 };
            let rows = self.decode_row * decoding as f64 + self.prefill_row * prefill as f64;
            Micros((self.base + rows + fixed) as u64)
        }
    }

    const MODELS: [Model; 4] = [
        Model { base: 10_000.0, decode_row: 100.0, prefill_row: 50.0, prefill: 4_000.0 },
        // A billion parameters on two cores without tiles.
        Model { base: 20_000.0, decode_row: 4_000.0, prefill_row: 4_500.0, prefill: 0.0 },
        // Arithmetic so slow that a row more is most of a step.
        Model { base: 2_000.0, decode_row: 9_000.0, prefill_row: 8_000.0, prefill: 500.0 },
        // A tiny model.
        Model { base: 30.0, decode_row: 20.0, prefill_row: 7.0, prefill: 10.0 },
    ];

    fn measured(model: Model) -> Speed {
        let mut speed = Speed::default();
        speed.observe(Step::prefill(256), model.takes(0, 256));
        speed.observe(Step::decode(1), model.takes(1, 0));
        speed
    }

    #[test]
    fn a_mixed_step_takes_less_than_twice_an_undisturbed_one_and_uses_the_time_it_may() {
        for model in MODELS {
            for decoding in [1, 4, 13] {
                let mut speed = measured(model);
                let alone = model.takes(decoding, 0).as_secs_f64();
                let (mut late, mut held) = (0, 0);
                for step in 0..400 {
                    let prefill = speed.pace(decoding).prefill_beside_decode;
                    let took = model.takes(decoding, prefill);
                    held += usize::from(prefill == 0);
                    late += usize::from(step >= 50 && took.as_secs_f64() > 1.9 * alone);
                    speed.observe(Step { prefill, ..Step::decode(decoding) }, took);
                }
                assert_eq!(late, 0, "{decoding}");
                assert!((10..=17).contains(&held), "{held}");
                let row = model.prefill_row / 1e6;
                let prefill = speed.chunk(decoding);
                let ratio = model.takes(decoding, prefill).as_secs_f64() / alone;
                assert!(ratio > 1.75 - 1.2 * row / alone - 0.1, "{decoding}: {prefill} tokens, {ratio}");
            }
        }
    }

    #[test]
    fn a_machine_that_becomes_slower_all_over_does_not_starve_the_prompt() {
        let model = MODELS[1];
        let mut speed = measured(model);
        let mut chunk = |slower: f64| {
            for _ in 0..300 {
                let prefill = speed.pace(4).prefill_beside_decode;
                let took = Micros((model.takes(4, prefill).0 as f64 * slower) as u64);
                speed.observe(Step { prefill, ..Step::decode(4) }, took);
            }
            speed.chunk(4)
        };
        let before = chunk(1.0);
        assert!((5..=6).contains(&before), "{before}");
        assert!((4..=7).contains(&chunk(3.0)));
        assert!((4..=7).contains(&chunk(1.0)));
    }

    #[test]
    fn one_step_that_a_neighbour_held_up_moves_the_chunk_by_less_than_a_third() {
        let mut speed = measured(MODELS[0]);
        for _ in 0..20 {
            let prefill = speed.chunk(4);
            speed.observe(Step { prefill, ..Step::decode(4) }, MODELS[0].takes(4, prefill));
        }
        let before = speed.chunk(4);
        speed.observe(Step { prefill: before, ..Step::decode(4) }, Micros(3_000_000));
        assert!(speed.chunk(4) * 3 >= before * 2, "{} of {before}", speed.chunk(4));
    }

    #[test]
    fn guesses_cost_what_was_measured_and_more_the_wider_the_batch() {
        let mut speed = Speed::default();
        speed.set_guesses(4);
        assert_eq!(speed.pace(1).guessing, Guessing { tokens_max: 4, cost: 0.0 });
        let model = MODELS[1];
        for _ in 0..10 {
            for decoding in [1, 8] {
                speed.observe(Step::decode(decoding), model.takes(decoding, 0));
            }
            let guessed = Step { guesses: 4, right: 3, ..Step::decode(1) };
            speed.observe(guessed, model.takes(5, 0));
        }
        let (narrow, wide) = (speed.pace(1).guessing.cost, speed.pace(8).guessing.cost);
        assert!((0.15..0.18).contains(&narrow), "{narrow}");
        assert!((0.6..0.65).contains(&wide), "{wide}");
        // Four tokens in 44 ms between every two of one in 24 and eight in 52.
        assert!(speed.decode_tokens_per_s() > 55.0, "{}", speed.decode_tokens_per_s());
    }

    #[test]
    fn what_was_not_measured_is_taken_for_the_least_it_can_be() {
        let mut speed = Speed::default();
        assert_eq!((speed.alone(3), speed.chunk(3)), (None, 1));
        speed.observe(Step::decode(4), Micros::from_millis(40));
        assert_eq!((speed.alone(9), speed.alone(2)), (Some(0.04), Some(0.02)));
        for decoding in 0..5000 {
            assert!(place(decoding) <= place(decoding + 1) && place(decoding) < ALONE_SIZES);
        }
    }

    #[test]
    fn a_slower_machine_is_noticed_and_a_single_slow_step_hardly() {
        let mut speed = Speed::default();
        speed.observe(Step::decode(1), Micros::from_millis(10));
        speed.observe(Step::decode(1), Micros::from_millis(1000));
        assert!(speed.decode_tokens_per_s() > 85.0);
        for _ in 0..50 {
            speed.observe(Step::decode(1), Micros::from_millis(20));
        }
        assert!((speed.decode_tokens_per_s() - 50.0).abs() < 2.0);
    }

    #[test]
    fn a_step_of_several_sequences_says_nothing_of_one_alone() {
        let mut speed = Speed::default();
        speed.observe(Step::decode(1), Micros::from_millis(10));
        speed.observe(Step::decode(8), Micros::from_millis(40));
        assert_eq!(speed.decode_tokens_per_s(), 100.0);
    }
}
