//! Whether a group computes what it should, before anybody relies on it: its choices against those of a reference.

use base::Rng;
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, LogitsError};

/// How far apart the two best logits must be for a choice to count, in standard deviations of all of them. Another order of
/// sums rounds activations to other bytes here and there, and rounding them moves a logit by up to 0.04 deviations
/// (measured over all families): two logits of each of two ways to compute, that far apart.
const TIE: f32 = 0.1;

/// A prompt of several steps and what a model chooses after each of its positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The most likely token after each position.
    pub choices: Vec<u32>,
    /// How far ahead of the second it was, in standard deviations of the logits.
    pub leads: Vec<f32>,
}

/// Why a group is not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// No logits.
    #[error("the self-test cannot be computed")]
    Logits(#[from] LogitsError),
    /// Another choice than the reference's.
    #[error(
        "the self-test failed at position {position}: token {found} where the reference has {expected}, by {lead} standard deviations; this \
         group computes something else than the model"
    )]
    Differs {
        /// Where.
        position: usize,
        /// The reference's choice.
        expected: u32,
        /// The group's.
        found: u32,
        /// By how much the reference preferred its own, in standard deviations of its logits.
        lead: f32,
    },
    /// A reference of another model.
    #[error("the self-test's reference is none of this model: {detail}")]
    Reference {
        /// Why.
        detail: &'static str,
    },
}

impl Golden {
    /// A prompt for a model: `tokens` long (at least one), the same on every machine.
    pub fn prompt(vocabulary: usize, tokens: usize) -> Vec<u32> {
        let mut rng = Rng::new(0x601d);
        (0..tokens.max(1)).map(|_| rng.below(vocabulary.max(1) as u64) as u32).collect()
    }

    /// What `engine` chooses: the reference, where it is one that holds all of the model, or is trusted otherwise.
    ///
    /// # Errors
    /// The prompt cannot be computed.
    pub fn record(engine: &Engine, prompt: &[u32]) -> Result<Self, GoldenError> {
        let (choices, leads) = engine.logits(prompt, true)?.iter().map(|row| best(row)).unzip();
        Ok(Self { prompt: prompt.to_vec(), choices, leads })
    }

    /// Holds `engine` to this reference; how many choices were too close to count.
    ///
    /// # Errors
    /// It chooses otherwise, or cannot compute the prompt.
    pub fn check(&self, engine: &Engine) -> Result<usize, GoldenError> {
        if self.choices.len() != self.prompt.len() || self.leads.len() != self.prompt.len() {
            return Err(GoldenError::Reference { detail: "its lists are not equally long" });
        }
        let rows = engine.logits(&self.prompt, true)?;
        let mut ties = 0;
        for (position, row) in rows.iter().enumerate() {
            let (found, _) = best(row);
            let (expected, lead) = (self.choices[position], self.leads[position]);
            if lead < TIE {
                ties += 1;
            } else if found != expected {
                return Err(GoldenError::Differs { position, expected, found, lead });
            }
        }
        Ok(ties)
    }
}

/// The best token and how many standard deviations it is ahead of the second; infinitely far from logits that are no
/// numbers.
fn best(row: &[f32]) -> (u32, f32) {
    let (mut first, mut second, mut token) = (f32::NEG_INFINITY, f32::NEG_INFINITY, 0);
    let (mut sum, mut squares) = (0.0f64, 0.0f64);
    for (at, &logit) in row.iter().enumerate() {
        sum += f64::from(logit);
        squares += f64::from(logit).powi(2);
        if logit > first {
            (second, first, token) = (first, logit, at as u32);
        } else if logit > second {
            second = logit;
        }
    }
    let count = row.len().max(1) as f64;
    let deviation = (squares / count - (sum / count).powi(2)).max(0.0).sqrt() as f32;
    let ahead = first - second;
    // Where all are equal nothing is ahead.
    (token, if ahead == 0.0 { 0.0 } else { ahead / deviation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_does_not_depend_on_the_scale_of_logits() {
        let row: Vec<f32> = (0..100u16).map(|at| f32::from(at * 37 % 101)).collect();
        let (token, lead) = best(&row);
        assert_eq!(row[token as usize], 100.0);
        assert!((lead - 1.0 / 29.0).abs() < 0.005, "{lead}");
        let large: Vec<f32> = row.iter().map(|x| x * 1e4 - 7e4).collect();
        assert!((best(&large).1 - lead).abs() < 1e-4);
        assert_eq!(best(&[2.0, 2.0]), (0, 0.0));
        assert_eq!(best(&[1.0, f32::NAN]).0, 0);
    }
}
