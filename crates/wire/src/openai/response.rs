//! Answers: what `/v1` sends back, streamed and whole, and its errors.

use serde::{Deserialize, Serialize};

use crate::chunk::TokenLogprob;

/// A chat's answer, whole. Not `Debug`, like everything here that holds an answer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// `chatcmpl-...`.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: Usage,
    /// Changes when answers with the same seed may.
    pub system_fingerprint: String,
}

/// A whole choice of a chat.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// From 0.
    pub index: u32,
    /// What was said.
    pub message: ChatMessage,
    /// Where they were asked for, else `null`.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: String,
}

/// A whole message of an answer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `assistant`.
    pub role: String,
    /// What was said; `null` where there are only calls.
    pub content: Option<String>,
    /// Always `null` here; clients look for it.
    pub refusal: Option<String>,
    /// What the model thought, where it was told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// What it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<MessageCall>,
}

/// A call.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageCall {
    /// For the result to refer to.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

/// What is called.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The tool.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

/// One event of a streamed chat.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The same in all events.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// Changes when answers with the same seed may.
    pub system_fingerprint: String,
    /// One; none in the event with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Absent where it was not asked for; else `null`, and in the last event what the answer took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A piece of a choice.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChunkChoice {
    /// From 0.
    pub index: u32,
    /// What came.
    pub delta: ChatDelta,
    /// Where they were asked for, else `null`.
    pub logprobs: Option<ChatLogprobs>,
    /// In the last piece, else `null`.
    pub finish_reason: Option<String>,
}

/// What came of a message.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatDelta {
    /// In the first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// What the model thinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// A piece of a call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<DeltaCall>,
}

/// A piece of a call.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DeltaCall {
    /// Which call of the answer, from 0.
    pub index: u32,
    /// In its first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In its first piece: `function`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What came of it.
    pub function: DeltaFunction,
}

/// What came of a call.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DeltaFunction {
    /// In its first piece: the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' text.
    pub arguments: String,
}

/// Log-probabilities of a chat's tokens.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One for each token.
    pub content: Vec<TokenLogprobs>,
    /// Always `null` here.
    pub refusal: Option<Vec<TokenLogprobs>>,
}

/// A token, and what else could have come.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// As text (where its bytes are no whole characters, with replacement characters).
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The most probable, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One that could have come.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// As text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl From<TokenLogprob> for TokenLogprobs {
    fn from(of: TokenLogprob) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let top =
            |(_, bytes, logprob): (u32, Vec<u8>, f32)| TopLogprob { token: text(&bytes), logprob, bytes };
        Self {
            token: text(&of.bytes),
            logprob: of.logprob,
            bytes: of.bytes,
            top_logprobs: of.top.into_iter().map(top).collect(),
        }
    }
}

/// A completion, whole, or one event of a streamed one (the two have the same shape).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// `cmpl-...`.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// One for each prompt; none in the event with the usage.
    pub choices: Vec<CompletionChoice>,
    /// Whole answers always have it; events as those of a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Changes when answers with the same seed may.
    pub system_fingerprint: String,
}

/// A choice of a completion, or a piece of it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Which prompt, from 0.
    pub index: u32,
    /// What was written.
    pub text: String,
    /// Where they were asked for, else `null`.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; `null` before its end.
    pub finish_reason: Option<String>,
}

/// Log-probabilities of a completion's tokens: lists of equal length.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// As text.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities.
    pub token_logprobs: Vec<f32>,
    /// The most probable ones in each place, by text.
    pub top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<u32>,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// More about the prompt's.
    #[serde(default)]
    pub prompt_tokens_details: PromptTokensDetails,
    /// More about the generated ones.
    #[serde(default)]
    pub completion_tokens_details: CompletionTokensDetails,
}

impl Usage {
    /// Of one answer.
    pub fn new(prompt_tokens: u32, completion_tokens: u32, cached_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }

    /// The same, of whose generated tokens so many were reasoning.
    #[must_use]
    pub fn with_reasoning(mut self, reasoning_tokens: u32) -> Self {
        self.completion_tokens_details.reasoning_tokens = reasoning_tokens;
        self
    }

    /// Of two answers together.
    pub fn plus(self, other: Self) -> Self {
        Self::new(
            self.prompt_tokens.saturating_add(other.prompt_tokens),
            self.completion_tokens.saturating_add(other.completion_tokens),
            self.prompt_tokens_details
                .cached_tokens
                .saturating_add(other.prompt_tokens_details.cached_tokens),
        )
        .with_reasoning(
            self.completion_tokens_details
                .reasoning_tokens
                .saturating_add(other.completion_tokens_details.reasoning_tokens),
        )
    }
}

/// More about generated tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// Of what the model thought.
    pub reasoning_tokens: u32,
}

/// More about a prompt's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Found in a cache.
    pub cached_tokens: u32,
}

/// `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// By name.
    pub data: Vec<ModelCard>,
}

/// `GET /v1/models/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: String,
    /// When it was first served here, seconds since 1970.
    pub created: u64,
    /// `phalanx`.
    pub owned_by: String,
    /// Extension, under vLLM's name: the longest context, in tokens.
    pub max_model_len: u32,
    /// Extension, in Ollama's words: `completion`, `chat`, `embedding`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Extension: how many numbers a vector of it has, where it gives embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_length: Option<u32>,
}

/// An error, as every failed call and a broken stream's last event have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error`, `server_error`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<String>,
    /// Present and true where waiting cures it, so that such refusals are not counted as downtime.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uptime_neutral: bool,
}
