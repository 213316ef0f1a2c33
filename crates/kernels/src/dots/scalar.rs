//! Byte products over arrays: the portable path, in loops that compilers turn into vectors, and the scalar twin.

use half::f16;

use super::Dots;

/// Plain Rust. `FUSED` as in [`crate::lanes::Scalar`].
#[derive(Clone, Copy)]
pub(crate) struct ScalarDots<const FUSED: bool>;

const ROWS: usize = 16;

macro_rules! each {
    ($i:ident => $value:expr) => {{
        let mut out = [Default::default(); ROWS];
        for $i in 0..ROWS {
            out[$i] = $value;
        }
        out
    }};
}

macro_rules! each_byte {
    ($i:ident => $value:expr) => {{
        let mut out = [0u8; 4 * ROWS];
        for $i in 0..4 * ROWS {
            out[$i] = $value;
        }
        out
    }};
}

impl<const FUSED: bool> Dots for ScalarDots<FUSED> {
    type W = [u8; 4 * ROWS];
    type I = [i32; ROWS];
    type F = [f32; ROWS];
    const ROWS: usize = ROWS;
    const TILE: usize = 1;
    const SIGNED: bool = false;
    const DIRECT: bool = false;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::W {
        // SAFETY: the caller's pointer is valid for a register's bytes.
        unsafe { from.cast::<Self::W>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn put_bytes(to: *mut u8, w: Self::W) {
        // SAFETY: as above.
        unsafe { to.cast::<Self::W>().write_unaligned(w) }
    }
    #[inline(always)]
    unsafe fn low(w: Self::W) -> Self::W {
        each_byte!(i => w[i] & 0x0f)
    }
    #[inline(always)]
    unsafe fn high(w: Self::W) -> Self::W {
        each_byte!(i => w[i] >> 4)
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], w: Self::W) -> Self::W {
        each_byte!(i => table[usize::from(w[i] & 0x0f)])
    }
    #[inline(always)]
    unsafe fn top<const Q: usize>(w: Self::W) -> Self::W {
        each_byte!(i => (w[i] >> (2 * Q) & 3) << 4)
    }
    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        each_byte!(i => a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn flip(w: Self::W) -> Self::W {
        each_byte!(i => w[i] ^ 0x80)
    }
    #[inline(always)]
    unsafe fn dot(start: Self::I, w: [Self::W; 4], x: *const i8) -> Self::I {
        // SAFETY: the caller's pointer is valid for sixteen activations.
        let x = unsafe { x.cast::<[i8; 16]>().read_unaligned() };
        let mut sums = start;
        for quad in 0..4 {
            for row in 0..ROWS {
                for column in 0..4 {
                    sums[row] += i32::from(w[quad][row * 4 + column]) * i32::from(x[quad * 4 + column]);
                }
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn dot_six(start: Self::I, w: [Self::W; 4], x: *const i8) -> Self::I {
        // SAFETY: as the caller's.
        unsafe { Self::dot(start, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_wide(start: Self::I, w: [Self::W; 4], x: *const i8) -> Self::I {
        // SAFETY: as the caller's.
        unsafe { Self::dot(start, w, x) }
    }
    #[inline(always)]
    unsafe fn byte<const B: usize>(w: Self::W) -> Self::I {
        each!(i => i32::from(w[4 * i + B]))
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> Self::I {
        [x; ROWS]
    }
    #[inline(always)]
    unsafe fn float(x: Self::I) -> Self::F {
        each!(i => x[i] as f32)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; ROWS]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: the caller's pointer is valid for sixteen floats.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; ROWS]>().read_unaligned() };
        each!(i => f16::from_bits(bits[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; ROWS]>().read_unaligned() };
        each!(i => f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_bytes<const SIGNED: bool>(from: *const u8) -> Self::F {
        // SAFETY: as above.
        let bytes = unsafe { from.cast::<[u8; ROWS]>().read_unaligned() };
        each!(i => if SIGNED { f32::from(bytes[i].cast_signed()) } else { f32::from(bytes[i]) })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        // SAFETY: as above.
        unsafe { to.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each!(i => a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each!(i => a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each!(i => a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        if FUSED { each!(i => a[i].mul_add(b[i], c[i])) } else { each!(i => a[i] * b[i] + c[i]) }
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_second(_at: *const u8) {}
}
