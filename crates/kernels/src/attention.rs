//! Softmax attention over paged keys and values, for prefill and decode alike.
//!
//! Work is shared out as (span, KV head, up to [`TILE`] query rows). A tile walks the context in blocks of
//! [`BLOCK`] positions with a running maximum and sum (online softmax: Milakov and Gimelshein, 2018). Blocks lie at
//! absolute positions, so that a token's result is bitwise the same however its prompt was cut into chunks,
//! whatever else is in the batch, and whatever the page size.

mod tile;

use crate::isa::Isa;
use crate::kv::{KvBf16, KvElements, KvF16, KvF32, KvInt8, KvPages};
use crate::shared::SharedMut;
use crate::team::Team;
use tile::{Call, State, Tile, TileAt};

/// Positions in a block: a tile's scores of one block fill a quarter of a 32 KiB first level cache.
const BLOCK: usize = 128;
/// Query rows in a tile (a token's heads that share a KV head, token after token): so often are keys and values
/// used once they are in registers or near.
const TILE: usize = 16;
/// Below so many multiply-adds the loop runs on the caller alone: see the same constant of the matrix product.
const ALONE_BELOW: usize = 128 * 1024;

/// The shape of attention.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AttentionShape<'a> {
    /// H.
    pub heads: usize,
    /// K; divides H.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// How many positions back a token sees, itself included; all where absent.
    pub window: Option<usize>,
    /// Scaled scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// `[H]`: each head's score of nothing, which takes its part of the softmax and adds no value.
    pub sinks: Option<&'a [f32]>,
    /// Rows hold queries alone, `[T, H * D]`: keys and values are those that another layer wrote.
    pub queries_only: bool,
}

impl AttentionShape<'_> {
    /// Elements of a projected row.
    fn width(&self) -> usize {
        row_width((self.heads, self.kv_heads), self.head_dim, self.queries_only)
    }
}

/// Elements of a projected row: queries, and unless they are another layer's, keys and values.
pub(crate) fn row_width((heads, kv_heads): (usize, usize), head_dim: usize, queries_only: bool) -> usize {
    if queries_only { heads * head_dim } else { (heads + 2 * kv_heads) * head_dim }
}

/// Consecutive tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpan<'a> {
    /// The projected row of its first token.
    pub row: usize,
    /// How many.
    pub tokens: usize,
    /// Position of the first token in its sequence.
    pub position: usize,
    /// The sequence's pages from position 0 on, covering all its tokens up to the last of these.
    pub pages: &'a [u32],
}

/// Each worker's own memory, kept between steps.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    workers: Vec<State>,
    /// How many items come before each span's.
    before: Vec<usize>,
}

/// `out: [N, H * D]` = attention of the queries in `rows: [T, (H + 2K) * D]` over what the cache holds of each
/// span's sequence, up to each token's own position. N counts the spans' tokens, in their order; a span may leave
/// out rows that nobody asks for.
///
/// # Panics
/// Lengths do not fit each other, a span has rows or pages that are not there, or the cache is of another shape.
#[expect(
    clippy::too_many_arguments,
    reason = "two of them say how to run, one is memory, five are the operation"
)]
pub fn attention(
    team: &Team,
    isa: Isa,
    rows: &[f32],
    shape: &AttentionShape<'_>,
    spans: &[AttentionSpan<'_>],
    (kv, layer): (&KvPages, usize),
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let width = shape.width();
    assert!(shape.sinks.is_none_or(|sinks| sinks.len() == shape.heads), "a sink for each head");
    assert!(width > 0 && rows.len().is_multiple_of(width), "{} elements are no rows of {width}", rows.len());
    let layout = kv.layout(layer);
    assert_eq!(
        (layout.place.kv_heads, layout.place.head_dim),
        (shape.kv_heads, shape.head_dim),
        "another cache"
    );
    check_spans(spans, rows.len() / width, kv);
    let tokens: usize = spans.iter().map(|span| span.tokens).sum();
    assert_eq!(
        out.len(),
        tokens * shape.heads * shape.head_dim,
        "a row of heads for each of {tokens} tokens"
    );
    let AttentionScratch { workers, before } = scratch;
    workers.resize_with(team.workers().max(workers.len()), State::default);
    let tiles = count_tiles(shape, spans, before);
    let seen: usize = spans.iter().map(|span| span.tokens * (span.position + span.tokens)).sum();
    let alone = seen * shape.heads * shape.head_dim < ALONE_BELOW;
    let call = Call { rows, width, shape, layout, out: SharedMut::new(out) };
    let states = SharedMut::new(workers);
    team.share(tiles, if alone { tiles } else { 1 }, &|worker, items| {
        for item in items {
            // SAFETY: each worker has its own state, and runs one part at a time.
            let state = unsafe { &mut states.part(worker, 1)[0] };
            let (call, at) = (&call, tile_at(shape, spans, before, item));
            match &kv.elements {
                KvElements::F32(elements) => isa.dispatch(Tile::<KvF32>::new(call, at, state, elements)),
                KvElements::F16(elements) => isa.dispatch(Tile::<KvF16>::new(call, at, state, elements)),
                KvElements::Bf16(elements) => isa.dispatch(Tile::<KvBf16>::new(call, at, state, elements)),
                KvElements::Int8(codes, scales) => {
                    isa.dispatch(Tile::<KvInt8> { scales, ..Tile::new(call, at, state, codes) });
                }
            }
        }
    });
}

/// Tiles of one span and one KV head.
fn tiles_of(shape: &AttentionShape<'_>, span: &AttentionSpan<'_>) -> usize {
    (span.tokens * (shape.heads / shape.kv_heads)).div_ceil(TILE)
}

/// Fills `before` with the number of tiles before each span's, and gives the number of all.
fn count_tiles(shape: &AttentionShape<'_>, spans: &[AttentionSpan<'_>], before: &mut Vec<usize>) -> usize {
    before.clear();
    let mut count = 0;
    for span in spans {
        before.push(count);
        count += shape.kv_heads * tiles_of(shape, span);
    }
    count
}

/// Which tile `item` is.
fn tile_at<'a>(
    shape: &AttentionShape<'_>,
    spans: &[AttentionSpan<'a>],
    before: &[usize],
    item: usize,
) -> TileAt<'a> {
    // The last span that begins at or before the item; spans without tokens begin where the next one does.
    let index = before.partition_point(|&first| first <= item) - 1;
    let span = spans[index];
    let (item, tiles) = (item - before[index], tiles_of(shape, &span));
    let (kv_head, tile) = (item / tiles, item % tiles);
    let until = (span.tokens * (shape.heads / shape.kv_heads)).min((tile + 1) * TILE);
    let out_row = spans[..index].iter().map(|span| span.tokens).sum();
    TileAt { span, out_row, kv_head, from: tile * TILE, until }
}

/// Every span's rows are among `rows`, and its pages are there and cover its positions.
pub(crate) fn check_spans(spans: &[AttentionSpan<'_>], rows: usize, kv: &KvPages) {
    for span in spans {
        assert!(span.row + span.tokens <= rows, "rows {}+{} of {rows}", span.row, span.tokens);
        let needed = (span.position + span.tokens).div_ceil(kv.page_tokens());
        assert!(span.pages.len() >= needed, "{} pages where {needed} are needed", span.pages.len());
        let stray = span.pages.iter().find(|&&page| page as usize >= kv.pages());
        assert!(stray.is_none(), "page {stray:?} of {}", kv.pages());
    }
}

#[cfg(test)]
mod tests;
