//! What an instance answers: the sealed body of a chunk. Tokens carry their index, so none is lost or taken twice.
//!
//! Encoding, little-endian: `u32` index of the first token, tokens (`u32` count and values), text (`u32` length and
//! UTF-8), `u8` flags (1: log-probabilities follow, 2: a finish follows, 4: a vector follows), then for the first two of
//! these a `u32` length and a JSON value, and for the third a `u32` length in bytes and `f32`s.

use serde::{Deserialize, Serialize};

use crate::reader::{DecodeError, Reader, put_block, put_tokens};

/// Some tokens of an answer, in order. Not `Debug`: it holds an answer.
#[derive(Clone, Default, PartialEq)]
pub struct Chunk {
    /// Index within the answer of the first of `tokens` (an earlier attempt's tokens count).
    pub first_index: u32,
    /// The tokens, in order. May be empty (a finish alone, or text that was held back).
    pub tokens: Vec<u32>,
    /// The text that became certain with these tokens: whole characters only, nothing that may turn out to begin a
    /// stop text.
    pub text: String,
    /// One for each of `tokens`, where they were asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Present in the last chunk, and only there.
    pub finish: Option<Finish>,
    /// The prompt's vector, where one was asked for; finite.
    pub vector: Option<Vec<f32>>,
}

/// How probable a drawn token was.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token drawn.
    pub token: u32,
    /// Its own bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, before temperature and filters.
    pub logprob: f32,
    /// The most probable tokens, best first: (token, bytes, logprob).
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

/// How and after what an answer ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, how many were found in cache.
    #[serde(default)]
    pub cached_tokens: u32,
    /// Tokens generated, those of earlier attempts included.
    pub generated_tokens: u32,
    /// From receipt to the first step that computed any of it.
    pub queue_us: u64,
    /// From there to the first token.
    pub prefill_us: u64,
    /// From there to the last.
    pub decode_us: u64,
    /// The stop text that ended it, as a place among those of the job, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_text: Option<u32>,
    /// The machine's Ed25519 signature over [`crate::receipt::AttemptUsage::statement`], base64: its half of the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_signature: Option<String>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model said so, or a stop text came.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

const LOGPROBS: u8 = 1;
const FINISH: u8 = 2;
const VECTOR: u8 = 4;
/// The largest models have rows of some ten thousand numbers.
const VECTOR_NUMBERS_MAX: usize = 1 << 17;

impl Chunk {
    /// The bytes that are sealed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17 + 4 * self.tokens.len() + self.text.len());
        out.extend_from_slice(&self.first_index.to_le_bytes());
        put_tokens(&mut out, &self.tokens);
        put_block(&mut out, self.text.as_bytes());
        let flags = if self.logprobs.is_some() { LOGPROBS } else { 0 }
            | if self.finish.is_some() { FINISH } else { 0 }
            | if self.vector.is_some() { VECTOR } else { 0 };
        out.push(flags);
        if let Some(logprobs) = &self.logprobs {
            put_block(&mut out, &serde_json::to_vec(logprobs).expect("finite numbers and arrays only"));
        }
        if let Some(finish) = &self.finish {
            put_block(&mut out, &serde_json::to_vec(finish).expect("integers and names only"));
        }
        if let Some(vector) = &self.vector {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            put_block(&mut out, &bytes);
        }
        out
    }

    /// Reads what [`Chunk::encode`] wrote.
    ///
    /// # Errors
    /// Truncated, trailing or misshapen bytes. The message names the field, never a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let first_index = reader.u32("chunk's first index")?;
        let tokens = reader.tokens("chunk's tokens")?;
        let text = reader.text("chunk's text")?.to_owned();
        let flags = reader.u8("chunk's flags")?;
        if flags & !(LOGPROBS | FINISH | VECTOR) != 0 {
            return Err(DecodeError::Value { what: "chunk's flags", value: flags.into(), allowed: "0 to 7" });
        }
        let logprobs: Option<Vec<TokenLogprob>> =
            (flags & LOGPROBS != 0).then(|| json(&mut reader, "chunk's log-probabilities")).transpose()?;
        let finish = (flags & FINISH != 0).then(|| json(&mut reader, "chunk's finish")).transpose()?;
        let vector = (flags & VECTOR != 0).then(|| vector(&mut reader)).transpose()?;
        reader.end("chunk")?;
        if let Some(logprobs) = &logprobs
            && logprobs.len() != tokens.len()
        {
            return Err(DecodeError::Value {
                what: "number of log-probabilities",
                value: logprobs.len() as u64,
                allowed: "one for each token",
            });
        }
        Ok(Self { first_index, tokens, text, logprobs, finish, vector })
    }
}

fn vector(reader: &mut Reader<'_>) -> Result<Vec<f32>, DecodeError> {
    let what = "chunk's vector";
    let bytes = reader.block(what)?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if numbers.is_empty() || numbers.len() > VECTOR_NUMBERS_MAX || !rest.is_empty() {
        let allowed = "4 to 524288 bytes, four for each number";
        return Err(DecodeError::Value { what, value: bytes.len() as u64, allowed });
    }
    let numbers: Vec<f32> = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
    match numbers.iter().position(|number| !number.is_finite()) {
        Some(at) => {
            Err(DecodeError::Value { what: "chunk's vector at", value: at as u64, allowed: "finite numbers" })
        }
        None => Ok(numbers),
    }
}

fn json<T: serde::de::DeserializeOwned>(
    reader: &mut Reader<'_>,
    what: &'static str,
) -> Result<T, DecodeError> {
    serde_json::from_slice(reader.block(what)?).map_err(|e| DecodeError::Json {
        what,
        detail: format!("unexpected JSON at line {} column {}", e.line(), e.column()),
    })
}
