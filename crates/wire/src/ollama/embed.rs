//! Ollama's `/api/embed`, and the older `/api/embeddings`.

use serde::Serialize;
use serde_json::Value;

use crate::fields::{Fields, RequestError, wrong_type};
use crate::openai::embedding::{EmbeddingRequest, INPUTS_MAX, dimensions, text_of};
use crate::request::Prompt;

/// What neither changes a vector nor is looked at: models stay where they are.
const IGNORED: [&str; 1] = ["keep_alive"];

/// Reads the body of `/api/embed`. A request without texts asks whether the model is there.
///
/// # Errors
/// Not JSON, a field of another type, too many texts, a parameter that is unknown.
pub fn parse_embed(body: &[u8]) -> Result<EmbeddingRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let inputs = match fields.take("input") {
        None => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::String(text)) => vec![Prompt::Text(text)],
        Some(Value::Array(list)) if list.len() > INPUTS_MAX => {
            let message =
                format!("'input' has {} items: at most {INPUTS_MAX} are taken in one call", list.len());
            return Err(RequestError::new("invalid_value", "input", message));
        }
        Some(Value::Array(list)) => list.into_iter().enumerate().map(one).collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type("input".to_owned(), "a string or an array of strings", &other)),
    };
    let dimensions = dimensions(&mut fields)?;
    let truncate = fields.flag("truncate")?.unwrap_or(true);
    rest(fields, EmbeddingRequest { dimensions, truncate, ..empty(inputs) })
}

/// Reads the body of `/api/embeddings`.
///
/// # Errors
/// As [`parse_embed`].
pub fn parse_embeddings(body: &[u8]) -> Result<EmbeddingRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let prompt = fields.text("prompt")?.filter(|text| !text.is_empty());
    let inputs = prompt.map(Prompt::Text).into_iter().collect();
    rest(fields, EmbeddingRequest { truncate: true, ..empty(inputs) })
}

fn empty(inputs: Vec<Prompt>) -> EmbeddingRequest {
    let (model, ignored) = (String::new(), Vec::new());
    EmbeddingRequest { model, inputs, base64: false, dimensions: None, truncate: false, ignored }
}

fn rest(mut fields: Fields, mut request: EmbeddingRequest) -> Result<EmbeddingRequest, RequestError> {
    request.model = fields.named("model")?;
    fields.ignore(&IGNORED, &mut request.ignored);
    // They are about drawing tokens, and none are drawn.
    if fields.object("options")?.is_some() {
        request.ignored.push("options".to_owned());
    }
    fields.end()?;
    Ok(request)
}

fn one((index, item): (usize, Value)) -> Result<Prompt, RequestError> {
    let path = format!("input[{index}]");
    match item {
        Value::String(text) => text_of(text, &path),
        other => Err(wrong_type(path, "a string", &other)),
    }
}

/// The answer of `/api/embed`. Not `Debug`: a vector tells much of its text.
#[derive(Serialize)]
pub struct Embeddings {
    /// The model.
    pub model: String,
    /// One for each text, in order.
    pub embeddings: Vec<Vec<f32>>,
    /// Nanoseconds, all in all.
    pub total_duration: u64,
    /// Nanoseconds until the model was there: it is.
    pub load_duration: u64,
    /// Tokens of all texts.
    pub prompt_eval_count: u64,
}

/// The answer of `/api/embeddings`. Not `Debug`.
#[derive(Serialize)]
pub struct OneEmbedding {
    /// Empty where no text was given.
    pub embedding: Vec<f32>,
}
