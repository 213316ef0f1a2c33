//! Answers: a message, whole; its models; its errors.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::openai::response::Usage;

/// A message. Not `Debug`: it holds an answer.
#[derive(Clone, PartialEq, Serialize)]
pub struct Message {
    /// `msg_...`.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// The model that answered.
    pub model: String,
    /// What was said.
    pub content: Vec<Block>,
    /// Why it ended; `null` while it goes on.
    pub stop_reason: Option<&'static str>,
    /// The stop text that ended it.
    pub stop_sequence: Option<String>,
    /// What it took.
    pub usage: MessageUsage,
}

/// A block of a message. Not `Debug`.
#[derive(Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    /// Text.
    Text {
        /// It.
        text: String,
    },
    /// What the model thought.
    Thinking {
        /// It.
        thinking: String,
        /// Signs nothing here; clients want one.
        signature: String,
    },
    /// A call.
    ToolUse {
        /// For its result to refer to.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments.
        input: Map<String, Value>,
    },
}

/// What a message took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MessageUsage {
    /// Tokens of the prompt that were not found in a cache.
    pub input_tokens: u32,
    /// Always 0: caching is not asked for, and costs nothing.
    pub cache_creation_input_tokens: u32,
    /// Tokens of the prompt that were.
    pub cache_read_input_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
        }
    }
}

/// `GET /v1/models`, in Anthropic's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelPage {
    /// By name.
    pub data: Vec<ModelInfo>,
    /// Always false: there is one page.
    pub has_more: bool,
    /// The first one's name.
    pub first_id: Option<String>,
    /// The last one's name.
    pub last_id: Option<String>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// `model`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its name.
    pub id: String,
    /// The same.
    pub display_name: String,
    /// When it was first served here, RFC 3339.
    pub created_at: String,
    /// `active`.
    pub lifecycle: &'static str,
    /// The longest context, in tokens.
    pub max_input_tokens: u32,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What went wrong.
    pub error: ErrorDetail,
    /// The call's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorDetail {
    /// `invalid_request_error`, `authentication_error`, ...
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For people.
    pub message: String,
}

/// How Anthropic names what an HTTP status stands for.
pub fn error_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        408 | 504 => "timeout_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}
