//! Groups of real processes: providers that compute one model together, lose a rank, and come to stand again.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::api::{Api, PHALANX, coordinator, provider, turn};

pub(crate) async fn group(api: &Api) -> Value {
    let list: Value = api.get("/api/groups").await;
    list["groups"][0].clone()
}

pub(crate) async fn await_phase(api: &Api, phase: &str, life: u64) -> Value {
    let deadline = std::time::Instant::now() + testkit::program::PATIENCE;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(20));
    loop {
        pace.tick().await;
        let group = group(api).await;
        if group["phase"] == phase && group["epoch"].as_u64().unwrap_or(0) >= life {
            return group;
        }
        assert!(std::time::Instant::now() < deadline, "not {phase} in life {life}: {group:#}");
    }
}

async fn answer(api: &Api) -> String {
    let mut body = turn("Tell me a short story about a fox.", 48);
    body["temperature"] = 0.into();
    let answer: Value = api.post("/v1/chat/completions", &body).await.json().await.unwrap();
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_answers_as_one_machine_does_and_stands_again_after_each_rank_was_killed() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let mut providers =
        vec![provider(&api.url, token, "one", &[]).start(), provider(&api.url, token, "two", &[]).start()];
    api.await_eligible(2).await;
    let alone = answer(&api).await;

    let asked = json!({"model": "phalanx-bundled", "machines": ["one", "two"], "mode": "tensor"});
    let made = api.post("/api/groups", &asked).await;
    assert_eq!(made.status(), 201);
    let stands = await_phase(&api, "ready", 1).await;
    assert_eq!(stands["ranks"].as_array().unwrap().len(), 2);
    // Both machines' own instances stand aside: the group alone takes requests, and only through rank 0.
    api.await_eligible(1).await;
    assert_eq!(answer(&api).await, alone, "two ranks choose what one machine does");

    for (rank, name) in [(1usize, "two"), (0, "one")] {
        let life = group(&api).await["epoch"].as_u64().unwrap();
        let stopped = providers.remove(rank).kill();
        // Whether the group is down or the next one stands: the service goes on.
        assert_eq!(answer(&api).await, alone);
        providers.insert(rank, provider(&api.url, token, name, &[]).in_folder_of(stopped).start());
        let stands = await_phase(&api, "ready", life + 1).await;
        assert!(stands["last_fault"].as_str().unwrap().contains(&format!("rank {rank}")), "{stands:#}");
        assert_eq!(answer(&api).await, alone);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_hold_a_model_only_together_serve_it_and_nothing_does_while_they_are_apart() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let alone = provider(&api.url, token, "alone", &[]).start();
    api.await_eligible(1).await;
    let expected = answer(&api).await;
    drop(alone);
    let part = ["--only-in-groups"];
    let _parts =
        [provider(&api.url, token, "one", &part).start(), provider(&api.url, token, "two", &part).start()];
    let asked = json!({"model": "phalanx-bundled", "machines": ["one", "two"], "mode": "tensor"});
    let deadline = std::time::Instant::now() + testkit::program::PATIENCE;
    while api.post("/api/groups", &asked).await.status() != 201 {
        assert!(std::time::Instant::now() < deadline, "the machines do not come");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    await_phase(&api, "ready", 1).await;
    assert_eq!(answer(&api).await, expected, "two parts choose what one whole does");
    let status: Value = api.get("/api/status").await;
    let held = status.to_string();
    assert!(held.contains("in_groups") && held.contains("only together with others"), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_rank_is_named_and_the_service_goes_on() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let _one = provider(&api.url, token, "one", &[]).start();
    let two = provider(&api.url, token, "two", &[]).start();
    api.await_eligible(2).await;
    let alone = answer(&api).await;
    let asked = json!({"model": "phalanx-bundled", "machines": ["one", "two"], "mode": "tensor", "patience_ms": 1500});
    assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    await_phase(&api, "ready", 1).await;
    two.signal(Signal::STOP);
    assert_eq!(answer(&api).await, alone);
    let fault = group(&api).await["last_fault"].as_str().unwrap().to_owned();
    assert!(fault.contains("rank 1"), "{fault}");
    two.signal(Signal::CONT);
    await_phase(&api, "ready", 2).await;
    assert_eq!(answer(&api).await, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_group_is_refused_with_the_reason() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let _one = provider(&api.url, token, "one", &[]).start();
    api.await_eligible(1).await;
    let wrong = [
        (json!({"model": "m", "machines": ["one"]}), "2 to 64 machines"),
        (json!({"model": "m", "machines": ["one", "one"]}), "named twice"),
        (json!({"model": "m", "machines": ["one", "nobody"]}), "no machine"),
        (json!({"model": "m", "machines": ["one", "two"], "mode": "magic"}), "none of tensor"),
        (json!({"model": "m", "machines": ["one", "two"], "mode": "2x2"}), "is for 4 machines"),
        (json!({"model": "m", "machines": ["one", "two"], "dtype": "int4"}), "none of f32"),
        (json!({"model": "m", "machines": ["one", "two"], "speed": 3}), "unknown field"),
    ];
    for (body, reason) in wrong {
        let refused = api.post("/api/groups", &body).await;
        assert_eq!(refused.status(), 400);
        let refused: Value = refused.json().await.unwrap();
        assert!(refused["error"]["message"].as_str().unwrap().contains(reason), "{refused:#}");
    }
}

fn synth(folder: &std::path::Path, name: &str, seed: u64) -> String {
    let out = folder.join(format!("{name}-{seed}"));
    let made = std::process::Command::new(PHALANX)
        .args(["models", "synth", "--hidden", "64", "--layers", "4", "--heads", "4", "--kv-heads", "2"])
        .args([
            "--vocabulary",
            "512",
            "--context",
            "512",
            "--quantisation",
            "f32",
            "--seed",
            &seed.to_string(),
        ])
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    format!("{name}={}", out.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_groups_on_the_same_machines_are_two_and_lose_a_rank_together() {
    let folder = tempfile::tempdir().unwrap();
    let other = synth(folder.path(), "other", 1);
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let models = ["--model", "bundled", "--model", other.as_str()];
    let _one = provider(&api.url, token, "one", &models).start();
    let two = provider(&api.url, token, "two", &models).start();
    api.await_eligible(4).await;
    let alone = answer(&api).await;
    let ask_other = || async {
        let mut body = turn("x", 12);
        body["model"] = "other".into();
        let answer: Value = api.post("/v1/chat/completions", &body).await.json().await.unwrap();
        answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
    };
    let other_alone = ask_other().await;
    for (model, mode) in [("phalanx-bundled", "tensor"), ("other", "pipeline")] {
        let asked = json!({"model": model, "machines": ["one", "two"], "mode": mode, "patience_ms": 1500});
        assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    }
    let all_stand = |status: &Value| {
        let groups = status["groups"].as_array().unwrap();
        groups.len() == 2 && groups.iter().all(|group| group["phase"] == "ready")
    };
    api.await_status("both groups", all_stand).await;
    api.await_eligible(2).await;
    assert_eq!((answer(&api).await, ask_other().await), (alone.clone(), other_alone.clone()));
    let stopped = two.kill();
    assert_eq!((answer(&api).await, ask_other().await), (alone.clone(), other_alone.clone()));
    let _two = provider(&api.url, token, "two", &models).in_folder_of(stopped).start();
    let status = api.await_status("both groups again", all_stand).await;
    for group in status["groups"].as_array().unwrap() {
        assert!(group["last_fault"].as_str().unwrap().starts_with("rank 1:"), "{group:#}");
    }
    // Every rank accounts for itself.
    let metrics = api.http.get(format!("{}/metrics", api.url)).bearer_auth(&api.key).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for what in ["compute", "seal", "wire", "wait"] {
        for rank in ["0", "1"] {
            let line = |line: &str| {
                line.contains("group_rank")
                    && line.contains(what)
                    && line.contains(&format!("rank=\"{rank}\""))
            };
            assert!(metrics.lines().any(line), "{what} of rank {rank} is missing:\n{metrics}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_hold_different_weights_under_one_name_make_no_group() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let hold = |name: &str, seed| {
        let model = synth(folder.path(), "m", seed);
        provider(&api.url, token, name, &["--model", model.as_str()]).start()
    };
    let _machines = [hold("one", 1), hold("two", 2)];
    api.await_status("both machines", |status| {
        status["machines"].as_array().unwrap().iter().filter(|m| m["instances"][0].is_object()).count() == 2
    })
    .await;
    let asked = json!({"model": "m", "machines": ["one", "two"], "mode": "tensor"});
    assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    let status = api
        .await_status("a refusal", |status| {
            status["groups"][0]["last_fault"].as_str().is_some_and(|f| !f.is_empty())
        })
        .await;
    let group = &status["groups"][0];
    assert!(group["last_fault"].as_str().unwrap().contains("model differs"), "{group:#}");
    assert_ne!(group["phase"], "ready");
    // And it is removed for good.
    let id = group["instance"].as_str().unwrap();
    let removed =
        api.http.delete(format!("{}/api/groups/{id}", api.url)).bearer_auth(&api.key).send().await.unwrap();
    assert_eq!(removed.status(), 200);
    let status = api.get("/api/status").await;
    assert!(status["groups"].as_array().is_none_or(Vec::is_empty), "{status:#}");
}
