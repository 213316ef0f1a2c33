//! Synthetic models are whole models: they open, verify and follow from their seed.

use serde_json::json;

use super::*;
use crate::checkpoint::{Checkpoint, Quantisation, SafetensorsFile, TensorSource, expected_tensors};
use crate::gguf::{self, GgufCheckpoint, GgufFile};
use crate::spec::{LayerTensor, TensorRole};
use crate::template::ChatExtra;

fn request() -> SynthRequest {
    SynthRequest { hidden: 64, layers: 2, feed_forward: 96, vocabulary: 700, ..SynthRequest::default() }
}

fn file(synth: &Synth) -> Vec<u8> {
    let (mut bytes, total) = synth.header();
    for index in 0..synth.tensors() {
        for chunk in synth.chunks(index) {
            bytes.extend_from_slice(&chunk);
        }
    }
    assert_eq!(bytes.len() as u64, total);
    bytes
}

#[test]
fn every_family_and_type_makes_a_checkpoint_that_verifies_and_a_kit_that_opens() {
    for family in family::names() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for tied in [true, false] {
                let request =
                    SynthRequest { family: family.to_owned(), dtype, tied, head_dim: Some(16), ..request() };
                let synth = Synth::new(&request).unwrap();
                let bytes = file(&synth);
                let parsed = SafetensorsFile::parse("model.safetensors", &bytes).unwrap();
                let checkpoint = Checkpoint::new(vec![parsed]).unwrap();
                let open = synth.kit().open().unwrap();
                checkpoint.verify(&open.spec).unwrap();
                assert_eq!((&open.spec, open.spec.family), (synth.spec(), family));
                assert_eq!(checkpoint.tensor(TensorRole::FinalNorm).unwrap().dtype, dtype);
            }
        }
    }
}

#[test]
fn every_family_is_written_as_gguf_that_says_the_same_model() {
    for family in family::names() {
        for dtype in [DType::F32, DType::Q8_0, DType::Q4K, DType::Mxfp4] {
            let (hidden, heads) = if dtype == DType::Q4K { (256, 8) } else { (64, 4) };
            let sizes = SynthRequest { hidden, heads, kv_heads: 2, ..request() };
            let request = SynthRequest {
                family: family.to_owned(),
                dtype,
                format: SynthFormat::Gguf,
                head_dim: Some(32),
                ..sizes
            };
            let synth = Synth::new(&request).unwrap();
            let bytes = file(&synth);
            let parsed = GgufFile::parse("model.gguf", &bytes).unwrap();
            let open = gguf::kit(&parsed).unwrap().open().unwrap();
            // Mistral is Llama there, and what is said of ropes comes in other words.
            let mut expected = synth.spec().clone();
            expected.family = if family == "mistral" { "llama" } else { expected.family };
            expected.stop_tokens = open.spec.stop_tokens.clone();
            assert_eq!(open.spec, expected, "{family} {dtype}");
            let mut stored = open.spec.clone();
            gguf::as_stored(&mut stored);
            let checkpoint = GgufCheckpoint::new(vec![parsed], &stored).unwrap();
            for (role, ..) in expected_tensors(&stored) {
                checkpoint.tensor(role).unwrap();
            }
        }
    }
}

#[test]
fn every_family_is_written_with_mlx_codes() {
    for family in family::names() {
        for (bits, group) in [(4, 32), (4, 64), (8, 128), (8, 32)] {
            let dtype = DType::Mlx { bits, group };
            let (format, hidden) = (SynthFormat::Mlx, 128);
            let sizes = SynthRequest { hidden, head_dim: Some(32), feed_forward: 64, ..request() };
            let request = SynthRequest { family: family.to_owned(), dtype, format, ..sizes };
            let synth = Synth::new(&request).unwrap();
            let bytes = file(&synth);
            let parsed = SafetensorsFile::parse("model.safetensors", &bytes).unwrap();
            let kit = synth.kit();
            let quantisation = Quantisation::from_config(&kit.config).unwrap();
            let checkpoint = Checkpoint::quantised(vec![parsed], &quantisation).unwrap();
            checkpoint.verify(&kit.open().unwrap().spec).unwrap();
            assert_eq!(checkpoint.tensor(TensorRole::Embedding).unwrap().dtype, dtype);
        }
    }
}

#[test]
fn every_token_up_to_the_vocabulary_has_a_text_of_its_own() {
    let open = Synth::new(&request()).unwrap().kit().open().unwrap();
    assert_eq!(open.tokenizer.vocabulary_len(), 700);
    let words: std::collections::HashSet<String> =
        (VOCABULARY_MIN as u32..700).map(|token| open.tokenizer.decode(&[token], false)).collect();
    assert_eq!(words.len(), 700 - VOCABULARY_MIN);
    assert!(words.contains(" bebe") || words.contains(" baba"), "{:?}", words.iter().next());
    let messages = [json!({"role": "user", "content": "hé"})];
    let tokens = open.encode_chat(&messages, None, &ChatExtra::default()).unwrap();
    assert_eq!(tokens.iter().filter(|&&token| token >= 256).collect::<Vec<_>>(), [&257, &258, &257]);
    assert_eq!(
        open.tokenizer.decode(&tokens, false),
        "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn the_whole_file_follows_from_the_seed() {
    let make = |seed| file(&Synth::new(&SynthRequest { seed, ..request() }).unwrap());
    assert_eq!(make(1), make(1));
    assert_ne!(make(1), make(2));
}

#[test]
fn weights_deviate_as_they_should_and_norms_are_one() {
    let synth = Synth::new(&SynthRequest { dtype: DType::F32, ..request() }).unwrap();
    let bytes = file(&synth);
    let checkpoint = Checkpoint::new(vec![SafetensorsFile::parse("f", &bytes).unwrap()]).unwrap();
    let values = |role| -> Vec<f32> {
        let view = checkpoint.tensor(role).unwrap();
        view.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let up = values(TensorRole::Layer(1, LayerTensor::Up));
    let deviation = (up.iter().map(|x| x * x).sum::<f32>() / up.len() as f32).sqrt();
    assert!((deviation - 0.125).abs() < 0.005, "{deviation}");
    assert!((up.iter().sum::<f32>() / up.len() as f32).abs() < 0.01);
    assert!(values(TensorRole::FinalNorm).iter().all(|&x| x == 1.0));
}

#[test]
fn a_request_that_makes_no_model_is_refused_by_what_is_wrong() {
    let error = |change: fn(&mut SynthRequest)| {
        let mut request = request();
        change(&mut request);
        let error = Synth::new(&request).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    };
    assert!(error(|r| r.family = "gpt".to_owned()).contains("llama, mistral"));
    assert!(error(|r| r.vocabulary = 258).contains("259"));
    assert!(error(|r| r.heads = 0).contains("num_attention_heads"));
    assert!(error(|r| r.kv_heads = 3).contains("num_key_value_heads"));
    assert!(error(|r| r.hidden = 65).contains("hidden_size"));
    assert!(error(|r| r.layers = usize::MAX).contains("num_hidden_layers"));
    assert!(error(|r| r.head_dim = Some(7)).contains("head_dim"));
    assert!(error(|r| r.experts = Some(4)).contains("gemma4, gpt_oss, qwen3_moe, qwen3_5_moe have"));
}
