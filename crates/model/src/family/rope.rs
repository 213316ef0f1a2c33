//! Rope's parameters in both layouts: `rope_theta` and `rope_scaling` beside each other, and `rope_parameters` holding
//! both (transformers 5), there also for each type of layer.

use super::{ConfigError, Fields};
use crate::spec::{RopeScaling, RopeSpec};

/// What a family takes where nothing is said.
#[derive(Clone, Copy)]
pub(super) struct RopeDefaults {
    /// Base of the frequencies.
    pub(super) theta: f64,
    /// Which part of a head turns; families without it turn whole heads and refuse another part.
    pub(super) partial: Option<f64>,
}

/// As in transformers.
pub(super) const DEFAULTS: RopeDefaults = RopeDefaults { theta: 10_000.0, partial: None };

/// Reads the one rope of all layers, for heads of `head_dim` in a model for `context` tokens.
pub(super) fn rope(
    fields: &Fields<'_>,
    (head_dim, context): (usize, usize),
    defaults: &RopeDefaults,
) -> Result<RopeSpec, ConfigError> {
    // The older name wins where both are there, as in transformers.
    let parameters = match fields.object("rope_scaling", "rope_scaling.")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_parameters", "rope_parameters.")?,
    };
    if let Some(parameters) = &parameters
        && let Some(&nested) = parameters.nested().first()
    {
        return Err(parameters.unsupported(nested, "all layers of this family share one rope".to_owned()));
    }
    let theta = fields.positive("rope_theta", false)?.unwrap_or(defaults.theta);
    for_layers(fields, parameters, (head_dim, context), &RopeDefaults { theta, ..*defaults })
}

/// The parameters of one type of layer, where `rope_parameters` has them.
pub(super) fn of_type<'a>(
    fields: &Fields<'a>,
    (kind, prefix): (&str, &'static str),
) -> Result<Option<Fields<'a>>, ConfigError> {
    let Some(parameters) = fields.object("rope_parameters", "rope_parameters.")? else { return Ok(None) };
    if parameters.nested().is_empty() {
        return Err(fields.unsupported(
            "rope_parameters",
            "this family has one for full_attention and one for sliding_attention".to_owned(),
        ));
    }
    parameters.object(kind, prefix)
}

/// Reads a rope from its `parameters`, and what is said beside them.
pub(super) fn for_layers(
    fields: &Fields<'_>,
    parameters: Option<Fields<'_>>,
    (head_dim, context): (usize, usize),
    defaults: &RopeDefaults,
) -> Result<RopeSpec, ConfigError> {
    let from = |field: &str| parameters.map_or(Ok(None), |parameters| parameters.positive(field, true));
    let theta = from("rope_theta")?.filter(|&theta| theta > 0.0).unwrap_or(defaults.theta);
    let beside = fields.positive("partial_rotary_factor", true)?;
    let partial = from("partial_rotary_factor")?.or(beside).or(defaults.partial).unwrap_or(1.0);
    let rope = RopeSpec::plain(head_dim, theta as f32);
    let kind = parameters.map_or(Ok("default"), |parameters| kind(&parameters))?;
    if let (Some(parameters), "proportional") = (&parameters, kind) {
        let turning = (partial * head_dim as f64 / 2.0).floor() as usize;
        let factor = parameters.positive("factor", false)?.unwrap_or(1.0) as f32;
        return Ok(RopeSpec { scaling: RopeScaling::Proportional { turning, factor }, ..rope });
    }
    let dims = (head_dim as f64 * partial) as usize;
    if partial != 1.0 && (defaults.partial.is_none() || !dims.is_multiple_of(2) || dims > head_dim) {
        let place = parameters.filter(|place| place.has("partial_rotary_factor")).unwrap_or(*fields);
        let remedy = if defaults.partial.is_none() {
            "this family turns whole heads".to_owned()
        } else {
            format!(
                "{dims} of a head's {head_dim} dimensions would turn, which must be an even number of them"
            )
        };
        return Err(place.unsupported("partial_rotary_factor", remedy));
    }
    match parameters {
        Some(parameters) => scaling(fields, &parameters, kind, context, RopeSpec { dims, ..rope }),
        None => Ok(RopeSpec { dims, ..rope }),
    }
}

fn kind<'a>(parameters: &Fields<'a>) -> Result<&'a str, ConfigError> {
    let field = if parameters.has("rope_type") { "rope_type" } else { "type" };
    if parameters.has(field) { parameters.text(field) } else { Ok("default") }
}

fn scaling(
    outer: &Fields<'_>,
    fields: &Fields<'_>,
    kind: &str,
    context: usize,
    rope: RopeSpec,
) -> Result<RopeSpec, ConfigError> {
    let number = |field: &str| fields.positive(field, false)?.ok_or_else(|| fields.missing(field));
    let original = || {
        let field = "original_max_position_embeddings";
        match outer.whole(field, 1, usize::MAX)? {
            Some(original) => Ok(original),
            None => Ok(fields.whole(field, 1, usize::MAX)?.unwrap_or(context)),
        }
    };
    match kind {
        // Dynamic scaling begins behind the context that the model has, and no more than that is served. The sections of
        // mrope are for images: text has the same position in each.
        "default" | "dynamic" | "mrope" => Ok(rope),
        "linear" => {
            Ok(RopeSpec { scaling: RopeScaling::Linear { factor: number("factor")? as f32 }, ..rope })
        }
        // As GGUF stores it: a factor for each frequency.
        "each" => {
            let factors = fields.positives("factors", rope.dims / 2)?;
            Ok(RopeSpec { scaling: RopeScaling::Each { factors }, ..rope })
        }
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(fields.out_of_range("high_freq_factor", format!("above low_freq_factor, {low}")));
            }
            let scaling = RopeScaling::Llama3 {
                factor: number("factor")? as f32,
                low_freq_factor: low as f32,
                high_freq_factor: high as f32,
                original_context: original()?,
            };
            Ok(RopeSpec { scaling, ..rope })
        }
        "yarn" => yarn(fields, original()?, context, rope),
        "longrope" => longrope(outer, fields, original()?, context, rope),
        _ => {
            let field = if fields.has("rope_type") { "rope_type" } else { "type" };
            let known = "this build knows default, dynamic, linear, llama3, yarn and longrope".to_owned();
            Err(fields.unsupported(field, known))
        }
    }
}

/// Peng et al., 2023, with the attention factor of their section 3.4, or DeepSeek's two numbers for it.
fn yarn(
    fields: &Fields<'_>,
    original_context: usize,
    context: usize,
    rope: RopeSpec,
) -> Result<RopeSpec, ConfigError> {
    let number = |field: &str| fields.positive(field, true);
    let factor = number("factor")?.unwrap_or(context as f64 / original_context as f64);
    if factor <= 0.0 {
        return Err(fields.out_of_range("factor", "a number above 0".to_owned()));
    }
    let magnitude = |of: f64| if factor <= 1.0 { 1.0 } else { 0.1 * of * factor.ln() + 1.0 };
    let set = |value: Option<f64>| value.filter(|&value| value != 0.0);
    let attention_factor = match (number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
        (Some(attention_factor), ..) => attention_factor,
        (None, one, all) => match (set(one), set(all)) {
            (Some(one), Some(all)) => magnitude(one) / magnitude(all),
            _ => magnitude(1.0),
        },
    };
    let scaling = RopeScaling::Yarn {
        factor: factor as f32,
        beta_fast: set(number("beta_fast")?).unwrap_or(32.0) as f32,
        beta_slow: set(number("beta_slow")?).unwrap_or(1.0) as f32,
        original_context,
        truncate: fields.flag_or("truncate", true)?,
    };
    Ok(RopeSpec { scaling, attention_factor: attention_factor as f32, ..rope })
}

/// Ding et al., 2024. A sequence beyond the original context has other frequencies at all of its positions, those before
/// included: what is in the cache would have to be computed again.
fn longrope(
    outer: &Fields<'_>,
    fields: &Fields<'_>,
    original: usize,
    context: usize,
    rope: RopeSpec,
) -> Result<RopeSpec, ConfigError> {
    if context > original {
        return Err(outer.unsupported(
            "max_position_embeddings",
            format!("with longrope no more than the original context is served: set it to {original}"),
        ));
    }
    let factors = fields.positives("short_factor", rope.dims / 2)?;
    let factor = fields.positive("factor", false)?.unwrap_or(context as f64 / original as f64);
    let attention_factor = match fields.positive("attention_factor", false)? {
        Some(attention_factor) => attention_factor,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let scaling = RopeScaling::Each { factors };
    Ok(RopeSpec { scaling, attention_factor: attention_factor as f32, ..rope })
}
