//! Shards of small models: every part of every tensor lies on exactly one rank, and what cannot be divided is refused.

use std::collections::HashMap;

use base::Rng;
use proptest::prelude::*;

use super::*;
use crate::checkpoint::{CheckpointError, DType, TensorSource, TensorView, expected_tensors};
use crate::quant::dequantise_all;
use crate::spec::{
    Activation, AttentionSpec, DeltaNetSpec, ExpertsSpec, FeedForwardSpec, GatedSpec, LayerSpec, LayerTensor,
    MixerSpec, ModelSpec, NormSpec, RopeSpec, RouterSpec, Scoring, SharedSpec, TensorRole,
};

const NORM: NormSpec = NormSpec { epsilon: 1e-5, weight_offset: 0.0 };

fn gated(width: usize, bias: bool) -> GatedSpec {
    GatedSpec { width, activation: Activation::Silu, bias }
}

fn spec(layers: Vec<LayerSpec>, vocabulary: usize, tied_head: bool) -> ModelSpec {
    ModelSpec {
        family: "test",
        hidden: 8,
        vocabulary,
        context: 64,
        embedding_scale: 1.0,
        tied_head,
        layers,
        layer_inputs: None,
        final_norm: NORM,
        logit_soft_cap: None,
        pooling: None,
        stop_tokens: Vec::new(),
        ignored_tensors: &[],
    }
}

fn attention(heads: usize, kv_heads: usize, head_dim: usize, extras: bool) -> MixerSpec {
    let mut attention = AttentionSpec::plain(heads, kv_heads, head_dim, RopeSpec::plain(head_dim, 1e4));
    (attention.qkv_bias, attention.output_bias, attention.sinks, attention.output_gate) =
        (extras, extras, extras, extras);
    MixerSpec::Attention(attention)
}

fn delta(key_heads: usize, value_heads: usize) -> MixerSpec {
    let (key_dim, value_dim, conv_width) = (2, 4, 3);
    MixerSpec::DeltaNet(DeltaNetSpec { key_heads, value_heads, key_dim, value_dim, conv_width, norm: NORM })
}

fn experts(width: usize) -> FeedForwardSpec {
    FeedForwardSpec::Experts(ExpertsSpec {
        experts: 3,
        per_token: 2,
        expert: gated(width, true),
        router: RouterSpec { scoring: Scoring::TopKThenSoftmax, bias: true, norm: None, expert_scale: false },
        shared: Some(SharedSpec { gated: gated(width, false), output_gate: true }),
    })
}

/// Every number of a model has its own value: which tensor, which place.
struct Numbered(HashMap<TensorRole, (String, Vec<usize>, Vec<u8>)>);

impl Numbered {
    fn of(spec: &ModelSpec) -> Self {
        let mut next = 0.0f32;
        let mut numbers = |shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            (0..count)
                .flat_map(|_| {
                    next += 1.0;
                    next.to_le_bytes()
                })
                .collect::<Vec<u8>>()
        };
        let tensors = expected_tensors(spec);
        let tensors = tensors.into_iter().map(|(role, name, shape)| {
            let bytes = numbers(&shape);
            (role, (name, shape, bytes))
        });
        Self(tensors.collect())
    }
}

impl TensorSource for Numbered {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        let Some((name, shape, bytes)) = self.0.get(&role) else {
            return Err(CheckpointError::MissingTensor { tensor: format!("{role:?}"), file: "test".into() });
        };
        Ok(TensorView::new(name, DType::F32, shape, bytes))
    }
}

/// How often each number of the model is held by some rank, by its value.
fn holders(spec: &ModelSpec, map: &ShardMap) -> HashMap<u32, (TensorRole, usize)> {
    let all = Numbered::of(spec);
    let mut counts: HashMap<u32, (TensorRole, usize)> = HashMap::new();
    for role in all.0.keys() {
        for value in dequantise_all(&all.tensor(*role).unwrap()) {
            counts.insert(value as u32, (*role, 0));
        }
    }
    for rank in 0..map.ranks() {
        let part = map.part(spec, rank).unwrap();
        let source = ShardedSource::new(&all, spec, &part).unwrap();
        let mut weights = 0;
        for (role, shape) in part.tensors() {
            let view = source.tensor(role).unwrap();
            assert_eq!(view.shape, shape, "{role:?} of rank {rank}");
            let values = dequantise_all(&view);
            assert_eq!(values.len(), shape.iter().product::<usize>());
            weights += values.len() as u64;
            for value in values.into_iter().filter(|&value| value != 0.0) {
                counts.get_mut(&(value as u32)).unwrap().1 += 1;
            }
        }
        assert_eq!(weights, part.weights(), "what rank {rank} says that it holds");
    }
    counts
}

/// Whether every rank of a stage has all of it.
fn is_replicated(role: TensorRole) -> bool {
    use LayerTensor as T;
    match role {
        TensorRole::FinalNorm => true,
        TensorRole::Layer(_, tensor) => matches!(
            tensor,
            T::MixerNorm
                | T::FeedForwardNorm
                | T::DeltaNorm
                | T::Router
                | T::RouterBias
                | T::SharedOutputGate
        ),
        _ => false,
    }
}

fn check(spec: &ModelSpec, map: &ShardMap) {
    let widths: Vec<usize> = (0..map.stages()).map(|stage| map.ranks_of(stage).len()).collect();
    for (value, (role, count)) in holders(spec, map) {
        let once = match role {
            // A tied table is embedding in the first stage and head in the last.
            TensorRole::Embedding if spec.tied_head && map.stages() > 1 => count == 2,
            TensorRole::FinalNorm => count == widths[map.stages() - 1],
            TensorRole::Layer(..) if is_replicated(role) => widths.contains(&count),
            TensorRole::Layer(at, tensor) => {
                let shared_keys = match (&spec.layers[at].mixer, tensor) {
                    (
                        MixerSpec::Attention(a),
                        LayerTensor::Key | LayerTensor::KeyBias | LayerTensor::Value | LayerTensor::ValueBias,
                    ) => widths.iter().any(|&ranks| ranks > a.kv_heads),
                    (
                        MixerSpec::DeltaNet(d),
                        LayerTensor::DeltaProjection | LayerTensor::DeltaConvolution,
                    ) => widths.iter().any(|&ranks| ranks > d.key_heads),
                    _ => false,
                };
                if shared_keys { count >= 1 } else { count == 1 }
            }
            _ => count == 1,
        };
        assert!(once, "{role:?}: the number {value} is held {count} times by {map:?}");
    }
}

fn members(shares: &[u32]) -> Vec<Member> {
    shares.iter().map(|&speed| Member { speed, memory: None }).collect()
}

#[test]
fn every_number_is_held_once_whatever_the_division() {
    let layers = || {
        vec![
            LayerSpec::plain(NORM, attention(8, 4, 2, true), FeedForwardSpec::Gated(gated(7, true))),
            LayerSpec::plain(NORM, delta(2, 6), experts(5)),
            LayerSpec::plain(NORM, attention(5, 5, 3, false), FeedForwardSpec::Gated(gated(9, false))),
            LayerSpec::plain(NORM, attention(4, 1, 2, true), experts(4)),
        ]
    };
    for tied in [false, true] {
        let spec = spec(layers(), 37, tied);
        let divisions: [(Division, &[u32]); 8] = [
            (Division::Tensor, &[1, 1]),
            (Division::Tensor, &[1, 1, 1]),
            (Division::Tensor, &[3, 1, 1, 2]),
            (Division::Tensor, &[1000, 1]),
            (Division::Pipeline, &[1, 1]),
            (Division::Pipeline, &[5, 1, 1]),
            (Division::Both { stages: 2 }, &[1, 1, 1, 1]),
            (Division::Both { stages: 2 }, &[2, 1, 1, 1, 3, 1]),
        ];
        for (division, shares) in divisions {
            let map = ShardMap::plan(&spec, division, &members(shares), (1, 32.0)).unwrap();
            check(&spec, &map);
            assert_eq!(ShardMap::decode(&map.encode(), &spec).unwrap(), map);
        }
    }
}

proptest! {
    #[test]
    fn any_sizes_and_shares_divide_or_say_why_not(
        (groups, of_group, head_dim) in (1usize..5, 1usize..4, 1usize..4),
        (key_heads, of_key) in (1usize..4, 1usize..4),
        (width, expert, vocabulary) in (1usize..40, 1usize..12, 1usize..70),
        shares in proptest::collection::vec(1u32..9, 1..7),
        (stages, grain, tied) in (1usize..4, prop_oneof![Just(1usize), Just(2), Just(4)], any::<bool>()),
    ) {
        let layers = vec![
            LayerSpec::plain(NORM, attention(groups * of_group, groups, head_dim, true), FeedForwardSpec::Gated(gated(width, true))),
            LayerSpec::plain(NORM, delta(key_heads, key_heads * of_key), experts(expert)),
            LayerSpec::plain(NORM, delta(key_heads, key_heads * of_key), FeedForwardSpec::Gated(gated(width, false))),
        ];
        let spec = spec(layers, vocabulary, tied);
        match ShardMap::plan(&spec, Division::Both { stages }, &members(&shares), (grain, 32.0)) {
            Ok(map) => {
                check(&spec, &map);
                for rank in 0..map.ranks() {
                    let part = map.part(&spec, rank).unwrap();
                    for slices in &part.slices {
                        let last = slices.gated.end == width;
                        prop_assert!(slices.gated.start % grain == 0 && (last || slices.gated.end % grain == 0));
                    }
                }
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn shares_are_kept_to_within_one_unit(units in 1usize..400, weights in proptest::collection::vec(1u32..50, 1..9)) {
        let Some(ranges) = apportion(units, &weights) else {
            prop_assert!(units < weights.len());
            return Ok(());
        };
        prop_assert_eq!(ranges[0].start, 0);
        prop_assert_eq!(ranges[ranges.len() - 1].end, units);
        prop_assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        let total: u32 = weights.iter().sum();
        let exact = |weight: u32| units as f64 * f64::from(weight) / f64::from(total);
        let all_above_one = weights.iter().all(|&weight| exact(weight) >= 1.0);
        for (range, &weight) in ranges.iter().zip(&weights) {
            prop_assert!(!range.is_empty());
            prop_assert!(!all_above_one || (range.len() as f64 - exact(weight)).abs() < 1.0 + 1e-9);
        }
    }

    #[test]
    fn a_map_from_a_peer_never_panics(text in "\\PC*", first in any::<usize>(), end in any::<usize>(), share in any::<u32>()) {
        let spec = spec(vec![LayerSpec::plain(NORM, attention(4, 2, 2, false), FeedForwardSpec::Gated(gated(8, false)))], 20, true);
        prop_assert!(ShardMap::decode(&text, &spec).is_err());
        let text = format!(r#"{{"rules":1,"grain":1,"stages":[{{"layers":[{first},{end}],"shares":[{share},1]}}]}}"#);
        let read = ShardMap::decode(&text, &spec);
        prop_assert!(read.is_err() || (first, end) == (0, 1));
    }
}

#[test]
fn refusals_say_over_how_many_ranks_it_can_be() {
    let layer = |heads, kv, width| {
        LayerSpec::plain(NORM, attention(heads, kv, 2, false), FeedForwardSpec::Gated(gated(width, false)))
    };
    let plan = |spec: &ModelSpec, division, ranks, grain| {
        ShardMap::plan(spec, division, &vec![Member::default(); ranks], (grain, 16.0)).unwrap_err()
    };
    let small = spec(vec![layer(2, 1, 64)], 40, true);
    let error = plan(&small, Division::Tensor, 3, 1).to_string();
    assert!(error.contains("attention of layer 0 can be divided over 2 ranks at most"), "{error}");
    let error = plan(&spec(vec![layer(8, 8, 64)], 40, true), Division::Tensor, 3, 32).to_string();
    assert!(
        error.contains("64 columns, cut at multiples of 32") || error.contains("multiple of the 32"),
        "{error}"
    );
    assert!(matches!(plan(&small, Division::Pipeline, 2, 1), ShardError::TooFewLayers { .. }));
    assert!(matches!(plan(&small, Division::Both { stages: 2 }, 3, 1), ShardError::Uneven { .. }));
    let room = [Member { speed: 1, memory: Some(10) }];
    let error = ShardMap::plan(&small, Division::Tensor, &room, (1, 16.0)).unwrap_err();
    assert!(matches!(error, ShardError::Memory { rank: 0, room: 10, .. }), "{error}");
}

#[test]
fn stages_balance_cost_and_keep_within_memory() {
    let layer = |width| {
        LayerSpec::plain(NORM, attention(4, 2, 2, false), FeedForwardSpec::Gated(gated(width, false)))
    };
    let spec = spec((0..8).map(|_| layer(64)).collect(), 16, true);
    let cut = |members: &[Member]| {
        let map = ShardMap::plan(&spec, Division::Pipeline, members, (1, 32.0)).unwrap();
        (0..map.ranks()).map(|rank| map.part(&spec, rank).unwrap().layers.len()).collect::<Vec<_>>()
    };
    assert_eq!(cut(&members(&[1, 1])), [4, 4]);
    assert_eq!(cut(&members(&[3, 1])), [6, 2]);
    // The fast one has little memory: it gets what it can hold.
    let little = Member { speed: 3, memory: Some(3 * 4 * (3 * 64 * 8 + 192 + 16) + 16 * 8 * 4) };
    assert_eq!(cut(&[little, Member::default()]), [3, 5]);
}

#[test]
fn quantised_columns_are_cut_between_groups_and_read_alike() {
    let width = 96;
    let mut rng = Rng::new(3);
    let blocks = 8 * width / 32;
    let bytes: Vec<u8> = (0..blocks)
        .flat_map(|_| {
            let mut block = vec![0x00, 0x3c];
            block.extend((0..32).map(|_| rng.below(256) as u8));
            block
        })
        .collect();
    struct Quantised(Vec<u8>, Numbered);
    impl TensorSource for Quantised {
        fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
            match role {
                TensorRole::Layer(0, LayerTensor::Down) => {
                    Ok(TensorView::new("down", DType::Q8_0, &[8, 96], &self.0))
                }
                other => self.1.tensor(other),
            }
        }
    }
    let layer =
        LayerSpec::plain(NORM, attention(4, 2, 16, false), FeedForwardSpec::Gated(gated(width, false)));
    let spec = spec(vec![layer], 40, false);
    let source = Quantised(bytes, Numbered::of(&spec));
    assert_eq!(grain(&spec, &source).unwrap(), 32);
    let map = ShardMap::plan(&spec, Division::Tensor, &members(&[2, 1]), (32, 8.5)).unwrap();
    let role = TensorRole::Layer(0, LayerTensor::Down);
    let whole = dequantise_all(&source.tensor(role).unwrap());
    let mut at = 0;
    for rank in 0..2 {
        let part = map.part(&spec, rank).unwrap();
        let sharded = ShardedSource::new(&source, &spec, &part).unwrap();
        let view = sharded.tensor(role).unwrap();
        let columns = view.columns();
        let values = dequantise_all(&view);
        for row in 0..8 {
            assert_eq!(values[row * columns..][..columns], whole[row * width + at..][..columns]);
        }
        at += columns;
    }
    assert_eq!(at, width);
}
