//! Heads, their cache, and attention over it.

use candle_core::{DType as Element, Device, Result, Tensor};

use super::{Candle, Rows, rms_norm, softmax};
use crate::backend::{AttentionStep, HeadsStep, Pages, Segment};

/// Keys and values of all layers: a row `[K * D]` for each slot of each page.
#[derive(Debug)]
pub struct Kv {
    /// None where a layer keeps none.
    layers: Vec<Option<[Tensor; 2]>>,
    pages: usize,
    page_tokens: usize,
    /// A device that could not wipe a page: nothing is computed over this cache any more.
    fault: Option<String>,
}

impl Kv {
    pub(super) fn new(
        device: &Device,
        layers: &[(usize, usize)],
        (pages, page_tokens): (usize, usize),
        element: Element,
    ) -> Result<Self> {
        let layer = |&(kv_heads, head_dim): &(usize, usize)| {
            let zeros = || Tensor::zeros((pages * page_tokens, kv_heads * head_dim), element, device);
            Ok(if kv_heads == 0 { None } else { Some([zeros()?, zeros()?]) })
        };
        let layers = layers.iter().map(layer).collect::<Result<Vec<_>>>()?;
        Ok(Self { layers, pages, page_tokens, fault: None })
    }

    fn layer(&self, layer: usize) -> Result<&[Tensor; 2]> {
        if let Some(fault) = &self.fault {
            candle_core::bail!("a page could not be wiped: {fault}");
        }
        match self.layers.get(layer) {
            Some(Some(layer)) => Ok(layer),
            _ => candle_core::bail!("layer {layer} keeps no keys and values"),
        }
    }

    /// The slot of a sequence's `position`.
    fn slot(&self, pages: &[u32], position: usize) -> usize {
        pages[position / self.page_tokens] as usize * self.page_tokens + position % self.page_tokens
    }

    /// Puts the rows of `segments` where their positions are.
    fn keep(&self, layer: usize, segments: &[Segment<'_>], rows: [&Tensor; 2]) -> Result<()> {
        for (cache, rows) in self.layer(layer)?.iter().zip(rows) {
            let rows = rows.to_dtype(cache.dtype())?;
            for segment in segments {
                let mut done = 0;
                while done < segment.tokens {
                    let position = segment.position + done;
                    let in_page = self.page_tokens - position % self.page_tokens;
                    let count = in_page.min(segment.tokens - done);
                    let part = rows.narrow(0, segment.row + done, count)?.contiguous()?;
                    cache.slice_set(&part, 0, self.slot(segment.pages, position))?;
                    done += count;
                }
            }
        }
        Ok(())
    }
}

impl Pages for Kv {
    fn wipe(&mut self, page: u32) {
        let page = page as usize;
        assert!(page < self.pages, "page {page} of {}", self.pages);
        for cache in self.layers.iter().flatten().flatten() {
            let wiped = cache
                .narrow(0, page * self.page_tokens, self.page_tokens)
                .and_then(|part| part.zeros_like())
                .and_then(|zeros| cache.slice_set(&zeros, 0, page * self.page_tokens));
            if let Err(error) = wiped {
                self.fault = Some(error.to_string());
            }
        }
    }
}

/// `x: [T, n, D]`, its first `2 * half` of D turned by the rows' angles.
fn turn(x: &Tensor, half: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if half == 0 {
        return Ok(x.clone());
    }
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    let rest = x.narrow(2, 2 * half, x.dim(2)? - 2 * half)?;
    Tensor::cat(&[first, second, rest], 2)
}

/// The rows with their heads normed and turned; keys and values go into the cache.
pub(super) fn prepare(
    device: &Device,
    rows: &Rows,
    step: &HeadsStep<'_, Candle>,
    segments: &[Segment<'_>],
    (kv, layer): (&mut Kv, usize),
) -> Result<Tensor> {
    let rows = rows.on(device)?;
    let (count, d) = (rows.dim(0)?, step.head_dim);
    let half = step.rotated / 2;
    let angles = |of: &Rows| of.on(device)?.reshape((count, 1, half));
    let (cos, sin) = (angles(step.cos)?, angles(step.sin)?);
    let heads = |first: usize, heads: usize, norm: Option<(&Tensor, f32)>| {
        let x = rows.narrow(1, first * d, heads * d)?.reshape((count, heads, d))?;
        match norm {
            Some((weight, epsilon)) => rms_norm(&x, weight, epsilon),
            None => Ok(x),
        }
    };
    let flat = |x: Tensor| x.reshape((count, ()));
    let query = flat(turn(&heads(0, step.heads, step.query_norm)?, half, &cos, &sin)?)?;
    if step.queries_only {
        return Ok(query);
    }
    let key = heads(step.heads, step.kv_heads, step.key_norm)?;
    let key = flat(turn(&key, half, &cos, &sin)?)?;
    let value = flat(heads(step.heads + step.kv_heads, step.kv_heads, step.value_norm)?)?;
    kv.keep(layer, segments, [&key, &value])?;
    Tensor::cat(&[query, key, value], 1)
}

/// Attention of the segments' queries in `rows`, one segment below the other.
pub(super) fn attend(
    rows: &Tensor,
    step: &AttentionStep<'_, Candle>,
    segments: &[Segment<'_>],
    (kv, layer): (&Kv, usize),
) -> Result<Tensor> {
    let attended = segments.iter().map(|segment| attend_one(rows, step, segment, kv, kv.layer(layer)?));
    Tensor::cat(&attended.collect::<Result<Vec<_>>>()?, 0)
}

fn attend_one(
    rows: &Tensor,
    step: &AttentionStep<'_, Candle>,
    segment: &Segment<'_>,
    kv: &Kv,
    [keys, values]: &[Tensor; 2],
) -> Result<Tensor> {
    let &AttentionStep { heads, kv_heads, head_dim, .. } = step;
    let (tokens, group) = (segment.tokens, heads / kv_heads);
    let end = segment.position + tokens;
    let first = step.window.map_or(0, |window| (segment.position + 1).saturating_sub(window));
    let length = end - first;
    let slots: Vec<u32> = (first..end).map(|at| kv.slot(segment.pages, at) as u32).collect();
    let slots = Tensor::from_vec(slots, length, rows.device())?;
    let seen = |cache: &Tensor| {
        let rows = cache.index_select(&slots, 0)?.to_dtype(Element::F32)?;
        rows.reshape((length, kv_heads, head_dim))?.transpose(0, 1)?.contiguous()
    };
    let queries = rows.narrow(0, segment.row, tokens)?.narrow(1, 0, heads * head_dim)?;
    let queries = queries.reshape((tokens, kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?;
    let queries = queries.contiguous()?.reshape((kv_heads, group * tokens, head_dim))?;
    let mut scores = (queries.matmul(&seen(keys)?.transpose(1, 2)?.contiguous()?)? * f64::from(step.scale))?;
    if let Some(cap) = step.soft_cap.map(f64::from) {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let scores = scores.reshape((kv_heads, group, tokens, length))?;
    let scores =
        scores.broadcast_add(&mask(segment.position, tokens, first..end, step.window, rows.device())?)?;
    let shares = match step.sinks {
        Some(sinks) => {
            let sinks = sinks.reshape((kv_heads, group, 1, 1))?.broadcast_as((kv_heads, group, tokens, 1))?;
            softmax(&Tensor::cat(&[scores, sinks.contiguous()?], 3)?)?.narrow(3, 0, length)?
        }
        None => softmax(&scores)?,
    };
    let shares = shares.contiguous()?.reshape((kv_heads, group * tokens, length))?;
    let out = shares.matmul(&seen(values)?)?.reshape((kv_heads, group, tokens, head_dim))?;
    out.permute((2, 0, 1, 3))?.contiguous()?.reshape((tokens, heads * head_dim))
}

/// `[T, positions]`: zero where a token sees a position, minus infinity where it does not.
fn mask(
    position: usize,
    tokens: usize,
    positions: std::ops::Range<usize>,
    window: Option<usize>,
    device: &Device,
) -> Result<Tensor> {
    let length = positions.len();
    let values: Vec<f32> = (position..position + tokens)
        .flat_map(|token| {
            positions.clone().map(move |at| {
                let near = window.is_none_or(|window| at + window > token);
                if at <= token && near { 0.0 } else { f32::NEG_INFINITY }
            })
        })
        .collect();
    Tensor::from_vec(values, (tokens, length), device)
}
