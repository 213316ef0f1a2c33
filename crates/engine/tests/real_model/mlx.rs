//! MLX checkpoints in shapes that no fixture has: several files under an index, and groups of any size.

use std::path::Path;

use engine::{ActivationFormat, EngineConfig, ModelSource, WeightFormat};
use model::checkpoint::DType;
use model::synth::SynthFormat;
use serde_json::{Map, Value, json};

use crate::harness::{config, fixtures, prompt, start};
use crate::shapes::{Shape, write};

/// Writes a safetensors file of these tensors of `whole`, whose header is `header`.
fn shard(path: &Path, names: &[&String], header: &Map<String, Value>, whole: &[u8]) {
    let (mut entries, mut bytes) = (Map::new(), Vec::new());
    for &name in names {
        let mut entry = header[name].clone();
        let offset = |at: usize| header[name]["data_offsets"][at].as_u64().unwrap() as usize;
        let begin = bytes.len();
        bytes.extend_from_slice(&whole[offset(0)..offset(1)]);
        entry["data_offsets"] = json!([begin, bytes.len()]);
        entries.insert(name.clone(), entry);
    }
    let header = Value::Object(entries).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    std::fs::write(path, file).unwrap();
}

#[test]
fn an_mlx_model_in_several_files_is_the_one_in_one() {
    let one = fixtures().join("quantised/qwen3-mlx");
    let several = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&one).unwrap().map(Result::unwrap) {
        if entry.file_name() != "model.safetensors" && entry.path().is_file() {
            std::fs::copy(entry.path(), several.path().join(entry.file_name())).unwrap();
        }
    }
    let bytes = std::fs::read(one.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header.remove("__metadata__");
    let mut map = Map::new();
    // A tensor's codes, scales and biases come apart too.
    for part in 0..3usize {
        let file = format!("model-0000{}-of-00003.safetensors", part + 1);
        let names: Vec<&String> = header.keys().skip(part).step_by(3).collect();
        shard(&several.path().join(&file), &names, &header, &bytes[8 + length..]);
        names.into_iter().for_each(|name| drop(map.insert(name.clone(), json!(file))));
    }
    let index = json!({"metadata": {"total_size": bytes.len()}, "weight_map": map});
    std::fs::write(several.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let tokens = prompt(3, 40);
    let expected = start(&ModelSource::Folder(one), config()).logits(&tokens, true).unwrap();
    let found = start(&ModelSource::Folder(several.path().to_owned()), config()).logits(&tokens, true);
    assert_eq!(found.unwrap(), expected);
}

#[test]
fn mlx_groups_of_any_size_are_computed_with_as_what_they_stand_for() {
    for (bits, group) in [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)] {
        let dtype = DType::Mlx { bits, group };
        let shape: Shape = ("llama", 256, (4, 2, 64), 384, 2, 300, SynthFormat::Mlx, dtype, false);
        let folder = tempfile::tempdir().unwrap();
        let source = write(&shape, folder.path());
        let exact = EngineConfig { activations: ActivationFormat::F32, ..config() };
        let in_f32 = EngineConfig { weights: WeightFormat::F32, ..config() };
        let tokens = prompt(5, 60);
        let expected = start(&source, in_f32).logits(&tokens, true).unwrap();
        let found = start(&source, exact).logits(&tokens, true).unwrap();
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            let off = (found - expected).abs() / (1.0 + expected.abs());
            assert!(off <= 3e-5, "{bits} bits in groups of {group}: {found} for {expected}");
        }
    }
}
