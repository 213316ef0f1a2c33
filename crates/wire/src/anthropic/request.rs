//! Requests: `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use serde_json::{Map, Value, json};

use crate::fields::{Fields, RequestError, wrong_type};
use crate::openai::chat::{check_count, content};
use crate::openai::shared::{EFFORTS, check_choice, check_name, is_schema, model, stop_texts, tools};
use crate::request::{AnswerFormat, Chat, Generation, Request, Source, Tool, ToolChoice};

/// Given or not, these do not change the answer.
const HARMLESS: [&str; 9] = [
    "metadata",
    "service_tier",
    "cache_control",
    "inference_geo",
    "speed",
    "diagnostics",
    "user_profile_id",
    "workspace_id",
    "betas",
];

/// Reads the body of a call for a message.
///
/// # Errors
/// Not JSON, a field of another type or out of range, a parameter that is unknown or not supported.
pub fn parse_message(body: &[u8]) -> Result<Request, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let mut generation = Generation::default();
    let most = fields.integer("max_tokens", 1..=i64::from(u32::MAX))?;
    let Some(most) = most else {
        fields.require("max_tokens")?;
        return Err(RequestError::new("missing_required_parameter", "max_tokens", "give 'max_tokens'"));
    };
    generation.max_tokens = Some(most as u32);
    generation.stream = fields.flag("stream")?.unwrap_or(false);
    generation.temperature = fields.number("temperature", 0.0..=1.0)?;
    generation.top_p = fields.number("top_p", 0.0..=1.0)?;
    generation.top_k = fields.integer("top_k", 0..=i64::from(u32::MAX))?.map(|k| k as u32);
    generation.stop = stop_texts(fields.list("stop_sequences")?, "stop_sequences")?;
    prompt(fields, generation)
}

/// Reads the body of a call that counts a prompt's tokens.
///
/// # Errors
/// As [`parse_message`].
pub fn parse_count(body: &[u8]) -> Result<Request, RequestError> {
    prompt(Fields::of_body(body)?, Generation::default())
}

/// Everything that both calls have.
fn prompt(mut fields: Fields, mut generation: Generation) -> Result<Request, RequestError> {
    let model = model(&mut fields)?;
    let mut chat = Chat::default();
    if let Some(system) = fields.take("system") {
        let text = content(system, "system".to_owned(), &mut generation.ignored)?;
        chat.messages.push(json!({"role": "system", "content": text}));
    }
    messages(&mut fields, &mut chat, &mut generation.ignored)?;
    chat.tools = tools(fields.list("tools")?, "tools", tool)?;
    choice(&mut fields, &mut chat)?;
    thinking(&mut fields, &mut chat, &mut generation)?;
    fields.refuse("container", "nothing is run here; leave it out")?;
    fields.refuse("mcp_servers", "nothing is fetched here; run the tools yourself")?;
    fields.refuse("context_management", "prompts are never cut; leave it out")?;
    fields.ignore(&HARMLESS, &mut generation.ignored);
    fields.end()?;
    Ok(Request { model, source: Source::Chat(chat), generation })
}

fn tool(fields: &mut Fields) -> Result<Tool, RequestError> {
    let path = fields.path("type");
    if fields.text("type")?.is_some_and(|kind| kind != "custom") {
        let remedy = "tools are of type 'custom', which the caller runs; nothing is run or fetched here";
        return Err(RequestError::unsupported(path, remedy));
    }
    let name = fields.named("name")?;
    check_name(&name, fields.path("name"))?;
    let path = fields.path("input_schema");
    let parameters = fields.require("input_schema")?;
    is_schema(&parameters, path)?;
    let description = fields.text("description")?;
    let strict = fields.flag("strict")?.unwrap_or(false);
    let mut unseen = Vec::new();
    let harmless =
        ["cache_control", "allowed_callers", "defer_loading", "eager_input_streaming", "input_examples"];
    fields.ignore(&harmless, &mut unseen);
    Ok(Tool { name, description, parameters, strict })
}

fn choice(fields: &mut Fields, chat: &mut Chat) -> Result<(), RequestError> {
    chat.parallel_tools = true;
    let Some(mut choice) = fields.fields("tool_choice")? else { return Ok(()) };
    let kind = choice.one_of("type", &["auto", "any", "tool", "none"])?;
    chat.tool_choice = match kind {
        Some("auto") => ToolChoice::Auto,
        Some("any") => ToolChoice::Required,
        Some("tool") => ToolChoice::Named(choice.named("name")?),
        Some(_) => ToolChoice::None,
        None => {
            choice.require("type")?;
            ToolChoice::Auto
        }
    };
    chat.parallel_tools = !choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
    choice.end()?;
    check_choice(&chat.tool_choice, &chat.tools, "tool_choice")
}

/// `thinking` and `output_config`. A caller that does not ask for thinking gets none, as far as its model can do without.
fn thinking(fields: &mut Fields, chat: &mut Chat, generation: &mut Generation) -> Result<(), RequestError> {
    chat.effort = Some("none");
    if let Some(mut thinking) = fields.fields("thinking")? {
        let kind = thinking.one_of("type", &["enabled", "disabled", "adaptive", "between_tools"])?;
        let budget = thinking.integer("budget_tokens", 1024..=i64::from(u32::MAX))?;
        thinking.one_of("display", &["summarized", "omitted"])?;
        chat.effort = match (kind, budget) {
            (None, _) => {
                thinking.require("type")?;
                None
            }
            (Some("disabled"), _) => Some("none"),
            (Some("enabled"), None) => {
                thinking.require("budget_tokens")?;
                None
            }
            // Budgets are levels to the models that know any.
            (Some("enabled"), Some(..4096)) => Some("low"),
            (Some("enabled"), Some(16_384..)) => Some("high"),
            _ => Some("medium"),
        };
        thinking.end()?;
    }
    let Some(mut config) = fields.fields("output_config")? else { return Ok(()) };
    let effort = config.one_of("effort", EFFORTS)?;
    if chat.effort != Some("none") {
        chat.effort = effort.or(chat.effort);
    } else if effort.is_some() {
        generation.ignored.push("output_config.effort".to_owned());
    }
    if let Some(mut format) = config.fields("format")? {
        format.one_of("type", &["json_schema"])?;
        let path = format.path("schema");
        let schema = format.require("schema")?;
        is_schema(&schema, path)?;
        generation.format = AnswerFormat::JsonSchema { schema, name: None };
        format.end()?;
    }
    config.end()
}

fn messages(fields: &mut Fields, chat: &mut Chat, ignored: &mut Vec<String>) -> Result<(), RequestError> {
    let list = match fields.require("messages")? {
        Value::Array(list) => list,
        other => return Err(wrong_type("messages".to_owned(), "an array", &other)),
    };
    check_count(list.len(), "messages")?;
    for (index, value) in list.into_iter().enumerate() {
        let mut fields = Fields::of_value(value, format!("messages[{index}]"))?;
        let role = fields.one_of("role", &["user", "assistant", "system"])?;
        let Some(role) = role else {
            fields.require("role")?;
            continue;
        };
        let path = fields.path("content");
        let said = fields.require("content")?;
        fields.end()?;
        turn(role, said, path, chat, ignored)?;
    }
    // An assistant's message at the end is how the answer begins.
    let prefilled = chat
        .messages
        .last()
        .is_some_and(|last| last["role"] == "assistant" && last.get("tool_calls").is_none());
    if prefilled && let Some(last) = chat.messages.pop() {
        chat.prefix = last["content"].as_str().map(str::to_owned).filter(|text| !text.is_empty());
    }
    Ok(())
}

/// One turn: a text, or blocks, whose tool results become messages of their own.
fn turn(
    role: &str,
    said: Value,
    path: String,
    chat: &mut Chat,
    ignored: &mut Vec<String>,
) -> Result<(), RequestError> {
    let blocks = match said {
        Value::String(text) => {
            chat.messages.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(path, "a string or an array of blocks", &other)),
    };
    let mut text = String::new();
    let mut thought = String::new();
    let mut calls = Vec::new();
    let mut answered = false;
    for (index, value) in blocks.into_iter().enumerate() {
        let mut block = Fields::of_value(value, format!("{path}[{index}]"))?;
        block.ignore(&["cache_control", "citations", "caller", "toolset_name"], ignored);
        let kind_path = block.path("type");
        match (block.require("type")?.as_str(), role) {
            (Some("text"), _) => text.push_str(&block.text("text")?.unwrap_or_default()),
            (Some("thinking"), "assistant") => {
                thought.push_str(&block.text("thinking")?.unwrap_or_default());
                block.text("signature")?;
            }
            (Some("redacted_thinking"), "assistant") => {
                block.text("data")?;
            }
            (Some("tool_use"), "assistant") => calls.push(call(&mut block)?),
            (Some("tool_result"), "user") => {
                chat.messages.push(result(&mut block, ignored)?);
                answered = true;
            }
            _ => {
                let remedy = "blocks are text, thinking, tool_use (assistant) and tool_result (user)";
                return Err(RequestError::unsupported(kind_path, remedy));
            }
        }
        block.end()?;
    }
    if answered && text.is_empty() {
        return Ok(());
    }
    let mut out = Map::new();
    out.insert("role".to_owned(), json!(role));
    out.insert("content".to_owned(), Value::String(text));
    if !thought.is_empty() {
        out.insert("reasoning_content".to_owned(), Value::String(thought));
    }
    if !calls.is_empty() {
        out.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    chat.messages.push(Value::Object(out));
    Ok(())
}

fn call(block: &mut Fields) -> Result<Value, RequestError> {
    let (id, name) = (block.named("id")?, block.named("name")?);
    let input = block.object("input")?.unwrap_or_default();
    let arguments = Value::Object(input).to_string();
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

fn result(block: &mut Fields, ignored: &mut Vec<String>) -> Result<Value, RequestError> {
    let id = block.named("tool_use_id")?;
    let path = block.path("content");
    let mut text = match block.take("content") {
        None => String::new(),
        Some(value) => content(value, path, ignored)?,
    };
    // Templates have no other place for it.
    if block.flag("is_error")?.unwrap_or(false) {
        text.insert_str(0, "Error: ");
    }
    Ok(json!({"role": "tool", "tool_call_id": id, "content": text}))
}
