//! One request, timed to its last byte, and its answer checked: shape, text, token counts, how it ended.

use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};

/// What is asked.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) model: String,
    pub(crate) prompt: String,
    pub(crate) max_tokens: u32,
    pub(crate) stream: bool,
    /// Go on to `max_tokens` whatever the model says: then the count of tokens is known beforehand.
    pub(crate) exact: bool,
}

/// A checked answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// Seconds to the first piece of text; to the whole body where it is not streamed.
    pub(crate) first_token_s: f64,
    /// Seconds to the last byte.
    pub(crate) total_s: f64,
}

/// A request that did not get a right answer.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The HTTP status, or a word: `connection`, `stream`, `answer`.
    pub(crate) code: String,
    pub(crate) detail: String,
    /// When to come back: `retry-after-ms`, as the official clients read it, or else `retry-after`.
    pub(crate) retry_after_s: Option<f64>,
}

impl Failure {
    fn new(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code: code.into(), detail: detail.into(), retry_after_s: None }
    }
}

/// Asks and checks.
pub(crate) async fn ask(client: &reqwest::Client, question: &Question) -> Result<Answer, Failure> {
    let mut body = json!({
        "model": question.model,
        "messages": [{ "role": "user", "content": question.prompt }],
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "stream": question.stream,
    });
    if question.stream {
        body["stream_options"] = json!({ "include_usage": true });
    }
    if question.exact {
        body["ignore_eos"] = json!(true);
    }
    let begun = Instant::now();
    let response = client
        .post(format!("{}/v1/chat/completions", question.url))
        .bearer_auth(&question.key)
        .json(&body)
        .send()
        .await
        .map_err(|error| Failure::new("connection", format!("{:#}", anyhow::Error::from(error))))?;
    let status = response.status();
    if !status.is_success() {
        let number = |name| response.headers().get(name).and_then(|v| v.to_str().ok()?.parse::<f64>().ok());
        let retry_after_s = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"));
        let detail = response.text().await.unwrap_or_default();
        return Err(Failure { code: status.as_u16().to_string(), detail: clip(&detail), retry_after_s });
    }
    let answer = if question.stream {
        read_stream(response, begun).await?
    } else {
        let body: Value =
            response.json().await.map_err(|error| Failure::new("connection", error.to_string()))?;
        let total_s = begun.elapsed().as_secs_f64();
        whole(&body, total_s).map_err(wrong)?
    };
    check(question, &answer).map_err(wrong)?;
    Ok(answer.answer)
}

fn wrong(error: anyhow::Error) -> Failure {
    Failure::new("answer", clip(&format!("{error:#}")))
}

fn clip(text: &str) -> String {
    text.chars().take(300).collect()
}

/// An answer before it is checked.
struct Read {
    answer: Answer,
    finish: String,
    pieces: u64,
}

fn whole(body: &Value, total_s: f64) -> anyhow::Result<Read> {
    let choice = &body["choices"][0];
    ensure!(body["object"] == "chat.completion", "the object is {}", body["object"]);
    ensure!(choice["message"]["role"] == "assistant", "the role is {}", choice["message"]["role"]);
    let text = choice["message"]["content"].as_str().context("no content")?.to_owned();
    let answer = Answer {
        text,
        prompt_tokens: body["usage"]["prompt_tokens"].as_u64().context("no usage")?,
        completion_tokens: body["usage"]["completion_tokens"].as_u64().context("no usage")?,
        first_token_s: total_s,
        total_s,
    };
    ensure!(
        body["usage"]["total_tokens"].as_u64() == Some(answer.prompt_tokens + answer.completion_tokens),
        "the total of the usage is not its sum"
    );
    let finish = choice["finish_reason"].as_str().context("no finish reason")?.to_owned();
    Ok(Read { answer, finish, pieces: 0 })
}

/// What has been read of a stream.
#[derive(Default)]
struct Stream {
    id: Option<String>,
    text: String,
    pieces: u64,
    finish: Option<String>,
    usage: Option<(u64, u64)>,
    done: bool,
}

async fn read_stream(response: reqwest::Response, begun: Instant) -> Result<Read, Failure> {
    let mut stream = Stream::default();
    let mut first = None;
    let mut bytes = response.bytes_stream();
    let mut pending = Vec::new();
    while let Some(piece) = bytes.next().await {
        let piece =
            piece.map_err(|error| Failure::new("stream", format!("{:#}", anyhow::Error::from(error))))?;
        pending.extend_from_slice(&piece);
        while let Some(end) = pending.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = pending.drain(..end + 2).collect();
            let event = std::str::from_utf8(&event).map_err(|_| Failure::new("stream", "not UTF-8"))?;
            stream.take(event)?;
            if first.is_none() && stream.pieces > 0 {
                first = Some(begun.elapsed().as_secs_f64());
            }
        }
    }
    let total_s = begun.elapsed().as_secs_f64();
    if !pending.iter().all(u8::is_ascii_whitespace) {
        return Err(Failure::new("stream", "it ended inside an event"));
    }
    if !stream.done {
        return Err(Failure::new("stream", "it ended without [DONE]"));
    }
    let (prompt_tokens, completion_tokens) =
        stream.usage.ok_or_else(|| Failure::new("answer", "no event had the usage"))?;
    let finish = stream.finish.ok_or_else(|| Failure::new("answer", "no event had the finish reason"))?;
    let first_token_s = first.unwrap_or(total_s);
    let answer = Answer { text: stream.text, prompt_tokens, completion_tokens, first_token_s, total_s };
    Ok(Read { answer, finish, pieces: stream.pieces })
}

impl Stream {
    fn take(&mut self, event: &str) -> Result<(), Failure> {
        for line in event.lines() {
            // Comments keep a connection alive; other fields (event, id) are not used by this API.
            let Some(data) = line.strip_prefix("data:") else { continue };
            let data = data.trim_start();
            if self.done {
                return Err(Failure::new("stream", "there was data after [DONE]"));
            }
            if data == "[DONE]" {
                self.done = true;
                continue;
            }
            let value: Value =
                serde_json::from_str(data).map_err(|error| Failure::new("stream", error.to_string()))?;
            if !value["error"].is_null() {
                return Err(Failure::new("stream", clip(&value["error"].to_string())));
            }
            self.chunk(&value).map_err(wrong)?;
        }
        Ok(())
    }

    fn chunk(&mut self, value: &Value) -> anyhow::Result<()> {
        ensure!(value["object"] == "chat.completion.chunk", "an event's object is {}", value["object"]);
        let id = value["id"].as_str().context("an event without an id")?;
        ensure!(self.id.get_or_insert_with(|| id.to_owned()) == id, "the id changed within a stream");
        if let Some(usage) = value["usage"].as_object() {
            ensure!(self.usage.is_none(), "the usage came twice");
            let count =
                |name: &str| usage.get(name).and_then(Value::as_u64).context("a usage without counts");
            self.usage = Some((count("prompt_tokens")?, count("completion_tokens")?));
        }
        let Some(choice) = value["choices"].get(0) else { return Ok(()) };
        if let Some(piece) = choice["delta"]["content"].as_str().filter(|piece| !piece.is_empty()) {
            ensure!(self.finish.is_none(), "text came after the finish reason");
            self.text.push_str(piece);
            self.pieces += 1;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            ensure!(self.finish.is_none(), "the finish reason came twice");
            self.finish = Some(reason.to_owned());
        }
        Ok(())
    }
}

/// What every right answer has.
fn check(question: &Question, read: &Read) -> anyhow::Result<()> {
    let (answer, max) = (&read.answer, u64::from(question.max_tokens));
    ensure!(!answer.text.is_empty(), "the text is empty after {} tokens", answer.completion_tokens);
    ensure!(!answer.text.contains('\u{fffd}') || question.exact, "the text has a broken character");
    // Byte-level tokens hold at least a byte each, so a prompt has at most as many tokens as bytes, and the
    // template around it a few.
    let bytes = question.prompt.len() as u64;
    ensure!(
        answer.prompt_tokens > bytes / 16 && answer.prompt_tokens <= bytes + 64,
        "{} prompt tokens for {bytes} bytes",
        answer.prompt_tokens
    );
    ensure!(
        (1..=max).contains(&answer.completion_tokens),
        "{} tokens where {max} were allowed",
        answer.completion_tokens
    );
    ensure!(
        read.pieces <= answer.completion_tokens,
        "{} pieces of text from {} tokens",
        read.pieces,
        answer.completion_tokens
    );
    match read.finish.as_str() {
        "length" => {
            ensure!(answer.completion_tokens == max, "cut off after {} of {max}", answer.completion_tokens)
        }
        "stop" => ensure!(!question.exact, "it stopped where it was told to go on"),
        other => anyhow::bail!("the finish reason is {other}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(stream: bool, exact: bool) -> Question {
        Question {
            url: String::new(),
            key: String::new(),
            model: "m".to_owned(),
            prompt: "Hello there".to_owned(),
            max_tokens: 2,
            stream,
            exact,
        }
    }

    fn event(value: &Value) -> String {
        format!("data: {value}\n\n")
    }

    fn piece(text: &str, finish: Option<&str>) -> Value {
        json!({ "id": "x", "object": "chat.completion.chunk",
            "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": finish }] })
    }

    fn failure(events: &[String]) -> String {
        let mut stream = Stream::default();
        let found = events.iter().find_map(|e| stream.take(e).err());
        found.map_or_else(String::new, |failure| failure.detail)
    }

    #[test]
    fn a_stream_with_something_after_its_end_or_an_error_or_two_ends_is_no_answer() {
        let done = "data: [DONE]\n\n".to_owned();
        assert_eq!(failure(&[event(&piece("a", Some("stop"))), done.clone()]), "");
        assert!(failure(&[done.clone(), event(&piece("a", None))]).contains("after [DONE]"));
        assert!(failure(&[event(&json!({ "error": { "message": "gone" } }))]).contains("gone"));
        let (first, second) = (piece("a", Some("stop")), piece("", Some("stop")));
        assert!(failure(&[event(&first), event(&second)]).contains("twice"));
        assert!(failure(&[event(&first), event(&piece("b", None))]).contains("after the finish"));
        assert_eq!(failure(&[": keep-alive\n\n".to_owned()]), "");
    }

    #[test]
    fn counts_that_do_not_fit_each_other_are_no_answer() {
        let read = |tokens, finish: &str| Read {
            answer: Answer {
                text: "ab".to_owned(),
                prompt_tokens: 10,
                completion_tokens: tokens,
                first_token_s: 0.0,
                total_s: 0.0,
            },
            finish: finish.to_owned(),
            pieces: 1,
        };
        assert!(check(&question(true, true), &read(2, "length")).is_ok());
        assert!(check(&question(true, false), &read(1, "stop")).is_ok());
        assert!(check(&question(true, false), &read(1, "length")).is_err());
        assert!(check(&question(true, true), &read(1, "stop")).is_err());
        assert!(check(&question(true, false), &read(3, "length")).is_err());
        assert!(check(&question(true, false), &read(0, "stop")).is_err());
    }

    #[test]
    fn a_whole_answer_is_read_and_its_sum_checked() {
        let mut body = json!({
            "object": "chat.completion",
            "choices": [{ "message": { "role": "assistant", "content": "Hi" }, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6 },
        });
        assert!(whole(&body, 0.5).is_ok());
        body["usage"]["total_tokens"] = json!(7);
        assert!(whole(&body, 0.5).is_err());
    }
}
