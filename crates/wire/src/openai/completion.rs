//! Requests: `POST /v1/completions`.

use serde_json::Value;

use super::shared::{TOP_LOGPROBS_MAX, model};
use crate::fields::{Fields, RequestError, integer_of, within, wrong_type};
use crate::request::{Generation, Prompt, Request, Source};

/// Reads a body.
///
/// # Errors
/// Not JSON, a field of another type or out of range, a parameter that is unknown or not supported.
pub fn parse_completion(body: &[u8]) -> Result<Request, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let model = model(&mut fields)?;
    let prompts = prompts(fields.require("prompt")?)?;
    let mut generation = Generation::default();
    generation.shared(&mut fields)?;
    generation.logprobs =
        fields.integer("logprobs", 0..=TOP_LOGPROBS_MAX)?.map(|alternatives| alternatives as u8);
    if fields
        .integer("best_of", 1..=i64::from(u32::MAX))?
        .is_some_and(|of| of != i64::from(generation.choices))
    {
        let remedy = "all answers that are drawn are given: leave it out, or say as many as 'n'";
        return Err(RequestError::unsupported("best_of", remedy));
    }
    generation.echo = fields.flag("echo")?.unwrap_or(false);
    if generation.echo && generation.logprobs.is_some() {
        let remedy = "there are no log-probabilities of prompts; leave out 'echo' or 'logprobs'";
        return Err(RequestError::unsupported("echo", remedy));
    }
    match fields.take("suffix") {
        None => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(_) => {
            return Err(RequestError::unsupported("suffix", "text is only continued, not filled in"));
        }
    }
    let answers = prompts.len() * generation.choices as usize;
    if answers > ANSWERS_MAX {
        let message = format!(
            "'prompt' and 'n' ask for {answers} answers: at most {ANSWERS_MAX} are given in one call"
        );
        return Err(RequestError::new("invalid_value", "n", message));
    }
    fields.end()?;
    Ok(Request { model, source: Source::Texts(prompts), generation })
}

/// The most answers in one call: each takes a place in the queue.
const ANSWERS_MAX: usize = 128;

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

pub(super) fn tokens(list: Vec<Value>, path: &str) -> Result<Vec<u32>, RequestError> {
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
