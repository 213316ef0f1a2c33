//! Attention against exact arithmetic over contiguous keys and values, and against itself cut otherwise.

use proptest::prelude::*;

use super::*;
use crate::heads::{HeadsShape, Rotation, prepare_heads};
use crate::kv::KvElement;
use crate::numbers::{bits, numbers};

/// One sequence: projected rows of all its positions, no norms, no rotation.
struct Sequence {
    shape: AttentionShape<'static>,
    rows: Vec<f32>,
    len: usize,
}

impl Sequence {
    fn new(seed: u64, shape: AttentionShape<'static>, len: usize) -> Self {
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        // Large enough queries for weights that differ by orders of magnitude.
        let rows = numbers(seed, len * width).iter().map(|x| 3.0 * x).collect();
        Self { shape, rows, len }
    }

    fn width(&self) -> usize {
        (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
    }

    /// Runs the sequence through in chunks of the given sizes; outputs of all positions.
    fn run(
        &self,
        isa: Isa,
        threads: usize,
        chunks: &[usize],
        page_tokens: usize,
        element: KvElement,
    ) -> Vec<f32> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let pages: Vec<u32> = (0..self.len.div_ceil(page_tokens) as u32).rev().collect();
        let mut kv = KvPages::new(&[(kv_heads, head_dim)], pages.len(), page_tokens, element).unwrap();
        let team = Team::new(threads);
        let (mut scratch, mut out, mut position) = (AttentionScratch::default(), Vec::new(), 0);
        for &chunk in chunks {
            let mut rows = self.rows[position * self.width()..(position + chunk) * self.width()].to_vec();
            let rotation = Rotation { dims: 0, cos: &[], sin: &[] };
            let prepare = HeadsShape { heads, kv_heads, head_dim, rotation, ..HeadsShape::default() };
            let spans = [AttentionSpan { row: 0, tokens: chunk, position, pages: &pages }];
            prepare_heads(&team, isa, &mut rows, &prepare, &spans, &mut kv, 0);
            let mut part = vec![f32::NAN; chunk * heads * head_dim];
            attention(&team, isa, &rows, &self.shape, &spans, (&kv, 0), &mut scratch, &mut part);
            out.extend(part);
            position += chunk;
        }
        assert_eq!(position, self.len);
        out
    }

    /// The definition, in f64.
    fn exact(&self) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim, scale, window, soft_cap, sinks, .. } = self.shape;
        let at = |position: usize, head: usize, d: usize| {
            f64::from(self.rows[position * self.width() + head * head_dim + d])
        };
        let mut out = Vec::new();
        for position in 0..self.len {
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                let scores: Vec<f64> = (first..=position)
                    .map(|other| {
                        let dot: f64 =
                            (0..head_dim).map(|d| at(position, head, d) * at(other, heads + kv, d)).sum();
                        let score = dot * f64::from(scale);
                        soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let sink = sinks.map_or(0.0, |sinks| (f64::from(sinks[head]) - top).exp());
                let sum = weights.iter().sum::<f64>() + sink;
                out.extend((0..head_dim).map(|d| {
                    let values = (first..=position).map(|other| at(other, heads + kv_heads + kv, d));
                    weights.iter().zip(values).map(|(weight, value)| weight * value).sum::<f64>() / sum
                }));
            }
        }
        out
    }
}

const SINKS: [f32; 15] = [0.3, -2.0, 4.0, 0.0, 1.5, -7.0, 2.0, 9.0, 0.1, -0.1, 3.0, 0.7, -1.0, 5.0, 0.2];

fn shapes() -> impl Strategy<Value = AttentionShape<'static>> {
    (1usize..4, 1usize..6, 1usize..70, proptest::option::of(1usize..200), any::<bool>(), any::<bool>())
        .prop_map(|(kv_heads, group, head_dim, window, capped, sinks)| AttentionShape {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window,
            soft_cap: capped.then_some(2.5),
            sinks: sinks.then_some(&SINKS[..kv_heads * group]),
            queries_only: false,
        })
}

/// Cuts `len` into chunks by the bits of `cuts`.
fn chunks(len: usize, cuts: &[usize]) -> Vec<usize> {
    let (mut left, mut out) = (len, Vec::new());
    for cut in cuts {
        let chunk = (*cut).min(left);
        if chunk > 0 {
            out.push(chunk);
            left -= chunk;
        }
    }
    if left > 0 {
        out.push(left);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn it_is_the_definition_for_any_shape_and_window(seed in 0u64..1000, shape in shapes(), len in 1usize..300) {
        let sequence = Sequence::new(seed, shape, len);
        let exact = sequence.exact();
        for isa in Isa::available() {
            let got = sequence.run(isa, 2, &[len], 16, KvElement::F32);
            for (at, (&got, exact)) in got.iter().zip(&exact).enumerate() {
                prop_assert!((f64::from(got) - exact).abs() <= 2e-5, "{:?} {:?} at {}: {} for {}", isa, shape, at, got, exact);
            }
        }
    }

    #[test]
    fn chunks_pages_threads_and_vectors_do_not_change_a_bit(
        seed in 0u64..1000, shape in shapes(), len in 1usize..300, cuts in proptest::collection::vec(1usize..150, 0..5),
        element in prop_oneof![
            Just(KvElement::F32), Just(KvElement::F16), Just(KvElement::Bf16), Just(KvElement::Int8)
        ],
    ) {
        let sequence = Sequence::new(seed, shape, len);
        let fused: Vec<_> = [Isa::avx512(), Isa::avx2()].into_iter().flatten().collect();
        let first = fused.first().copied().unwrap_or(Isa::portable());
        let whole = bits(&sequence.run(first, 1, &[len], 16, element));
        prop_assert_eq!(&bits(&sequence.run(first, 3, &chunks(len, &cuts), 64, element)), &whole);
        let one_by_one = vec![1; len];
        prop_assert_eq!(&bits(&sequence.run(first, 1, &one_by_one, 32, element)), &whole);
        for isa in fused {
            prop_assert_eq!(&bits(&sequence.run(isa, 2, &chunks(len, &cuts), 48, element)), &whole, "{:?}", isa);
        }
    }
}

#[test]
fn every_vector_path_gives_the_twins_bits() {
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 24,
        scale: 0.3,
        window: Some(100),
        ..AttentionShape::default()
    };
    let sequence = Sequence::new(4, shape, 150);
    for element in [KvElement::F32, KvElement::F16, KvElement::Bf16, KvElement::Int8] {
        let twin = bits(&sequence.run(Isa::twin(), 1, &[150], 16, element));
        for isa in [Isa::avx512(), Isa::avx2()].into_iter().flatten() {
            assert_eq!(bits(&sequence.run(isa, 1, &[150], 16, element)), twin, "{isa:?} {element:?}");
        }
    }
}

#[test]
fn halves_and_bytes_in_the_cache_cost_little_accuracy() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        scale: 0.17,
        window: None,
        ..AttentionShape::default()
    };
    let sequence = Sequence::new(6, shape, 200);
    let exact = sequence.exact();
    for (element, bound) in [
        (KvElement::F32, 1e-5),
        (KvElement::F16, 6e-3),
        (KvElement::Bf16, 6e-2),
        // A byte has a step of 1/127 of its vector's largest element, as bf16 has one of 1/128 of each.
        (KvElement::Int8, 6e-2),
    ] {
        let got = sequence.run(Isa::detect(), 1, &[200], 16, element);
        let worst =
            got.iter().zip(&exact).map(|(&got, exact)| (f64::from(got) - exact).abs()).fold(0.0, f64::max);
        assert!(worst <= bound, "{element:?}: off by {worst}");
    }
}

#[test]
fn a_sequence_sees_nothing_of_another_in_the_same_step() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        scale: 0.25,
        window: None,
        ..AttentionShape::default()
    };
    let (a, b) = (Sequence::new(1, shape, 40), Sequence::new(2, shape, 23));
    let isa = Isa::detect();
    let team = Team::new(2);
    let mut kv = KvPages::new(&[(2, 16)], 5, 16, KvElement::F32).unwrap();
    let mut rows = [a.rows.clone(), b.rows.clone()].concat();
    let spans = [
        AttentionSpan { row: 0, tokens: 40, position: 0, pages: &[4, 0, 2] },
        AttentionSpan { row: 40, tokens: 23, position: 0, pages: &[1, 3] },
    ];
    let rotation = Rotation { dims: 0, cos: &[], sin: &[] };
    let prepare = HeadsShape { heads: 4, kv_heads: 2, head_dim: 16, rotation, ..HeadsShape::default() };
    prepare_heads(&team, isa, &mut rows, &prepare, &spans, &mut kv, 0);
    let mut out = vec![0.0; 63 * 64];
    attention(&team, isa, &rows, &shape, &spans, (&kv, 0), &mut AttentionScratch::default(), &mut out);
    let alone = [a.run(isa, 1, &[40], 16, KvElement::F32), b.run(isa, 1, &[23], 16, KvElement::F32)].concat();
    assert_eq!(bits(&out), bits(&alone));
    // A span may ask for its last rows alone.
    let last = [AttentionSpan { row: 62, tokens: 1, position: 22, pages: &[1, 3] }];
    let mut only = vec![0.0; 64];
    attention(&team, isa, &rows, &shape, &last, (&kv, 0), &mut AttentionScratch::default(), &mut only);
    assert_eq!(bits(&only), bits(&alone[62 * 64..]));
}
