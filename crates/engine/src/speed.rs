//! How fast this engine is, as observed.

use base::Micros;

/// How much a new observation counts. With steps of tens of milliseconds the figure follows within about a second, and one
/// step that was held up by a neighbour moves it by a tenth.
const WEIGHT: f64 = 0.1;
/// Prefill steps below this many tokens say more about their fixed cost than about prefill.
const PREFILL_TOKENS_MIN: usize = 32;
/// Beside decode, prefill gets at least so many tokens a step, or a long prompt would never end where decode is cheap.
const PREFILL_BESIDE_DECODE_MIN: usize = 16;

/// Exponentially weighted observations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Speed {
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    /// What a step that only decodes takes, at the batch sizes that came last.
    decode_step_s: Option<f64>,
}

impl Speed {
    /// A step of `tokens` tokens, `decoding` of them single tokens of decoding sequences, took `span`.
    pub(crate) fn observe(&mut self, tokens: usize, decoding: usize, span: Micros) {
        let seconds = span.as_secs_f64().max(1e-6);
        if decoding == 0 && (tokens >= PREFILL_TOKENS_MIN || self.prefill_tokens_per_s.is_none()) {
            blend(&mut self.prefill_tokens_per_s, tokens as f64 / seconds);
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

    /// Prefill tokens that a step may hold beside decode: what takes about as long as the decode itself, so that running
    /// streams are slowed to half at most while a long prompt comes in.
    pub(crate) fn prefill_beside_decode(&self) -> usize {
        match (self.prefill_tokens_per_s, self.decode_step_s) {
            (Some(rate), Some(step)) => ((rate * step) as usize).max(PREFILL_BESIDE_DECODE_MIN),
            _ => PREFILL_BESIDE_DECODE_MIN,
        }
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
        assert_eq!(speed.prefill_beside_decode(), 50);
        assert_eq!((speed.prefill_tokens_per_s(), speed.decode_tokens_per_s()), (1000.0, 20.0));
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
