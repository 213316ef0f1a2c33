//! `POST /v1/embeddings`: what is asked, and what is answered.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::Value;

use super::completion::tokens;
use super::shared::model;
use crate::fields::{Fields, RequestError, wrong_type};
use crate::request::Prompt;

/// Texts in one call: OpenAI's own bound.
pub const INPUTS_MAX: usize = 2048;

/// What a caller wants vectors of. Not `Debug`: it holds prompts.
#[derive(Clone, PartialEq)]
pub struct EmbeddingRequest {
    /// The model asked for.
    pub model: String,
    /// The texts: at least one, none of them empty.
    pub inputs: Vec<Prompt>,
    /// Vectors as base64 of little-endian f32s, instead of lists of numbers.
    pub base64: bool,
    /// So many of the vector's first numbers, made one of length 1 again.
    pub dimensions: Option<u32>,
    /// A text that is too long loses its end, instead of being refused.
    pub truncate: bool,
    /// Parameters that were given, do not change the answer and are not looked at.
    pub ignored: Vec<String>,
}

/// Reads a body.
///
/// # Errors
/// Not JSON, a field of another type, too many texts, an empty one, a parameter that is unknown.
pub fn parse_embedding(body: &[u8]) -> Result<EmbeddingRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let model = model(&mut fields)?;
    let inputs = inputs(fields.require("input")?)?;
    let base64 = fields.one_of("encoding_format", &["float", "base64"])? == Some("base64");
    let dimensions = dimensions(&mut fields)?;
    let mut ignored = Vec::new();
    if fields.text("user")?.is_some() {
        ignored.push("user".to_owned());
    }
    fields.end()?;
    Ok(EmbeddingRequest { model, inputs, base64, dimensions, truncate: false, ignored })
}

pub(crate) fn dimensions(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    Ok(fields.integer("dimensions", 1..=i64::from(u32::MAX))?.map(|dimensions| dimensions as u32))
}

fn refused(message: String) -> RequestError {
    RequestError::new("invalid_value", "input", message)
}

fn inputs(value: Value) -> Result<Vec<Prompt>, RequestError> {
    let list = match value {
        Value::String(text) => return Ok(vec![text_of(text, "input")?]),
        Value::Array(list) => list,
        other => {
            let expected = "a string, an array of strings, of tokens, or of arrays of tokens";
            return Err(wrong_type("input".to_owned(), expected, &other));
        }
    };
    match list.first() {
        None => Err(refused("'input' is an empty array: give a text or tokens".to_owned())),
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(tokens(list, "input")?)]),
        Some(_) if list.len() > INPUTS_MAX => {
            let found = list.len();
            Err(refused(format!("'input' has {found} items: at most {INPUTS_MAX} are taken in one call")))
        }
        Some(_) => list.into_iter().enumerate().map(one).collect(),
    }
}

fn one((index, item): (usize, Value)) -> Result<Prompt, RequestError> {
    let path = format!("input[{index}]");
    match item {
        Value::String(text) => text_of(text, &path),
        Value::Array(list) if !list.is_empty() => Ok(Prompt::Tokens(tokens(list, &path)?)),
        other => Err(wrong_type(path, "a string or an array of at least one token", &other)),
    }
}

pub(crate) fn text_of(text: String, path: &str) -> Result<Prompt, RequestError> {
    if text.is_empty() {
        let message = format!("'{path}' is an empty string: there must be at least one character");
        return Err(RequestError::new("invalid_value", path, message));
    }
    Ok(Prompt::Text(text))
}

/// The answer. Not `Debug`: a vector tells much of its text.
#[derive(Serialize)]
pub struct EmbeddingList {
    /// `list`.
    pub object: &'static str,
    /// One for each text, in order.
    pub data: Vec<Embedding>,
    /// Which model it was.
    pub model: String,
    /// Tokens of all texts.
    pub usage: EmbeddingUsage,
}

/// One text's vector.
#[derive(Serialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Which text's, from 0.
    pub index: u32,
    /// The vector.
    pub embedding: Vector,
}

/// A vector, as it was asked for.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Vector {
    /// A list of numbers.
    Numbers(Vec<f32>),
    /// Little-endian f32s.
    Base64(String),
}

impl Vector {
    /// As base64, or as numbers.
    pub fn new(numbers: Vec<f32>, base64: bool) -> Self {
        if !base64 {
            return Self::Numbers(numbers);
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self::Base64(BASE64_STANDARD.encode(bytes))
    }
}

/// What it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EmbeddingUsage {
    /// Tokens of all texts.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &str) -> RequestError {
        parse_embedding(body.as_bytes()).err().expect("it is refused")
    }

    #[test]
    fn inputs_come_in_four_shapes() {
        let inputs = |input: &str| {
            let body = format!(r#"{{"model": "m", "input": {input}}}"#);
            parse_embedding(body.as_bytes()).unwrap_or_else(|error| panic!("{error}")).inputs
        };
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert!(inputs(r#""a""#) == [text("a")]);
        assert!(inputs(r#"["a", "b"]"#) == [text("a"), text("b")]);
        assert!(inputs("[1, 2]") == [Prompt::Tokens(vec![1, 2])]);
        assert!(inputs("[[1, 2], [3]]") == [Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])]);
        let most = serde_json::to_string(&vec!["a"; INPUTS_MAX]).unwrap();
        assert_eq!(inputs(&most).len(), INPUTS_MAX);
    }

    #[test]
    fn refusals_name_the_parameter_and_the_limit() {
        let cases = [
            (r#"{"model": "m"}"#, "input", ""),
            (r#"{"model": "m", "input": ""}"#, "input", "empty string"),
            (r#"{"model": "m", "input": ["a", ""]}"#, "input[1]", "empty string"),
            (r#"{"model": "m", "input": []}"#, "input", "empty array"),
            (r#"{"model": "m", "input": [[]]}"#, "input[0]", "at least one token"),
            (r#"{"model": "m", "input": [1, "a"]}"#, "input[1]", "token"),
            (r#"{"model": "m", "input": [[-1]]}"#, "input[0][0]", "between"),
            (r#"{"model": "m", "input": 7}"#, "input", "array"),
            (r#"{"model": "m", "input": "a", "dimensions": 0}"#, "dimensions", "between"),
            (r#"{"model": "m", "input": "a", "encoding_format": "int8"}"#, "encoding_format", "base64"),
        ];
        for (body, param, word) in cases {
            let error = error(body);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert!(error.message.contains(word), "{error}");
        }
        let many = serde_json::to_string(&vec!["a"; INPUTS_MAX + 1]).unwrap();
        let error = error(&format!(r#"{{"model": "m", "input": {many}}}"#));
        assert!(error.message.contains("2049") && error.message.contains("2048"), "{error}");
    }

    #[test]
    fn a_vector_is_written_as_numbers_or_as_their_bytes() {
        let json = |base64| serde_json::to_string(&Vector::new(vec![0.1, -2.0], base64)).unwrap();
        assert_eq!(json(false), "[0.1,-2.0]");
        assert_eq!(json(true), r#""zczMPQAAAMA=""#);
    }
}
