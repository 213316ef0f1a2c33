//! What the server is asked: a job as the body of `/v1/completions`.

use std::fmt;

use model::kit::OpenKit;
use serde_json::{Map, Value, json};
use wire::job::{Constraint, Grammar, Job};

use super::UpstreamConfig;

/// How a server takes prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prompting {
    /// Exactly as the coordinator made them.
    Tokens,
    /// As text, which the server tokenizes anew.
    Text,
}

impl fmt::Display for Prompting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tokens => "tokens",
            Self::Text => "text",
        })
    }
}

/// The URL of a path of the API.
pub(super) fn url(config: &UpstreamConfig, path: &str) -> String {
    let base = config.url.trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    format!("{base}/v1/{path}")
}

pub(super) fn authorised(
    request: reqwest::RequestBuilder,
    config: &UpstreamConfig,
) -> reqwest::RequestBuilder {
    match &config.key {
        Some(key) => request.bearer_auth(&key.0),
        None => request,
    }
}

/// Finds out how the server takes prompts, by asking for one token.
pub(super) async fn prompting(
    client: &reqwest::Client,
    config: &UpstreamConfig,
    kit: &OpenKit,
) -> Result<Prompting, String> {
    let tokens = kit.encode_text("1").map_err(|error| error.to_string())?;
    let mut said = String::new();
    for (prompting, prompt) in [(Prompting::Tokens, json!(tokens)), (Prompting::Text, json!("1"))] {
        let body = json!({"model": config.model, "prompt": prompt, "max_tokens": 1, "temperature": 0});
        let request = authorised(client.post(url(config, "completions")), config).json(&body);
        let answer = request.send().await.map_err(|error| crate::load::chain(&error))?;
        if answer.status().is_success() {
            return Ok(prompting);
        }
        said = format!("{} {}", answer.status(), clipped(&answer.text().await.unwrap_or_default()));
    }
    Err(format!("{} takes no prompt for {:?}: {said}", url(config, "completions"), config.model))
}

/// The start of what a server says about an error, fit for a log.
pub(super) fn clipped(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(200).collect()
}

/// A constraint in the terms that such servers share.
pub(super) fn form(constraint: &Constraint) -> Option<Value> {
    if constraint.after.is_some() {
        return None;
    }
    match &constraint.grammar {
        Grammar::JsonObject => Some(json!({"type": "json_object"})),
        Grammar::JsonSchema { schema } => {
            let schema: Value = serde_json::from_str(schema).ok()?;
            let named = json!({"name": "answer", "schema": schema, "strict": true});
            Some(json!({"type": "json_schema", "json_schema": named}))
        }
        Grammar::Regex { .. } | Grammar::Lark { .. } | Grammar::Choice { .. } => None,
    }
}

/// The body for a job: it asks for what comes after the tokens that are there.
pub(super) fn body(config: &UpstreamConfig, kit: &OpenKit, prompting: Prompting, job: &Job) -> Value {
    let ask = &job.ask;
    let s = &ask.sampling;
    let tokens: Vec<u32> = job.prompt.iter().chain(&job.generated).copied().collect();
    let prompt = match prompting {
        Prompting::Tokens => json!(tokens),
        Prompting::Text => {
            // The server puts its begin of text before a text by itself.
            let begin = kit.encode_text("").unwrap_or_default();
            let rest = tokens.strip_prefix(begin.as_slice()).unwrap_or(&tokens);
            json!(kit.tokenizer.decode(rest, false))
        }
    };
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(config.model));
    put("prompt", prompt);
    put("stream", json!(true));
    put("stream_options", json!({"include_usage": true}));
    put("max_tokens", json!(ask.max_tokens.saturating_sub(job.generated.len() as u32)));
    put("temperature", json!(s.temperature));
    put("top_p", json!(s.top_p));
    put("seed", json!(s.seed & 0x7fff_ffff));
    if s.top_k > 0 {
        put("top_k", json!(s.top_k));
    }
    if s.min_p > 0.0 {
        put("min_p", json!(s.min_p));
    }
    if s.repetition_penalty != 1.0 {
        put("repetition_penalty", json!(s.repetition_penalty));
        // llama.cpp's name for it.
        put("repeat_penalty", json!(s.repetition_penalty));
    }
    if s.presence_penalty != 0.0 {
        put("presence_penalty", json!(s.presence_penalty));
    }
    if s.frequency_penalty != 0.0 {
        put("frequency_penalty", json!(s.frequency_penalty));
    }
    if !s.logit_bias.is_empty() {
        let bias: Map<String, Value> =
            s.logit_bias.iter().map(|(token, bias)| (token.to_string(), json!(bias))).collect();
        put("logit_bias", Value::Object(bias));
    }
    if !ask.stop.is_empty() {
        put("stop", json!(ask.stop));
    }
    if ask.ignore_stop_tokens {
        put("ignore_eos", json!(true));
    }
    if ask.special_tokens {
        put("skip_special_tokens", json!(false));
    }
    if let Some(form) = ask.constraint.as_ref().and_then(form) {
        put("response_format", form);
    }
    Value::Object(body)
}
