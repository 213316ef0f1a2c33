//! Answers as callers read them, streamed and whole, in both APIs.

use serde_json::{Value, json};
use store::{Outcome, Store};
use wire::chunk::FinishReason;

use super::house::{House, chat_body, eventually, streamed};
use super::provider::{Act, Provider, answer, end, token, token_with_logprobs};

#[tokio::test]
async fn a_chat_is_answered_whole_with_usage_headers_and_every_segment() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    provider.next(answer(&["the ", "word"]));
    let response = house.chat(json!({"seed": 7, "user": "me"})).await;
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert!(headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    assert_eq!(headers["x-phalanx-seed"], "7");
    assert_eq!(headers["x-phalanx-ignored-parameters"], "user");
    assert!(headers.get("access-control-allow-origin").is_none());
    let timing = headers["server-timing"].to_str().unwrap();
    let segments =
        ["parse", "reserve", "queue", "route", "encrypt", "dispatch", "first_token", "stream", "settle"];
    for segment in segments.iter().chain(&["tokenize"]) {
        assert!(timing.contains(&format!("{segment};dur=")), "{segment} in {timing}");
    }
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(
        body["choices"][0]["message"],
        json!({"role": "assistant", "content": "the word", "refusal": null})
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let (_, job) = provider.attempt().await;
    assert_eq!(body["usage"]["prompt_tokens"], job.prompt.len());
    assert_eq!(body["usage"]["completion_tokens"], 2);
    assert_eq!(job.ask.sampling.seed, 7);
    assert_eq!(job.ask.sampling.temperature, 0.0);
    assert!(job.ask.max_tokens as usize + job.prompt.len() == 512, "the rest of the context");
    let report: Value = house.get("/api/segments").await.json().await.unwrap();
    for segment in segments {
        assert_eq!(report["segments"][segment]["count"], 1, "{segment}");
    }
    assert_eq!(
        house.http.delete(house.url("/api/segments")).bearer_auth(&house.key).send().await.unwrap().status(),
        204
    );
    let report: Value = house.get("/api/segments").await.json().await.unwrap();
    assert_eq!(report["segments"]["parse"]["count"], 0);
    eventually("the settlement", async || house.store.ledger(0, 10).await.unwrap().len() == 1).await;
    let ledger = house.store.ledger(0, 10).await.unwrap();
    assert_eq!(ledger.len(), 1);
    assert_eq!((ledger[0].outcome, ledger[0].generated_tokens), (Outcome::Completed, 2));
}

#[tokio::test]
async fn a_streamed_chat_begins_with_a_role_and_ends_with_usage_and_done() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(answer(&["a", "b", "c"]));
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let response = house.chat(more).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert!(response.headers()["server-timing"].to_str().unwrap().contains("first_token;dur="));
    let got = streamed(&response.text().await.unwrap());
    assert_eq!(got.text, "abc");
    assert!(got.done && got.error.is_none());
    assert_eq!(got.events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let ids: std::collections::BTreeSet<_> = got.events.iter().map(|e| e["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    let last = got.events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 3);
    let before = &got.events[got.events.len() - 2];
    assert_eq!(before["choices"][0]["finish_reason"], "stop");
    // As OpenAI has it: with usage asked for, every other event has the field, empty.
    assert!(got.events[..got.events.len() - 1].iter().all(|e| e.get("usage") == Some(&Value::Null)));
    assert!(got.comments.iter().any(|c| c.starts_with("server-timing") && c.contains("settle;dur=")));
}

#[tokio::test]
async fn completions_take_texts_and_tokens_and_several_prompts() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    provider.next(answer(&["x"]));
    let body = json!({"model": "small", "prompt": "once upon", "max_tokens": 5});
    let got: Value = house.post("/v1/completions", &body).send().await.unwrap().json().await.unwrap();
    assert_eq!((&got["object"], &got["choices"][0]["text"]), (&json!("text_completion"), &json!("x")));
    let ask = provider.attempt().await.1.ask;
    assert_eq!(ask.max_tokens, 5);
    assert!(ask.hold_ms > 0, "nobody reads it token by token");

    provider.next(answer(&["p", "q"]));
    let body = json!({"model": "small", "prompt": [5, 6, 7], "stream": true});
    let response = house.post("/v1/completions", &body).send().await.unwrap();
    let got = streamed(&response.text().await.unwrap());
    assert_eq!((got.text.as_str(), got.done), ("pq", true));
    assert!(got.events.iter().all(|e| e.get("usage").is_none()), "nobody asked for it");
    let (_, job) = provider.attempt().await;
    assert_eq!((job.prompt, job.ask.max_tokens), (vec![5, 6, 7], 16));
    assert_eq!(job.ask.hold_ms, 0, "a stream's tokens wait for nothing");

    let body = json!({"model": "small", "prompt": ["one", "two"]});
    let got: Value = house.post("/v1/completions", &body).send().await.unwrap().json().await.unwrap();
    assert_eq!(got["choices"].as_array().unwrap().len(), 2);
    assert_eq!(got["choices"][1]["index"], 1);
    assert_eq!(got["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn log_probabilities_come_in_each_apis_shape() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    let script = || {
        vec![
            Act::Send(token_with_logprobs(0, "h")),
            Act::Send(token_with_logprobs(1, "i")),
            Act::Send(end(2, FinishReason::Length)),
        ]
    };
    provider.next(script());
    let got: Value = house.chat(json!({"logprobs": true, "top_logprobs": 2})).await.json().await.unwrap();
    let content = &got["choices"][0]["logprobs"]["content"];
    assert_eq!(content[1]["token"], "i");
    assert_eq!(content[1]["bytes"], json!([105]));
    assert_eq!(content[0]["top_logprobs"][1]["token"], "?");
    assert_eq!(got["choices"][0]["finish_reason"], "length");
    provider.next(script());
    let body = json!({"model": "small", "prompt": "x", "logprobs": 2});
    let got: Value = house.post("/v1/completions", &body).send().await.unwrap().json().await.unwrap();
    let logprobs = &got["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["h", "i"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5]));
    assert_eq!(logprobs["top_logprobs"][0]["?"], -1.5);
}

#[tokio::test]
async fn an_empty_answer_is_an_answer() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(answer(&[]));
    let got: Value = house.chat(json!({})).await.json().await.unwrap();
    assert_eq!(got["choices"][0]["message"]["content"], "");
    assert_eq!(got["usage"]["completion_tokens"], 0);
    provider.next(answer(&[]));
    let got = streamed(&house.chat(json!({"stream": true})).await.text().await.unwrap());
    assert!(got.done && got.text.is_empty());
}

#[tokio::test]
async fn neither_prompt_nor_answer_travels_in_the_clear() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(answer(&["xyzzy", "plugh"]));
    let body = chat_body(json!({"messages": [{"role": "user", "content": "say the magic words"}]}));
    let response = house.post("/v1/chat/completions", &body).send().await.unwrap();
    assert!(response.text().await.unwrap().contains("xyzzyplugh"));
    let wire = provider.wire.lock().unwrap().clone();
    assert!(wire.len() > 1000);
    for secret in ["magic", "xyzzy", "plugh"] {
        assert!(!wire.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret}");
    }
}

#[tokio::test]
async fn models_are_listed_while_they_are_served() {
    let house = House::open().await;
    let list: Value = house.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list, json!({"object": "list", "data": []}));
    let provider = Provider::join(&house).await;
    let list: Value = house.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["data"][0]["id"], "small");
    assert_eq!(list["data"][0]["max_model_len"], 512);
    let one: Value = house.get("/v1/models/small").await.json().await.unwrap();
    assert_eq!(one["object"], "model");
    assert_eq!(house.get("/v1/models/large").await.status(), 404);
    drop(provider);
}

#[tokio::test]
async fn tokens_arrive_as_they_are_made() {
    use futures_util::StreamExt as _;
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    let hold = std::sync::Arc::new(tokio::sync::Notify::new());
    provider.next(vec![
        Act::Send(token(0, "early")),
        Act::Hold(std::sync::Arc::clone(&hold)),
        Act::Send(token(1, "late")),
        Act::Send(end(2, FinishReason::Stop)),
    ]);
    let mut body = house.chat(json!({"stream": true})).await.bytes_stream();
    let mut text = String::new();
    while !text.contains("early") {
        text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(!text.contains("late"));
    hold.notify_one();
    while let Some(piece) = body.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    assert!(text.contains("late") && text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn each_of_several_choices_has_a_receipt_of_its_own() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(answer(&["a"]));
    provider.next(answer(&["b", "c"]));
    let got: Value = house.chat(json!({"n": 2})).await.json().await.unwrap();
    let receipt = async |index: &str| {
        let id = got["id"].as_str().unwrap();
        house.get(&format!("/v1/receipts/{id}{index}")).await
    };
    let mut generated = Vec::new();
    for index in ["?index=0", "?index=1"] {
        let one: wire::receipt::Receipt = receipt(index).await.json().await.unwrap();
        assert_eq!((one.prompt_tokens > 0, one.served.len()), (true, 1));
        generated.push(one.generated_tokens);
    }
    let first: wire::receipt::Receipt = receipt("").await.json().await.unwrap();
    assert_eq!(first.generated_tokens, generated[0]);
    assert_eq!(got["usage"]["completion_tokens"], generated.iter().sum::<u32>());
    for (index, status) in [("?index=2", 404), ("?index=x", 400), ("?index=-1", 400)] {
        assert_eq!(receipt(index).await.status(), status, "{index}");
    }
}
