//! Machines that come and go while many answers are in the making: each answer is what it would have been without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base::Rng;
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{Started, program::Stopped};

use crate::api::{Api, coordinator, events, provider};

const MACHINES: usize = 3;
const CALLERS: u64 = 8;
const FAULTS: u64 = 8;
const SEED: u64 = 20_261_121;

/// Requests of many kinds. Hot ones make bytes that are no characters, so that text is held back when a machine goes.
fn requests() -> Vec<Value> {
    let ask = |text: &str, more: Value| {
        let mut body = json!({
            "model": "phalanx-bundled",
            "messages": [{"role": "user", "content": text}],
            "logprobs": false,
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    vec![
        ask("Tell me a story.", json!({"temperature": 0, "max_tokens": 400, "ignore_eos": true})),
        ask(
            "写一个关于狐狸的故事 🦊",
            json!({"temperature": 2, "seed": 7, "max_tokens": 300, "ignore_eos": true}),
        ),
        ask(
            "Что такое Фаланкс?",
            json!({"temperature": 1, "seed": 8, "max_tokens": 300, "stop": [" a", ". The"]}),
        ),
        ask(
            "What is Phalanx?",
            json!({"temperature": 0.7, "seed": 9, "max_tokens": 200, "top_p": 0.9,
            "logprobs": true, "top_logprobs": 2, "ignore_eos": true}),
        ),
        ask(
            "🦊🐻🐼🐨 repeat",
            json!({"temperature": 1.5, "seed": 10, "max_tokens": 250, "frequency_penalty": 0.7,
            "presence_penalty": 0.4, "ignore_eos": true}),
        ),
        ask("Hello!", json!({"temperature": 0, "max_tokens": 1})),
    ]
}

/// What of an answer must not depend on the machines that made it.
#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    logprobs: Vec<Value>,
    reason: String,
    usage: [u64; 2],
}

impl Answer {
    /// Of choices in their order, whole or in pieces.
    fn of<'a>(choices: impl Iterator<Item = &'a Value>, usage: &Value) -> Self {
        let (mut text, mut logprobs, mut reasons) = (String::new(), Vec::new(), Vec::new());
        for choice in choices {
            let part = choice["message"]["content"].as_str().or(choice["delta"]["content"].as_str());
            text.push_str(part.unwrap_or_default());
            logprobs.extend(choice["logprobs"]["content"].as_array().into_iter().flatten().cloned());
            reasons.extend(choice["finish_reason"].as_str());
        }
        let usage = ["prompt_tokens", "completion_tokens"].map(|name| usage[name].as_u64().unwrap());
        Self { text, logprobs, reason: reasons.join(","), usage }
    }
}

async fn whole(api: &Api, body: &Value) -> Answer {
    let response = api.post("/v1/chat/completions", body).await;
    let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
    assert_eq!(status, 200, "{answer:#}");
    Answer::of(answer["choices"].as_array().unwrap().iter(), &answer["usage"])
}

async fn streamed(api: &Api, body: &Value) -> Answer {
    let mut body = body.clone();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let response = api.post("/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200);
    let (events, done) = events(response).await;
    assert!(done && events.iter().all(|event| event["error"].is_null()), "{:#}", events.last().unwrap());
    let choices = events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
    Answer::of(choices, &events.last().unwrap()["usage"])
}

/// Asks, now whole, now streamed, now leaving in the middle, until it is over.
async fn call(api: Api, undisturbed: Arc<Vec<(Value, Answer)>>, mut rng: Rng, over: Arc<AtomicBool>) -> u32 {
    let mut answered = 0;
    while !over.load(Ordering::Relaxed) {
        let (body, expected) = &undisturbed[rng.below(undisturbed.len() as u64) as usize];
        let got = match rng.below(5) {
            0 => {
                let mut body = body.clone();
                body["stream"] = true.into();
                let mut leaving = api.post("/v1/chat/completions", &body).await;
                leaving.chunk().await.unwrap();
                continue;
            }
            1 | 2 => whole(&api, body).await,
            _ => streamed(&api, body).await,
        };
        assert_eq!(got, *expected, "{body:#}");
        answered += 1;
    }
    answered
}

/// Kills, freezes or stops one machine; it is back in the end.
async fn harm(machine: Started, kind: u64, api: &Api, token: &str, name: &str) -> Started {
    let restart = |stopped: Stopped| provider(&api.url, token, name, &[]).in_folder_of(stopped).spawn();
    match kind {
        0 => tokio::task::spawn_blocking(|| machine.kill()).await.map(restart).unwrap(),
        1 => {
            machine.signal(Signal::STOP);
            api.await_eligible(MACHINES as u64 - 1).await;
            machine.signal(Signal::CONT);
            machine
        }
        _ => {
            let stopped = tokio::task::spawn_blocking(|| machine.stop()).await.unwrap();
            assert!(stopped.status.success(), "{}", stopped.printed);
            restart(stopped)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_come_and_go_change_no_answer_and_leave_nothing_behind() {
    let settings = ["uplink.heartbeat_us=300000", "uplink.silence_us_max=1500000", "pool.attempts_max=64"];
    let coordinator = coordinator(&settings.map(|setting| ["--set", setting]).concat());
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token").to_owned();
    let names = ["one", "two", "three"];
    let mut machines: Vec<_> =
        names.iter().map(|name| Some(provider(&api.url, &token, name, &[]).start())).collect();
    api.await_eligible(MACHINES as u64).await;
    let mut undisturbed = Vec::new();
    for body in requests() {
        let answer = whole(&api, &body).await;
        undisturbed.push((body, answer));
    }

    let (undisturbed, over) = (Arc::new(undisturbed), Arc::new(AtomicBool::new(false)));
    let mut rng = Rng::new(SEED);
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (undisturbed, over) = (Arc::clone(&undisturbed), Arc::clone(&over));
            tokio::spawn(call(Api::of(&coordinator), undisturbed, rng.fork(caller), over))
        })
        .collect();
    for fault in 0..FAULTS {
        let victim = rng.below(MACHINES as u64) as usize;
        let machine = machines[victim].take().unwrap();
        machines[victim] = Some(harm(machine, fault % 3, &api, &token, names[victim]).await);
        api.await_eligible(MACHINES as u64).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.unwrap();
    }
    assert!(answered > 0);

    // Everything is free again, and every request ended once.
    let idle = |instance: &Value| {
        let kv = &instance["kv_tokens"];
        instance["running"] == 0 && kv[0] == kv[1]
    };
    api.await_status("an idle fleet", |status| {
        let machines = status["machines"].as_array().unwrap().iter();
        machines.flat_map(|m| m["instances"].as_array().unwrap()).all(idle)
    })
    .await;
    let metrics = api.http.get(format!("{}/metrics", api.url)).bearer_auth(&api.key).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("phalanx_requests_running 0"), "{metrics}");
    assert!(!metrics.contains("outcome=\"failed\""), "{metrics}");
    assert!(metrics.contains("kind=\"lost\""), "the faults hit something:\n{metrics}");
}
