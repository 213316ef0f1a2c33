//! OpenAI's messages in the shape that chat templates expect.

use serde_json::Value;

/// One message for a template.
pub(super) fn for_template(message: &Value) -> Value {
    let mut message = message.clone();
    let Some(fields) = message.as_object_mut() else { return message };
    if let Some(text) = fields.get("content").and_then(joined_text) {
        fields.insert("content".to_owned(), Value::String(text));
    }
    let calls = fields.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(object) = arguments.as_str().and_then(parsed_object)
        {
            *arguments = object;
        }
    }
    message
}

/// Content in parts, if all are texts: as one text, a line each. Parts of other kinds stay for the template to judge.
fn joined_text(content: &Value) -> Option<String> {
    let parts = content.as_array()?;
    let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
        Some("text") | None => part.get("text")?.as_str().map(str::to_owned),
        Some(_) => None,
    };
    Some(parts.iter().map(text).collect::<Option<Vec<_>>>()?.join("\n"))
}

/// Arguments are an object written as a text; where they are not, the text stays.
fn parsed_object(text: &str) -> Option<Value> {
    serde_json::from_str::<Value>(text).ok().filter(Value::is_object)
}
