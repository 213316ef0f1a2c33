//! A GGUF file's metadata as the kit of a Hugging Face folder: `config.json` in the family's own words, the tokenizer, the
//! chat template.

use serde_json::{Map, Value as Json, json};

use super::reader::GgufFile;
use super::tokenizer;
use super::value::Value;
use crate::checkpoint::CheckpointError;
use crate::kit::Kit;
use crate::quant::dequantise_all;

/// `general.architecture`, and how `config.json` spells the family: architecture, model type.
const ARCHITECTURES: &[(&str, &str, &str)] = &[
    ("llama", "LlamaForCausalLM", "llama"),
    ("qwen2", "Qwen2ForCausalLM", "qwen2"),
    ("qwen3", "Qwen3ForCausalLM", "qwen3"),
    ("qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe"),
    ("qwen35", "Qwen3_5ForCausalLM", "qwen3_5_text"),
    ("qwen35moe", "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text"),
    ("gemma2", "Gemma2ForCausalLM", "gemma2"),
    ("gemma3", "Gemma3ForCausalLM", "gemma3_text"),
    ("gemma4", "Gemma4ForCausalLM", "gemma4_text"),
    ("gpt-oss", "GptOssForCausalLM", "gpt_oss"),
];

/// Gemma 2 sees all of the context in every second layer, and so much in the others, where the file does not say otherwise.
const GEMMA2_PATTERN: u64 = 2;
const GEMMA2_WINDOW: u64 = 4096;
/// Layers of the largest models.
const GEMMA2_27B_LAYERS: u64 = 46;
const GEMMA3_27B_LAYERS: u64 = 62;
/// Gemma 3 sees all of the context in every sixth layer, where the file does not say otherwise.
const GEMMA3_PATTERN: u64 = 6;
/// gpt-oss in every second.
const GPT_OSS_PATTERN: u64 = 2;
/// Gemma 3's window layers turn by it, where the file does not say otherwise.
const GEMMA_THETA_LOCAL: f64 = 10_000.0;

/// How GGUF spells the family called `name`. Mistral's is Llama's: what sets it apart, a window, is in no file.
pub(crate) fn of_family(name: &str) -> Option<&'static str> {
    let name = if name == "mistral" { "llama" } else { name };
    ARCHITECTURES.iter().find(|known| known.2.trim_end_matches("_text") == name).map(|known| known.0)
}

/// The kit of the model whose (first) file is `file`. Its tokenizer is empty where the file has none.
///
/// # Errors
/// An architecture or a tokenizer that is unknown; metadata that is missing or of another type.
pub fn kit(file: &GgufFile<'_>) -> Result<Kit, CheckpointError> {
    let reading = Reading::new(file)?;
    let tokenizer = tokenizer::read(file)?;
    let mut config = reading.config()?;
    let (text, settings, stops) = match tokenizer {
        Some(found) => (found.json, Some(found.settings), found.stop_tokens),
        None => (Vec::new(), None, Vec::new()),
    };
    config.insert("eos_token_id".to_owned(), json!(stops));
    Ok(Kit {
        config: to_bytes(&Json::Object(config)),
        generation_config: None,
        tokenizer: text,
        tokenizer_config: settings,
        chat_template: None,
        pooling: reading.pooling(),
    })
}

pub(super) fn to_bytes(value: &Json) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers are JSON")
}

/// Metadata below the architecture's name.
struct Reading<'f, 'a> {
    file: &'f GgufFile<'a>,
    architecture: &'a str,
    spelled: (&'static str, &'static str),
}

impl<'f, 'a> Reading<'f, 'a> {
    fn new(file: &'f GgufFile<'a>) -> Result<Self, CheckpointError> {
        let bad = |detail: String| CheckpointError::BadHeader { file: file.file_name().to_owned(), detail };
        let Some(architecture) = file.get("general.architecture").and_then(Value::text) else {
            return Err(bad("metadata \"general.architecture\" is missing or no text".to_owned()));
        };
        let known = ARCHITECTURES.iter().find(|known| known.0 == architecture);
        let Some(&(_, class, model_type)) = known else {
            let names: Vec<&str> = ARCHITECTURES.iter().map(|known| known.0).collect();
            let shown: String = architecture.chars().take(64).collect();
            return Err(bad(format!(
                "architecture {shown:?} is unknown; this build knows {}",
                names.join(", ")
            )));
        };
        Ok(Self { file, architecture, spelled: (class, model_type) })
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.file.get(&format!("{}.{key}", self.architecture))
    }

    /// What it says of embeddings, in words of the kit.
    fn pooling(&self) -> Option<Vec<u8>> {
        let kind = self.get("pooling_type")?.unsigned()?;
        // 0 is how converters say that it pools nothing.
        (kind > 0).then(|| to_bytes(&json!({ "pooling_type": kind })))
    }

    fn wrong(&self, key: &str, what: &str) -> CheckpointError {
        CheckpointError::BadHeader {
            file: self.file.file_name().to_owned(),
            detail: format!("metadata \"{}.{key}\" {what}", self.architecture),
        }
    }

    fn whole(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.unsigned().map(Some).ok_or_else(|| self.wrong(key, "is no whole number"))
    }

    fn required(&self, key: &str) -> Result<u64, CheckpointError> {
        self.whole(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.number() {
            // What was an f32 is spelled as one: 1e-6 and not 9.999999974752427e-7.
            Some(number) if number.is_finite() => Ok(Some(shortest(number))),
            _ => Err(self.wrong(key, "is no finite number")),
        }
    }

    /// One whole number for every layer, or one for all.
    fn per_layer(&self, key: &str, layers: u64) -> Result<Option<Vec<u64>>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => {
                let numbers: Option<Vec<u64>> = array
                    .values()
                    .map(|value| value.unsigned().or_else(|| value.flag().map(u64::from)))
                    .collect();
                match numbers {
                    Some(numbers) if numbers.len() as u64 == layers => Ok(Some(numbers)),
                    _ => {
                        Err(self
                            .wrong(key, &format!("is no list of a whole number for each of {layers} layers")))
                    }
                }
            }
            Some(value) => match value.unsigned() {
                Some(number) => Ok(Some(vec![number; usize::try_from(layers).unwrap_or(0)])),
                None => Err(self.wrong(key, "is no whole number")),
            },
        }
    }

    /// The one number that all layers have.
    fn uniform(&self, key: &str, layers: u64) -> Result<Option<u64>, CheckpointError> {
        let Some(numbers) = self.per_layer(key, layers)? else { return Ok(None) };
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|number| number == first) => Ok(Some(*first)),
            Some(_) => Err(self.wrong(key, "differs between layers, which this family does not")),
            None => Ok(None),
        }
    }

    fn any_ends(&self, part: &str) -> bool {
        self.file.names().any(|name| name.starts_with("blk.") && name.ends_with(part))
    }

    fn has(&self, tensor: &str) -> bool {
        self.file.names().any(|name| name == tensor)
    }

    /// The layers that are loaded: those that only guess ahead are not.
    fn layers(&self) -> Result<u64, CheckpointError> {
        let all = self.required("block_count")?;
        let ahead = self.whole("nextn_predict_layers")?.unwrap_or(0);
        // A limit above every model: lists are made of it.
        match all.checked_sub(ahead) {
            Some(layers @ 1..=65_536) => Ok(layers),
            _ => Err(self.wrong("block_count", &format!("is {all}, with {ahead} layers that guess ahead"))),
        }
    }

    fn vocabulary(&self) -> Result<u64, CheckpointError> {
        let rows = self.file.shape("token_embd.weight").map(|shape| shape[0] as u64);
        match rows {
            Some(rows) => Ok(rows),
            None => Err(CheckpointError::MissingTensor {
                tensor: "token_embd.weight".to_owned(),
                file: self.file.file_name().to_owned(),
            }),
        }
    }

    fn config(&self) -> Result<Map<String, Json>, CheckpointError> {
        let layers = self.layers()?;
        let heads = self.uniform("attention.head_count", layers)?;
        let heads = heads.ok_or_else(|| self.wrong("attention.head_count", "is missing"))?;
        let hidden = self.required("embedding_length")?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| {
            if !value.is_null() {
                config.insert(key.to_owned(), value);
            }
        };
        set("architectures", json!([self.spelled.0]));
        set("model_type", json!(self.spelled.1));
        set("hidden_size", json!(hidden));
        set("num_hidden_layers", json!(layers));
        set("num_attention_heads", json!(heads));
        set("max_position_embeddings", json!(self.required("context_length")?));
        set("vocab_size", json!(self.vocabulary()?));
        set("rms_norm_eps", json!(self.number("attention.layer_norm_rms_epsilon")?));
        set("tie_word_embeddings", json!(!self.has("output.weight")));
        set("attention_bias", json!(self.any_ends(".attn_q.bias")));
        set("mlp_bias", json!(self.any_ends(".ffn_up.bias")));
        let head_dim = match self.whole("attention.key_length")? {
            Some(length) => Some(length),
            None if self.architecture == "llama" => self.whole("rope.dimension_count")?,
            None => hidden.checked_div(heads),
        };
        set("head_dim", json!(head_dim));
        if self.architecture != "gemma4" {
            let kv_heads = self.uniform("attention.head_count_kv", layers)?;
            set("num_key_value_heads", json!(kv_heads.unwrap_or(heads)));
            // Models that are all experts have none.
            let width = self.uniform("feed_forward_length", layers)?.filter(|&width| width > 0);
            let experts_width = self.whole("expert_feed_forward_length")?;
            set("intermediate_size", json!(width.or(experts_width)));
        }
        self.rope(&mut config, head_dim)?;
        self.family(&mut config, layers)?;
        Ok(config)
    }

    fn rope(&self, config: &mut Map<String, Json>, head_dim: Option<u64>) -> Result<(), CheckpointError> {
        if let Some(theta) = self.number("rope.freq_base")? {
            config.insert("rope_theta".to_owned(), json!(theta));
        }
        let mut scaling = Map::new();
        match self.get("rope.scaling.type").and_then(Value::text) {
            None | Some("none") => {}
            Some("linear") => {
                scaling.insert("rope_type".to_owned(), json!("linear"));
            }
            Some("yarn") => {
                scaling.insert("rope_type".to_owned(), json!("yarn"));
                // No file says it; the family's ramps begin and end between dimensions.
                scaling.insert("truncate".to_owned(), json!(self.architecture != "gpt-oss"));
            }
            Some(other) => {
                let shown: String = other.chars().take(32).collect();
                return Err(self
                    .wrong("rope.scaling.type", &format!("is {shown:?}; this build knows linear and yarn")));
            }
        }
        if !scaling.is_empty() {
            for (key, name) in [
                ("rope.scaling.factor", "factor"),
                ("rope.scaling.original_context_length", "original_max_position_embeddings"),
                ("rope.scaling.yarn_attn_factor", "attention_factor"),
                ("rope.scaling.yarn_beta_fast", "beta_fast"),
                ("rope.scaling.yarn_beta_slow", "beta_slow"),
            ] {
                match self.get(key) {
                    Some(Value::Float(_)) => scaling.insert(name.to_owned(), json!(self.number(key)?)),
                    Some(_) => scaling.insert(name.to_owned(), json!(self.whole(key)?)),
                    None => None,
                };
            }
        }
        // Llama 3's way of scaling comes as a factor for each frequency. Gemma 4's say which do not turn at all.
        if self.architecture == "llama"
            && let Some(factors) = self.file.tensor("rope_freqs.weight")?
        {
            let factors = dequantise_all(&factors);
            if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
                return Err(CheckpointError::BadTensor {
                    file: self.file.file_name().to_owned(),
                    tensor: "rope_freqs.weight".to_owned(),
                    detail: "holds numbers that are not finite and above 0".to_owned(),
                });
            }
            let factors: Vec<f64> = factors.iter().map(|&factor| shortest(f64::from(factor))).collect();
            scaling = Map::from_iter([
                ("rope_type".to_owned(), json!("each")),
                ("factors".to_owned(), json!(factors)),
            ]);
        }
        if let (Some(dims), Some(head_dim)) = (self.whole("rope.dimension_count")?, head_dim)
            // Qwen 3.5 turns a quarter where nothing is said.
            && (dims != head_dim || self.architecture.starts_with("qwen35"))
            && head_dim > 0
            && self.architecture != "gemma4"
        {
            config.insert("partial_rotary_factor".to_owned(), json!(dims as f64 / head_dim as f64));
        }
        if !scaling.is_empty() {
            config.insert("rope_scaling".to_owned(), Json::Object(scaling));
        }
        Ok(())
    }

    /// What one family has and others have not.
    fn family(&self, config: &mut Map<String, Json>, layers: u64) -> Result<(), CheckpointError> {
        let mut set = |key: &str, value: Json| {
            if !value.is_null() {
                config.insert(key.to_owned(), value);
            }
        };
        match self.architecture {
            "llama" if self.whole("expert_count")?.unwrap_or(0) > 0 => {
                return Err(
                    self.wrong("expert_count", "is not 0: Llama with experts (Mixtral) is not known here")
                );
            }
            "qwen3moe" => {
                set("num_experts", json!(self.required("expert_count")?));
                set("num_experts_per_tok", json!(self.required("expert_used_count")?));
                set("moe_intermediate_size", json!(self.required("expert_feed_forward_length")?));
                set("norm_topk_prob", json!(true));
            }
            "qwen35" | "qwen35moe" => self.qwen35(&mut set, layers)?,
            "gemma2" => {
                let window = self.whole("attention.sliding_window")?.unwrap_or(GEMMA2_WINDOW);
                set("sliding_window", json!(window));
                set("layer_types", self.layer_types(layers, Some(GEMMA2_PATTERN))?);
                set("attn_logit_softcapping", json!(self.number("attn_logit_softcapping")?));
                set("final_logit_softcapping", json!(self.number("final_logit_softcapping")?));
                set("hidden_activation", json!("gelu_pytorch_tanh"));
                set("query_pre_attn_scalar", json!(self.query_scalar(layers == GEMMA2_27B_LAYERS)?));
            }
            "gemma3" => {
                let window = self.whole("attention.sliding_window")?;
                set("sliding_window", json!(window));
                set("layer_types", self.layer_types(layers, window.map(|_| GEMMA3_PATTERN))?);
                set(
                    "rope_local_base_freq",
                    json!(self.number("rope.freq_base_swa")?.unwrap_or(GEMMA_THETA_LOCAL)),
                );
                set("final_logit_softcapping", json!(self.number("final_logit_softcapping")?));
                set("hidden_activation", json!("gelu_pytorch_tanh"));
                set("query_pre_attn_scalar", json!(self.query_scalar(layers == GEMMA3_27B_LAYERS)?));
            }
            "gemma4" => self.gemma4(&mut set, layers)?,
            "gpt-oss" => {
                set("num_local_experts", json!(self.required("expert_count")?));
                set("num_experts_per_tok", json!(self.required("expert_used_count")?));
                set("intermediate_size", json!(self.required("expert_feed_forward_length")?));
                set("sliding_window", json!(self.whole("attention.sliding_window")?));
                set("layer_types", self.layer_types(layers, Some(GPT_OSS_PATTERN))?);
                set("attention_bias", json!(true));
            }
            _ => {}
        }
        Ok(())
    }

    /// What queries are divided by the root of. Only the largest models, known by their layers, scale by the width of their
    /// residual stream.
    fn query_scalar(&self, largest: bool) -> Result<u64, CheckpointError> {
        if largest {
            return Ok(self.required("embedding_length")? / self.required("attention.head_count")?.max(1));
        }
        Ok(self.whole("attention.key_length")?.unwrap_or(256))
    }

    fn qwen35(&self, set: &mut impl FnMut(&str, Json), layers: u64) -> Result<(), CheckpointError> {
        let value_heads = self.required("ssm.time_step_rank")?;
        let inner = self.required("ssm.inner_size")?;
        let interval = self.whole("full_attention_interval")?.unwrap_or(4).max(1);
        // Listed for every block, those that guess ahead included.
        let listed = self.per_layer("attention.recurrent_layers", self.required("block_count")?)?;
        let recurrent = |layer: u64| match &listed {
            Some(listed) => listed[layer as usize] != 0,
            None => !(layer + 1).is_multiple_of(interval),
        };
        let kind = |layer| if recurrent(layer) { "linear_attention" } else { "full_attention" };
        set("layer_types", json!((0..layers).map(kind).collect::<Vec<_>>()));
        set("full_attention_interval", json!(interval));
        set("linear_conv_kernel_dim", json!(self.required("ssm.conv_kernel")?));
        set("linear_key_head_dim", json!(self.required("ssm.state_size")?));
        set("linear_num_key_heads", json!(self.required("ssm.group_count")?));
        set("linear_num_value_heads", json!(value_heads));
        set("linear_value_head_dim", json!(inner / value_heads.max(1)));
        if self.architecture == "qwen35moe" {
            set("num_experts", json!(self.required("expert_count")?));
            set("num_experts_per_tok", json!(self.required("expert_used_count")?));
            set("moe_intermediate_size", json!(self.required("expert_feed_forward_length")?));
            let shared = self.required("expert_shared_feed_forward_length")?;
            set("shared_expert_intermediate_size", json!(shared));
        }
        Ok(())
    }

    fn gemma4(&self, set: &mut impl FnMut(&str, Json), layers: u64) -> Result<(), CheckpointError> {
        let windowed = self.per_layer("attention.sliding_window_pattern", layers)?;
        let windowed =
            windowed.ok_or_else(|| self.wrong("attention.sliding_window_pattern", "is missing"))?;
        let kind = |&windowed: &u64| if windowed == 0 { "full_attention" } else { "sliding_attention" };
        set("layer_types", json!(windowed.iter().map(kind).collect::<Vec<_>>()));
        set("sliding_window", json!(self.required("attention.sliding_window")?));
        set("global_head_dim", json!(self.required("attention.key_length")?));
        set("head_dim", json!(self.required("attention.key_length_swa")?));
        let heads = self.per_layer("attention.head_count_kv", layers)?;
        let heads = heads.ok_or_else(|| self.wrong("attention.head_count_kv", "is missing"))?;
        let of = |kind: bool| windowed.iter().zip(&heads).find(|(w, _)| (**w != 0) == kind).map(|(_, h)| *h);
        set("num_key_value_heads", json!(of(true).or(of(false))));
        set("num_global_key_value_heads", json!(of(false)));
        let value_less = |(layer, windowed): (usize, &u64)| {
            *windowed == 0 && !self.has(&format!("blk.{layer}.attn_v.weight"))
        };
        let shared = self.whole("attention.shared_kv_layers")?.unwrap_or(0);
        let own = layers.saturating_sub(shared) as usize;
        set("attention_k_eq_v", json!(windowed.iter().enumerate().take(own).any(value_less)));
        set("num_kv_shared_layers", json!(shared));
        set(
            "hidden_size_per_layer_input",
            json!(self.whole("embedding_length_per_layer_input")?.unwrap_or(0)),
        );
        set(
            "vocab_size_per_layer_input",
            json!(self.file.shape("per_layer_token_embd.weight").map(|shape| shape[0])),
        );
        let widths = self.per_layer("feed_forward_length", layers)?;
        let widths = widths.ok_or_else(|| self.wrong("feed_forward_length", "is missing"))?;
        set("intermediate_size", json!(widths.first()));
        set("use_double_wide_mlp", json!(widths.iter().any(|width| Some(width) != widths.first())));
        set("final_logit_softcapping", json!(self.number("final_logit_softcapping")?));
        set("hidden_activation", json!("gelu_pytorch_tanh"));
        let experts = self.whole("expert_count")?.unwrap_or(0);
        set("enable_moe_block", json!(experts > 0));
        if experts > 0 {
            set("num_experts", json!(experts));
            set("top_k_experts", json!(self.required("expert_used_count")?));
            set("moe_intermediate_size", json!(self.required("expert_feed_forward_length")?));
        }
        let theta = self.number("rope.freq_base")?.unwrap_or(1_000_000.0);
        let local = self.number("rope.freq_base_swa")?.unwrap_or(GEMMA_THETA_LOCAL);
        set(
            "rope_parameters",
            json!({
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": theta,
                    "partial_rotary_factor": self.turning_share()?,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            }),
        );
        Ok(())
    }

    /// Which share of a head turns: the others' frequencies are divided by next to infinity.
    fn turning_share(&self) -> Result<f64, CheckpointError> {
        let Some(factors) = self.file.tensor("rope_freqs.weight")? else { return Ok(1.0) };
        let factors = dequantise_all(&factors);
        let turning = factors.iter().take_while(|factor| **factor == 1.0).count();
        // A little more than so many: pairs are the whole part of the share of all, and floats may be a little less.
        let share = (turning as f64 + 0.25) / factors.len().max(1) as f64;
        Ok(share.min(1.0))
    }

    /// Each layer's kind, where some see a window only.
    fn layer_types(&self, layers: u64, default: Option<u64>) -> Result<Json, CheckpointError> {
        let key = "attention.sliding_window_pattern";
        let windowed = match self.get(key) {
            Some(Value::Array(_)) => self.per_layer(key, layers)?,
            _ => {
                let Some(period) = self.whole(key)?.or(default).filter(|&period| period > 0) else {
                    return Ok(Json::Null);
                };
                Some((0..layers).map(|layer| u64::from((layer + 1) % period != 0)).collect())
            }
        };
        let kind = |&windowed: &u64| if windowed == 0 { "full_attention" } else { "sliding_attention" };
        Ok(json!(windowed.map(|windowed| windowed.iter().map(kind).collect::<Vec<_>>())))
    }
}

/// The shortest decimal that is the same f32, where the number is one.
fn shortest(number: f64) -> f64 {
    let narrow = number as f32;
    if f64::from(narrow) == number { narrow.to_string().parse().unwrap_or(number) } else { number }
}
