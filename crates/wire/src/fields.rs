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
    pub(crate) fn new(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()), code }
    }

    pub(crate) fn unsupported(param: impl Into<String>, remedy: &str) -> Self {
        let param = param.into();
        let message = format!("'{param}' is not supported by this server: {remedy}");
        Self::new("unsupported_parameter", param, message)
    }
}

/// The fields of an object that are not yet taken. A field that is `null` counts as absent, as OpenAI has it.
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// The fields of the body as a whole.
    pub(crate) fn of_body(body: &[u8]) -> Result<Self, RequestError> {
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
    pub(crate) fn of_value(value: Value, path: String) -> Result<Self, RequestError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Where field `name` stands, counted from the body.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field, whatever it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Looks at a field without taking it.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    pub(crate) fn require(&mut self, name: &str) -> Result<Value, RequestError> {
        self.take(name).ok_or_else(|| {
            let path = self.path(name);
            let message = format!("missing required parameter: '{path}'");
            RequestError::new("missing_required_parameter", path, message)
        })
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(self.path(name), "a boolean", &other)),
        }
    }

    pub(crate) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(self.path(name), "a number", &value))?;
        within(self.path(name), number, &range)?;
        Ok(Some(number as f32))
    }

    pub(crate) fn integer(
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
    pub(crate) fn only(&mut self, name: &str, only: &Value, remedy: &str) -> Result<(), RequestError> {
        match self.take(name) {
            Some(value) if value != *only => Err(RequestError::unsupported(self.path(name), remedy)),
            _ => Ok(()),
        }
    }

    /// Refuses a field that would change the answer, unless it is absent, `false`, or empty.
    pub(crate) fn refuse(&mut self, name: &str, remedy: &str) -> Result<(), RequestError> {
        match self.take(name) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Array(items)) if items.is_empty() => Ok(()),
            Some(_) => Err(RequestError::unsupported(self.path(name), remedy)),
        }
    }

    /// Takes fields that do not change the answer, and says once which were there: of a long chat's messages many
    /// may have the same.
    pub(crate) fn ignore(&mut self, names: &[&str], ignored: &mut Vec<String>) {
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

    /// Takes a field that names one of a few values.
    pub(crate) fn one_of(
        &mut self,
        name: &str,
        allowed: &'static [&'static str],
    ) -> Result<Option<&'static str>, RequestError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match allowed.iter().find(|one| **one == text) {
            Some(one) => Ok(Some(one)),
            None => {
                let path = self.path(name);
                let message = format!("'{path}' must be one of {}", allowed.join(", "));
                Err(RequestError::new("invalid_value", path, message))
            }
        }
    }

    /// Takes an array; absent is empty.
    pub(crate) fn list(&mut self, name: &str) -> Result<Vec<Value>, RequestError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(wrong_type(self.path(name), "an array", &other)),
        }
    }

    /// Takes an object, as it is.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(self.path(name), "an object", &other)),
        }
    }

    /// Takes an object's fields.
    pub(crate) fn fields(&mut self, name: &str) -> Result<Option<Self>, RequestError> {
        let path = self.path(name);
        Ok(self.object(name)?.map(|map| Self { map, path }))
    }

    /// Takes a text that must be there and must not be empty.
    pub(crate) fn named(&mut self, name: &str) -> Result<String, RequestError> {
        match self.require(name)? {
            Value::String(text) if !text.is_empty() => Ok(text),
            Value::String(_) => {
                let path = self.path(name);
                let message = format!("'{path}' is empty: it must have at least one character");
                Err(RequestError::new("invalid_value", path, message))
            }
            other => Err(wrong_type(self.path(name), "a string", &other)),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), RequestError> {
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
pub(crate) fn integer_of(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9_007_199_254_740_992.0).map(|f| f as i64)
    })
}

pub(crate) fn within<T: PartialOrd + Display>(
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

pub(crate) fn wrong_type(path: String, expected: &str, found: &Value) -> RequestError {
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
