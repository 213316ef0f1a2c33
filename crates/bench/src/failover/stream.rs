//! One client: streams an answer, and comes back to it when its connection breaks.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};

/// A client that gets nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// What became of a stream.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) text: String,
    pub(super) completed: bool,
    /// The longest time between two pieces.
    pub(super) gap_max: Duration,
    pub(super) reconnects: usize,
    pub(super) retries: usize,
    pub(super) problem: Option<String>,
}

/// A stream on its way.
pub(super) struct Stream<'a> {
    client: &'a reqwest::Client,
    url: String,
    key: &'a str,
    body: Value,
    resumes: bool,
    seen: Seen,
    /// The answer's id, and the last event's, once there are some.
    id: Option<String>,
    last_event: Option<String>,
    last_piece: Option<Instant>,
}

/// How one connection ended.
enum Ended {
    /// With the whole answer.
    Done,
    /// Before it: the client may come back.
    Broken(String),
    /// With an error that trying again does not cure.
    Failed(String),
}

impl<'a> Stream<'a> {
    pub(super) fn new(
        client: &'a reqwest::Client,
        url: &str,
        key: &'a str,
        question: &str,
        tokens: u32,
        resumes: bool,
    ) -> Self {
        let body = json!({
            "model": "phalanx-bundled",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": true,
            "stream": true,
        });
        let url = format!("{url}/v1/chat/completions");
        let seen = Seen::default();
        Self { client, url, key, body, resumes, seen, id: None, last_event: None, last_piece: None }
    }

    pub(super) async fn run(mut self) -> Seen {
        let begun = Instant::now();
        loop {
            match self.connect().await {
                Ended::Done => {
                    self.seen.completed = true;
                    return self.seen;
                }
                Ended::Broken(_) if self.may_try_again() && begun.elapsed() < PATIENCE => {
                    if self.id.is_some() {
                        self.seen.reconnects += 1;
                    } else {
                        self.seen.retries += 1;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Ended::Broken(why) | Ended::Failed(why) => {
                    self.seen.problem = Some(why);
                    return self.seen;
                }
            }
        }
    }

    /// Before the first piece every client may; after it only one that can come back.
    fn may_try_again(&self) -> bool {
        self.id.is_none() || self.resumes
    }

    async fn connect(&mut self) -> Ended {
        let mut request = self.client.post(&self.url).bearer_auth(self.key).json(&self.body);
        if self.resumes {
            request = request.header("x-phalanx-resume", self.id.as_deref().unwrap_or("on"));
            if let Some(last) = &self.last_event {
                request = request.header("last-event-id", last);
            }
        }
        let response = match tokio::time::timeout(PATIENCE, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Ended::Broken(format!("{error:?}")),
            Err(_) => return Ended::Failed("no answer".to_owned()),
        };
        let status = response.status();
        if status != StatusCode::OK {
            let text = response.text().await.unwrap_or_default();
            let again = matches!(status.as_u16(), 429 | 502 | 503);
            let why = format!("{status}: {text}");
            return if again { Ended::Broken(why) } else { Ended::Failed(why) };
        }
        self.read(response).await
    }

    async fn read(&mut self, response: reqwest::Response) -> Ended {
        let mut bytes = response.bytes_stream();
        let mut held: Vec<u8> = Vec::new();
        loop {
            let chunk = match tokio::time::timeout(PATIENCE, bytes.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Ended::Broken(format!("{error:?}")),
                Ok(None) => return Ended::Broken("the connection ended before the answer".to_owned()),
                Err(_) => return Ended::Failed("silent for too long".to_owned()),
            };
            held.extend_from_slice(&chunk);
            while let Some(at) = held.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = held.drain(..at + 2).collect();
                if let Some(ended) = self.event(&String::from_utf8_lossy(&block)) {
                    return ended;
                }
            }
        }
    }

    /// Takes in one event; its end where it was the last.
    fn event(&mut self, block: &str) -> Option<Ended> {
        let mut mark = None;
        let mut data = None;
        for line in block.lines() {
            if let Some(rest) = line.strip_prefix("id: ") {
                mark = Some(rest.to_owned());
            } else if let Some(rest) = line.strip_prefix("data: ") {
                data = Some(rest);
            }
        }
        let data = data?;
        if data == "[DONE]" {
            return Some(Ended::Done);
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            return Some(Ended::Failed(format!("no JSON: {data}")));
        };
        if let Some(error) = event.get("error") {
            return Some(Ended::Broken(error.to_string()));
        }
        if self.id.is_none() {
            self.id = event["id"].as_str().map(str::to_owned);
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str()
            && !text.is_empty()
        {
            let now = Instant::now();
            if let Some(last) = self.last_piece.replace(now) {
                self.seen.gap_max = self.seen.gap_max.max(now - last);
            }
            self.seen.text.push_str(text);
            if mark.is_some() {
                self.last_event = mark;
            }
        }
        None
    }
}
