//! Damaged models are refused before anything is computed, with the file and the tensor named.

use std::path::Path;

use base::Bytes;
use engine::{Engine, EngineConfig, LoadOptions, ModelSource, StartError, load};

use crate::harness::{MODEL, config, fixtures, tiny};

fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("tiny").join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// What is said of the model in `folder`, causes included.
fn complaint(folder: &Path) -> String {
    let error = load(&ModelSource::Folder(folder.to_owned()), &LoadOptions::default()).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn change(folder: &Path, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = folder.join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Replaces a text of a header by one of the same length.
fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn a_truncated_file_is_named_with_what_is_missing() {
    let folder = copy("llama-f32");
    change(folder.path(), "model.safetensors", |bytes| bytes.truncate(bytes.len() - 100));
    let complaint = complaint(folder.path());
    assert!(complaint.contains("model.safetensors: tensor \"model.norm.weight\""), "{complaint}");
    assert!(complaint.contains("135808") && complaint.contains("135708"), "{complaint}");
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_named_with_their_file() {
    let folder = copy("llama-f32");
    change(folder.path(), "model.safetensors", |bytes| {
        replace(bytes, "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.xx_proj.weight");
    });
    let found = complaint(folder.path());
    assert!(
        found.contains("model.layers.1.mlp.up_proj.weight") && found.contains("model.safetensors"),
        "{found}"
    );

    let folder = copy("llama-f32");
    change(folder.path(), "config.json", |bytes| {
        replace(bytes, "\"intermediate_size\": 56", "\"intermediate_size\": 48");
    });
    let found = complaint(folder.path());
    assert!(found.contains("mlp") && found.contains("56") && found.contains("48"), "{found}");
    assert!(found.contains("model.safetensors"), "{found}");
}

#[test]
fn a_missing_shard_and_missing_files_are_named() {
    let folder = copy("qwen3-bf16-tied-sharded");
    std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(complaint(folder.path()).contains("model-00002-of-00002.safetensors"));
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = copy("llama-f32");
        std::fs::remove_file(folder.path().join(file)).unwrap();
        let complaint = complaint(folder.path());
        assert!(complaint.contains(file), "{complaint}");
    }
    let complaint = complaint(Path::new("/nowhere/at/all"));
    assert!(complaint.contains("/nowhere/at/all/"), "{complaint}");
}

#[test]
fn a_weight_that_is_no_number_is_refused_with_file_and_tensor() {
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let folder = copy("llama-f32");
        change(folder.path(), "model.safetensors", |bytes| {
            let end = bytes.len();
            bytes[end - 4..].copy_from_slice(&bad.to_le_bytes());
        });
        let model = load(&ModelSource::Folder(folder.path().to_owned()), &LoadOptions::default()).unwrap();
        let error = Engine::start(MODEL.into(), model, config()).err().unwrap();
        let StartError::Backend(error) = error else { panic!("{error:?}") };
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        assert!(cause.contains("model.norm.weight") && cause.contains("not a number"), "{cause}");
    }
}

#[test]
fn an_empty_file_and_what_is_no_file_are_refused_at_once() {
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let folder = copy("llama-f32");
        change(folder.path(), file, Vec::clear);
        let found = complaint(folder.path());
        assert!(found.contains(file) && found.contains("empty"), "{found}");
    }
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = copy("llama-f32");
        std::fs::remove_file(folder.path().join(file)).unwrap();
        std::fs::create_dir(folder.path().join(file)).unwrap();
        let found = complaint(folder.path());
        assert!(found.contains(file) && found.contains("not a regular file"), "{found}");
    }
}

#[test]
fn one_file_of_weights_wins_over_an_index_left_beside_it() {
    let folder = copy("llama-f32");
    let stale = br#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), stale).unwrap();
    let model = load(&ModelSource::Folder(folder.path().to_owned()), &LoadOptions::default()).unwrap();
    assert_eq!(model.weight_files().map(|(name, _)| name).collect::<Vec<_>>(), ["model.safetensors"]);
}

#[test]
fn a_head_beside_a_tied_embedding_is_used_where_they_differ() {
    let folder = copy("llama-f32");
    change(folder.path(), "config.json", |bytes| {
        replace(bytes, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\":  true");
    });
    let logits = |folder: &Path| {
        let model = load(&ModelSource::Folder(folder.to_owned()), &LoadOptions::default()).unwrap();
        assert!(!model.spec().tied_head);
        let engine = Engine::start(MODEL.into(), model, config()).unwrap();
        let logits = engine.logits(&[1, 2, 3], false).unwrap();
        engine.stop();
        logits
    };
    assert_eq!(logits(folder.path()), logits(copy("llama-f32").path()));
}

#[test]
fn every_flipped_byte_of_a_header_is_survived() {
    let folder = copy("llama-bf16-tied");
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in (0..header).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        std::fs::write(&path, bytes).unwrap();
        // Some flips leave a valid file (white space, metadata); none may panic.
        let _ = load(&ModelSource::Folder(folder.path().to_owned()), &LoadOptions::default());
    }
}

#[test]
fn a_folder_without_tokenizer_gives_logits_and_takes_no_request() {
    let folder = copy("llama-f32");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let options = LoadOptions { tokenizer_needed: false };
    let model = load(&ModelSource::Folder(folder.path().to_owned()), &options).unwrap();
    assert_eq!(model.formats(), ["F32"]);
    let engine = Engine::start(MODEL.into(), model, config()).unwrap();
    assert_eq!(engine.logits(&[1, 2, 3], false).unwrap()[0].len(), 264);
    let refused = crate::harness::submit(&engine, crate::harness::job(&[1], 1, Default::default()));
    assert!(refused.err().unwrap().to_string().contains("no tokenizer"));
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_the_numbers() {
    let start = |config: EngineConfig| {
        let model = load(&tiny("llama-f32"), &LoadOptions::default()).unwrap();
        Engine::start(MODEL.into(), model, config).err().unwrap()
    };
    let error = start(EngineConfig { kv_bytes: Some(Bytes(4096)), ..config() });
    assert!(
        matches!(&error, StartError::Capacity(cause) if cause.to_string().contains("4.0 KiB")),
        "{error:?}"
    );
    let error = start(EngineConfig { context: Some(100_000), ..config() });
    assert!(matches!(&error, StartError::Capacity(cause) if cause.to_string().contains("at most 256")));
    let error = start(EngineConfig { step_tokens_max: 8, batch_max: 9, ..config() });
    assert!(matches!(&error, StartError::Limits(cause) if cause.to_string().contains("a step of 8 tokens")));
    let error = start(EngineConfig { page_tokens: 5, ..config() });
    assert!(matches!(error, StartError::Backend(_)), "{error:?}");
}
