//! Files that are whole, and every way in which one is not.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::family::spec_from_config;

const CONFIG: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 12, "vocab_size": 10,
    "max_position_embeddings": 64, "tie_word_embeddings": true}"#;

fn spec() -> ModelSpec {
    spec_from_config(CONFIG.as_bytes(), None).unwrap()
}

/// A file with `header` as it is and `data` zero bytes after it.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A file with `tensors`, all zero.
fn file(tensors: &[(String, DType, Vec<usize>)]) -> Vec<u8> {
    let (mut bytes, total) = safetensors_header(tensors);
    bytes.resize(total as usize, 0);
    bytes
}

fn needed() -> Vec<(String, DType, Vec<usize>)> {
    expected_tensors(&spec()).into_iter().map(|(_, name, shape)| (name, DType::BF16, shape)).collect()
}

fn refusal(bytes: &[u8]) -> String {
    let error = SafetensorsFile::parse("model.safetensors", bytes).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    error
}

#[test]
fn tensors_are_found_where_they_lie() {
    let tensors = [("a".to_owned(), DType::F32, vec![2, 1]), ("b".to_owned(), DType::BF16, vec![3])];
    let mut bytes = file(&tensors);
    let end = bytes.len();
    bytes[end - 14..].copy_from_slice(&(0..14).collect::<Vec<u8>>());
    let parsed = SafetensorsFile::parse("f", &bytes).unwrap();
    assert_eq!(parsed.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(parsed.tensor("a").unwrap().bytes, [0, 1, 2, 3, 4, 5, 6, 7]);
    let b = parsed.tensor("b").unwrap();
    assert_eq!((b.dtype, b.shape, b.bytes), (DType::BF16, [3].as_slice(), [8, 9, 10, 11, 12, 13].as_slice()));
    assert!(parsed.tensor("c").is_err());
}

#[test]
fn a_whole_checkpoint_verifies_and_counts_its_parameters() {
    let bytes = file(&needed());
    let checkpoint =
        Checkpoint::new(vec![SafetensorsFile::parse("model.safetensors", &bytes).unwrap()]).unwrap();
    checkpoint.verify(&spec()).unwrap();
    assert_eq!(parameters(&spec()) * 2, checkpoint.tensor_bytes());
    let view = checkpoint.tensor(TensorRole::Layer(1, crate::spec::LayerTensor::Down)).unwrap();
    assert_eq!((view.name, view.shape), ("model.layers.1.mlp.down_proj.weight", [8, 12].as_slice()));
}

#[test]
fn a_missing_misshapen_or_strange_tensor_is_named_with_its_file() {
    let check = |tensors: &[(String, DType, Vec<usize>)]| {
        let bytes = file(tensors);
        let parsed = SafetensorsFile::parse("model.safetensors", &bytes).unwrap();
        Checkpoint::new(vec![parsed]).unwrap().verify(&spec()).unwrap_err().to_string()
    };
    let mut missing = needed();
    let (name, ..) = missing.remove(5);
    let error = check(&missing);
    assert!(error.contains(&name) && error.contains("missing in model.safetensors"), "{error}");

    let mut misshapen = needed();
    misshapen[3].2.reverse();
    misshapen[3].2.push(1);
    let error = check(&misshapen);
    assert!(error.contains(&misshapen[3].0) && error.contains("config.json asks for"), "{error}");

    let mut strange = needed();
    strange.push(("model.layers.2.mlp.up_proj.weight".to_owned(), DType::BF16, vec![1]));
    let error = check(&strange);
    assert!(error.contains("model.layers.2.mlp.up_proj.weight") && error.contains("no place"), "{error}");
}

#[test]
fn leftovers_of_older_exporters_are_tolerated() {
    let mut tensors = needed();
    tensors.push(("lm_head.weight".to_owned(), DType::BF16, vec![10, 8]));
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), DType::F32, vec![2]));
    let bytes = file(&tensors);
    let parsed = SafetensorsFile::parse("f", &bytes).unwrap();
    Checkpoint::new(vec![parsed]).unwrap().verify(&spec()).unwrap();
}

#[test]
fn names_without_their_prefix_are_those_of_a_decoder_saved_alone() {
    let mut tensors = needed();
    for (name, ..) in &mut tensors {
        *name = name.strip_prefix("model.").unwrap().to_owned();
    }
    let bytes = file(&tensors);
    let parsed = || SafetensorsFile::parse("f", &bytes).unwrap();
    Checkpoint::new(vec![parsed()]).unwrap().verify(&spec()).unwrap();
    let index = ShardIndex::parse("i", br#"{"weight_map": {"norm.weight": "f"}}"#).unwrap();
    Checkpoint::sharded(&index, vec![parsed()], &Quantisation::default()).unwrap().verify(&spec()).unwrap();
}

#[test]
fn a_tied_embedding_may_be_stored_as_the_head_and_an_untied_one_may_not() {
    let mut tensors = needed();
    tensors[0].0 = "lm_head.weight".to_owned();
    let bytes = file(&tensors);
    let checkpoint = Checkpoint::new(vec![SafetensorsFile::parse("f", &bytes).unwrap()]).unwrap();
    checkpoint.verify(&spec()).unwrap();
    assert_eq!(checkpoint.tensor(TensorRole::Embedding).unwrap().name, "lm_head.weight");
    let error = checkpoint.verify(&ModelSpec { tied_head: false, ..spec() }).unwrap_err().to_string();
    assert!(error.contains("model.embed_tokens.weight") && error.contains("missing"), "{error}");
}

#[test]
fn a_head_that_differs_from_the_embedding_is_one_of_its_own() {
    let own = |last: u8| {
        let mut tensors = needed();
        tensors.push(("lm_head.weight".to_owned(), DType::BF16, vec![10, 8]));
        let mut bytes = file(&tensors);
        *bytes.last_mut().unwrap() = last;
        Checkpoint::new(vec![SafetensorsFile::parse("f", &bytes).unwrap()]).unwrap().has_own_head()
    };
    assert!(!own(0));
    assert!(own(1));
}

#[test]
fn a_type_that_weights_may_not_have_is_refused_when_it_is_asked_for() {
    let header = r#"{"q": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}"#;
    let bytes = raw(header, 4);
    let parsed = SafetensorsFile::parse("f", &bytes).unwrap();
    let error = parsed.tensor("q").unwrap_err().to_string();
    assert!(error.contains("\"q\"") && error.contains("I8") && error.contains("BF16"), "{error}");
}

#[test]
fn a_truncated_file_says_how_much_is_there_and_how_much_should_be() {
    assert!(refusal(b"").contains("should have 8 bytes and has 0"));
    let bytes = raw("{}", 0);
    assert!(refusal(&bytes[..9]).contains("should have 10 bytes and has 9"));
    let bytes = file(&needed());
    let error = refusal(&bytes[..bytes.len() - 1]);
    assert!(error.contains("model.norm.weight") && error.contains("ends at byte"), "{error}");
}

#[test]
fn a_header_that_is_too_long_or_no_json_is_refused() {
    let mut bytes = raw("{}", 0);
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(&bytes).contains("18446744073709551615 bytes"));
    bytes[..8].copy_from_slice(&100_000_000u64.to_le_bytes());
    assert!(refusal(&bytes).contains("truncated"));
    for header in ["", "x", "[]", "null", "{\"a\": 1}", "{\"a\": {}}", "{\"\\ud800\": {}}", "{} {}"] {
        assert!(refusal(&raw(header, 0)).contains("bad header"), "{header}");
    }
    let deep = "[".repeat(100_000);
    assert!(refusal(&raw(&format!("{{\"__metadata__\": {deep}"), 0)).contains("bad header"));
}

fn entry(dtype: &str, shape: Value, begin: u64, end: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})
}

#[test]
fn an_entry_that_makes_no_sense_is_refused_with_the_tensors_name() {
    let cases = [
        (entry("F32", json!([2]), 0, 9), "ends at byte 9"),
        (entry("F32", json!([2]), 8, 0), "begins at 8, after its end"),
        (entry("F32", json!([3]), 0, 8), "takes 12 bytes, but lies in 8"),
        (entry("F32", json!([u64::MAX, 8]), 0, 8), "overflows"),
        (entry("F32", json!([1u64 << 62]), 0, 8), "overflows"),
        (entry("F32", json!([0, u64::MAX]), 0, 8), "takes 0 bytes, but lies in 8"),
        (entry("Q4_K", json!([2]), 0, 8), "no type that can be read"),
        (entry("F32", json!([1, 1, 1, 1, 1, 1, 1, 1, 2]), 0, 8), "9 sides"),
        (entry("F32", json!([2]), u64::MAX - 7, u64::MAX), "ends at byte"),
    ];
    for (entry, detail) in cases {
        let error = refusal(&raw(&json!({"w": entry}).to_string(), 8));
        assert!(error.contains("\"w\"") && error.contains(detail), "{error}");
    }
    let error = refusal(&raw(r#"{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}"#, 8));
    assert!(error.contains("\"w\""), "{error}");
}

#[test]
fn tensors_that_overlap_leave_holes_or_come_twice_are_refused() {
    let two = |a: (u64, u64), b: (u64, u64)| {
        let header = json!({"a": entry("U8", json!([a.1 - a.0]), a.0, a.1), "b": entry("U8", json!([b.1 - b.0]), b.0, b.1)});
        refusal(&raw(&header.to_string(), 8))
    };
    assert!(two((0, 4), (3, 8)).contains("\"b\": begins at 3, which overlaps"));
    assert!(two((0, 3), (4, 8)).contains("\"b\": begins at 4, which leaves a hole"));
    assert!(two((0, 2), (2, 6)).contains("2 bytes after its last tensor"));
    let twice = r#"{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}"#;
    assert!(refusal(&raw(twice, 8)).contains("\"a\": comes twice"));
}

fn mlx(change: impl Fn(&mut crate::synth::SynthRequest)) -> (crate::synth::Synth, Vec<u8>) {
    let mut request = crate::synth::SynthRequest {
        format: crate::synth::SynthFormat::Mlx,
        dtype: DType::Mlx { bits: 4, group: 64 },
        hidden: 128,
        layers: 1,
        feed_forward: 256,
        vocabulary: 300,
        ..crate::synth::SynthRequest::default()
    };
    change(&mut request);
    let synth = crate::synth::Synth::new(&request).unwrap();
    let (mut bytes, _) = synth.header();
    (0..synth.tensors()).for_each(|at| synth.chunks(at).for_each(|chunk| bytes.extend(chunk)));
    (synth, bytes)
}

#[test]
fn mlx_checkpoints_verify_and_read_as_wide_as_they_were_made() {
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let (synth, bytes) = mlx(|r| r.dtype = DType::Mlx { bits, group });
            let kit = synth.kit();
            kit.open().unwrap();
            let quantisation = Quantisation::from_config(&kit.config).unwrap();
            let file = SafetensorsFile::parse("model.safetensors", &bytes).unwrap();
            let checkpoint = Checkpoint::quantised(vec![file], &quantisation).unwrap();
            checkpoint.verify(synth.spec()).unwrap();
            let role = TensorRole::Layer(0, crate::spec::LayerTensor::Up);
            let view = checkpoint.tensor(role).unwrap();
            assert_eq!((view.dtype, view.shape), (DType::Mlx { bits, group }, &[256, 128][..]));
            let values = crate::quant::dequantise_all(&view);
            let deviation = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
            assert!((0.08..0.1).contains(&deviation), "{bits} bits: {deviation} for 0.088");
        }
    }
}

#[test]
fn mlx_checkpoints_that_contradict_their_configuration_are_refused() {
    let (_, bytes) = mlx(|_| {});
    let open = |config: &str| {
        let quantisation = Quantisation::from_config(config.as_bytes()).map_err(|e| e.to_string())?;
        let file = SafetensorsFile::parse("model.safetensors", &bytes).unwrap();
        Checkpoint::quantised(vec![file], &quantisation).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(open(r#"{"quantization": {"group_size": 64, "bits": 4}}"#), Ok(()));
    let refused = |config: &str, expected: &str| {
        let error = open(config).unwrap_err();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    };
    refused("{}", "does not say how");
    refused(r#"{"quantization": {"group_size": 32, "bits": 4}}"#, "needs F16 or BF16 or F32");
    refused(r#"{"quantization": {"group_size": 64, "bits": 8}}"#, "needs");
    refused(r#"{"quantization": {"group_size": 64, "bits": 7}}"#, "7 bits");
    refused(r#"{"quantization": {"bits": 4}}"#, "quantization.group_size is missing");
    refused(r#"{"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4"}}"#, "nvfp4");
    refused(r#"{"quantization_config": {"quant_method": "gptq"}}"#, "gptq");
    refused(
        r#"{"quantization": {"group_size": 64, "bits": 4, "model.layers.0.mlp.up_proj": false}}"#,
        "model.layers.0.mlp.up_proj.weight",
    );
    refused(
        r#"{"quantization": {"group_size": 64, "bits": 4, "model.layers.0.mlp.up_proj": {"group_size": 64, "bits": 8}}}"#,
        "model.layers.0.mlp.up_proj.",
    );
}

/// gpt-oss stores gate and up interwoven: quantised in blocks, or turned as floats.
#[test]
fn interwoven_and_turned_experts_are_taken_apart() {
    use crate::spec::LayerTensor::{ExpertDown, ExpertGate, ExpertGateBias, ExpertUp, ExpertUpBias};
    let (experts, width, hidden) = (2, 3, 32);
    let name = |rest: &str| format!("model.layers.0.mlp.experts.{rest}");
    let float = |rest: &str, shape: Vec<usize>| (name(rest), DType::F32, shape);
    let tensors = vec![
        ("model.norm.weight".to_owned(), DType::F32, vec![hidden]),
        float("gate_up_proj", vec![experts, hidden, 2 * width]),
        float("gate_up_proj_bias", vec![experts, 2 * width]),
        float("down_proj", vec![experts, width, hidden]),
        float("down_proj_bias", vec![experts, hidden]),
    ];
    let (mut bytes, total) = safetensors_header(&tensors);
    let elements = (total as usize - bytes.len()) / 4;
    bytes.extend((0..elements).flat_map(|at| (at as f32).to_le_bytes()));
    let checkpoint = Checkpoint::new(vec![SafetensorsFile::parse("f", &bytes).unwrap()]).unwrap();
    let read = |tensor| {
        let view = checkpoint.tensor(TensorRole::Layer(0, tensor)).unwrap();
        let values = crate::quant::dequantise_all(&view);
        let ordered: Vec<f32> =
            view.ordered_bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(values, ordered);
        (view.shape.to_vec(), values)
    };
    let start = hidden;
    let gate_up = |expert: usize, row: usize, column: usize| {
        (start + expert * hidden * 2 * width + column * 2 * width + row) as f32
    };
    for (tensor, odd) in [(ExpertGate(1), 0), (ExpertUp(1), 1)] {
        let (shape, values) = read(tensor);
        let expected: Vec<f32> = (0..width)
            .flat_map(|row| (0..hidden).map(move |column| (row, column)))
            .map(|(row, column)| gate_up(1, 2 * row + odd, column))
            .collect();
        assert_eq!((shape, values), (vec![width, hidden], expected));
    }
    let bias = start + experts * hidden * 2 * width + 2 * width;
    assert_eq!(
        read(ExpertGateBias(1)),
        (vec![width], vec![bias as f32, bias as f32 + 2.0, bias as f32 + 4.0])
    );
    assert_eq!(read(ExpertUpBias(1)).1, vec![bias as f32 + 1.0, bias as f32 + 3.0, bias as f32 + 5.0]);
    let (shape, values) = read(ExpertDown(0));
    assert_eq!(shape, vec![hidden, width]);
    let down = (start + experts * (hidden * 2 * width + 2 * width)) as f32;
    assert_eq!(values[..4], [down, down + hidden as f32, down + 2.0 * hidden as f32, down + 1.0]);
}

#[test]
fn an_index_leads_to_its_files_and_nowhere_else() {
    let (a, b) = (needed()[..4].to_vec(), needed()[4..].to_vec());
    let map: serde_json::Map<String, Value> = a
        .iter()
        .map(|(name, ..)| (name.clone(), json!("a.safetensors")))
        .chain(b.iter().map(|(name, ..)| (name.clone(), json!("b.safetensors"))))
        .collect();
    let index = ShardIndex::parse("index", json!({"weight_map": map}).to_string().as_bytes()).unwrap();
    assert_eq!(index.files(), ["a.safetensors", "b.safetensors"]);
    let (a_bytes, b_bytes) = (file(&a), file(&b));
    let parse = |name: &str, bytes| SafetensorsFile::parse(name, bytes).unwrap();
    let files = vec![parse("a.safetensors", &a_bytes), parse("b.safetensors", &b_bytes)];
    Checkpoint::sharded(&index, files, &Quantisation::default()).unwrap().verify(&spec()).unwrap();

    let swapped = vec![parse("b.safetensors", &a_bytes), parse("a.safetensors", &b_bytes)];
    assert!(
        Checkpoint::sharded(&index, swapped, &Quantisation::default())
            .unwrap_err()
            .to_string()
            .contains("index says")
    );
    let short = Checkpoint::sharded(&index, vec![parse("a.safetensors", &a_bytes)], &Quantisation::default())
        .unwrap_err()
        .to_string();
    assert!(short.contains("missing in b.safetensors"), "{short}");
    let twice = Checkpoint::new(vec![parse("a.safetensors", &a_bytes), parse("c", &a_bytes)])
        .unwrap_err()
        .to_string();
    assert!(twice.contains("in both a.safetensors and c"), "{twice}");
    assert!(matches!(Checkpoint::new(Vec::new()), Err(CheckpointError::NoFiles)));

    for name in ["../secret", "/etc/passwd", "", ".", "a\\b", "c:x"] {
        let text = json!({"weight_map": {"w": name}}).to_string();
        let error = ShardIndex::parse("index", text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("index") && error.contains("\"w\""), "{error}");
    }
    for text in ["", "{}", "{\"weight_map\": {}}", "{\"weight_map\": {\"w\": 1}}"] {
        assert!(ShardIndex::parse("index", text.as_bytes()).is_err());
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SafetensorsFile::parse("f", &bytes);
        let length = (bytes.len() as u64).to_le_bytes();
        let framed: Vec<u8> = length.into_iter().chain(bytes).collect();
        prop_assert!(SafetensorsFile::parse("f", &framed).is_err());
    }

    #[test]
    fn a_damaged_header_is_refused_or_its_tensors_still_fit(at in 0usize..4000, with in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = file(&needed());
        let at = at % bytes.len();
        bytes[at] = with;
        if cut {
            bytes.truncate(at);
        }
        if let Ok(parsed) = SafetensorsFile::parse("f", &bytes) {
            for name in parsed.names() {
                if let Ok(view) = parsed.tensor(name) {
                    prop_assert_eq!(view.bytes.len(), view.shape.iter().product::<usize>() * view.dtype.block().1);
                }
            }
            let _ = Checkpoint::new(vec![parsed]).map(|checkpoint| checkpoint.verify(&spec()));
        }
    }

    #[test]
    fn a_written_header_reads_back(shapes in prop::collection::vec(prop::collection::vec(0usize..5, 0..4), 0..8)) {
        let tensors: Vec<_> =
            shapes.into_iter().enumerate().map(|(n, shape)| (format!("t\"{n}"), DType::F16, shape)).collect();
        let bytes = file(&tensors);
        let parsed = SafetensorsFile::parse("f", &bytes).unwrap();
        for (name, dtype, shape) in &tensors {
            let view = parsed.tensor(name).unwrap();
            prop_assert_eq!((view.dtype, view.shape), (*dtype, shape.as_slice()));
        }
        prop_assert_eq!((bytes.len() as u64 - parsed.tensor_bytes()) % 64, 0);
    }
}
