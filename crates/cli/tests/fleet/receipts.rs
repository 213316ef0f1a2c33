//! Receipts, as a customer has them: of an answer from one machine, of one that two machines gave, checked without anybody.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::Program;

use crate::api::{Api, PHALANX, coordinator, provider, turn};

fn receipt(arguments: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new(PHALANX);
    command.arg("receipt").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_used_is_signed_by_both_sides_and_checked_offline_even_after_a_restart() {
    let front = coordinator(&[]);
    let api = Api::of(&front);
    let _one = provider(&api.url, front.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    let price = json!({"model": "phalanx-bundled", "price": {"prompt_micros": 3_000_000, "generated_micros": 5_000_000}});
    let put = api.http.put(format!("{}/api/prices", api.url)).bearer_auth(&api.key).json(&price);
    assert_eq!(put.send().await.unwrap().status(), 200);
    let (status, answer) = api.ask("Hello! Who are you?", 12).await;
    assert_eq!(status, 200, "{answer}");
    let id = answer["id"].as_str().unwrap();
    let client = ["--url", &api.url, "--key", &api.key];
    let (fine, text) = receipt(&[&["show", id], &client[..]].concat(), "");
    assert!(fine, "{text}");
    let shown: Value = serde_json::from_str(&text).unwrap();
    let (prompt, generated) = (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]);
    assert_eq!((&shown["prompt_tokens"], &shown["generated_tokens"]), (prompt, generated));
    let cost = 3 * prompt.as_u64().unwrap() + 5 * generated.as_u64().unwrap();
    assert_eq!(shown["charged_micros"], cost);
    assert!(shown["served"][0]["signature"].is_string(), "{shown}");
    let (fine, key) = receipt(&[&["key"], &client[..]].concat(), "");
    assert!(fine, "{key}");
    let (fine, said) = receipt(&["verify", "-", "--key", key.trim()], &text);
    assert!(fine && said.contains(&format!("signed for {generated} tokens")), "{said}");
    let dearer =
        text.replace(&format!("\"charged_micros\": {cost}"), &format!("\"charged_micros\": {}", cost + 1));
    assert_ne!(dearer, text);
    let (fine, said) = receipt(&["verify", "-", "--key", key.trim()], &dearer);
    assert!(!fine && said.contains("the coordinator's signature"), "{said}");

    // Another account has no business with it, and what is not settled has no receipt.
    let made = api.post("/api/keys", &json!({"name": "other"})).await.json::<Value>().await.unwrap();
    let other = ["--url", &api.url, "--key", made["secret"].as_str().unwrap()];
    let (fine, said) = receipt(&[&["show", id], &other[..]].concat(), "");
    assert!(!fine && said.contains("404"), "{said}");
    let (fine, said) = receipt(&[&["show", "nothing"], &client[..]].concat(), "");
    assert!(!fine && said.contains("404"), "{said}");

    // The same key, and the same receipt, after a crash.
    let restarted = Program::new(PHALANX, ["coordinator", "--listen", "127.0.0.1:0"]);
    let restarted = restarted.in_folder_of(front.kill()).start();
    let client = ["--url", restarted.ready("url"), "--key", &api.key];
    let (_, again) = receipt(&[&["show", id], &client[..]].concat(), "");
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), shown);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_moved_names_both_machines() {
    let front = coordinator(&[]);
    let api = Api::of(&front);
    let mut providers: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|name| Some(provider(&api.url, front.ready("join_token"), name, &[]).start()))
        .collect();
    api.await_eligible(2).await;
    let mut body = turn("Tell me a long story.", 400);
    body["ignore_eos"] = true.into();
    body["stream"] = true.into();
    let answer = api.post("/v1/chat/completions", &body).await;
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    // Headers come with the first token: some machine is at it now.
    let status = api
        .await_status("a machine at work", |status| {
            status["machines"].as_array().unwrap().iter().any(|m| m["instances"][0]["running"] == 1)
        })
        .await;
    let machines = status["machines"].as_array().unwrap();
    let busy = machines.iter().find(|m| m["instances"][0]["running"] == 1).unwrap();
    let which = usize::from(busy["name"] == "two");
    drop(providers[which].take().unwrap().kill());
    assert!(answer.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    let text =
        api.http.get(format!("{}/v1/receipts/{id}", api.url)).bearer_auth(&api.key).send().await.unwrap();
    let text = text.text().await.unwrap();
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["served"].as_array().unwrap().len(), 2, "{shown:#}");
    let (fine, said) = receipt(&["verify", "-"], &text);
    assert!(fine && said.contains("gone before") && said.contains("signed for"), "{said}");
}
