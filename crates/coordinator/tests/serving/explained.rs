//! Why there, why then, why refused, why no work: told of requests that were served and of those that were not.

use serde_json::{Value, json};

use super::house::House;
use super::provider::{Provider, answer};

async fn explained(house: &House, request: &str) -> Value {
    let response = house.get(&format!("/api/explain/{request}")).await;
    assert_eq!(response.status(), 200, "{request}");
    response.json().await.unwrap()
}

#[tokio::test]
async fn a_served_request_is_explained_with_its_candidates_and_its_end() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.next(answer(&["the ", "word"]));
    let response = house.chat(json!({})).await;
    let request = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    response.bytes().await.unwrap();
    let story = explained(&house, &request).await;
    assert_eq!((&story["request"], &story["model"]), (&json!(request), &json!("small")));
    let what: Vec<&str> =
        story["events"].as_array().unwrap().iter().map(|e| e["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["dispatched", "first_token", "ended"]);
    let dispatched = &story["events"][0];
    assert_eq!(dispatched["candidates"].as_array().unwrap().len(), 1);
    assert!(dispatched["candidates"][0]["cost_s"].as_f64().unwrap() > 0.0);
    assert!(dispatched["text"].as_str().unwrap().contains("least cost"));
    assert!(story["events"][2]["text"].as_str().unwrap().contains("after 2 tokens"));

    let name = dispatched["candidates"][0]["name"].as_str().unwrap().to_owned();
    let why: Value = house.get(&format!("/api/why/{name}")).await.json().await.unwrap();
    assert_eq!(why["connected"], true);
    let instance = &why["instances"][0];
    assert_eq!((&instance["placed"], &instance["placed_here"]), (&json!(1), &json!(1)));
    assert!(instance["text"].as_str().unwrap().contains("1 of the last 1 requests came here"));
}

#[tokio::test]
async fn who_was_turned_away_is_told_why_and_so_is_the_operator() {
    let house = House::open().await;
    let _provider = Provider::join(&house).await;
    for (body, status, says) in [
        (json!({"model": "unheard-of"}), 404, "does not exist here"),
        (json!({"max_tokens": -1}), 400, "max_tokens"),
    ] {
        let response = house.chat(body).await;
        assert_eq!(response.status(), status);
        let request = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let story = explained(&house, &request).await;
        let event = &story["events"][0];
        assert_eq!(event["what"], "turned_away");
        let text = event["text"].as_str().unwrap();
        assert!(text.contains(says) && text.contains(&status.to_string()), "{text}");
    }
    for path in
        ["/api/explain/req_00000000000000000000000000000001", "/api/explain/nonsense", "/api/why/nobody"]
    {
        assert_eq!(house.get(path).await.status(), 404, "{path}");
    }
    let stranger = house.http.get(house.url("/api/why/nobody")).send().await.unwrap();
    assert_eq!(stranger.status(), 401);
}

#[tokio::test]
async fn the_last_ten_thousand_are_explained_and_the_one_before_them_is_not() {
    let house = House::open().await;
    let _provider = Provider::join(&house).await;
    let mut ids = Vec::new();
    for _ in 0..10_001 {
        let response = house.chat(json!({"max_tokens": -1})).await;
        ids.push(response.headers()["x-request-id"].to_str().unwrap().to_owned());
    }
    assert_eq!(house.get(&format!("/api/explain/{}", ids[0])).await.status(), 404);
    for id in [&ids[1], &ids[5000], &ids[10_000]] {
        assert_eq!(explained(&house, id).await["events"][0]["what"], "turned_away");
    }
}
