//! Drawing a token from a row of logits.
//!
//! The order is that of `transformers`: penalties, bias, temperature, top-k, top-p, min-p, draw. Randomness is a function
//! of (seed, index of the token in the answer) alone, so that a run can be repeated, and gone on with elsewhere,
//! whatever else is in the batch.

mod scan;

use std::collections::HashMap;

use base::Rng;
use wire::job::Sampling;

use crate::grammar::Mask;
use scan::Weights;

/// The model gave something that is no number, so nothing can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite; its weights are likely damaged or overflow their number format")]
pub(crate) struct NotFinite;

/// How often a token was seen.
#[derive(Clone, Copy, Default)]
struct Seen {
    in_answer: u32,
}

/// Draws the tokens of one answer.
pub(crate) struct Sampler {
    sampling: Sampling,
    /// Tokens of prompt and answer; empty where no penalty needs them.
    seen: HashMap<u32, Seen>,
    adjusted: Vec<f32>,
    weights: Weights,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for an answer to `prompt` of which `generated` is there.
    pub(crate) fn new(sampling: Sampling, prompt: &[u32], generated: &[u32]) -> Self {
        let mut sampler = Self {
            sampling,
            seen: HashMap::new(),
            adjusted: Vec::new(),
            weights: Weights::default(),
            candidates: Vec::new(),
        };
        if sampler.penalises() {
            for &token in prompt {
                sampler.seen.entry(token).or_default();
            }
            for &token in generated {
                sampler.note(token);
            }
        }
        sampler
    }

    /// Draws the token at `index` of the answer from `row`, `[V]`, among those that `mask` leaves.
    pub(crate) fn draw(&mut self, row: &[f32], index: u32, mask: Option<&Mask>) -> Result<u32, NotFinite> {
        let adjusts = self.penalises() || !self.sampling.logit_bias.is_empty() || mask.is_some();
        let mut adjusted = std::mem::take(&mut self.adjusted);
        if adjusts {
            adjusted.clear();
            adjusted.extend_from_slice(row);
            self.adjust(&mut adjusted);
            if let Some(mask) = mask {
                // A row that is damaged anywhere is damaged: what is masked must not hide it.
                best(row)?;
                mask.apply(&mut adjusted);
            }
        }
        let drawn = self.pick(if adjusts { &adjusted } else { row }, index);
        self.adjusted = adjusted;
        drawn
    }

    /// Notes that `token` is in the answer now.
    pub(crate) fn note(&mut self, token: u32) {
        if self.penalises() {
            self.seen.entry(token).or_default().in_answer += 1;
        }
    }

    fn penalises(&self) -> bool {
        self.sampling.repetition_penalty != 1.0
            || self.sampling.presence_penalty != 0.0
            || self.sampling.frequency_penalty != 0.0
    }

    fn adjust(&self, row: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        for (&token, seen) in &self.seen {
            let Some(logit) = row.get_mut(token as usize) else {
                continue;
            };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if seen.in_answer > 0 {
                *logit -= presence_penalty + frequency_penalty * seen.in_answer as f32;
            }
        }
        // Last, so that a bias of -100 bans a token whatever the penalties say.
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    fn pick(&mut self, row: &[f32], index: u32) -> Result<u32, NotFinite> {
        let (best, max) = best(row)?;
        if self.sampling.temperature == 0.0 || self.sampling.top_k == 1 {
            return Ok(best);
        }
        let chance = Rng::new(self.sampling.seed).fork(u64::from(index)).next_f64();
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        if top_k == 0 {
            self.weights.fill(row, max, temperature);
            if top_p >= 1.0 && min_p == 0.0 {
                return Ok(self.weights.place(chance));
            }
            self.heaviest();
        } else {
            scan::top(row, top_k as usize, &mut self.candidates);
            for (value, _) in &mut self.candidates {
                *value = ((*value - max) / temperature).exp();
            }
            let total = self.candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
            self.cut(total);
        }
        let total: f64 = self.candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
        let mut left = chance * total;
        for &(weight, token) in &self.candidates {
            left -= f64::from(weight);
            if left < 0.0 {
                return Ok(token);
            }
        }
        Ok(self.candidates.last().map_or(best, |&(_, token)| token))
    }

    /// Leaves in `candidates` those of `weights` that top-p and min-p let be drawn, best first.
    fn heaviest(&mut self) {
        let Sampling { top_p, min_p, .. } = self.sampling;
        let Weights { all, total, .. } = &self.weights;
        let total = *total;
        // All tokens below this together weigh less than what top-p leaves out: no need to look at them again.
        let floor = (((1.0 - f64::from(top_p)) * total / all.len() as f64) as f32).max(min_p);
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(all.iter().copied().zip(0u32..).filter(|&(weight, _)| weight >= floor));
        // A nucleus is small where models are sure and large where they are not: look at more only where it takes more.
        let mut count = NUCLEUS_FIRST;
        while count < candidates.len() && top_p < 1.0 {
            candidates.select_nth_unstable_by(count - 1, scan::best_first);
            let head: f64 = candidates[..count].iter().map(|&(weight, _)| f64::from(weight)).sum();
            // A little more than needed, for what rounding does to sums in another order.
            if head >= (f64::from(top_p) + 1e-6) * total {
                candidates.truncate(count);
                break;
            }
            count *= 4;
        }
        candidates.sort_unstable_by(scan::best_first);
        self.cut(total);
    }

    /// Cuts `candidates`, best first, where top-p and min-p do; together with what is gone already they weigh `total`.
    fn cut(&mut self, total: f64) {
        let Sampling { top_p, min_p, .. } = self.sampling;
        let candidates = &mut self.candidates;
        if top_p < 1.0 {
            let mut reached = 0.0;
            let nucleus = candidates.iter().position(|&(weight, _)| {
                reached += f64::from(weight);
                reached >= f64::from(top_p) * total
            });
            candidates.truncate(nucleus.map_or(candidates.len(), |last| last + 1));
        }
        // What is masked weighs nothing, and may not be drawn where rounding leaves a rest.
        candidates.retain(|&(weight, _)| weight >= min_p && weight > 0.0);
    }
}

/// Candidates for a nucleus that are sorted first.
const NUCLEUS_FIRST: usize = 256;

/// The most probable token (the first of equals) and its logit.
fn best(row: &[f32]) -> Result<(u32, f32), NotFinite> {
    let max = scan::greatest(row).filter(|max| max.is_finite()).ok_or(NotFinite)?;
    let first = row.iter().position(|&logit| logit == max).ok_or(NotFinite)?;
    Ok((first as u32, max))
}

/// Natural logarithms of probabilities under `row`, before temperature and filters: that of `token`, and the `count`
/// most probable tokens with theirs, best first.
pub(crate) fn logprobs(row: &[f32], token: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let max = scan::greatest(row).unwrap_or(f32::NEG_INFINITY);
    let normaliser = f64::from(max) + scan::exp_sum(row, max).ln();
    // Clamped, because what follows travels as JSON, which has no infinities.
    let logprob = |logit: f32| (f64::from(logit) - normaliser).max(f64::from(f32::MIN)) as f32;
    let mut top = Vec::new();
    scan::top(row, count, &mut top);
    (logprob(row[token as usize]), top.into_iter().map(|(logit, token)| (token, logprob(logit))).collect())
}

/// Says what is wrong with `sampling` for a model with `vocabulary` tokens, if anything is.
pub(crate) fn check(sampling: &Sampling, vocabulary: usize) -> Result<(), String> {
    let s = sampling;
    let ranges = [
        ("temperature", s.temperature, 0.0, 100.0),
        ("top_p", s.top_p, 0.0, 1.0),
        ("min_p", s.min_p, 0.0, 1.0),
        ("repetition_penalty", s.repetition_penalty, 1e-3, 1e3),
        ("presence_penalty", s.presence_penalty, -1e3, 1e3),
        ("frequency_penalty", s.frequency_penalty, -1e3, 1e3),
    ];
    for (what, value, min, max) in ranges {
        if !(min..=max).contains(&value) {
            return Err(format!("{what} is {value}; it must be within {min} and {max}"));
        }
    }
    for &(token, bias) in &s.logit_bias {
        if token as usize >= vocabulary {
            return Err(format!("logit_bias names token {token}; the model has {vocabulary}"));
        }
        if !bias.is_finite() {
            return Err(format!("the logit_bias of token {token} is not a finite number"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

    fn drawn(sampling: &Sampling, prompt: &[u32], generated: &[u32]) -> [u32; 5] {
        let mut counts = [0; 5];
        let mut sampler = Sampler::new(sampling.clone(), prompt, generated);
        for index in 0..4000 {
            counts[sampler.draw(&ROW, index, None).unwrap() as usize] += 1;
        }
        counts
    }

    fn hot() -> Sampling {
        Sampling { temperature: 1.0, seed: 11, ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(drawn(&Sampling::default(), &[], &[]), [0, 4000, 0, 0, 0]);
        assert_eq!(drawn(&Sampling { top_k: 1, ..hot() }, &[], &[]), [0, 4000, 0, 0, 0]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let counts = drawn(&hot(), &[], &[]);
        let total: f64 = ROW.iter().map(|&l| f64::from(l).exp()).sum();
        for (count, logit) in counts.into_iter().zip(ROW) {
            let expected = 4000.0 * f64::from(logit).exp() / total;
            assert!((f64::from(count) - expected).abs() < 5.0 * expected.sqrt() + 3.0, "{count} {expected}");
        }
    }

    #[test]
    fn each_filter_leaves_exactly_the_tokens_it_says() {
        let left = |sampling: Sampling| drawn(&sampling, &[], &[]).map(|count| count > 0);
        assert_eq!(left(Sampling { top_k: 3, ..hot() }), [false, true, true, false, true]);
        assert_eq!(left(Sampling { top_p: 0.75, ..hot() }), [false, true, false, false, true]);
        assert_eq!(left(Sampling { top_p: 0.85, ..hot() }), [false, true, true, false, true]);
        assert_eq!(left(Sampling { top_p: 1e-6, ..hot() }), [false, true, false, false, false]);
        assert_eq!(left(Sampling { top_p: 0.0, ..hot() }), [false, true, false, false, false]);
        assert_eq!(left(Sampling { min_p: 0.3, ..hot() }), [false, true, true, false, true]);
        assert_eq!(left(Sampling { min_p: 1.0, ..hot() }), [false, true, false, false, true]);
        assert_eq!(left(Sampling { temperature: 0.01, ..hot() }), [false, true, false, false, true]);
    }

    #[test]
    fn penalties_count_what_was_seen_and_bias_has_the_last_word() {
        let greedy = Sampling::default();
        let best = |sampling: Sampling, prompt: &[u32], generated: &[u32]| {
            Sampler::new(sampling, prompt, generated).draw(&ROW, 0, None).unwrap()
        };
        assert_eq!(best(Sampling { repetition_penalty: 2.0, ..greedy.clone() }, &[1], &[]), 4);
        assert_eq!(best(Sampling { repetition_penalty: 2.0, ..greedy.clone() }, &[1], &[4]), 2);
        assert_eq!(best(Sampling { presence_penalty: 0.5, ..greedy.clone() }, &[1], &[]), 1);
        assert_eq!(best(Sampling { presence_penalty: 0.5, ..greedy.clone() }, &[], &[1]), 4);
        let frequent = Sampling { frequency_penalty: 0.6, ..greedy.clone() };
        assert_eq!(best(frequent.clone(), &[], &[1, 4]), 1);
        assert_eq!(best(frequent, &[], &[1, 1, 4, 4]), 2);
        let banned = Sampling { logit_bias: vec![(1, -100.0), (3, 100.0)], ..greedy };
        assert_eq!(best(banned, &[], &[]), 3);
    }

    #[test]
    fn the_same_seed_and_index_draw_the_same_token_and_another_seed_others() {
        let mut one = Sampler::new(hot(), &[], &[]);
        let mut two = Sampler::new(hot(), &[], &[]);
        let mut other = Sampler::new(Sampling { seed: 12, ..hot() }, &[], &[]);
        let forward: Vec<u32> = (0..64).map(|index| one.draw(&ROW, index, None).unwrap()).collect();
        let mut backward: Vec<u32> =
            (0..64).rev().map(|index| two.draw(&ROW, index, None).unwrap()).collect();
        backward.reverse();
        assert_eq!(forward, backward);
        assert_ne!(forward, (0..64).map(|index| other.draw(&ROW, index, None).unwrap()).collect::<Vec<_>>());
    }

    #[test]
    fn logprobs_are_those_of_the_plain_distribution_best_first() {
        let (logprob, top) = logprobs(&ROW, 3, 5);
        let mass: f64 = top.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
        assert!((mass - 1.0).abs() < 1e-6);
        assert_eq!(top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 4, 2, 0, 3]);
        assert_eq!(top[4].1, logprob);
        assert_eq!(logprobs(&ROW, 3, 0).1, []);
    }

    #[test]
    fn what_a_large_vocabulary_draws_is_what_sorting_all_of_it_would() {
        let mut rng = Rng::new(9);
        let row: Vec<f32> = (0..20_000).map(|_| (rng.next_f64() * 14.0 - 7.0) as f32).collect();
        for (temperature, top_k, top_p, min_p) in [
            (1.0, 0, 0.9, 0.0),
            (0.3, 0, 0.99, 0.0),
            (1.0, 50, 0.8, 0.0),
            (0.7, 0, 1.0, 0.2),
            (1.5, 3000, 0.5, 0.05),
        ] {
            let sampling = Sampling { temperature, top_k, top_p, min_p, seed: 5, ..Sampling::default() };
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let weigh = |&logit: &f32| f64::from((logit - max) / temperature).exp();
            let mut sorted: Vec<(f64, u32)> = row.iter().map(weigh).zip(0..).collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            sorted.truncate(if top_k == 0 { row.len() } else { top_k as usize });
            let total: f64 = sorted.iter().map(|candidate| candidate.0).sum();
            let mut reached = 0.0;
            let nucleus = sorted.iter().position(|candidate| {
                reached += candidate.0;
                reached >= f64::from(top_p) * total
            });
            sorted.truncate(nucleus.map_or(sorted.len(), |last| last + 1));
            sorted.retain(|candidate| candidate.0 >= f64::from(min_p));
            let kept: f64 = sorted.iter().map(|candidate| candidate.0).sum();
            let mut sampler = Sampler::new(sampling, &[], &[]);
            let mut differ = 0;
            for index in 0..300 {
                let mut left = Rng::new(5).fork(index).next_f64() * kept;
                let expected = sorted.iter().find(|candidate| {
                    left -= candidate.0;
                    left < 0.0
                });
                let drawn = sampler.draw(&row, index as u32, None).unwrap();
                differ += usize::from(Some(drawn) != expected.map(|candidate| candidate.1));
            }
            // Chances that fall on a border, within f32's rounding, may go either way.
            assert!(differ <= 3, "{differ} of 300 with top_k {top_k}, top_p {top_p}, min_p {min_p}");
        }
    }

    #[test]
    fn damaged_logits_are_refused_not_drawn_from() {
        let mut sampler = Sampler::new(hot(), &[], &[]);
        assert_eq!(sampler.draw(&[1.0, f32::NAN], 0, None), Err(NotFinite));
        assert_eq!(sampler.draw(&[1.0, f32::INFINITY], 0, None), Err(NotFinite));
        assert_eq!(sampler.draw(&[f32::NEG_INFINITY; 2], 0, None), Err(NotFinite));
    }

    #[test]
    fn a_nonsensical_setting_is_named_with_its_range() {
        let error = check(&Sampling { top_p: 1.5, ..hot() }, 5).unwrap_err();
        assert!(error.starts_with("top_p is 1.5; it must be within"), "{error}");
        assert!(check(&Sampling { temperature: f32::NAN, ..hot() }, 5).is_err());
        let error = check(&Sampling { logit_bias: vec![(5, 1.0)], ..hot() }, 5).unwrap_err();
        assert_eq!(error, "logit_bias names token 5; the model has 5");
        assert_eq!(check(&hot(), 5), Ok(()));
    }
}
