//! More work than fits: queued until its deadline, then an honest refusal.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Notify;
use wire::chunk::FinishReason;

use super::house::{House, chat_body, eventually, streamed};
use super::provider::{Act, Offer, Provider, answer, end, token};

fn one_slot() -> Offer {
    Offer { slots: 1, ..Offer::default() }
}

async fn queued(house: &House) -> u32 {
    let status: wire::admin::FleetStatus = house.get("/api/status").await.json().await.unwrap();
    status.models[0].queued
}

/// A call that occupies the only slot until the notify.
async fn occupy(
    house: &House,
    provider: &mut Provider,
) -> (Arc<Notify>, tokio::task::JoinHandle<reqwest::Response>) {
    let gate = Arc::new(Notify::new());
    provider.next(vec![
        Act::Send(token(0, "first")),
        Act::Hold(Arc::clone(&gate)),
        Act::Send(end(1, FinishReason::Stop)),
    ]);
    let request = house.post("/v1/chat/completions", &chat_body(json!({"stream": true})));
    let call = tokio::spawn(async move { request.send().await.unwrap() });
    provider.attempt().await;
    (gate, call)
}

#[tokio::test]
async fn excess_work_waits_and_then_all_of_it_succeeds() {
    let house = House::open().await;
    let mut provider = Provider::join_as(&house, one_slot()).await;
    let (gate, first) = occupy(&house, &mut provider).await;
    let waiting: Vec<_> = (0..8)
        .map(|_| tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send()))
        .collect();
    eventually("eight wait", async || queued(&house).await == 8).await;
    gate.notify_one();
    assert!(streamed(&first.await.unwrap().text().await.unwrap()).done);
    for call in waiting {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    let report: Value = house.get("/api/segments").await.json().await.unwrap();
    assert_eq!(report["completed"], 9);
    for segment in
        ["parse", "reserve", "queue", "route", "encrypt", "dispatch", "first_token", "stream", "settle"]
    {
        assert_eq!(report["segments"][segment]["count"], 9, "{segment}");
    }
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_a_429_with_retry_after() {
    let house = House::open().await;
    let mut provider = Provider::join_as(&house, one_slot()).await;
    let (gate, first) = occupy(&house, &mut provider).await;
    let response = house
        .post("/v1/chat/completions", &chat_body(json!({})))
        .header("x-phalanx-deadline-ms", "150")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 429);
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(after >= 1);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error");
    assert_eq!(error["error"]["uptime_neutral"], true);
    let status: wire::admin::FleetStatus = house.get("/api/status").await.json().await.unwrap();
    assert_eq!(status.models[0].refused, 1, "counted as demand");
    gate.notify_one();
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let house = House::with(|config| config.pool.queue_max = 1).await;
    let mut provider = Provider::join_as(&house, one_slot()).await;
    let (gate, first) = occupy(&house, &mut provider).await;
    let waiting = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send());
    eventually("one waits", async || queued(&house).await == 1).await;
    let response = house.chat(json!({})).await;
    assert_eq!(response.status(), 429);
    assert!(response.headers().contains_key("retry-after"));
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "queue_full");
    gate.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_waiting_caller_that_leaves_is_out_of_the_queue_at_once() {
    let house = House::open().await;
    let mut provider = Provider::join_as(&house, one_slot()).await;
    let (gate, first) = occupy(&house, &mut provider).await;
    let waiting = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send());
    eventually("one waits", async || queued(&house).await == 1).await;
    waiting.abort();
    eventually("none waits", async || queued(&house).await == 0).await;
    gate.notify_one();
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_streaming_caller_that_waits_long_hears_comments() {
    let house = House::with(|config| config.requests.keepalive_us = base::Micros::from_millis(40)).await;
    let mut provider = Provider::join_as(&house, one_slot()).await;
    let (gate, first) = occupy(&house, &mut provider).await;
    provider.next(answer(&["at ", "last"]));
    let mut response = house.chat(json!({"stream": true})).await;
    assert_eq!(response.status(), 200, "the header comes before the first token");
    let comment = response.chunk().await.unwrap().unwrap();
    assert!(comment.starts_with(b": waiting"));
    gate.notify_one();
    let mut rest = String::new();
    while let Some(piece) = response.chunk().await.unwrap() {
        rest.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let got = streamed(&rest);
    assert_eq!((got.text.as_str(), got.done), ("at last", true));
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test]
async fn requests_wait_for_a_lost_machine_and_then_have_no_path() {
    let house = House::with(|config| config.pool.grace_us = base::Micros::from_millis(200)).await;
    let provider = Provider::join(&house).await;
    provider.next(vec![Act::Die]);
    let response = house.chat(json!({})).await;
    assert_eq!(response.status(), 503, "its only machine went away, and did not come back");
    let gone = async || house.get("/v1/models").await.json::<Value>().await.unwrap()["data"] == json!([]);
    eventually("nothing is served", gone).await;
    let response = house.chat(json!({})).await;
    assert_eq!(response.status(), 503);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "no_serving_path");
}

#[tokio::test]
async fn what_can_never_fit_is_refused_with_both_numbers() {
    let house = House::open().await;
    let _provider = Provider::join_as(&house, Offer { kv_tokens: 64, ..Offer::default() }).await;
    let words = "word ".repeat(2000);
    let long = json!({"messages": [{"role": "user", "content": words}]});
    let response = house.chat(long).await;
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "context_length_exceeded");
    assert_eq!(error["error"]["param"], "messages");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("512") && message.contains("tokens"), "{message}");
    let tokens: Vec<u32> = vec![7; 100];
    let body = json!({"model": "small", "prompt": tokens});
    let response = house.post("/v1/completions", &body).send().await.unwrap();
    assert_eq!(response.status(), 413);
    let error: Value = response.json().await.unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("100") && message.contains("64"), "{message}");
}
