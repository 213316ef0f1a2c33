//! Machines that take a model's files from each other, as real processes: placed where the model is not, cut off in the
//! middle, gone on with, refused.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::{Program, Started};

use crate::api::{Api, PHALANX, coordinator, provider, turn};
use crate::deployments::{answers, condition, deploy, eventually, machines, ready, synth};

/// A model of some megabytes, so that its way takes some pieces.
fn synth_pieces(folder: &Path, name: &str) {
    let sizes =
        ["--hidden", "256", "--layers", "6", "--heads", "4", "--kv-heads", "2", "--vocabulary", "512"];
    let made = Command::new(PHALANX)
        .args(["models", "synth", "--context", "512", "--quantisation", "f32", "--seed", "3"])
        .args(sizes)
        .arg("--out")
        .arg(folder.join(name))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A managed machine; `more` may name a folder of models.
fn machine(api: &Api, token: &str, name: &str, more: &[&str]) -> Program {
    let own = ["--managed", "--memory-limit", "256MiB"];
    provider(&api.url, token, name, &[&own[..], more].concat()).variable("HF_HOME", "/nonexistent")
}

/// What a model answers at temperature 0.
async fn answer(api: &Api, model: &str) -> String {
    let mut body = turn("Tell me of links.", 24);
    body["model"] = model.into();
    let answer: Value = api.post("/v1/chat/completions", &body).await.json().await.unwrap();
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
}

fn phase(deployment: &Value) -> (String, u64) {
    let rank = &deployment["instances"][0]["ranks"][0];
    (
        rank["phase"].as_str().unwrap_or_default().to_owned(),
        rank["fetched"]["done_bytes"].as_u64().unwrap_or(0),
    )
}

/// What of a model lies under way in a provider's folder.
fn under_way(started: &Started) -> u64 {
    fn bytes(folder: &Path) -> u64 {
        let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        entries
            .map(|entry| {
                if entry.path().is_dir() {
                    bytes(&entry.path())
                } else {
                    entry.metadata().map_or(0, |m| m.len())
                }
            })
            .sum()
    }
    bytes(&started.folder().join("data/models/.pulling"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_the_model_takes_it_from_another_that_is_killed_in_the_middle_and_answers_the_same()
{
    let folder = tempfile::tempdir().unwrap();
    synth_pieces(folder.path(), "alpha");
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let models = folder.path().display().to_string();
    // So slow that nothing is whole before the kill.
    let slow = ["--models-dir", models.as_str(), "--lend-rate", "512KiB"];
    let holder = machine(&api, token, "holder", &slow).start();
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--wait"]);
    let expected = answer(&api, "alpha").await;
    deploy(&api, &["delete", "a"]);
    let taker = machine(&api, token, "taker", &[]).start();
    deploy(&api, &["apply", "--name", "b", "--model", "alpha", "--pin", "taker"]);
    let b = eventually(&api, "b", "some of it", |now| phase(now).1 >= 1 << 20).await;
    assert_eq!(phase(&b).0, "fetching");
    let said = condition(&b, "Progressing");
    assert_eq!(said["reason"], "Fetching", "{b:#}");
    assert!(
        said["message"].as_str().unwrap().contains("taker takes the model from other machines ("),
        "{said:#}"
    );
    let shown = deploy(&api, &["status", "b"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("fetching "), "{shown:?}");

    // Who takes is killed, too: what it has is gone on with.
    let before = under_way(&taker);
    assert!(before > 0);
    let taker = machine(&api, token, "taker", &[]).in_folder_of(taker.kill()).start();
    let b = eventually(&api, "b", "more of it", |now| phase(now).1 > 0).await;
    // Beside the pieces lie some hundred bytes that say what they are.
    assert!(
        phase(&b).1 + (1 << 16) >= before && under_way(&taker) >= before,
        "it begins anew: {before}, {b:#}"
    );
    let stopped = holder.kill();
    let quick = ["--models-dir", models.as_str()];
    let _holder = machine(&api, token, "holder", &quick).in_folder_of(stopped).start();
    assert_eq!(machines(&ready(&api, "b").await), ["taker"]);
    answers(&api, "alpha").await;
    assert_eq!(answer(&api, "alpha").await, expected);
    let at = taker.folder().join("data/models/alpha");
    for file in std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with('.') {
            let (here, there) =
                (std::fs::read(&file).unwrap(), std::fs::read(folder.path().join("alpha").join(&name)));
            assert!(there.is_ok_and(|there| there == here), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_groups_stand_where_the_model_was_not_and_who_takes_nothing_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    synth(folder.path(), "alpha", 1);
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let models = folder.path().display().to_string();
    let _one = machine(&api, token, "one", &["--models-dir", &models]).start();
    let _two = machine(&api, token, "two", &[]).start();
    let _three = machine(&api, token, "three", &["--no-fetch"]).start();
    // What is foretold is what is done, as soon as links are proved.
    let preview = || {
        let said = deploy(&api, &["preview", "--name", "p", "--model", "alpha", "--replicas", "3", "--json"]);
        serde_json::from_slice::<Value>(&said.stdout).unwrap()
    };
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(20));
    let deadline = std::time::Instant::now() + testkit::program::PATIENCE;
    let foretold = loop {
        pace.tick().await;
        let now = preview();
        let reached = now["placements"].as_array().unwrap().len() == 2
            && now["rejected"].to_string().contains("--no-fetch");
        if reached {
            break now;
        }
        assert!(std::time::Instant::now() < deadline, "{now:#}");
    };
    assert!(foretold["rejected"].to_string().contains("p on three"), "{foretold:#}");
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--replicas", "2", "--wait"]);
    assert_eq!(machines(&ready(&api, "a").await), ["one", "two"]);
    deploy(&api, &["delete", "a"]);
    api.await_status("alpha is gone", |status| !status["machines"].to_string().contains("\"alpha\"")).await;

    // A machine that comes later, and is told at once to be a rank.
    let _four = machine(&api, token, "four", &[]).start();
    let group = [
        "apply", "--name", "g", "--model", "alpha", "--shape", "tensor 2", "--pin", "one", "--pin", "four",
        "--wait",
    ];
    deploy(&api, &group);
    let mut both = machines(&ready(&api, "g").await);
    both.sort();
    assert_eq!(both, ["four", "one"]);
    answers(&api, "alpha").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_while_it_comes_stops_and_leaves_no_model() {
    let folder = tempfile::tempdir().unwrap();
    synth_pieces(folder.path(), "alpha");
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let models = folder.path().display().to_string();
    let slow = ["--models-dir", models.as_str(), "--lend-rate", "512KiB"];
    let _holder = machine(&api, token, "holder", &slow).start();
    let mut taker = machine(&api, token, "taker", &[]).start();
    deploy(&api, &["apply", "--name", "b", "--model", "alpha", "--pin", "taker"]);
    eventually(&api, "b", "some of it", |now| phase(now).1 > 0).await;
    deploy(&api, &["delete", "b"]);
    taker.await_printed("alpha: not taken from other machines any more");
    assert!(!taker.folder().join("data/models/alpha").exists());
    assert!(under_way(&taker) > 0, "what came is kept for the next");
}
