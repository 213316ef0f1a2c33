//! Requests: `POST /v1/embeddings`.

use serde_json::Value;

use super::shared::model;
use crate::fields::{Fields, RequestError, wrong_type};

/// Reads a body; gives the model asked for, since no other part of it is served yet.
///
/// # Errors
/// Not JSON, a field of another type, a parameter that is unknown.
pub fn parse_embedding(body: &[u8]) -> Result<String, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let model = model(&mut fields)?;
    match fields.require("input")? {
        Value::String(_) | Value::Array(_) => {}
        other => return Err(wrong_type("input".to_owned(), "a string or an array", &other)),
    }
    fields.one_of("encoding_format", &["float", "base64"])?;
    fields.integer("dimensions", 1..=65_536)?;
    fields.text("user")?;
    fields.end()?;
    Ok(model)
}
