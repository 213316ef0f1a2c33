//! What one rank holds: a decoder with fewer layers, heads and columns, and where in the model's tensors these lie.

use std::ops::Range;

use super::map::{ShardError, ranks_of_groups};
use super::share::{apportion, apportion_columns};
use crate::checkpoint::expected_tensors;
use crate::spec::{
    AttentionSpec, DeltaNetSpec, ExpertsSpec, FeedForwardSpec, KvSource, LayerSpec, MixerSpec, ModelSpec,
    TensorRole,
};

/// Rows of the vocabulary are cut at multiples of this where it is large enough: what kernels take together.
const VOCABULARY_GRAIN: usize = 16;

/// What one rank holds of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The decoder that it runs: its own layers, with as many heads and as wide as its slices are. V is the model's.
    pub spec: ModelSpec,
    /// Which of the model's layers these are.
    pub layers: Range<usize>,
    /// The rows of the embedding that it holds; none where another stage embeds.
    pub embedding: Option<Range<usize>>,
    /// The rows of the head that it holds; none where another stage has the head.
    pub head: Option<Range<usize>>,
    /// Whether other ranks hold other slices of the same layers, so that what each computes must be summed.
    pub summed: bool,
    /// Whether it is the rank among these that adds the biases of what is summed.
    pub(super) adds_biases: bool,
    /// One for each of its layers.
    pub(super) slices: Vec<LayerSlices>,
}

/// Which part of a layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerSlices {
    /// KV heads of attention, key heads of a delta net.
    pub(super) keys: Range<usize>,
    /// Heads of attention, value heads of a delta net.
    pub(super) heads: Range<usize>,
    /// Columns of the dense feed-forward.
    pub(super) gated: Range<usize>,
    /// Columns of each expert.
    pub(super) expert: Range<usize>,
    /// Columns of the shared expert.
    pub(super) shared: Range<usize>,
}

impl Part {
    /// All of a model.
    pub fn whole(spec: &ModelSpec) -> Self {
        let whole = Self::cut(spec, 0..spec.layers.len(), (&[1], 0), 1);
        whole.unwrap_or_else(|_| Self {
            // A spec that cannot even be taken as a whole: whoever loads it says what is wrong.
            spec: spec.clone(),
            layers: 0..spec.layers.len(),
            embedding: Some(0..spec.vocabulary),
            head: Some(0..spec.vocabulary),
            summed: false,
            adds_biases: true,
            slices: Vec::new(),
        })
    }

    /// The first `layers` of a model, with its embedding and head: what it computes means nothing, and takes as long as that
    /// part of the whole takes. Nothing where layers cannot be had without those after them.
    pub fn first_layers(spec: &ModelSpec, layers: usize) -> Option<Self> {
        let mut part = Self::whole(spec);
        if layers >= spec.layers.len() || part.slices.is_empty() {
            return Some(part);
        }
        if layers == 0 || spec.layer_inputs.is_some() {
            return None;
        }
        part.spec.layers.truncate(layers);
        part.slices.truncate(layers);
        part.layers.end = layers;
        Some(part)
    }

    /// The part of `layers` that falls to the `place`-th of those with `shares`.
    pub(super) fn cut(
        spec: &ModelSpec,
        layers: Range<usize>,
        (shares, place): (&[u32], usize),
        grain: usize,
    ) -> Result<Self, ShardError> {
        let cutting = Cutting { shares, place, grain };
        let mut local = spec.clone();
        local.layers = spec.layers[layers.clone()].to_vec();
        let mut slices = Vec::with_capacity(layers.len());
        for (at, layer) in layers.clone().zip(&mut local.layers) {
            slices.push(cutting.layer(at, layer)?);
            if let MixerSpec::Attention(AttentionSpec { kv: KvSource::Layer(source), .. }) = &mut layer.mixer
            {
                *source -= layers.start;
            }
        }
        let rows = cutting.vocabulary(spec.vocabulary)?;
        let (first, last) = (layers.start == 0, layers.end == spec.layers.len());
        Ok(Self {
            spec: local,
            embedding: first.then(|| rows.clone()),
            head: last.then_some(rows),
            summed: shares.len() > 1,
            adds_biases: place == 0,
            slices,
            layers,
        })
    }

    /// The tensors that it needs: the role in its own decoder, and the shape of its slice.
    pub fn tensors(&self) -> Vec<(TensorRole, Vec<usize>)> {
        let needs_embedding = |part: &Self| part.embedding.is_some() || part.spec.tied_head;
        let all = expected_tensors(&self.spec).into_iter().filter_map(|(role, _, mut shape)| {
            let rows = match role {
                TensorRole::Embedding if !needs_embedding(self) => return None,
                TensorRole::Embedding => self.embedding.as_ref().or(self.head.as_ref())?,
                TensorRole::Head => self.head.as_ref()?,
                TensorRole::FinalNorm => {
                    self.head.as_ref()?;
                    return Some((role, shape));
                }
                _ => return Some((role, shape)),
            };
            shape[0] = rows.len();
            Some((role, shape))
        });
        all.collect()
    }

    /// How many numbers its tensors hold.
    pub fn weights(&self) -> u64 {
        let size = |shape: &Vec<usize>| shape.iter().fold(1u64, |all, &side| all.saturating_mul(side as u64));
        self.tensors().iter().map(|(_, shape)| size(shape)).fold(0, u64::saturating_add)
    }
}

/// How many numbers the layers alone hold.
pub(super) fn weights_of(spec: &ModelSpec, layers: Range<usize>) -> u64 {
    let mut local = spec.clone();
    local.layers = spec.layers[layers].to_vec();
    let of_layer = |(role, _, shape): &(TensorRole, String, Vec<usize>)| match role {
        TensorRole::Layer(..) => shape.iter().product::<usize>() as u64,
        _ => 0,
    };
    expected_tensors(&local).iter().map(of_layer).sum()
}

struct Cutting<'a> {
    shares: &'a [u32],
    place: usize,
    grain: usize,
}

impl Cutting<'_> {
    /// Narrows `layer` to this rank's slices.
    fn layer(&self, at: usize, layer: &mut LayerSpec) -> Result<LayerSlices, ShardError> {
        let (keys, heads) = match &mut layer.mixer {
            MixerSpec::Attention(attention) => {
                let AttentionSpec { heads, kv_heads, head_dim, .. } = *attention;
                let cut = self.heads(at, "attention", (kv_heads, heads), head_dim)?;
                (attention.kv_heads, attention.heads) = (cut.0.len(), cut.1.len());
                cut
            }
            MixerSpec::DeltaNet(delta) => {
                let DeltaNetSpec { key_heads, value_heads, value_dim, .. } = *delta;
                let cut = self.heads(at, "the delta net", (key_heads, value_heads), value_dim)?;
                (delta.key_heads, delta.value_heads) = (cut.0.len(), cut.1.len());
                cut
            }
        };
        let mut slices = LayerSlices { keys, heads, gated: 0..0, expert: 0..0, shared: 0..0 };
        match &mut layer.feed_forward {
            FeedForwardSpec::Gated(gated) => {
                slices.gated = self.columns(at, "feed-forward", &mut gated.width)?
            }
            FeedForwardSpec::Experts(experts) => self.experts(at, experts, &mut slices)?,
            FeedForwardSpec::DenseAndExperts(both) => {
                slices.gated = self.columns(at, "feed-forward", &mut both.dense.width)?;
                self.experts(at, &mut both.experts, &mut slices)?;
            }
        }
        Ok(slices)
    }

    fn experts(
        &self,
        at: usize,
        experts: &mut ExpertsSpec,
        slices: &mut LayerSlices,
    ) -> Result<(), ShardError> {
        slices.expert = self.columns(at, "expert", &mut experts.expert.width)?;
        if let Some(shared) = &mut experts.shared {
            slices.shared = self.columns(at, "shared expert", &mut shared.gated.width)?;
        }
        Ok(())
    }

    /// (KV heads, heads): whole groups of heads that share keys, or, where there are more ranks than groups, some heads of
    /// one group, whose keys several ranks then hold.
    fn heads(
        &self,
        at: usize,
        what: &str,
        (groups, heads): (usize, usize),
        head_dim: usize,
    ) -> Result<(Range<usize>, Range<usize>), ShardError> {
        let what = || format!("{what} of layer {at}");
        let ranks = self.shares.len();
        if groups == 0 || heads % groups != 0 {
            let detail = format!("{}: {heads} heads over {groups} groups", what());
            return Err(ShardError::Map { detail });
        }
        let of_group = heads / groups;
        // Cut points lie between groups of heads, where the output projection's columns can be cut too.
        let aligned = |heads: usize| (heads * head_dim).is_multiple_of(self.grain);
        let unit = (1..=groups).find(|groups| aligned(groups * of_group)).unwrap_or(groups);
        if let Some(keys) = apportion_columns(groups, unit, self.shares) {
            let keys = keys[self.place].clone();
            let heads = keys.start * of_group..keys.end * of_group;
            return Ok((keys, heads));
        }
        let misaligned =
            || ShardError::Grain { what: what(), columns: of_group * head_dim, grain: self.grain };
        if ranks <= groups {
            return Err(misaligned());
        }
        let holders = ranks_of_groups(groups, ranks).expect("more ranks than groups");
        let group = holders.iter().position(|ranks| ranks.contains(&self.place));
        let group = group.expect("every rank holds some group");
        let holders = holders[group].clone();
        let unit = (1..=of_group).find(|&heads| aligned(heads)).unwrap_or(of_group);
        let parts = apportion_columns(of_group, unit, &self.shares[holders.clone()]);
        let too_few = || ShardError::TooFewUnits { what: what(), units: heads / unit, ranks };
        let parts = parts.ok_or_else(too_few)?;
        let part = &parts[self.place - holders.start];
        let heads = group * of_group + part.start..group * of_group + part.end;
        if !aligned(heads.start) || !(aligned(heads.end) || self.grain == 1) {
            return Err(misaligned());
        }
        Ok((group..group + 1, heads))
    }

    /// This rank's columns of `width`, which becomes their number.
    fn columns(&self, at: usize, what: &str, width: &mut usize) -> Result<Range<usize>, ShardError> {
        let parts = apportion_columns(*width, self.grain, self.shares);
        let too_few = || ShardError::TooFewUnits {
            what: format!("the {what} of layer {at} ({width} columns, cut at multiples of {})", self.grain),
            units: width.div_ceil(self.grain),
            ranks: self.shares.len(),
        };
        let columns = parts.ok_or_else(too_few)?[self.place].clone();
        *width = columns.len();
        Ok(columns)
    }

    fn vocabulary(&self, rows: usize) -> Result<Range<usize>, ShardError> {
        let parts = apportion_columns(rows, VOCABULARY_GRAIN, self.shares);
        let parts = parts.or_else(|| apportion(rows, self.shares));
        let too_few = || ShardError::TooFewUnits {
            what: "the vocabulary".to_owned(),
            units: rows,
            ranks: self.shares.len(),
        };
        Ok(parts.ok_or_else(too_few)?[self.place].clone())
    }
}
