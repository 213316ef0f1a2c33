//! A synthetic model's `config.json`, in the words of its family.

use serde_json::{Map, Value, json};

use super::{SynthRequest, stored, vocabulary};
use crate::checkpoint::DType;

/// What families have where nothing else is said: of their published models.
pub(super) const ROPE_THETA: f32 = 500_000.0;
pub(super) const LOCAL_THETA: f32 = 10_000.0;
pub(super) const EXPERTS: usize = 8;
pub(super) const EXPERTS_PER_TOKEN: usize = 2;
pub(super) const TAPS: usize = 4;
/// One of so many layers of a hybrid has attention.
pub(super) const INTERVAL: usize = 4;
pub(super) const YARN_FACTOR: f32 = 32.0;
pub(super) const YARN_CONTEXT: usize = 4096;
pub(super) const SCORE_CAP: f32 = 50.0;
pub(super) const LOGIT_CAP: f32 = 30.0;
/// Of the second embedding of a model without experts.
const INPUT_WIDTH: usize = 32;

/// Whether a model of `family` may have experts.
pub(super) fn has_experts(family: &str) -> bool {
    has_only_experts(family) || family == "gemma4"
}

fn has_only_experts(family: &str) -> bool {
    matches!(family, "gpt_oss" | "qwen3_moe" | "qwen3_5_moe")
}

/// The width of windows, where the family has any.
pub(super) fn window(family: &str) -> Option<usize> {
    match family {
        "gemma2" => Some(4096),
        "gemma3" => Some(1024),
        "gemma4" => Some(512),
        "gpt_oss" => Some(128),
        _ => None,
    }
}

/// Experts, and how many a token has.
pub(super) fn experts(request: &SynthRequest) -> Option<(usize, usize)> {
    let experts = request.experts.or(has_only_experts(&request.family).then_some(EXPERTS))?;
    Some((experts, request.experts_per_token.unwrap_or(EXPERTS_PER_TOKEN.min(experts))))
}

/// D, where it follows from the request; nothing where the family is to say what is wrong.
pub(super) fn head_dim(request: &SynthRequest) -> Option<usize> {
    let divides = request.heads > 0 && request.hidden.is_multiple_of(request.heads);
    request.head_dim.or(divides.then(|| request.hidden / request.heads.max(1)))
}

/// Which part of a head turns in Qwen 3.5: a quarter, where that is an even number of dimensions.
pub(super) fn turning(request: &SynthRequest) -> f64 {
    if head_dim(request).is_some_and(|head_dim| head_dim.is_multiple_of(8)) { 0.25 } else { 1.0 }
}

/// The whole file.
pub(super) fn text(request: &SynthRequest, architecture: &str, model_type: &str) -> String {
    let dtype = match request.dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    };
    let mut fields = object(json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": request.hidden,
        "num_hidden_layers": request.layers,
        "num_attention_heads": request.heads,
        "num_key_value_heads": request.kv_heads,
        "intermediate_size": request.feed_forward,
        "vocab_size": request.vocabulary,
        "max_position_embeddings": request.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": request.tied,
        "eos_token_id": [vocabulary::END_OF_TEXT, vocabulary::END_OF_TURN],
        "dtype": dtype,
    }));
    if let Some(head_dim) = head_dim(request) {
        fields.insert("head_dim".to_owned(), json!(head_dim));
    }
    fields.extend(of_family(request));
    if let Some(quantization) = stored::quantization(request) {
        fields.insert("quantization".to_owned(), quantization);
    }
    format!("{:#}\n", Value::Object(fields))
}

/// What one family has and others have not.
fn of_family(request: &SynthRequest) -> Map<String, Value> {
    let width = head_dim(request).unwrap_or(1).max(1);
    let (experts, per_token) = experts(request).unwrap_or((0, 0));
    let chosen = json!({
        "num_experts": experts, "num_experts_per_tok": per_token, "moe_intermediate_size": request.feed_forward,
        "norm_topk_prob": true, "hidden_act": "silu",
    });
    let gemma = json!({
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": width, "sliding_window": window(&request.family),
    });
    let also = |mut fields: Value, more: Value| {
        if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
            fields.extend(more);
        }
        object(fields)
    };
    match request.family.as_str() {
        "mistral" => object(json!({"hidden_act": "silu", "sliding_window": null})),
        "qwen3_moe" => object(chosen),
        "qwen3_5" => object(hybrid(request, width)),
        "qwen3_5_moe" => {
            let shared = json!({"shared_expert_intermediate_size": request.feed_forward});
            also(Value::Object(also(chosen, shared)), hybrid(request, width))
        }
        "gemma2" => {
            also(gemma, json!({"attn_logit_softcapping": SCORE_CAP, "final_logit_softcapping": LOGIT_CAP}))
        }
        "gemma3" => also(gemma, json!({"rope_local_base_freq": LOCAL_THETA})),
        "gemma4" => also(gemma, gemma4(request, width)),
        "gpt_oss" => object(json!({
            "num_local_experts": experts, "num_experts_per_tok": per_token, "attention_bias": true,
            "sliding_window": window(&request.family), "hidden_act": "silu",
            "rope_scaling": {
                "rope_type": "yarn", "factor": YARN_FACTOR, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                "original_max_position_embeddings": YARN_CONTEXT,
            },
        })),
        _ => object(json!({"hidden_act": "silu"})),
    }
}

fn hybrid(request: &SynthRequest, width: usize) -> Value {
    json!({
        "linear_num_key_heads": request.kv_heads, "linear_num_value_heads": request.heads,
        "linear_key_head_dim": width, "linear_value_head_dim": width, "linear_conv_kernel_dim": TAPS,
        "full_attention_interval": INTERVAL, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "partial_rotary_factor": turning(request)},
    })
}

fn gemma4(request: &SynthRequest, width: usize) -> Value {
    let experts = experts(request);
    json!({
        "global_head_dim": width,
        "hidden_size_per_layer_input": if experts.is_some() { 0 } else { INPUT_WIDTH },
        "vocab_size_per_layer_input": request.vocabulary,
        "final_logit_softcapping": LOGIT_CAP,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": ROPE_THETA, "partial_rotary_factor": 1.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_THETA},
        },
        "enable_moe_block": experts.is_some(),
        "num_experts": experts.map(|experts| experts.0),
        "top_k_experts": experts.map(|experts| experts.1),
        "moe_intermediate_size": experts.map(|_| request.feed_forward),
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("written as an object"),
    }
}
