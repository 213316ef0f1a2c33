//! Deployments of real processes: machines of unlike memory, killed, restarted and told otherwise; conditions that are so.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::Value;
use testkit::{Program, Started};

use crate::api::{Api, PHALANX, coordinator, provider, turn};

/// A small model on the disk, called as its folder is.
pub(crate) fn synth(folder: &Path, name: &str, seed: u64) {
    let sizes = ["--hidden", "64", "--layers", "4", "--heads", "4", "--kv-heads", "2", "--vocabulary", "512"];
    let made = Command::new(PHALANX)
        .args(["models", "synth", "--context", "512", "--quantisation", "f32"])
        .args(sizes)
        .args(["--seed", &seed.to_string()])
        .arg("--out")
        .arg(folder.join(name))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

pub(crate) fn managed(api: &Api, token: &str, name: &str, models: &Path, memory: &str) -> Program {
    let models = models.display().to_string();
    let more = ["--managed", "--models-dir", models.as_str(), "--memory-limit", memory];
    provider(&api.url, token, name, &more).variable("HF_HOME", "/nonexistent")
}

/// `phalanx deploy ...`.
pub(crate) fn deploy(api: &Api, arguments: &[&str]) -> Output {
    let done = Command::new(PHALANX)
        .arg("deploy")
        .args(arguments)
        .args(["--url", &api.url, "--key", &api.key])
        .output()
        .unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    done
}

pub(crate) fn condition<'a>(deployment: &'a Value, kind: &str) -> &'a Value {
    let all = deployment["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// Polls a deployment until `done` says so.
pub(crate) async fn eventually(api: &Api, name: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + testkit::program::PATIENCE;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(10));
    loop {
        pace.tick().await;
        let now = api.get(&format!("/api/deployments/{name}")).await;
        if done(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "{name}: {what} did not come: {now:#}");
    }
}

pub(crate) async fn ready(api: &Api, name: &str) -> Value {
    eventually(api, name, "ready", |now| {
        let ready = condition(now, "Ready");
        ready["status"] == "True" && ready["observed_generation"] == now["generation"]
    })
    .await
}

pub(crate) fn machines(deployment: &Value) -> Vec<String> {
    let instances = deployment["instances"].as_array().unwrap().iter();
    let ranks = instances.flat_map(|instance| instance["ranks"].as_array().unwrap());
    let mut names: Vec<String> = ranks.map(|rank| rank["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

pub(crate) async fn ask(api: &Api, model: &str) -> u16 {
    let mut body = turn("x", 8);
    body["model"] = model.into();
    api.post("/v1/chat/completions", &body).await.status().as_u16()
}

/// Waits until a model answers: what is ready is offered for requests a moment later.
pub(crate) async fn answers(api: &Api, model: &str) {
    let deadline = Instant::now() + testkit::program::PATIENCE;
    while ask(api, model).await != 200 {
        assert!(Instant::now() < deadline, "{model} does not answer");
    }
}

/// Somebody who asks one model all the time, until told to end; counts answers and what was none.
pub(crate) struct Asker {
    end: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<u16>>,
}

impl Asker {
    pub(crate) fn of(api: &Api, model: &'static str) -> Self {
        let api = Api { http: api.http.clone(), url: api.url.clone(), key: api.key.clone() };
        let (end, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (Arc::clone(&end), Arc::clone(&answers));
        let task = tokio::spawn(async move {
            let mut failed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match ask(&api, model).await {
                    200 => _ = count.fetch_add(1, Ordering::Relaxed),
                    other => failed.push(other),
                }
            }
            failed
        });
        Self { end, answers, task }
    }

    pub(crate) async fn ended(self) {
        self.end.store(true, Ordering::Relaxed);
        let failed = self.task.await.unwrap();
        let answers = self.answers.load(Ordering::Relaxed);
        assert!(failed.is_empty() && answers > 0, "{answers} answers, and {failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_placed_moved_changed_and_deleted_and_nobody_elses_requests_fail() {
    let folder = tempfile::tempdir().unwrap();
    synth(folder.path(), "alpha", 1);
    synth(folder.path(), "beta", 2);
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let names = ["one", "two", "three", "four"];
    let mut fleet: Vec<Started> =
        names.iter().map(|name| managed(&api, token, name, folder.path(), "64MiB").start()).collect();
    let _tiny = managed(&api, token, "tiny", folder.path(), "1MiB").start();

    // A file with two deployments; saying it again changes nothing.
    let file = folder.path().join("deployments.yaml");
    std::fs::write(&file, "name: a\nmodel: alpha\nreplicas: 2\n---\nname: b\nmodel: beta\n").unwrap();
    let file = file.display().to_string();
    let preview = deploy(&api, &["preview", "--name", "p", "--model", "alpha", "--json"]);
    let preview: Value = serde_json::from_slice(&preview.stdout).unwrap();
    let rejected = preview["rejected"].to_string();
    assert!(rejected.contains("p on tiny") && rejected.contains("head-room"), "{preview:#}");
    deploy(&api, &["apply", "-f", &file, "--wait"]);
    let again = deploy(&api, &["apply", "-f", &file]);
    assert_eq!(String::from_utf8_lossy(&again.stdout).matches("unchanged").count(), 2);
    answers(&api, "alpha").await;
    answers(&api, "beta").await;
    let beta = Asker::of(&api, "beta");

    // Lost: the free machine takes its place; started again, it is free.
    let a = ready(&api, "a").await;
    assert!(!machines(&a).contains(&"tiny".to_owned()));
    let lost = machines(&a)[0].clone();
    let at = names.iter().position(|name| *name == lost).unwrap();
    let killed = Instant::now();
    let stopped = fleet.remove(at).kill();
    eventually(&api, "a", "another machine", |now| {
        machines(now).len() == 2 && !machines(now).contains(&lost)
    })
    .await;
    println!("placed again {:?} after the kill", killed.elapsed());
    ready(&api, "a").await;
    answers(&api, "alpha").await;
    fleet.insert(at, managed(&api, token, &lost, folder.path(), "64MiB").in_folder_of(stopped).start());
    let why = Command::new(PHALANX).args(["why", &lost, "--url", &api.url, "--key", &api.key]).output();
    let why = String::from_utf8(why.unwrap().stdout).unwrap();
    assert!(why.contains("managed") && why.contains("a: not here"), "{why}");

    // Other terms, one machine after the other; then fewer; then none.
    let alpha = Asker::of(&api, "alpha");
    deploy(
        &api,
        &["apply", "--name", "a", "--model", "alpha", "--replicas", "2", "--context", "256", "--wait"],
    );
    alpha.ended().await;
    deploy(&api, &["scale", "a", "1"]);
    eventually(&api, "a", "one instance", |now| machines(now).len() == 1).await;
    deploy(&api, &["delete", "a"]);
    api.await_status("alpha is gone", |status| !status["machines"].to_string().contains("\"alpha\"")).await;
    assert_ne!(ask(&api, "alpha").await, 200);
    let history = deploy(&api, &["history", "a"]);
    let history = String::from_utf8(history.stdout).unwrap();
    for word in ["was placed on", "is not connected any more", "was told the new spec", "it was deleted"] {
        assert!(history.contains(word), "{word:?} is not in {history}");
    }
    beta.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_killed_and_started_takes_on_what_runs_and_nothing_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    synth(folder.path(), "alpha", 1);
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token").to_owned();
    let one = managed(&api, &token, "one", folder.path(), "64MiB").start();
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--wait"]);
    let before = ready(&api, "a").await;
    let stopped = coordinator.kill();
    let address = api.url.trim_start_matches("http://").to_owned();
    let killed = Instant::now();
    let _coordinator =
        Program::new(PHALANX, ["coordinator", "--listen", &address]).in_folder_of(stopped).start();
    while ask(&api, "alpha").await != 200 {
        assert!(killed.elapsed() < testkit::program::PATIENCE, "it does not serve again");
    }
    println!("serving again {:?} after the kill", killed.elapsed());
    let after = ready(&api, "a").await;
    let id = |now: &Value| (now["instances"][0]["instance"].clone(), now["instances"][0]["epoch"].clone());
    assert_eq!(id(&before), id(&after));
    assert_eq!(one.printed().matches("ready after").count(), 1, "{}", one.printed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_load_is_said_with_machine_and_error_and_a_lost_pin_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    synth(folder.path(), "alpha", 1);
    synth(folder.path(), "broken", 2);
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let one = managed(&api, token, "one", folder.path(), "64MiB").start();
    let _two = managed(&api, token, "two", folder.path(), "64MiB").start();
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--pin", "one", "--wait"]);
    answers(&api, "alpha").await;
    let alpha = Asker::of(&api, "alpha");
    // Seen on the disk, and gone when it is to be read.
    let weights = std::fs::read_dir(folder.path().join("broken")).unwrap().map(|entry| entry.unwrap().path());
    for weights in weights.filter(|path| path.extension().is_some_and(|of| of == "safetensors")) {
        std::fs::remove_file(weights).unwrap();
    }
    deploy(&api, &["apply", "--name", "b", "--model", "broken"]);
    let b = eventually(&api, "b", "a reason", |now| {
        condition(now, "Degraded")["message"].as_str().is_some_and(|said| said.contains("two:"))
            || condition(now, "Placed")["message"].as_str().is_some_and(|said| said.contains("two:"))
    })
    .await;
    assert_eq!(condition(&b, "Ready")["status"], "False", "{b:#}");
    deploy(&api, &["delete", "b"]);
    alpha.ended().await;

    let stopped = one.kill();
    let a = eventually(&api, "a", "waiting", |now| condition(now, "Placed")["reason"] == "Waiting").await;
    assert_eq!(condition(&a, "Placed")["message"], "waiting for machine one");
    assert_eq!(condition(&a, "Ready")["status"], "False");
    let _one = managed(&api, token, "one", folder.path(), "64MiB").in_folder_of(stopped).start();
    assert_eq!(machines(&ready(&api, "a").await), ["one"]);
    answers(&api, "alpha").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_hold_one_model_together_lose_one_and_stand_again() {
    let folder = tempfile::tempdir().unwrap();
    synth(folder.path(), "alpha", 1);
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let mut fleet: Vec<Started> = ["one", "two", "three"]
        .iter()
        .map(|name| managed(&api, token, name, folder.path(), "64MiB").start())
        .collect();
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--shape", "tensor 2", "--wait"]);
    let a = ready(&api, "a").await;
    let ranks = a["instances"][0]["ranks"].as_array().unwrap();
    assert_eq!((ranks.len(), &ranks[0]["layers"]), (2, &ranks[1]["layers"]));
    answers(&api, "alpha").await;
    let lost = ranks[1]["name"].as_str().unwrap().to_owned();
    let at = ["one", "two", "three"].iter().position(|name| *name == lost).unwrap();
    let _stopped = fleet.remove(at).kill();
    eventually(&api, "a", "other machines", |now| {
        machines(now).len() == 2
            && !machines(now).contains(&lost)
            && condition(now, "Ready")["status"] == "True"
    })
    .await;
    answers(&api, "alpha").await;
    deploy(&api, &["delete", "a"]);
    api.await_status("alpha is gone", |status| !status["machines"].to_string().contains("\"alpha\"")).await;
}

/// A model that takes some milliseconds for a token.
fn synth_slow(folder: &Path, name: &str) {
    let sizes =
        ["--hidden", "512", "--layers", "8", "--heads", "8", "--kv-heads", "2", "--vocabulary", "512"];
    let made = Command::new(PHALANX)
        .args(["models", "synth", "--context", "4096", "--quantisation", "f32", "--seed", "9"])
        .args(sizes)
        .arg("--out")
        .arg(folder.join(name))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A streamed answer that goes on for `tokens`, begun.
async fn stream(api: &Api, model: &str, tokens: u32) -> reqwest::Response {
    let mut body = turn("go on", tokens);
    body["model"] = model.into();
    body["stream"] = true.into();
    // No token ends it early.
    body["ignore_eos"] = true.into();
    let answer = api.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status(), 200);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_its_machine_may_go_on_goes_on_elsewhere_and_nothing_of_it_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    synth_slow(folder.path(), "slow");
    let coordinator = coordinator(&["--set", "deployments.drain_us=0"]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let _fleet = ["one", "two"].map(|name| managed(&api, token, name, folder.path(), "512MiB").start());
    let apply = ["apply", "--name", "s", "--model", "slow", "--context", "2048", "--max-batch", "1"];
    deploy(&api, &[&apply[..], &["--replicas", "2", "--wait"]].concat());
    let (undisturbed, _) = crate::api::events(stream(&api, "slow", 400).await).await;
    let undisturbed = crate::api::text_of(&undisturbed);
    // One on each machine; one of these is to go, and waits for nobody.
    let both = [stream(&api, "slow", 400).await, stream(&api, "slow", 400).await];
    deploy(&api, &["scale", "s", "1"]);
    for answer in both {
        let (events, done) = crate::api::events(answer).await;
        assert!(done && !events.iter().any(|event| event.get("error").is_some()), "{:?}", events.last());
        assert_eq!(crate::api::text_of(&events), undisturbed);
    }
    let metrics = api.http.get(format!("{}/metrics", api.url)).bearer_auth(&api.key).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("phalanx_attempts_total{kind=\"moved\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_finished_before_its_machine_unloads_and_ends_with_an_error_where_it_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    synth_slow(folder.path(), "slow");
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let _fleet = ["one", "two"].map(|name| managed(&api, token, name, folder.path(), "512MiB").start());
    let apply = ["apply", "--name", "s", "--model", "slow", "--context", "2048", "--max-batch", "2"];
    deploy(&api, &[&apply[..], &["--replicas", "2", "--wait"]].concat());
    answers(&api, "slow").await;
    // One on each machine; one of these is to go.
    let both = [stream(&api, "slow", 150).await, stream(&api, "slow", 150).await];
    deploy(&api, &["scale", "s", "1"]);
    for answer in both {
        let (events, done) = crate::api::events(answer).await;
        assert!(done && !events.iter().any(|event| event.get("error").is_some()), "{:?}", events.last());
    }
    eventually(&api, "s", "one instance", |now| machines(now).len() == 1).await;
    // Deleted: whoever listens is told, and nothing is left.
    let cut = stream(&api, "slow", 2_000).await;
    deploy(&api, &["delete", "s"]);
    let (events, done) = crate::api::events(cut).await;
    assert!(!done && events.last().is_some_and(|event| event.get("error").is_some()), "{:?}", events.last());
    api.await_status("slow is gone", |status| !status["machines"].to_string().contains("\"slow\"")).await;
}
