//! Byte products, as the loops over grouped weights see them: one trait, one implementation for each instruction set.
//!
//! A register holds four neighbouring columns of [`Dots::ROWS`] rows as bytes; a product adds four of them into one
//! 32-bit integer for each row. Integers make all implementations equal, whatever they add first; the few float
//! operations around them are the same on the same lanes, so results are bitwise the same (given a fused multiply-add).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2Dots;
pub(crate) use scalar::ScalarDots;
#[cfg(target_arch = "x86_64")]
pub(crate) use vnni::VnniDots;

/// A loop, generic over the instruction set: see [`crate::lanes::Kernel`].
pub(crate) trait DotKernel {
    /// What it gives back.
    type Output;

    /// Runs it.
    ///
    /// # Safety
    /// The machine has the instructions of `D`.
    unsafe fn run<D: Dots>(self) -> Self::Output;
}

/// Byte products of one instruction set.
///
/// # Safety
/// Every method needs the machine to have the instructions, and every pointer to be valid for what is read or written,
/// at any alignment.
pub(crate) trait Dots: Copy + 'static {
    /// `ROWS * 4` bytes.
    type W: Copy;
    /// `ROWS` integers of 32 bits.
    type I: Copy;
    /// `ROWS` floats.
    type F: Copy;
    /// Rows in a register; divides sixteen.
    const ROWS: usize;
    /// Activation rows that a tile holds in registers at most.
    const TILE: usize;
    /// Whether [`Dots::dot_wide`] takes weights as signed bytes: codes of eight bits go through [`Dots::flip`] first and
    /// are then 128 smaller.
    const SIGNED: bool;
    /// Whether weights are worth being read where they are: else panels are always unpacked first.
    const DIRECT: bool;

    unsafe fn bytes(from: *const u8) -> Self::W;
    unsafe fn put_bytes(to: *mut u8, w: Self::W);
    /// The lower four bits of each byte.
    unsafe fn low(w: Self::W) -> Self::W;
    /// The upper four bits of each byte.
    unsafe fn high(w: Self::W) -> Self::W;
    /// Bits `2 * Q` and the next of each byte, as bits 4 and 5.
    unsafe fn top<const Q: usize>(w: Self::W) -> Self::W;
    /// Both bytes' bits.
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W;
    /// Each byte (below 16) replaced by its entry of the table.
    unsafe fn look_up(table: &[u8; 16], w: Self::W) -> Self::W;
    /// The upper bit of each byte turned over.
    unsafe fn flip(w: Self::W) -> Self::W;
    /// `start` and the products of sixteen columns of weights below 32 with sixteen activations.
    unsafe fn dot(start: Self::I, w: [Self::W; 4], x: *const i8) -> Self::I;
    /// The same for weights below 64.
    unsafe fn dot_six(start: Self::I, w: [Self::W; 4], x: *const i8) -> Self::I;
    /// The same for weights of eight bits.
    unsafe fn dot_wide(start: Self::I, w: [Self::W; 4], x: *const i8) -> Self::I;
    /// Byte `B` of each four, unsigned.
    unsafe fn byte<const B: usize>(w: Self::W) -> Self::I;

    unsafe fn splat_int(x: i32) -> Self::I;
    unsafe fn float(x: Self::I) -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn load_f16(from: *const u16) -> Self::F;
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// Bytes, of which `SIGNED` are from -128 on.
    unsafe fn load_bytes<const SIGNED: bool>(from: *const u8) -> Self::F;
    unsafe fn store(to: *mut f32, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Asks for the cache line at `at`, which need not be valid memory.
    unsafe fn prefetch(at: *const u8);
    /// The same, into the second level's cache.
    unsafe fn prefetch_second(at: *const u8);
}
