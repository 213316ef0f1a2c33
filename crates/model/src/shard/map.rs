//! What the ranks of a group agree on: which stages there are, and how much of a stage each rank takes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::part::Part;
use super::share::apportion;
use crate::spec::{FeedForwardSpec, KvSource, LayerSpec, MixerSpec, ModelSpec};

/// The rules by which slices follow from a map. A build with other rules must not read it.
const RULES: u16 = 1;
/// Beyond any group there will be; bounds what a map from a peer can ask for.
const RANKS_MAX: usize = 256;
/// Bounds the arithmetic of shares.
const SHARE_MAX: u32 = 1 << 20;

/// How a model is divided over ranks. Ranks are numbered stage by stage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMap {
    /// By which rules slices follow from it.
    rules: u16,
    /// Columns are cut at multiples of this: what quantised weights share scales over (1 for floats).
    grain: usize,
    /// First to last.
    stages: Vec<Stage>,
}

/// Consecutive layers, and the ranks that compute them together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The first layer and the one after the last.
    layers: (usize, usize),
    /// One for each rank: how much of each layer it takes, against the others.
    shares: Vec<u32>,
}

/// How to divide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// All ranks hold a slice of every layer.
    Tensor,
    /// Each rank holds some layers.
    Pipeline,
    /// So many stages of equally many ranks each.
    Both {
        /// Stages; the number of ranks is a multiple.
        stages: usize,
    },
}

/// What is known of a machine that shall hold a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// How fast it is, against the others.
    pub speed: u32,
    /// Bytes that weights may take on it; anything where absent.
    pub memory: Option<u64>,
}

impl Default for Member {
    fn default() -> Self {
        Self { speed: 1, memory: None }
    }
}

/// Why a model cannot be divided so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// No rank, or more than there can be.
    #[error("{ranks} ranks; a group has 1 to {RANKS_MAX}")]
    Ranks {
        /// How many.
        ranks: usize,
    },
    /// Stages of unequal size.
    #[error("{ranks} ranks do not make {stages} stages of equally many; use a multiple of {stages}")]
    Uneven {
        /// How many.
        ranks: usize,
        /// As asked for.
        stages: usize,
    },
    /// Fewer layers than stages.
    #[error("{stages} stages of {layers} layers: one would be empty; use {layers} stages at most")]
    TooFewLayers {
        /// As asked for.
        stages: usize,
        /// Of the model.
        layers: usize,
    },
    /// Something has fewer parts than there are ranks.
    #[error(
        "{what} can be divided over {units} ranks at most, and {ranks} are asked for; use {units}, or a pipeline"
    )]
    TooFewUnits {
        /// What, with its layer.
        what: String,
        /// Parts.
        units: usize,
        /// Ranks.
        ranks: usize,
    },
    /// Columns that quantised weights do not let be cut.
    #[error(
        "{what}: a rank's {columns} columns are no multiple of the {grain} that share a scale in these weights; use \
         other numbers of ranks, a pipeline, or weights of another format"
    )]
    Grain {
        /// What, with its layer.
        what: String,
        /// Columns of the smallest part.
        columns: usize,
        /// What they must be a multiple of.
        grain: usize,
    },
    /// The model has something that no stage can do without another.
    #[error("a pipeline cannot be cut so: {detail}")]
    Stages {
        /// Why.
        detail: String,
    },
    /// A map that says nothing sensible, or something of another model.
    #[error("the shard map is wrong: {detail}")]
    Map {
        /// Why.
        detail: String,
    },
    /// No such rank.
    #[error("rank {rank} of {ranks}")]
    Rank {
        /// As asked for.
        rank: usize,
        /// Of the map.
        ranks: usize,
    },
    /// A machine cannot hold its part.
    #[error(
        "rank {rank} would hold {needed} bytes of weights and has room for {room}; use more machines or larger ones"
    )]
    Memory {
        /// Which.
        rank: usize,
        /// Bytes of its part, as stored.
        needed: u64,
        /// What it has.
        room: u64,
    },
}

impl ShardMap {
    /// Divides `spec` over `members`, whose weights are cut at multiples of `grain` columns and take `bits` bits a number.
    ///
    /// # Errors
    /// It cannot be divided so; the error says over how many ranks it can.
    pub fn plan(
        spec: &ModelSpec,
        division: Division,
        members: &[Member],
        (grain, bits): (usize, f64),
    ) -> Result<Self, ShardError> {
        let ranks = members.len();
        if ranks == 0 || ranks > RANKS_MAX {
            return Err(ShardError::Ranks { ranks });
        }
        let stages = match division {
            Division::Tensor => 1,
            Division::Pipeline => ranks,
            Division::Both { stages } => stages,
        };
        if stages == 0 || !ranks.is_multiple_of(stages) {
            return Err(ShardError::Uneven { ranks, stages });
        }
        let groups: Vec<&[Member]> = members.chunks(ranks / stages).collect();
        let layers = cut_layers(spec, &groups, bits)?;
        let share = |member: &Member| member.speed.clamp(1, SHARE_MAX);
        let stage = |(layers, group): (Range<usize>, &&[Member])| Stage {
            layers: (layers.start, layers.end),
            shares: group.iter().map(share).collect(),
        };
        let stages = layers.into_iter().zip(&groups).map(stage).collect();
        let map = Self { rules: RULES, grain: grain.max(1), stages };
        for (rank, part) in map.parts(spec)?.iter().enumerate() {
            let needed = (part.weights() as f64 * bits / 8.0) as u64;
            if let Some(room) = members[rank].memory
                && needed > room
            {
                return Err(ShardError::Memory { rank, needed, room });
            }
        }
        Ok(map)
    }

    /// The map with these stages: for each the layers and the shares of its ranks; columns are cut at multiples of `grain`.
    /// [`ShardMap::check`] holds it to a model.
    pub fn of(stages: impl IntoIterator<Item = (Range<usize>, Vec<u32>)>, grain: usize) -> Self {
        let stage = |(layers, shares): (Range<usize>, Vec<u32>)| Stage {
            layers: (layers.start, layers.end),
            shares: shares.into_iter().map(|share| share.clamp(1, SHARE_MAX)).collect(),
        };
        Self { rules: RULES, grain: grain.max(1), stages: stages.into_iter().map(stage).collect() }
    }

    /// Reads what [`ShardMap::encode`] wrote, and holds it to `spec`.
    ///
    /// # Errors
    /// It is no map, or none of this model.
    pub fn decode(text: &str, spec: &ModelSpec) -> Result<Self, ShardError> {
        let map: Self =
            serde_json::from_str(text).map_err(|error| ShardError::Map { detail: error.to_string() })?;
        map.check(spec)?;
        Ok(map)
    }

    /// As JSON without spaces: equal maps give equal texts, so that a hash of it can be agreed on.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("numbers and lists are JSON")
    }

    /// Holds the map to `spec`.
    ///
    /// # Errors
    /// Layers are left out or held twice, shares are out of bounds, or a slice would be empty.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), ShardError> {
        let wrong = |detail: String| Err(ShardError::Map { detail });
        if self.rules != RULES {
            return wrong(format!("its rules are {}, this build knows {RULES}", self.rules));
        }
        if self.grain == 0 || self.grain > 1 << 16 {
            return wrong(format!("columns cut at multiples of {}", self.grain));
        }
        let ranks =
            self.stages.iter().fold(0, |ranks: usize, stage| ranks.saturating_add(stage.shares.len()));
        if ranks == 0 || ranks > RANKS_MAX {
            return Err(ShardError::Ranks { ranks });
        }
        let mut next = 0;
        for Stage { layers: (first, end), shares } in &self.stages {
            if *first != next || end <= first || *end > spec.layers.len() {
                return wrong(format!("a stage of layers {first} to {end} after layer {next}"));
            }
            if shares.is_empty() || shares.iter().any(|share| !(1..=SHARE_MAX).contains(share)) {
                return wrong(format!("shares {shares:?}; each must be 1 to {SHARE_MAX}"));
            }
            next = *end;
        }
        if next != spec.layers.len() {
            return wrong(format!("it ends at layer {next} of {}", spec.layers.len()));
        }
        self.parts(spec).map(|_| ())
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.stages.iter().map(|stage| stage.shares.len()).sum()
    }

    /// How many stages.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// The ranks of a stage.
    ///
    /// # Panics
    /// There is no such stage.
    pub fn ranks_of(&self, stage: usize) -> Range<usize> {
        let first = self.stages[..stage].iter().map(|stage| stage.shares.len()).sum();
        first..first + self.stages[stage].shares.len()
    }

    /// Which stage a rank is of.
    pub fn stage_of(&self, rank: usize) -> Option<usize> {
        (0..self.stages.len()).find(|&stage| self.ranks_of(stage).contains(&rank))
    }

    /// In words: `tensor`, `pipeline`, or both with their numbers.
    pub fn mode(&self) -> String {
        let widest = self.stages.iter().map(|stage| stage.shares.len()).max().unwrap_or(0);
        match (self.stages.len(), widest) {
            (1, 1) => "single".to_owned(),
            (1, _) => "tensor".to_owned(),
            (_, 1) => "pipeline".to_owned(),
            (stages, ranks) => format!("{stages}x{ranks}"),
        }
    }

    /// What `rank` holds of `spec`.
    ///
    /// # Errors
    /// There is no such rank, or something cannot be divided so.
    pub fn part(&self, spec: &ModelSpec, rank: usize) -> Result<Part, ShardError> {
        let stage = self.stage_of(rank).ok_or(ShardError::Rank { rank, ranks: self.ranks() })?;
        let Stage { layers: (first, end), shares } = &self.stages[stage];
        if *end > spec.layers.len() || first >= end {
            return Err(ShardError::Map {
                detail: format!("layers {first} to {end} of {}", spec.layers.len()),
            });
        }
        stage_is_whole(spec, *first..*end)?;
        Part::cut(spec, *first..*end, (shares, rank - self.ranks_of(stage).start), self.grain)
    }

    fn parts(&self, spec: &ModelSpec) -> Result<Vec<Part>, ShardError> {
        (0..self.ranks()).map(|rank| self.part(spec, rank)).collect()
    }
}

/// Whether a stage can do without what other stages hold.
fn stage_is_whole(spec: &ModelSpec, layers: Range<usize>) -> Result<(), ShardError> {
    let whole = layers.len() == spec.layers.len();
    if !whole && spec.layer_inputs.is_some() {
        let detail = "every layer of this model takes in the tokens again; use tensor mode".to_owned();
        return Err(ShardError::Stages { detail });
    }
    for at in layers.clone() {
        if let MixerSpec::Attention(attention) = &spec.layers[at].mixer
            && let KvSource::Layer(source) = attention.kv
            && !layers.contains(&source)
        {
            let detail = format!("layer {at} reads the keys of layer {source}, which is in an earlier stage");
            return Err(ShardError::Stages { detail });
        }
    }
    Ok(())
}

/// Weights that one generated token reads in the first `layers` and the head.
pub fn weights_read(spec: &ModelSpec, layers: usize) -> u64 {
    let each = spec.layers.iter().take(layers).map(|layer| cost(layer, spec.hidden));
    each.fold((spec.vocabulary * spec.hidden) as u64, u64::saturating_add)
}

/// What a token costs in each layer: the weights that are read for it.
fn cost(layer: &LayerSpec, hidden: usize) -> u64 {
    let mixer = match &layer.mixer {
        MixerSpec::Attention(attention) => {
            (2 * attention.heads + 2 * attention.kv_heads) * attention.head_dim * hidden
        }
        MixerSpec::DeltaNet(delta) => (delta.channels() + 2 * delta.value_heads * delta.value_dim) * hidden,
    };
    let feed_forward = match &layer.feed_forward {
        FeedForwardSpec::Gated(gated) => gated.width,
        FeedForwardSpec::Experts(experts) => {
            experts.per_token * experts.expert.width
                + experts.shared.as_ref().map_or(0, |shared| shared.gated.width)
        }
        FeedForwardSpec::DenseAndExperts(both) => {
            both.dense.width + both.experts.per_token * both.experts.expert.width
        }
    };
    (mixer + 3 * feed_forward * hidden) as u64
}

/// Layers for each group so that the slowest stage is as fast as can be, within the memory there is.
fn cut_layers(spec: &ModelSpec, groups: &[&[Member]], bits: f64) -> Result<Vec<Range<usize>>, ShardError> {
    let (layers, stages) = (spec.layers.len(), groups.len());
    if layers < stages {
        return Err(ShardError::TooFewLayers { stages, layers });
    }
    let mut sums = vec![0u64; layers + 1];
    for (at, layer) in spec.layers.iter().enumerate() {
        sums[at + 1] = sums[at] + cost(layer, spec.hidden);
    }
    let head = (spec.vocabulary * spec.hidden) as u64;
    let speed = |group: &[Member]| group.iter().map(|member| f64::from(member.speed.max(1))).sum::<f64>();
    let room = |group: &[Member]| {
        group.iter().map(|member| member.memory.map_or(f64::INFINITY, |bytes| bytes as f64)).sum::<f64>()
    };
    let time = |stage: usize, range: Range<usize>| {
        let last = stage + 1 == stages;
        let work = sums[range.end] - sums[range.start] + if last { head } else { 0 };
        let held = super::part::weights_of(spec, range.clone())
            + if stage == 0 || (last && !spec.tied_head) || (last && stages > 1) { head } else { 0 };
        let cut = stage_is_whole(spec, range).is_err();
        let heavy = held as f64 * bits / 8.0 > room(groups[stage]);
        // Too heavy or impossible comes last, so that the error that is told is the true one.
        (u8::from(cut) + u8::from(heavy), work as f64 / speed(groups[stage]))
    };
    // best[stage][end]: the worst stage among the first `stage + 1` that hold the layers before `end`, and where the
    // last of them begins.
    type Best = Option<((u8, f64), usize)>;
    let mut best: Vec<Vec<Best>> = vec![vec![None; layers + 1]; stages];
    for stage in 0..stages {
        for end in stage + 1..=layers {
            let starts = if stage == 0 { 0..1 } else { stage..end };
            for start in starts {
                let before = match stage.checked_sub(1).map(|before| best[before][start]) {
                    None => (0, 0.0),
                    Some(Some((worst, _))) => worst,
                    Some(None) => continue,
                };
                let own = time(stage, start..end);
                let worst = if own > before { own } else { before };
                if best[stage][end].is_none_or(|(found, _)| worst < found) {
                    best[stage][end] = Some((worst, start));
                }
            }
        }
    }
    let mut ranges = Vec::with_capacity(stages);
    let mut end = layers;
    for stage in (0..stages).rev() {
        let (_, start) = best[stage][end].expect("there are as many layers as stages at least");
        ranges.push(start..end);
        end = start;
    }
    ranges.reverse();
    Ok(ranges)
}

/// Ranks for each of `groups` heads' groups, where there are more ranks than groups; `None` where one has too many.
pub(super) fn ranks_of_groups(groups: usize, ranks: usize) -> Option<Vec<Range<usize>>> {
    apportion(ranks, &vec![1; groups])
}
