//! Answers that lose their machine after the first token, and go on elsewhere.

use std::sync::Arc;

use serde_json::json;
use store::{Outcome, Store};
use tokio::sync::Notify;
use trust::MachineKeys;
use wire::chunk::FinishReason;

use super::house::{House, chat_body, eventually, streamed};
use super::provider::{Act, Offer, Provider, end, token};

#[tokio::test]
async fn an_answer_goes_on_elsewhere_from_the_tokens_that_were_delivered() {
    for loss in [vec![Act::Die], vec![Act::Fail], vec![Act::Repeat]] {
        let house = House::open().await;
        let mut first = Provider::join(&house).await;
        let gate = Arc::new(Notify::new());
        let mut script = vec![Act::Send(token(0, "one ")), Act::Send(token(1, "two "))];
        script.push(Act::Hold(Arc::clone(&gate)));
        script.extend(loss);
        first.next(script);
        let call =
            tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({"stream": true}))).send());
        let (attempt, job) = first.attempt().await;
        assert!(job.generated.is_empty());
        let mut second = Provider::join(&house).await;
        let last = end(3, FinishReason::Stop);
        second.next(vec![Act::Send(token(2, "three")), Act::Send(last)]);
        gate.notify_one();

        let got = streamed(&call.await.unwrap().unwrap().text().await.unwrap());
        assert_eq!((got.text.as_str(), got.done), ("one two three", true));
        assert!(got.error.is_none());
        let (moved, job) = second.attempt().await;
        assert_ne!(moved, attempt, "each attempt has its own identity");
        assert_eq!(job.generated, [token(0, "").tokens, token(1, "").tokens].concat());
        eventually("the settlement", async || house.store.ledger(0, 10).await.unwrap().len() == 1).await;
        let ledger = house.store.ledger(0, 10).await.unwrap();
        assert_eq!((ledger[0].outcome, ledger[0].generated_tokens), (Outcome::Completed, 3));
        assert_eq!(house.metric("phalanx_attempts_total{kind=\"moved\"}").await, 1.0);
    }
}

#[tokio::test]
async fn a_machine_that_begins_anew_instead_of_going_on_is_not_believed() {
    let house = House::open().await;
    let mut first = Provider::join(&house).await;
    let gate = Arc::new(Notify::new());
    first.next(vec![Act::Send(token(0, "one ")), Act::Hold(Arc::clone(&gate)), Act::Fail]);
    let call = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({"stream": true}))).send());
    first.attempt().await;
    let second = Provider::join(&house).await;
    second.next(vec![Act::Send(token(0, "one "))]);
    gate.notify_one();
    let got = streamed(&call.await.unwrap().unwrap().text().await.unwrap());
    assert_eq!((got.text.as_str(), got.done), ("one ", false), "no token twice");
    assert_eq!(got.error.unwrap()["code"], "stream_lost");
}

#[tokio::test]
async fn an_answer_whose_last_word_alone_was_lost_is_whole() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(vec![Act::Send(token(0, "one ")), Act::Send(token(1, "two")), Act::Die]);
    let got = streamed(&house.chat(json!({"stream": true, "max_tokens": 2})).await.text().await.unwrap());
    assert_eq!((got.text.as_str(), got.done), ("one two", true));
}

#[tokio::test]
async fn an_answer_whose_only_machine_went_away_goes_on_when_it_is_back() {
    let house = House::open().await;
    let secret = MachineKeys::generate();
    let again = |incarnation| Offer {
        keys: MachineKeys::from_secret_bytes(&secret.to_secret_bytes()).unwrap(),
        incarnation,
        ..Offer::default()
    };
    let first = Provider::join_as(&house, again(1)).await;
    first.next(vec![Act::Send(token(0, "one ")), Act::Send(token(1, "two ")), Act::Die]);
    let call = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({"stream": true}))).send());
    house.metric_reaches("phalanx_attempts_total{kind=\"moved\"}", 1.0).await;
    let mut back = Provider::join_unready(&house, again(2)).await;
    back.next(vec![Act::Send(token(2, "three")), Act::Send(end(3, FinishReason::Stop))]);
    let got = streamed(&call.await.unwrap().unwrap().text().await.unwrap());
    assert_eq!((got.text.as_str(), got.done), ("one two three", true));
    assert_eq!(back.attempt().await.1.generated.len(), 2);
}
