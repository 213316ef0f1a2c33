//! What a synthetic model's GGUF file says of it: its family's keys, and the tokenizer.

use super::config::{self, LOCAL_THETA, ROPE_THETA};
use super::stored::Piece;
use super::{SynthRequest, vocabulary};
use crate::gguf::{GgufWriter, gguf_architecture};
use crate::spec::{AttentionSpec, MixerSpec, ModelSpec};

/// Metadata below the architecture's name.
struct Keys {
    writer: GgufWriter,
    architecture: &'static str,
}

impl Keys {
    fn whole(&mut self, name: &str, number: usize) {
        let number = u32::try_from(number).expect("sizes were checked against limits below it");
        self.writer.unsigned(&format!("{}.{name}", self.architecture), number);
    }

    fn float(&mut self, name: &str, number: f32) {
        self.writer.float(&format!("{}.{name}", self.architecture), number);
    }
}

/// What the file begins with, and how long it will be, of a model that [`super::Synth::new`] has accepted.
pub(super) fn header(request: &SynthRequest, spec: &ModelSpec, pieces: &[Piece]) -> (Vec<u8>, u64) {
    let architecture = gguf_architecture(&request.family).expect("every family has an architecture in gguf");
    let mut keys = Keys { writer: GgufWriter::default(), architecture };
    keys.writer.text("general.architecture", architecture);
    keys.writer.text("general.name", "synthetic");
    sizes(&mut keys, request, spec);
    of_family(&mut keys, request, spec);
    let mut writer = keys.writer;
    tokenizer(&mut writer, request.vocabulary);
    for piece in pieces {
        writer.tensor(&piece.name, piece.dtype, &piece.shape);
    }
    writer.finish()
}

fn sizes(keys: &mut Keys, request: &SynthRequest, spec: &ModelSpec) {
    let head_dim = config::head_dim(request).unwrap_or_default();
    for (name, number) in [
        ("context_length", request.context),
        ("embedding_length", request.hidden),
        ("block_count", request.layers),
        ("feed_forward_length", request.feed_forward),
        ("attention.head_count", request.heads),
        ("attention.head_count_kv", request.kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", (head_dim as f64 * turning(request)) as usize),
        ("vocab_size", request.vocabulary),
    ] {
        keys.whole(name, number);
    }
    keys.float("attention.layer_norm_rms_epsilon", spec.final_norm.epsilon);
    keys.float("rope.freq_base", ROPE_THETA);
    if let Some((experts, per_token)) = config::experts(request) {
        keys.whole("expert_count", experts);
        keys.whole("expert_used_count", per_token);
        keys.whole("expert_feed_forward_length", request.feed_forward);
    }
    if let Some(window) = config::window(&request.family) {
        keys.whole("attention.sliding_window", window);
    }
}

fn turning(request: &SynthRequest) -> f64 {
    match request.family.as_str() {
        "qwen3_5" | "qwen3_5_moe" => config::turning(request),
        _ => 1.0,
    }
}

/// What one family has and others have not.
fn of_family(keys: &mut Keys, request: &SynthRequest, spec: &ModelSpec) {
    let head_dim = config::head_dim(request).unwrap_or_default();
    match request.family.as_str() {
        "gemma2" => {
            keys.float("attn_logit_softcapping", config::SCORE_CAP);
            keys.float("final_logit_softcapping", config::LOGIT_CAP);
        }
        "gemma3" => keys.float("rope.freq_base_swa", LOCAL_THETA),
        "gemma4" => {
            keys.float("rope.freq_base_swa", LOCAL_THETA);
            keys.float("final_logit_softcapping", config::LOGIT_CAP);
            keys.whole("attention.key_length_swa", head_dim);
            keys.whole("attention.value_length_swa", head_dim);
            keys.whole("attention.shared_kv_layers", 0);
            let width = spec.layer_inputs.map_or(0, |inputs| inputs.width);
            keys.whole("embedding_length_per_layer_input", width);
            let windowed = attentions(spec).map(|attention| attention.window.is_some());
            let name = format!("{}.attention.sliding_window_pattern", keys.architecture);
            keys.writer.flags(&name, windowed.collect::<Vec<_>>().into_iter());
        }
        "gpt_oss" => {
            keys.writer.text(&format!("{}.rope.scaling.type", keys.architecture), "yarn");
            keys.float("rope.scaling.factor", config::YARN_FACTOR);
            keys.whole("rope.scaling.original_context_length", config::YARN_CONTEXT);
        }
        "qwen3_5" | "qwen3_5_moe" => {
            keys.whole("ssm.conv_kernel", config::TAPS);
            keys.whole("ssm.state_size", head_dim);
            keys.whole("ssm.group_count", request.kv_heads);
            keys.whole("ssm.time_step_rank", request.heads);
            keys.whole("ssm.inner_size", request.heads * head_dim);
            keys.whole("full_attention_interval", config::INTERVAL);
            if request.family == "qwen3_5_moe" {
                keys.whole("expert_shared_feed_forward_length", request.feed_forward);
            }
        }
        _ => {}
    }
}

fn attentions(spec: &ModelSpec) -> impl Iterator<Item = &AttentionSpec> {
    spec.layers.iter().filter_map(|layer| match &layer.mixer {
        MixerSpec::Attention(attention) => Some(attention),
        MixerSpec::DeltaNet(_) => None,
    })
}

fn tokenizer(writer: &mut GgufWriter, vocabulary: usize) {
    let tokens = vocabulary::tokens(vocabulary);
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", "gpt-2");
    writer.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    let kinds: Vec<i32> =
        (0..tokens.len() as u32).map(|token| if vocabulary::is_mark(token) { 3 } else { 1 }).collect();
    writer.signeds("tokenizer.ggml.token_type", kinds.into_iter());
    writer.texts("tokenizer.ggml.merges", [].into_iter());
    writer.unsigned("tokenizer.ggml.eos_token_id", vocabulary::END_OF_TURN);
    writer.unsigned("tokenizer.ggml.padding_token_id", vocabulary::END_OF_TEXT);
    writer.flag("tokenizer.ggml.add_bos_token", false);
    writer.text("tokenizer.chat_template", vocabulary::CHATML);
}
