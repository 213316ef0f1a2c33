//! What the planner knows of a model: what each layer weighs, what it costs to read, what a token leaves in its cache.

use std::ops::Range;
use std::sync::Arc;

use model::checkpoint::expected_tensors;
use model::shard::{Part, ShardError, ShardMap};
use model::spec::{FeedForwardSpec, KvSource, LayerSpec, MixerSpec, ModelSpec, TensorRole};

/// Bytes of a number in the KV cache: the engine holds f32 unless it is told otherwise.
const KV_NUMBER_BYTES: u64 = 4;
/// Tokens that a step computes at most: what activations are held for.
const STEP_TOKENS: u64 = 512;

/// A model, measured out.
#[derive(Debug, Clone)]
pub struct Shape {
    spec: Arc<ModelSpec>,
    grain: usize,
    bits: f64,
    /// Prefix sums over layers, L + 1 of them: weights, weights that a token reads, cache numbers per token.
    weights: Vec<u64>,
    active: Vec<u64>,
    kv: Vec<Kv>,
    /// Whether a stage may begin at this layer.
    cut: Vec<bool>,
    /// Numbers in the embedding (and as many in the head).
    embedding: u64,
    /// Numbers that no layer and no end holds: what every layer's inputs are made of.
    common: u64,
}

/// What sequences leave in a range of layers, as sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kv {
    /// Numbers for each token of the context. Layers with a window count whole: the engine's pages keep all of it.
    per_token: u64,
    /// Numbers for each sequence, however long: states of recurrences.
    per_sequence: u64,
}

impl Shape {
    /// Measures `spec` out: weights take `bits` bits a number, and columns are cut at multiples of `grain`.
    pub fn new(spec: Arc<ModelSpec>, bits: f64, grain: usize) -> Self {
        let layers = spec.layers.len();
        let mut weights = vec![0u64; layers + 1];
        let mut active = vec![0u64; layers + 1];
        let mut kv = vec![Kv::default(); layers + 1];
        let mut first_needed: Vec<usize> = (0..layers).collect();
        let (held, common) = held(&spec);
        for (at, layer) in spec.layers.iter().enumerate() {
            weights[at + 1] = weights[at].saturating_add(held[at]);
            active[at + 1] = active[at].saturating_add(read_of(layer, spec.hidden));
            let own = kv_of(layer);
            kv[at + 1] = Kv {
                per_token: kv[at].per_token + own.per_token,
                per_sequence: kv[at].per_sequence + own.per_sequence,
            };
            if let MixerSpec::Attention(attention) = &layer.mixer
                && let KvSource::Layer(source) = attention.kv
            {
                first_needed[at] = source;
            }
        }
        // A stage may begin at a layer if no later one reads keys from before it.
        let mut cut = vec![true; layers + 1];
        let mut needed = layers;
        for at in (1..layers).rev() {
            needed = needed.min(first_needed[at]);
            cut[at] = needed >= at && spec.layer_inputs.is_none();
        }
        let embedding = (spec.vocabulary as u64).saturating_mul(spec.hidden as u64);
        Self { grain, bits: bits.clamp(0.5, 64.0), weights, active, kv, cut, embedding, common, spec }
    }

    /// The model.
    pub fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    /// L.
    pub fn layers(&self) -> usize {
        self.spec.layers.len()
    }

    /// Whether a stage may begin at `layer`.
    pub fn may_cut(&self, layer: usize) -> bool {
        self.cut.get(layer).copied().unwrap_or(false)
    }

    fn bytes(&self, numbers: u64) -> u64 {
        (numbers as f64 * self.bits / 8.0).ceil() as u64
    }

    /// Numbers in the embedding and head that a stage of these layers holds.
    fn ends(&self, layers: &Range<usize>) -> u64 {
        let (first, last) = (layers.start == 0, layers.end == self.layers());
        let norm = if last { self.spec.hidden as u64 } else { 0 };
        let rows = match (first, last) {
            (true, true) if self.spec.tied_head => self.embedding,
            (true, true) => 2 * self.embedding,
            (true, false) | (false, true) => self.embedding,
            (false, false) => 0,
        };
        rows + norm + self.common
    }

    /// Bytes of weights in these layers, with embedding and head where they are at an end.
    pub fn weight_bytes(&self, layers: Range<usize>) -> u64 {
        self.bytes(self.weights[layers.end] - self.weights[layers.start] + self.ends(&layers))
    }

    /// Bytes that one generated token reads in these layers.
    pub fn read_bytes(&self, layers: Range<usize>) -> f64 {
        let head = if layers.end == self.layers() { self.embedding } else { 0 };
        (self.active[layers.end] - self.active[layers.start] + head) as f64 * self.bits / 8.0
    }

    /// Operations for one token of a prompt in these layers.
    pub fn token_flops(&self, layers: Range<usize>) -> f64 {
        2.0 * (self.active[layers.end] - self.active[layers.start]) as f64
    }

    /// Bytes of cache in these layers for `batch` sequences of `context` tokens.
    pub fn kv_bytes(&self, layers: Range<usize>, context: u64, batch: u64) -> u64 {
        let (from, to) = (self.kv[layers.start], self.kv[layers.end]);
        let a_sequence = (to.per_token - from.per_token)
            .saturating_mul(context)
            .saturating_add(to.per_sequence - from.per_sequence);
        a_sequence.saturating_mul(batch).saturating_mul(KV_NUMBER_BYTES)
    }

    /// Bytes that a rank works in, whatever it holds: activations of a step, and logits.
    pub fn working_bytes(&self, batch: u64) -> u64 {
        let hidden = self.spec.hidden as u64;
        let step = STEP_TOKENS.saturating_mul(hidden).saturating_mul(4 * 4);
        let logits = batch.saturating_mul(self.spec.vocabulary as u64).saturating_mul(4);
        step.saturating_add(logits)
    }

    /// Bytes of one token between layers, as they travel.
    pub fn row_bytes(&self) -> f64 {
        self.spec.hidden as f64 * 4.0
    }

    /// Bytes that each rank holds exactly, in the units that a shard map allows: weights, cache, and what it works in.
    ///
    /// # Errors
    /// It cannot be divided so.
    pub fn exact(
        &self,
        stages: &[(Range<usize>, Vec<u32>)],
        context: u64,
        batch: u64,
    ) -> Result<Vec<u64>, ShardError> {
        let working = self.working_bytes(batch);
        if stages.iter().all(|(_, shares)| shares.len() == 1) {
            let hold = |(layers, _): &(Range<usize>, Vec<u32>)| {
                let held = self.weight_bytes(layers.clone()) + self.kv_bytes(layers.clone(), context, batch);
                held.saturating_add(working)
            };
            return Ok(stages.iter().map(hold).collect());
        }
        let map = ShardMap::of(stages.iter().cloned(), self.grain);
        let hold = |rank| {
            let part = map.part(&self.spec, rank)?;
            let kv = part_kv(&part, context, batch);
            Ok(self.bytes(part.weights()).saturating_add(kv).saturating_add(working))
        };
        (0..map.ranks()).map(hold).collect()
    }
}

/// Numbers in each layer, and those that belong to none.
fn held(spec: &ModelSpec) -> (Vec<u64>, u64) {
    let mut layers = vec![0u64; spec.layers.len()];
    let mut common = 0u64;
    for (role, _, shape) in expected_tensors(spec) {
        let size = shape.iter().fold(1u64, |all, &side| all.saturating_mul(side as u64));
        match role {
            TensorRole::Layer(at, _) => layers[at] = layers[at].saturating_add(size),
            TensorRole::Embedding | TensorRole::Head | TensorRole::FinalNorm => {}
            _ => common = common.saturating_add(size),
        }
    }
    (layers, common)
}

fn part_kv(part: &Part, context: u64, batch: u64) -> u64 {
    let of = |layer: &LayerSpec| {
        let kv = kv_of(layer);
        kv.per_token.saturating_mul(context).saturating_add(kv.per_sequence)
    };
    let sum = part.spec.layers.iter().map(of).fold(0, u64::saturating_add);
    sum.saturating_mul(batch).saturating_mul(KV_NUMBER_BYTES)
}

fn kv_of(layer: &LayerSpec) -> Kv {
    match &layer.mixer {
        MixerSpec::Attention(attention) => match attention.kv {
            KvSource::Layer(_) => Kv::default(),
            _ => Kv {
                per_token: 2 * (attention.kv_heads as u64).saturating_mul(attention.head_dim as u64),
                per_sequence: 0,
            },
        },
        MixerSpec::DeltaNet(delta) => Kv { per_token: 0, per_sequence: delta.state_elements() as u64 },
    }
}

/// Weights of a layer that one token reads.
fn read_of(layer: &LayerSpec, hidden: usize) -> u64 {
    let hidden = hidden as u64;
    let mixer = match &layer.mixer {
        MixerSpec::Attention(a) => {
            let keys = match a.kv {
                KvSource::Own => 2 * a.kv_heads,
                KvSource::KeyIsValue => a.kv_heads,
                KvSource::Layer(_) => 0,
            };
            let heads = 2 * a.heads + if a.output_gate { a.heads } else { 0 };
            ((heads + keys) * a.head_dim) as u64 * hidden
        }
        MixerSpec::DeltaNet(d) => (d.channels() + 2 * d.value_heads * d.value_dim) as u64 * hidden,
    };
    let experts = |e: &model::spec::ExpertsSpec| {
        let shared = e.shared.as_ref().map_or(0, |shared| shared.gated.width);
        (e.per_token * e.expert.width + shared) as u64 * 3 * hidden + e.experts as u64 * hidden
    };
    let dense = |width: usize| 3 * width as u64 * hidden;
    mixer
        + match &layer.feed_forward {
            FeedForwardSpec::Gated(gated) => dense(gated.width),
            FeedForwardSpec::Experts(e) => experts(e),
            FeedForwardSpec::DenseAndExperts(both) => dense(both.dense.width) + experts(&both.experts),
        }
}
