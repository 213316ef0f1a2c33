//! The KV cache's memory: pages of P tokens, each holding all layers, keys transposed.
//!
//! Inside a page, each layer has `keys: [K, D, P]` and `values: [K, P, D']` with D' = D rounded up to sixteen. Keys
//! lie transposed so that sixteen positions' scores come out of one register without a sum across lanes; values
//! lie straight so that their weighted sum does as well. A page is contiguous over all layers: wiping one is one
//! fill. Where elements are bytes, a key and a value of a head have a scale each, beside the pages: of each layer
//! `keys: [K, P]` and `values: [K, P]`.

use std::io;

use half::{bf16, f16};

use crate::buffer::Buffer;
use crate::lanes::LANES;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvElement {
    /// IEEE 754 binary32: what was computed.
    F32,
    /// IEEE 754 binary16: 11 bits of precision, values beyond 65504 saturate.
    F16,
    /// The upper half of a binary32: 8 bits of precision, the whole range.
    Bf16,
    /// Bytes, with a binary32 scale for each key and each value of a head: the largest of its elements is 127.
    Int8,
}

impl KvElement {
    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes that a token takes in a layer of `(K, D)`.
    pub const fn bytes_per_token(self, (kv_heads, head_dim): (usize, usize)) -> usize {
        let scales = match self {
            Self::Int8 => 2 * kv_heads * size_of::<f32>(),
            Self::F32 | Self::F16 | Self::Bf16 => 0,
        };
        kv_heads * (head_dim + head_dim.next_multiple_of(LANES)) * self.size() + scales
    }
}

/// Why there is no such cache.
#[derive(Debug)]
pub enum KvPagesError {
    /// Tokens in a page are not a positive multiple of sixteen.
    PageTokens(usize),
    /// No memory.
    Memory(io::Error),
}

impl std::fmt::Display for KvPagesError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PageTokens(tokens) => {
                write!(f, "pages of {tokens} tokens: must be a positive multiple of {LANES}")
            }
            Self::Memory(_) => f.write_str("no memory for the kv cache"),
        }
    }
}

impl std::error::Error for KvPagesError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Memory(cause) => Some(cause),
            Self::PageTokens(_) => None,
        }
    }
}

/// Pages of keys and values. Memory of pages that were never written is not taken from the machine (beyond what
/// huge pages round up to).
#[derive(Debug)]
pub struct KvPages {
    layers: Vec<LayerPlace>,
    pages: usize,
    page_tokens: usize,
    page_len: usize,
    /// Scales of a page, where there are any.
    page_scales: usize,
    pub(crate) elements: KvElements,
}

#[derive(Debug)]
pub(crate) enum KvElements {
    F32(Buffer<f32>),
    F16(Buffer<u16>),
    Bf16(Buffer<u16>),
    /// Signed bytes, and their scales.
    Int8(Buffer<u8>, Buffer<f32>),
}

/// Where a layer lies in each page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerPlace {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    keys: usize,
    values: usize,
    scales: usize,
}

impl LayerPlace {
    /// D'.
    pub(crate) fn value_stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}

impl KvPages {
    /// `pages` pages of `page_tokens` tokens, for layers of `(K, D)`.
    ///
    /// # Errors
    /// `page_tokens` is not a positive multiple of sixteen, or there is no memory.
    pub fn new(
        layers: &[(usize, usize)],
        pages: usize,
        page_tokens: usize,
        element: KvElement,
    ) -> Result<Self, KvPagesError> {
        if page_tokens == 0 || !page_tokens.is_multiple_of(LANES) {
            return Err(KvPagesError::PageTokens(page_tokens));
        }
        let (mut page_len, mut page_scales) = (0, 0);
        let mut places = Vec::with_capacity(layers.len());
        for &(kv_heads, head_dim) in layers {
            let keys = page_len;
            let values = keys + kv_heads * head_dim * page_tokens;
            let place = LayerPlace { kv_heads, head_dim, keys, values, scales: page_scales };
            page_scales += 2 * kv_heads * page_tokens;
            page_len = values + kv_heads * place.value_stride() * page_tokens;
            places.push(place);
        }
        let len = page_len.saturating_mul(pages);
        let elements = match element {
            KvElement::F32 => Buffer::zeroed(len).map(KvElements::F32),
            KvElement::F16 => Buffer::zeroed(len).map(KvElements::F16),
            KvElement::Bf16 => Buffer::zeroed(len).map(KvElements::Bf16),
            KvElement::Int8 => Buffer::zeroed(len).and_then(|codes| {
                Ok(KvElements::Int8(codes, Buffer::zeroed(page_scales.saturating_mul(pages))?))
            }),
        };
        let elements = elements.map_err(KvPagesError::Memory)?;
        Ok(Self { layers: places, pages, page_tokens, page_len, page_scales, elements })
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// P.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// How an element is stored.
    pub fn element(&self) -> KvElement {
        match self.elements {
            KvElements::F32(_) => KvElement::F32,
            KvElements::F16(_) => KvElement::F16,
            KvElements::Bf16(_) => KvElement::Bf16,
            KvElements::Int8(..) => KvElement::Int8,
        }
    }

    /// The layers' `(K, D)`.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = (usize, usize)> {
        self.layers.iter().map(|layer| (layer.kv_heads, layer.head_dim))
    }

    /// Overwrites a page with zeros, so that nothing of the sequence that had it is left.
    ///
    /// # Panics
    /// There is no such page.
    pub fn wipe(&mut self, page: u32) {
        let page = page as usize;
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let range = page * self.page_len..(page + 1) * self.page_len;
        match &mut self.elements {
            KvElements::F32(elements) => elements[range].fill(0.0),
            KvElements::F16(elements) | KvElements::Bf16(elements) => elements[range].fill(0),
            KvElements::Int8(codes, scales) => {
                codes[range].fill(0);
                scales[page * self.page_scales..(page + 1) * self.page_scales].fill(0.0);
            }
        }
    }

    pub(crate) fn layout(&self, layer: usize) -> KvLayout {
        let place = self.layers[layer];
        KvLayout {
            place,
            page_len: self.page_len,
            page_tokens: self.page_tokens,
            page_scales: self.page_scales,
        }
    }
}

/// Where things of a layer are, in elements from the start.
#[derive(Clone, Copy)]
pub(crate) struct KvLayout {
    pub(crate) place: LayerPlace,
    page_len: usize,
    pub(crate) page_tokens: usize,
    page_scales: usize,
}

impl KvLayout {
    /// Dimension 0 of the key at `slot`; dimension d is `d * page_tokens` further.
    #[inline(always)]
    pub(crate) fn key(&self, page: u32, head: usize, slot: usize) -> usize {
        page as usize * self.page_len + self.place.keys + head * self.place.head_dim * self.page_tokens + slot
    }

    /// The value at `slot`: `head_dim` elements, the next slot's `value_stride` further.
    #[inline(always)]
    pub(crate) fn value(&self, page: u32, head: usize, slot: usize) -> usize {
        let stride = self.place.value_stride();
        page as usize * self.page_len + self.place.values + (head * self.page_tokens + slot) * stride
    }
}

impl KvLayout {
    /// The scale of the key at `slot`; the next slot's is the next.
    #[inline(always)]
    pub(crate) fn key_scale(&self, page: u32, head: usize, slot: usize) -> usize {
        page as usize * self.page_scales + self.place.scales + head * self.page_tokens + slot
    }

    /// The scale of the value at `slot`.
    #[inline(always)]
    pub(crate) fn value_scale(&self, page: u32, head: usize, slot: usize) -> usize {
        self.key_scale(page, self.place.kv_heads + head, slot)
    }
}

/// How a kind of element is written and read.
pub(crate) trait KvStored: 'static {
    type Element: Copy + Send + Sync + 'static;
    /// Whether each key and each value has a scale that its elements are multiplied with.
    const SCALED: bool = false;
    /// The scale of a key or value, where there is one.
    fn scale(_of: &[f32]) -> f32 {
        1.0
    }
    /// `x` as it is stored, in a key or value with `scale`.
    fn from_f32(x: f32, scale: f32) -> Self::Element;
    /// Sixteen of them.
    ///
    /// # Safety
    /// As for [`crate::lanes::Lanes`].
    unsafe fn load<L: crate::lanes::Lanes>(from: *const Self::Element) -> L::V;
}

/// See [`KvElement::F32`].
pub(crate) struct KvF32;
/// See [`KvElement::F16`].
pub(crate) struct KvF16;
/// See [`KvElement::Bf16`].
pub(crate) struct KvBf16;

impl KvStored for KvF32 {
    type Element = f32;
    fn from_f32(x: f32, _: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load<L: crate::lanes::Lanes>(from: *const f32) -> L::V {
        // SAFETY: the caller's pointer and instructions.
        unsafe { L::load(from) }
    }
}

impl KvStored for KvF16 {
    type Element = u16;
    fn from_f32(x: f32, _: f32) -> u16 {
        // An infinity among the keys would make a row of no numbers; the largest half only clips one weight.
        f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits()
    }
    #[inline(always)]
    unsafe fn load<L: crate::lanes::Lanes>(from: *const u16) -> L::V {
        // SAFETY: the caller's pointer and instructions.
        unsafe { L::load_f16(from) }
    }
}

impl KvStored for KvBf16 {
    type Element = u16;
    fn from_f32(x: f32, _: f32) -> u16 {
        bf16::from_f32(x).to_bits()
    }
    #[inline(always)]
    unsafe fn load<L: crate::lanes::Lanes>(from: *const u16) -> L::V {
        // SAFETY: the caller's pointer and instructions.
        unsafe { L::load_bf16(from) }
    }
}

/// See [`KvElement::Int8`].
pub(crate) struct KvInt8;

impl KvStored for KvInt8 {
    type Element = u8;
    const SCALED: bool = true;
    fn scale(of: &[f32]) -> f32 {
        // An infinite scale would make zeros into no numbers.
        of.iter().fold(0.0f32, |most, x| most.max(x.abs())).min(f32::MAX) / 127.0
    }
    fn from_f32(x: f32, scale: f32) -> u8 {
        let code = if scale > 0.0 { (x / scale).round_ties_even() } else { 0.0 };
        (code.clamp(-127.0, 127.0) as i8).cast_unsigned()
    }
    #[inline(always)]
    unsafe fn load<L: crate::lanes::Lanes>(from: *const u8) -> L::V {
        // SAFETY: the caller's pointer and instructions.
        unsafe { L::load_i8(from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_layers_heads_and_slots_do_not_overlap() {
        let cache = KvPages::new(&[(2, 8), (1, 20)], 3, 16, KvElement::F16).unwrap();
        let mut taken = vec![0u8; cache.page_len * 3];
        for layer in 0..2 {
            let layout = cache.layout(layer);
            for page in 0..3 {
                for head in 0..layout.place.kv_heads {
                    for slot in 0..16 {
                        let key = layout.key(page, head, slot);
                        (0..layout.place.head_dim).for_each(|d| taken[key + d * 16] += 1);
                        let value = layout.value(page, head, slot);
                        (0..layout.place.value_stride()).for_each(|d| taken[value + d] += 1);
                    }
                }
            }
        }
        assert!(taken.iter().all(|&count| count == 1));
        let per_token: usize = cache.layers().map(|layer| KvElement::F16.bytes_per_token(layer)).sum();
        assert_eq!(2 * taken.len(), 3 * 16 * per_token);
    }

    #[test]
    fn a_page_size_that_is_no_multiple_of_sixteen_is_refused() {
        for tokens in [0, 8, 17] {
            let error = KvPages::new(&[(1, 8)], 1, tokens, KvElement::F32).unwrap_err();
            assert!(error.to_string().contains(&format!("pages of {tokens} tokens")));
        }
        assert!(matches!(
            KvPages::new(&[(1, 8)], usize::MAX, 16, KvElement::F32),
            Err(KvPagesError::Memory(_))
        ));
    }

    #[test]
    fn wiping_a_page_clears_it_and_no_other() {
        let mut cache = KvPages::new(&[(1, 16)], 3, 16, KvElement::Bf16).unwrap();
        let len = cache.page_len;
        let KvElements::Bf16(elements) = &mut cache.elements else { unreachable!() };
        elements.fill(7);
        cache.wipe(1);
        let KvElements::Bf16(elements) = &cache.elements else { unreachable!() };
        for (page, elements) in elements.chunks(len).enumerate() {
            assert!(elements.iter().all(|&bits| bits == if page == 1 { 0 } else { 7 }));
        }
    }

    #[test]
    fn scales_of_layers_heads_and_slots_do_not_overlap_and_are_wiped_with_their_page() {
        let mut cache = KvPages::new(&[(2, 8), (0, 0), (1, 20)], 3, 32, KvElement::Int8).unwrap();
        let mut taken = vec![0u8; cache.page_scales * 3];
        for layer in [0, 2] {
            let layout = cache.layout(layer);
            for (page, head) in (0..3).flat_map(|page| (0..layout.place.kv_heads).map(move |h| (page, h))) {
                for slot in 0..32 {
                    taken[layout.key_scale(page, head, slot)] += 1;
                    taken[layout.value_scale(page, head, slot)] += 1;
                }
            }
        }
        assert!(taken.iter().all(|&count| count == 1));
        let bytes: usize = cache.layers().map(|layer| KvElement::Int8.bytes_per_token(layer)).sum();
        assert_eq!(cache.page_len * 3 + taken.len() * 4, 3 * 32 * bytes);
        let (page_len, page_scales) = (cache.page_len, cache.page_scales);
        let KvElements::Int8(codes, scales) = &mut cache.elements else { unreachable!() };
        codes.fill(3);
        scales.fill(2.0);
        cache.wipe(1);
        let KvElements::Int8(codes, scales) = &cache.elements else { unreachable!() };
        for page in 0..3 {
            let left = if page == 1 { (0, 0.0) } else { (3, 2.0) };
            assert!(codes[page * page_len..][..page_len].iter().all(|&code| code == left.0));
            assert!(scales[page * page_scales..][..page_scales].iter().all(|&scale| scale == left.1));
        }
    }

    #[test]
    fn a_byte_is_the_nearest_of_its_scale_whatever_the_number() {
        let code = |x: f32, of: &[f32]| KvInt8::from_f32(x, KvInt8::scale(of)).cast_signed();
        let key = [0.3, -1.27, 0.005, 0.0149];
        assert_eq!(key.map(|x| code(x, &key)), [30, -127, 0, 1]);
        assert_eq!(code(0.0, &[0.0, -0.0]), 0);
        let strange = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0];
        assert_eq!(strange.map(|x| code(x, &strange)), [127, -127, 0, 0]);
        assert!(KvInt8::scale(&strange).is_finite());
        assert_eq!(code(1e-45, &[1e-45]), 0, "what is too small for a scale is nothing");
    }

    #[test]
    fn halves_saturate_instead_of_becoming_infinite() {
        assert_eq!(f16::from_bits(KvF16::from_f32(1e9, 1.0)).to_f32(), 65504.0);
        assert_eq!(f16::from_bits(KvF16::from_f32(-1e9, 1.0)).to_f32(), -65504.0);
    }
}
