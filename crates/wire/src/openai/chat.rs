//! Requests: `POST /v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::shared::{EFFORTS, function, model, only_functions, tool_choice, tools};
use crate::fields::{Fields, RequestError, wrong_type};
use crate::request::{Chat, Generation, Request, Source, Tool};

/// Messages in one chat. The body's cap bounds their size; this bounds work per message.
pub const MESSAGES_MAX: usize = 4096;

const DEPRECATED: &str = "it was replaced by 'tools' and 'tool_choice'";

/// Reads a body.
///
/// # Errors
/// Not JSON, a field of another type or out of range, a parameter that is unknown or not supported.
pub fn parse_chat(body: &[u8]) -> Result<Request, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let model = model(&mut fields)?;
    let mut generation = Generation::default();
    let mut chat = Chat { messages: messages(&mut fields, &mut generation.ignored)?, ..Chat::default() };
    generation.shared(&mut fields)?;
    let completion_max = fields.integer("max_completion_tokens", 1..=i64::from(u32::MAX))?;
    if let Some(most) = completion_max {
        let most = most as u32;
        if generation.max_tokens.is_some_and(|other| other != most) {
            let message = "'max_tokens' and 'max_completion_tokens' disagree: give only the second";
            return Err(RequestError::new("invalid_value", "max_tokens", message));
        }
        generation.max_tokens = Some(most);
    }
    generation.chat_logprobs(&mut fields)?;
    chat_tools(&mut fields, &mut chat)?;
    chat.template_variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
    chat.effort = fields.one_of("reasoning_effort", EFFORTS)?;
    fields.only("modalities", &json!(["text"]), "answers are text; leave it out or give [\"text\"]")?;
    fields.refuse("audio", "answers are text")?;
    fields.refuse("web_search_options", "nothing is fetched from the web")?;
    fields.refuse("moderation", "nothing is moderated here")?;
    // What it says is what happens anyway.
    fields.only("verbosity", &json!("medium"), "no model here takes it; leave it out")?;
    fields.end()?;
    Ok(Request { model, source: Source::Chat(chat), generation })
}

fn chat_tools(fields: &mut Fields, chat: &mut Chat) -> Result<(), RequestError> {
    chat.tools = tools(fields.list("tools")?, "tools", tool)?;
    let name = |choice: &mut Fields| {
        let path = choice.path("function");
        let mut function = Fields::of_value(choice.require("function")?, path)?;
        let name = function.named("name")?;
        function.end()?;
        Ok(name)
    };
    chat.tool_choice = tool_choice(fields, &mut chat.tools, name)?;
    chat.parallel_tools = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    fields.refuse("functions", DEPRECATED)?;
    match fields.take("function_call") {
        None => Ok(()),
        Some(choice) if choice == "none" || choice == "auto" => Ok(()),
        Some(_) => Err(RequestError::unsupported("function_call", DEPRECATED)),
    }
}

fn tool(fields: &mut Fields) -> Result<Tool, RequestError> {
    only_functions(fields)?;
    let path = fields.path("function");
    let mut inner = Fields::of_value(fields.require("function")?, path)?;
    let tool = function(&mut inner)?;
    inner.end()?;
    Ok(tool)
}

fn messages(fields: &mut Fields, ignored: &mut Vec<String>) -> Result<Vec<Value>, RequestError> {
    let list = match fields.require("messages")? {
        Value::Array(list) => list,
        other => return Err(wrong_type("messages".to_owned(), "an array", &other)),
    };
    check_count(list.len(), "messages")?;
    list.into_iter().enumerate().map(|(index, value)| message(value, index, ignored)).collect()
}

/// Some messages, not too many.
pub(crate) fn check_count(count: usize, path: &str) -> Result<(), RequestError> {
    if (1..=MESSAGES_MAX).contains(&count) {
        return Ok(());
    }
    let message = format!("'{path}' has {count} items: it must have 1 to {MESSAGES_MAX}");
    Err(RequestError::new("invalid_value", path, message))
}

fn message(value: Value, index: usize, ignored: &mut Vec<String>) -> Result<Value, RequestError> {
    let mut fields = Fields::of_value(value, format!("messages[{index}]"))?;
    let path = fields.path("role");
    let role = match fields.require("role")? {
        Value::String(role) => role,
        other => return Err(wrong_type(path, "a string", &other)),
    };
    let role = match role.as_str() {
        "user" | "assistant" | "system" | "tool" => role,
        // The newer name for the same thing; chat templates know only the older.
        "developer" => "system".to_owned(),
        "function" => return Err(RequestError::unsupported(path, DEPRECATED)),
        _ => {
            let message = format!("'{path}' must be one of system, developer, user, assistant, tool");
            return Err(RequestError::new("invalid_value", path, message));
        }
    };
    let mut out = Map::new();
    let mut calls = Vec::new();
    if role == "assistant" {
        let path = fields.path("tool_calls");
        for (index, call) in fields.list("tool_calls")?.into_iter().enumerate() {
            calls.push(tool_call(call, format!("{path}[{index}]"))?);
        }
        // Two servers' names for the same.
        let thought = fields.text("reasoning_content")?;
        let thought = fields.text("reasoning")?.or(thought).filter(|text| !text.is_empty());
        if let Some(thought) = thought {
            out.insert("reasoning_content".to_owned(), Value::String(thought));
        }
    } else {
        fields.refuse("tool_calls", "only an assistant's message has it")?;
    }
    if role == "tool" {
        out.insert("tool_call_id".to_owned(), Value::String(fields.named("tool_call_id")?));
    }
    fields.refuse("function_call", DEPRECATED)?;
    fields.refuse("audio", "messages are text")?;
    fields.ignore(&["id", "refusal", "annotations"], ignored);
    let path = fields.path("content");
    let said = match fields.take("content") {
        // Some templates join it to other texts, which nothing can be joined to.
        None if !calls.is_empty() => String::new(),
        None => content(fields.require("content")?, path, ignored)?,
        Some(value) => content(value, path, ignored)?,
    };
    let name = fields.text("name")?;
    fields.end()?;
    out.insert("role".to_owned(), Value::String(role));
    out.insert("content".to_owned(), Value::String(said));
    if let Some(name) = name {
        out.insert("name".to_owned(), Value::String(name));
    }
    if !calls.is_empty() {
        out.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Ok(Value::Object(out))
}

/// A call that was made: its arguments stay the text that they were.
fn tool_call(value: Value, path: String) -> Result<Value, RequestError> {
    let mut fields = Fields::of_value(value, path)?;
    let path = fields.path("function");
    let mut function = Fields::of_value(fields.require("function")?, path)?;
    let name = function.named("name")?;
    let arguments = function.text("arguments")?.unwrap_or_default();
    function.end()?;
    let id = fields.named("id")?;
    fields.only("type", &json!("function"), "calls are of type 'function'")?;
    // Streamed calls have one, and clients send back what they got.
    fields.integer("index", 0..=i64::from(u32::MAX))?;
    fields.end()?;
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// A string, or text parts, which are joined without anything between them.
pub(crate) fn content(value: Value, path: String, ignored: &mut Vec<String>) -> Result<String, RequestError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path, "a string or an array of text parts", &other)),
    };
    let mut out = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of_value(part, format!("{path}[{index}]"))?;
        let kind_path = part.path("type");
        let kind = part.require("type")?;
        let field = match kind.as_str() {
            Some("text" | "input_text" | "output_text") => "text",
            Some("refusal") => "refusal",
            _ => {
                return Err(RequestError::unsupported(kind_path, "only parts of type 'text' are taken"));
            }
        };
        let text_path = part.path(field);
        match part.require(field)? {
            Value::String(text) => out.push_str(&text),
            other => return Err(wrong_type(text_path, "a string", &other)),
        }
        // Prefixes are cached without being told to; what an answer was said to have is no part of it.
        part.ignore(&["cache_control", "prompt_cache_breakpoint", "annotations", "logprobs"], ignored);
        part.end()?;
    }
    Ok(out)
}
