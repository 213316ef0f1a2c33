//! What a deployment has assigned stays on its machine's disk, and may go once it is taken back.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::{Value, json};

use crate::api::{Api, PHALANX, coordinator};
use crate::deployments::{deploy, managed, synth};

/// As if `phalanx models pull` had fetched what is in the folder of a model.
fn as_fetched(models: &Path, name: &str) {
    std::fs::create_dir_all(models.join(".pulling")).unwrap();
    let files = std::fs::read_dir(models.join(name)).unwrap().map(|entry| {
        let entry = entry.unwrap();
        json!({"path": entry.file_name().to_str().unwrap(), "size": entry.metadata().unwrap().len()})
    });
    let manifest = json!({"revision": "0", "files": files.collect::<Vec<_>>()});
    std::fs::write(models.join(name).join(".phalanx-pull.json"), manifest.to_string()).unwrap();
}

fn remove(models: &Path, name: &str) -> Output {
    Command::new(PHALANX).args(["models", "remove", name, "--dir"]).arg(models).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_assigned_stays_on_the_disk_until_it_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir_all(models.join("acme")).unwrap();
    for (name, seed) in [("acme/alpha", 1), ("acme/beta", 2)] {
        synth(&models, name, seed);
        as_fetched(&models, name);
    }
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let machine = managed(&api, coordinator.ready("join_token"), "one", &models, "64MiB").start();
    deploy(&api, &["apply", "--name", "a", "--model", "acme/alpha", "--wait"]);
    let refused = remove(&models, "acme/alpha");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("held by provider one"), "{said}");
    assert!(models.join("acme/alpha/model.safetensors").is_file());
    // The other is only on the disk.
    assert!(remove(&models, "acme/beta").status.success());
    assert!(!models.join("acme/beta").exists());
    let listed = Command::new(PHALANX)
        .args(["models", "list", "--json", "--url", &api.url, "--key", &api.key, "--dir"])
        .arg(&models)
        .output()
        .unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["stocked"].as_array().unwrap().len(), 1, "{listed:#}");
    assert_eq!(listed["stocked"][0]["state"], "whole");

    deploy(&api, &["delete", "a"]);
    let deadline = Instant::now() + testkit::program::PATIENCE;
    while !remove(&models, "acme/alpha").status.success() {
        assert!(Instant::now() < deadline, "it is held still: {}", machine.printed());
    }
    assert!(!models.join("acme").exists());
}
