//! What an instance is asked to do: the sealed body of an attempt.
//!
//! Encoding: `u32` length and a JSON object (everything but the tokens), then the prompt and the tokens generated so
//! far, each as `u32` count and `u32` tokens, little-endian. JSON for what is small and grows, binary for what is long.

pub use base::{Constraint, Grammar};
use base::{ModelName, RequestId};
use serde::{Deserialize, Serialize};

use crate::reader::{DecodeError, Reader, put_block, put_tokens};

/// One attempt's work. Not `Debug`: it holds a prompt.
#[derive(Clone, PartialEq)]
pub struct Job {
    /// Everything but the tokens.
    pub ask: Ask,
    /// The prompt: already rendered through the chat template and tokenized by the coordinator.
    pub prompt: Vec<u32>,
    /// Tokens that an earlier attempt already delivered: generation goes on after them, and they count towards
    /// `max_tokens`, penalties and the sampler's position.
    pub generated: Vec<u32>,
}

/// How to generate.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// For telemetry and isolation: state is bound to it.
    pub request: RequestId,
    /// The model meant; an instance of another one refuses.
    pub model: ModelName,
    /// At most so many generated tokens, those in `generated` included.
    pub max_tokens: u32,
    /// How a token is drawn.
    pub sampling: Sampling,
    /// Generation ends before any of these texts; none of it is delivered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Go on past the model's own stop tokens (for benches).
    #[serde(default)]
    pub ignore_stop_tokens: bool,
    /// Deliver log-probabilities: of the drawn token, and of this many alternatives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
    /// Microseconds from receipt after which the answer is no longer wanted; 0 is off.
    #[serde(default)]
    pub deadline_us: u64,
    /// What the answer must be; absent is anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// Deliver the text of the model's marks too, so that whoever reads the answer finds its calls and channels.
    #[serde(default, skip_serializing_if = "is_false")]
    pub special_tokens: bool,
    /// The vector of the prompt is wanted, and no text.
    #[serde(default, skip_serializing_if = "is_false")]
    pub embed: bool,
    /// Where the attempt stands in its caller's trace, as a `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Nobody reads the answer token by token: after the first, its tokens may wait so long where they are computed, in
    /// milliseconds, to be sent together. 0 is not at all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hold_ms: u32,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// How a token is drawn from the logits. The default is greedy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probabilities reach this; 1 is off.
    pub top_p: f32,
    /// The k most probable; 0 is off.
    pub top_k: u32,
    /// Tokens at least this fraction as probable as the best; 0 is off.
    pub min_p: f32,
    /// Divides (or multiplies, when negative) logits of tokens seen in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens in the answer; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// The same seed, job and model give the same tokens, whatever else is in the batch.
    pub seed: u64,
    /// Added to logits, by token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

impl Job {
    /// The bytes that are sealed.
    pub fn encode(&self) -> Vec<u8> {
        let ask = serde_json::to_vec(&self.ask).expect("an ask has no map keys that JSON lacks");
        let mut out = Vec::with_capacity(ask.len() + 4 * (self.prompt.len() + self.generated.len()) + 12);
        put_block(&mut out, &ask);
        put_tokens(&mut out, &self.prompt);
        put_tokens(&mut out, &self.generated);
        out
    }

    /// Reads what [`Job::encode`] wrote.
    ///
    /// # Errors
    /// Truncated, trailing or misshapen bytes. The message names the field, never a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let ask = serde_json::from_slice(reader.block("job")?).map_err(|e| DecodeError::Json {
            what: "job",
            detail: format!("unexpected JSON at line {} column {}", e.line(), e.column()),
        })?;
        let prompt = reader.tokens("prompt")?;
        let generated = reader.tokens("generated tokens")?;
        reader.end("job")?;
        Ok(Self { ask, prompt, generated })
    }
}
