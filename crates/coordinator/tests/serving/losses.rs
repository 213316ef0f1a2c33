//! Machines that fail, lie, fall silent or leave; callers that leave.

use std::sync::Arc;

use serde_json::{Value, json};
use store::{Outcome, Store};
use tokio::sync::Notify;
use wire::chunk::{Chunk, FinishReason};
use wire::control::{AttemptRefusal, FromProvider};

use super::house::{House, chat_body, eventually, streamed};
use super::provider::{Act, Offer, Provider, Seen, answer, end, token};

#[tokio::test]
async fn a_loss_before_the_first_token_is_invisible() {
    for loss in [vec![Act::Die], vec![Act::Fail], vec![Act::Refuse(AttemptRefusal::NotReady)]] {
        let house = House::open().await;
        // Only the bad one is there at first: it is asked for certain. While it holds the request, the good one joins.
        let mut bad = Provider::join(&house).await;
        let gate = Arc::new(Notify::new());
        let mut script = vec![Act::Hold(Arc::clone(&gate))];
        script.extend(loss);
        bad.next(script);
        let call =
            tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({"stream": true}))).send());
        let (first, _) = bad.attempt().await;
        let mut good = Provider::join(&house).await;
        gate.notify_one();
        let response = call.await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let got = streamed(&response.text().await.unwrap());
        assert_eq!((got.text.as_str(), got.done), ("fine", true));
        assert_ne!(good.attempt().await.0, first, "each attempt has its own identity");
        eventually("the settlement", async || !house.store.ledger(0, 10).await.unwrap().is_empty()).await;
        let ledger = house.store.ledger(0, 10).await.unwrap();
        assert_eq!(ledger.len(), 1, "one request, however many attempts");
        assert_eq!(ledger[0].outcome, Outcome::Completed);
    }
}

#[tokio::test]
async fn a_machine_that_failed_a_request_is_not_asked_for_it_again() {
    let house = House::open().await;
    let (one, two) = (Provider::join(&house).await, Provider::join(&house).await);
    for provider in [&one, &two] {
        provider.next(vec![Act::Fail]);
    }
    let response = house.chat(json!({"stream": true})).await;
    // Each failed once and would have answered a second time.
    assert_eq!(response.status(), 502);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "attempts_failed");
    assert_eq!(house.metric("phalanx_attempts_total{kind=\"failed\"}").await, 2.0);
}

#[tokio::test]
async fn a_loss_after_the_first_token_without_failover_is_one_error_event_and_no_done() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(vec![Act::Send(token(0, "half")), Act::Die]);
    let call = house.post("/v1/chat/completions", &chat_body(json!({"stream": true})));
    let response = call.header("x-phalanx-failover", "off").send().await.unwrap();
    let got = streamed(&response.text().await.unwrap());
    assert_eq!(got.text, "half");
    assert!(!got.done);
    let error = got.error.unwrap();
    assert_eq!(error["code"], "stream_lost");
    assert_eq!(error["type"], "server_error");
    let settled = async || house.store.ledger(0, 10).await.unwrap().len() == 1;
    eventually("the settlement", settled).await;
    let ledger = house.store.ledger(0, 10).await.unwrap();
    assert_eq!((ledger[0].outcome, ledger[0].generated_tokens), (Outcome::Failed, 1));
}

#[tokio::test]
async fn a_chunk_that_cannot_be_believed_fails_its_request_and_is_counted() {
    let wrong_index = vec![Act::Send(token(0, "a")), Act::Send(token(2, "c"))];
    let again = vec![Act::Send(token(0, "a")), Act::Send(token(0, "a"))];
    let repeated = vec![Act::Send(token(0, "a")), Act::Repeat];
    let tampered = vec![Act::Send(token(0, "a")), Act::Tampered(token(1, "b"))];
    let beyond = vec![Act::Send(token(0, "a")), Act::Send(Chunk { tokens: vec![5000], ..token(1, "b") })];
    let empty = vec![Act::Send(token(0, "a")), Act::Send(Chunk { first_index: 1, ..Chunk::default() })];
    let many = Chunk { tokens: vec![1; 8], ..token(1, "b") };
    let too_many = vec![Act::Send(token(0, "a")), Act::Send(many)];
    let cases = [
        (wrong_index, "wrong_index"),
        (again, "wrong_index"),
        (repeated, "does_not_open"),
        (tampered, "does_not_open"),
        (beyond, "unknown_token"),
        (empty, "empty"),
        (too_many, "too_many_tokens"),
    ];
    let house = House::open().await;
    for (script, kind) in cases {
        let mut provider = Provider::join(&house).await;
        let before = house.metric(&format!("phalanx_chunk_violations_total{{kind=\"{kind}\"}}")).await;
        provider.next(script);
        let got = streamed(&house.chat(json!({"stream": true, "max_tokens": 4})).await.text().await.unwrap());
        assert_eq!((got.text.as_str(), got.done), ("a", false), "{kind}");
        assert_eq!(got.error.unwrap()["code"], "stream_lost", "{kind}");
        let after = house.metric(&format!("phalanx_chunk_violations_total{{kind=\"{kind}\"}}")).await;
        assert_eq!(after, before + 1.0, "{kind}");
        let (attempt, _) = provider.attempt().await;
        let cancelled = provider.sees(|seen| match seen {
            Seen::Cancel(id) => Some(id),
            _ => None,
        });
        assert_eq!(cancelled.await, attempt, "{kind}");
        provider.send(&FromProvider::Goodbye { reason: "done".to_owned() });
        let gone = async || house.metric("phalanx_machines").await == 0.0;
        eventually("the provider left", gone).await;
    }
}

#[tokio::test]
async fn chunks_after_the_terminal_or_of_a_foreign_attempt_disturb_nobody_and_are_counted() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    let gate = Arc::new(Notify::new());
    let mut script = answer(&["ok"]);
    script.extend([Act::Hold(Arc::clone(&gate)), Act::Send(token(1, "more"))]);
    provider.next(script);
    let got: Value = house.chat(json!({})).await.json().await.unwrap();
    assert_eq!(got["choices"][0]["message"]["content"], "ok");
    gate.notify_one();
    house.metric_reaches("phalanx_chunk_violations_total{kind=\"after_terminal\"}", 1.0).await;
    let (attempt, _) = provider.attempt().await;
    assert_ne!(attempt, super::provider::nobody());
    let header =
        wire::frame::FrameHeader::of_attempt(wire::frame::FrameKind::Chunk, super::provider::nobody(), 0);
    let frame = wire::frame::encode(header, b"nothing");
    provider.send_raw(tokio_tungstenite::tungstenite::Message::Binary(frame.into()));
    house.metric_reaches("phalanx_chunk_violations_total{kind=\"foreign_attempt\"}", 1.0).await;
    assert_eq!(house.chat(json!({})).await.status(), 200);
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_the_work_and_is_settled() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    provider.next(vec![
        Act::Send(token(0, "a")),
        Act::Send(token(1, "b")),
        Act::Hold(Arc::new(Notify::new())),
    ]);
    let mut response = house.chat(json!({"stream": true})).await;
    let mut text = String::new();
    while !text.contains("\"b\"") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    drop(response);
    let (attempt, _) = provider.attempt().await;
    let cancelled = provider.sees(|seen| match seen {
        Seen::Cancel(id) => Some(id),
        _ => None,
    });
    assert_eq!(cancelled.await, attempt);
    eventually("the settlement", async || house.store.ledger(0, 10).await.unwrap().len() == 1).await;
    let ledger = house.store.ledger(0, 10).await.unwrap();
    assert_eq!((ledger[0].outcome, ledger[0].generated_tokens), (Outcome::Cancelled, 2));
    // A late chunk of what was cancelled is no fault, and the place is free again.
    assert_eq!(house.chat(json!({})).await.status(), 200);
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_first_token_cancels_the_work() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    provider.next(vec![Act::Hold(Arc::new(Notify::new()))]);
    let call = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send());
    let (attempt, _) = provider.attempt().await;
    call.abort();
    let cancelled = provider.sees(|seen| match seen {
        Seen::Cancel(id) => Some(id),
        _ => None,
    });
    assert_eq!(cancelled.await, attempt);
    eventually("the settlement", async || house.store.ledger(0, 10).await.unwrap().len() == 1).await;
    let ledger = house.store.ledger(0, 10).await.unwrap();
    assert_eq!((ledger[0].outcome, ledger[0].prompt_tokens), (Outcome::Cancelled, 0));
}

#[tokio::test]
async fn an_instance_that_falls_silent_counts_as_failed() {
    let house = House::with(|config| {
        config.requests.first_token_us_max = base::Micros::from_millis(200);
        config.requests.pause_us_max = base::Micros::from_millis(200);
    })
    .await;
    let provider = Provider::join(&house).await;
    provider.next(vec![Act::Hold(Arc::new(Notify::new()))]);
    let response = house.chat(json!({})).await;
    assert_eq!(response.status(), 502);
    provider.next(vec![Act::Send(token(0, "a")), Act::Hold(Arc::new(Notify::new()))]);
    let got = streamed(&house.chat(json!({"stream": true})).await.text().await.unwrap());
    assert_eq!(got.error.unwrap()["code"], "stream_lost");
}

#[tokio::test]
async fn a_machine_that_says_it_is_full_is_asked_again_and_harms_nobody() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    for _ in 0..3 {
        provider.next(vec![Act::Refuse(AttemptRefusal::NoKvRoom)]);
    }
    assert_eq!(house.chat(json!({})).await.status(), 200);
}

#[tokio::test]
async fn a_machine_that_does_not_hold_the_model_any_more_is_passed_over_and_harms_nobody() {
    let house = House::open().await;
    let (astray, _right) = (Provider::join(&house).await, Provider::join(&house).await);
    for _ in 0..12 {
        astray.next(vec![Act::Refuse(AttemptRefusal::WrongModel)]);
    }
    // Together, so that both machines are asked.
    let calls: Vec<_> = (0..12)
        .map(|_| tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send()))
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert!(house.metric("phalanx_attempts_total{kind=\"refused\"}").await >= 1.0, "it was asked");
    // Nobody counts it as a fault of the machine's, however often: it takes requests as before.
    let status: Value = house.get("/api/status").await.json().await.unwrap();
    assert_eq!(status["models"][0]["eligible"], json!([2, 2]), "{status:#}");
}

#[tokio::test]
async fn a_draining_machine_finishes_what_it_has_and_gets_nothing_new() {
    let house = House::open().await;
    let mut old = Provider::join(&house).await;
    let gate = Arc::new(Notify::new());
    old.next(vec![
        Act::Send(token(0, "slow")),
        Act::Hold(Arc::clone(&gate)),
        Act::Send(end(1, FinishReason::Stop)),
    ]);
    let call = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send());
    old.attempt().await;
    old.send(&FromProvider::Draining);
    old.sees(|seen| match seen {
        Seen::Standing(line) if line.contains("draining") => Some(()),
        _ => None,
    })
    .await;
    let mut new = Provider::join_as(&house, Offer::default()).await;
    for _ in 0..3 {
        assert_eq!(house.chat(json!({})).await.status(), 200);
        new.attempt().await;
    }
    gate.notify_one();
    let got: Value = call.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(got["choices"][0]["message"]["content"], "slow");
}

#[tokio::test]
async fn a_caller_that_does_not_read_loses_its_own_answer_and_slows_nobody() {
    let house = House::with(|config| {
        config.uplink.chunks_waiting_max = 8;
        config.requests.reader_us_max = base::Micros::from_millis(300);
    })
    .await;
    let mut provider = Provider::join(&house).await;
    // More than the sockets between take in: 400 pieces of 64 KB.
    let piece = "x".repeat(64 << 10);
    let mut flood: Vec<Act> = (0..400).map(|index| Act::Send(token(index, &piece))).collect();
    flood.push(Act::Send(end(400, FinishReason::Stop)));
    provider.next(flood);
    let unread = house.chat(json!({"stream": true})).await;
    assert_eq!(unread.status(), 200);
    let (attempt, _) = provider.attempt().await;
    let cancelled = provider.sees(|seen| match seen {
        Seen::Cancel(id) => Some(id),
        _ => None,
    });
    assert_eq!(cancelled.await, attempt);
    assert_eq!(house.chat(json!({})).await.status(), 200, "its machine serves others meanwhile");
    let got = streamed(&unread.text().await.unwrap());
    assert!(!got.done);
    eventually("both settled", async || house.store.ledger(0, 10).await.unwrap().len() == 2).await;
}

#[tokio::test]
async fn a_machine_gets_credit_as_its_answer_is_read_and_none_while_it_is_not() {
    let house = House::with(|config| {
        config.uplink.chunks_waiting_max = 8;
        config.requests.reader_us_max = base::Micros::from_millis(300);
    })
    .await;
    let offer = Offer { capabilities: vec![wire::control::CREDIT.to_owned()], ..Offer::default() };
    let mut provider = Provider::join_as(&house, offer).await;
    let piece = "x".repeat(64 << 10);
    let flood = || {
        let pieces = (0..400).map(|index| Act::Send(token(index, &piece)));
        pieces.chain([Act::Send(end(400, FinishReason::Stop))]).collect::<Vec<_>>()
    };
    // Eight chunks may be on their way: a reader has all of them only where credit follows it.
    provider.next(flood());
    let read = streamed(&house.chat(json!({"stream": true})).await.text().await.unwrap());
    assert!(read.done);
    assert_eq!(provider.credit.sent.swap(0, std::sync::atomic::Ordering::Relaxed), 401);
    // Who does not read stops its own machine, which therefore never overflows anything.
    provider.next(flood());
    let unread = house.chat(json!({"stream": true})).await;
    let cancelled = provider.sees(|seen| match seen {
        Seen::Cancel(id) => Some(id),
        _ => None,
    });
    cancelled.await;
    let sent = provider.credit.sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sent < 400, "{sent} chunks were sent to a caller that read none");
    assert!(!streamed(&unread.text().await.unwrap()).done);
}
