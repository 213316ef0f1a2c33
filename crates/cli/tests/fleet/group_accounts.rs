//! What a group says of itself: where each rank's time goes, how it came to stand, why lives ended; and that a client who
//! leaves stops the computation on every rank.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::api::{Api, PHALANX, coordinator, provider, turn};
use crate::groups::{await_phase, group};

/// Ranks say once a second what they did: waits until both have told of the same steps, at least so many, and of no other for
/// longer than that.
async fn steps(api: &Api, least: u64) -> u64 {
    let both = |group: &Value| {
        let ranks = group["ranks"].as_array().unwrap();
        let mut steps = ranks.iter().map(|rank| rank["telemetry"]["steps"].as_u64().unwrap_or(0));
        let first = steps.next().unwrap();
        steps.all(|other| other == first).then_some(first)
    };
    let seen = std::cell::Cell::new((None, Instant::now()));
    let status = api
        .await_status("both ranks' accounts", |status| {
            let idle = status["models"][0]["running"] == 0;
            let now = both(&status["groups"][0]).filter(|steps| idle && *steps >= least);
            if now != seen.get().0 {
                seen.set((now, Instant::now()));
            }
            now.is_some() && seen.get().1.elapsed() > Duration::from_millis(2_500)
        })
        .await;
    both(&status["groups"][0]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_every_rank_and_each_accounts_for_its_time() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let _one = provider(&api.url, token, "one", &[]).start();
    let two = provider(&api.url, token, "two", &[]).start();
    api.await_eligible(2).await;
    let asked = json!({"model": "phalanx-bundled", "machines": ["one", "two"], "mode": "tensor"});
    assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    await_phase(&api, "ready", 1).await;
    api.await_eligible(1).await;

    // Loading and the self-test took steps too: what comes is counted from here.
    let before = steps(&api, 1).await;
    let (status, _) = api.ask("What is Phalanx?", 8).await;
    assert_eq!(status, 200);
    let short = steps(&api, before + 8).await - before;
    assert!((8..40).contains(&short), "an answer of 8 tokens took {short} steps");

    // An answer that would take 1,200 steps, left after a few.
    let mut body = turn("Tell me a short story about a fox.", 1_200);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    let before = before + short;
    let mut stream = api.post("/v1/chat/completions", &body).await;
    assert_eq!(stream.status(), 200);
    let mut seen = 0;
    while seen < 5 {
        let part = stream.chunk().await.unwrap().expect("the answer is longer");
        seen += part.windows(6).filter(|window| window == b"data: ").count();
    }
    drop(stream);
    let left = steps(&api, before + 1).await - before;
    assert!(left < 600, "{left} steps of an answer whose client left after a few");
    // What runs now runs alone: nothing of the other goes on beside it or after it.
    assert_eq!(api.ask("What is Phalanx?", 8).await.0, 200);
    let after = steps(&api, before + left + 8).await - before - left;
    assert!((8..40).contains(&after), "an answer of 8 tokens took {after} steps after the one that was left");

    let stands = group(&api).await;
    assert!(stands["since_us"].as_u64() > Some(0) && stands["faults"] == 0, "{stands:#}");
    for (rank, status) in stands["ranks"].as_array().unwrap().iter().enumerate() {
        let account = &status["telemetry"];
        for what in
            ["steps", "tokens", "compute_us", "seal_us", "wire_us", "wait_us", "bytes_sent", "messages_sent"]
        {
            assert!(account[what].as_u64() > Some(0), "{what} of rank {rank}: {account:#}");
        }
        assert_eq!(account["malformed"], 0);
        assert_eq!(status["standing"]["mode"], "tensor");
        // Who is above dials who is below.
        let dialled = status["standing"]["dialled"].as_array().map_or(0, Vec::len);
        assert_eq!(dialled, rank, "{status:#}");
    }
    two.signal(Signal::KILL);
    let status =
        api.await_status("the loss", |status| status["groups"][0]["past"][0]["fault"].is_string()).await;
    let past = &status["groups"][0]["past"][0];
    assert!(past["fault"].as_str().unwrap().starts_with("rank 1:"), "{past:#}");
    assert_eq!((&past["phase"], &past["epoch"]), (&json!("ready"), &json!(1)), "{past:#}");
    assert!(past["lasted_us"].as_u64() > Some(0), "{past:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_says_what_it_chose_and_why_not_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = ["--hidden", "64", "--layers", "4", "--heads", "2", "--kv-heads", "1", "--vocabulary", "512"];
    let made = std::process::Command::new(PHALANX)
        .args(["models", "synth", "--context", "512", "--quantisation", "f32"])
        .args(sizes)
        .arg("--out")
        .arg(folder.path().join("m"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let model = format!("m={}", folder.path().join("m").display());
    let names = ["one", "two", "three"];
    let start = |name: &&str| provider(&api.url, token, name, &["--model", model.as_str()]).spawn();
    let _machines: Vec<_> = names.iter().map(start).collect();
    api.await_eligible(3).await;
    // Two heads are divided over two ranks, and over no more.
    for (ranks, mode) in [(2, "tensor"), (3, "pipeline")] {
        let asked = json!({"model": "m", "machines": names[..ranks]});
        assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
        let stands = await_phase(&api, "ready", 1).await;
        let standing = &stands["ranks"][0]["standing"];
        assert_eq!(standing["mode"], mode, "{stands:#}");
        let why = standing["fallback"].as_str().unwrap_or_default();
        assert_eq!(why.contains("at most"), mode == "pipeline", "{stands:#}");
        let shown = std::process::Command::new(PHALANX)
            .args(["status", "--url", &api.url, "--key", &api.key])
            .output()
            .unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&format!("auto: {mode}")), "{shown}");
        let url = format!("{}/api/groups/{}", api.url, stands["instance"].as_str().unwrap());
        assert_eq!(api.http.delete(url).bearer_auth(&api.key).send().await.unwrap().status(), 200);
    }
}
