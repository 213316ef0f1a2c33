//! Answers: pieces of a chat or a text, a line each; models.

use serde::Serialize;
use serde_json::{Map, Value};

/// One line of an answer, and all of it where it is not streamed. Not `Debug`: it holds an answer.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct Line {
    /// The model that answers.
    pub model: String,
    /// When the line was made, RFC 3339.
    pub created_at: String,
    /// Of a chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Message>,
    /// Of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// Of a text: what the model thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Value>>,
    /// Whether it is the last.
    pub done: bool,
    /// Why it ended: `stop`, `length`, `load`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    /// In the last line.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Spent>,
}

/// What an answer took. Spans are in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// From arrival to end.
    pub total_duration: u64,
    /// Always 0: models are loaded before they are asked.
    pub load_duration: u64,
    /// Tokens of the prompt.
    pub prompt_eval_count: u32,
    /// To the first token.
    pub prompt_eval_duration: u64,
    /// Tokens generated.
    pub eval_count: u32,
    /// From the first token to the last.
    pub eval_duration: u64,
}

/// A message of an answer. Not `Debug`.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct Message {
    /// `assistant`.
    pub role: &'static str,
    /// What was said.
    pub content: String,
    /// What the model thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// What it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Call>,
}

/// A call. Not `Debug`.
#[derive(Clone, PartialEq, Serialize)]
pub struct Call {
    /// Its identity.
    pub id: String,
    /// What is called.
    pub function: Function,
}

/// What is called. Not `Debug`.
#[derive(Clone, PartialEq, Serialize)]
pub struct Function {
    /// Its place among the answer's calls.
    pub index: usize,
    /// The tool.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// For people.
    pub error: String,
}

/// A model in `/api/tags` and `/api/ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// The same.
    pub model: String,
    /// When it was first served here, RFC 3339.
    pub modified_at: String,
    /// Bytes of its weights.
    pub size: u64,
    /// Of its kit, SHA-256.
    pub digest: String,
    /// What it is.
    pub details: Details,
    /// In `/api/ps`: when it is unloaded, RFC 3339. Far away: nothing unloads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// In `/api/ps`: bytes on accelerators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_vram: Option<u64>,
    /// In `/api/ps`: the longest context, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
}

/// What a model is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    /// Empty: none is made of another here.
    pub parent_model: String,
    /// Empty where it is not known.
    pub format: String,
    /// `llama`, ...
    pub family: String,
    /// The same.
    pub families: Vec<String>,
    /// `7B`.
    pub parameter_size: String,
    /// Empty where it is not known.
    pub quantization_level: String,
}
