//! Several texts in one call: their caller gets all vectors or none, and pays for what it gets.

use model::synth::SynthRequest;
use serde_json::{Value, json};
use store::Store as _;
use wire::chunk::{Chunk, FinishReason};
use wire::control::AttemptRefusal;

use super::house::{House, eventually};
use super::provider::{Act, Offer, Provider, end};

fn vector() -> Vec<Act> {
    vec![Act::Send(Chunk {
        vector: Some(vec![0.5; SynthRequest::default().hidden]),
        ..end(0, FinishReason::Stop)
    })]
}

#[tokio::test]
async fn vectors_that_their_caller_never_got_are_not_charged() {
    let house = House::open().await;
    let provider = Provider::join_as(&house, Offer { pools: true, ..Offer::default() }).await;
    let body = json!({"model": "small", "input": ["one", "two", "three"]});
    // Whichever of them is refused, in whatever order they come.
    for acts in [vector(), vec![Act::Refuse(AttemptRefusal::BadConstraint)], vector()] {
        provider.next(acts);
    }
    let answer = house.post("/v1/embeddings", &body).send().await.unwrap();
    assert_eq!(answer.status(), 400, "{}", answer.text().await.unwrap());
    let settled = async |rows: usize| house.store.ledger(0, 100).await.unwrap().len() == rows;
    eventually("three requests are settled", async || settled(3).await).await;
    let ledger = house.store.ledger(0, 100).await.unwrap();
    assert_eq!(ledger.iter().map(|entry| entry.prompt_tokens).sum::<u32>(), 0, "{ledger:?}");

    (0..3).for_each(|_| provider.next(vector()));
    let answer: Value = house.post("/v1/embeddings", &body).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["data"].as_array().unwrap().len(), 3);
    eventually("three more are settled", async || settled(6).await).await;
    let ledger = house.store.ledger(0, 100).await.unwrap();
    let charged: u32 = ledger.iter().map(|entry| entry.prompt_tokens).sum();
    assert_eq!(answer["usage"]["prompt_tokens"], charged);
    assert!(charged > 0 && ledger[3..].iter().all(|entry| entry.outcome == store::Outcome::Completed));
}
