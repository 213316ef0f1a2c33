//! Past calls and their results, in the shape that a family's template can take.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::hermes;
use super::{Calls, Dialect, Tools};

impl Dialect {
    /// `messages` (OpenAI's) for the template: arguments as objects, names at tools' results, reasoning under the name
    /// that the template reads; ids and one call a message where the family wants that. For a template that knows no
    /// tools, calls and results become texts, and the tools are described in front.
    pub fn messages(&self, messages: &[Value], tools: &Tools) -> Vec<Value> {
        let mut names: HashMap<String, String> = HashMap::new();
        let mut out: Vec<Value> = Vec::with_capacity(messages.len() + 1);
        for message in messages {
            let mut message = message.clone();
            if let Some(fields) = message.as_object_mut() {
                self.prepare(fields, &mut names);
            }
            out.push(message);
        }
        if matches!(self.calls, Calls::Llama | Calls::Harmony) {
            out = one_call_each(out);
        }
        if !self.takes_tools {
            out = out.into_iter().map(in_words).collect();
            if !tools.is_empty() {
                describe(tools, &mut out);
            }
        }
        out
    }

    /// Whether the template is given the tools; where not, [`Dialect::messages`] describes them in words.
    pub fn template_takes_tools(&self) -> bool {
        self.takes_tools
    }

    fn prepare(&self, fields: &mut Map<String, Value>, names: &mut HashMap<String, String>) {
        let reasoning = ["reasoning_content", "reasoning", "thinking"]
            .iter()
            .find_map(|&name| fields.get(name).filter(|text| text.is_string()).cloned());
        if let Some(reasoning) = reasoning {
            let name = if self.calls == Calls::Harmony { "thinking" } else { "reasoning_content" };
            fields.insert(name.to_owned(), reasoning);
        }
        if let Some(calls) = fields.get_mut("tool_calls").and_then(Value::as_array_mut) {
            for call in calls.iter_mut() {
                self.prepare_call(call, names);
            }
            let none = calls.is_empty();
            if none {
                fields.remove("tool_calls");
            } else if fields.get("content").is_none_or(Value::is_null) {
                fields.insert("content".to_owned(), Value::from(""));
            }
        }
        if fields.get("role").and_then(Value::as_str) == Some("tool") {
            let id = fields.get("tool_call_id").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(name) = names.get(&id)
                && !fields.contains_key("name")
            {
                fields.insert("name".to_owned(), Value::from(name.as_str()));
            }
            if !id.is_empty() {
                fields.insert("tool_call_id".to_owned(), Value::from(self.call_id(&id)));
            }
        }
    }

    fn prepare_call(&self, call: &mut Value, names: &mut HashMap<String, String>) {
        if let Some(arguments) = call.pointer_mut("/function/arguments") {
            let object = match &*arguments {
                Value::String(text) if text.trim().is_empty() => Some(json!({})),
                Value::String(text) => serde_json::from_str::<Value>(text).ok().filter(Value::is_object),
                _ => None,
            };
            if let Some(object) = object {
                *arguments = object;
            }
        }
        let name = call.pointer("/function/name").and_then(Value::as_str).map(str::to_owned);
        let id = call.get("id").and_then(Value::as_str).map(str::to_owned);
        if let (Some(id), Some(name)) = (id, name) {
            call["id"] = Value::from(self.call_id(&id));
            names.insert(id, name);
        }
    }

    /// Mistral's templates take ids of nine letters and digits only; the same id always becomes the same.
    fn call_id(&self, id: &str) -> String {
        let fits = id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if fits || !matches!(self.calls, Calls::Mistral { .. }) {
            return id.to_owned();
        }
        // FNV-1a, in base 36.
        let mut hash = id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let mut letters = String::new();
        for _ in 0..9 {
            letters.push(char::from_digit((hash % 36) as u32, 36).expect("a remainder by 36 is a digit"));
            hash /= 36;
        }
        letters
    }
}

/// Messages with several calls become several messages, each followed by its call's result: some templates refuse, or
/// pass over, more than one.
fn one_call_each(messages: Vec<Value>) -> Vec<Value> {
    let mut out = Vec::with_capacity(messages.len());
    let mut messages = messages.into_iter().peekable();
    while let Some(message) = messages.next() {
        let calls = message.get("tool_calls").and_then(Value::as_array).cloned().unwrap_or_default();
        if calls.len() < 2 {
            out.push(message);
            continue;
        }
        let mut results = Vec::new();
        while messages.peek().is_some_and(|next| next["role"] == "tool") {
            results.extend(messages.next());
        }
        for (at, call) in calls.into_iter().enumerate() {
            let mut single = message.clone();
            if at > 0 {
                for said in ["thinking", "reasoning_content"] {
                    single.as_object_mut().expect("it has calls").remove(said);
                }
                single["content"] = Value::from("");
            }
            let result = results.iter().position(|result| result["tool_call_id"] == call["id"]);
            single["tool_calls"] = Value::from(vec![call]);
            out.push(single);
            out.extend(result.map(|at| results.remove(at)));
        }
        out.extend(results);
    }
    out
}

/// Calls and results as texts.
fn in_words(mut message: Value) -> Value {
    let Some(fields) = message.as_object_mut() else { return message };
    if let Some(Value::Array(calls)) = fields.remove("tool_calls") {
        let mut text = fields.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
        for call in calls {
            let call = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("{}\n{call}\n{}", hermes::OPEN, hermes::CLOSE));
        }
        fields.insert("content".to_owned(), Value::from(text));
    }
    if fields.get("role").and_then(Value::as_str) == Some("tool") {
        let content = fields.get("content").map(|content| match content {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        let text = format!("<tool_response>\n{}\n</tool_response>", content.unwrap_or_default());
        return json!({"role": "user", "content": text});
    }
    message
}

/// Puts the tools' description into the system message.
fn describe(tools: &Tools, messages: &mut Vec<Value>) {
    let mut text = String::from(
        "You can call these functions. To call one, answer with a JSON object that has its name and arguments, \
         between the marks <tool_call> and </tool_call>:\n\
         <tool_call>\n{\"name\": \"function\", \"arguments\": {\"argument\": \"value\"}}\n</tool_call>\n\
         Results come back between <tool_response> and </tool_response>. The functions:\n",
    );
    for tool in tools.iter() {
        let tool = json!({
            "name": tool.name, "description": tool.description, "parameters": tool.parameters,
        });
        text.push_str(&tool.to_string());
        text.push('\n');
    }
    let system = messages.first_mut().filter(|first| first["role"] == "system");
    match system.and_then(|first| first.get_mut("content")) {
        Some(Value::String(content)) => *content = format!("{content}\n\n{text}"),
        _ => messages.insert(0, json!({"role": "system", "content": text})),
    }
}
