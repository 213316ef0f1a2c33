//! The models that the tests serve: random weights, so small that an answer takes milliseconds.

use std::io::Write;
use std::path::{Path, PathBuf};

use base::Bytes;
use engine::ModelSource;
use model::synth::{Synth, SynthRequest};
use provider::ModelConfig;

const FILES: [&str; 4] = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// A tiny Llama with a long context, so that an answer can be as long as a test wants.
pub(crate) fn tiny(name: &str, home: &Path) -> ModelConfig {
    let model = fixture("llama-f32", name, home);
    let config = home.join(name).join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let longer = text.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 65536");
    assert_ne!(text, longer, "the fixture's context is no longer where this looks for it");
    std::fs::write(config, longer).unwrap();
    model
}

/// Another model, of another family.
pub(crate) fn other(name: &str, home: &Path) -> ModelConfig {
    fixture("qwen3-f32", name, home)
}

fn fixture(which: &str, name: &str, home: &Path) -> ModelConfig {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/tiny").join(which);
    let folder = home.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for file in FILES {
        // A provider of the same home may be reading still: its file is replaced, never cut under its feet.
        let fresh = folder.join("fresh");
        std::fs::copy(from.join(file), &fresh).unwrap();
        std::fs::rename(fresh, folder.join(file)).unwrap();
    }
    serving(name, folder)
}

/// A model whose folder is not there.
pub(crate) fn missing(name: &str, home: &Path) -> ModelConfig {
    serving(name, home.join("nowhere").join(name))
}

fn serving(name: &str, folder: PathBuf) -> ModelConfig {
    let mut model = ModelConfig::new(name.into(), ModelSource::Folder(folder));
    model.engine.threads = Some(1);
    model.engine.kv_bytes = Some(Bytes(64 << 20));
    model.engine.batch_max = 8;
    model.engine.waiting_max = 8;
    model
}

/// A model of some hundred megabytes, so that reading it takes a while.
pub(crate) fn large(name: &str, home: &Path) {
    let request = SynthRequest { hidden: 1024, layers: 24, feed_forward: 2048, ..SynthRequest::default() };
    let synth = Synth::new(&request).unwrap();
    let folder = home.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let kit = synth.kit();
    std::fs::write(folder.join("tokenizer.json"), &kit.tokenizer).unwrap();
    if let Some(config) = &kit.tokenizer_config {
        std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
    }
    let mut file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
    let (header, _) = synth.header();
    file.write_all(&header).unwrap();
    (0..synth.tensors()).for_each(|at| synth.chunks(at).for_each(|chunk| file.write_all(&chunk).unwrap()));
    std::fs::write(folder.join("config.json"), &kit.config).unwrap();
}
