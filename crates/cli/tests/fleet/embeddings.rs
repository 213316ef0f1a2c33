//! Embeddings through a fleet of real processes: the reference's vectors, in every caller's shape, counted and bounded.

use base64::Engine as _;
use serde_json::{Value, json};
use testkit::Started;

use crate::api::{Api, coordinator, provider};

const TOLERANCE: f64 = 2e-4;

fn fixture(name: &str) -> String {
    format!("{}/../engine/tests/fixtures/embedding/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The reference's texts, their tokens and vectors.
fn expected(name: &str) -> Vec<Value> {
    let text = std::fs::read(format!("{}/expected.json", fixture(name))).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    expected["cases"].as_array().unwrap().clone()
}

fn numbers(vector: &Value) -> Vec<f64> {
    vector.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn same(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < TOLERANCE * (1.0 + e.abs()), "{f} where the reference has {e}");
    }
}

async fn asked(api: &Api, path: &str, body: &Value) -> (u16, Value) {
    let answer = api.post(path, body).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// A fleet of one machine with two models that give embeddings and one that gives text.
async fn fleet() -> (Started, Started, Api) {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let model = |name: &str| format!("{name}={}", fixture(name));
    let (last, mean) = (model("qwen3-last"), model("llama-mean"));
    let exact = ["--activations", "f32", "--model"];
    let models = [&exact[..], &[&last, "--model", &mean, "--model", "bundled"]].concat();
    let one = provider(&api.url, token, "one", &models).start();
    api.await_eligible(3).await;
    (coordinator, one, api)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_gives_the_references_vectors_in_every_callers_shape() {
    let (_coordinator, _one, api) = fleet().await;
    let cases = expected("qwen3-last");
    let texts: Vec<&Value> = cases.iter().map(|case| &case["text"]).collect();
    let tokens: usize = cases.iter().map(|case| case["tokens"].as_array().unwrap().len()).sum();
    let body = json!({"model": "qwen3-last", "input": texts, "user": "u"});
    let (code, answer) = asked(&api, "/v1/embeddings", &body).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    for (index, (item, case)) in answer["data"].as_array().unwrap().iter().zip(&cases).enumerate() {
        assert_eq!(item["index"], index);
        same(&numbers(&item["embedding"]), &numbers(&case["vector"]));
    }

    // Tokens as they are, as base64; the first numbers alone, of length 1.
    let body = json!({"model": "llama-mean", "input": [cases[0]["text"].as_str().unwrap().as_bytes()], "encoding_format": "base64"});
    let (_, answer) = asked(&api, "/v1/embeddings", &body).await;
    let bytes =
        base64::prelude::BASE64_STANDARD.decode(answer["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let found: Vec<f64> =
        bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let mean = expected("llama-mean");
    same(&found, &numbers(&mean[0]["vector"]));
    let body = json!({"model": "qwen3-last", "input": texts[1], "dimensions": 8});
    let (_, answer) = asked(&api, "/v1/embeddings", &body).await;
    let short = numbers(&answer["data"][0]["embedding"]);
    assert!(short.len() == 8 && (short.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);

    // Ollama's two calls; a text that is too long loses its end there.
    let (code, answer) =
        asked(&api, "/api/embed", &json!({"model": "qwen3-last:latest", "input": texts})).await;
    assert_eq!((code, &answer["prompt_eval_count"]), (200, &json!(tokens)), "{answer}");
    same(&numbers(&answer["embeddings"][2]), &numbers(&cases[2]["vector"]));
    let (_, answer) =
        asked(&api, "/api/embeddings", &json!({"model": "qwen3-last", "prompt": texts[0]})).await;
    same(&numbers(&answer["embedding"]), &numbers(&cases[0]["vector"]));
    let long = "x".repeat(400);
    let (code, answer) = asked(&api, "/api/embed", &json!({"model": "llama-mean", "input": long})).await;
    assert_eq!((code, &answer["prompt_eval_count"]), (200, &json!(256)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_counted_and_refused_with_names_and_numbers() {
    let (_coordinator, _one, api) = fleet().await;
    let long = "x".repeat(400);
    // What is asked of which model, and how much, is refused with names and numbers.
    let refused = [
        ("/v1/embeddings", json!({"model": "llama-mean", "input": ["a", long]}), 400, "256 tokens"),
        ("/v1/embeddings", json!({"model": "llama-mean", "input": "a", "dimensions": 33}), 400, "32 numbers"),
        ("/v1/embeddings", json!({"model": "llama-mean", "input": [264]}), 400, "token 264"),
        ("/v1/embeddings", json!({"model": "phalanx-bundled", "input": "a"}), 400, "pooling"),
        (
            "/api/embed",
            json!({"model": "llama-mean", "input": "a", "truncate": false, "dimensions": 99}),
            400,
            "99",
        ),
        ("/api/embed", json!({"model": "nobody", "input": "a"}), 404, "nobody"),
        ("/v1/completions", json!({"model": "llama-mean", "prompt": "a"}), 400, "/v1/embeddings"),
    ];
    for (path, body, status, word) in refused {
        let (code, answer) = asked(&api, path, &body).await;
        assert_eq!(code, status, "{path} {answer}");
        assert!(answer.to_string().contains(word), "{answer}");
    }

    // Many texts are one call, and every token of them is in the ledger; the model says what it can.
    let many: Vec<String> = (0..200).map(|number| format!("text {number}")).collect();
    let (code, answer) = asked(&api, "/v1/embeddings", &json!({"model": "llama-mean", "input": many})).await;
    assert_eq!((code, answer["data"].as_array().unwrap().len()), (200, 200));
    let usage = api.get("/api/usage").await;
    let entry =
        usage["usage"].as_array().unwrap().iter().find(|entry| entry["model"] == "llama-mean").unwrap();
    let used = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!((&entry["prompt_tokens"], &entry["requests"]), (&json!(used), &json!(200)));
    assert_eq!(entry["generated_tokens"], 0);
    let card = api.get("/v1/models/qwen3-last").await;
    assert_eq!((&card["capabilities"], &card["embedding_length"]), (&json!(["embedding"]), &json!(32)));
    let card = api.get("/v1/models/phalanx-bundled").await;
    assert_eq!(card["capabilities"], json!(["completion", "chat"]));
}
