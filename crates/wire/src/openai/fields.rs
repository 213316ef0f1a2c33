//! Taking the fields of a JSON object one by one, each checked for type and range under its own path.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Why a request's body is refused. Becomes a 400 with `param`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// What is wrong and what would be right; never a part of a prompt.
    pub message: String,
    /// The path of the parameter, `messages[0].role`; nothing where the body as a whole is wrong.
    pub param: Option<String>,
    /// For programs: `invalid_type`, `invalid_value`, `missing_required_parameter`, `unknown_parameter`,
    /// `unsupported_parameter`, `invalid_json`.
    pub code: &'static str,
}

impl RequestError {
    pub(super) fn new(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()), code }
    }

    pub(super) fn unsupported(param: impl Into<String>, remedy: &str) -> Self {
        let param = param.into();
        let message = format!("'{param}' is not supported by this server: {remedy}");
        Self::new("unsupported_parameter", param, message)
    }
}

/// The fields of an object that are not yet taken. A field that is `null` counts as absent, as OpenAI has it.
pub(super) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// The fields of the body as a whole.
    pub(super) fn of_body(body: &[u8]) -> Result<Self, RequestError> {
        let whole = |message: String| RequestError { message, param: None, code: "invalid_json" };
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map, path: String::new() }),
            Ok(other) => Err(whole(format!("the body is {}, expected a JSON object", kind(&other)))),
            Err(_) if body.is_empty() => Err(whole("the body is empty, expected a JSON object".to_owned())),
            // The parser names what it missed and where, never what it found.
            Err(e) => Err(whole(format!("the body is not valid JSON: {e}"))),
        }
    }

    /// The fields of an object that stands at `path`.
    pub(super) fn of_value(value: Value, path: String) -> Result<Self, RequestError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Where field `name` stands, counted from the body.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field, whatever it is.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    pub(super) fn require(&mut self, name: &str) -> Result<Value, RequestError> {
        self.take(name).ok_or_else(|| {
            let path = self.path(name);
            let message = format!("missing required parameter: '{path}'");
            RequestError::new("missing_required_parameter", path, message)
        })
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(self.path(name), "a string", &other)),
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(self.path(name), "a boolean", &other)),
        }
    }

    pub(super) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(self.path(name), "a number", &value))?;
        within(self.path(name), number, &range)?;
        Ok(Some(number as f32))
    }

    pub(super) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = integer_of(&value).ok_or_else(|| wrong_type(self.path(name), "an integer", &value))?;
        within(self.path(name), number, &range)?;
        Ok(Some(number))
    }

    /// Takes a field whose only supported value is `only`, and refuses any other with `remedy`.
    pub(super) fn only(&mut self, name: &str, only: &Value, remedy: &str) -> Result<(), RequestError> {
        match self.take(name) {
            Some(value) if value != *only => Err(RequestError::unsupported(self.path(name), remedy)),
            _ => Ok(()),
        }
    }

    /// Refuses a field that would change the answer, unless it is absent, `false`, or empty.
    pub(super) fn refuse(&mut self, name: &str, remedy: &str) -> Result<(), RequestError> {
        match self.take(name) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Array(items)) if items.is_empty() => Ok(()),
            Some(_) => Err(RequestError::unsupported(self.path(name), remedy)),
        }
    }

    /// Takes fields that do not change the answer, and says once which were there: of a long chat's messages many
    /// may have the same.
    pub(super) fn ignore(&mut self, names: &[&str], ignored: &mut Vec<String>) {
        for name in names {
            if self.take(name).is_none() {
                continue;
            }
            let place = without_numbers(&self.path(name));
            if !ignored.contains(&place) {
                ignored.push(place);
            }
        }
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), RequestError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let path: String = self.path(name).chars().take(200).collect();
                let message =
                    format!("unknown parameter: '{path}'; remove it, or see the API's documentation");
                Err(RequestError::new("unknown_parameter", path, message))
            }
        }
    }
}

/// `messages[].annotations` for `messages[7].annotations`.
fn without_numbers(path: &str) -> String {
    let mut inside = false;
    let keep = |c: &char| {
        let number = inside && c.is_ascii_digit();
        inside = *c == '[' || number;
        !number
    };
    path.chars().filter(keep).collect()
}

/// An integer, also where it is written `1.0`, as some clients do.
pub(super) fn integer_of(value: &Value) -> Option<i64> {
    value
        .as_i64()
        .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15).map(|f| f as i64))
}

pub(super) fn within<T: PartialOrd + Display>(
    path: String,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<(), RequestError> {
    if range.contains(&value) {
        return Ok(());
    }
    let message = format!("'{path}' is {value}: it must be between {} and {}", range.start(), range.end());
    Err(RequestError::new("invalid_value", path, message))
}

pub(super) fn wrong_type(path: String, expected: &str, found: &Value) -> RequestError {
    let message = format!("invalid type for '{path}': expected {expected}, got {}", kind(found));
    RequestError::new("invalid_type", path, message)
}

/// What a value is, never which: values may be prompts.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
