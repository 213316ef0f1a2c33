//! Every kind of layer divided over ranks, against the same decoder in one piece.

use collective::{Communicator, Group, GroupTerms, in_memory};
use model::checkpoint::DType;
use model::shard::{Division, Member, ShardMap, ShardedSource};
use model::spec::{
    Activation, AttentionSpec, DeltaNetSpec, DenseAndExpertsSpec, ExpertsSpec, FeedForwardSpec, GatedSpec,
    KvSource, LayerInputsSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec, RopeSpec, RouterSpec, Scoring,
    SharedSpec,
};
use nn::{Decoder, KvCache, KvDType, LoadOptions, LogitRows, Output, Peers, Scratch, Span, Team};

use crate::tiny::Tensors;

const NORM: NormSpec = NormSpec { epsilon: 1e-5, weight_offset: 0.0 };
const VOCABULARY: usize = 75;

struct Sum(Box<dyn Communicator>);

impl Peers for Sum {
    fn sum(&mut self, values: &mut [f32]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.all_reduce(values)?)
    }
}

/// One rank with what it keeps between steps.
struct Rank {
    decoder: Decoder,
    cache: KvCache,
    scratch: Scratch,
    peers: Option<Sum>,
}

fn attention(heads: usize, kv_heads: usize) -> AttentionSpec {
    AttentionSpec::plain(heads, kv_heads, 8, RopeSpec::plain(8, 10_000.0))
}

fn gated(width: usize, bias: bool) -> GatedSpec {
    GatedSpec { width, activation: Activation::Silu, bias }
}

fn experts(width: usize, bias: bool, shared: bool) -> ExpertsSpec {
    ExpertsSpec {
        experts: 5,
        per_token: 2,
        expert: gated(width, bias),
        router: RouterSpec {
            scoring: Scoring::SoftmaxThenTopK { normalise: true },
            bias,
            norm: None,
            expert_scale: false,
        },
        shared: shared.then(|| SharedSpec { gated: gated(width, false), output_gate: true }),
    }
}

/// All there is, in four layers.
fn layers() -> Vec<LayerSpec> {
    let everything = AttentionSpec {
        qkv_bias: true,
        output_bias: true,
        qk_norm: Some(NORM),
        value_norm: Some(NORM),
        soft_cap: Some(20.0),
        window: Some(19),
        sinks: true,
        output_gate: true,
        ..attention(8, 4)
    };
    let delta =
        DeltaNetSpec { key_heads: 2, value_heads: 6, key_dim: 8, value_dim: 16, conv_width: 4, norm: NORM };
    let both = DenseAndExpertsSpec {
        dense: gated(33, false),
        dense_post_norm: NORM,
        experts_norm: NORM,
        experts: experts(9, false, false),
        experts_post_norm: NORM,
    };
    let post = |layer: LayerSpec| LayerSpec {
        mixer_post_norm: Some(NORM),
        feed_forward_post_norm: Some(NORM),
        ..layer
    };
    vec![
        LayerSpec::plain(NORM, MixerSpec::Attention(everything), FeedForwardSpec::Gated(gated(50, true))),
        LayerSpec::plain(NORM, MixerSpec::DeltaNet(delta), FeedForwardSpec::Experts(experts(12, true, true))),
        post(LayerSpec::plain(
            NORM,
            MixerSpec::Attention(AttentionSpec { kv: KvSource::KeyIsValue, ..attention(6, 2) }),
            FeedForwardSpec::Gated(gated(41, false)),
        )),
        post(LayerSpec::plain(
            NORM,
            MixerSpec::Attention(AttentionSpec { kv: KvSource::Layer(2), ..attention(6, 2) }),
            FeedForwardSpec::DenseAndExperts(Box::new(both)),
        )),
    ]
}

fn spec(tied_head: bool, layer_inputs: bool) -> ModelSpec {
    let inputs =
        LayerInputsSpec { width: 8, vocabulary: VOCABULARY, activation: Activation::GeluTanh, norm: NORM };
    ModelSpec {
        family: "test",
        hidden: 48,
        vocabulary: VOCABULARY,
        context: 256,
        embedding_scale: 1.5,
        tied_head,
        layers: layers(),
        layer_inputs: layer_inputs.then_some(inputs),
        final_norm: NORM,
        logit_soft_cap: Some(30.0),
        pooling: None,
        stop_tokens: Vec::new(),
        ignored_tensors: &[],
    }
}

/// The ranks of each stage.
fn load(spec: &ModelSpec, tensors: &Tensors, map: &ShardMap, team: &Team) -> Vec<Vec<Rank>> {
    let rank = |rank: usize, peers: Option<Sum>| {
        let part = map.part(spec, rank).unwrap();
        let source = ShardedSource::new(tensors, spec, &part).unwrap();
        let decoder = Decoder::load_part(&part, &source, &LoadOptions::default(), team).unwrap();
        let cache = KvCache::new(&part.spec, 8, 16, KvDType::F32).unwrap();
        Rank { decoder, cache, scratch: Scratch::new(), peers }
    };
    let stage = |stage: usize| {
        let ranks = map.ranks_of(stage);
        let transports = in_memory(ranks.len()).into_iter();
        let summed = ranks.len() > 1;
        let peers = transports
            .map(|transport| summed.then(|| Sum(Box::new(Group::new(transport, GroupTerms::default())))));
        ranks.zip(peers).map(|(number, peers)| rank(number, peers)).collect()
    };
    (0..map.stages()).map(stage).collect()
}

/// Logits of a span, its rows through all stages.
fn run(stages: &mut [Vec<Rank>], tokens: &[u32], position: usize) -> Vec<f32> {
    let span = Span { tokens, position, pages: &[3, 1, 4, 0, 5, 2], logits: LogitRows::All };
    let mut rows: Option<Vec<f32>> = None;
    let mut logits = Vec::new();
    for stage in stages {
        let given = rows.as_deref();
        let outputs: Vec<(bool, Vec<f32>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = stage
                .iter_mut()
                .map(|rank| {
                    scope.spawn(move || {
                        let Rank { decoder, cache, scratch, peers } = rank;
                        let peers = peers.as_mut().map(|peers| peers as &mut dyn Peers);
                        let team = Team::new(1);
                        match decoder.forward_part(&team, scratch, (&[span], given), cache, peers).unwrap() {
                            Output::Rows(rows) => (false, rows.to_vec()),
                            Output::Logits(logits) => (true, logits.values().to_vec()),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        if outputs[0].0 {
            for row in 0..tokens.len() {
                for (_, part) in &outputs {
                    let columns = part.len() / tokens.len();
                    logits.extend_from_slice(&part[row * columns..][..columns]);
                }
            }
        } else {
            assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]), "every rank has the same rows");
            rows = Some(outputs.into_iter().next().unwrap().1);
        }
    }
    logits
}

#[test]
fn every_kind_of_layer_computes_divided_what_it_computes_whole() {
    let team = Team::new(1);
    let tokens: Vec<u32> = (0..70).map(|at| (at * at * 5 + at) % VOCABULARY as u32).collect();
    for (tied, inputs) in [(false, false), (true, true)] {
        let spec = spec(tied, inputs);
        let tensors = Tensors::random(&spec, DType::F32, 7);
        let one =
            |shares: &[u32]| shares.iter().map(|&speed| Member { speed, memory: None }).collect::<Vec<_>>();
        let whole = ShardMap::plan(&spec, Division::Tensor, &one(&[1]), (1, 32.0)).unwrap();
        // Two chunks and single tokens after them: caches and states go from step to step.
        let steps = [0..40, 40..68, 68..69, 69..70];
        let all = |map: &ShardMap| {
            let mut stages = load(&spec, &tensors, map, &team);
            let each = steps.iter().map(|step| run(&mut stages, &tokens[step.clone()], step.start));
            each.collect::<Vec<_>>().concat()
        };
        let exact = all(&whole);
        let divisions: [(Division, &[u32]); 6] = [
            (Division::Tensor, &[1, 1]),
            (Division::Tensor, &[3, 1, 2]),
            (Division::Tensor, &[1, 1, 1, 1, 1]),
            (Division::Pipeline, &[1, 1]),
            (Division::Pipeline, &[1, 1, 1]),
            (Division::Both { stages: 2 }, &[1, 1, 2, 1]),
        ];
        for (division, shares) in divisions {
            let map = match ShardMap::plan(&spec, division, &one(shares), (1, 32.0)) {
                Ok(map) => map,
                Err(error) => {
                    assert!(inputs && map_is_pipeline(division), "{division:?}: {error}");
                    continue;
                }
            };
            let found = all(&map);
            assert_eq!(found.len(), exact.len());
            for (at, (found, exact)) in found.iter().zip(&exact).enumerate() {
                let off = (found - exact).abs() / (1.0 + exact.abs());
                assert!(off < 1e-4, "{division:?} {shares:?}: {found} for {exact} at {}", at / VOCABULARY);
            }
        }
    }
}

fn map_is_pipeline(division: Division) -> bool {
    division != Division::Tensor
}
