//! Byte products with AVX-512 VNNI: sixteen rows by four columns in one instruction.
// One argument serves every block below: the trait's contract gives the instructions and valid pointers, and all
// loads and stores are the unaligned kind.

use std::arch::x86_64::*;

use super::Dots;

/// AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct VnniDots;

impl Dots for VnniDots {
    type W = __m512i;
    type I = __m512i;
    type F = __m512;
    const ROWS: usize = 16;
    const TILE: usize = 8;
    const SIGNED: bool = false;
    const DIRECT: bool = true;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn put_bytes(to: *mut u8, w: __m512i) {
        unsafe { _mm512_storeu_si512(to.cast(), w) }
    }
    #[inline(always)]
    unsafe fn low(w: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(w, _mm512_set1_epi8(0x0f)) }
    }
    #[inline(always)]
    unsafe fn high(w: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(w), _mm512_set1_epi8(0x0f)) }
    }
    #[inline(always)]
    unsafe fn top<const Q: usize>(w: __m512i) -> __m512i {
        unsafe {
            let placed = match Q {
                0 => _mm512_slli_epi16::<4>(w),
                1 => _mm512_slli_epi16::<2>(w),
                2 => w,
                _ => _mm512_srli_epi16::<2>(w),
            };
            _mm512_and_si512(placed, _mm512_set1_epi8(0x30))
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], w: __m512i) -> __m512i {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, w)
        }
    }
    #[inline(always)]
    unsafe fn flip(w: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot(start: __m512i, w: [__m512i; 4], x: *const i8) -> __m512i {
        unsafe {
            let x = x.cast::<i32>();
            let sum = _mm512_dpbusd_epi32(start, w[0], _mm512_set1_epi32(x.read_unaligned()));
            let sum = _mm512_dpbusd_epi32(sum, w[1], _mm512_set1_epi32(x.add(1).read_unaligned()));
            let sum = _mm512_dpbusd_epi32(sum, w[2], _mm512_set1_epi32(x.add(2).read_unaligned()));
            _mm512_dpbusd_epi32(sum, w[3], _mm512_set1_epi32(x.add(3).read_unaligned()))
        }
    }
    #[inline(always)]
    unsafe fn dot_six(start: __m512i, w: [__m512i; 4], x: *const i8) -> __m512i {
        unsafe { Self::dot(start, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_wide(start: __m512i, w: [__m512i; 4], x: *const i8) -> __m512i {
        unsafe { Self::dot(start, w, x) }
    }
    #[inline(always)]
    unsafe fn byte<const B: usize>(w: __m512i) -> __m512i {
        unsafe {
            let byte = match B {
                0 => w,
                1 => _mm512_srli_epi32::<8>(w),
                2 => _mm512_srli_epi32::<16>(w),
                _ => return _mm512_srli_epi32::<24>(w),
            };
            _mm512_and_si512(byte, _mm512_set1_epi32(0xff))
        }
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn float(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bytes<const SIGNED: bool>(from: *const u8) -> __m512 {
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let wide = if SIGNED { _mm512_cvtepi8_epi32(bytes) } else { _mm512_cvtepu8_epi32(bytes) };
            _mm512_cvtepi32_ps(wide)
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
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
