//! `phalanx models pull` against a hub that cuts connections, serves wrong bytes, refuses, and is slow to answer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "pull/hub.rs"]
mod hub;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::Value;
use testkit::{Program, Started};

use hub::{Hub, Trick};

const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");

/// Some kilobytes that are not all alike.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn repository() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"not wanted".to_vec()),
        ("config.json", br#"{"model_type": "llama"}"#.to_vec()),
        ("tokenizer.json", content(1, 3_000)),
        ("model.safetensors", content(2, 700_000)),
        ("pytorch_model.bin", content(3, 10)),
    ]
}

struct Pulled {
    said: Result<Value, String>,
    folder: tempfile::TempDir,
}

fn pull_into(folder: &Path, hub: &Hub, more: &[&str]) -> Result<Value, String> {
    pull_named("acme/tiny", folder, hub, more)
}

fn pull_named(name: &str, folder: &Path, hub: &Hub, more: &[&str]) -> Result<Value, String> {
    let patience: &[&str] = if more.contains(&"--patience") { &[] } else { &["--patience", "20"] };
    let output = Command::new(PHALANX)
        .args(["models", "pull", name, "--json", "--endpoint", &hub.url, "--dir"])
        .arg(folder)
        .args(patience)
        .args(more)
        .env_remove("HF_TOKEN")
        .env_remove("PHALANX_MODELS_BUDGET")
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn pull(hub: &Hub, more: &[&str]) -> Pulled {
    let folder = tempfile::tempdir().unwrap();
    Pulled { said: pull_into(folder.path(), hub, more), folder }
}

/// That the model lies in `folder` byte for byte, and nothing else does.
fn assert_whole(folder: &Path) {
    let place = folder.join("acme/tiny");
    for (name, bytes) in repository() {
        let wanted = matches!(name, "config.json" | "tokenizer.json" | "model.safetensors");
        assert_eq!(fs::read(place.join(name)).ok(), wanted.then_some(bytes), "{name}");
    }
    assert!(!folder.join(".pulling/acme--tiny").exists(), "nothing is under way");
}

#[test]
fn a_model_is_fetched_whole_once_and_again_only_where_it_changed() {
    let hub = Hub::start(repository(), vec![]);
    let Pulled { said, folder } = pull(&hub, &[]);
    let said = said.unwrap();
    assert_whole(folder.path());
    assert_eq!((said["files"].as_u64(), said["bytes"].as_u64()), (Some(3), Some(703_023)));
    assert_eq!(said["fetched_bytes"], said["bytes"]);
    assert_eq!(said["revision"].as_str().unwrap().len(), 40);
    let asked = hub.asked();
    assert!(asked.iter().all(|line| !line.contains("README") && !line.contains(".bin")), "{asked:?}");

    let again = pull_into(folder.path(), &hub, &[]).unwrap();
    assert_eq!(again["fetched_bytes"], 0);
    assert_eq!(hub.asked().len(), asked.len() + 1, "only the listing was asked for again");

    // Another commit with one file changed takes the place of the first.
    let mut changed = repository();
    changed[3].1 = content(4, 600_000);
    let other = Hub::start(changed.clone(), vec![]);
    let said = pull_into(folder.path(), &other, &[]).unwrap();
    assert_ne!(said["revision"], again["revision"]);
    assert_eq!(fs::read(folder.path().join("acme/tiny/model.safetensors")).unwrap(), changed[3].1);
}

#[test]
fn a_connection_that_is_cut_again_and_again_is_gone_on_with_and_not_begun_anew() {
    let cuts = (1..=5).map(|at| Trick::CutAfter(at * 100_000)).collect();
    let hub = Hub::start(repository(), cuts);
    let Pulled { said, folder } = pull(&hub, &["--parallel", "1"]);
    let said = said.unwrap();
    assert_whole(folder.path());
    assert_eq!(said["fetched_bytes"], said["bytes"], "no byte came twice");
    let ranges: Vec<String> = hub.asked().into_iter().filter(|line| line.contains("bytes=")).collect();
    assert!(ranges.len() >= 5, "{ranges:?}");
}

#[test]
fn an_earlier_time_is_gone_on_with_in_another_process() {
    let tricks = vec![Trick::CutAfter(300_000), Trick::Status(404, "")];
    let hub = Hub::start(repository(), tricks);
    let Pulled { said, folder } = pull(&hub, &["--parallel", "1"]);
    let error = said.unwrap_err();
    assert!(error.contains("what came is kept") && error.contains("model.safetensors"), "{error}");
    assert!(!folder.path().join("acme").exists(), "what is not whole is no model");
    let said = pull_into(folder.path(), &hub, &[]).unwrap();
    assert_whole(folder.path());
    assert!(said["fetched_bytes"].as_u64().unwrap() <= 400_000, "{said}");
}

#[test]
fn wrong_bytes_are_found_and_fetched_anew_and_given_up_where_they_stay_wrong() {
    let hub = Hub::start(repository(), vec![Trick::Damage]);
    let Pulled { said, folder } = pull(&hub, &["--parallel", "1"]);
    assert!(said.unwrap()["fetched_bytes"].as_u64().unwrap() > 1_300_000, "once wrong, once right");
    assert_whole(folder.path());

    let hub = Hub::start(repository(), vec![Trick::Damage; 20]);
    let Pulled { said, folder } = pull(&hub, &[]);
    let error = said.unwrap_err();
    assert!(error.contains("model.safetensors") && error.contains("the hub says"), "{error}");
    assert!(!folder.path().join("acme").exists());

    // Damage on this machine's own disk, between two times: found by the hash, and mended.
    let hub = Hub::start(repository(), vec![Trick::CutAfter(300_000), Trick::Status(404, "")]);
    let Pulled { folder, .. } = pull(&hub, &["--parallel", "1"]);
    let part = folder.path().join(".pulling/acme--tiny/model.safetensors.part");
    let mut bytes = fs::read(&part).unwrap();
    bytes[1000] ^= 1;
    fs::write(&part, bytes).unwrap();
    pull_into(folder.path(), &hub, &[]).unwrap();
    assert_whole(folder.path());
}

#[test]
fn small_files_are_held_to_gits_name_for_them() {
    let hub = Hub::start(repository(), vec![Trick::DamageSmall; 20]);
    let error = pull(&hub, &[]).said.unwrap_err();
    assert!(error.contains("tokenizer.json") && error.contains("the hub says"), "{error}");
}

#[test]
fn answers_that_are_short_long_whole_or_of_another_part_are_dealt_with() {
    for trick in [Trick::Short, Trick::IgnoreRange, Trick::OtherRange] {
        let hub = Hub::start(repository(), vec![Trick::CutAfter(200_000), trick, Trick::CutAfter(500_000)]);
        let Pulled { said, folder } = pull(&hub, &["--parallel", "1"]);
        assert!(said.is_ok(), "{trick:?}: {said:?}");
        assert_whole(folder.path());
    }
    let hub = Hub::start(repository(), vec![Trick::Long; 9]);
    let error = pull(&hub, &[]).said.unwrap_err();
    assert!(error.contains("more than the 700000 bytes"), "{error}");
}

#[test]
fn refusals_say_why_and_what_to_do_and_a_busy_hub_is_asked_again() {
    for (status, words) in [(401, "HF_TOKEN"), (403, "accept the model's terms"), (404, "has none")] {
        let hub = Hub::start(repository(), vec![Trick::Status(status, ""); 3]);
        let error = pull(&hub, &[]).said.unwrap_err();
        assert!(error.contains(words) && error.contains(&status.to_string()), "{status}: {error}");
    }
    let busy = vec![Trick::Status(429, "Retry-After: 1\r\n"), Trick::Status(503, ""), Trick::Drop];
    let hub = Hub::start(repository(), busy);
    let Pulled { said, folder } = pull(&hub, &["--parallel", "1"]);
    assert!(said.is_ok(), "{said:?}");
    assert_whole(folder.path());
    // Given up once nothing new has come for too long, with the cause.
    let hub = Hub::start(repository(), vec![Trick::Status(503, ""); 100]);
    let error = pull(&hub, &["--patience", "1"]).said.unwrap_err();
    assert!(error.contains("503") && error.contains("nothing new came in 1 s"), "{error}");
}

#[test]
fn a_token_goes_to_the_hub_and_not_to_where_its_files_are() {
    let hub = Hub::start(repository(), vec![]).with_files_elsewhere();
    let Pulled { said, folder } = pull(&hub, &["--token", "hf_secret"]);
    assert!(said.is_ok(), "{said:?}");
    assert_whole(folder.path());
    let (to_hub, elsewhere) = (hub.authorised(), hub.authorised_elsewhere());
    assert!(to_hub.iter().all(|token| token.as_deref() == Some("Bearer hf_secret")), "{to_hub:?}");
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(Option::is_none), "{elsewhere:?}");
}

#[test]
fn what_does_not_fit_or_is_no_model_is_refused_before_a_byte() {
    let mut hub = Hub::start(repository(), vec![]);
    hub.claim("model.safetensors", 1 << 43);
    let Pulled { said, .. } = pull(&hub, &[]);
    let error = said.unwrap_err();
    assert!(error.contains("8192.0 GiB") && error.contains("--dir"), "{error}");
    assert_eq!(hub.asked().len(), 1, "only the listing was asked for");

    let hub = Hub::start(vec![("../../evil.json", b"x".to_vec())], vec![]);
    assert!(pull(&hub, &[]).said.unwrap_err().contains("no path inside a folder"));
    let hub = Hub::start(vec![("README.md", b"x".to_vec())], vec![]);
    assert!(pull(&hub, &[]).said.unwrap_err().contains("no weights that Phalanx reads"));
    let nobody = Hub { url: "http://127.0.0.1:1".to_owned(), ..Hub::start(vec![], vec![]) };
    let error = pull(&nobody, &["--patience", "1"]).said.unwrap_err();
    assert!(error.contains("127.0.0.1:1"), "{error}");
}

/// `phalanx models VERB ...` in a folder of models; what it said, or why not.
fn models(folder: &Path, arguments: &[&str]) -> Result<Value, String> {
    let data = folder.with_extension("data");
    let output = Command::new(PHALANX)
        .arg("models")
        .args(arguments)
        .args(["--json", "--dir"])
        .arg(folder)
        .arg("--data")
        .arg(data)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The models that were fetched, by name, and whether each is held.
fn stocked(folder: &Path) -> Vec<(String, bool)> {
    let listed = models(folder, &["list"]).unwrap();
    let all = listed["stocked"].as_array().unwrap().iter();
    let one = |of: &Value| {
        (of["model"].as_str().unwrap().to_owned(), !of["held_by"].as_array().unwrap().is_empty())
    };
    all.map(one).collect()
}

fn free(names: &[&str]) -> Vec<(String, bool)> {
    names.iter().map(|name| ((*name).to_owned(), false)).collect()
}

/// A provider that serves one of the models, and has no coordinator to serve it for.
fn provider_of(folder: &Path, name: &str) -> Started {
    let model = format!("{name}={}", folder.join(name).display());
    let arguments =
        ["provider", "--join", "http://127.0.0.1:1", "--token", "t", "--name", "one", "--model", &model];
    let provider = Program::new(PHALANX, arguments).spawn();
    let deadline = Instant::now() + testkit::program::PATIENCE;
    while !stocked(folder).contains(&(name.to_owned(), true)) {
        assert!(Instant::now() < deadline, "{name} is not held: {}", provider.printed());
    }
    provider
}

#[test]
fn room_is_made_by_the_least_recently_used_and_never_by_what_a_provider_holds() {
    let hub = Hub::start(repository(), vec![]);
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("models");
    // Two have room, a third has not.
    let budget = ["--models-budget", "1500000"];
    let pull = |name: &str| {
        let said = pull_named(name, &folder, &hub, &budget)?;
        Ok::<_, String>(
            said["removed"].as_array().unwrap().iter().map(|of| of["model"].clone()).collect::<Vec<_>>(),
        )
    };
    let used = |name: &str, seconds| {
        let manifest = folder.join(name).join(".phalanx-pull.json");
        let manifest = fs::File::options().write(true).open(manifest).unwrap();
        manifest.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    };
    for (name, seconds) in [("acme/a", 1_000), ("acme/b", 2_000)] {
        assert_eq!(pull(name).unwrap(), [""; 0]);
        used(name, seconds);
    }
    // Somebody's own in the same folder is neither counted nor touched.
    fs::create_dir_all(folder.join("me/own")).unwrap();
    fs::write(folder.join("me/own/model.gguf"), content(9, 2_000_000)).unwrap();
    assert_eq!(pull("acme/c").unwrap(), ["acme/a"]);
    used("acme/c", 3_000);
    assert_eq!(stocked(&folder), free(&["acme/b", "acme/c", "me/own"]));

    // The older one is held: the newer goes.
    let holds_b = provider_of(&folder, "acme/b");
    assert_eq!(pull("acme/a").unwrap(), ["acme/c"]);
    // Both are held: nothing goes, and why is said with figures.
    let holds_a = provider_of(&folder, "acme/a");
    let error = pull("acme/c").unwrap_err();
    for words in ["acme/c takes 686.", "budget of 1.4 MiB", "held by provider one (process", "models budget"]
    {
        assert!(error.contains(words), "{words}: {error}");
    }
    let error = models(&folder, &["remove", "acme/b"]).unwrap_err();
    assert!(error.contains("acme/b stays") && error.contains("provider one"), "{error}");
    assert!(!folder.join(".pulling/acme--c").exists(), "nothing is left of what was not begun");
    // Its end frees it, however it ends.
    drop(holds_b.kill());
    assert_eq!(pull("acme/c").unwrap(), ["acme/b"]);
    drop(holds_a);
    assert_eq!(stocked(&folder), free(&["acme/a", "acme/c", "me/own"]));

    // A budget of the folder's own, and what goes when it is asked for by name.
    let set = models(&folder, &["budget", "1MiB"]).unwrap();
    assert_eq!(
        (set["budget_bytes"].as_u64(), set["taken_bytes"].as_u64() > Some(1 << 20)),
        (Some(1 << 20), true)
    );
    assert_eq!(models(&folder, &["remove", "acme/c"]).unwrap()["model"], "acme/c");
    let said = pull_named("acme/b", &folder, &hub, &[]).unwrap();
    assert_eq!(said["removed"][0]["model"], "acme/a");
    assert!(models(&folder, &["budget", "none"]).unwrap()["budget_bytes"].is_null());
    pull_named("acme/a", &folder, &hub, &[]).unwrap();
    assert_eq!(stocked(&folder), free(&["acme/a", "acme/b", "me/own"]));
    assert_eq!(fs::read(folder.join("me/own/model.gguf")).unwrap().len(), 2_000_000);
}
