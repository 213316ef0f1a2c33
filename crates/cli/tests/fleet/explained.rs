//! `phalanx explain`, as an operator types it: of a request that was served, of one that the queue refused, and of one that
//! was turned away at the door.

use std::process::Command;

use serde_json::{Value, json};

use crate::api::{Api, PHALANX, coordinator, provider, turn};

fn explain(api: &Api, request: &str, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(PHALANX);
    command.args(["explain", request, "--url", &api.url, "--key", &api.key]).args(more);
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

fn id_of(answer: &reqwest::Response) -> String {
    answer.headers()["x-request-id"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_explained_whatever_became_of_it() {
    let coordinator = coordinator(&["--set", "pool.queue_max=1"]);
    let api = Api::of(&coordinator);
    let only_one = ["--batch-max", "1"];
    let _provider = provider(&api.url, coordinator.ready("join_token"), "one", &only_one).start();
    api.await_eligible(1).await;
    let served = api.post("/v1/chat/completions", &turn("Hello!", 4)).await;
    assert_eq!(served.status(), 200);
    let id = id_of(&served);
    served.bytes().await.unwrap();
    let (fine, text) = explain(&api, &id, &[]);
    assert!(fine && text.contains(&id) && text.contains("least cost") && text.contains("one"), "{text}");
    let (_, json) = explain(&api, &id, &["--json"]);
    let story: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(story["events"][0]["what"], "dispatched");
    let missing = api.post("/v1/chat/completions", &json!({"model": "nobody", "messages": []})).await;
    let (fine, text) = explain(&api, &id_of(&missing), &[]);
    assert!(fine && text.contains("messages"), "{text}");
    // Of more than are computed and may wait, some are refused.
    let mut body = turn("Tell me a long story.", 200);
    body["ignore_eos"] = true.into();
    let calls = (0..5).map(|_| api.post("/v1/chat/completions", &body));
    let answers = futures_util::future::join_all(calls).await;
    let refused = answers.iter().find(|answer| answer.status() == 429).expect("one is refused");
    let (fine, text) = explain(&api, &id_of(refused), &[]);
    assert!(fine && text.contains("refused") && text.contains("queue"), "{text}");
    let (fine, text) = explain(&api, "req_00000000000000000000000000000001", &[]);
    assert!(!fine && text.contains("req_00000000000000000000000000000001"), "{text}");
}
