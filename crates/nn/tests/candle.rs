//! The candle backend on its CPU device: every family's tiny checkpoint against what transformers computes from it, and
//! against the CPU backend in steps of several sequences.
// Not only in test functions: what they share is test code as well.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use model::checkpoint::{Checkpoint, SafetensorsFile};
use model::family::spec_from_config;
use model::shard::Part;
use model::spec::ModelSpec;
use nn::backend::Backend;
use nn::candle::Candle;
use nn::{Cpu, Decoder, Isa, KvCache, KvDType, LoadOptions, LogitRows, Scratch, Span, Team};
use serde_json::Value;

/// As of the CPU backend: what differs is the order of additions, relative to logits of up to twenty.
const TOLERANCE: f32 = 2e-3;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 10, "{folders:?}");
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

struct Rig<B: Backend<Workers = Team>> {
    backend: B,
    decoder: Decoder<B>,
    team: Team,
}

impl<B: Backend<Workers = Team> + Clone> Rig<B> {
    fn open(folder: &Path, backend: B) -> Self {
        let spec: ModelSpec = spec_from_config(&fs::read(folder.join("config.json")).unwrap(), None).unwrap();
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafetensorsFile::parse("model.safetensors", &bytes).unwrap();
        let checkpoint = Checkpoint::new(vec![file]).unwrap();
        checkpoint.verify(&spec).unwrap();
        let team = Team::new(1);
        let part = Part::whole(&spec);
        let decoder =
            Decoder::load_with(backend.clone(), &part, &checkpoint, &LoadOptions::default(), &team).unwrap();
        Self { backend, decoder, team }
    }

    fn cache(&self, pages: usize, dtype: KvDType) -> KvCache<B> {
        KvCache::on(&self.backend, self.decoder.spec(), pages, 16, dtype).unwrap()
    }

    /// Logits of every position, the prompt taken in pieces of `chunk`, after a page was used by another and wiped.
    fn logits(&self, tokens: &[u32], chunk: usize, dtype: KvDType) -> Vec<Vec<f32>> {
        let pages = tokens.len().div_ceil(16);
        let mut kv = self.cache(pages, dtype);
        let pages: Vec<u32> = (0..pages as u32).rev().collect();
        let (mut scratch, mut rows) = (Scratch::for_backend(), Vec::new());
        let other = Span { tokens: &tokens[..3], position: 0, pages: &pages[..1], logits: LogitRows::None };
        self.decoder.forward(&self.team, &mut scratch, &[other], &mut kv).unwrap();
        kv.wipe(pages[0]);
        for (part, position) in tokens.chunks(chunk).zip((0..).step_by(chunk)) {
            let span = Span { tokens: part, position, pages: &pages, logits: LogitRows::All };
            let logits = self.decoder.forward(&self.team, &mut scratch, &[span], &mut kv).unwrap();
            rows.extend(logits.rows().map(<[f32]>::to_vec));
        }
        rows
    }

    /// Two sequences side by side, one prefilling in pieces while the other decodes: the last logits of each step.
    fn beside(&self, tokens: &[u32]) -> Vec<f32> {
        let mut kv = self.cache(8, KvDType::F32);
        let (first, second): (Vec<u32>, Vec<u32>) = ((0..4).collect(), (4..8).collect());
        let mut scratch = Scratch::for_backend();
        let mut out = Vec::new();
        for step in 0..4 {
            let (at, part) = (step * 7, &tokens[step * 7..][..7]);
            let logits = if step == 3 { LogitRows::Last } else { LogitRows::None };
            let long = Span { tokens: part, position: at, pages: &first, logits };
            let one = Span {
                tokens: &tokens[30 + step..][..1],
                position: step,
                pages: &second,
                logits: LogitRows::Last,
            };
            let logits = self.decoder.forward(&self.team, &mut scratch, &[long, one], &mut kv).unwrap();
            out.extend_from_slice(logits.values());
        }
        out
    }
}

fn furthest<'a>(a: impl IntoIterator<Item = &'a f32>, b: impl IntoIterator<Item = &'a f32>) -> f32 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max)
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for folder in folders() {
        let rig = Rig::open(&folder, Candle::cpu());
        let expected: Value =
            serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
        for case in expected["cases"].as_array().unwrap() {
            let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
            let positions: Vec<usize> = serde_json::from_value(case["positions"].clone()).unwrap();
            let exact = stored(&bytes, case["logits"].as_str().unwrap());
            for chunk in [tokens.len(), 13] {
                let rows = rig.logits(&tokens, chunk, KvDType::F32);
                let rows = positions.iter().flat_map(|&position| &rows[position]);
                let off = furthest(rows, &exact);
                assert!(off <= TOLERANCE, "{folder:?}, {} in pieces of {chunk}: {off}", case["name"]);
            }
        }
    }
}

#[test]
fn steps_of_several_sequences_agree_with_the_cpu_backend() {
    for folder in folders() {
        let tokens: Vec<u32> = (0..40).map(|at| (at * 7 + 3) % 50).collect();
        let candle = Rig::open(&folder, Candle::cpu()).beside(&tokens);
        let cpu = Rig::open(&folder, Cpu::new(Isa::detect())).beside(&tokens);
        assert_eq!(candle.len(), cpu.len());
        let off = furthest(&candle, &cpu);
        assert!(off <= TOLERANCE, "{folder:?}: {off}");
    }
}

#[test]
fn a_cache_of_halves_is_near_the_one_of_floats() {
    let folder = &folders()[0];
    let tokens: Vec<u32> = (0..40).map(|at| (at * 7 + 3) % 50).collect();
    let rig = Rig::open(folder, Candle::cpu());
    let floats = rig.logits(&tokens, 16, KvDType::F32);
    for (dtype, near) in [(KvDType::F16, 0.02), (KvDType::Bf16, 0.15)] {
        let halves = rig.logits(&tokens, 16, dtype);
        let off = furthest(halves.iter().flatten(), floats.iter().flatten());
        assert!(off > 0.0 && off <= near, "{dtype:?}: {off}");
    }
}
