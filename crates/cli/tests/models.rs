//! Models of every format and family as a user has them: made, looked at and run by the program itself, and served.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testkit::Program;

const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");

fn phalanx(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(PHALANX).args(arguments).arg("--json").output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Makes a model in `folder` and gives its place: the file, where there is only one.
fn make(folder: &Path, family: &str, format: &str, kind: &str) -> PathBuf {
    let place = folder.join(format!("{family}-{format}-{kind}"));
    let sizes = "--hidden 256 --layers 2 --heads 8 --kv-heads 2 --head-dim 32 --feed-forward 256 --vocabulary 300 --context 512";
    let mut arguments =
        vec!["models", "synth", "--family", family, "--format", format, "--quantisation", kind];
    arguments.extend(sizes.split(' '));
    arguments.extend(["--out", place.to_str().unwrap()]);
    phalanx(&arguments).unwrap();
    place
}

fn answer(place: &Path) -> Vec<u64> {
    let common = ["run", place.to_str().unwrap(), "Hello", "--max-tokens", "6", "--threads", "1"];
    let said = phalanx(&[common.as_slice(), &["--kv-memory", "8MiB"]].concat()).unwrap();
    serde_json::from_value(said["tokens"].clone()).unwrap()
}

fn inspect(place: &Path) -> Value {
    phalanx(&["models", "inspect", place.to_str().unwrap(), "--context", "64", "--batch", "2"]).unwrap()
}

/// Format, what to ask for, what of it is told.
const FORMATS: [(&str, &str, &str); 14] = [
    ("safetensors", "f32", "F32"),
    ("safetensors", "f16", "F16"),
    ("safetensors", "bf16", "BF16"),
    ("gguf", "bf16", "BF16"),
    ("gguf", "q4_0", "Q4_0"),
    ("gguf", "q4_1", "Q4_1"),
    ("gguf", "q4_k_m", "Q4_K"),
    ("gguf", "q5_k", "Q5_K"),
    ("gguf", "q6_k", "Q6_K"),
    ("gguf", "q8_0", "Q8_0"),
    ("gguf", "mxfp4", "MXFP4"),
    ("mlx", "mlx4-32", "MLX 4-bit"),
    ("mlx", "mlx4-128", "MLX 4-bit"),
    ("mlx", "mlx8", "MLX 8-bit"),
];

#[test]
fn every_format_is_made_told_of_and_run() {
    let folder = tempfile::tempdir().unwrap();
    for (format, kind, name) in FORMATS {
        let place = make(folder.path(), "llama", format, kind);
        let told = inspect(&place);
        assert_eq!((&told["family"], &told["layers"]), (&json!("llama"), &json!(2)), "{told}");
        let stored = &told["stored"][name];
        assert!(stored["tensors"].as_u64().is_some_and(|count| count > 10), "{kind}: {told}");
        let container = if format == "gguf" { "GGUF" } else { "safetensors" };
        assert_eq!(told["container"], container);
        assert_eq!(told["tokenizer"], "BPE over bytes");
        // Two layers of two heads of 32 numbers, twice, each of four bytes.
        assert_eq!(told["kv_per_token_bytes"], 2 * 2 * 32 * 2 * 4);
        let needed = told["weight_bytes"].as_u64().unwrap() + 64 * 2 * 1024;
        assert_eq!(told["needed_bytes"], needed, "{told}");
        let said = answer(&place);
        assert_eq!(said.len(), 6, "{kind}");
        if format == "gguf" {
            assert_eq!(answer(&place.join("model.gguf")), said, "{kind}: as a file and as a folder");
        }
    }
}

#[test]
fn every_family_is_made_told_of_and_run_in_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    let families = phalanx(&["models", "synth", "--family", "none", "--out", "/nowhere"]).unwrap_err();
    let families = families.split("this build knows ").nth(1).unwrap().trim();
    assert_eq!(families.split(", ").count(), 11, "{families}");
    for family in families.split(", ") {
        for (format, kind) in [("safetensors", "f32"), ("gguf", "q8_0"), ("mlx", "mlx8-64")] {
            let place = make(folder.path(), family, format, kind);
            let expected = if (family, format) == ("mistral", "gguf") { "llama" } else { family };
            assert_eq!(inspect(&place)["family"], expected);
            assert_eq!(answer(&place).len(), 6, "{family} {format}");
        }
    }
}

#[tokio::test]
async fn a_file_and_a_folder_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let http = reqwest::Client::builder().no_proxy().timeout(testkit::program::PATIENCE).build().unwrap();
    for (family, format, kind) in [("qwen3", "gguf", "q4_0"), ("gpt_oss", "mlx", "mlx4-64")] {
        let place = make(folder.path(), family, format, kind);
        let place = if format == "gguf" { place.join("model.gguf") } else { place };
        let served = format!("tiny={}", place.display());
        let sizes = ["--providers", "1", "--threads", "1", "--kv-memory", "8MiB", "--listen", "127.0.0.1:0"];
        let up = Program::new(PHALANX, ["up", "--model", &served].iter().chain(&sizes).copied()).start();
        let body = json!({
            "model": "tiny", "max_tokens": 5, "temperature": 0, "messages": [{"role": "user", "content": "Hello"}],
        });
        let url = format!("{}/v1/chat/completions", up.ready("url"));
        let reply = http.post(url).bearer_auth(up.ready("key")).json(&body).send().await.unwrap();
        let reply: Value = reply.json().await.unwrap();
        assert_eq!(reply["usage"]["completion_tokens"], 5, "{family} {format}: {reply}");
        // A machine says over the network what it says alone.
        let alone =
            phalanx(&["run", place.to_str().unwrap(), "Hello", "--max-tokens", "5", "--threads", "1"]);
        assert_eq!(reply["choices"][0]["message"]["content"], alone.unwrap()["text"], "{family} {format}");
    }
}
