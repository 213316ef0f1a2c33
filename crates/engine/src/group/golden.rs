//! Whether a group computes what it should, before anybody relies on it: its choices against those of a reference.

use base::Rng;
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, LogitsError};

/// How far apart the two best logits must be for a choice to count: two ways of summing may differ by about so much, of
/// logits that spread over some units.
const TIE: f32 = 0.02;

/// A prompt of several steps and what a model chooses after each of its positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The most likely token after each position.
    pub choices: Vec<u32>,
    /// How far ahead of the second it was.
    pub margins: Vec<f32>,
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
        "the self-test failed at position {position}: token {found} where the reference has {expected}, by {margin}; this \
         group computes something else than the model"
    )]
    Differs {
        /// Where.
        position: usize,
        /// The reference's choice.
        expected: u32,
        /// The group's.
        found: u32,
        /// By how much the reference preferred its own.
        margin: f32,
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
        let (choices, margins) = engine.logits(prompt, true)?.iter().map(|row| best(row)).unzip();
        Ok(Self { prompt: prompt.to_vec(), choices, margins })
    }

    /// Holds `engine` to this reference; how many choices were too close to count.
    ///
    /// # Errors
    /// It chooses otherwise, or cannot compute the prompt.
    pub fn check(&self, engine: &Engine) -> Result<usize, GoldenError> {
        if self.choices.len() != self.prompt.len() || self.margins.len() != self.prompt.len() {
            return Err(GoldenError::Reference { detail: "its lists are not equally long" });
        }
        let rows = engine.logits(&self.prompt, true)?;
        let mut ties = 0;
        for (position, row) in rows.iter().enumerate() {
            let (found, _) = best(row);
            let (expected, margin) = (self.choices[position], self.margins[position]);
            if margin < TIE {
                ties += 1;
            } else if found != expected {
                return Err(GoldenError::Differs { position, expected, found, margin });
            }
        }
        Ok(ties)
    }
}

/// The best token and how far ahead of the second it is; infinitely far from logits that are no numbers.
fn best(row: &[f32]) -> (u32, f32) {
    let (mut first, mut second, mut token) = (f32::NEG_INFINITY, f32::NEG_INFINITY, 0);
    for (at, &logit) in row.iter().enumerate() {
        if logit > first {
            (second, first, token) = (first, logit, at as u32);
        } else if logit > second {
            second = logit;
        }
    }
    (token, first - second)
}
