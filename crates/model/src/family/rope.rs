//! Rope's parameters in both layouts: `rope_theta` and `rope_scaling` beside each other, and `rope_parameters` holding
//! both (transformers 5).

use super::{ConfigError, Fields};
use crate::spec::{RopeScaling, RopeSpec};

/// Where neither layout says anything, as in transformers.
const THETA_DEFAULT: f64 = 10_000.0;

/// Reads rope for heads of `head_dim`, all of which are rotated, in a model for `context` tokens.
pub(super) fn rope(fields: &Fields<'_>, head_dim: usize, context: usize) -> Result<RopeSpec, ConfigError> {
    // The older name wins where both are there, as in transformers.
    let parameters = match fields.object("rope_scaling", "rope_scaling.")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_parameters", "rope_parameters.")?,
    };
    let theta = match &parameters {
        Some(parameters) => parameters.positive("rope_theta", false)?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => fields.positive("rope_theta", false)?.unwrap_or(THETA_DEFAULT),
    };
    for place in [Some(*fields), parameters].into_iter().flatten() {
        if place.positive("partial_rotary_factor", true)?.is_some_and(|factor| factor != 1.0) {
            return Err(place.unsupported("partial_rotary_factor", "whole heads are rotated".to_owned()));
        }
    }
    let scaling = match parameters {
        Some(parameters) => scaling(fields, &parameters, head_dim, context)?,
        None => RopeScaling::None,
    };
    Ok(RopeSpec { scaling, ..RopeSpec::plain(head_dim, theta as f32) })
}

fn scaling(
    outer: &Fields<'_>,
    fields: &Fields<'_>,
    head_dim: usize,
    context: usize,
) -> Result<RopeScaling, ConfigError> {
    if let Some(&nested) = fields.nested().first() {
        return Err(fields.unsupported(nested, "all layers share one rope".to_owned()));
    }
    let field = if fields.has("rope_type") { "rope_type" } else { "type" };
    let kind = if fields.has(field) { fields.text(field)? } else { "default" };
    let number = |field: &str| fields.positive(field, false)?.ok_or_else(|| fields.missing(field));
    match kind {
        // Dynamic scaling begins behind the context that the model has, and no more than that is served.
        "default" | "dynamic" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? as f32 }),
        // As GGUF stores it: a factor for each frequency.
        "each" => {
            let factors: Vec<f32> =
                fields.numbers("factors")?.into_iter().map(|factor| factor as f32).collect();
            if factors.len() * 2 != head_dim
                || !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0)
            {
                return Err(fields.out_of_range("factors", format!("{} numbers above 0", head_dim / 2)));
            }
            Ok(RopeScaling::Each { factors })
        }
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(fields.out_of_range("high_freq_factor", format!("above low_freq_factor, {low}")));
            }
            let field = "original_max_position_embeddings";
            let original_context = match outer.whole(field, 1, usize::MAX)? {
                Some(original) => original,
                None => fields.whole(field, 1, usize::MAX)?.unwrap_or(context),
            };
            Ok(RopeScaling::Llama3 {
                factor: number("factor")? as f32,
                low_freq_factor: low as f32,
                high_freq_factor: high as f32,
                original_context,
            })
        }
        _ => {
            Err(fields.unsupported(field, "this build knows default, dynamic, linear and llama3".to_owned()))
        }
    }
}
