//! Traces to a collector: spans gathered from a bounded queue, and sent as OTLP over HTTP, in JSON. Off unless an address is
//! given. Nothing waits for it: what the collector does not take is gone, and said in the log.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wire::trace::{Span, export};

/// Spans that may wait: about 300 bytes each, and twelve a request.
const QUEUE_MAX: usize = 16_384;
/// Spans in one message.
const BATCH_MAX: usize = 512;
/// How long the first span of a message waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// How long a collector may take for a message.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);
/// How long the last spans may take when the program ends.
const FINISH_WITHIN: Duration = Duration::from_secs(3);
/// How often a collector that takes nothing is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct OtlpOption {
    /// Send traces of requests to this OpenTelemetry collector (OTLP over HTTP, in JSON) [default: none is sent].
    #[arg(long = "otlp", value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub(crate) url: Option<String>,
}

/// What sends spans. Ends once nobody can tell any more.
pub(crate) struct Exporter(Option<JoinHandle<()>>);

impl OtlpOption {
    /// Begins to send what comes through the sender; no sender where no address is given.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn start(
        &self,
        service: &'static str,
    ) -> anyhow::Result<(Option<mpsc::Sender<Span>>, Exporter)> {
        let Some(url) = self.url.as_deref().map(str::trim).filter(|url| !url.is_empty()) else {
            return Ok((None, Exporter(None)));
        };
        let http = url.starts_with("http://") || url.starts_with("https://");
        ensure!(http, "--otlp {url:?} is no address: http://HOST:PORT or https://HOST");
        let url = url.trim_end_matches('/');
        let url = if url.ends_with("/v1/traces") { url.to_owned() } else { format!("{url}/v1/traces") };
        let client = reqwest::Client::builder().no_proxy().timeout(TAKEN_WITHIN).build()?;
        let (to, from) = mpsc::channel(QUEUE_MAX);
        Ok((Some(to), Exporter(Some(tokio::spawn(send(client, url, service, from))))))
    }
}

impl Exporter {
    /// Lets the last spans go, where a collector takes them.
    pub(crate) async fn finish(self) {
        if let Some(task) = self.0 {
            let _ = tokio::time::timeout(FINISH_WITHIN, task).await;
        }
    }
}

async fn send(client: reqwest::Client, url: String, service: &'static str, mut from: mpsc::Receiver<Span>) {
    let instance = std::process::id().to_string();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut complained: Option<Instant> = None;
    while from.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let gathered = async {
            while batch.len() < BATCH_MAX {
                match from.recv().await {
                    Some(span) => batch.push(span),
                    None => break,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, gathered).await;
        let body = export(service, &instance, env!("CARGO_PKG_VERSION"), &batch);
        let request = client.post(&url).header("content-type", "application/json").body(body);
        let taken = request.send().await.and_then(reqwest::Response::error_for_status);
        if let Err(error) = taken
            && complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY)
        {
            complained = Some(Instant::now());
            tracing::warn!(%error, spans = batch.len(), "the collector of traces does not take them: they are gone");
        }
        batch.clear();
    }
}
