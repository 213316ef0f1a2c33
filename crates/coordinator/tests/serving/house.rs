//! A coordinator for one test: its own port, its own store, an end that is waited for.

use std::sync::Arc;
use std::time::Duration;

use base::Micros;
use coordinator::{Config, bootstrap, run};
use serde_json::{Value, json};
use store::{SqliteOptions, SqliteStore, Store};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine: a test that reaches it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct House {
    pub(crate) address: String,
    pub(crate) key: String,
    pub(crate) token: String,
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) http: reqwest::Client,
    shutdown: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), coordinator::RunError>>>,
    folder: tempfile::TempDir,
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.http.drain_us = Micros::from_secs(5);
        change(&mut config);
        Self::of(config, tempfile::tempdir().unwrap(), None).await
    }

    /// Ends the coordinator, and starts another over the same store.
    pub(crate) async fn again(mut self) -> Self {
        let _ = self.shutdown.take().unwrap().send(());
        tokio::time::timeout(PATIENCE, self.running.take().unwrap()).await.unwrap().unwrap().unwrap();
        self.store.close().await.unwrap();
        let Self { key, store, folder, .. } = self;
        drop(store);
        Self::of(Config::default(), folder, Some(key)).await
    }

    async fn of(config: Config, folder: tempfile::TempDir, key: Option<String>) -> Self {
        let options = SqliteOptions::new(folder.path().join("phalanx.db"));
        let store = Arc::new(SqliteStore::open(&options, 1_700_000_000_000_000).await.unwrap());
        let begun = bootstrap(store.as_ref()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (shutdown, ended) = oneshot::channel::<()>();
        let served: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
        let running = tokio::spawn(run(config, listener, served, async move {
            let _ = ended.await;
        }));
        Self {
            address,
            key: key.unwrap_or_else(|| begun.first_key.unwrap().secret),
            token: begun.join_token,
            store,
            http: reqwest::Client::new(),
            shutdown: Some(shutdown),
            running: Some(running),
            folder,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(self.url(path)).bearer_auth(&self.key).timeout(PATIENCE).json(body)
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(self.url(path)).bearer_auth(&self.key).timeout(PATIENCE).send().await.unwrap()
    }

    pub(crate) async fn chat(&self, more: Value) -> reqwest::Response {
        self.post("/v1/chat/completions", &chat_body(more)).send().await.unwrap()
    }

    /// The identity of the key that people call `name`.
    pub(crate) async fn store_key(&self, name: &str) -> String {
        let keys: Value = self.get("/api/keys").await.json().await.unwrap();
        let found = keys["keys"].as_array().unwrap().iter().find(|key| key["name"] == name);
        found.unwrap_or_else(|| panic!("there is no key {name:?}"))["id"].as_str().unwrap().to_owned()
    }

    /// The value of a metric's line, 0 where there is none.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    /// Waits until a metric's line reaches `at_least`.
    pub(crate) async fn metric_reaches(&self, line: &str, at_least: f64) {
        eventually(line, async || self.metric(line).await >= at_least).await;
    }

    /// Ends the coordinator; gives how it ended.
    pub(crate) async fn close(mut self) -> Result<(), coordinator::RunError> {
        let _ = self.shutdown.take().unwrap().send(());
        tokio::time::timeout(PATIENCE, self.running.take().unwrap()).await.unwrap().unwrap()
    }

    /// Tells the coordinator to end, without waiting.
    pub(crate) fn begin_to_close(&mut self) {
        let _ = self.shutdown.take().unwrap().send(());
    }
}

pub(crate) fn chat_body(more: Value) -> Value {
    let mut body = json!({
        "model": "small",
        "messages": [{"role": "user", "content": "tell me the secret word"}],
        "temperature": 0
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Polls until `holds`, within the patience of a test. Polling, since the other side has no way to tell.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "never came: {what}");
}

/// What a streamed answer said.
#[derive(Default)]
pub(crate) struct Streamed {
    pub(crate) text: String,
    pub(crate) events: Vec<Value>,
    pub(crate) comments: Vec<String>,
    pub(crate) done: bool,
    pub(crate) error: Option<Value>,
}

pub(crate) fn streamed(body: &str) -> Streamed {
    let mut out = Streamed::default();
    for block in body.split("\n\n").filter(|block| !block.is_empty()) {
        if let Some(comment) = block.strip_prefix(": ") {
            out.comments.push(comment.to_owned());
            continue;
        }
        let data = block.strip_prefix("data: ").unwrap_or_else(|| panic!("not an event: {block:?}"));
        if data == "[DONE]" {
            out.done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data).unwrap();
        if let Some(error) = event.get("error") {
            out.error = Some(error.clone());
            continue;
        }
        if let Some(choice) = event["choices"].get(0) {
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            out.text.push_str(text.unwrap_or(""));
        }
        out.events.push(event);
    }
    out
}
