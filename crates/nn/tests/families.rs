//! Every family's tiny checkpoint against what transformers computes from it: logits within a tolerance, greedy tokens
//! exactly, and the same bits however a prompt is cut.
// Not only in test functions: what they share is test code as well.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use model::checkpoint::{Checkpoint, SafetensorsFile};
use model::family::spec_from_config;
use nn::{Decoder, KvCache, KvDType, LoadOptions, LogitRows, Scratch, Span, Team};
use serde_json::Value;

/// Weights are computed with as stored, activations in f32 on both sides: what differs is the order of additions,
/// relative to logits of up to twenty.
const TOLERANCE: f32 = 2e-3;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// The f32 tensor called `name` of a safetensors file.
fn stored(bytes: &[u8], name: &str) -> Vec<f32> {
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let [from, until]: [usize; 2] = serde_json::from_value(entries[name]["data_offsets"].clone()).unwrap();
    let values = bytes[header..][from..until].chunks_exact(4);
    values.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

struct Rig {
    decoder: Decoder,
    team: Team,
}

impl Rig {
    fn open(folder: &Path) -> Self {
        let spec = spec_from_config(&fs::read(folder.join("config.json")).unwrap(), None).unwrap();
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafetensorsFile::parse("model.safetensors", &bytes).unwrap();
        let checkpoint = Checkpoint::new(vec![file]).unwrap();
        checkpoint.verify(&spec).unwrap();
        let team = Team::new(2);
        let decoder = Decoder::load(&spec, &checkpoint, &LoadOptions::default(), &team).unwrap();
        Self { decoder, team }
    }

    /// Logits of every position, the prompt taken in pieces of `chunk`.
    fn logits(&self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let pages = tokens.len().div_ceil(16);
        let mut kv = KvCache::new(self.decoder.spec(), pages, 16, KvDType::F32).unwrap();
        let pages: Vec<u32> = (0..pages as u32).rev().collect();
        let (mut scratch, mut rows) = (Scratch::new(), Vec::new());
        for (part, position) in tokens.chunks(chunk).zip((0..).step_by(chunk)) {
            let span = Span { tokens: part, position, pages: &pages, logits: LogitRows::All };
            let logits = self.decoder.forward(&self.team, &mut scratch, &[span], &mut kv).unwrap();
            rows.extend(logits.rows().map(<[f32]>::to_vec));
        }
        rows
    }

    /// Greedy tokens, one step each, with only the last row's logits asked for.
    fn greedy(&self, prompt: &[u32], count: usize) -> Vec<u32> {
        let pages = (prompt.len() + count).div_ceil(16);
        let mut kv = KvCache::new(self.decoder.spec(), pages, 16, KvDType::F32).unwrap();
        let pages: Vec<u32> = (0..pages as u32).collect();
        let mut scratch = Scratch::new();
        let mut known = prompt.to_vec();
        let mut at = 0;
        while known.len() < prompt.len() + count {
            let span = Span { tokens: &known[at..], position: at, pages: &pages, logits: LogitRows::Last };
            let logits = self.decoder.forward(&self.team, &mut scratch, &[span], &mut kv).unwrap();
            let row = logits.row(0).iter().enumerate();
            let best = row.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            at = known.len();
            known.push(best as u32);
        }
        known.split_off(prompt.len())
    }
}

#[test]
fn logits_and_greedy_tokens_are_those_of_the_reference_in_every_family() {
    let folders = folders();
    assert!(folders.len() >= 10, "only {} checkpoints", folders.len());
    for folder in &folders {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let rig = Rig::open(folder);
        let expected: Value =
            serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
        for case in expected["cases"].as_array().unwrap() {
            let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
            let positions: Vec<usize> = serde_json::from_value(case["positions"].clone()).unwrap();
            let greedy: Vec<u32> = serde_json::from_value(case["greedy"].clone()).unwrap();
            let key = case["logits"].as_str().unwrap();
            let exact = stored(&bytes, key);
            let whole = rig.logits(&tokens, tokens.len());
            let vocabulary = whole[0].len();
            for (position, exact) in positions.iter().zip(exact.chunks(vocabulary)) {
                for (token, (got, exact)) in whole[*position].iter().zip(exact).enumerate() {
                    assert!(
                        (got - exact).abs() <= TOLERANCE * (1.0 + exact.abs()),
                        "{name}, {}, position {position}, token {token}: {got} for {exact}",
                        case["name"]
                    );
                }
            }
            let bits = |rows: &[Vec<f32>]| rows.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for chunk in [1, 7, 33] {
                assert!(
                    bits(&rig.logits(&tokens, chunk)) == bits(&whole),
                    "{name}: pieces of {chunk} differ"
                );
            }
            assert_eq!(rig.greedy(&tokens, greedy.len()), greedy, "{name}");
        }
    }
}
