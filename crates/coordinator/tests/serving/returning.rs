//! Callers that come back to their answer, and machines that come back with their attempts.

use std::sync::Arc;

use futures_util::StreamExt;
use serde_json::json;
use store::{Outcome, Store};
use tokio::sync::Notify;
use wire::chunk::FinishReason;

use super::house::{House, chat_body, eventually, streamed};
use super::provider::{Act, Provider, end, token};

/// Reads a stream until it holds `text`; gives what was read.
async fn read_until(response: reqwest::Response, text: &str) -> String {
    let mut bytes = response.bytes_stream();
    let mut read = String::new();
    while !read.contains(text) {
        read.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    read
}

/// The id of the answer in a stream, and that of its last event.
fn marks(read: &str) -> (String, String) {
    let event = streamed_events(read).remove(0);
    let last = read.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap();
    (event["id"].as_str().unwrap().to_owned(), last.to_owned())
}

fn streamed_events(read: &str) -> Vec<serde_json::Value> {
    let data = read.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn without_marks(read: &str) -> String {
    read.lines().filter(|line| !line.starts_with("id: ")).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn a_caller_that_comes_back_gets_the_rest_and_nothing_twice() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    let gate = Arc::new(Notify::new());
    let script = [Act::Send(token(0, "one ")), Act::Send(token(1, "two "))];
    let rest =
        [Act::Hold(Arc::clone(&gate)), Act::Send(token(2, "three")), Act::Send(end(3, FinishReason::Stop))];
    provider.next(script.into_iter().chain(rest).collect());
    let body = chat_body(json!({"stream": true}));
    let asked = house.post("/v1/chat/completions", &body).header("x-phalanx-resume", "on");
    let read = read_until(asked.send().await.unwrap(), "two ").await;
    let (id, last) = marks(&read);
    gate.notify_one();
    let back = || {
        let request = house.post("/v1/chat/completions", &body).header("x-phalanx-resume", &id);
        request.header("last-event-id", &last)
    };
    let got = streamed(&without_marks(&back().send().await.unwrap().text().await.unwrap()));
    assert_eq!((got.text.as_str(), got.done), ("three", true));
    assert!(got.events.iter().all(|event| event["id"] == id.as_str()));
    // And once more, after its end.
    let got = streamed(&without_marks(&back().send().await.unwrap().text().await.unwrap()));
    assert_eq!((got.text.as_str(), got.done), ("three", true));
    eventually("the settlement", async || house.store.ledger(0, 10).await.unwrap().len() == 1).await;
    let ledger = house.store.ledger(0, 10).await.unwrap();
    assert_eq!((ledger[0].outcome, ledger[0].generated_tokens), (Outcome::Completed, 3));
}

#[tokio::test]
async fn an_answer_belongs_to_its_account_and_only_one_that_repeats_is_made_again() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(vec![Act::Send(token(0, "mine")), Act::Send(end(1, FinishReason::Stop))]);
    let body = chat_body(json!({"stream": true}));
    let asked = house.post("/v1/chat/completions", &body).header("x-phalanx-resume", "on");
    let (id, _) = marks(&asked.send().await.unwrap().text().await.unwrap());
    let other = house.post("/api/keys", &json!({"name": "other"})).send().await.unwrap();
    let secret = other.json::<serde_json::Value>().await.unwrap()["secret"].as_str().unwrap().to_owned();
    let stranger = house.http.post(house.url("/v1/chat/completions")).bearer_auth(secret).json(&body);
    let refused = stranger.header("x-phalanx-resume", &id).send().await.unwrap();
    assert_eq!(refused.status(), 404);
    // No coordinator here ever heard of this one: what repeats is made again, what was drawn by chance is not.
    let unknown = format!("chatcmpl-{:032x}", 7);
    let again = house.post("/v1/chat/completions", &body).header("x-phalanx-resume", &unknown);
    provider.next(vec![Act::Send(token(0, "made again")), Act::Send(end(1, FinishReason::Stop))]);
    let again = again.header("last-event-id", "5").send().await.unwrap();
    assert_eq!(streamed(&without_marks(&again.text().await.unwrap())).text, "again");
    let chance = chat_body(json!({"stream": true, "temperature": 1}));
    let chance = house
        .post("/v1/chat/completions", &chance)
        .header("x-phalanx-resume", "chatcmpl-00000000000000000000000000000008");
    assert_eq!(chance.send().await.unwrap().status(), 404);
    let nonsense = house.post("/v1/chat/completions", &body).header("x-phalanx-resume", "perhaps");
    assert_eq!(nonsense.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn a_retry_with_its_idempotency_key_gets_the_same_answer_and_is_charged_once() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    provider.next(vec![Act::Send(token(0, "once")), Act::Send(end(1, FinishReason::Stop))]);
    let body = chat_body(json!({}));
    let ask = async |body: &serde_json::Value| {
        let request = house.post("/v1/chat/completions", body).header("idempotency-key", "order-1");
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json::<serde_json::Value>().await.unwrap())
    };
    let (status, first) = ask(&body).await;
    let (_, second) = ask(&body).await;
    assert_eq!(status, 200);
    assert_eq!((&first["id"], &first["choices"]), (&second["id"], &second["choices"]));
    assert_eq!(first["choices"][0]["message"]["content"], "once");
    provider.attempt().await;
    eventually("the settlement", async || house.store.ledger(0, 10).await.unwrap().len() == 1).await;
    let (status, other) = ask(&chat_body(json!({"max_tokens": 3}))).await;
    assert_eq!((status, other["error"]["code"].as_str()), (409, Some("idempotency_key_reused")));
}

#[tokio::test]
async fn keys_are_held_to_their_terms_before_anything_queues() {
    let house = House::open().await;
    let _provider = Provider::join(&house).await;
    let key = async |terms: serde_json::Value| {
        let made = house.post("/api/keys", &json!({"name": "held", "terms": terms})).send().await.unwrap();
        assert_eq!(made.status(), 201);
        made.json::<serde_json::Value>().await.unwrap()["secret"].as_str().unwrap().to_owned()
    };
    let ask = async |secret: &str| {
        let request = house.http.post(house.url("/v1/chat/completions")).bearer_auth(secret);
        request.json(&chat_body(json!({"max_tokens": 4}))).send().await.unwrap()
    };
    let code = async |response: reqwest::Response| {
        let status = response.status().as_u16();
        let body: serde_json::Value = response.json().await.unwrap();
        (status, body["error"]["code"].as_str().unwrap_or("none").to_owned())
    };
    let expired = key(json!({"expires_unix": 1})).await;
    assert_eq!(code(ask(&expired).await).await, (401, "invalid_api_key".to_owned()));
    let other = key(json!({"models": ["another"]})).await;
    assert_eq!(code(ask(&other).await).await, (403, "model_not_allowed".to_owned()));
    let reader = key(json!({"scopes": ["read"]})).await;
    assert_eq!(code(ask(&reader).await).await, (403, "scope_missing".to_owned()));
    let usage = house.http.get(house.url("/api/usage")).bearer_auth(&reader).send().await.unwrap();
    assert_eq!(usage.status(), 200);
    let limited = key(json!({"requests_per_minute": 1})).await;
    let first = ask(&limited).await;
    assert_eq!(first.headers()["x-ratelimit-remaining-requests"], "0");
    assert_eq!(first.status(), 200);
    let second = ask(&limited).await;
    assert!(second.headers().contains_key("retry-after"));
    assert_eq!(code(second).await, (429, "rate_limit_exceeded".to_owned()));
    let put = house.http.put(house.url("/api/prices")).bearer_auth(&house.key);
    let price =
        json!({"model": "small", "price": {"prompt_micros": 1_000_000, "generated_micros": 1_000_000}});
    assert_eq!(put.json(&price).send().await.unwrap().status(), 200);
    let poor = key(json!({"spend_micros": 1})).await;
    assert_eq!(code(ask(&poor).await).await, (429, "insufficient_quota".to_owned()));
    let strange =
        house.post("/api/keys", &json!({"name": "x", "terms": {"colour": 1}})).send().await.unwrap();
    assert_eq!(strange.status(), 400);
    let audit: serde_json::Value = house.get("/api/audit").await.json().await.unwrap();
    let acts: Vec<&str> =
        audit["entries"].as_array().unwrap().iter().map(|e| e["act"].as_str().unwrap()).collect();
    assert!(acts.contains(&"key.create") && acts.contains(&"price.set"));
}

#[tokio::test]
async fn usage_is_told_by_key_and_model_and_a_rotated_key_keeps_its_terms() {
    let house = House::open().await;
    let _provider = Provider::join(&house).await;
    let price = json!({"model": "small", "price": {"prompt_micros": 0, "generated_micros": 2_000_000}});
    let put = house.http.put(house.url("/api/prices")).bearer_auth(&house.key);
    put.json(&price).send().await.unwrap();
    let made: serde_json::Value = house
        .post("/api/keys", &json!({"name": "app", "terms": {"concurrent": 3}}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let secret = made["secret"].as_str().unwrap();
    let ask = house.http.post(house.url("/v1/chat/completions")).bearer_auth(secret);
    let answer: serde_json::Value =
        ask.json(&chat_body(json!({}))).send().await.unwrap().json().await.unwrap();
    let generated = answer["usage"]["completion_tokens"].as_u64().unwrap();
    let mine = async || {
        let report: serde_json::Value = house.get("/api/usage").await.json().await.unwrap();
        let rows = report["usage"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["key"] == made["key"]["id"])
    };
    eventually("usage", async || mine().await.is_some()).await;
    let row = mine().await.unwrap();
    assert_eq!((row["model"].as_str(), row["requests"].as_u64()), (Some("small"), Some(1)));
    assert_eq!(row["charged_micros"].as_u64(), Some(2 * generated));
    let path = format!("/api/keys/{}/rotate", made["key"]["id"].as_str().unwrap());
    let rotated: serde_json::Value =
        house.post(&path, &json!({})).send().await.unwrap().json().await.unwrap();
    assert_eq!(rotated["key"]["terms"]["concurrent"], 3);
    assert_eq!(rotated["key"]["account"], made["key"]["account"]);
    let old = house.http.get(house.url("/v1/models")).bearer_auth(secret).send().await.unwrap();
    assert_eq!(old.status(), 401);
}

#[tokio::test]
async fn who_comes_back_to_a_message_goes_on_in_the_block_that_was_open() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    let script = ["one", " two", " three"].iter().zip(0..).map(|(text, at)| Act::Send(token(at, text)));
    provider.next(script.chain([Act::Send(end(3, FinishReason::Stop))]).collect());
    let said = json!([{"role": "user", "content": "count"}]);
    let body = json!({"model": "small", "max_tokens": 9, "messages": said, "stream": true});
    let asked = house.post("/v1/messages", &body).header("x-phalanx-resume", "on");
    let whole = asked.send().await.unwrap().text().await.unwrap();
    let id = streamed_events(&whole)[0]["message"]["id"].as_str().unwrap().to_owned();
    // Wherever it was cut: what came before and what comes after are the whole.
    for (has, rest) in [(1, "ne two three"), (3, " two three"), (5, "wo three"), (13, "")] {
        let back = house.post("/v1/messages", &body).header("x-phalanx-resume", &id);
        let got = back.header("last-event-id", has.to_string()).send().await.unwrap().text().await.unwrap();
        let events = streamed_events(&got);
        let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert!(!kinds.contains(&"message_start") && !kinds.contains(&"content_block_start"), "{got}");
        assert!(kinds.ends_with(&["content_block_stop", "message_delta", "message_stop"]), "{got}");
        let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
        assert_eq!(text, rest);
    }
}

#[tokio::test]
async fn an_answer_of_several_choices_cannot_be_come_back_to_and_says_so() {
    let house = House::open().await;
    let _provider = Provider::join(&house).await;
    for stream in [true, false] {
        let body = chat_body(json!({"stream": stream, "n": 2}));
        let asked = house.post("/v1/chat/completions", &body).header("x-phalanx-resume", "on");
        let refused = asked.send().await.unwrap();
        assert_eq!(refused.status(), 400);
        let body: serde_json::Value = refused.json().await.unwrap();
        assert_eq!(body["error"]["param"], "x-phalanx-resume", "{body}");
    }
}
