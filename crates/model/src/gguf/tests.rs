//! GGUF files that we write ourselves, whole and damaged. Files by other writers are in `tests/`.

use base::Rng;

use super::*;
use crate::checkpoint::{CheckpointError, DType, TensorSource};
use crate::quant::dequantise_all;
use crate::spec::{LayerTensor, TensorRole};
use crate::synth::{Synth, SynthFormat, SynthRequest};

fn request(family: &str, dtype: DType) -> SynthRequest {
    SynthRequest {
        family: family.to_owned(),
        hidden: 256,
        layers: 2,
        feed_forward: 512,
        vocabulary: 400,
        head_dim: Some(32),
        format: SynthFormat::Gguf,
        dtype,
        mixed: true,
        ..SynthRequest::default()
    }
}

fn file(request: &SynthRequest) -> (Synth, Vec<u8>) {
    let synth = Synth::new(request).unwrap();
    let (mut bytes, total) = synth.header();
    for index in 0..synth.tensors() {
        synth.chunks(index).for_each(|chunk| bytes.extend_from_slice(&chunk));
    }
    assert_eq!(bytes.len() as u64, total);
    (synth, bytes)
}

const DTYPES: [DType; 12] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::Mxfp4,
];

#[test]
fn synthetic_files_open_as_what_they_were_made_from() {
    for family in ["llama", "qwen3"] {
        for dtype in DTYPES {
            let (synth, bytes) = file(&request(family, dtype));
            let parsed = GgufFile::parse("m.gguf", &bytes).unwrap();
            let open = kit(&parsed).unwrap().open().unwrap();
            let mut expected = synth.spec().clone();
            expected.stop_tokens = open.spec.stop_tokens.clone();
            assert_eq!((&open.spec, open.spec.stop_tokens.as_slice()), (&expected, &[256, 258][..]));
            assert_eq!(open.tokenizer.vocabulary_len(), 400);
            assert!(open.template.is_some());
            let text = open.tokenizer.encode("hé <|im_end|>", true).unwrap();
            let folder = Synth::new(&SynthRequest {
                format: SynthFormat::Safetensors,
                dtype: DType::F32,
                ..request(family, dtype)
            });
            let folder = folder.unwrap().kit().open().unwrap();
            assert_eq!(text, folder.tokenizer.encode("hé <|im_end|>", true).unwrap());
            let checkpoint = GgufCheckpoint::new(vec![parsed], &open.spec).unwrap();
            let role = TensorRole::Layer(1, LayerTensor::Up);
            let view = checkpoint.tensor(role).unwrap();
            assert_eq!((view.dtype, view.shape), (dtype, &[512, 256][..]));
            let values = dequantise_all(&view);
            let deviation = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
            assert!((0.04..0.09).contains(&deviation), "{dtype}: {deviation} for 1/16");
            let norm = checkpoint.tensor(TensorRole::FinalNorm).unwrap();
            assert!(dequantise_all(&norm).iter().all(|&x| x == 1.0));
        }
    }
}

/// What a family knows as halves is stored as neighbours.
#[test]
fn llamas_queries_and_keys_come_back_in_the_order_of_halves() {
    let (_, bytes) = file(&request("llama", DType::Q8_0));
    let parsed = || GgufFile::parse("m.gguf", &bytes).unwrap();
    let spec = kit(&parsed()).unwrap().open().unwrap().spec;
    let checkpoint = GgufCheckpoint::new(vec![parsed()], &spec).unwrap();
    let file = parsed();
    for (role, name) in
        [(LayerTensor::Query, "blk.0.attn_q.weight"), (LayerTensor::Key, "blk.0.attn_k.weight")]
    {
        let view = checkpoint.tensor(TensorRole::Layer(0, role)).unwrap();
        let (found, stored) = (dequantise_all(&view), dequantise_all(&file.tensor(name).unwrap().unwrap()));
        let row = |values: &[f32], row: usize| values[row * 256..(row + 1) * 256].to_vec();
        for head in 0..view.rows() / 32 {
            for pair in 0..16 {
                for half in 0..2 {
                    let (of_family, of_file) = (head * 32 + half * 16 + pair, head * 32 + 2 * pair + half);
                    assert_eq!(row(&found, of_family), row(&stored, of_file));
                }
            }
        }
    }
}

#[test]
fn a_truncated_file_names_itself_or_the_tensor_wherever_it_ends() {
    let (_, bytes) = file(&SynthRequest {
        hidden: 64,
        layers: 1,
        feed_forward: 64,
        heads: 2,
        kv_heads: 1,
        ..request("llama", DType::Q8_0)
    });
    let mut rng = Rng::new(3);
    let ends =
        (0..2_000).map(|_| rng.below(bytes.len() as u64) as usize).chain([0, 1, 4, 8, 24, bytes.len() - 1]);
    for end in ends {
        let error = GgufFile::parse("m.gguf", &bytes[..end]).unwrap_err().to_string();
        assert!(error.contains("m.gguf"), "{error}");
    }
}

/// Random damage ends in an error or in a model, never in a panic or in memory without end.
#[test]
fn damage_never_panics() {
    let mut rng = Rng::new(11);
    for family in crate::family::names() {
        let sizes = SynthRequest {
            hidden: 64,
            layers: 2,
            feed_forward: 64,
            heads: 2,
            kv_heads: 1,
            ..request(family, DType::Q8_0)
        };
        let (synth, bytes) = file(&sizes);
        let metadata = bytes.len() - synth_tensor_bytes(&bytes);
        for _ in 0..300 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(metadata as u64) as usize;
                match rng.below(3) {
                    0 => damaged[at] ^= 1 << rng.below(8),
                    1 => damaged[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
                    _ => {
                        let wide: u64 =
                            [0, 1, u64::MAX, 1 << 63, 1 << 32, rng.next_u64()][rng.below(6) as usize];
                        let end = (at + 8).min(metadata);
                        damaged[at..end].copy_from_slice(&wide.to_le_bytes()[..end - at]);
                    }
                }
            }
            open_all(&damaged, synth.spec());
        }
    }
}

fn synth_tensor_bytes(bytes: &[u8]) -> usize {
    GgufFile::parse("m.gguf", bytes).unwrap().tensor_bytes() as usize
}

fn open_all(bytes: &[u8], spec: &crate::spec::ModelSpec) {
    let Ok(file) = GgufFile::parse("m.gguf", bytes) else { return };
    let own = kit(&file).ok().and_then(|kit| kit.open().ok());
    let spec = own.map_or_else(|| spec.clone(), |open| open.spec);
    if let Ok(checkpoint) = GgufCheckpoint::new(vec![file], &spec) {
        let _ = checkpoint.tensor(TensorRole::Embedding).map(|view| dequantise_all(&view));
    }
}

/// A header with the given counts, metadata and infos.
fn raw(version: u32, tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend(tensors.to_le_bytes());
    out.extend(entries.to_le_bytes());
    out.extend(rest);
    out
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn info(name: &str, sides: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((sides.len() as u32).to_le_bytes());
    sides.iter().for_each(|side| out.extend(side.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

#[test]
fn hostile_headers_are_refused_by_what_is_wrong() {
    let entry = |key: &str, kind: u32, value: &[u8]| [&text(key), &kind.to_le_bytes()[..], value].concat();
    let array = |kind: u32, len: u64| [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat();
    let padded = |mut bytes: Vec<u8>, data: usize| {
        let start = bytes.len().next_multiple_of(32);
        bytes.resize(start + data, 0);
        bytes
    };
    let huge = u64::MAX;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGML".to_vec(), "does not begin with GGUF"),
        (raw(1, 0, 0, &[]), "version 1"),
        (raw(3u32.swap_bytes(), 0, 0, &[]), "big-endian"),
        (raw(3, huge, 0, &[]), "tensors, which do not fit"),
        (raw(3, 0, huge, &[]), "metadata, which do not fit"),
        (raw(3, 0, 1, &[&huge.to_le_bytes()[..], &[0; 16]].concat()), "a metadata key would take"),
        (raw(3, 0, 1, &entry("k", 99, &[0; 8])), "\"k\" is of type 99"),
        (raw(3, 0, 1, &entry("k", 7, &[2])), "neither true nor false"),
        (raw(3, 0, 1, &entry("k", 9, &array(9, 1))), "array of arrays"),
        (raw(3, 0, 1, &entry("k", 9, &array(4, huge / 2))), "do not fit"),
        (raw(3, 0, 1, &entry("k", 9, &array(8, 3))), "do not fit"),
        (raw(3, 0, 2, &[entry("k", 0, &[1]), entry("k", 0, &[1])].concat()), "\"k\" comes twice"),
        (raw(3, 0, 1, &entry("general.alignment", 4, &[3, 0, 0, 0])), "no power of two"),
        (padded(raw(3, 1, 0, &info("t", &[], 0, 0)), 64), "0 sides"),
        (raw(3, 1, 0, &info("t", &[1; 5], 0, 0)), "5 sides"),
        (padded(raw(3, 1, 0, &info("t", &[4], 0, 1)), 64), "no multiple of 32"),
        (padded(raw(3, 1, 0, &info("t", &[33], 2, 0)), 64), "no whole blocks of 32"),
        (padded(raw(3, 1, 0, &info("t", &[huge, huge], 0, 0)), 64), "overflows"),
        (padded(raw(3, 1, 0, &info("t", &[4], 0, huge - 31)), 64), "truncated"),
        (padded(raw(3, 1, 0, &info("t", &[32], 0, 0)), 64), "truncated"),
        (padded(raw(3, 1, 0, &info("t", &[4], 77, 0)), 64), "type 77"),
        (padded(raw(3, 2, 0, &[info("t", &[4], 0, 0), info("t", &[4], 0, 32)].concat()), 64), "comes twice"),
        (
            padded(raw(3, 2, 0, &[info("t", &[16], 0, 0), info("u", &[4], 0, 32)].concat()), 64),
            "within tensor \"t\"",
        ),
    ];
    for (bytes, expected) in cases {
        let error = GgufFile::parse("m.gguf", &bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }
    assert!(GgufFile::parse("m.gguf", &raw(2, 0, 0, &[])).is_ok());
}

#[test]
fn what_no_model_can_be_made_of_is_named() {
    let with = |write: &dyn Fn(&mut GgufWriter)| {
        let mut writer = GgufWriter::default();
        write(&mut writer);
        let (mut bytes, total) = writer.finish();
        bytes.resize(total as usize, 0);
        let file = GgufFile::parse("m.gguf", &bytes).unwrap();
        kit(&file).unwrap_err().to_string()
    };
    assert!(with(&|_| {}).contains("general.architecture"));
    assert!(
        with(&|w| w.text("general.architecture", "mamba"))
            .contains("\"mamba\" is unknown; this build knows llama")
    );
    assert!(with(&|w| w.text("general.architecture", "llama")).contains("\"llama.block_count\" is missing"));
    let tokenizer = |kind: &'static str, pre: &'static str, tokens: &'static [&'static str]| {
        with(&|w| {
            w.text("general.architecture", "llama");
            w.text("tokenizer.ggml.model", kind);
            w.text("tokenizer.ggml.pre", pre);
            w.texts("tokenizer.ggml.tokens", tokens.iter().copied());
            w.texts("tokenizer.ggml.merges", [].into_iter());
        })
    };
    assert!(tokenizer("rwkv", "default", &["a"]).contains("\"rwkv\"; this build knows gpt2"));
    assert!(tokenizer("gpt2", "klingon", &["a"]).contains("\"klingon\", a way of splitting"));
    assert!(tokenizer("gpt2", "default", &["a"]).contains("lacks a token for some byte"));
    assert!(tokenizer("gpt2", "default", &[]).contains("no list of texts"));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let part = |number: u32, count: u32, tensor: &str| {
        let mut writer = GgufWriter::default();
        writer.unsigned("split.no", number);
        writer.unsigned("split.count", count);
        writer.unsigned("split.tensors.count", 2);
        writer.tensor(tensor, DType::F32, &[8]);
        let (mut bytes, total) = writer.finish();
        bytes.resize(total as usize, 0);
        bytes
    };
    let (synth, _) = file(&request("llama", DType::F32));
    let join = |parts: &[Vec<u8>]| -> CheckpointError {
        let files =
            parts.iter().enumerate().map(|(n, bytes)| GgufFile::parse(&format!("{n}.gguf"), bytes).unwrap());
        GgufCheckpoint::new(files.collect(), synth.spec()).unwrap_err()
    };
    assert!(join(&[part(0, 2, "a")]).to_string().contains("one of 2 parts, and 1 are given"));
    assert!(
        join(&[part(1, 2, "a"), part(0, 2, "b")])
            .to_string()
            .contains("0.gguf is not readable: it is not part 1 of 2")
    );
    assert!(join(&[part(0, 2, "a"), part(1, 2, "a")]).to_string().contains("in both 0.gguf and 1.gguf"));
    assert!(join(&[part(0, 2, "a"), part(1, 2, "b")]).to_string().contains("token_embd.weight"));
}

#[test]
fn a_tensor_too_many_and_one_too_few_are_named() {
    let (synth, _) = file(&request("llama", DType::F32));
    let make = |left_out: Option<&str>, extra: Option<&str>| {
        let mut writer = GgufWriter::default();
        writer.text("general.architecture", "llama");
        for (role, _, shape) in crate::checkpoint::expected_tensors(synth.spec()) {
            let name = super::gguf_name("llama", role).unwrap();
            if Some(name.as_str()) != left_out {
                writer.tensor(&name, DType::F32, &shape);
            }
        }
        if let Some(extra) = extra {
            writer.tensor(extra, DType::F32, &[8]);
        }
        let (mut bytes, total) = writer.finish();
        bytes.resize(total as usize, 0);
        bytes
    };
    let open = |bytes: &[u8]| {
        GgufCheckpoint::new(vec![GgufFile::parse("m.gguf", bytes).unwrap()], synth.spec()).map(|_| ())
    };
    assert!(open(&make(None, None)).is_ok());
    assert!(open(&make(None, Some("rope_freqs.weight"))).is_ok());
    assert!(open(&make(None, Some("blk.7.attn_norm.weight"))).is_ok(), "layers beyond guess ahead");
    let error = open(&make(None, Some("blk.1.attn_q.bias"))).unwrap_err().to_string();
    assert!(error.contains("blk.1.attn_q.bias"), "{error}");
    let error = open(&make(Some("blk.1.ffn_up.weight"), None)).unwrap_err().to_string();
    assert!(error.contains("\"blk.1.ffn_up.weight\" is missing in m.gguf"), "{error}");
}

#[test]
fn a_file_that_pools_gives_embeddings_and_puts_the_end_behind_texts() {
    let (_, bytes) = file(&request("qwen3", DType::F32));
    let opened = |kind: u32| {
        let (number, flag) = (4u32.to_le_bytes(), 7u32.to_le_bytes());
        // The last one fills the header up, so that what follows stays where it is: places are multiples of 32.
        let more = [
            [text("qwen3.pooling_type"), number.to_vec(), kind.to_le_bytes().to_vec()].concat(),
            [text("tokenizer.ggml.add_eos_token"), flag.to_vec(), vec![1]].concat(),
            [text("a.filler"), flag.to_vec(), vec![1]].concat(),
        ]
        .concat();
        assert!(more.len().is_multiple_of(32));
        let entries = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 3;
        let bytes = [&bytes[..16], &entries.to_le_bytes(), &more, &bytes[24..]].concat();
        kit(&GgufFile::parse("m.gguf", &bytes).unwrap()).unwrap().open().unwrap()
    };
    let pooled = opened(3);
    let pooling = pooled.spec.pooling.unwrap();
    assert_eq!((pooling.rows, pooling.normalise), (crate::spec::PooledRows::Last, true));
    let tokens = pooled.encode_text("hi").unwrap();
    assert!(pooled.spec.stop_tokens.contains(tokens.last().unwrap()), "{tokens:?}");
    let chats = opened(0);
    assert!(chats.spec.pooling.is_none() && chats.no_embeddings.unwrap().contains("say nothing"));
    let ranks = opened(4);
    assert!(ranks.spec.pooling.is_none() && ranks.no_embeddings.unwrap().contains("pooling_type is 4"));
}
