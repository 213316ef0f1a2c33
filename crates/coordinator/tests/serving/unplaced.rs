//! What finds no instance of a model that a deployment wants: it waits for the next place, within its time, and is told so.

use std::sync::Arc;

use serde_json::{Value, json};

use super::deployments::{delete, is, put};
use super::house::{House, chat_body, eventually, streamed};
use super::managed::{Managed, Way};
use super::provider::{Act, end, token};

/// Asks `model` something; `with` changes the body.
fn asking(house: &House, model: &str, with: Value) -> tokio::task::JoinHandle<(u16, Option<String>, String)> {
    let mut body = chat_body(with);
    body["model"] = model.into();
    let request = house.post("/v1/chat/completions", &body);
    tokio::spawn(async move {
        let response = request.send().await.unwrap();
        let after = response.headers().get("retry-after").map(|after| after.to_str().unwrap().to_owned());
        (response.status().as_u16(), after, response.text().await.unwrap())
    })
}

async fn queued(house: &House) -> u32 {
    let status: wire::admin::FleetStatus = house.get("/api/status").await.json().await.unwrap();
    status.models.iter().map(|pool| pool.queued).sum()
}

#[tokio::test]
async fn what_finds_no_instance_of_a_wanted_model_waits_for_its_next_place() {
    let house = House::with(|config| {
        config.pool.grace_us = base::Micros::from_millis(1);
        config.requests.keepalive_us = base::Micros::from_millis(40);
    })
    .await;
    let mut one = Managed::join(&house, "one", &["small"]).await;
    put(&house, "chat", json!({"model": "small", "machines": ["one"]})).await;
    is(&house, "chat", "Ready", "True").await;
    assert_eq!(asking(&house, "small", json!({})).await.unwrap().0, 200);
    one.cut().await;
    is(&house, "chat", "Ready", "False").await;
    let listed = async || house.get("/v1/models").await.json::<Value>().await.unwrap()["data"] != json!([]);
    eventually("nothing is listed", async || !listed().await).await;
    // Two wait, one of them streamed and told so; another does not wait so long.
    let whole = asking(&house, "small", json!({}));
    let streamed = asking(&house, "small", json!({"stream": true}));
    eventually("both wait", async || queued(&house).await == 2).await;
    let short = house.post("/v1/chat/completions", &chat_body(json!({"model": "small"})));
    let short = short.header("x-phalanx-deadline-ms", "100").send().await.unwrap();
    assert_eq!(short.status(), 503);
    assert!(short.headers().contains_key("retry-after"));
    let short: Value = short.json().await.unwrap();
    let error = &short["error"];
    assert!(error["message"].as_str().unwrap().contains("a deployment wants this model"), "{error:#}");
    assert_eq!((&error["code"], &error["uptime_neutral"]), (&json!("no_serving_path"), &json!(true)));
    one.restart(&house).await;
    let (status, _, text) = whole.await.unwrap();
    assert_eq!(status, 200, "{text}");
    let (status, _, text) = streamed.await.unwrap();
    assert!(status == 200 && text.contains(": waiting") && text.contains("[DONE]"), "{text}");

    // Scaled to nothing, nothing is on its way.
    put(&house, "chat", json!({"model": "small", "machines": ["one"], "replicas": 0})).await;
    eventually("nothing is listed", async || !listed().await).await;
    assert_eq!(asking(&house, "small", json!({})).await.unwrap().0, 503);
    // And what waits for a deployment that is deleted is told so at once.
    one.goes(Way::Stuck);
    put(&house, "chat", json!({"model": "small", "machines": ["one"]})).await;
    let waits = asking(&house, "small", json!({}));
    eventually("it waits", async || queued(&house).await == 1).await;
    assert_eq!(delete(&house, "chat").await, 200);
    let (status, _, text) = waits.await.unwrap();
    assert!(status == 503 && text.contains("no_serving_path"), "{status} {text}");
}

#[tokio::test]
async fn what_asks_for_a_wanted_model_before_any_machine_served_it_waits_too() {
    let house = House::open().await;
    put(&house, "chat", json!({"model": "small", "machines": ["one"]})).await;
    let short = house.post("/v1/chat/completions", &chat_body(json!({"model": "small"})));
    let short = short.header("x-phalanx-deadline-ms", "50").send().await.unwrap();
    assert_eq!(short.status(), 503);
    let short: Value = short.json().await.unwrap();
    assert!(short["error"]["message"].as_str().unwrap().contains("on its way"), "{short:#}");
    let (whole, streamed) =
        (asking(&house, "small", json!({})), asking(&house, "small", json!({"stream": true})));
    let _one = Managed::join(&house, "one", &["small"]).await;
    for waits in [whole, streamed] {
        let (status, _, text) = waits.await.unwrap();
        assert_eq!(status, 200, "{text}");
    }
    // And one whose deployment is deleted is told so at once.
    put(&house, "other", json!({"model": "large", "machines": ["one"]})).await;
    let waits = asking(&house, "large", json!({}));
    assert_eq!(delete(&house, "other").await, 200);
    let (status, _, text) = waits.await.unwrap();
    assert!(status == 404 && text.contains("model_not_found"), "{status} {text}");
}

#[tokio::test]
async fn an_answer_that_has_begun_waits_for_the_next_place_too() {
    let house = House::with(|config| {
        config.pool.grace_us = base::Micros::from_millis(1);
        config.requests.stranded_us = base::Micros::from_millis(1);
    })
    .await;
    let mut one = Managed::join(&house, "one", &["small"]).await;
    put(&house, "chat", json!({"model": "small", "machines": ["one"]})).await;
    is(&house, "chat", "Ready", "True").await;
    one.next(vec![Act::Send(token(0, "one ")), Act::Hold(Arc::default())]);
    one.next(vec![Act::Send(token(1, "two")), Act::Send(end(2, wire::chunk::FinishReason::Stop))]);
    let body = chat_body(json!({"stream": true}));
    let mut begun = house.post("/v1/chat/completions", &body).send().await.unwrap();
    let mut text = String::new();
    while !text.contains("one ") {
        text.push_str(std::str::from_utf8(&begun.chunk().await.unwrap().expect("more comes")).unwrap());
    }
    one.cut().await;
    is(&house, "chat", "Ready", "False").await;
    eventually("it waits", async || queued(&house).await == 1).await;
    one.restart(&house).await;
    text.push_str(&begun.text().await.unwrap());
    let got = streamed(&text);
    assert_eq!((got.text.as_str(), got.done), ("one two", true), "{text}");
}

#[tokio::test]
async fn what_failed_on_the_only_machine_is_tried_there_again_but_not_for_ever() {
    let house = House::open().await;
    let one = Managed::join(&house, "one", &["small"]).await;
    put(&house, "chat", json!({"model": "small"})).await;
    is(&house, "chat", "Ready", "True").await;
    // Its instance is taken back and told anew while a request is on its way to it.
    let gone = || vec![Act::Refuse(wire::control::AttemptRefusal::WrongModel)];
    one.next(gone());
    one.next(gone());
    assert_eq!(asking(&house, "small", json!({})).await.unwrap().0, 200);
    for _ in 0..8 {
        one.next(vec![Act::Fail]);
    }
    let (status, _, text) = asking(&house, "small", json!({})).await.unwrap();
    assert!(status == 502 && text.contains("4 attempts"), "{status} {text}");
}
