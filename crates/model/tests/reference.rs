//! The reference checkpoints are read as what they are: configuration, tensors, tokenizer.
#![allow(clippy::unwrap_used, reason = "a test ends where a fixture is not what it should be")]

use std::fs;
use std::path::{Path, PathBuf};

use model::checkpoint::{Checkpoint, Quantisation, SafetensorsFile, ShardIndex, parameters};
use model::kit::Kit;
use model::spec::{MixerSpec, ModelSpec, RopeScaling};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures")
}

fn kit(folder: &Path) -> Kit {
    let optional = |name: &str| fs::read(folder.join(name)).ok();
    Kit {
        config: fs::read(folder.join("config.json")).unwrap(),
        generation_config: optional("generation_config.json"),
        tokenizer: fs::read(folder.join("tokenizer.json")).unwrap(),
        tokenizer_config: optional("tokenizer_config.json"),
        chat_template: optional("chat_template.jinja"),
        pooling: None,
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn verified(folder: &Path, spec: &ModelSpec) -> u64 {
    let index = fs::read(folder.join("model.safetensors.index.json"))
        .ok()
        .map(|text| ShardIndex::parse("model.safetensors.index.json", &text).unwrap());
    let names: Vec<&str> = index.as_ref().map_or_else(|| vec!["model.safetensors"], ShardIndex::files);
    let bytes: Vec<Vec<u8>> = names.iter().map(|name| fs::read(folder.join(name)).unwrap()).collect();
    let files =
        names.iter().zip(&bytes).map(|(name, bytes)| SafetensorsFile::parse(name, bytes).unwrap()).collect();
    let checkpoint = match &index {
        Some(index) => Checkpoint::sharded(index, files, &Quantisation::default()).unwrap(),
        None => Checkpoint::new(files).unwrap(),
    };
    checkpoint.verify(spec).unwrap();
    checkpoint.tensor_bytes()
}

#[test]
fn every_tiny_checkpoint_opens_verifies_and_has_the_parameters_that_transformers_counts() {
    let mut seen = 0;
    for entry in fs::read_dir(fixtures().join("tiny")).unwrap() {
        let folder = entry.unwrap().path();
        let open = kit(&folder).open().unwrap();
        assert!(verified(&folder, &open.spec) > 0);
        let expected = json(&folder.join("expected.json"));
        assert_eq!(parameters(&open.spec), expected["parameters"].as_u64().unwrap(), "{}", folder.display());
        assert_eq!(open.spec.stop_tokens, [256, 258]);
        let text = "The phalanx moved as one";
        let tokens: Vec<u32> = serde_json::from_value(expected["cases"][0]["tokens"].clone()).unwrap();
        assert_eq!(open.tokenizer.encode(text, true).unwrap(), tokens);
        seen += 1;
    }
    assert!(seen >= 7, "only {seen} checkpoints");
}

#[test]
fn what_each_checkpoint_is_for_is_in_its_spec() {
    let spec = |name: &str| kit(&fixtures().join("tiny").join(name)).open().unwrap().spec;
    let attention = |spec: &ModelSpec, layer: usize| {
        let MixerSpec::Attention(attention) = spec.layers[layer].mixer.clone() else {
            panic!("no attention")
        };
        attention
    };
    let scaled = attention(&spec("llama-f16-llama3-rope"), 0).rope;
    assert!(matches!(scaled.scaling, RopeScaling::Llama3 { original_context: 32, .. }));
    assert_eq!(scaled.theta, 500_000.0);
    let biased = attention(&spec("llama-bf16-biases"), 0);
    assert!(biased.qkv_bias && biased.output_bias);
    assert_eq!((biased.kv_heads, biased.rope.scaling), (1, RopeScaling::Linear { factor: 2.0 }));
    let windowed = spec("qwen3-f16-window");
    assert_eq!((attention(&windowed, 0).window, attention(&windowed, 1).window), (None, Some(12)));
    assert_eq!(attention(&windowed, 0).head_dim, 16);
    assert!(spec("qwen3-bf16-tied-sharded").tied_head);
}

/// FNV-1a, 64 bits, as `expected.json` and `bundled.json` have it.
fn fnv1a64(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[test]
fn the_bundled_models_fixture_is_of_its_weights_and_its_chats_become_the_same_tokens() {
    let folder = fixtures().join("../../../../models/bundled");
    let expected = json(&fixtures().join("bundled.json"));
    for (name, made_of) in [
        ("model.safetensors", &expected["weights"]["model.safetensors"]),
        ("tokenizer.json", &expected["tokenizer"]),
    ] {
        let found = fnv1a64(&fs::read(folder.join(name)).unwrap());
        assert_eq!(
            found, made_of["fnv1a64"],
            "models/bundled/{name} is not what the fixtures were made from: run python tools/reference/make.py bundled"
        );
    }
    let open = kit(&folder).open().unwrap();
    verified(&folder, &open.spec);
    assert_eq!(parameters(&open.spec), expected["parameters"].as_u64().unwrap());
    let cases = expected["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let messages = case["messages"].as_array().unwrap();
        let extra = model::template::ChatExtra::default();
        assert_eq!(open.render_chat(messages, None, true, &extra).unwrap(), case["text"]);
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        assert_eq!(open.encode_chat(messages, None, &extra).unwrap(), tokens);
        let answer: Vec<u32> = serde_json::from_value(case["greedy"].clone()).unwrap();
        assert_eq!(open.tokenizer.decode(&answer, true), case["answer"]);
    }
}
