//! The families this build knows: each turns its `config.json` into a [`ModelSpec`], one file and one line here each.

mod decoder;
mod error;
mod fields;
mod gemma2;
mod gemma3;
mod gemma4;
mod gpt_oss;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod rope;

use crate::checkpoint::Quantisation;
use crate::spec::ModelSpec;

pub use error::ConfigError;
use fields::Fields;

/// One family: how its configuration is recognised and read.
struct Family {
    /// What people call it; ends up in [`ModelSpec::family`].
    name: &'static str,
    /// As in `architectures` of `config.json`; the first is the decoder alone.
    architectures: &'static [&'static str],
    /// As in `model_type` of `config.json`.
    model_types: &'static [&'static str],
    /// Reads the rest.
    read: fn(&Fields<'_>) -> Result<ModelSpec, ConfigError>,
}

/// All families, in alphabetical order.
const FAMILIES: &[Family] = &[
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma4::FAMILY,
    gpt_oss::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3::WITH_EXPERTS,
    qwen3_5::FAMILY,
    qwen3_5::WITH_EXPERTS,
];

/// The names of all families.
pub fn names() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.name).collect()
}

/// How `config.json` spells the family called `name`: its architecture and its model type.
pub(crate) fn identity(name: &str) -> Option<(&'static str, &'static str)> {
    let family = FAMILIES.iter().find(|family| family.name == name)?;
    Some((family.architectures[0], family.model_types[0]))
}

/// Reads `config.json` and, where there is one, `generation_config.json`, whose stop tokens win.
///
/// # Errors
/// Not JSON, an architecture that is unknown, a field that is missing, of another type, out of range or asks for
/// what cannot be computed; each names the field, the value and what would be accepted.
pub fn spec_from_config(
    config_json: &[u8],
    generation_config: Option<&[u8]>,
) -> Result<ModelSpec, ConfigError> {
    let config = fields::parse("config.json", config_json)?;
    let fields = Fields::new("config.json", &config);
    let family = recognise(&fields)?;
    if let Err(what) = Quantisation::from_fields(&config) {
        let field = if fields.has("quantization") { "quantization" } else { "quantization_config" };
        return Err(fields.unsupported(field, what));
    }
    let mut spec = (family.read)(&fields.text_config()?)?;
    if let Some(text) = generation_config {
        let config = fields::parse("generation_config.json", text)?;
        let fields = Fields::new("generation_config.json", &config);
        if fields.has("eos_token_id") {
            spec.stop_tokens = decoder::stop_tokens(&fields, spec.vocabulary)?;
        }
    }
    Ok(spec)
}

fn recognise(fields: &Fields<'_>) -> Result<&'static Family, ConfigError> {
    let architectures = fields.texts("architectures")?;
    let (field, found) = match architectures.first() {
        Some(&first) => ("architectures", first),
        None => ("model_type", fields.text("model_type")?),
    };
    // A checkpoint of a decoder alone says `XModel`; where its head is the embedding, nothing is missing.
    let bare = |family: &Family| {
        let of_family = family.architectures[0].strip_suffix("ForCausalLM");
        let text = found.strip_suffix("TextModel").or_else(|| found.strip_suffix("Model"));
        of_family.is_some() && of_family == text
    };
    let known = |family: &&Family| match field {
        "architectures" => family.architectures.contains(&found) || bare(family),
        _ => family.model_types.contains(&found),
    };
    FAMILIES.iter().find(known).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.architectures).copied().collect();
        fields.unsupported(field, format!("this build knows {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests;
