//! Requests: `POST /v1/chat/completions` and `POST /v1/completions`.

use serde_json::{Map, Value, json};

use super::fields::{Fields, RequestError, integer_of, within, wrong_type};

/// Alternatives of each token that may be asked for (OpenAI's own bound for chats).
pub const TOP_LOGPROBS_MAX: i64 = 20;

/// Stop texts in one request. OpenAI takes 4; local clients send more.
pub const STOP_TEXTS_MAX: usize = 16;

/// Messages in one chat. The body's cap bounds their size; this bounds work per message.
pub const MESSAGES_MAX: usize = 4096;

/// A chat to be continued. Not `Debug`: it holds a prompt.
#[derive(Clone, PartialEq)]
pub struct ChatRequest {
    /// The model asked for.
    pub model: String,
    /// What was said, oldest first: objects with `role` (system, user, assistant), `content` (a string, text parts
    /// joined) and `name` where given; ready for a chat template.
    pub messages: Vec<Value>,
    /// Further variables for the chat template (extension `chat_template_kwargs`, under vLLM's name).
    pub template_variables: Map<String, Value>,
    /// How to generate.
    pub generation: Generation,
}

/// Texts to be continued. Not `Debug`: it holds prompts.
#[derive(Clone, PartialEq)]
pub struct CompletionRequest {
    /// The model asked for.
    pub model: String,
    /// One choice is generated for each.
    pub prompts: Vec<Prompt>,
    /// How to generate.
    pub generation: Generation,
}

/// What a completion begins with. Not `Debug`: it is a prompt.
#[derive(Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be tokenized.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

/// How to generate: what both APIs share. Absent means that the caller did not say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// Server-sent events instead of one body.
    pub stream: bool,
    /// A last event with the usage.
    pub include_usage: bool,
    /// At most so many generated tokens.
    pub max_tokens: Option<u32>,
    /// 0 is greedy. OpenAI's default is 1.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// The k most probable; 0 is off.
    pub top_k: Option<u32>,
    /// Relative floor; 0 is off.
    pub min_p: Option<f32>,
    /// 1 is off.
    pub repetition_penalty: Option<f32>,
    /// 0 is off.
    pub presence_penalty: Option<f32>,
    /// 0 is off.
    pub frequency_penalty: Option<f32>,
    /// Fixes the draws.
    pub seed: Option<u64>,
    /// Added to logits, by token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Log-probabilities of the drawn tokens, with so many alternatives.
    pub logprobs: Option<u8>,
    /// Go on past the model's stop tokens (extension `ignore_eos`, for benches).
    pub ignore_stop_tokens: bool,
    /// Parameters that were given, do not change the answer and are not looked at.
    pub ignored: Vec<String>,
}

/// Given or not, these do not change the answer.
const HARMLESS: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
];

const NO_TOOLS: &str = "tools are not available yet; leave it out";

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// Not JSON, a field of another type or out of range, a parameter that is unknown or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::of_body(body)?;
        let model = model(&mut fields)?;
        let mut generation = Generation::default();
        let messages = messages(&mut fields, &mut generation.ignored)?;
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
        fields.refuse("tools", NO_TOOLS)?;
        fields.refuse("functions", NO_TOOLS)?;
        for name in ["tool_choice", "function_call"] {
            match fields.take(name) {
                None => {}
                Some(choice) if choice == "none" || choice == "auto" => {}
                Some(_) => return Err(RequestError::unsupported(name, NO_TOOLS)),
            }
        }
        fields.ignore(&["parallel_tool_calls"], &mut generation.ignored);
        let template_variables = match fields.take("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(map)) => map,
            Some(other) => {
                return Err(wrong_type("chat_template_kwargs".to_owned(), "an object", &other));
            }
        };
        fields.only("modalities", &json!(["text"]), "answers are text; leave it out or give [\"text\"]")?;
        fields.refuse("audio", "answers are text")?;
        fields.refuse("web_search_options", "nothing is fetched from the web")?;
        // What these say is what happens anyway.
        fields.only("reasoning_effort", &json!("none"), "no model here takes it; leave it out")?;
        fields.only("verbosity", &json!("medium"), "no model here takes it; leave it out")?;
        match fields.take("response_format") {
            None => {}
            Some(format) if format == json!({"type": "text"}) => {}
            Some(_) => {
                let remedy = "only {\"type\": \"text\"} is available yet";
                return Err(RequestError::unsupported("response_format", remedy));
            }
        }
        fields.end()?;
        Ok(Self { model, messages, template_variables, generation })
    }
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// As [`ChatRequest::parse`].
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::of_body(body)?;
        let model = model(&mut fields)?;
        let prompts = prompts(fields.require("prompt")?)?;
        let mut generation = Generation::default();
        generation.shared(&mut fields)?;
        generation.logprobs =
            fields.integer("logprobs", 0..=TOP_LOGPROBS_MAX)?.map(|alternatives| alternatives as u8);
        fields.only("best_of", &json!(1), "only one answer is drawn; leave it out")?;
        fields.refuse("echo", "the prompt is not repeated; leave it out")?;
        match fields.take("suffix") {
            None => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(_) => {
                return Err(RequestError::unsupported("suffix", "text is only continued, not filled in"));
            }
        }
        if generation.stream && prompts.len() > 1 {
            let remedy = "several prompts cannot be streamed; send one prompt or set stream to false";
            return Err(RequestError::unsupported("prompt", remedy));
        }
        fields.end()?;
        Ok(Self { model, prompts, generation })
    }
}

impl Generation {
    /// Everything that both APIs name alike.
    fn shared(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
        self.stream = fields.flag("stream")?.unwrap_or(false);
        self.stream_options(fields)?;
        self.max_tokens = fields.integer("max_tokens", 1..=i64::from(u32::MAX))?.map(|most| most as u32);
        self.temperature = fields.number("temperature", 0.0..=2.0)?;
        self.top_p = fields.number("top_p", 0.0..=1.0)?;
        // -1 is how vLLM's clients say off.
        self.top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| k.max(0) as u32);
        self.min_p = fields.number("min_p", 0.0..=1.0)?;
        self.repetition_penalty = fields.number("repetition_penalty", 0.01..=10.0)?;
        self.presence_penalty = fields.number("presence_penalty", -2.0..=2.0)?;
        self.frequency_penalty = fields.number("frequency_penalty", -2.0..=2.0)?;
        self.seed = seed(fields)?;
        self.logit_bias = logit_bias(fields)?;
        self.stop = stop(fields)?;
        self.ignore_stop_tokens = fields.flag("ignore_eos")?.unwrap_or(false);
        if fields.integer("n", 1..=128)?.is_some_and(|n| n != 1) {
            let remedy = "only one answer a request; send the request again for another";
            return Err(RequestError::unsupported("n", remedy));
        }
        fields.ignore(&HARMLESS, &mut self.ignored);
        Ok(())
    }

    fn stream_options(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
        let Some(options) = fields.take("stream_options") else { return Ok(()) };
        if !self.stream {
            let message = "'stream_options' is only allowed when 'stream' is true";
            return Err(RequestError::new("invalid_value", "stream_options", message));
        }
        let mut options = Fields::of_value(options, "stream_options".to_owned())?;
        self.include_usage = options.flag("include_usage")?.unwrap_or(false);
        options.ignore(&["include_obfuscation"], &mut self.ignored);
        options.end()
    }

    fn chat_logprobs(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
        let wanted = fields.flag("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
        if top.is_some_and(|top| top > 0) && !wanted {
            let message = "'top_logprobs' is only allowed when 'logprobs' is true";
            return Err(RequestError::new("invalid_value", "top_logprobs", message));
        }
        self.logprobs = wanted.then(|| top.unwrap_or(0) as u8);
        Ok(())
    }
}

fn model(fields: &mut Fields) -> Result<String, RequestError> {
    match fields.require("model")? {
        Value::String(model) if !model.is_empty() => Ok(model),
        Value::String(_) => {
            let message = "'model' is empty: name a model from GET /v1/models";
            Err(RequestError::new("invalid_value", "model", message))
        }
        other => Err(wrong_type("model".to_owned(), "a string", &other)),
    }
}

fn messages(fields: &mut Fields, ignored: &mut Vec<String>) -> Result<Vec<Value>, RequestError> {
    let list = match fields.require("messages")? {
        Value::Array(list) => list,
        other => return Err(wrong_type("messages".to_owned(), "an array", &other)),
    };
    if list.is_empty() || list.len() > MESSAGES_MAX {
        let message = format!("'messages' has {} items: it must have 1 to {MESSAGES_MAX}", list.len());
        return Err(RequestError::new("invalid_value", "messages", message));
    }
    list.into_iter().enumerate().map(|(index, value)| message(value, index, ignored)).collect()
}

fn message(value: Value, index: usize, ignored: &mut Vec<String>) -> Result<Value, RequestError> {
    let mut fields = Fields::of_value(value, format!("messages[{index}]"))?;
    let path = fields.path("role");
    let role = match fields.require("role")? {
        Value::String(role) => role,
        other => return Err(wrong_type(path, "a string", &other)),
    };
    let role = match role.as_str() {
        "user" | "assistant" | "system" => role,
        // The newer name for the same thing; chat templates know only the older.
        "developer" => "system".to_owned(),
        "tool" | "function" => return Err(RequestError::unsupported(path, NO_TOOLS)),
        _ => {
            let message = format!("'{path}' must be one of system, developer, user, assistant");
            return Err(RequestError::new("invalid_value", path, message));
        }
    };
    fields.refuse("tool_calls", NO_TOOLS)?;
    fields.refuse("function_call", NO_TOOLS)?;
    fields.refuse("audio", "messages are text")?;
    fields.ignore(&["id", "refusal", "annotations", "reasoning", "reasoning_content"], ignored);
    let path = fields.path("content");
    let content = content(fields.require("content")?, path, ignored)?;
    let name = fields.text("name")?;
    fields.end()?;
    let mut out = Map::new();
    out.insert("role".to_owned(), Value::String(role));
    out.insert("content".to_owned(), Value::String(content));
    if let Some(name) = name {
        out.insert("name".to_owned(), Value::String(name));
    }
    Ok(Value::Object(out))
}

/// A string, or text parts, which are joined without anything between them.
fn content(value: Value, path: String, ignored: &mut Vec<String>) -> Result<String, RequestError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path, "a string or an array of text parts", &other)),
    };
    let mut out = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of_value(part, format!("{path}[{index}]"))?;
        let kind_path = part.path("type");
        if part.require("type")? != "text" {
            return Err(RequestError::unsupported(kind_path, "only parts of type 'text' are taken"));
        }
        let text_path = part.path("text");
        match part.require("text")? {
            Value::String(text) => out.push_str(&text),
            other => return Err(wrong_type(text_path, "a string", &other)),
        }
        // Prefixes are cached without being told to.
        part.ignore(&["cache_control"], ignored);
        part.end()?;
    }
    Ok(out)
}

/// The most prompts in one completion: each takes a place in the queue.
const PROMPTS_MAX: usize = 64;

fn prompts(value: Value) -> Result<Vec<Prompt>, RequestError> {
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) => list,
        other => {
            return Err(wrong_type("prompt".to_owned(), "a string or an array of strings or tokens", &other));
        }
    };
    let refuse = |message: String| RequestError::new("invalid_value", "prompt", message);
    match list.first() {
        None => Err(refuse("'prompt' is an empty array: give a text or tokens".to_owned())),
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(tokens(list, "prompt")?)]),
        Some(_) if list.len() > PROMPTS_MAX => {
            Err(refuse(format!("'prompt' has {} items: at most {PROMPTS_MAX} are taken", list.len())))
        }
        Some(_) => list
            .into_iter()
            .enumerate()
            .map(|(index, item)| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(list) if !list.is_empty() => {
                    Ok(Prompt::Tokens(tokens(list, &format!("prompt[{index}]"))?))
                }
                other => {
                    Err(wrong_type(format!("prompt[{index}]"), "a string or an array of tokens", &other))
                }
            })
            .collect(),
    }
}

fn tokens(list: Vec<Value>, path: &str) -> Result<Vec<u32>, RequestError> {
    list.iter()
        .enumerate()
        .map(|(index, value)| {
            let here = || format!("{path}[{index}]");
            let token = integer_of(value).ok_or_else(|| wrong_type(here(), "a token (an integer)", value))?;
            within(here(), token, &(0..=i64::from(u32::MAX)))?;
            Ok(token as u32)
        })
        .collect()
}

/// Any integer of 64 bits, signed or not.
fn seed(fields: &mut Fields) -> Result<Option<u64>, RequestError> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) => match value.as_u64().or_else(|| integer_of(&value).map(|seed| seed as u64)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(wrong_type("seed".to_owned(), "an integer of 64 bits", &value)),
        },
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, RequestError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("logit_bias".to_owned(), "an object", &other)),
    };
    if map.len() > 1024 {
        let message = format!("'logit_bias' has {} entries: at most 1024 are taken", map.len());
        return Err(RequestError::new("invalid_value", "logit_bias", message));
    }
    map.into_iter()
        .map(|(name, value)| {
            let path = format!("logit_bias.{}", name.chars().take(32).collect::<String>());
            let token = name.parse::<u32>().map_err(|_| {
                let message = format!("'{path}': the name must be a token's number");
                RequestError::new("invalid_value", path.clone(), message)
            })?;
            let bias = value.as_f64().ok_or_else(|| wrong_type(path.clone(), "a number", &value))?;
            within(path, bias, &(-100.0..=100.0))?;
            Ok((token, bias as f32))
        })
        .collect()
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(wrong_type("stop".to_owned(), "a string or an array of strings", &other));
        }
    };
    if list.len() > STOP_TEXTS_MAX {
        let message = format!("'stop' has {} items: at most {STOP_TEXTS_MAX} are taken", list.len());
        return Err(RequestError::new("invalid_value", "stop", message));
    }
    list.into_iter()
        .enumerate()
        .map(|(index, item)| match item {
            Value::String(text) if !text.is_empty() && text.len() <= 1024 => Ok(text),
            Value::String(text) => {
                let path = format!("stop[{index}]");
                let message = format!("'{path}' has {} bytes: it must have 1 to 1024", text.len());
                Err(RequestError::new("invalid_value", path, message))
            }
            other => Err(wrong_type(format!("stop[{index}]"), "a string", &other)),
        })
        .collect()
}
