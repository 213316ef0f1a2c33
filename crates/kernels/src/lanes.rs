//! Sixteen f32 lanes, as every loop here sees them: one trait, one implementation for each instruction set.
//!
//! Sixteen lanes are one AVX-512 register, two AVX2 registers or an array. Because all three do the same
//! operations on the same lanes and add lanes up in the same order, their results are bitwise the same.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
pub(crate) use scalar::Scalar;

/// Lanes in a vector. Layouts in memory (panels of weights, KV pages) are made of multiples of it.
pub(crate) const LANES: usize = 16;

/// A loop, generic over the instruction set, with its arguments inside.
///
/// Implementations mark `run` and every generic function it calls `#[inline(always)]` and use no closures in hot
/// loops: only code that is inlined into the entry point of the instruction set is compiled with it.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;

    /// Runs it.
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Sixteen f32 lanes of one instruction set.
///
/// # Safety
/// Every method needs the machine to have the instructions, and every pointer to be valid for what is read or
/// written (sixteen elements unless it says otherwise), at any alignment.
pub(crate) trait Lanes: Copy + 'static {
    /// Sixteen lanes.
    type V: Copy;
    /// Whether there are 32 registers of sixteen lanes: decides the shape of register tiles, never a result.
    const WIDE: bool;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// Sixteen bf16.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// Sixteen IEEE halves.
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// Sixteen signed bytes.
    unsafe fn load_i8(from: *const u8) -> Self::V;
    /// Those at even positions among 32 bf16.
    unsafe fn load_bf16_even(from: *const u16) -> Self::V;
    /// Those at odd positions among 32 bf16.
    unsafe fn load_bf16_odd(from: *const u16) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: gives `b` where either is no number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: gives `b` where either is no number.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once (twice in the portable path of targets without the instruction).
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `sum` plus the products of 32 bf16 with 32 others, two for each lane: that at the odd position first, each rounded
    /// once into the sum. (AVX-512's instruction takes numbers below 2^-126 for 0.)
    #[inline(always)]
    unsafe fn dot_bf16(sum: Self::V, w: *const u16, x: *const u16) -> Self::V {
        // SAFETY: as the caller's.
        unsafe {
            let sum = Self::fma(Self::load_bf16_odd(w), Self::load_bf16_odd(x), sum);
            Self::fma(Self::load_bf16_even(w), Self::load_bf16_even(x), sum)
        }
    }
    /// `2^n` for whole `n` in -126 ..= 127.
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// The sums of four vectors, each in the one order that [`sum_in_order`] spells out.
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4];
    /// The sum of a vector, in the same order.
    unsafe fn sum(v: Self::V) -> f32;
    /// The largest lane.
    unsafe fn largest(v: Self::V) -> f32;
    /// The same pointer, which the compiler cannot know to be the same: two loads through the two stay two, where
    /// keeping the first one's result would cost a register that the tile needs.
    unsafe fn again<T>(pointer: *const T) -> *const T;
    /// Asks for the cache line at `at`, which need not be valid memory.
    unsafe fn prefetch(at: *const u8);
    /// The same, into the second level cache only.
    unsafe fn prefetch_second(at: *const u8);
}

/// The order in which sixteen lanes are added up: halves, then neighbours, then neighbours, then halves. It is
/// what AVX's horizontal additions give, so that four vectors can be summed at once.
#[inline(always)]
pub(crate) fn sum_in_order(v: &[f32; LANES]) -> f32 {
    let mut half = [0.0f32; 8];
    for i in 0..8 {
        half[i] = v[i] + v[i + 8];
    }
    ((half[0] + half[1]) + (half[2] + half[3])) + ((half[4] + half[5]) + (half[6] + half[7]))
}
