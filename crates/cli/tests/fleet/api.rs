//! The fleets that the tests start, and a small client for them.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use testkit::{Program, Started};

/// The program under test.
pub(crate) const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");

/// A coordinator alone, on a free port.
pub(crate) fn coordinator(more: &[&str]) -> Started {
    let arguments = ["coordinator", "--listen", "127.0.0.1:0"].iter().chain(more).copied();
    Program::new(PHALANX, arguments).start()
}

/// A provider of the bundled model that joins at `url`.
pub(crate) fn provider(url: &str, token: &str, name: &str, more: &[&str]) -> Program {
    let mut arguments = vec!["provider", "--join", url, "--token", token, "--name", name, "--threads", "1"];
    arguments.extend_from_slice(more);
    Program::new(PHALANX, arguments)
}

/// A client of a started coordinator.
pub(crate) struct Api {
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) key: String,
}

impl Api {
    pub(crate) fn of(started: &Started) -> Self {
        Self {
            http: reqwest::Client::builder().no_proxy().timeout(testkit::program::PATIENCE).build().unwrap(),
            url: started.ready("url").to_owned(),
            key: started.ready("key").to_owned(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.key).send().await;
        answer.unwrap().json().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.key);
        request.json(body).send().await.unwrap()
    }

    /// The whole answer to one user's turn.
    pub(crate) async fn ask(&self, text: &str, max_tokens: u32) -> (u16, Value) {
        let answer = self.post("/v1/chat/completions", &turn(text, max_tokens)).await;
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Asks again and again until `done` says so of the fleet's status.
    pub(crate) async fn await_status(&self, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + testkit::program::PATIENCE;
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        loop {
            pace.tick().await;
            let status = self.get("/api/status").await;
            if done(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what} did not come:\n{status:#}");
        }
    }

    /// Waits until `count` instances take requests.
    pub(crate) async fn await_eligible(&self, count: u64) {
        self.await_status(&format!("{count} eligible instances"), |status| {
            let pools = status["models"].as_array().into_iter().flatten();
            pools.filter_map(|pool| pool["eligible"][0].as_u64()).sum::<u64>() == count
        })
        .await;
    }
}

/// A chat request with one user's turn, greedy.
pub(crate) fn turn(text: &str, max_tokens: u32) -> Value {
    json!({
        "model": "phalanx-bundled",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
    })
}

/// The events of a streamed answer, as they came, and whether it ended with `[DONE]`.
pub(crate) async fn events(answer: reqwest::Response) -> (Vec<Value>, bool) {
    let mut text = Vec::new();
    let mut bytes = answer.bytes_stream();
    while let Some(Ok(part)) = bytes.next().await {
        text.extend_from_slice(&part);
    }
    parsed(&text)
}

/// The events in the bytes of a streamed answer, and whether it ended with `[DONE]`.
pub(crate) fn parsed(bytes: &[u8]) -> (Vec<Value>, bool) {
    let text = std::str::from_utf8(bytes).unwrap();
    let data: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let done = data.last() == Some(&"[DONE]");
    (data.iter().filter(|d| **d != "[DONE]").map(|d| serde_json::from_str(d).unwrap()).collect(), done)
}

/// The text of streamed events.
pub(crate) fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}
