//! Embeddings against what transformers and torch make of the same texts: alone, in batches, in pieces, over ranks.

use std::path::{Path, PathBuf};

use base::Tokens;
use engine::group::{GroupMode, Member};
use engine::{Engine, EngineConfig, LoadOptions, ModelSource, load};
use serde_json::Value;
use wire::chunk::{Chunk, FinishReason};
use wire::control::AttemptRefusal;
use wire::job::{Job, Sampling};

use crate::group::{among, steps};
use crate::harness::{Reader, config, fixtures, job, prompt, start, submit, tiny};

/// Weights as stored, activations in f32 on both sides: what differs is the order of sums.
const TOLERANCE: f32 = 2e-4;
/// Activations in eight bits turn a vector by so much at most.
const COSINE_MIN: f32 = 0.995;

struct Case {
    text: String,
    tokens: Vec<u32>,
    vector: Vec<f32>,
}

fn models() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(fixtures().join("embedding")).unwrap();
    let mut paths: Vec<PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 4);
    paths
}

fn cases(folder: &Path) -> Vec<Case> {
    let text = std::fs::read(folder.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    let case = |case: &Value| Case {
        text: case["text"].as_str().unwrap().to_owned(),
        tokens: serde_json::from_value(case["tokens"].clone()).unwrap(),
        vector: serde_json::from_value(case["vector"].clone()).unwrap(),
    };
    expected["cases"].as_array().unwrap().iter().map(case).collect()
}

fn asked(tokens: &[u32]) -> Job {
    let mut asked = job(tokens, 0, Sampling::default());
    asked.ask.embed = true;
    asked
}

fn vector(reader: &Reader, tokens: usize) -> Vec<f32> {
    let Chunk { tokens: drawn, text, finish, vector, .. } = reader.chunk();
    let finish = finish.expect("it comes with the end");
    assert!(drawn.is_empty() && text.is_empty());
    assert_eq!(
        (finish.reason, finish.prompt_tokens, finish.generated_tokens),
        (FinishReason::Stop, tokens as u32, 0)
    );
    vector.expect("it is there")
}

fn all(engine: &Engine, cases: &[Case]) -> Vec<Vec<f32>> {
    let readers: Vec<_> = cases.iter().map(|case| submit(engine, asked(&case.tokens)).unwrap()).collect();
    readers.iter().zip(cases).map(|(reader, case)| vector(reader, case.tokens.len())).collect()
}

fn off(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f - e).abs() / (1.0 + e.abs())).fold(0.0, f32::max)
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_are_those_of_the_reference_in_pieces_and_in_batches() {
    for folder in models() {
        let (source, cases) = (ModelSource::Folder(folder.clone()), cases(&folder));
        let model = load(&source, &LoadOptions::default()).unwrap();
        for case in &cases {
            assert_eq!(model.open_kit().unwrap().encode_text(&case.text).unwrap(), case.tokens);
        }
        for config in [steps(), EngineConfig { step_tokens_max: 7, batch_max: 3, ..steps() }] {
            let engine = start(&source, config);
            // Twice: what the first round left in the cache must not change the second.
            for _ in 0..2 {
                for (found, case) in all(&engine, &cases).iter().zip(&cases) {
                    let off = off(found, &case.vector);
                    assert!(off < TOLERANCE, "{}: {:?} is off by {off}", folder.display(), case.text);
                }
            }
        }
        let engine = start(&source, config());
        for (found, case) in all(&engine, &cases).iter().zip(&cases) {
            let cosine = cosine(found, &case.vector);
            assert!(cosine > COSINE_MIN, "{}: {:?} turned to {cosine}", folder.display(), case.text);
        }
    }
}

#[test]
fn groups_give_the_vectors_of_one_machine() {
    let modes =
        [(GroupMode::Tensor, 2), (GroupMode::Pipeline, 2), (GroupMode::Both { stages: 2, tensor: 2 }, 4)];
    for folder in models() {
        let (source, cases) = (ModelSource::Folder(folder.clone()), cases(&folder));
        let mut ran = 0;
        for (mode, ranks) in modes {
            let Some(group) = among(&source, &steps(), mode, &vec![Member::default(); ranks]) else {
                continue;
            };
            for (found, case) in all(group.engine(), &cases).iter().zip(&cases) {
                let off = off(found, &case.vector);
                assert!(off < TOLERANCE, "{} {mode} over {ranks}: off by {off}", folder.display());
            }
            ran += 1;
        }
        assert!(ran > 0, "{}", folder.display());
    }
}

#[test]
fn a_text_may_fill_the_context_and_no_more() {
    let folder = fixtures().join("embedding/llama-mean");
    let engine = start(&ModelSource::Folder(folder), config());
    let Tokens(context) = engine.load_now().context;
    let whole = submit(&engine, asked(&prompt(1, context as usize))).unwrap();
    assert_eq!(vector(&whole, context as usize).len(), 32);
    let refusal = submit(&engine, asked(&prompt(1, context as usize + 1))).err().unwrap();
    assert_eq!(refusal.reason(), AttemptRefusal::TooLong);
}

#[test]
fn who_gives_text_gives_no_vectors_and_the_other_way_round() {
    let texts = start(&tiny("llama-f32"), config());
    let refusal = submit(&texts, asked(&prompt(0, 8))).err().unwrap();
    assert_eq!(refusal.reason(), AttemptRefusal::WrongModel);
    assert!(refusal.to_string().contains("no embeddings"), "{refusal}");
    let vectors = start(&ModelSource::Folder(fixtures().join("embedding/qwen3-last")), config());
    let refusal = submit(&vectors, job(&prompt(0, 8), 4, Sampling::default())).err().unwrap();
    assert_eq!(refusal.reason(), AttemptRefusal::WrongModel);
    assert!(refusal.to_string().contains("no text"), "{refusal}");
}
