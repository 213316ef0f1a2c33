//! One tile of attention: some query rows of one KV head against their whole context.

use super::{AttentionShape, AttentionSpan, BLOCK, TILE};
use crate::kv::{KvLayout, KvStored};
use crate::lanes::{Kernel, LANES, Lanes};
use crate::math;
use crate::shared::SharedMut;

/// Vectors of positions in a block.
const VECTORS: usize = BLOCK / LANES;

/// What all tiles of a call share.
pub(super) struct Call<'a> {
    pub(super) rows: &'a [f32],
    pub(super) width: usize,
    pub(super) shape: &'a AttentionShape<'a>,
    pub(super) layout: KvLayout,
    pub(super) out: SharedMut<'a, f32>,
}

/// Which tile. Query rows count a span's tokens and, within a token, the heads of the KV head's group.
pub(super) struct TileAt<'a> {
    pub(super) span: AttentionSpan<'a>,
    /// Output row of the span's first token.
    pub(super) out_row: usize,
    pub(super) kv_head: usize,
    pub(super) from: usize,
    pub(super) until: usize,
}

/// A worker's memory.
#[derive(Debug)]
pub(super) struct State {
    /// `[TILE, D']`: weighted sums of values.
    mixed: Vec<f32>,
    /// `[TILE, BLOCK]`: scores, then weights.
    scores: Vec<f32>,
    /// The largest score so far, of each row.
    largest: [f32; TILE],
    /// The sum of weights so far, relative to it.
    sums: [f32; TILE],
}

impl Default for State {
    fn default() -> Self {
        Self { mixed: Vec::new(), scores: vec![0.0; TILE * BLOCK], largest: [0.0; TILE], sums: [0.0; TILE] }
    }
}

/// A tile over keys and values of one kind.
pub(super) struct Tile<'a, E: KvStored> {
    pub(super) call: &'a Call<'a>,
    pub(super) at: TileAt<'a>,
    pub(super) state: &'a mut State,
    pub(super) elements: &'a [E::Element],
    /// Of keys and values that have them.
    pub(super) scales: &'a [f32],
}

impl<'a, E: KvStored> Tile<'a, E> {
    pub(super) fn new(
        call: &'a Call<'a>,
        at: TileAt<'a>,
        state: &'a mut State,
        elements: &'a [E::Element],
    ) -> Self {
        Self { call, at, state, elements, scales: &[] }
    }
}

/// A block of the context, as the loops see it: positions count from its start.
struct Block<E: KvStored> {
    start: usize,
    /// The first position that any row of the tile sees, and the one past the last.
    from: usize,
    until: usize,
    /// Of each vector of sixteen positions: dimension 0 of its first key, and its first value.
    keys: [*const E::Element; VECTORS],
    values: [*const E::Element; VECTORS],
    /// Where there are any: of each vector, its first key's and its first value's scale.
    key_scales: [*const f32; VECTORS],
    value_scales: [*const f32; VECTORS],
}

impl<E: KvStored> Block<E> {
    fn vectors(&self) -> std::ops::Range<usize> {
        self.from / LANES..self.until.div_ceil(LANES)
    }
}

impl<E: KvStored> Kernel for Tile<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let rows = self.at.until - self.at.from;
        let stride = self.call.layout.place.value_stride();
        self.state.mixed.clear();
        self.state.mixed.resize(rows * stride, 0.0);
        self.begin(rows);
        let (first, until) = (self.sees(0).start, self.sees(rows - 1).end);
        let mut start = first / BLOCK * BLOCK;
        while start < until {
            let block = self.block(start, first.max(start) - start, until.min(start + BLOCK) - start);
            // SAFETY: `block` has checked that keys and values of its positions are inside the cache; the caller
            // vouches for the instructions.
            unsafe {
                self.score::<L>(&block, rows);
                for row in 0..rows {
                    self.weigh::<L>(&block, row);
                }
                self.mix::<L>(&block, rows);
            }
            start += BLOCK;
        }
        for row in 0..rows {
            self.finish(row);
        }
    }
}

impl<E: KvStored> Tile<'_, E> {
    /// Before any position: of weights there are none, or the sinks'.
    #[inline(always)]
    fn begin(&mut self, rows: usize) {
        self.state.largest = [f32::NEG_INFINITY; TILE];
        self.state.sums = [0.0; TILE];
        if let Some(sinks) = self.call.shape.sinks {
            for row in 0..rows {
                let head = self.at.kv_head * self.group() + (self.at.from + row) % self.group();
                self.state.largest[row] = sinks[head];
                self.state.sums[row] = 1.0;
            }
        }
    }

    /// The positions that a row of the tile sees.
    #[inline(always)]
    fn sees(&self, row: usize) -> std::ops::Range<usize> {
        let until = self.at.span.position + (self.at.from + row) / self.group() + 1;
        self.call.shape.window.map_or(0, |window| until.saturating_sub(window.max(1)))..until
    }

    /// H / K.
    #[inline(always)]
    fn group(&self) -> usize {
        self.call.shape.heads / self.call.shape.kv_heads
    }

    #[inline(always)]
    fn block(&self, start: usize, from: usize, until: usize) -> Block<E> {
        let layout = &self.call.layout;
        let dims = self.call.shape.head_dim;
        let (nowhere, none) = (std::ptr::null(), [std::ptr::null(); VECTORS]);
        let (keys, values) = ([nowhere; VECTORS], [nowhere; VECTORS]);
        let mut block = Block { start, from, until, keys, values, key_scales: none, value_scales: none };
        for vector in block.vectors() {
            let position = start + vector * LANES;
            let (page, slot) =
                (self.at.span.pages[position / layout.page_tokens], position % layout.page_tokens);
            let key = layout.key(page, self.at.kv_head, slot);
            let value = layout.value(page, self.at.kv_head, slot);
            // The last key's sixteen positions and the last of sixteen values end inside the cache.
            assert!(key + (dims - 1) * layout.page_tokens + LANES <= self.elements.len());
            assert!(value + LANES * layout.place.value_stride() <= self.elements.len());
            // SAFETY: just checked.
            unsafe {
                block.keys[vector] = self.elements.as_ptr().add(key);
                block.values[vector] = self.elements.as_ptr().add(value);
            }
            if E::SCALED {
                let of_key = layout.key_scale(page, self.at.kv_head, slot);
                let of_value = layout.value_scale(page, self.at.kv_head, slot);
                assert!(of_key + LANES <= self.scales.len() && of_value + LANES <= self.scales.len());
                // SAFETY: just checked.
                unsafe {
                    block.key_scales[vector] = self.scales.as_ptr().add(of_key);
                    block.value_scales[vector] = self.scales.as_ptr().add(of_value);
                }
            }
        }
        block
    }

    /// The query of a row: D elements.
    #[inline(always)]
    fn query(&self, row: usize) -> *const f32 {
        let (token, head) = ((self.at.from + row) / self.group(), (self.at.from + row) % self.group());
        let head = self.at.kv_head * self.group() + head;
        let dims = self.call.shape.head_dim;
        let at = (self.at.span.row + token) * self.call.width + head * dims;
        self.call.rows[at..at + dims].as_ptr()
    }

    /// Scores of all rows for the block's vectors of positions; beyond what a row sees they mean nothing yet.
    #[inline(always)]
    unsafe fn score<L: Lanes>(&mut self, block: &Block<E>, rows: usize) {
        let mut row = 0;
        // SAFETY: as for `run`.
        unsafe {
            while row < rows {
                row += match rows - row {
                    1 => self.score_rows::<L, 1>(block, row),
                    2 | 3 => self.score_rows::<L, 2>(block, row),
                    _ => self.score_rows::<L, 4>(block, row),
                };
            }
        }
    }

    #[inline(always)]
    unsafe fn score_rows<L: Lanes, const Q: usize>(&mut self, block: &Block<E>, row: usize) -> usize {
        let mut queries = [std::ptr::null(); Q];
        for (q, query) in queries.iter_mut().enumerate() {
            *query = self.query(row + q);
        }
        let vectors = block.vectors();
        let mut vector = vectors.start;
        // SAFETY: as for `run`.
        unsafe {
            while vector < vectors.end {
                let left = vectors.end - vector;
                vector += if left >= 4 && (L::WIDE || Q == 1) {
                    self.score_tile::<L, Q, 4>(block, row, &queries, vector)
                } else if left >= 2 && (L::WIDE || Q <= 2) {
                    self.score_tile::<L, Q, 2>(block, row, &queries, vector)
                } else {
                    self.score_tile::<L, Q, 1>(block, row, &queries, vector)
                };
            }
        }
        Q
    }

    /// `Q` rows by `P` vectors of positions, in registers.
    #[inline(always)]
    unsafe fn score_tile<L: Lanes, const Q: usize, const P: usize>(
        &mut self,
        block: &Block<E>,
        row: usize,
        queries: &[*const f32; Q],
        vector: usize,
    ) -> usize {
        let page_tokens = self.call.layout.page_tokens;
        // SAFETY: every key has D dimensions `page_tokens` apart inside the cache, every query D elements, and the
        // scores are rows of BLOCK.
        unsafe {
            let mut sums = [[L::splat(0.0); P]; Q];
            for d in 0..self.call.shape.head_dim {
                let mut keys = [L::splat(0.0); P];
                for p in 0..P {
                    keys[p] = E::load::<L>(block.keys[vector + p].add(d * page_tokens));
                }
                for q in 0..Q {
                    let query = L::splat(*queries[q].add(d));
                    for p in 0..P {
                        sums[q][p] = L::fma(query, keys[p], sums[q][p]);
                    }
                }
            }
            let scale = L::splat(self.call.shape.scale);
            let scores = self.state.scores.as_mut_ptr();
            for p in 0..P {
                let scale = match E::SCALED {
                    true => L::mul(scale, L::load(block.key_scales[vector + p])),
                    false => scale,
                };
                for q in 0..Q {
                    let at = (row + q) * BLOCK + (vector + p) * LANES;
                    L::store(scores.add(at), L::mul(sums[q][p], scale));
                }
            }
        }
        P
    }

    /// Turns a row's scores into weights relative to its largest score so far, and rescales what it has mixed
    /// where that has grown. Positions that the row does not see get no weight.
    #[inline(always)]
    unsafe fn weigh<L: Lanes>(&mut self, block: &Block<E>, row: usize) {
        let sees = self.sees(row);
        let from = sees.start.saturating_sub(block.start).max(block.from);
        let until = sees.end.saturating_sub(block.start).min(block.until);
        let vectors = block.vectors();
        let (begin, end) = (vectors.start * LANES, vectors.end * LANES);
        let stride = self.call.layout.place.value_stride();
        let soft_cap = self.call.shape.soft_cap;
        let State { mixed, scores, largest, sums } = &mut *self.state;
        let scores = &mut scores[row * BLOCK..(row + 1) * BLOCK];
        if from >= until {
            scores[begin..end].fill(0.0);
            return;
        }
        if let Some(cap) = soft_cap {
            for at in (begin..end).step_by(LANES) {
                // SAFETY: vectors of the block are inside a row of scores.
                unsafe {
                    let place = scores.as_mut_ptr().add(at);
                    L::store(place, math::soft_cap::<L>(L::load(place), cap));
                }
            }
        }
        scores[begin..from].fill(f32::NEG_INFINITY);
        scores[until..end].fill(f32::NEG_INFINITY);
        // SAFETY: vectors of the block are inside a row of scores; `mixed` has rows of whole vectors.
        unsafe {
            let mut best = L::splat(f32::NEG_INFINITY);
            for at in (begin..end).step_by(LANES) {
                best = L::max(L::load(scores.as_ptr().add(at)), best);
            }
            let best = L::largest(best);
            if best > largest[row] {
                if largest[row] > f32::NEG_INFINITY {
                    let shrink = math::exp::<L>(L::splat(largest[row] - best));
                    for at in (row * stride..(row + 1) * stride).step_by(LANES) {
                        let place = mixed.as_mut_ptr().add(at);
                        L::store(place, L::mul(L::load(place), shrink));
                    }
                    let mut one = [0.0f32; LANES];
                    L::store(one.as_mut_ptr(), shrink);
                    sums[row] *= one[0];
                }
                largest[row] = best;
            }
            let top = L::splat(largest[row]);
            for at in (begin..end).step_by(LANES) {
                let place = scores.as_mut_ptr().add(at);
                L::store(place, math::exp::<L>(L::sub(L::load(place), top)));
            }
            scores[begin..from].fill(0.0);
            scores[until..end].fill(0.0);
            let mut total = L::splat(0.0);
            for at in (begin..end).step_by(LANES) {
                total = L::add(total, L::load(scores.as_ptr().add(at)));
            }
            sums[row] += L::sum(total);
        }
    }

    /// Adds the block's values, by weight, to what the rows have mixed.
    #[inline(always)]
    unsafe fn mix<L: Lanes>(&mut self, block: &Block<E>, rows: usize) {
        let mut row = 0;
        // SAFETY: as for `run`.
        unsafe {
            while row < rows {
                row += match rows - row {
                    1 => self.mix_rows::<L, 1>(block, row),
                    2 | 3 => self.mix_rows::<L, 2>(block, row),
                    _ => self.mix_rows::<L, 4>(block, row),
                };
            }
        }
    }

    #[inline(always)]
    unsafe fn mix_rows<L: Lanes, const Q: usize>(&mut self, block: &Block<E>, row: usize) -> usize {
        let vectors = self.call.layout.place.value_stride() / LANES;
        let mut vector = 0;
        // SAFETY: as for `run`.
        unsafe {
            while vector < vectors {
                let left = vectors - vector;
                vector += if left >= 4 && (L::WIDE || Q == 1) {
                    self.mix_tile::<L, Q, 4>(block, row, vector)
                } else if left >= 2 && (L::WIDE || Q <= 2) {
                    self.mix_tile::<L, Q, 2>(block, row, vector)
                } else {
                    self.mix_tile::<L, Q, 1>(block, row, vector)
                };
            }
        }
        Q
    }

    /// `Q` rows by `C` vectors of a value's dimensions, in registers over the whole block.
    #[inline(always)]
    unsafe fn mix_tile<L: Lanes, const Q: usize, const C: usize>(
        &mut self,
        block: &Block<E>,
        row: usize,
        vector: usize,
    ) -> usize {
        let stride = self.call.layout.place.value_stride();
        // SAFETY: `mixed` and each of a vector's sixteen values have `stride` elements; weights are rows of BLOCK.
        unsafe {
            let mixed = self.state.mixed.as_mut_ptr().add(row * stride + vector * LANES);
            let weights = self.state.scores.as_ptr().add(row * BLOCK);
            let mut sums = [[L::splat(0.0); C]; Q];
            for q in 0..Q {
                for c in 0..C {
                    sums[q][c] = L::load(mixed.add(q * stride + c * LANES));
                }
            }
            for positions in block.vectors() {
                let start = positions * LANES;
                let values = block.values[positions].add(vector * LANES);
                for position in block.from.max(start)..block.until.min(start + LANES) {
                    let value = values.add((position - start) * stride);
                    let mut parts = [L::splat(0.0); C];
                    for c in 0..C {
                        parts[c] = E::load::<L>(value.add(c * LANES));
                    }
                    for q in 0..Q {
                        let weight = *weights.add(q * BLOCK + position);
                        let weight = L::splat(match E::SCALED {
                            true => weight * *block.value_scales[positions].add(position - start),
                            false => weight,
                        });
                        for c in 0..C {
                            sums[q][c] = L::fma(weight, parts[c], sums[q][c]);
                        }
                    }
                }
            }
            for q in 0..Q {
                for c in 0..C {
                    L::store(mixed.add(q * stride + c * LANES), sums[q][c]);
                }
            }
        }
        C
    }

    /// Writes a row's result.
    #[inline(always)]
    fn finish(&self, row: usize) {
        let shape = self.call.shape;
        let (token, head) = ((self.at.from + row) / self.group(), (self.at.from + row) % self.group());
        let head = self.at.kv_head * self.group() + head;
        let at = ((self.at.out_row + token) * shape.heads + head) * shape.head_dim;
        // SAFETY: each token's head belongs to one tile.
        let out = unsafe { self.call.out.part(at, shape.head_dim) };
        let mixed = &self.state.mixed[row * self.call.layout.place.value_stride()..];
        let scale = 1.0 / self.state.sums[row];
        for (out, mixed) in out.iter_mut().zip(mixed) {
            *out = mixed * scale;
        }
    }
}
