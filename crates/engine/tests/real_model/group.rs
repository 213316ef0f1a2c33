//! Models divided over ranks: what a group says is what the model says alone, and a group that ends does so everywhere.

use std::path::{Path, PathBuf};

use engine::group::{Golden, GoldenError, GroupMode, LocalGroup, Member};
use engine::{ActivationFormat, Engine, EngineConfig, LoadOptions, ModelSource, load};
use wire::chunk::FinishReason;
use wire::job::{Job, Sampling};

use crate::harness::{MODEL, answer, config, fixtures, job, prompt, start, submit, submit_slow, tiny};

/// Sums over ranks are taken in another order than sums within one, and the differences travel through all layers: of logits
/// that spread over several units this is in the fifth digit.
pub(crate) const TOLERANCE: f32 = 2e-4;

/// Where activations are rounded to eight bits: a code that falls to the other side is one part in 127 of its block.
const ROUNDING: f32 = 2e-2;

fn modes() -> [(GroupMode, usize); 6] {
    use GroupMode::{Both, Pipeline, Tensor};
    [(Tensor, 2), (Tensor, 3), (Tensor, 4), (Pipeline, 2), (Pipeline, 3), (Both { stages: 2, tensor: 2 }, 4)]
}

/// Every model there is a fixture of, whatever its family and format.
pub(crate) fn models() -> Vec<PathBuf> {
    let folders = ["tiny", "quantised", "../../../nn/tests/fixtures/families"];
    let within = |folder: &str| std::fs::read_dir(fixtures().join(folder)).unwrap();
    let mut paths: Vec<_> = folders.into_iter().flat_map(within).map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().filter(|path| path.is_dir()).collect()
}

/// The model in this folder. Families' fixtures have no tokenizer, and an engine takes no request without one: they get one
/// of single bytes, in a folder beside.
pub(crate) fn source_of(path: &Path, beside: &Path) -> ModelSource {
    let gguf = path.join("model.gguf");
    if gguf.is_file() {
        return ModelSource::Folder(gguf);
    }
    if path.join("tokenizer.json").is_file() {
        return ModelSource::Folder(path.to_owned());
    }
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), beside.join(entry.file_name())).unwrap();
    }
    let text = std::fs::read(fixtures().join("tiny/llama-f32/tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocabulary.retain(|_, token| token.as_u64().unwrap() < 128);
    tokenizer["added_tokens"] = serde_json::json!([]);
    tokenizer["post_processor"] = serde_json::Value::Null;
    std::fs::write(beside.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    ModelSource::Folder(beside.to_owned())
}

/// Several steps for each prompt. Activations are not rounded: a sum's last digit would else decide, now and then, to which
/// of two codes one goes, and how ranks sum could not be told from how codes round.
pub(crate) fn steps() -> EngineConfig {
    EngineConfig { step_tokens_max: 24, activations: ActivationFormat::F32, ..config() }
}

const LOAD: LoadOptions = LoadOptions { tokenizer_needed: true };

fn alone_of(source: &ModelSource, config: EngineConfig) -> Engine {
    let model = load(source, &LOAD).expect("the fixture is whole");
    Engine::start(MODEL.into(), model, config).expect("the fixture fits")
}

pub(crate) fn group(
    source: &ModelSource,
    config: &EngineConfig,
    mode: GroupMode,
    ranks: usize,
) -> Option<LocalGroup> {
    among(source, config, mode, &vec![Member::default(); ranks])
}

/// A group, or nothing where the model is refused in words, before anything of it is loaded.
pub(crate) fn among(
    source: &ModelSource,
    config: &EngineConfig,
    mode: GroupMode,
    members: &[Member],
) -> Option<LocalGroup> {
    let ranks = members.len();
    match LocalGroup::start_among(MODEL.into(), (source, &LOAD), config, (mode, members)) {
        Ok(group) => Some(group),
        Err(error) => {
            let refusal = error.to_string();
            let known = ["at most", "multiple of", "cannot be cut", "would be empty"];
            let is_known = known.iter().any(|words| refusal.contains(words));
            assert!(is_known, "{source} {mode} over {ranks}: {refusal}");
            None
        }
    }
}

fn difference(found: &[f32], expected: &[f32]) -> f32 {
    found.iter().zip(expected).map(|(f, e)| (f - e).abs() / (1.0 + e.abs())).fold(0.0, f32::max)
}

/// How far the best logit is ahead of the second.
fn margin(row: &[f32]) -> f32 {
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[0] - sorted[1]
}

fn jobs() -> Vec<Job> {
    (0..8).map(|number| job(&prompt(number, 10 + number * 9), 12, Sampling::default())).collect()
}

/// Greedy answers of eight interleaved requests, held to those of one engine; where a choice was close, the rest of that
/// answer may differ. How many were.
fn same_answers(alone: &Engine, together: &Engine, expected: &[Vec<u32>], tolerance: f32) -> usize {
    let readers: Vec<_> = jobs().into_iter().map(|job| submit(together, job).unwrap()).collect();
    let mut ties = 0;
    for ((job, reader), expected) in jobs().into_iter().zip(readers).zip(expected) {
        let found = reader.rest().unwrap().tokens;
        let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) else {
            assert_eq!(found.len(), expected.len());
            continue;
        };
        let tokens: Vec<u32> = job.prompt.iter().chain(&expected[..at]).copied().collect();
        let row = alone.logits(&tokens, false).unwrap().remove(0);
        assert!(margin(&row) <= 4.0 * tolerance, "another token where the best is ahead by {}", margin(&row));
        ties += 1;
    }
    ties
}

/// Holds groups of `source` to what it says alone: how many could be made, and how many choices were close.
pub(crate) fn hold(
    source: &ModelSource,
    config: &EngineConfig,
    groups: &[(GroupMode, Vec<Member>)],
    tolerance: f32,
) -> (usize, usize) {
    let alone = alone_of(source, config.clone());
    let tokens = prompt(5, 70);
    let exact = alone.logits(&tokens, true).unwrap();
    let expected: Vec<Vec<u32>> = jobs().into_iter().map(|job| answer(&alone, job).tokens).collect();
    let (mut ran, mut ties) = (0, 0);
    for (mode, members) in groups {
        let Some(group) = among(source, config, *mode, members) else { continue };
        let found = group.engine().logits(&tokens, true).unwrap();
        assert_eq!(found.len(), exact.len());
        for (at, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let off = difference(found, exact);
            let ranks = members.len();
            assert!(off <= tolerance, "{source} {mode} over {ranks}, position {at}: off by {off}");
        }
        ties += same_answers(&alone, group.engine(), &expected, tolerance);
        let (end, others) = group.stop();
        assert_eq!(end.unwrap().culprit, None);
        assert!(others.iter().all(Result::is_ok), "{others:?}");
        ran += 1;
    }
    (ran, ties)
}

#[test]
fn every_family_and_format_says_divided_what_it_says_alone() {
    let groups: Vec<_> =
        modes().into_iter().map(|(mode, ranks)| (mode, vec![Member::default(); ranks])).collect();
    let (mut ran, mut ties) = (0, 0);
    for path in models() {
        let beside = tempfile::tempdir().unwrap();
        let source = source_of(&path, beside.path());
        let (more, close) = hold(&source, &steps(), &groups, TOLERANCE);
        assert!(more > 0, "{source} could not be divided at all");
        (ran, ties) = (ran + more, ties + close);
    }
    assert!(ran >= 60, "only {ran} divisions were possible");
    assert!(ties <= ran, "{ties} close choices in {ran} groups of eight answers");
}

#[test]
fn rounded_activations_stay_as_near_as_rounding_allows() {
    let groups =
        [(GroupMode::Tensor, vec![Member::default(); 2]), (GroupMode::Pipeline, vec![Member::default(); 2])];
    let rounding = EngineConfig { activations: ActivationFormat::Int8, ..steps() };
    for name in ["llama-gguf/model.gguf", "qwen3-gguf-k/model.gguf", "qwen3-mlx"] {
        let source = ModelSource::Folder(fixtures().join("quantised").join(name));
        let (ran, _) = hold(&source, &rounding, &groups, ROUNDING);
        assert!(ran > 0, "{name} could not be divided");
    }
}

#[test]
fn the_same_group_gives_the_same_bits_twice() {
    let tokens = prompt(2, 50);
    let bits = |mode, ranks| {
        let group = group(&tiny("qwen3-f32"), &steps(), mode, ranks).unwrap();
        let rows = group.engine().logits(&tokens, true).unwrap();
        rows.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    for (mode, ranks) in [(GroupMode::Tensor, 2), (GroupMode::Pipeline, 2)] {
        assert!(bits(mode, ranks) == bits(mode, ranks));
    }
}

#[test]
fn sampling_prefix_reuse_and_small_caches_work_as_on_one_machine() {
    let source = tiny("llama-f32");
    let per_token =
        engine::load(&source, &Default::default()).unwrap().kv_bytes_per_token(Default::default());
    let group = group(&source, &steps(), GroupMode::Tensor, 2).unwrap();
    let warm = Sampling { temperature: 0.8, seed: 3, ..Sampling::default() };
    let once = answer(group.engine(), job(&prompt(1, 60), 10, warm.clone()));
    let again = answer(group.engine(), job(&prompt(1, 60), 10, warm));
    assert_eq!(once.tokens, again.tokens, "a seed repeats an answer");
    assert!(again.finish.cached_tokens > 0, "its prefix was there");
    // Room for one context and a little, of half the heads: answers are preempted, and are the same.
    let tight = EngineConfig { context: Some(144), kv_bytes: Some(base::Bytes(per_token.0 * 80)), ..steps() };
    let tight = self::group(&source, &tight, GroupMode::Tensor, 2).unwrap();
    let long = |number| job(&prompt(number, 8), 90, Sampling::default());
    let readers: Vec<_> = (0..4).map(|number| submit(tight.engine(), long(number)).unwrap()).collect();
    for (number, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.rest().unwrap().tokens, answer(group.engine(), long(number)).tokens);
    }
}

#[test]
fn a_cancelled_request_stops_on_every_rank_and_touches_no_other() {
    for (mode, ranks) in [(GroupMode::Tensor, 2), (GroupMode::Pipeline, 2)] {
        let group = group(&tiny("qwen3-f32"), &steps(), mode, ranks).unwrap();
        let engine = group.engine();
        let undisturbed = answer(engine, job(&prompt(1, 30), 40, Sampling::default())).tokens;
        let long = submit_slow(engine, job(&prompt(0, 30), 200, Sampling::default()), 2).unwrap();
        let other = submit(engine, job(&prompt(1, 30), 40, Sampling::default())).unwrap();
        long.chunk();
        engine.cancel(long.attempt);
        assert_eq!(long.rest().unwrap().finish.reason, FinishReason::Cancelled);
        assert_eq!(other.rest().unwrap().tokens, undisturbed);
        // A question on every rank after it: the group has nothing else to do and is at rest.
        engine.logits(&[40, 41], false).unwrap();
        let report = engine.load_now();
        assert_eq!(
            (report.running, report.kv_tokens_free),
            (0, report.kv_tokens),
            "all of its pages are free"
        );
    }
}

#[test]
fn a_rank_that_leaves_ends_the_group_with_its_name_everywhere() {
    for leaver in [1, 2] {
        let group = group(&tiny("llama-f32"), &steps(), GroupMode::Tensor, 3);
        let Some(group) = group else { continue };
        let running = submit(group.engine(), job(&prompt(0, 30), 300, Sampling::default())).unwrap();
        running.chunk();
        group.followers().nth(leaver - 1).unwrap().stop();
        let failed = running.rest().err().expect("the group is gone");
        assert!(failed.contains(&format!("group lost rank {leaver}")), "{failed}");
        let refused = submit(group.engine(), job(&prompt(0, 3), 3, Sampling::default())).err().unwrap();
        assert!(refused.to_string().contains("not ready"), "{refused}");
        let (end, others) = group.stop();
        assert_eq!(end.unwrap().culprit, Some(leaver));
        for other in others {
            assert_eq!(other.unwrap_err().culprit, Some(leaver));
        }
    }
}

#[test]
fn a_golden_reference_tells_a_group_from_an_impostor() {
    let golden = |name: &str| {
        let alone = start(&tiny(name), steps());
        Golden::record(&alone, &Golden::prompt(100, 60)).unwrap()
    };
    let group = group(&tiny("llama-f32"), &steps(), GroupMode::Tensor, 2).unwrap();
    assert!(golden("llama-f32").check(group.engine()).unwrap() < 30);
    let error = golden("llama-bf16-biases").check(group.engine()).unwrap_err();
    assert!(matches!(error, GoldenError::Differs { .. }), "{error}");
}

#[test]
fn what_cannot_be_divided_is_refused_and_only_auto_chooses() {
    let source = tiny("llama-f32");
    let plan = |mode, ranks| {
        let start =
            LocalGroup::start(MODEL.into(), (&source, &LoadOptions::default()), &steps(), (mode, ranks));
        start.map(|group| group.map().mode()).map_err(|error| error.to_string())
    };
    assert!(plan(GroupMode::Tensor, 64).unwrap_err().contains("at most"));
    assert!(plan(GroupMode::Pipeline, 64).unwrap_err().contains("layers"));
    assert!(plan(GroupMode::Both { stages: 2, tensor: 2 }, 3).unwrap_err().contains("4 ranks"));
    assert_eq!(plan(GroupMode::Auto, 2).unwrap(), "tensor");
    assert!("3x".parse::<GroupMode>().is_err());
}
