//! Requests: `POST /api/chat`, `/api/generate` and `/api/show`.

use serde_json::{Map, Value, json};

use crate::fields::{Fields, RequestError, wrong_type};
use crate::openai::chat::check_count;
use crate::openai::shared::{check_name, is_schema, stop_texts, tools};
use crate::request::{AnswerFormat, Chat, Generation, Prompt, Request, Source, Tool};

/// What a call asks for. Not `Debug`: it holds a prompt.
#[derive(Clone, PartialEq)]
pub enum Asked {
    /// An answer.
    Answer(Box<Request>),
    /// Only that the model be there.
    Load(String),
}

/// Options that say how Ollama's own engine runs: nothing here depends on them.
const OF_THE_ENGINE: [&str; 15] = [
    "num_ctx",
    "num_keep",
    "num_batch",
    "num_gpu",
    "num_thread",
    "main_gpu",
    "numa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mmap",
    "use_mlock",
    "embedding_only",
    "repeat_last_n",
];

/// Reads a chat's body.
///
/// # Errors
/// Not JSON, a field of another type or out of range, a parameter that is unknown or not supported.
pub fn parse_chat(body: &[u8]) -> Result<Asked, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let mut generation = Generation::default();
    let model = model(&mut fields)?;
    let mut chat = Chat { parallel_tools: true, ..Chat::default() };
    let list = fields.list("messages")?;
    let load = list.is_empty();
    if !load {
        check_count(list.len(), "messages")?;
    }
    let mut calls = 0;
    for (index, value) in list.into_iter().enumerate() {
        chat.messages.push(message(value, index, &mut calls)?);
    }
    chat.tools = tools(fields.list("tools")?, "tools", tool)?;
    chat.effort = think(&mut fields)?;
    shared(&mut fields, &mut generation)?;
    fields.end()?;
    if load {
        return Ok(Asked::Load(model));
    }
    Ok(Asked::Answer(Box::new(Request { model, source: Source::Chat(chat), generation })))
}

/// Reads a text's body.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_generate(body: &[u8]) -> Result<Asked, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let mut generation = Generation::default();
    let model = model(&mut fields)?;
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let system = fields.text("system")?.filter(|text| !text.is_empty());
    let raw = fields.flag("raw")?.unwrap_or(false);
    if fields.text("suffix")?.is_some_and(|text| !text.is_empty()) {
        return Err(RequestError::unsupported("suffix", "text is only continued, not filled in"));
    }
    if fields.text("template")?.is_some_and(|text| !text.is_empty()) {
        let remedy = "models have their own; give 'raw' and the prompt as it shall be";
        return Err(RequestError::unsupported("template", remedy));
    }
    fields.refuse("images", "prompts are text")?;
    let remedy = "it is not kept; send the conversation to /api/chat";
    fields.refuse("context", remedy)?;
    for name in ["width", "height", "steps"] {
        fields.refuse(name, "answers are text")?;
    }
    let effort = think(&mut fields)?;
    shared(&mut fields, &mut generation)?;
    fields.end()?;
    if prompt.is_empty() && system.is_none() {
        return Ok(Asked::Load(model));
    }
    let source = if raw {
        Source::Texts(vec![Prompt::Text(prompt)])
    } else {
        let mut messages = Vec::new();
        messages.extend(system.map(|text| json!({"role": "system", "content": text})));
        messages.push(json!({"role": "user", "content": prompt}));
        Source::Chat(Chat { messages, effort, ..Chat::default() })
    };
    Ok(Asked::Answer(Box::new(Request { model, source, generation })))
}

/// Reads which model shall be shown.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_show(body: &[u8]) -> Result<String, RequestError> {
    let mut fields = Fields::of_body(body)?;
    // The older name comes from older clients.
    let older = fields.text("name")?.filter(|name| !name.is_empty());
    let model = match older {
        Some(name) => {
            fields.take("model");
            name
        }
        None => model(&mut fields)?,
    };
    let mut unseen = Vec::new();
    fields.ignore(&["verbose", "system", "template", "options"], &mut unseen);
    fields.end()?;
    Ok(model)
}

fn model(fields: &mut Fields) -> Result<String, RequestError> {
    fields.named("model")
}

fn tool(fields: &mut Fields) -> Result<Tool, RequestError> {
    fields.only("type", &json!("function"), "tools are functions, which the caller runs")?;
    let path = fields.path("function");
    let mut function = Fields::of_value(fields.require("function")?, path)?;
    let name = function.named("name")?;
    check_name(&name, function.path("name"))?;
    let description = function.text("description")?;
    let path = function.path("parameters");
    let parameters =
        function.take("parameters").unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    is_schema(&parameters, path)?;
    let strict = function.flag("strict")?.unwrap_or(false);
    function.end()?;
    Ok(Tool { name, description, parameters: without_nulls(parameters), strict })
}

/// Clients write fields that nobody set as `null`, which is no schema.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| {
                    // Values of these are data, not schemas.
                    let data = matches!(name.as_str(), "enum" | "const" | "default" | "examples");
                    (name, if data { value } else { without_nulls(value) })
                })
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// `think`: a flag or a level.
fn think(fields: &mut Fields) -> Result<Option<&'static str>, RequestError> {
    match fields.take("think") {
        None => Ok(None),
        Some(Value::Bool(true)) => Ok(Some("medium")),
        Some(Value::Bool(false)) => Ok(Some("none")),
        Some(Value::String(level)) => {
            match ["low", "medium", "high", "max"].into_iter().find(|one| *one == level) {
                Some(level) => Ok(Some(level)),
                None => {
                    let message = "'think' must be true, false, low, medium, high or max";
                    Err(RequestError::new("invalid_value", "think", message))
                }
            }
        }
        Some(other) => Err(wrong_type("think".to_owned(), "a boolean or a level", &other)),
    }
}

fn message(value: Value, index: usize, calls: &mut u32) -> Result<Value, RequestError> {
    let mut fields = Fields::of_value(value, format!("messages[{index}]"))?;
    let role = fields.one_of("role", &["system", "user", "assistant", "tool"])?;
    let Some(role) = role else {
        fields.require("role")?;
        return Ok(Value::Null);
    };
    let mut out = Map::new();
    out.insert("role".to_owned(), json!(role));
    out.insert("content".to_owned(), Value::String(fields.text("content")?.unwrap_or_default()));
    if let Some(thought) = fields.text("thinking")?.filter(|text| !text.is_empty()) {
        out.insert("reasoning_content".to_owned(), Value::String(thought));
    }
    fields.refuse("images", "messages are text")?;
    let path = fields.path("tool_calls");
    let mut made = Vec::new();
    for (index, value) in fields.list("tool_calls")?.into_iter().enumerate() {
        let mut call = Fields::of_value(value, format!("{path}[{index}]"))?;
        let id = call.text("id")?;
        call.only("type", &json!("function"), "calls are of functions")?;
        let function_path = call.path("function");
        let mut function = Fields::of_value(call.require("function")?, function_path)?;
        let name = function.named("name")?;
        let arguments = Value::Object(function.object("arguments")?.unwrap_or_default()).to_string();
        function.integer("index", 0..=i64::from(u32::MAX))?;
        function.text("description")?;
        function.end()?;
        call.end()?;
        // This API's calls have no names of their own: results follow in order.
        let id = id.unwrap_or_else(|| format!("call_{calls}"));
        *calls += 1;
        made.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
    }
    if !made.is_empty() {
        out.insert("tool_calls".to_owned(), Value::Array(made));
    }
    let tool = fields.text("tool_name")?;
    let name = fields.text("name")?.or(tool);
    let id = fields.text("tool_call_id")?;
    if role == "tool" {
        let id = id.unwrap_or_else(|| format!("call_{}", calls.saturating_sub(1)));
        out.insert("tool_call_id".to_owned(), Value::String(id));
    }
    if let Some(name) = name {
        out.insert("name".to_owned(), Value::String(name));
    }
    fields.end()?;
    Ok(Value::Object(out))
}

/// What both calls have: the stream, the form, the options.
fn shared(fields: &mut Fields, generation: &mut Generation) -> Result<(), RequestError> {
    generation.stream = fields.flag("stream")?.unwrap_or(true);
    generation.format = match fields.take("format") {
        None => AnswerFormat::Text,
        Some(Value::String(word)) if word.is_empty() => AnswerFormat::Text,
        Some(Value::String(word)) if word == "json" => AnswerFormat::JsonObject,
        Some(Value::Object(schema)) => AnswerFormat::JsonSchema { schema: Value::Object(schema), name: None },
        Some(other) => return Err(wrong_type("format".to_owned(), "\"json\" or a JSON schema", &other)),
    };
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?;
    generation.logprobs = logprobs.then(|| top.unwrap_or(0) as u8);
    fields.ignore(&["keep_alive"], &mut generation.ignored);
    // Its own defaults: who changes base URLs expects no other answers.
    (generation.temperature, generation.top_k, generation.top_p) = (Some(0.8), Some(40), Some(0.9));
    let Some(mut options) = fields.fields("options")? else { return Ok(()) };
    self::options(&mut options, generation)?;
    options.end()
}

fn options(options: &mut Fields, generation: &mut Generation) -> Result<(), RequestError> {
    generation.temperature = options.number("temperature", 0.0..=2.0)?.or(generation.temperature);
    generation.top_p = options.number("top_p", 0.0..=1.0)?.or(generation.top_p);
    generation.top_k =
        options.integer("top_k", 0..=i64::from(u32::MAX))?.map(|k| k as u32).or(generation.top_k);
    generation.min_p = options.number("min_p", 0.0..=1.0)?;
    generation.repetition_penalty = options.number("repeat_penalty", 0.01..=10.0)?;
    generation.presence_penalty = options.number("presence_penalty", -2.0..=2.0)?;
    generation.frequency_penalty = options.number("frequency_penalty", -2.0..=2.0)?;
    // -1 is without end, -2 is to the end of the context: both are what nothing said means here.
    let most = options.integer("num_predict", -2..=i64::from(u32::MAX))?;
    generation.max_tokens = most.filter(|most| *most > 0).map(|most| most as u32);
    // -1 is any.
    let seed = options.integer("seed", i64::MIN..=i64::MAX)?;
    generation.seed = seed.filter(|seed| *seed != -1).map(|seed| seed as u64);
    generation.stop = match options.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => stop_texts(vec![Value::String(text)], "options.stop")?,
        Some(Value::Array(list)) => stop_texts(list, "options.stop")?,
        Some(other) => return Err(wrong_type("options.stop".to_owned(), "an array of strings", &other)),
    };
    for (name, off) in [("tfs_z", 1.0), ("typical_p", 1.0), ("mirostat", 0.0)] {
        if options.number(name, f64::MIN..=f64::MAX)?.is_some_and(|value| value != off) {
            let remedy = "tokens are not drawn like that here; leave it out";
            return Err(RequestError::unsupported(format!("options.{name}"), remedy));
        }
    }
    // They say something only beside those.
    options.ignore(&["mirostat_tau", "mirostat_eta", "penalize_newline"], &mut generation.ignored);
    options.ignore(&OF_THE_ENGINE, &mut generation.ignored);
    Ok(())
}
