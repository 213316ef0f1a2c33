//! Lanes as an array: the portable path, and the scalar twin of the vector paths.

use half::f16;

use super::{LANES, Lanes, sum_in_order};

/// Plain Rust. `FUSED` says whether multiply and add round once: in software, and slowly, where the target has no
/// such instruction.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<const FUSED: bool>;

macro_rules! each {
    ($i:ident => $value:expr) => {{
        let mut out = [0.0f32; LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

impl<const FUSED: bool> Lanes for Scalar<FUSED> {
    type V = [f32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: as above.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each!(i => f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each!(i => f16::from_bits(bits[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::V {
        // SAFETY: as above.
        let codes = unsafe { from.cast::<[i8; LANES]>().read_unaligned() };
        each!(i => f32::from(codes[i]))
    }
    #[inline(always)]
    unsafe fn load_bf16_even(from: *const u16) -> Self::V {
        // SAFETY: the caller's pointer is valid for 32 elements.
        let bits = unsafe { from.cast::<[u16; 2 * LANES]>().read_unaligned() };
        each!(i => f32::from_bits(u32::from(bits[2 * i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_bf16_odd(from: *const u16) -> Self::V {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; 2 * LANES]>().read_unaligned() };
        each!(i => f32::from_bits(u32::from(bits[2 * i + 1]) << 16))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        each!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        each!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if FUSED { each!(i => a[i].mul_add(b[i], c[i])) } else { each!(i => a[i] * b[i] + c[i]) }
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::V) -> Self::V {
        each!(i => f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        [sum_in_order(&v[0]), sum_in_order(&v[1]), sum_in_order(&v[2]), sum_in_order(&v[3])]
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        sum_in_order(&v)
    }
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        let mut best = v[0];
        for x in v {
            best = if x > best { x } else { best };
        }
        best
    }
    #[inline(always)]
    unsafe fn again<T>(pointer: *const T) -> *const T {
        pointer
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_second(_at: *const u8) {}
}
