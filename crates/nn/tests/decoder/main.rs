//! A decoder against its definition, and against itself cut and mixed in every way.
// Not only in test functions: what they share is test code as well.
#![allow(clippy::unwrap_used)]

mod divided;
mod reference;
mod tiny;

use base::{Bytes, Rng};
use model::checkpoint::DType;
use model::spec::{LayerTensor, ModelSpec, TensorRole};
use nn::{
    Decoder, ForwardError, Isa, KvCache, KvDType, LoadError, LoadOptions, LogitRows, Scratch, Span, Team,
    Weights,
};
use proptest::prelude::*;
use tiny::{LLAMA, QWEN, Shape, Tensors, spec};

struct Rig {
    spec: ModelSpec,
    tensors: Tensors,
    team: Team,
    decoder: Decoder,
}

fn rig(shape: &Shape, dtype: DType, options: &LoadOptions, threads: usize) -> Rig {
    let spec = spec(shape);
    let tensors = Tensors::random(&spec, dtype, 11);
    let team = Team::new(threads);
    let decoder = Decoder::load(&spec, &tensors, options, &team).unwrap();
    Rig { spec, tensors, team, decoder }
}

fn tokens(rng: &mut Rng, count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|_| rng.below(vocabulary as u64) as u32).collect()
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

impl Rig {
    fn cache(&self, pages: usize, dtype: KvDType) -> KvCache {
        KvCache::new(&self.spec, pages, 16, dtype).unwrap()
    }

    /// All logits of one sequence in one step.
    fn whole(&self, tokens: &[u32], dtype: KvDType) -> Vec<Vec<f32>> {
        let mut cache = self.cache(tokens.len().div_ceil(16), dtype);
        let pages: Vec<u32> = (0..cache.pages() as u32).collect();
        let span = Span { tokens, position: 0, pages: &pages, logits: LogitRows::All };
        let mut scratch = Scratch::new();
        let logits = self.decoder.forward(&self.team, &mut scratch, &[span], &mut cache).unwrap();
        logits.rows().map(<[f32]>::to_vec).collect()
    }
}

#[test]
fn logits_are_those_of_the_definition_for_every_shape_type_and_instruction_set() {
    let wide = Shape { hidden: 96, head_dim: 16, width: 130, ..LLAMA };
    for (shape, dtype) in [(LLAMA, DType::F32), (QWEN, DType::BF16), (wide, DType::F16)] {
        for isa in Isa::available() {
            let options = LoadOptions { isa: Some(isa), ..LoadOptions::default() };
            let rig = rig(&shape, dtype, &options, 2);
            let tokens = tokens(&mut Rng::new(5), 70, shape.vocabulary);
            let exact = reference::logits(&rig.spec, &rig.tensors, &tokens);
            for (position, (got, exact)) in rig.whole(&tokens, KvDType::F32).iter().zip(&exact).enumerate() {
                for (got, exact) in got.iter().zip(exact) {
                    let off = (f64::from(*got) - exact).abs();
                    assert!(off <= 1e-4, "{isa:?} {dtype} at {position}: {got} for {exact}");
                }
            }
        }
    }
}

#[test]
fn halves_and_bytes_in_the_cache_stay_near_the_definition() {
    let rig = rig(&LLAMA, DType::BF16, &LoadOptions::default(), 1);
    let tokens = tokens(&mut Rng::new(6), 60, LLAMA.vocabulary);
    let exact = reference::logits(&rig.spec, &rig.tensors, &tokens);
    for (dtype, bound) in [(KvDType::F16, 2e-2), (KvDType::Bf16, 2e-1), (KvDType::Int8, 2e-1)] {
        let got = rig.whole(&tokens, dtype);
        let pairs = got.iter().flatten().zip(exact.iter().flatten());
        let worst = pairs.map(|(got, exact)| (f64::from(*got) - exact).abs()).fold(0.0, f64::max);
        assert!(worst <= bound, "{dtype:?}: off by {worst}");
        assert!(worst > 0.0);
    }
}

/// Several sequences, cut into chunks and mixed into steps at random: each one's logits.
fn mixed(rig: &Rig, sequences: &[Vec<u32>], rng: &mut Rng) -> Vec<Vec<Vec<f32>>> {
    let mut cache = rig.cache(40, KvDType::F16);
    let mut free: Vec<u32> = (0..40).collect();
    let mut pages: Vec<Vec<u32>> = sequences.iter().map(|_| Vec::new()).collect();
    let mut done = vec![0; sequences.len()];
    let mut logits: Vec<Vec<Vec<f32>>> = sequences.iter().map(|_| Vec::new()).collect();
    let mut scratch = Scratch::new();
    while done.iter().zip(sequences).any(|(done, tokens)| *done < tokens.len()) {
        let mut cuts = Vec::new();
        for (at, tokens) in sequences.iter().enumerate() {
            let left = tokens.len() - done[at];
            let chunk = left.min(1 + rng.below(12) as usize);
            if chunk == 0 || rng.below(4) == 0 {
                continue;
            }
            while pages[at].len() * 16 < done[at] + chunk {
                pages[at].push(free.swap_remove(rng.below(free.len() as u64) as usize));
            }
            let wants = [LogitRows::None, LogitRows::Last, LogitRows::All][rng.below(3) as usize];
            cuts.push((at, chunk, wants));
        }
        let spans: Vec<_> = cuts
            .iter()
            .map(|&(at, chunk, logits)| Span {
                tokens: &sequences[at][done[at]..done[at] + chunk],
                position: done[at],
                pages: &pages[at],
                logits,
            })
            .collect();
        let out = rig.decoder.forward(&rig.team, &mut scratch, &spans, &mut cache).unwrap();
        let mut rows = out.rows();
        for (at, chunk, wants) in cuts {
            let got = match wants {
                LogitRows::None => 0,
                LogitRows::Last => 1,
                LogitRows::All => chunk,
            };
            logits[at].extend(std::iter::repeat_n(Vec::new(), chunk - got));
            logits[at].extend(rows.by_ref().take(got).map(<[f32]>::to_vec));
            done[at] += chunk;
        }
        assert_eq!(rows.len(), 0);
    }
    logits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn batch_chunks_threads_and_vectors_do_not_change_a_bit_of_a_sequences_logits(
        seed in 0u64..10_000, threads in 1usize..4, qwen: bool,
    ) {
        let shape = if qwen { QWEN } else { LLAMA };
        let mut rng = Rng::new(seed);
        let mut lengths = || 1 + rng.below(60) as usize;
        let lengths = [lengths(), lengths(), lengths(), lengths()];
        let sequences: Vec<_> = lengths.iter().map(|&len| tokens(&mut rng, len, shape.vocabulary)).collect();
        let first = Isa::avx512().or_else(Isa::avx2).unwrap_or(Isa::portable());
        let second = Isa::avx2().unwrap_or(Isa::portable());
        let options = |isa| LoadOptions { isa: Some(isa), ..LoadOptions::default() };
        let alone = rig(&shape, DType::BF16, &options(first), 1);
        for isa in [first, second] {
            let together = mixed(&rig(&shape, DType::BF16, &options(isa), threads), &sequences, &mut rng);
            for (tokens, together) in sequences.iter().zip(&together) {
                for (row, whole) in together.iter().zip(alone.whole(tokens, KvDType::F16)) {
                    prop_assert!(row.is_empty() || bits(row) == bits(&whole), "{:?}", isa);
                }
            }
        }
    }
}

#[test]
fn threads_that_share_the_work_out_do_not_change_a_bit() {
    // Large enough for every operation to be shared out.
    let shape = Shape { hidden: 128, head_dim: 32, width: 600, vocabulary: 1000, ..LLAMA };
    let tokens = tokens(&mut Rng::new(4), 200, shape.vocabulary);
    let run =
        |threads| rig(&shape, DType::BF16, &LoadOptions::default(), threads).whole(&tokens, KvDType::F32);
    let alone = run(1);
    for threads in [2, 3] {
        assert!(run(threads).iter().zip(&alone).all(|(a, b)| bits(a) == bits(b)), "{threads} threads");
    }
}

#[test]
fn weights_in_f32_give_the_bits_of_weights_as_stored_and_take_twice_the_memory() {
    for dtype in [DType::BF16, DType::F16] {
        let stored = rig(&LLAMA, dtype, &LoadOptions::default(), 1);
        let wide = rig(&LLAMA, dtype, &LoadOptions { weights: Weights::F32, ..LoadOptions::default() }, 1);
        let tokens = tokens(&mut Rng::new(1), 20, LLAMA.vocabulary);
        for (a, b) in stored.whole(&tokens, KvDType::F32).iter().zip(wide.whole(&tokens, KvDType::F32)) {
            assert_eq!(bits(a), bits(&b));
        }
        assert_eq!(wide.decoder.weight_bytes(), Bytes(2 * stored.decoder.weight_bytes().0));
        assert_eq!(stored.decoder.spec(), &stored.spec);
    }
}

#[test]
fn a_wrong_span_is_refused_and_says_what_is_wrong() {
    let rig = rig(&LLAMA, DType::F32, &LoadOptions::default(), 1);
    let mut cache = rig.cache(4, KvDType::F32);
    let span = |tokens, position, pages| Span { tokens, position, pages, logits: LogitRows::Last };
    let mut refused = |spans: &[Span<'_>]| {
        let mut scratch = Scratch::new();
        let outcome = rig.decoder.forward(&rig.team, &mut scratch, spans, &mut cache);
        outcome.err().expect("refused").to_string()
    };
    assert_eq!(refused(&[span(&[], 0, &[0])]), "span 0 has no tokens");
    assert_eq!(refused(&[span(&[101], 0, &[0])]), "token 101 is outside the vocabulary of 101");
    let far = refused(&[span(&[1], 256, &[0])]);
    assert_eq!(far, "a sequence of 257 tokens is longer than the context of 256");
    assert!(refused(&[span(&[1], usize::MAX, &[0])]).contains("longer than the context"));
    assert_eq!(refused(&[span(&[1], 16, &[0])]), "span 0 names 1 pages where 2 are needed");
    assert_eq!(refused(&[span(&[1], 0, &[4])]), "page 4 is outside the cache of 4 pages");
    let twice = refused(&[span(&[1], 0, &[2]), span(&[1], 3, &[2])]);
    assert_eq!(twice, "page 2 would be written by two spans");
    let other = spec(&QWEN);
    let mut foreign = KvCache::new(&other, 4, 16, KvDType::F32).unwrap();
    let mut scratch = Scratch::new();
    let outcome = rig.decoder.forward(&rig.team, &mut scratch, &[span(&[1], 0, &[0])], &mut foreign);
    assert!(matches!(outcome.err(), Some(ForwardError::Cache)));
}

#[test]
fn sequences_may_read_a_shared_prefix_while_each_writes_its_own_page() {
    let rig = rig(&LLAMA, DType::F32, &LoadOptions::default(), 2);
    let tokens = tokens(&mut Rng::new(3), 20, LLAMA.vocabulary);
    let whole = rig.whole(&tokens, KvDType::F32);
    let mut cache = rig.cache(3, KvDType::F32);
    let mut scratch = Scratch::new();
    let span = |tokens, position, pages, logits| Span { tokens, position, pages, logits };
    let prefix = span(&tokens[..16], 0, &[0], LogitRows::None);
    assert!(rig.decoder.forward(&rig.team, &mut scratch, &[prefix], &mut cache).unwrap().is_empty());
    let ends = [
        span(&tokens[16..], 16, &[0, 1], LogitRows::Last),
        span(&tokens[16..18], 16, &[0, 2], LogitRows::Last),
    ];
    let logits = rig.decoder.forward(&rig.team, &mut scratch, &ends, &mut cache).unwrap();
    assert_eq!(logits.len(), 2);
    assert_eq!(bits(logits.row(0)), bits(&whole[19]));
    assert_eq!(bits(logits.row(1)), bits(&whole[17]));
}

#[test]
fn a_wiped_page_does_not_change_what_is_computed_in_it_next() {
    let rig = rig(&LLAMA, DType::F32, &LoadOptions::default(), 1);
    let mut cache = rig.cache(1, KvDType::F16);
    let mut scratch = Scratch::new();
    let mut run = |tokens: &[u32], cache: &mut KvCache| {
        let span = Span { tokens, position: 0, pages: &[0], logits: LogitRows::Last };
        bits(rig.decoder.forward(&rig.team, &mut scratch, &[span], cache).unwrap().row(0))
    };
    let fresh = run(&[5, 6, 7], &mut cache);
    run(&[9; 16], &mut cache);
    assert_eq!(run(&[5, 6, 7], &mut cache), fresh);
    cache.wipe(0);
    assert_eq!(run(&[5, 6, 7], &mut cache), fresh);
}

#[test]
fn a_tensor_of_another_shape_is_refused_by_name_with_both_shapes() {
    let spec = spec(&LLAMA);
    let mut tensors = Tensors::random(&spec, DType::F32, 1);
    let role = TensorRole::Layer(1, LayerTensor::Down);
    let name = tensors.0[&role].name.clone();
    tensors.0.get_mut(&role).unwrap().shape = vec![72, 48];
    let error = Decoder::load(&spec, &tensors, &LoadOptions::default(), &Team::new(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("tensor {name} has shape [72, 48] where the configuration needs [48, 72]")
    );
}

#[test]
fn a_spec_that_cannot_run_is_refused_before_any_tensor_is_read() {
    for shape in
        [Shape { kv_heads: 4, ..LLAMA }, Shape { head_dim: 0, ..LLAMA }, Shape { layers: 0, ..LLAMA }]
    {
        let spec = spec(&shape);
        let outcome =
            Decoder::load(&spec, &Tensors(Default::default()), &LoadOptions::default(), &Team::new(1));
        assert!(matches!(outcome, Err(LoadError::Spec(_))), "{shape:?}");
    }
}

#[test]
fn a_cache_says_what_a_token_costs_and_refuses_odd_pages() {
    let spec = spec(&LLAMA);
    // Three layers, two KV heads of eight: keys of 8, values padded to 16.
    assert_eq!(KvCache::bytes_per_token(&spec, KvDType::F16), Bytes(3 * 2 * (8 + 16) * 2));
    let error = KvCache::new(&spec, 4, 20, KvDType::F32).err().expect("refused");
    assert!(error.to_string().contains("4 pages of 20 tokens"));
}
