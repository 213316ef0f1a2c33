//! A response, as its clients read it.

use base::RequestId;
use serde::Serialize;
use serde_json::{Map, Value, json};
use wire::openai::response::Usage;

use crate::problem::Problem;

/// The name of the response to a call.
pub(super) fn id(request: RequestId) -> String {
    format!("resp_{:032x}", request.0)
}

/// A response. Not `Debug`: it holds an answer.
#[derive(Clone, Serialize)]
pub(super) struct ResponseBody {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created_at: u64,
    pub(super) completed_at: Option<u64>,
    pub(super) status: &'static str,
    pub(super) error: Option<Value>,
    pub(super) incomplete_details: Option<Value>,
    pub(super) background: bool,
    pub(super) store: bool,
    pub(super) instructions: Option<String>,
    pub(super) model: String,
    pub(super) output: Vec<Value>,
    pub(super) previous_response_id: Option<String>,
    pub(super) usage: Option<Value>,
    pub(super) truncation: &'static str,
    /// What was asked, as it was asked.
    #[serde(flatten)]
    pub(super) repeated: Map<String, Value>,
}

impl ResponseBody {
    pub(super) fn new(asked: Map<String, Value>) -> Self {
        // Clients look for all of them, whether they were given or not.
        let defaults = json!({
            "metadata": {}, "max_output_tokens": null, "parallel_tool_calls": true, "temperature": 1.0, "top_p": 1.0,
            "tool_choice": "auto", "tools": [], "text": {"format": {"type": "text"}},
            "reasoning": {"effort": null, "summary": null},
        });
        let mut repeated = defaults.as_object().cloned().unwrap_or_default();
        repeated.extend(asked);
        Self {
            id: String::new(),
            object: "response",
            created_at: 0,
            completed_at: None,
            status: "in_progress",
            error: None,
            incomplete_details: None,
            background: false,
            store: false,
            instructions: None,
            model: String::new(),
            output: Vec::new(),
            previous_response_id: None,
            usage: None,
            truncation: "disabled",
            repeated,
        }
    }
}

/// What a response took.
pub(super) fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.prompt_tokens_details.cached_tokens, "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    })
}

/// What went wrong, in the words that this API's clients know.
pub(super) fn error(problem: &Problem) -> Value {
    let code = if problem.status().as_u16() == 429 { "rate_limit_exceeded" } else { "server_error" };
    json!({"code": code, "message": problem.to_string()})
}

/// Items that came without names get some, so that they can be pointed at.
pub(super) fn with_ids(request: RequestId, items: Vec<Value>) -> Vec<Value> {
    let name = |(index, mut item): (usize, Value)| {
        if item.get("id").is_none() {
            let kind = match item["type"].as_str() {
                Some("function_call") => "fc",
                Some("function_call_output") => "fco",
                Some("reasoning") => "rs",
                _ => "msg",
            };
            item["id"] = Value::String(format!("{kind}_{:032x}_in{index}", request.0));
        }
        item
    };
    items.into_iter().enumerate().map(name).collect()
}
