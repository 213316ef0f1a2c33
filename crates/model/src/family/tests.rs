//! What configurations become, and how bad ones are refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::spec::{AttentionSpec, MixerSpec, RopeScaling};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "eos_token_id": 7,
        "rope_theta": 500000.0, "hidden_act": "silu"
    })
}

fn qwen3() -> Value {
    let mut config = llama();
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    config["model_type"] = json!("qwen3");
    config["head_dim"] = json!(32);
    config
}

fn read(config: &Value) -> Result<ModelSpec, ConfigError> {
    spec_from_config(config.to_string().as_bytes(), None)
}

fn attention(spec: &ModelSpec, layer: usize) -> &AttentionSpec {
    let MixerSpec::Attention(attention) = &spec.layers[layer].mixer else { panic!("no attention") };
    attention
}

fn with(mut config: Value, field: &str, value: Value) -> Value {
    config[field] = value;
    config
}

fn without(mut config: Value, field: &str) -> Value {
    config.as_object_mut().unwrap().remove(field);
    config
}

#[test]
fn llama_derives_its_head_dimension_and_qwen3_has_its_own() {
    let spec = read(&llama()).unwrap();
    assert_eq!((spec.family, attention(&spec, 0).head_dim), ("llama", 8));
    assert_eq!((attention(&spec, 0).kv_heads, attention(&spec, 1).qk_norm), (2, None));
    let spec = read(&qwen3()).unwrap();
    assert_eq!((spec.family, attention(&spec, 0).head_dim), ("qwen3", 32));
    assert!(attention(&spec, 1).qk_norm.is_some());
    let spec = read(&without(qwen3(), "head_dim")).unwrap();
    assert_eq!(attention(&spec, 0).head_dim, 128);
}

#[test]
fn the_family_is_known_by_model_type_where_architectures_are_absent() {
    assert_eq!(read(&without(qwen3(), "architectures")).unwrap().family, "qwen3");
    let error = read(&with(llama(), "architectures", json!(["GPT2LMHeadModel"]))).unwrap_err().to_string();
    assert!(error.contains("GPT2LMHeadModel") && error.contains("LlamaForCausalLM"), "{error}");
}

#[test]
fn both_layouts_of_rope_mean_the_same() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let old = read(&with(llama(), "rope_scaling", scaling.clone())).unwrap();
    let parameters = with(scaling, "rope_theta", json!(500000));
    let new = read(&with(without(llama(), "rope_theta"), "rope_parameters", parameters)).unwrap();
    assert_eq!(old, new);
    let rope = &attention(&new, 0).rope;
    assert_eq!((rope.theta, rope.dims), (500_000.0, 8));
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    assert_eq!(rope.scaling, expected);
}

#[test]
fn the_oldest_layout_of_rope_scaling_is_read_too() {
    let spec = read(&with(llama(), "rope_scaling", json!({"type": "linear", "factor": 2}))).unwrap();
    assert_eq!(attention(&spec, 0).rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let spec = read(&with(llama(), "rope_scaling", json!(null))).unwrap();
    assert_eq!(attention(&spec, 0).rope.scaling, RopeScaling::None);
    let spec = read(&without(llama(), "rope_theta")).unwrap();
    assert_eq!(attention(&spec, 0).rope.theta, 10_000.0);
}

#[test]
fn a_rope_type_that_cannot_be_computed_is_refused_by_name() {
    let error = read(&with(llama(), "rope_scaling", json!({"rope_type": "su", "factor": 2}))).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("rope_scaling.rope_type") && text.contains("su") && text.contains("llama3"),
        "{text}"
    );
    let error = read(&with(llama(), "partial_rotary_factor", json!(0.5))).unwrap_err().to_string();
    assert!(error.contains("partial_rotary_factor"), "{error}");
}

#[test]
fn dynamic_rope_is_plain_within_the_context_that_is_served() {
    let scaled = |kind: &str| read(&with(llama(), "rope_scaling", json!({"type": kind, "factor": 2.0})));
    assert_eq!(scaled("dynamic").unwrap(), scaled("default").unwrap());
}

#[test]
fn a_decoder_that_was_saved_without_a_head_is_of_its_family() {
    assert_eq!(read(&with(qwen3(), "architectures", json!(["Qwen3Model"]))).unwrap().family, "qwen3");
    assert!(read(&with(qwen3(), "architectures", json!(["Qwen3"]))).is_err());
    assert!(read(&with(qwen3(), "architectures", json!(["Qwen3ForSequenceClassification"]))).is_err());
}

#[test]
fn stop_tokens_are_one_or_several_and_the_generation_config_wins() {
    assert_eq!(read(&llama()).unwrap().stop_tokens, [7]);
    assert_eq!(read(&with(llama(), "eos_token_id", json!([9, 3, 9]))).unwrap().stop_tokens, [3, 9]);
    assert_eq!(read(&with(llama(), "eos_token_id", json!(null))).unwrap().stop_tokens, Vec::<u32>::new());
    assert_eq!(read(&without(llama(), "eos_token_id")).unwrap().stop_tokens, [2]);
    assert_eq!(read(&without(qwen3(), "eos_token_id")).unwrap().stop_tokens, Vec::<u32>::new());
    let generation = |text: &str| spec_from_config(llama().to_string().as_bytes(), Some(text.as_bytes()));
    assert_eq!(generation(r#"{"eos_token_id": [5, 6]}"#).unwrap().stop_tokens, [5, 6]);
    assert_eq!(generation(r#"{"temperature": 0.6}"#).unwrap().stop_tokens, [7]);
    assert_eq!(generation(r#"{"eos_token_id": [128001, 5, 100]}"#).unwrap().stop_tokens, [5]);
}

#[test]
fn a_sliding_window_is_on_the_layers_that_say_so_and_only_if_it_is_used() {
    let windows = |config: &Value| {
        let spec = read(config).unwrap();
        [attention(&spec, 0).window, attention(&spec, 1).window]
    };
    let config = with(with(qwen3(), "sliding_window", json!(16)), "max_window_layers", json!(1));
    assert_eq!(windows(&config), [None, None]);
    let config = with(config, "use_sliding_window", json!(true));
    assert_eq!(windows(&config), [None, Some(16)]);
    let config = with(config, "layer_types", json!(["sliding_attention", "full_attention"]));
    assert_eq!(windows(&config), [Some(16), None]);
    let error = read(&with(config, "layer_types", json!(["full_attention"]))).unwrap_err().to_string();
    assert!(error.contains("layer_types") && error.contains("2 layers"), "{error}");
}

#[test]
fn configurations_as_published_have_the_parameters_as_published() {
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
        "vocab_size": 128256
    });
    let spec = read(&llama).unwrap();
    assert_eq!((crate::checkpoint::parameters(&spec), spec.stop_tokens.len()), (1_235_814_400, 3));
    let qwen = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
    });
    assert_eq!(crate::checkpoint::parameters(&read(&qwen).unwrap()), 596_049_920);
}

#[test]
fn a_missing_size_is_named() {
    for field in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ] {
        let error = read(&without(llama(), field)).unwrap_err();
        assert_eq!(error, ConfigError::Missing { file: "config.json", field: field.to_owned() });
    }
}

#[test]
fn an_absurd_value_is_refused_with_field_value_and_what_is_accepted() {
    let cases = [
        ("num_attention_heads", json!(0), "between 1 and"),
        ("num_key_value_heads", json!(3), "a divisor of num_attention_heads, 8"),
        ("num_key_value_heads", json!(0), "between 1 and"),
        ("hidden_size", json!(-64), "between 1 and"),
        ("hidden_size", json!(63), "a multiple of num_attention_heads, 8"),
        ("hidden_size", json!(72), "an even size"),
        ("head_dim", json!(9), "an even size"),
        ("vocab_size", json!(u64::MAX), "between 1 and"),
        ("num_hidden_layers", json!(1e300), "a whole number"),
        ("intermediate_size", json!(96.5), "a whole number"),
        ("hidden_size", json!("64"), "a whole number"),
        ("rms_norm_eps", json!(-1.0), "above 0"),
        ("rope_theta", json!(1e60), "above 0"),
        ("hidden_act", json!("relu"), "silu"),
        ("mlp_bias", json!(3), "true or false"),
        ("attention_bias", json!("yes"), "true or false"),
        ("quantization_config", json!({"bits": 4}), "group_size is missing"),
        ("quantization_config", json!({"quant_method": "gptq"}), "reads mxfp4, MLX's quantization, and GGUF"),
        ("eos_token_id", json!(-1), "a whole number from 0"),
    ];
    for (field, value, accepted) in cases {
        let error = read(&with(llama(), field, value.clone())).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{field:?}")) && error.contains(accepted),
            "{field} {value}: {error}"
        );
    }
}

#[test]
fn no_product_of_the_largest_accepted_sizes_overflows() {
    let mut config = with(llama(), "hidden_size", json!(1 << 20));
    for (field, value) in [
        ("num_attention_heads", 1 << 14),
        ("num_key_value_heads", 1 << 14),
        ("head_dim", 1 << 12),
        ("intermediate_size", 1 << 24),
        ("vocab_size", 1 << 24),
        ("num_hidden_layers", 1 << 10),
    ] {
        config = with(config, field, json!(value));
    }
    let parameters = crate::checkpoint::parameters(&read(&config).unwrap());
    assert!(parameters > 1 << 57 && parameters < 1 << 60, "{parameters}");
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        prop_assert!(spec_from_config(text.as_bytes(), None).is_err());
    }

    #[test]
    fn any_value_in_any_field_is_read_or_refused(
        field in prop::sample::select(vec![
            "architectures", "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings",
            "rms_norm_eps", "tie_word_embeddings", "eos_token_id", "rope_theta", "rope_scaling", "rope_parameters",
            "hidden_act", "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "max_window_layers",
            "layer_types", "partial_rotary_factor", "original_max_position_embeddings",
        ]),
        value in prop::sample::select(vec![
            json!(null), json!(0), json!(-1), json!(1), json!(u64::MAX), json!(1e308), json!(-0.5), json!(""),
            json!("x"), json!([]), json!([1, "x"]), json!({}), json!({"rope_type": 3}), json!({"factor": "x"}),
            json!({"rope_type": "llama3"}), json!({"full_attention": {}}), json!(true), json!([[[]]]),
        ]),
        base in prop::bool::ANY,
    ) {
        let config = with(if base { llama() } else { qwen3() }, field, value);
        if let Ok(spec) = read(&config) {
            prop_assert!(crate::checkpoint::parameters(&spec) > 0);
        }
    }
}

/// Every family's configuration with fields that nobody means: refused in words, or a model whose tensors can be listed.
#[test]
fn hostile_fields_are_refused_or_make_a_model_of_bounded_size() {
    use crate::checkpoint::expected_tensors;
    use crate::synth::{Synth, SynthRequest};
    let hostile = [
        json!(null),
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(7.5),
        json!(1e18),
        json!(u64::MAX),
        json!(4096),
        json!(1024),
        json!("x"),
        json!(""),
        json!([]),
        json!([1, "x"]),
        json!({}),
        json!({"0": {"head_dim": 7}}),
        json!(true),
        json!(1e-40),
        json!({"rope_type": "yarn", "factor": 1e30}),
        json!(["full_attention"]),
        json!({"full_attention": {"rope_type": "longrope"}}),
    ];
    let more = [
        "layer_types",
        "rope_scaling",
        "rope_parameters",
        "per_layer_config",
        "num_kv_shared_layers",
        "text_config",
        "quantization",
        "generation",
        "attention_bias",
        "sliding_window",
        "eos_token_id",
        "partial_rotary_factor",
    ];
    let mut rng = base::Rng::new(23);
    for family in names() {
        let synth =
            Synth::new(&SynthRequest { family: family.to_owned(), ..SynthRequest::default() }).unwrap();
        let whole: serde_json::Map<String, Value> = serde_json::from_slice(&synth.kit().config).unwrap();
        let fields: Vec<&str> = whole.keys().map(String::as_str).chain(more).collect();
        for _ in 0..600 {
            let mut config = whole.clone();
            for _ in 0..1 + rng.below(3) {
                let field = fields[rng.below(fields.len() as u64) as usize];
                config.insert(field.to_owned(), hostile[rng.below(hostile.len() as u64) as usize].clone());
            }
            let text = Value::Object(config.clone()).to_string();
            match spec_from_config(text.as_bytes(), None) {
                Err(error) => assert!(error.to_string().contains("config.json"), "{error}"),
                Ok(spec) => {
                    let experts = |layer: &crate::spec::LayerSpec| {
                        layer.feed_forward.experts().map_or(0, |e| e.experts)
                    };
                    let all: usize = spec.layers.iter().map(experts).sum();
                    assert!(all <= 1 << 17, "{text}");
                    if all + spec.layers.len() < 10_000 && spec.check().is_ok() {
                        assert!(!expected_tensors(&spec).is_empty());
                    }
                }
            }
        }
    }
}
