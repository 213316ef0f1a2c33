//! Models of odd shapes, divided in every way: each group says what the model says alone, or is refused in words before anything
//! is loaded.

use std::path::Path;

use engine::ModelSource;
use engine::group::{GroupMode, Member};
use model::checkpoint::DType;
use model::synth::{Synth, SynthFormat, SynthRequest};

use crate::group::{TOLERANCE, hold, steps};

/// (family, hidden, heads, KV heads, head size, feed-forward, layers, vocabulary, format, type, tied)
pub(crate) type Shape =
    (&'static str, usize, (usize, usize, usize), usize, usize, usize, SynthFormat, DType, bool);

fn shapes() -> Vec<Shape> {
    use SynthFormat::{Gguf, Mlx, Safetensors};
    let mlx = |bits, group| DType::Mlx { bits, group };
    vec![
        // Heads and columns that no number of ranks divides.
        ("llama", 60, (6, 3, 10), 100, 3, 307, Safetensors, DType::F32, false),
        ("qwen3", 36, (7, 7, 6), 51, 3, 301, Safetensors, DType::BF16, true),
        // One head's keys for all, and fewer of them than ranks.
        ("llama", 40, (5, 1, 8), 33, 4, 263, Safetensors, DType::F16, true),
        ("qwen3", 48, (4, 2, 12), 29, 5, 290, Safetensors, DType::F32, false),
        // Codes that share scales over blocks which ranks cannot cut.
        ("llama", 96, (3, 1, 32), 160, 3, 320, Gguf, DType::Q8_0, false),
        ("llama", 128, (4, 4, 32), 224, 2, 299, Gguf, DType::Q4_0, true),
        ("qwen3", 192, (6, 2, 32), 96, 3, 270, Gguf, DType::Q5_1, false),
        ("llama", 512, (4, 2, 128), 768, 2, 300, Gguf, DType::Q4K, false),
        ("qwen3", 256, (4, 2, 64), 512, 2, 300, Gguf, DType::Q6K, true),
        ("llama", 128, (4, 2, 32), 160, 2, 280, Gguf, DType::Mxfp4, false),
        ("llama", 256, (4, 2, 64), 320, 2, 300, Mlx, mlx(4, 64), false),
        ("qwen3", 128, (4, 1, 32), 96, 3, 300, Mlx, mlx(8, 32), true),
    ]
}

pub(crate) fn write(shape: &Shape, folder: &Path) -> ModelSource {
    let (family, hidden, (heads, kv_heads, head_dim), feed_forward, layers, vocabulary, format, dtype, tied) =
        *shape;
    let synth = Synth::new(&SynthRequest {
        family: family.to_owned(),
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim: Some(head_dim),
        feed_forward,
        vocabulary,
        context: 256,
        format,
        dtype,
        tied,
        seed: 5,
        ..SynthRequest::default()
    })
    .unwrap();
    let (mut bytes, _) = synth.header();
    (0..synth.tensors())
        .for_each(|index| synth.chunks(index).for_each(|chunk| bytes.extend_from_slice(&chunk)));
    let file = folder.join(format.file_name());
    std::fs::write(&file, bytes).unwrap();
    if format == SynthFormat::Gguf {
        return ModelSource::Folder(file);
    }
    let kit = synth.kit();
    std::fs::write(folder.join("config.json"), &kit.config).unwrap();
    std::fs::write(folder.join("tokenizer.json"), &kit.tokenizer).unwrap();
    ModelSource::Folder(folder.to_owned())
}

fn members(speeds: &[u32]) -> Vec<Member> {
    speeds.iter().map(|&speed| Member { speed, memory: None }).collect()
}

#[test]
fn odd_shapes_are_divided_exactly_or_refused_in_words() {
    use GroupMode::{Both, Pipeline, Tensor};
    let groups = [
        (Tensor, members(&[1, 1])),
        (Tensor, members(&[1, 1, 1])),
        (Tensor, members(&[1, 1, 1, 1])),
        (Tensor, members(&[1, 3])),
        (Tensor, members(&[5, 1, 2])),
        (Tensor, members(&[1; 7])),
        (Pipeline, members(&[1, 1])),
        (Pipeline, members(&[3, 1, 1])),
        (Both { stages: 2, tensor: 2 }, members(&[1, 2, 2, 1])),
    ];
    let mut told = Vec::new();
    for shape in shapes() {
        let folder = tempfile::tempdir().unwrap();
        let source = write(&shape, folder.path());
        let (ran, ties) = hold(&source, &steps(), &groups, TOLERANCE);
        told.push(format!("{shape:?}: {ran} of {} groups, {ties} close choices", groups.len()));
        assert!(ran >= 4, "{}", told.join("\n"));
    }
    println!("{}", told.join("\n"));
}
