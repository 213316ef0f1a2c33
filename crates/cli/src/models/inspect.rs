//! `phalanx models inspect`: a model's family, format, size, and the memory it needs at a context and a batch.

use std::process::ExitCode;

use anyhow::Context as _;
use base::Bytes;
use engine::{KvFormat, LoadOptions, LoadedModel};
use model::spec::{FeedForwardSpec, MixerSpec};
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::serving::parse_source;
use crate::terminal::{say, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// `bundled`, a model's folder, or a GGUF file.
    model: String,
    /// Tokens of one context [default: the model's longest].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Contexts held at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let load = LoadOptions { tokenizer_needed: false };
    let loaded = engine::load(&parse_source(&options.model), &load)?;
    let facts = facts(&loaded, options)?;
    if options.json {
        say_json(&Value::Object(facts))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in &facts {
        let text = match value {
            Value::Number(bytes) if name.ends_with("_bytes") => {
                Bytes(bytes.as_u64().unwrap_or(0)).to_string()
            }
            Value::String(text) => text.clone(),
            Value::Null => "none".to_owned(),
            Value::Object(formats) => {
                let one = |(name, of): (&String, &Value)| {
                    let bytes = Bytes(of["bytes"].as_u64().unwrap_or(0));
                    format!("{name}: {} tensors, {bytes}", of["tensors"])
                };
                formats.iter().map(one).collect::<Vec<_>>().join("; ")
            }
            Value::Array(items) => {
                let texts =
                    items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
                texts.collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        say(format!("{:26} {text}", name.trim_end_matches("_bytes").replace('_', " ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(loaded: &LoadedModel, options: &Options) -> anyhow::Result<serde_json::Map<String, Value>> {
    let spec = loaded.spec();
    let context = options.context.unwrap_or(u32::try_from(spec.context)?);
    let first = spec.layers.first().context("a model without layers")?;
    let attention = spec.layers.iter().find_map(|layer| match &layer.mixer {
        MixerSpec::Attention(attention) => Some(attention),
        MixerSpec::DeltaNet(_) => None,
    });
    let (width, experts) = match &first.feed_forward {
        FeedForwardSpec::Gated(gated) => (gated.width, None),
        FeedForwardSpec::Experts(experts) => (experts.expert.width, Some(experts)),
        FeedForwardSpec::DenseAndExperts(both) => (both.dense.width, Some(&both.experts)),
    };
    let per_token = loaded.kv_bytes_per_token(KvFormat::Auto);
    let kv = per_token.0.saturating_mul(u64::from(context)).saturating_mul(u64::from(options.batch));
    let states: u64 = spec
        .layers
        .iter()
        .map(|layer| match &layer.mixer {
            MixerSpec::Attention(_) => 0,
            MixerSpec::DeltaNet(delta) => 4 * delta.state_elements() as u64,
        })
        .sum();
    let states = states.saturating_mul(u64::from(options.batch));
    let stored = loaded
        .stored()
        .into_iter()
        .map(|of| (of.name.to_owned(), json!({"tensors": of.tensors, "bytes": of.bytes.0})));
    let facts = json!({
        "model": options.model,
        "family": spec.family,
        "container": loaded.container(),
        "format": loaded.formats(),
        "stored": serde_json::Map::from_iter(stored),
        "parameters": loaded.parameters(),
        "layers": spec.layers.len(),
        "hidden": spec.hidden,
        "feed_forward": width,
        "experts": experts.map_or(0, |experts| experts.experts),
        "experts_per_token": experts.map_or(0, |experts| experts.per_token),
        "heads": attention.map(|attention| attention.heads),
        "kv_heads": attention.map(|attention| attention.kv_heads),
        "head_dim": attention.map(|attention| attention.head_dim),
        "vocabulary": spec.vocabulary,
        "context": spec.context,
        "tied_head": spec.tied_head,
        "stop_tokens": spec.stop_tokens,
        "tokenizer": loaded.tokenizer().map(Tokenizer::kind),
        "tokens": loaded.tokenizer().map(Tokenizer::vocabulary_len),
        "chat_template": loaded.open_kit().is_some_and(|kit| kit.template.is_some()),
        "weight_bytes": loaded.weight_bytes().0,
        "kv_per_token_bytes": per_token.0,
        "asked_context": context,
        "asked_batch": options.batch,
        "kv_bytes": kv,
        "state_bytes": states,
        "needed_bytes": kv.saturating_add(states).saturating_add(loaded.weight_bytes().0),
    });
    match facts {
        Value::Object(facts) => Ok(facts),
        _ => unreachable!("written as an object above"),
    }
}
