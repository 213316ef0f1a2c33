//! How fast a model would run on this machine, found with its first layers alone: short, however large it is.

use std::time::Duration;

use base::Bytes;
use model::shard::{Part, weights_read};

use crate::backend;
use crate::config::EngineConfig;
use crate::engine::StartError;
use crate::load::LoadedModel;

/// Weights that are read in for it, where the model has more: more than caches hold.
pub const GAUGED_BYTES: Bytes = Bytes(256 << 20);

/// Embedding and head are read in, too. Where they alone have more, nothing is found out.
const ENDS_BYTES_MAX: u64 = 1 << 30;

/// Steps are computed in rounds, for so long at least: what else runs for a moment on this machine slows a round down, and is
/// no part of what the model takes.
const ROUNDS_SPAN: Duration = Duration::from_millis(80);

/// A model's speed on this machine, of one request alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gauge {
    /// Tokens that it would generate in a second.
    pub decode_tokens_per_s: f64,
    /// Tokens of a prompt that it would take in.
    pub prefill_tokens_per_s: f64,
}

/// Loads the first layers of `model` (some `bytes` of weights, and embedding and head), computes some steps, and reckons what
/// all of its layers would take. Nothing where only the whole model can be computed and is larger, or where its vocabulary
/// alone is.
///
/// # Errors
/// The weights cannot be used, or there is no memory for them.
pub fn gauge(model: &LoadedModel, config: &EngineConfig, bytes: Bytes) -> Result<Option<Gauge>, StartError> {
    let spec = model.spec();
    let all = spec.layers.len();
    let each = model.weight_bytes().0 / all.max(1) as u64;
    let ends = (spec.vocabulary as u64).saturating_mul(spec.hidden as u64).saturating_mul(2);
    let bytes_each = model.weight_bytes().0 as f64 / model.parameters().max(1) as f64;
    if ends as f64 * bytes_each > ENDS_BYTES_MAX as f64 {
        return Ok(None);
    }
    // A model whose layers are of several kinds repeats them within few.
    let layers = usize::try_from(bytes.0 / each.max(1)).unwrap_or(all).clamp(all.min(4), all);
    let Some(part) = Part::first_layers(spec, layers) else { return Ok(None) };
    let speed = backend::gauge(model, config, &part, ROUNDS_SPAN)?;
    let times = weights_read(spec, layers) as f64 / weights_read(spec, all).max(1) as f64;
    let of = |tokens_per_s: f32| f64::from(tokens_per_s) * times;
    Ok(Some(Gauge {
        decode_tokens_per_s: of(speed.decode_tokens_per_s()),
        prefill_tokens_per_s: of(speed.prefill_tokens_per_s()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelSource, look};

    #[test]
    fn a_model_is_gauged_by_its_first_layers() {
        let model = look(&ModelSource::Bundled).expect("it is built in");
        let config = EngineConfig { threads: Some(1), ..EngineConfig::default() };
        let of = |bytes| gauge(&model, &config, bytes).expect("it can be computed").expect("by layers");
        let (part, whole) = (of(Bytes(0)), of(GAUGED_BYTES));
        for gauge in [part, whole] {
            assert!(gauge.decode_tokens_per_s > 1.0 && gauge.prefill_tokens_per_s > 1.0, "{gauge:?}");
        }
        // Nothing is timed here; that the part is not taken for the whole shows in any case.
        assert!(part.decode_tokens_per_s < 20.0 * whole.decode_tokens_per_s, "{part:?} {whole:?}");
    }
}
