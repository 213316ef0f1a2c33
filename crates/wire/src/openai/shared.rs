//! What OpenAI's calls name alike: sampling, stop texts, answer formats, tools.

use serde_json::{Value, json};

use crate::fields::{Fields, RequestError, integer_of, within, wrong_type};
use crate::request::{AnswerFormat, Generation, Tool, ToolChoice};

/// Alternatives of each token that may be asked for (OpenAI's own bound for chats).
pub(crate) const TOP_LOGPROBS_MAX: i64 = 20;

/// Stop texts in one request. OpenAI takes 4; local clients send more.
pub(crate) const STOP_TEXTS_MAX: usize = 16;

/// Answers to one prompt: each takes a place in the queue (OpenAI's own bound).
pub(crate) const CHOICES_MAX: i64 = 128;

/// Tools in one request. Each is a part of the prompt.
pub(crate) const TOOLS_MAX: usize = 256;

/// How much thinking may be asked for, under every API's names.
pub(crate) const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Given or not, these do not change the answer.
const HARMLESS: [&str; 9] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "prediction",
];

impl Generation {
    /// Everything that chats and completions name alike.
    pub(super) fn shared(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
        self.stream = fields.flag("stream")?.unwrap_or(false);
        self.stream_options(fields)?;
        self.max_tokens = fields.integer("max_tokens", 1..=i64::from(u32::MAX))?.map(|most| most as u32);
        self.sampling(fields)?;
        self.choices = fields.integer("n", 1..=CHOICES_MAX)?.unwrap_or(1) as u32;
        self.structured(fields)?;
        fields.ignore(&HARMLESS, &mut self.ignored);
        Ok(())
    }

    /// How tokens are drawn, and where the answer ends.
    pub(super) fn sampling(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
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
        Ok(())
    }

    pub(super) fn stream_options(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
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

    pub(super) fn chat_logprobs(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
        let wanted = fields.flag("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
        if top.is_some_and(|top| top > 0) && !wanted {
            let message = "'top_logprobs' is only allowed when 'logprobs' is true";
            return Err(RequestError::new("invalid_value", "top_logprobs", message));
        }
        self.logprobs = wanted.then(|| top.unwrap_or(0) as u8);
        Ok(())
    }

    /// `response_format`, and the extension `structured_outputs` under vLLM's names.
    fn structured(&mut self, fields: &mut Fields) -> Result<(), RequestError> {
        if let Some(mut format) = fields.fields("response_format")? {
            self.format = response_format(&mut format)?;
            format.end()?;
        }
        let Some(mut more) = fields.fields("structured_outputs")? else { return Ok(()) };
        let choice = texts(more.list("choice")?, &more.path("choice"))?;
        let found = [
            more.take("json").map(|schema| AnswerFormat::JsonSchema { schema, name: None }),
            more.text("regex")?.map(AnswerFormat::Regex),
            more.text("grammar")?.map(AnswerFormat::Lark),
            (!choice.is_empty()).then_some(AnswerFormat::Choice(choice)),
        ];
        let mut found = found.into_iter().flatten();
        let (first, second) = (found.next(), found.next());
        let before = self.format != AnswerFormat::Text;
        if second.is_some() || (before && first.is_some()) {
            let message =
                "'structured_outputs' names several forms, or one beside 'response_format': give one";
            return Err(RequestError::new("invalid_value", "structured_outputs", message));
        }
        if let Some(AnswerFormat::JsonSchema { schema, .. }) = &first {
            is_schema(schema, "structured_outputs.json".to_owned())?;
        }
        if let Some(format) = first {
            self.format = format;
        }
        more.end()
    }
}

pub(crate) fn model(fields: &mut Fields) -> Result<String, RequestError> {
    match fields.require("model")? {
        Value::String(model) if !model.is_empty() => Ok(model),
        Value::String(_) => {
            let message = "'model' is empty: name a model from GET /v1/models";
            Err(RequestError::new("invalid_value", "model", message))
        }
        other => Err(wrong_type("model".to_owned(), "a string", &other)),
    }
}

/// `{"type": "text" | "json_object" | "json_schema", "json_schema": {..}}`.
fn response_format(fields: &mut Fields) -> Result<AnswerFormat, RequestError> {
    let kind = fields.one_of("type", &["text", "json_object", "json_schema"])?;
    match kind {
        None => {
            fields.require("type")?;
            Ok(AnswerFormat::Text)
        }
        Some("text") => Ok(AnswerFormat::Text),
        Some("json_object") => Ok(AnswerFormat::JsonObject),
        Some(_) => {
            let path = fields.path("json_schema");
            let mut schema = Fields::of_value(fields.require("json_schema")?, path)?;
            let format = json_schema(&mut schema)?;
            schema.end()?;
            Ok(format)
        }
    }
}

/// The fields of a named schema: `name`, `schema`, `strict`, `description`. Answers fit it, strict or not.
pub(super) fn json_schema(fields: &mut Fields) -> Result<AnswerFormat, RequestError> {
    let name = fields.named("name")?;
    check_name(&name, fields.path("name"))?;
    fields.flag("strict")?;
    fields.text("description")?;
    let path = fields.path("schema");
    let schema = fields.take("schema").unwrap_or_else(|| json!({"type": "object"}));
    is_schema(&schema, path)?;
    Ok(AnswerFormat::JsonSchema { schema, name: Some(name) })
}

pub(crate) fn is_schema(schema: &Value, path: String) -> Result<(), RequestError> {
    if schema.is_object() { Ok(()) } else { Err(wrong_type(path, "a JSON schema (an object)", schema)) }
}

/// Names of tools and schemas: what every model's way of writing calls can hold.
pub(crate) fn check_name(name: &str, path: String) -> Result<(), RequestError> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    if !name.is_empty() && name.len() <= 128 && name.chars().all(letter) {
        return Ok(());
    }
    let message = format!("'{path}' must have 1 to 128 letters, digits, '_', '-', '.', ':' or '/'");
    Err(RequestError::new("invalid_value", path, message))
}

/// The tools of a list, each read by `one`.
pub(crate) fn tools(
    list: Vec<Value>,
    path: &str,
    one: impl Fn(&mut Fields) -> Result<Tool, RequestError>,
) -> Result<Vec<Tool>, RequestError> {
    if list.len() > TOOLS_MAX {
        let message = format!("'{path}' has {} items: at most {TOOLS_MAX} are taken", list.len());
        return Err(RequestError::new("invalid_value", path, message));
    }
    let mut out: Vec<Tool> = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let mut fields = Fields::of_value(value, format!("{path}[{index}]"))?;
        let tool = one(&mut fields)?;
        fields.end()?;
        if out.iter().any(|other| other.name == tool.name) {
            let message = format!("'{path}[{index}]' has the name of an earlier one: give each its own");
            return Err(RequestError::new("invalid_value", format!("{path}[{index}]"), message));
        }
        out.push(tool);
    }
    Ok(out)
}

/// A function's own fields: `name`, `description`, `parameters`, `strict`.
pub(crate) fn function(fields: &mut Fields) -> Result<Tool, RequestError> {
    let name = fields.named("name")?;
    check_name(&name, fields.path("name"))?;
    let path = fields.path("parameters");
    let parameters = fields.take("parameters").unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    is_schema(&parameters, path)?;
    let description = fields.text("description")?;
    Ok(Tool { name, description, parameters, strict: fields.flag("strict")?.unwrap_or(false) })
}

/// Refuses what only other kinds of tools could do.
pub(crate) fn only_functions(fields: &mut Fields) -> Result<(), RequestError> {
    let path = fields.path("type");
    match fields.require("type")? {
        Value::String(kind) if kind == "function" => Ok(()),
        Value::String(_) => {
            let remedy =
                "tools are of type 'function', which the caller runs; nothing is run or fetched here";
            Err(RequestError::unsupported(path, remedy))
        }
        other => Err(wrong_type(path, "a string", &other)),
    }
}

/// A choice must be one that can be made.
pub(crate) fn check_choice(choice: &ToolChoice, tools: &[Tool], path: &str) -> Result<(), RequestError> {
    let refuse = |message: String| Err(RequestError::new("invalid_value", path, message));
    match choice {
        ToolChoice::Required if tools.is_empty() => {
            refuse(format!("'{path}' asks for a call, and there are no tools: give 'tools'"))
        }
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            refuse(format!("'{path}' names a tool that is not in 'tools': add it, or name one that is"))
        }
        _ => Ok(()),
    }
}

/// `none`, `auto`, `required`, one function, or some of them; leaves in `tools` what may be called.
pub(super) fn tool_choice(
    fields: &mut Fields,
    tools: &mut Vec<Tool>,
    function_name: impl Fn(&mut Fields) -> Result<String, RequestError>,
) -> Result<ToolChoice, RequestError> {
    let choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(word)) => mode(&word, "tool_choice")?,
        Some(value) => {
            let mut choice = Fields::of_value(value, "tool_choice".to_owned())?;
            let kind = choice.one_of("type", &["function", "allowed_tools"])?;
            let out = match kind {
                Some("function") => ToolChoice::Named(function_name(&mut choice)?),
                Some(_) => allowed(&mut choice, tools, function_name)?,
                None => {
                    choice.require("type")?;
                    ToolChoice::Auto
                }
            };
            choice.end()?;
            out
        }
    };
    check_choice(&choice, tools, "tool_choice")?;
    Ok(choice)
}

fn mode(word: &str, path: &str) -> Result<ToolChoice, RequestError> {
    match word {
        "none" => Ok(ToolChoice::None),
        "auto" => Ok(ToolChoice::Auto),
        "required" => Ok(ToolChoice::Required),
        _ => {
            let message = format!("'{path}' must be none, auto, required or an object that names a function");
            Err(RequestError::new("invalid_value", path, message))
        }
    }
}

/// `allowed_tools`: chats have its fields one level deeper than responses.
fn allowed(
    choice: &mut Fields,
    tools: &mut Vec<Tool>,
    function_name: impl Fn(&mut Fields) -> Result<String, RequestError>,
) -> Result<ToolChoice, RequestError> {
    let mut inner = choice.fields("allowed_tools")?;
    let from = inner.as_mut().unwrap_or(choice);
    let mode_path = from.path("mode");
    let word = from.named("mode")?;
    if word != "auto" && word != "required" {
        let message = format!("'{mode_path}' must be auto or required");
        return Err(RequestError::new("invalid_value", mode_path, message));
    }
    let path = from.path("tools");
    let mut names = Vec::new();
    for (index, value) in from.list("tools")?.into_iter().enumerate() {
        let mut fields = Fields::of_value(value, format!("{path}[{index}]"))?;
        only_functions(&mut fields)?;
        let name = function_name(&mut fields)?;
        fields.end()?;
        check_choice(&ToolChoice::Named(name.clone()), tools, &format!("{path}[{index}]"))?;
        names.push(name);
    }
    if let Some(inner) = inner {
        inner.end()?;
    }
    tools.retain(|tool| names.contains(&tool.name));
    mode(&word, &mode_path)
}

/// Texts of a list.
pub(crate) fn texts(list: Vec<Value>, path: &str) -> Result<Vec<String>, RequestError> {
    let one = |(index, value): (usize, Value)| match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(format!("{path}[{index}]"), "a string", &other)),
    };
    list.into_iter().enumerate().map(one).collect()
}

/// Any integer of 64 bits, signed or not.
pub(crate) fn seed(fields: &mut Fields) -> Result<Option<u64>, RequestError> {
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
    stop_texts(list, "stop")
}

/// Stop texts, not too many and not too long.
pub(crate) fn stop_texts(list: Vec<Value>, path: &str) -> Result<Vec<String>, RequestError> {
    if list.len() > STOP_TEXTS_MAX {
        let message = format!("'{path}' has {} items: at most {STOP_TEXTS_MAX} are taken", list.len());
        return Err(RequestError::new("invalid_value", path, message));
    }
    let out = texts(list, path)?;
    for (index, text) in out.iter().enumerate() {
        if text.is_empty() || text.len() > 1024 {
            let path = format!("{path}[{index}]");
            let message = format!("'{path}' has {} bytes: it must have 1 to 1024", text.len());
            return Err(RequestError::new("invalid_value", path, message));
        }
    }
    Ok(out)
}
