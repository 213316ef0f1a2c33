//! Preparation of heads against its definition, written out naively.

use super::*;
use crate::kv::KvElement;
use crate::numbers::{bits, numbers};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 20;
const ROTATED: usize = 12;
const WIDTH: usize = (HEADS + 2 * KV_HEADS) * DIM;

fn prepared(isa: Isa, threads: usize, rows: &mut [f32], norms: bool, spans: &[AttentionSpan<'_>]) -> KvPages {
    let count = rows.len() / WIDTH;
    let mut kv = KvPages::new(&[(1, 8), (KV_HEADS, DIM)], 6, 16, KvElement::F32).unwrap();
    let (query_weight, key_weight) = (numbers(1, DIM), numbers(2, DIM));
    let (cos, sin) = (numbers(3, count * ROTATED / 2), numbers(4, count * ROTATED / 2));
    let shape = HeadsShape {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        query_norm: norms.then_some((&query_weight[..], 1e-6)),
        key_norm: norms.then_some((&key_weight[..], 1e-6)),
        rotation: Rotation { dims: ROTATED, cos: &cos, sin: &sin },
        ..HeadsShape::default()
    };
    prepare_heads(&Team::new(threads), isa, rows, &shape, spans, &mut kv, 1);
    kv
}

fn naive_head(head: &mut [f32], weight: Option<&[f32]>, (cos, sin): (&[f32], &[f32])) {
    if let Some(weight) = weight {
        let mean = head.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / DIM as f64;
        for (x, w) in head.iter_mut().zip(weight) {
            *x = (f64::from(*x) / (mean + 1e-6).sqrt()) as f32 * w;
        }
    }
    let before = head.to_vec();
    for i in 0..ROTATED / 2 {
        let (a, b) = (before[i], before[i + ROTATED / 2]);
        head[i] = a * cos[i] - b * sin[i];
        head[i + ROTATED / 2] = b * cos[i] + a * sin[i];
    }
}

#[test]
fn heads_are_normalised_turned_and_kept_where_their_positions_say() {
    let pages = [[5, 2, 0], [1, 3, 4]];
    let spans = [
        AttentionSpan { row: 0, tokens: 20, position: 14, pages: &pages[0] },
        AttentionSpan { row: 20, tokens: 1, position: 40, pages: &pages[1] },
    ];
    let before = numbers(7, 21 * WIDTH);
    for (isa, threads, norms) in
        Isa::available().into_iter().flat_map(|isa| [(isa, 1, true), (isa, 2, false), (isa, 3, true)])
    {
        let mut rows = before.clone();
        let kv = prepared(isa, threads, &mut rows, norms, &spans);
        let weights = [numbers(1, DIM), numbers(2, DIM)];
        let (cos, sin) = (numbers(3, 21 * ROTATED / 2), numbers(4, 21 * ROTATED / 2));
        let mut expected = before.clone();
        for (row, heads) in expected.chunks_mut(WIDTH).enumerate() {
            let angles = (&cos[row * ROTATED / 2..][..ROTATED / 2], &sin[row * ROTATED / 2..][..ROTATED / 2]);
            for (head, x) in heads.chunks_mut(DIM).enumerate().take(HEADS + KV_HEADS) {
                naive_head(x, norms.then_some(&weights[usize::from(head >= HEADS)]), angles);
            }
        }
        assert!(rows.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs())), "{isa:?}");
        let KvElements::F32(elements) = &kv.elements else { unreachable!() };
        let layout = kv.layout(1);
        for span in &spans {
            for token in 0..span.tokens {
                let position = span.position + token;
                let (page, slot) = (span.pages[position / 16], position % 16);
                for head in 0..KV_HEADS {
                    let row = &rows[(span.row + token) * WIDTH..][..WIDTH];
                    let key: Vec<f32> =
                        (0..DIM).map(|d| elements[layout.key(page, head, slot) + d * 16]).collect();
                    assert_eq!(bits(&key), bits(&row[(HEADS + head) * DIM..][..DIM]));
                    let value = &elements[layout.value(page, head, slot)..][..DIM];
                    assert_eq!(bits(value), bits(&row[(HEADS + KV_HEADS + head) * DIM..][..DIM]));
                }
            }
        }
        // 21 tokens, two heads, keys and values; nothing else was written.
        assert_eq!(elements.iter().filter(|&&x| x != 0.0).count(), 21 * KV_HEADS * 2 * DIM);
    }
}

#[test]
fn every_vector_path_gives_the_twins_bits() {
    let pages = [0, 1];
    let spans = [AttentionSpan { row: 0, tokens: 3, position: 15, pages: &pages }];
    let before = numbers(7, 3 * WIDTH);
    let run = |isa| {
        let mut rows = before.clone();
        prepared(isa, 1, &mut rows, true, &spans);
        bits(&rows)
    };
    for isa in [Isa::avx512(), Isa::avx2()].into_iter().flatten() {
        assert_eq!(run(isa), run(Isa::twin()), "{isa:?}");
    }
}

#[test]
fn heads_shared_out_are_those_of_one_worker() {
    // Enough rows for the team to be asked.
    let pages = [2, 5, 0, 4, 1, 3];
    let spans = [AttentionSpan { row: 0, tokens: 96, position: 0, pages: &pages }];
    let before: Vec<f32> = numbers(7, 96 * WIDTH).repeat(2);
    let spans = [spans[0], AttentionSpan { row: 96, ..spans[0] }];
    let run = |threads| {
        let mut rows = before.clone();
        let kv = prepared(Isa::detect(), threads, &mut rows, true, &spans);
        let KvElements::F32(elements) = &kv.elements else { unreachable!() };
        (bits(&rows), bits(elements))
    };
    assert_eq!(run(3), run(1));
}

#[test]
#[should_panic(expected = "page Some(6) of 6")]
fn a_page_outside_the_cache_is_refused() {
    let spans = [AttentionSpan { row: 0, tokens: 1, position: 0, pages: &[6] }];
    prepared(Isa::detect(), 1, &mut numbers(7, WIDTH), false, &spans);
}
