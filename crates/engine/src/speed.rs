//! How fast this engine is, as observed.

use base::Micros;

/// How much a new observation counts. With steps of tens of milliseconds the figure follows within about a second, and one
/// step that was held up by a neighbour moves it by a tenth.
const WEIGHT: f64 = 0.1;
/// Prefill steps below this many tokens say more about their fixed cost than about prefill.
const PREFILL_TOKENS_MIN: usize = 32;
/// A step that decodes and prefills takes so many times one that only decodes, as far as the budget can see to it: below
/// the two that running streams may be slowed to, by what single steps scatter.
const MIXED_RATIO: f64 = 1.75;
/// The budget moves by so much in one step at most: a step that a neighbour held up must not undo what many have taught.
const BUDGET_STEP: (f64, f64) = (0.7, 1.25);
/// Beside decode, prefill gets at least so many tokens a step, or a long prompt would never end where decode is cheap. With
/// sixteen, a billion parameters on two cores took three times as long a step as without: too many where arithmetic is slow.
const PREFILL_BESIDE_DECODE_MIN: usize = 4;

/// Exponentially weighted observations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Speed {
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    /// What a step that only decodes takes, at the batch sizes that came last.
    decode_step_s: Option<f64>,
    /// Prefill tokens beside decode, as taught by steps that had both.
    budget: Option<f64>,
}

impl Speed {
    /// A step of `tokens` tokens, `decoding` of them single tokens of decoding sequences, took `span`.
    pub(crate) fn observe(&mut self, tokens: usize, decoding: usize, span: Micros) {
        let seconds = span.as_secs_f64().max(1e-6);
        if decoding == 0 && (tokens >= PREFILL_TOKENS_MIN || self.prefill_tokens_per_s.is_none()) {
            blend(&mut self.prefill_tokens_per_s, tokens as f64 / seconds);
        }
        let prefill = tokens - decoding;
        if decoding > 0
            && prefill >= PREFILL_BESIDE_DECODE_MIN
            && let Some(alone) = self.decode_step_s
        {
            // What it should have been, had the time beyond the decode been what it may be. A step with less prefill than
            // the budget says as much about time, and is scaled the same.
            let over = (seconds / alone - 1.0).max(0.05);
            let fitting = prefill as f64 * ((MIXED_RATIO - 1.0) / over);
            let now = self.planned();
            self.budget = Some(fitting.clamp(now * BUDGET_STEP.0, now * BUDGET_STEP.1));
        }
        if tokens == decoding {
            blend(&mut self.decode_step_s, seconds);
            if decoding == 1 {
                blend(&mut self.decode_tokens_per_s, 1.0 / seconds);
            }
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

    /// Prefill tokens that a step may hold beside decode, so that running streams are slowed to half at most while a long
    /// prompt comes in: at first what takes about as long as the decode itself, then what mixed steps have taught.
    pub(crate) fn prefill_beside_decode(&self) -> usize {
        (self.planned() as usize).max(PREFILL_BESIDE_DECODE_MIN)
    }

    fn planned(&self) -> f64 {
        let first = match (self.prefill_tokens_per_s, self.decode_step_s) {
            (Some(rate), Some(step)) => rate * step * (MIXED_RATIO - 1.0),
            _ => 0.0,
        };
        self.budget.unwrap_or(first).max(PREFILL_BESIDE_DECODE_MIN as f64)
    }
}

fn blend(figure: &mut Option<f64>, observed: f64) {
    *figure = Some(match *figure {
        Some(before) => before + WEIGHT * (observed - before),
        None => observed,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_beside_decode_takes_about_as_long_as_the_decode() {
        let mut speed = Speed::default();
        assert_eq!(speed.prefill_beside_decode(), PREFILL_BESIDE_DECODE_MIN);
        speed.observe(100, 0, Micros::from_millis(100));
        speed.observe(1, 1, Micros::from_millis(50));
        assert_eq!(speed.prefill_beside_decode(), 37);
        assert_eq!((speed.prefill_tokens_per_s(), speed.decode_tokens_per_s()), (1000.0, 20.0));
    }

    #[test]
    fn mixed_steps_teach_the_budget_that_keeps_running_streams_above_half_their_speed() {
        // A machine whose small prefills cost a fixed 4 ms, so that the rate of large ones promises too much.
        let cost = |decoding: usize, prefill: usize| {
            let fixed = if prefill > 0 { 4_000.0 } else { 0.0 };
            Micros((10_000.0 + 100.0 * decoding as f64 + fixed + 50.0 * prefill as f64) as u64)
        };
        let mut speed = Speed::default();
        speed.observe(256, 0, Micros(17_000));
        speed.observe(4, 4, cost(4, 0));
        let alone = cost(4, 0).0 as f64;
        let mut late = 0;
        for step in 0..200 {
            let prefill = speed.prefill_beside_decode();
            let took = cost(4, prefill);
            late += usize::from(step >= 10 && took.0 as f64 > 2.0 * alone);
            speed.observe(4 + prefill, 4, took);
        }
        assert_eq!(late, 0);
        let ratio = cost(4, speed.prefill_beside_decode()).0 as f64 / alone;
        assert!((1.5..=1.9).contains(&ratio), "{ratio}");
        // One step that a neighbour held up moves it by less than a third.
        let before = speed.prefill_beside_decode();
        speed.observe(4 + before, 4, Micros(1_000_000));
        assert!(speed.prefill_beside_decode() * 10 >= before * 6);
    }

    #[test]
    fn a_slower_machine_is_noticed_and_a_single_slow_step_hardly() {
        let mut speed = Speed::default();
        speed.observe(1, 1, Micros::from_millis(10));
        speed.observe(1, 1, Micros::from_millis(1000));
        assert!(speed.decode_tokens_per_s() > 85.0);
        for _ in 0..50 {
            speed.observe(1, 1, Micros::from_millis(20));
        }
        assert!((speed.decode_tokens_per_s() - 50.0).abs() < 2.0);
    }

    #[test]
    fn a_step_of_several_sequences_says_nothing_of_one_alone() {
        let mut speed = Speed::default();
        speed.observe(1, 1, Micros::from_millis(10));
        speed.observe(8, 8, Micros::from_millis(40));
        assert_eq!(speed.decode_tokens_per_s(), 100.0);
    }
}
