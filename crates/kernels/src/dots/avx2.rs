//! Byte products with AVX2: pairs of bytes into sixteen bits, pairs of those into 32.
// One argument serves every block below: the trait's contract gives the instructions and valid pointers, and all
// loads and stores are the unaligned kind.

use std::arch::x86_64::*;

use super::Dots;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Dots;

impl Dots for Avx2Dots {
    type W = __m256i;
    type I = __m256i;
    type F = __m256;
    const ROWS: usize = 8;
    const TILE: usize = 4;
    const SIGNED: bool = true;
    const DIRECT: bool = true;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn put_bytes(to: *mut u8, w: __m256i) {
        unsafe { _mm256_storeu_si256(to.cast(), w) }
    }
    #[inline(always)]
    unsafe fn low(w: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(w, _mm256_set1_epi8(0x0f)) }
    }
    #[inline(always)]
    unsafe fn high(w: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(w), _mm256_set1_epi8(0x0f)) }
    }
    #[inline(always)]
    unsafe fn top<const Q: usize>(w: __m256i) -> __m256i {
        unsafe {
            let placed = match Q {
                0 => _mm256_slli_epi16::<4>(w),
                1 => _mm256_slli_epi16::<2>(w),
                2 => w,
                _ => _mm256_srli_epi16::<2>(w),
            };
            _mm256_and_si256(placed, _mm256_set1_epi8(0x30))
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], w: __m256i) -> __m256i {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, w)
        }
    }
    #[inline(always)]
    unsafe fn flip(w: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(w, _mm256_set1_epi8(-128)) }
    }
    /// Weights are below 32: four pairs of products, at most `4 * 2 * 31 * 127`, fit sixteen bits.
    #[inline(always)]
    unsafe fn dot(start: __m256i, w: [__m256i; 4], x: *const i8) -> __m256i {
        unsafe {
            let first = _mm256_add_epi16(pairs(w[0], x), pairs(w[1], x.add(4)));
            let last = _mm256_add_epi16(pairs(w[2], x.add(8)), pairs(w[3], x.add(12)));
            let sums = _mm256_madd_epi16(_mm256_add_epi16(first, last), _mm256_set1_epi16(1));
            _mm256_add_epi32(start, sums)
        }
    }
    /// Weights are below 64: two pairs of products, at most `2 * 2 * 63 * 127`, fit sixteen bits.
    #[inline(always)]
    unsafe fn dot_six(start: __m256i, w: [__m256i; 4], x: *const i8) -> __m256i {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let first = _mm256_add_epi16(pairs(w[0], x), pairs(w[1], x.add(4)));
            let last = _mm256_add_epi16(pairs(w[2], x.add(8)), pairs(w[3], x.add(12)));
            let sum = _mm256_add_epi32(start, _mm256_madd_epi16(first, ones));
            _mm256_add_epi32(sum, _mm256_madd_epi16(last, ones))
        }
    }
    /// Weights are signed: their sign goes to the activations (which are never -128), and a pair of products, at most
    /// `2 * 128 * 127`, fits sixteen bits.
    #[inline(always)]
    unsafe fn dot_wide(start: __m256i, w: [__m256i; 4], x: *const i8) -> __m256i {
        unsafe {
            let x = x.cast::<i32>();
            let mut sum = start;
            for at in 0..4 {
                let x = _mm256_sign_epi8(_mm256_set1_epi32(x.add(at).read_unaligned()), w[at]);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[at]), x);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn byte<const B: usize>(w: __m256i) -> __m256i {
        unsafe {
            let byte = match B {
                0 => w,
                1 => _mm256_srli_epi32::<8>(w),
                2 => _mm256_srli_epi32::<16>(w),
                _ => return _mm256_srli_epi32::<24>(w),
            };
            _mm256_and_si256(byte, _mm256_set1_epi32(0xff))
        }
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn float(x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bytes<const SIGNED: bool>(from: *const u8) -> __m256 {
        unsafe {
            let bytes = _mm_loadl_epi64(from.cast());
            let wide = if SIGNED { _mm256_cvtepi8_epi32(bytes) } else { _mm256_cvtepu8_epi32(bytes) };
            _mm256_cvtepi32_ps(wide)
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_second(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

/// Four weights of each row with the four activations at `x`, in pairs.
#[inline(always)]
unsafe fn pairs(w: __m256i, x: *const i8) -> __m256i {
    unsafe { _mm256_maddubs_epi16(w, _mm256_set1_epi32(x.cast::<i32>().read_unaligned())) }
}
