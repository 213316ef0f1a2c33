//! Logits, greedy tokens and text are those of `transformers`.

use std::path::Path;

use engine::{ActivationFormat, EngineConfig, KvFormat, LoadOptions, ModelSource, WeightFormat, load};
use model::checkpoint::SafetensorsFile;
use model::spec::FeedForwardSpec;
use serde_json::Value;
use wire::job::Sampling;

use crate::group::{models, source_of};
use crate::harness::{answer, config, fixtures, job, prompt, start, tiny};

/// How far a logit may be from the reference's, relative to one plus its size. Weights are used as they are stored and sums
/// are in f32 on both sides, so what is left is the order of additions; 7e-6 is the most that was seen.
const TOLERANCE: f32 = 3e-5;

/// The same where weights that are stored in f32 or f16 are rounded to bf16 on purpose: eight bits of each weight are left, and
/// 0.083 is the most that was seen. Greedy tokens may then differ.
const TOLERANCE_BF16: f32 = 0.15;

const TINY: [&str; 7] = [
    "llama-f32",
    "llama-bf16-tied",
    "llama-f16-llama3-rope",
    "llama-bf16-biases",
    "qwen3-f32",
    "qwen3-bf16-tied-sharded",
    "qwen3-f16-window",
];

struct Case {
    name: String,
    tokens: Vec<u32>,
    positions: Vec<usize>,
    /// `[positions, V]`.
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
    answer: Option<String>,
}

fn integers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn cases(json: &Path, tensors: &Path) -> (Value, Vec<Case>) {
    let expected: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let bytes = std::fs::read(tensors).unwrap();
    let file = SafetensorsFile::parse("expected.safetensors", &bytes).unwrap();
    let case = |case: &Value| {
        let view = file.tensor(case["logits"].as_str().unwrap()).unwrap();
        let values: Vec<f32> =
            view.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Case {
            name: case["name"].as_str().unwrap().to_owned(),
            tokens: integers(&case["tokens"]),
            positions: integers(&case["positions"]).into_iter().map(|at| at as usize).collect(),
            logits: values.chunks_exact(view.shape[1]).map(<[f32]>::to_vec).collect(),
            greedy: integers(&case["greedy"]),
            answer: case.get("answer").and_then(Value::as_str).map(str::to_owned),
        }
    };
    let cases = expected["cases"].as_array().unwrap().iter().map(case).collect();
    (expected, cases)
}

/// The largest difference, relative to one plus the expected value's size.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f - e).abs() / (1.0 + e.abs())).fold(0.0, f32::max)
}

fn check(source: &ModelSource, config: EngineConfig, tolerance: f32, cases: &[Case], greedy: bool) {
    let engine = start(source, config);
    for case in cases {
        let found = engine.logits(&case.tokens, true).unwrap();
        assert_eq!(found.len(), case.tokens.len());
        for (&at, expected) in case.positions.iter().zip(&case.logits) {
            let difference = difference(&found[at], expected);
            assert!(difference <= tolerance, "{source} {} at {at}: off by {difference}", case.name);
        }
        let last = engine.logits(&case.tokens, false).unwrap();
        assert_eq!(last, found[found.len() - 1..], "the last row is the same, computed alone");
        if greedy {
            let max_tokens = case.greedy.len() as u32;
            let said = answer(&engine, job(&case.tokens, max_tokens, Sampling::default()));
            assert_eq!(said.tokens, case.greedy, "{source} {}", case.name);
        }
    }
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers_for_every_family_and_format() {
    for name in TINY {
        let folder = fixtures().join("tiny").join(name);
        let (expected, cases) = cases(&folder.join("expected.json"), &folder.join("expected.safetensors"));
        let model = load(&tiny(name), &LoadOptions::default()).unwrap();
        assert_eq!(expected["parameters"], model.parameters());
        check(&tiny(name), config(), TOLERANCE, &cases, true);
    }
}

#[test]
fn weights_held_in_another_format_stay_within_its_rounding() {
    use engine::WeightFormat::{Bf16, F32};
    for name in ["llama-f32", "llama-bf16-tied", "qwen3-f16-window"] {
        let folder = fixtures().join("tiny").join(name);
        let (_, cases) = cases(&folder.join("expected.json"), &folder.join("expected.safetensors"));
        check(&tiny(name), EngineConfig { weights: F32, ..config() }, TOLERANCE, &cases, true);
        check(&tiny(name), EngineConfig { weights: Bf16, ..config() }, TOLERANCE_BF16, &cases, false);
    }
}

#[test]
fn the_bundled_model_says_what_transformers_says() {
    let (expected, cases) = cases(&fixtures().join("bundled.json"), &fixtures().join("bundled.safetensors"));
    let model = load(&ModelSource::Bundled, &LoadOptions::default()).unwrap();
    for (name, bytes) in model.weight_files() {
        assert_eq!(
            expected["weights"][name]["fnv1a64"].as_str(),
            Some(fnv1a64(bytes).as_str()),
            "{name} is not the one that the fixture was made from: run `python tools/reference/make.py bundled`"
        );
    }
    let stop_tokens = model.spec().stop_tokens.clone();
    check(&ModelSource::Bundled, config(), TOLERANCE, &cases, true);
    let engine = start(&ModelSource::Bundled, config());
    for case in &cases {
        let mut asked = job(&case.tokens, case.greedy.len() as u32, Sampling::default());
        asked.ask.ignore_stop_tokens = false;
        let said = answer(&engine, asked);
        let expected: Vec<u32> =
            case.greedy.iter().copied().take_while(|token| !stop_tokens.contains(token)).collect();
        assert_eq!(said.tokens, expected, "{}: the stop token is no part of the answer", case.name);
        assert_eq!(Some(said.text), case.answer, "{}", case.name);
    }
}

/// FNV-1a (Fowler, Noll, Vo): enough to notice other weights.
fn fnv1a64(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// Quantised weights are used as what they stand for: with activations as they are, logits are within [`TOLERANCE`]. Where
/// kernels round activations to eight bits too, as fast ones do, what is left of each product is half a percent of its size
/// (the largest of 32 numbers is about 2.5 times their root mean square, and a step of its 127th part has an error of the
/// 3.5th part of itself), added up over a dozen products and what attention and gates make of it. Root mean square of
/// a row's differences, relative to that of its logits around their mean; 0.039 is the most that was seen.
const TOLERANCE_ROUNDED: f64 = 0.06;

/// Root mean square of the differences, relative to that of what is expected around its mean.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    let mean = expected.iter().map(|&x| f64::from(x)).sum::<f64>() / expected.len() as f64;
    let spread: f64 = expected.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let off: f64 = found.iter().zip(expected).map(|(f, e)| f64::from(f - e).powi(2)).sum();
    (off / spread).sqrt()
}

fn check_rounded(source: &ModelSource, config: EngineConfig, cases: &[Case]) {
    let engine = start(source, config);
    for case in cases {
        let found = engine.logits(&case.tokens, true).unwrap();
        for (&at, expected) in case.positions.iter().zip(&case.logits) {
            let off = off(&found[at], expected);
            assert!(off <= TOLERANCE_ROUNDED, "{source} {} at {at}: off by {off}", case.name);
        }
    }
}

/// What a cache in fewer bits moves logits by, measured as [`TOLERANCE_ROUNDED`] is, against the same engine with a cache of
/// f32: the median over positions, of models without experts and with. Where two experts' scores are close another may be
/// chosen, and then the row is another one. Seen: 0.0009, 0.007 and 0.014 without, 0.014, 0.021 and 0.041 with experts.
const TOLERANCE_KV: [(KvFormat, [f64; 2]); 3] =
    [(KvFormat::F16, [0.002, 0.03]), (KvFormat::Bf16, [0.012, 0.05]), (KvFormat::Int8, [0.025, 0.08])];

#[test]
fn caches_in_fewer_bits_stay_within_their_rounding_for_every_family() {
    let exact = EngineConfig { activations: ActivationFormat::F32, ..config() };
    for path in models() {
        let beside = tempfile::tempdir().unwrap();
        let source = source_of(&path, beside.path());
        let tokens = prompt(7, 90);
        let expected = start(&source, exact.clone()).logits(&tokens, true).unwrap();
        let spec = load(&source, &LoadOptions::default()).unwrap().spec().clone();
        let experts =
            !spec.layers.iter().all(|layer| matches!(layer.feed_forward, FeedForwardSpec::Gated(_)));
        for (kv, tolerances) in TOLERANCE_KV {
            let engine = start(&source, EngineConfig { kv, ..exact.clone() });
            let found = engine.logits(&tokens, true).unwrap();
            let offs = found.iter().zip(&expected).map(|(found, expected)| off(found, expected));
            let mut offs: Vec<f64> = offs.collect();
            offs.sort_by(f64::total_cmp);
            let (median, tolerance) = (offs[offs.len() / 2], tolerances[usize::from(experts)]);
            assert!(median > 0.0 && median <= tolerance, "{} {kv:?}: off by {median}", path.display());
        }
    }
}

const QUANTISED: [(&str, &[&str]); 3] = [
    ("llama-gguf", &["BF16", "F16", "F32", "MXFP4", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]),
    ("qwen3-gguf-k", &["F32", "Q4_K", "Q5_K", "Q6_K"]),
    ("qwen3-mlx", &["F16", "MLX 4-bit", "MLX 8-bit"]),
];

#[test]
fn quantised_checkpoints_answer_as_what_their_weights_stand_for() {
    for (name, formats) in QUANTISED {
        let folder = fixtures().join("quantised").join(name);
        let (_, cases) = cases(&folder.join("expected.json"), &folder.join("expected.safetensors"));
        let source = ModelSource::Folder(folder.clone());
        assert_eq!(load(&source, &LoadOptions::default()).unwrap().formats(), formats, "{name}");
        check_rounded(&source, config(), &cases);
        let exact = EngineConfig { activations: ActivationFormat::F32, ..config() };
        check(&source, exact, TOLERANCE, &cases, true);
        let in_f32 = EngineConfig { weights: WeightFormat::F32, ..config() };
        check(&source, in_f32, TOLERANCE, &cases, true);
    }
}
