//! Traces, as a collector receives them: a request's segments and attempts in its caller's own trace, and what its machine
//! computed below them; and a collector that is not there, which nobody waits for.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};

use crate::api::{Api, coordinator, events, provider, turn};

/// A collector of this test's own.
#[derive(Default)]
struct Collector {
    /// Service and span.
    spans: Mutex<Vec<(String, Value)>>,
    more: Notify,
}

impl Collector {
    async fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Arc::new(Self::default());
        let of_task = Arc::clone(&collector);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&of_task).serve(stream));
            }
        });
        (collector, url)
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut read = Vec::new();
        while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
            let Some(head) = read.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
            let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
            assert!(text.starts_with("post /v1/traces "), "{text}");
            assert!(text.contains("content-type: application/json"), "{text}");
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let whole = head + 4 + length.parse::<usize>().unwrap();
            if read.len() < whole {
                continue;
            }
            self.take(&serde_json::from_slice(&read[head + 4..whole]).unwrap()).await;
            read.drain(..whole);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        }
    }

    async fn take(&self, body: &Value) {
        for resource in body["resourceSpans"].as_array().unwrap() {
            let service = resource["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap();
            for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
                self.spans.lock().await.push((service.to_owned(), span.clone()));
            }
        }
        self.more.notify_waiters();
    }

    /// The spans of a trace, once `done` says that they are all there.
    async fn trace(&self, trace: &str, done: impl Fn(&[(String, Value)]) -> bool) -> Vec<(String, Value)> {
        let collected = async {
            loop {
                let more = self.more.notified();
                let all = self.spans.lock().await.clone();
                let of: Vec<_> = all.into_iter().filter(|(_, span)| span["traceId"] == trace).collect();
                if done(&of) {
                    return of;
                }
                more.await;
            }
        };
        tokio::time::timeout(testkit::program::PATIENCE, collected).await.expect("the spans come")
    }
}

fn named<'a>(spans: &'a [(String, Value)], name: &str) -> Option<&'a (String, Value)> {
    spans.iter().find(|(_, span)| span["name"] == name)
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_from_its_caller_to_the_engine() {
    let (collector, url) = Collector::start().await;
    let front = coordinator(&["--otlp", &url]);
    let api = Api::of(&front);
    let _one = provider(&api.url, front.ready("join_token"), "one", &["--otlp", &url]).start();
    api.await_eligible(1).await;
    let mut body = turn("Hello! Who are you?", 16);
    body["stream"] = true.into();
    let ask = |traceparent: String, body: &Value| {
        let request = api.http.post(format!("{}/v1/chat/completions", api.url)).bearer_auth(&api.key);
        request.header("traceparent", traceparent).json(body).send()
    };
    let answer = ask(format!("00-{TRACE}-{PARENT}-01"), &body).await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(events(answer).await.1);
    let segments =
        ["parse", "reserve", "queue", "route", "encrypt", "dispatch", "first_token", "stream", "settle"];
    let wanted = ["request", "attempt", "compute", "engine.prefill", "engine.decode"];
    let all =
        |spans: &[(String, Value)]| segments.iter().chain(&wanted).all(|name| named(spans, name).is_some());
    let spans = collector.trace(TRACE, all).await;
    let (_, request) = named(&spans, "request").unwrap();
    assert_eq!(request["parentSpanId"], PARENT);
    let attributes = request["attributes"].to_string();
    assert!(attributes.contains(&id) && attributes.contains("phalanx-bundled"), "{attributes}");
    for name in segments {
        assert_eq!(named(&spans, name).unwrap().1["parentSpanId"], request["spanId"], "{name}");
    }
    let (_, attempt) = named(&spans, "attempt").unwrap();
    assert_eq!(attempt["parentSpanId"], request["spanId"]);
    let (service, compute) = named(&spans, "compute").unwrap();
    assert_eq!((service.as_str(), &compute["parentSpanId"]), ("phalanx-provider", &attempt["spanId"]));
    assert_eq!(named(&spans, "engine.decode").unwrap().1["parentSpanId"], compute["spanId"]);
    // Each is itself, ends after it began, and lies within the whole.
    let ids: BTreeSet<_> = spans.iter().map(|(_, span)| span["spanId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), spans.len());
    let time = |span: &Value, of: &str| span[of].as_str().unwrap().parse::<u64>().unwrap();
    let slack = 5_000_000;
    for (_, span) in &spans {
        let (start, end) = (time(span, "startTimeUnixNano"), time(span, "endTimeUnixNano"));
        assert!(start <= end && start + slack >= time(request, "startTimeUnixNano"), "{span} in {request}");
    }

    // A trace that nobody records is not recorded here; a call without one begins its own, which has its request's name.
    let unrecorded = TRACE.replace('4', "5");
    let unread = ask(format!("00-{unrecorded}-{PARENT}-00"), &body).await.unwrap();
    assert!(events(unread).await.1);
    let own = api.post("/v1/chat/completions", &body).await;
    let trace = own.headers()["x-request-id"].to_str().unwrap().trim_start_matches("req_").to_owned();
    assert!(events(own).await.1);
    let spans = collector.trace(&trace, all).await;
    assert!(named(&spans, "request").unwrap().1["parentSpanId"].is_null());
    assert!(!collector.spans.lock().await.iter().any(|(_, span)| span["traceId"] == unrecorded.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rank_of_a_group_tells_its_part_of_a_request() {
    let (collector, url) = Collector::start().await;
    let front = coordinator(&["--otlp", &url]);
    let api = Api::of(&front);
    let token = front.ready("join_token");
    let _one = provider(&api.url, token, "one", &["--otlp", &url]).start();
    let _two = provider(&api.url, token, "two", &["--otlp", &url]).start();
    api.await_eligible(2).await;
    let asked = serde_json::json!({"model": "phalanx-bundled", "machines": ["one", "two"], "mode": "tensor"});
    assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    crate::groups::await_phase(&api, "ready", 1).await;
    api.await_eligible(1).await;
    let request = api.http.post(format!("{}/v1/chat/completions", api.url)).bearer_auth(&api.key);
    let request = request.header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    let mut body = turn("Hello! Who are you?", 16);
    body["ignore_eos"] = true.into();
    assert_eq!(request.json(&body).send().await.unwrap().status(), 200);
    let both =
        |spans: &[(String, Value)]| ["attempt", "compute", "rank"].iter().all(|n| named(spans, n).is_some());
    let spans = collector.trace(TRACE, both).await;
    let (service, rank) = named(&spans, "rank").unwrap();
    let (_, attempt) = named(&spans, "attempt").unwrap();
    assert_eq!((service.as_str(), &rank["parentSpanId"]), ("phalanx-provider", &attempt["spanId"]));
    let attribute = |span: &Value, name: &str| {
        let all = span["attributes"].as_array().unwrap();
        all.iter().find(|one| one["key"] == name).unwrap()["value"].clone()
    };
    assert_eq!(attribute(rank, "phalanx.rank")["intValue"], "1");
    let compute = &named(&spans, "compute").unwrap().1;
    assert_ne!(attribute(rank, "phalanx.machine"), attribute(compute, "phalanx.machine"));
    let steps: u64 = attribute(rank, "phalanx.steps")["intValue"].as_str().unwrap().parse().unwrap();
    // One for each token, and those of the prompt.
    assert!((15..=40).contains(&steps), "{steps} steps of 16 tokens: {rank}");
    assert_eq!(spans.iter().filter(|(_, span)| span["name"] == "rank").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_costs_a_request_nothing() {
    // A port that was free a moment ago.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let front = coordinator(&["--otlp", &format!("http://{gone}")]);
    let api = Api::of(&front);
    let _one = provider(&api.url, front.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    for _ in 0..3 {
        assert_eq!(api.ask("Hello!", 4).await.0, 200);
    }
    let stopped = tokio::task::spawn_blocking(|| front.stop()).await.unwrap();
    assert!(stopped.status.success(), "{}", stopped.printed);
}
