//! What a spec must be for anything to run it: all that loops divide by or index with.

use super::{
    AttentionSpec, DeltaNetSpec, ExpertsSpec, FeedForwardSpec, GatedSpec, KvSource, MixerSpec, ModelSpec,
    RopeScaling,
};

/// Experts have numbers of sixteen bits.
const EXPERTS_MAX: usize = 1 << 16;

/// Why a spec cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(String);

impl ModelSpec {
    /// Whether it can run: a spec may come from a file that anybody wrote.
    ///
    /// # Errors
    /// The first size that nothing can be computed with, and the layer that has it.
    pub fn check(&self) -> Result<(), SpecError> {
        let wrong = |what: String| Err(SpecError(what));
        if self.hidden == 0 || self.vocabulary == 0 || self.context == 0 {
            return wrong("hidden size, vocabulary and context must be positive".to_owned());
        }
        if self.layers.is_empty() {
            return wrong("it has no layers".to_owned());
        }
        if let Some(inputs) = &self.layer_inputs
            && (inputs.width == 0 || inputs.vocabulary < self.vocabulary)
        {
            return wrong(format!(
                "layer inputs of width {} for {} of {} tokens",
                inputs.width, inputs.vocabulary, self.vocabulary
            ));
        }
        for at in 0..self.layers.len() {
            self.check_layer(at).map_err(|what| SpecError(format!("layer {at}: {what}")))?;
        }
        Ok(())
    }

    fn check_layer(&self, at: usize) -> Result<(), String> {
        let layer = &self.layers[at];
        match &layer.mixer {
            MixerSpec::Attention(attention) => {
                self.check_attention(at, attention)?;
                check_rope(attention)?;
            }
            MixerSpec::DeltaNet(delta) => check_delta(delta)?,
        }
        match &layer.feed_forward {
            FeedForwardSpec::Gated(gated) => check_gated(gated),
            FeedForwardSpec::Experts(experts) => check_experts(experts),
            FeedForwardSpec::DenseAndExperts(both) => {
                check_gated(&both.dense)?;
                check_experts(&both.experts)
            }
        }
    }

    fn check_attention(&self, at: usize, attention: &AttentionSpec) -> Result<(), String> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = *attention;
        if head_dim == 0 || kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "{heads} heads of {head_dim} over {kv_heads} kv heads (kv heads must divide heads)"
            ));
        }
        let KvSource::Layer(source) = attention.kv else { return Ok(()) };
        let source_layer = self.layers.get(source).filter(|_| source < at);
        let fits = source_layer.is_some_and(|layer| match &layer.mixer {
            MixerSpec::Attention(other) => {
                (other.kv_heads, other.head_dim) == (kv_heads, head_dim)
                    && !matches!(other.kv, KvSource::Layer(_))
            }
            MixerSpec::DeltaNet(_) => false,
        });
        if fits {
            Ok(())
        } else {
            Err(format!(
                "keys and values are those of layer {source}, which has none of {kv_heads} heads of {head_dim}"
            ))
        }
    }
}

fn check_rope(attention: &AttentionSpec) -> Result<(), String> {
    let rope = &attention.rope;
    if rope.dims > attention.head_dim || !rope.dims.is_multiple_of(2) {
        return Err(format!("{} of {} dimensions rotate", rope.dims, attention.head_dim));
    }
    match &rope.scaling {
        RopeScaling::Each { factors } if factors.len() != rope.dims / 2 => {
            Err(format!("{} rope factors for {} pairs", factors.len(), rope.dims / 2))
        }
        RopeScaling::Proportional { turning, .. } if *turning > rope.dims / 2 => {
            Err(format!("{turning} of {} pairs turn", rope.dims / 2))
        }
        _ => Ok(()),
    }
}

fn check_delta(delta: &DeltaNetSpec) -> Result<(), String> {
    let DeltaNetSpec { key_heads, value_heads, key_dim, value_dim, conv_width, .. } = *delta;
    let positive = [key_heads, value_heads, key_dim, value_dim, conv_width].iter().all(|&size| size > 0);
    if positive && value_heads.is_multiple_of(key_heads) {
        return Ok(());
    }
    Err(format!(
        "a delta net of {value_heads} value heads of {value_dim} over {key_heads} key heads of {key_dim} with \
         {conv_width} taps (key heads must divide value heads, and none may be 0)"
    ))
}

fn check_gated(gated: &GatedSpec) -> Result<(), String> {
    if gated.width == 0 { Err("a feed-forward of width 0".to_owned()) } else { Ok(()) }
}

fn check_experts(spec: &ExpertsSpec) -> Result<(), String> {
    let ExpertsSpec { experts, per_token, .. } = *spec;
    if experts > EXPERTS_MAX || per_token == 0 || per_token > experts {
        return Err(format!("{per_token} of {experts} experts for each token (at most {EXPERTS_MAX})"));
    }
    check_gated(&spec.expert)?;
    spec.shared.as_ref().map_or(Ok(()), |shared| check_gated(&shared.gated))
}
