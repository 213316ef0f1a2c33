//! A model divided over real processes with sealed links between them, as `phalanx run --ranks` does it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "ranks/disagree.rs"]
mod disagree;
#[path = "ranks/jobs.rs"]
mod jobs;
#[path = "ranks/wire.rs"]
mod wire;

use std::process::Command;

use serde_json::Value;

const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");

fn phalanx(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(PHALANX).args(arguments).output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

const DIVISIONS: [[&str; 4]; 3] = [
    ["--ranks", "2", "--mode", "tensor"],
    ["--ranks", "3", "--mode", "pipeline"],
    ["--ranks", "4", "--mode", "2x2"],
];

#[test]
fn an_answer_over_processes_is_the_one_of_one_process() {
    let common = ["run", "bundled", "How do I list files?", "--max-tokens", "24", "--threads", "1", "--json"];
    let alone = phalanx(&common).unwrap();
    for division in DIVISIONS {
        let arguments = [common.as_slice(), division.as_slice(), &["--transport", "link"]].concat();
        let divided = phalanx(&arguments).unwrap();
        assert_eq!(divided["tokens"], alone["tokens"], "{division:?}");
        assert_eq!(divided["text"], alone["text"], "{division:?}");
    }
}

#[test]
fn logits_over_threads_are_those_of_one_rank_to_the_fifth_digit() {
    let tokens: Vec<String> = (0..300).map(|at| (3 + at * 7 % 250).to_string()).collect();
    let tokens = tokens.join(",");
    let common = ["logits", "--model", "bundled", "--tokens", &tokens, "--threads", "1", "--json"];
    let numbers = |logits: &Value| -> Vec<f64> {
        logits["logits"][0].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap()).collect()
    };
    let alone = numbers(&phalanx(&common).unwrap());
    for division in DIVISIONS {
        let divided = numbers(&phalanx(&[common.as_slice(), division.as_slice()].concat()).unwrap());
        let off =
            alone.iter().zip(&divided).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f64::max);
        assert!(divided.len() == alone.len() && off < 2e-4, "{division:?}: off by {off}");
    }
}

#[test]
fn what_cannot_be_divided_is_refused_in_words() {
    let refusal =
        phalanx(&["run", "bundled", "x", "--ranks", "64", "--mode", "tensor", "--json"]).unwrap_err();
    assert!(refusal.contains("at most"), "{refusal}");
    let refusal = phalanx(&["run", "bundled", "x", "--ranks", "3", "--mode", "2x2", "--json"]).unwrap_err();
    assert!(refusal.contains("4 ranks"), "{refusal}");
    let refusal = phalanx(&["run", "bundled", "x", "--ranks", "2", "--mode", "ring", "--json"]).unwrap_err();
    assert!(refusal.contains("no mode"), "{refusal}");
}
