//! What a managed machine has in memory: nothing before it is told, its model while it holds it, and not after.

use std::process::Command;

use testkit::{Program, Started};

use crate::api::{Api, PHALANX, coordinator, provider, turn};

/// E, F, layers and vocabulary: about 200 MB in 32-bit floats.
const SIZES: [&str; 12] = [
    "--hidden",
    "768",
    "--layers",
    "8",
    "--heads",
    "8",
    "--kv-heads",
    "8",
    "--feed-forward",
    "1536",
    "--vocabulary",
    "1024",
];

fn resident_mib(of: &Started) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", of.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() >> 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_in_memory_while_it_is_deployed_and_its_memory_is_given_back_after() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("heavy");
    let made = Command::new(PHALANX)
        .args(["models", "synth", "--context", "256", "--quantisation", "f32", "--out"])
        .arg(&place)
        .args(SIZES)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let weights = std::fs::metadata(place.join("model.safetensors")).unwrap().len() >> 20;
    assert!(weights > 100, "{weights} MiB");
    let coordinator = coordinator(&[]);
    let (api, token) = (Api::of(&coordinator), coordinator.ready("join_token"));
    let models = folder.path().display().to_string();
    let more = ["--managed", "--models-dir", &models, "--memory-limit", "1GiB"];
    let machine: Program = provider(&api.url, token, "one", &more).variable("HF_HOME", "/nonexistent");
    let machine = machine.start();
    let before = resident_mib(&machine);
    assert!(before < weights, "{before} MiB before anything is held, of weights of {weights}");
    // Twice: what is not given back adds up.
    for round in 0..2 {
        deploy(&api, &["apply", "--name", "d", "--model", "heavy", "--context", "256", "--wait"]);
        let mut body = turn("x", 4);
        body["model"] = "heavy".into();
        assert_eq!(api.post("/v1/chat/completions", &body).await.status().as_u16(), 200);
        let holding = resident_mib(&machine);
        assert!(holding >= before + weights * 3 / 4, "{before} before, {holding} held, of {weights} MiB");
        deploy(&api, &["delete", "d"]);
        let said = given_back(&machine, round + 1).await;
        let after = resident_mib(&machine);
        assert!(after < before + weights / 3, "{before} before, {holding} held, {after} after: {said}");
    }
}

/// Everything that the machine printed, once it has said so many times that memory was given back.
async fn given_back(machine: &Started, times: usize) -> String {
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(20));
    for _ in 0..6000 {
        let printed = machine.printed();
        if printed.matches("Memory was given back").count() >= times {
            return printed;
        }
        pace.tick().await;
    }
    panic!("no memory was given back:\n{}", machine.printed());
}

fn deploy(api: &Api, arguments: &[&str]) {
    let address = ["--url", &api.url, "--key", &api.key];
    let done = Command::new(PHALANX).arg("deploy").args(arguments).args(address).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}
