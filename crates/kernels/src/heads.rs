//! What happens to queries, keys and values between their projection and attention: norm of each head, rotary
//! embedding, and the cache.

use crate::attention::{AttentionSpan, check_spans, row_width};
use crate::isa::Isa;
use crate::kv::{KvBf16, KvElements, KvF16, KvF32, KvInt8, KvLayout, KvPages, KvStored};
use crate::rows::NormInPlace;
use crate::shared::SharedMut;
use crate::team::Team;

/// Below so many elements the loop runs on the caller alone: a few microseconds of work, which sharing would not
/// shorten.
const ALONE_BELOW: usize = 24 * 1024;

/// The shape of the projected rows `[T, (H + 2K) * D]` (queries, keys, values) and what is done to their heads.
#[derive(Clone, Copy, Default)]
pub struct HeadsShape<'a> {
    /// H.
    pub heads: usize,
    /// K; divides H.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Norm of each query: `[D]` weights and epsilon.
    pub query_norm: Option<(&'a [f32], f32)>,
    /// Norm of each key.
    pub key_norm: Option<(&'a [f32], f32)>,
    /// Norm of each value.
    pub value_norm: Option<(&'a [f32], f32)>,
    /// Rotary embedding.
    pub rotation: Rotation<'a>,
    /// Rows hold queries alone, `[T, H * D]`, and nothing is kept: keys and values are those that another layer wrote.
    pub queries_only: bool,
}

/// Cosines and sines of the positions' angles, one row for each projected row: `[T, dims / 2]`. Element i of a
/// head turns with element `i + dims / 2`.
#[derive(Clone, Copy, Default)]
pub struct Rotation<'a> {
    /// How many of D turn.
    pub dims: usize,
    /// `[T, dims / 2]`.
    pub cos: &'a [f32],
    /// `[T, dims / 2]`.
    pub sin: &'a [f32],
}

/// Normalises and turns the queries and keys of `rows` in place, and puts keys and values of each span's tokens
/// into its pages of `layer`.
///
/// # Panics
/// Lengths do not fit each other, a span has rows or pages that are not there, or the cache is of another shape.
pub fn prepare_heads(
    team: &Team,
    isa: Isa,
    rows: &mut [f32],
    shape: &HeadsShape<'_>,
    spans: &[AttentionSpan<'_>],
    kv: &mut KvPages,
    layer: usize,
) {
    let width = row_width((shape.heads, shape.kv_heads), shape.head_dim, shape.queries_only);
    assert!(width > 0 && rows.len().is_multiple_of(width), "{} elements are no rows of {width}", rows.len());
    let count = rows.len() / width;
    let layout = kv.layout(layer);
    assert_eq!(
        (layout.place.kv_heads, layout.place.head_dim),
        (shape.kv_heads, shape.head_dim),
        "another cache"
    );
    check_spans(spans, count, kv);
    let half = shape.rotation.dims / 2;
    assert!(2 * half <= shape.head_dim, "{half} pairs turn in a head of {}", shape.head_dim);
    assert!(
        shape.rotation.cos.len() == count * half && shape.rotation.sin.len() == count * half,
        "an angle each"
    );
    let job = Prepare { isa, rows: SharedMut::new(rows), width, shape, spans, layout };
    match &mut kv.elements {
        KvElements::F32(elements) => job.run::<KvF32>(team, count, &Places::new(elements, &mut [])),
        KvElements::F16(elements) => job.run::<KvF16>(team, count, &Places::new(elements, &mut [])),
        KvElements::Bf16(elements) => job.run::<KvBf16>(team, count, &Places::new(elements, &mut [])),
        KvElements::Int8(codes, scales) => job.run::<KvInt8>(team, count, &Places::new(codes, scales)),
    }
}

/// Where keys and values go.
struct Places<'a, T> {
    elements: SharedMut<'a, T>,
    scales: SharedMut<'a, f32>,
}

impl<'a, T> Places<'a, T> {
    fn new(elements: &'a mut [T], scales: &'a mut [f32]) -> Self {
        Self { elements: SharedMut::new(elements), scales: SharedMut::new(scales) }
    }
}

struct Prepare<'a> {
    isa: Isa,
    rows: SharedMut<'a, f32>,
    width: usize,
    shape: &'a HeadsShape<'a>,
    spans: &'a [AttentionSpan<'a>],
    layout: KvLayout,
}

impl Prepare<'_> {
    /// Workers share the KV heads out: each head's part of the rows and of the pages is its own, whatever pages
    /// the spans name.
    fn run<E: KvStored>(&self, team: &Team, count: usize, places: &Places<'_, E::Element>) {
        let kv_heads = self.shape.kv_heads;
        let alone = count * self.width < ALONE_BELOW;
        team.share(kv_heads, if alone { kv_heads } else { 1 }, &|_, heads| {
            heads.for_each(|head| self.head::<E>(head, places));
        });
    }

    fn head<E: KvStored>(&self, head: usize, places: &Places<'_, E::Element>) {
        let HeadsShape { heads, kv_heads, head_dim, .. } = *self.shape;
        let group = heads / kv_heads;
        for span in self.spans {
            for token in 0..span.tokens {
                let row = span.row + token;
                let place = |column: usize| row * self.width + column * head_dim;
                for query in head * group..(head + 1) * group {
                    // SAFETY: this row's query heads of this KV head, which only this worker touches.
                    let x = unsafe { self.rows.part(place(query), head_dim) };
                    self.turn(x, self.shape.query_norm, row);
                }
                if self.shape.queries_only {
                    continue;
                }
                // SAFETY: this row's key of this KV head, which only this worker touches.
                let key = unsafe { self.rows.part(place(heads + head), head_dim) };
                self.turn(key, self.shape.key_norm, row);
                // SAFETY: this row's value of this KV head, which only this worker touches.
                let value = unsafe { self.rows.part(place(heads + kv_heads + head), head_dim) };
                self.normalise(value, self.shape.value_norm);
                self.keep::<E>(head, span, token, (key, value), places);
            }
        }
    }

    fn normalise(&self, x: &mut [f32], norm: Option<(&[f32], f32)>) {
        if let Some((weight, epsilon)) = norm {
            self.isa.dispatch(NormInPlace { x, weight, epsilon });
        }
    }

    fn turn(&self, x: &mut [f32], norm: Option<(&[f32], f32)>, row: usize) {
        self.normalise(x, norm);
        let half = self.shape.rotation.dims / 2;
        let cos = &self.shape.rotation.cos[row * half..][..half];
        let sin = &self.shape.rotation.sin[row * half..][..half];
        let (first, rest) = x.split_at_mut(half);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(rest).zip(cos.iter().zip(sin)) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }

    fn keep<E: KvStored>(
        &self,
        head: usize,
        span: &AttentionSpan<'_>,
        token: usize,
        (key, value): (&[f32], &[f32]),
        Places { elements, scales }: &Places<'_, E::Element>,
    ) {
        let position = span.position + token;
        let page_tokens = self.layout.page_tokens;
        let (page, slot) = (span.pages[position / page_tokens], position % page_tokens);
        // SAFETY: the page's keys of this head: no worker but this one touches them.
        let keys = unsafe { elements.part(self.layout.key(page, head, 0), key.len() * page_tokens) };
        let scale = E::scale(key);
        for (of_dim, &x) in keys.chunks_exact_mut(page_tokens).zip(key) {
            of_dim[slot] = E::from_f32(x, scale);
        }
        if E::SCALED {
            // SAFETY: the slot's scale of this head's key: no worker but this one touches it.
            let place = unsafe { scales.part(self.layout.key_scale(page, head, slot), 1) };
            place[0] = scale;
        }
        // SAFETY: the slot's value of this head: no worker but this one touches it.
        let values = unsafe { elements.part(self.layout.value(page, head, slot), value.len()) };
        let scale = E::scale(value);
        for (stored, &x) in values.iter_mut().zip(value) {
            *stored = E::from_f32(x, scale);
        }
        if E::SCALED {
            // SAFETY: the slot's scale of this head's value: no worker but this one touches it.
            let place = unsafe { scales.part(self.layout.value_scale(page, head, slot), 1) };
            place[0] = scale;
        }
    }
}

#[cfg(test)]
mod tests;
