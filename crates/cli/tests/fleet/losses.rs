//! Machines that are lost: killed, frozen, gone between two tokens; and clients that leave.

use rustix::process::Signal;
use serde_json::Value;

use crate::api::{Api, coordinator, events, parsed, provider, text_of, turn};

/// A prompt whose prefill takes long enough to be caught in: thousands of tokens of the bundled model.
fn long_prompt() -> String {
    "The small fox walked along the river and looked for a friend. ".repeat(120)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_killed_before_its_first_token_is_not_noticed_by_the_client() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let mut providers =
        vec![provider(&api.url, token, "one", &[]).start(), provider(&api.url, token, "two", &[]).start()];
    api.await_eligible(2).await;
    let (_, undisturbed) = api.ask(&long_prompt(), 8).await;

    let asking = tokio::spawn({
        let api = Api::of(&coordinator);
        async move { api.ask(&(long_prompt() + "!"), 8).await }
    });
    let status = api.await_status("a busy machine", |status| busy(status).is_some()).await;
    let victim = if busy(&status).unwrap() == "one" { 0 } else { 1 };
    drop(providers.remove(victim).kill());

    let (code, answer) = asking.await.unwrap();
    assert_eq!(code, 200, "{answer:#}");
    assert_eq!(answer["usage"]["completion_tokens"], undisturbed["usage"]["completion_tokens"]);
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    api.await_eligible(1).await;
    let lines = [
        "phalanx_attempts_total{kind=\"lost\"} 1",
        "phalanx_requests_total{api=\"chat\",outcome=\"completed\"} 2",
    ];
    // An answer is out before it is settled, and counted after that: a slow disk comes in between.
    let begun = std::time::Instant::now();
    loop {
        let metrics = metrics(&api).await;
        if lines.iter().all(|line| metrics.contains(line)) {
            return;
        }
        assert!(begun.elapsed() < testkit::program::PATIENCE, "{metrics}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_frozen_before_its_first_token_is_not_waited_for() {
    let coordinator =
        coordinator(&["--set", "uplink.heartbeat_us=300000", "--set", "uplink.silence_us_max=1500000"]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let one = provider(&api.url, token, "one", &[]).start();
    api.await_eligible(1).await;
    one.signal(Signal::STOP);
    let asking = tokio::spawn({
        let api = Api::of(&coordinator);
        async move { api.ask("What is Phalanx?", 8).await }
    });
    let _two = provider(&api.url, token, "two", &[]).start();
    let (code, answer) = asking.await.unwrap();
    assert_eq!(code, 200, "{answer:#}");
    one.signal(Signal::CONT);
    // It comes back by itself, as the machine that it was.
    api.await_eligible(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_the_loss_of_its_machine() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let mut providers =
        vec![provider(&api.url, token, "one", &[]).start(), provider(&api.url, token, "two", &[]).start()];
    api.await_eligible(2).await;
    let mut body = turn("Tell me a short story about a fox.", 3000);
    body["ignore_eos"] = true.into();
    let undisturbed: Value = api.post("/v1/chat/completions", &body).await.json().await.unwrap();
    body["stream"] = true.into();
    body["stream_options"] = serde_json::json!({"include_usage": true});

    let mut answer = api.post("/v1/chat/completions", &body).await;
    let mut head = answer.chunk().await.unwrap().expect("a first token").to_vec();
    let status = api.await_status("a busy machine", |status| busy(status).is_some()).await;
    let victim = if busy(&status).unwrap() == "one" { 0 } else { 1 };
    drop(providers.remove(victim).kill());

    while let Some(part) = answer.chunk().await.unwrap() {
        head.extend_from_slice(&part);
    }
    let (events, done) = parsed(&head);
    assert!(done, "the stream ends as if nothing had happened");
    assert_eq!(text_of(&events), undisturbed["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 3000);
    assert!(metrics(&api).await.contains("phalanx_attempts_total{kind=\"moved\"} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_killed_in_mid_stream_with_failover_off_ends_the_stream_with_one_typed_error() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let only = provider(&api.url, token, "only", &[]).start();
    api.await_eligible(1).await;
    let mut body = turn("Tell me a story.", 4000);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    let call = api.http.post(format!("{}/v1/chat/completions", api.url)).bearer_auth(&api.key);
    let mut answer = call.header("x-phalanx-failover", "off").json(&body).send().await.unwrap();
    let first = answer.chunk().await.unwrap().expect("a first token");
    assert!(first.starts_with(b"data: "));
    drop(only.kill());
    let (events, done) = events(answer).await;
    assert!(!done, "[DONE] follows only success");
    let errors: Vec<_> = events.iter().filter(|event| event["error"].is_object()).collect();
    assert_eq!(errors.len(), 1, "{events:?}");
    assert!(errors[0]["error"]["type"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_the_computing() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let _only = provider(&api.url, token, "only", &[]).start();
    api.await_eligible(1).await;
    let mut body = turn("Tell me a story.", 4000);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    let mut answer = api.post("/v1/chat/completions", &body).await;
    answer.chunk().await.unwrap().expect("a first token");
    let running = |status: &Value| status["machines"][0]["instances"][0]["running"].as_u64().unwrap();
    api.await_status("a running request", |status| running(status) == 1).await;
    drop(answer);
    let status = api.await_status("an idle machine", |status| running(status) == 0).await;
    let kv = &status["machines"][0]["instances"][0]["kv_tokens"];
    assert_eq!(kv[0], kv[1], "its KV cache is free again: {status:#}");
}

/// The name of a machine that computes.
fn busy(status: &Value) -> Option<String> {
    let machines = status["machines"].as_array()?.iter();
    let mut busy = machines.filter(|m| m["instances"][0]["running"].as_u64().unwrap_or(0) > 0);
    Some(busy.next()?["name"].as_str()?.to_owned())
}

async fn metrics(api: &Api) -> String {
    let answer =
        reqwest::Client::new().get(format!("{}/metrics", api.url)).bearer_auth(&api.key).send().await;
    answer.unwrap().text().await.unwrap()
}
