//! What may change while a group forms: its model on a machine's disk, what an operator wants of the machines, what a
//! deployment says. A machine that is frozen meanwhile keeps the group forming for as long as the change takes.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::Started;

use crate::api::{Api, coordinator, provider, turn};
use crate::deployments::{answers, ask, condition, deploy, eventually, machines, managed, ready, synth};
use crate::groups::await_phase;
use crate::reach::topology;

async fn answer(api: &Api, model: &str) -> String {
    let mut body = turn("x", 12);
    body["model"] = model.into();
    let answer: Value = api.post("/v1/chat/completions", &body).await.json().await.unwrap();
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
}

/// A provider of models that are called as `models` says, from folders of its own.
fn hold(api: &Api, token: &str, name: &str, models: &[(&str, &Path)]) -> Started {
    let named: Vec<String> = models.iter().map(|(name, path)| format!("{name}={}", path.display())).collect();
    let more: Vec<&str> = named.iter().flat_map(|model| ["--model", model.as_str()]).collect();
    provider(&api.url, token, name, &more).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_changes_while_its_group_forms_is_named_and_the_group_stands_once_it_is_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, seed) in [("one", 1), ("two", 1), ("changed", 2)] {
        synth(folder.path(), name, seed);
    }
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let _one = hold(&api, token, "one", &[("m", &at("one"))]);
    let two = hold(&api, token, "two", &[("m", &at("two"))]);
    api.await_eligible(2).await;
    let alone = answer(&api, "m").await;

    two.signal(Signal::STOP);
    let asked = json!({"model": "m", "machines": ["one", "two"], "mode": "tensor"});
    assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    await_phase(&api, "forming", 1).await;
    std::fs::rename(at("two"), at("kept")).unwrap();
    std::fs::rename(at("changed"), at("two")).unwrap();
    two.signal(Signal::CONT);
    let status = api
        .await_status("the change is named", |status| {
            status["groups"][0]["last_fault"].as_str().is_some_and(|fault| !fault.is_empty())
        })
        .await;
    let group = &status["groups"][0];
    let fault = group["last_fault"].as_str().unwrap();
    assert!(fault.starts_with("rank 1: the files of m changed"), "{group:#}");
    assert_ne!(group["phase"], "ready");
    // Each machine serves what it loaded, and nobody hears the other model.
    assert_eq!(answer(&api, "m").await, alone);

    std::fs::rename(at("two"), at("changed")).unwrap();
    std::fs::rename(at("kept"), at("two")).unwrap();
    let stands = await_phase(&api, "ready", 2).await;
    let past = stands["past"].as_array().unwrap();
    assert!(past.iter().all(|life| life["fault"].as_str().unwrap().contains("changed")), "{stands:#}");
    api.await_eligible(1).await;
    assert_eq!(answer(&api, "m").await, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_given_up_while_it_forms_leaves_its_machines_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, seed) in [("m", 1), ("other", 2)] {
        synth(folder.path(), name, seed);
    }
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let (m, other) = (at("m"), at("other"));
    let models = [("m", m.as_path()), ("other", other.as_path())];
    let _one = hold(&api, token, "one", &models);
    let two = hold(&api, token, "two", &models);
    api.await_eligible(4).await;
    let alone = (answer(&api, "m").await, answer(&api, "other").await);

    two.signal(Signal::STOP);
    let asked = |model: &str| json!({"model": model, "machines": ["one", "two"], "mode": "tensor"});
    assert_eq!(api.post("/api/groups", &asked("m")).await.status(), 201);
    let given_up = await_phase(&api, "forming", 1).await;
    let id = given_up["instance"].as_str().unwrap();
    let url = format!("{}/api/groups/{id}", api.url);
    assert_eq!(api.http.delete(url).bearer_auth(&api.key).send().await.unwrap().status(), 200);
    assert_eq!(api.post("/api/groups", &asked("other")).await.status(), 201);
    two.signal(Signal::CONT);
    let stands = await_phase(&api, "ready", 1).await;
    assert_eq!((&stands["model"], &stands["faults"]), (&json!("other"), &json!(0)), "{stands:#}");
    // The group of one model, and both machines alone with the other: nothing of the first is left.
    api.await_eligible(3).await;
    assert_eq!((answer(&api, "m").await, answer(&api, "other").await), alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_whose_model_changes_while_its_group_forms_is_what_was_said_last() {
    let folder = tempfile::tempdir().unwrap();
    for (name, seed) in [("alpha", 1), ("beta", 2)] {
        synth(folder.path(), name, seed);
    }
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let start = |name: &str| managed(&api, token, name, folder.path(), "64MiB").start();
    let (_one, two) = (start("one"), start("two"));
    topology(&api, "a proved link", |now| {
        now["links"].as_array().unwrap().iter().any(|link| link["state"] == "up")
    })
    .await;
    two.signal(Signal::STOP);
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--shape", "tensor 2"]);
    eventually(&api, "a", "its ranks", |now| machines(now).len() == 2).await;
    deploy(&api, &["apply", "--name", "a", "--model", "beta", "--shape", "tensor 2"]);
    two.signal(Signal::CONT);
    let stands = ready(&api, "a").await;
    assert_eq!(machines(&stands), ["one", "two"], "{stands:#}");
    assert_eq!(condition(&stands, "Degraded")["status"], "False", "{stands:#}");
    answers(&api, "beta").await;
    assert_ne!(ask(&api, "alpha").await, 200);
    let groups = api.get("/api/groups").await;
    assert!(groups["groups"].as_array().unwrap().iter().all(|group| group["model"] == "beta"), "{groups:#}");
}
