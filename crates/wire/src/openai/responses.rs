//! Requests: `POST /v1/responses`, and the items that conversations consist of there.

use serde_json::{Map, Value, json};

use super::chat::{check_count, content};
use super::shared::{
    EFFORTS, TOP_LOGPROBS_MAX, function, json_schema, model, only_functions, texts, tool_choice, tools,
};
use crate::fields::{Fields, RequestError, wrong_type};
use crate::request::{AnswerFormat, Chat, Generation, Request, Source, Tool};

/// A response asked for. Not `Debug`: it holds a prompt.
#[derive(Clone, PartialEq)]
pub struct ResponseRequest {
    /// As every API's; its messages are those of this call's own items.
    pub request: Request,
    /// What was said, checked and in order: what is shown as the response's input, and read again by what follows it.
    pub items: Vec<Value>,
    /// What the model is told first; not carried over to what follows.
    pub instructions: Option<String>,
    /// The response that this one follows.
    pub previous: Option<String>,
    /// Whether it can be looked at later.
    pub store: bool,
    /// Whether it goes on without its caller.
    pub background: bool,
    /// Parameters that the response repeats as they were given.
    pub repeated: Map<String, Value>,
}

/// Given or not, these do not change the answer.
const HARMLESS: [&str; 8] = [
    "user",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "max_tool_calls",
    "access_programs",
];

/// Pairs of metadata, and the most bytes of a key and of a value (OpenAI's own bounds).
const METADATA_MAX: (usize, usize, usize) = (16, 64, 512);

/// Reads a body.
///
/// # Errors
/// Not JSON, a field of another type or out of range, a parameter that is unknown or not supported.
pub fn parse_response(body: &[u8]) -> Result<ResponseRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let model = model(&mut fields)?;
    let mut generation = Generation::default();
    let items = items(fields.require("input")?, &mut generation.ignored)?;
    let mut repeated = Map::new();
    let metadata = metadata(&mut fields)?;
    repeated.insert("metadata".to_owned(), Value::Object(metadata));
    for name in ["temperature", "top_p", "max_output_tokens", "tools", "tool_choice", "text", "reasoning"] {
        if let Some(value) = fields.peek(name) {
            repeated.insert(name.to_owned(), value.clone());
        }
    }
    generation.stream = fields.flag("stream")?.unwrap_or(false);
    generation.stream_options(&mut fields)?;
    generation.max_tokens =
        fields.integer("max_output_tokens", 1..=i64::from(u32::MAX))?.map(|most| most as u32);
    generation.sampling(&mut fields)?;
    let mut chat = Chat { messages: messages_of(&items), ..Chat::default() };
    chat.tools = tools(fields.list("tools")?, "tools", tool)?;
    chat.tool_choice = tool_choice(&mut fields, &mut chat.tools, |choice| choice.named("name"))?;
    chat.parallel_tools = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    repeated.insert("parallel_tool_calls".to_owned(), json!(chat.parallel_tools));
    chat.template_variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
    text(&mut fields, &mut generation)?;
    if let Some(mut reasoning) = fields.fields("reasoning")? {
        chat.effort = reasoning.one_of("effort", EFFORTS)?;
        reasoning.ignore(&["summary", "generate_summary"], &mut generation.ignored);
        reasoning.end()?;
    }
    include(&mut fields, &mut generation)?;
    let instructions = fields.text("instructions")?;
    let previous = fields.text("previous_response_id")?;
    let store = fields.flag("store")?.unwrap_or(true);
    let background = fields.flag("background")?.unwrap_or(false);
    if background && !store {
        let message = "'background' needs 'store': nothing else could fetch the answer";
        return Err(RequestError::new("invalid_value", "background", message));
    }
    fields.only("truncation", &json!("disabled"), "prompts are never cut; leave it out")?;
    fields.refuse("conversation", "give 'previous_response_id'")?;
    fields.refuse("prompt", "prompts are not kept here; give 'input' and 'instructions'")?;
    fields.refuse("context_management", "prompts are never cut; leave it out")?;
    fields.refuse("moderation", "nothing is moderated here")?;
    fields.ignore(&HARMLESS, &mut generation.ignored);
    fields.end()?;
    let request = Request { model, source: Source::Chat(chat), generation };
    Ok(ResponseRequest { request, items, instructions, previous, store, background, repeated })
}

fn tool(fields: &mut Fields) -> Result<Tool, RequestError> {
    only_functions(fields)?;
    function(fields)
}

fn text(fields: &mut Fields, generation: &mut Generation) -> Result<(), RequestError> {
    let Some(mut text) = fields.fields("text")? else { return Ok(()) };
    if let Some(mut format) = text.fields("format")? {
        generation.format = match format.one_of("type", &["text", "json_object", "json_schema"])? {
            Some("json_object") => AnswerFormat::JsonObject,
            Some("json_schema") => json_schema(&mut format)?,
            Some(_) => AnswerFormat::Text,
            None => {
                format.require("type")?;
                AnswerFormat::Text
            }
        };
        format.end()?;
    }
    text.only("verbosity", &json!("medium"), "no model here takes it; leave it out")?;
    text.end()
}

fn include(fields: &mut Fields, generation: &mut Generation) -> Result<(), RequestError> {
    let wanted = texts(fields.list("include")?, "include")?;
    let top = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    let logprobs = wanted.iter().any(|one| one == "message.output_text.logprobs");
    if logprobs || top.is_some_and(|top| top > 0) {
        generation.logprobs = Some(top.unwrap_or(0) as u8);
    }
    if wanted.iter().any(|one| one != "message.output_text.logprobs") {
        generation.ignored.push("include".to_owned());
    }
    Ok(())
}

fn metadata(fields: &mut Fields) -> Result<Map<String, Value>, RequestError> {
    let map = fields.object("metadata")?.unwrap_or_default();
    let (pairs, key, value) = METADATA_MAX;
    let fits = |(name, text): (&String, &Value)| {
        name.len() <= key && text.as_str().is_some_and(|text| text.len() <= value)
    };
    if map.len() <= pairs && map.iter().all(fits) {
        return Ok(map);
    }
    let message =
        format!("'metadata' must have at most {pairs} texts: keys of {key} bytes, values of {value}");
    Err(RequestError::new("invalid_value", "metadata", message))
}

/// A text, or items; checked, each in the shape in which it is shown again.
fn items(value: Value, ignored: &mut Vec<String>) -> Result<Vec<Value>, RequestError> {
    let list = match value {
        Value::String(text) => {
            let content = json!([{"type": "input_text", "text": text}]);
            return Ok(vec![json!({"type": "message", "role": "user", "content": content})]);
        }
        Value::Array(list) => list,
        other => return Err(wrong_type("input".to_owned(), "a string or an array of items", &other)),
    };
    check_count(list.len(), "input")?;
    list.into_iter().enumerate().map(|(index, value)| item(value, index, ignored)).collect()
}

fn item(value: Value, index: usize, ignored: &mut Vec<String>) -> Result<Value, RequestError> {
    let mut fields = Fields::of_value(value, format!("input[{index}]"))?;
    let path = fields.path("type");
    let kind = fields.text("type")?.unwrap_or_else(|| "message".to_owned());
    let id = fields.text("id")?;
    fields.ignore(&["status", "phase", "caller", "async", "encrypted_content"], ignored);
    let mut out = match kind.as_str() {
        "message" => message(&mut fields, ignored)?,
        "function_call" => json!({
            "type": "function_call",
            "call_id": fields.named("call_id")?,
            "name": fields.named("name")?,
            "arguments": fields.text("arguments")?.unwrap_or_default(),
            "status": "completed",
        }),
        "function_call_output" => {
            let path = fields.path("output");
            let call = fields.named("call_id")?;
            let output = content(fields.require("output")?, path, ignored)?;
            json!({"type": "function_call_output", "call_id": call, "output": output, "status": "completed"})
        }
        "reasoning" => reasoning(&mut fields)?,
        "item_reference" => {
            let remedy =
                "items are not kept apart from responses; give the item itself, or 'previous_response_id'";
            return Err(RequestError::unsupported(path, remedy));
        }
        _ => {
            let remedy = "items are messages, function calls, their outputs, and reasoning";
            return Err(RequestError::unsupported(path, remedy));
        }
    };
    fields.end()?;
    if let Some(id) = id {
        out["id"] = Value::String(id);
    }
    Ok(out)
}

fn message(fields: &mut Fields, ignored: &mut Vec<String>) -> Result<Value, RequestError> {
    let role = fields.one_of("role", &["user", "assistant", "system", "developer"])?;
    let Some(role) = role else { return Err(missing(fields, "role")) };
    let path = fields.path("content");
    let text = content(fields.require("content")?, path, ignored)?;
    let part = if role == "assistant" {
        json!({"type": "output_text", "text": text, "annotations": []})
    } else {
        json!({"type": "input_text", "text": text})
    };
    Ok(json!({"type": "message", "role": role, "status": "completed", "content": [part]}))
}

fn reasoning(fields: &mut Fields) -> Result<Value, RequestError> {
    let mut parts = Vec::new();
    for name in ["summary", "content"] {
        let path = fields.path(name);
        for (index, value) in fields.list(name)?.into_iter().enumerate() {
            let mut part = Fields::of_value(value, format!("{path}[{index}]"))?;
            part.one_of("type", &["summary_text", "reasoning_text"])?;
            let text = part.text("text")?.unwrap_or_default();
            part.end()?;
            if name == "content" {
                parts.push(json!({"type": "reasoning_text", "text": text}));
            }
        }
    }
    Ok(json!({"type": "reasoning", "summary": [], "content": parts}))
}

fn missing(fields: &Fields, name: &str) -> RequestError {
    let path = fields.path(name);
    let message = format!("missing required parameter: '{path}'");
    RequestError::new("missing_required_parameter", path, message)
}

/// What was said in items, as messages for a chat template: reasoning and calls belong to the assistant's turn that they
/// stand beside.
pub fn messages_of(items: &[Value]) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::with_capacity(items.len());
    let mut thought = String::new();
    let text_of = |item: &Value| -> String {
        let parts = item["content"].as_array().into_iter().flatten();
        parts.filter_map(|part| part["text"].as_str()).collect()
    };
    for item in items {
        match item["type"].as_str().unwrap_or("message") {
            "reasoning" => thought.push_str(&text_of(item)),
            "function_call_output" => out.push(json!({
                "role": "tool", "tool_call_id": item["call_id"], "content": item["output"],
            })),
            "function_call" => {
                let function = json!({"name": item["name"], "arguments": item["arguments"]});
                let call = json!({"id": item["call_id"], "type": "function", "function": function});
                let turn = assistant_turn(&mut out, &mut thought);
                if let Some(calls) = turn.entry("tool_calls").or_insert_with(|| json!([])).as_array_mut() {
                    calls.push(call);
                }
            }
            _ => {
                let role = match item["role"].as_str() {
                    // The newer name for the same thing; chat templates know only the older.
                    Some("developer") => "system",
                    Some(role) => role,
                    None => "user",
                };
                let text = text_of(item);
                if role == "assistant" {
                    out.push(json!({"role": role, "content": ""}));
                    let turn = assistant_turn(&mut out, &mut thought);
                    turn.insert("content".to_owned(), Value::String(text));
                } else {
                    out.push(json!({"role": role, "content": text}));
                }
            }
        }
    }
    out
}

/// The assistant's turn that is being told, or a new one.
fn assistant_turn<'a>(out: &'a mut Vec<Value>, thought: &mut String) -> &'a mut Map<String, Value> {
    if !out.last().is_some_and(|last| last["role"] == "assistant") {
        out.push(json!({"role": "assistant", "content": ""}));
    }
    let turn = out.last_mut().and_then(Value::as_object_mut).expect("an object was just there");
    if !thought.is_empty() {
        turn.insert("reasoning_content".to_owned(), Value::String(std::mem::take(thought)));
    }
    turn
}
