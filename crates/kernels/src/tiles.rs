//! Matrix tiles (Intel AMX): eight registers of up to sixteen rows of 64 bytes, and products of whole tiles.
//!
//! The compiler's intrinsics are not stable, so these are the instructions themselves. Whoever uses tiles configures
//! them, and releases them before it returns: no tile outlives a product, on no thread.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use crate::pack::PANEL_ROWS;

/// Rows of a tile, and floats or 32-bit integers in a row.
pub(crate) const TILE: usize = 16;
/// Bytes of a tile's row.
pub(crate) const ROW_BYTES: usize = 64;

/// Whether this process may use tiles for bytes and for bf16, and they compute what they should. The first time, it asks the
/// kernel for them, and tries them.
pub(crate) fn permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        // SAFETY: the processor has them, and the kernel has just permitted them.
        has_tiles() && kernel_permits() && unsafe { compute_rightly() }
    })
}

/// Whether a product of each kind is what it should be: virtual machines' tiles are as good as who emulates them.
///
/// # Safety
/// There are tiles, and they are permitted.
unsafe fn compute_rightly() -> bool {
    const ROWS: usize = 5;
    let codes: [i8; ROWS * 32] = std::array::from_fn(|at| (at * 37 % 256) as u8 as i8);
    let weights: [u8; 8 * ROW_BYTES] = std::array::from_fn(|at| (at * 91 % 256) as u8);
    let mut bytes = [[0i32; TILE * TILE]; 2];
    let halves: [u16; PANEL_ROWS * 32] = std::array::from_fn(|at| ((at % 7) as u16) << 7 | 0x3f00);
    let pairs: [u32; TILE * ROWS] = std::array::from_fn(|at| ((at % 5) as u32) << 23 | 0x3f00_bf80);
    let mut floats = [0.0f32; 4 * PANEL_ROWS * TILE];
    let x_bytes = [ROWS * 4; 2];
    // SAFETY: all memory is there for these shapes; the caller vouches for tiles.
    unsafe {
        let (sums, x, w) = ((ROWS, ROW_BYTES), (ROWS, 32), (8, ROW_BYTES));
        Shapes::new([sums, sums, x, x, w, w, sums, sums]).configure();
        byte_products::<false>(codes.as_ptr(), 32, weights.as_ptr(), bytes[0].as_mut_ptr());
        byte_products::<true>(codes.as_ptr(), 32, weights.as_ptr(), bytes[1].as_mut_ptr());
        Pairs::shapes(x_bytes).configure();
        let (w, x) = ([halves.as_ptr(); 2], [pairs.as_ptr(); 2]);
        Pairs { w, x, x_bytes, blocks: 1 }.products(&mut floats);
        release();
    }
    let byte = |row: usize, output: usize| {
        let product = |k: usize| {
            i32::from(codes[row * 32 + k]) * i32::from(weights[k / 4 * ROW_BYTES + output * 4 + k % 4])
        };
        (0..32).map(product).sum::<i32>()
    };
    let float = |bits: u32| f32::from_bits(bits << 16);
    // Few bits each, so that every order of additions gives the same.
    let pair = |row: usize, x: usize| {
        let product = |k: usize| {
            let [low, high] = [pairs[k * ROWS + x] & 0xffff, pairs[k * ROWS + x] >> 16].map(float);
            let w = [halves[row * 32 + 2 * k], halves[row * 32 + 2 * k + 1]].map(|bits| float(bits.into()));
            w[0] * low + w[1] * high
        };
        (0..TILE).map(product).sum::<f32>()
    };
    let all_bytes = (0..ROWS * TILE).all(|at| bytes.iter().all(|b| b[at] == byte(at / TILE, at % TILE)));
    let tile = PANEL_ROWS * TILE;
    let right = |at: usize| floats[at] == pair(at % tile / TILE, at % TILE);
    all_bytes && (0..4 * tile).filter(|at| at % TILE < ROWS).all(right)
}

/// Whether the processor has tiles with products of bytes and of bf16, and the system keeps their state.
fn has_tiles() -> bool {
    // Bits of leaf 7's EDX: AMX-BF16, AMX-TILE, AMX-INT8.
    const ALL: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    // Bits of leaf 1's ECX: XSAVE, and that the system has switched it on.
    const OSXSAVE: u32 = 1 << 26 | 1 << 27;
    // Bits of XCR0: the tiles' configuration and their data.
    const STATES: u64 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE != OSXSAVE || __cpuid_count(7, 0).edx & ALL != ALL {
        return false;
    }
    // SAFETY: the system has switched XSAVE on, as was just read.
    let states = unsafe { enabled_states() };
    states & STATES == STATES
}

#[target_feature(enable = "xsave")]
fn enabled_states() -> u64 {
    // SAFETY: register 0 is there wherever XSAVE is switched on, which the caller vouches for.
    unsafe { _xgetbv(0) }
}

/// Linux gives tiles to processes that ask for them (`arch_prctl(2)`, ARCH_REQ_XCOMP_PERM): their state is eight kilobytes
/// of each thread's.
#[cfg(target_os = "linux")]
fn kernel_permits() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: this call reads two numbers and changes what the process may do; a kernel that does not know it says so.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// No other system was tried.
#[cfg(not(target_os = "linux"))]
fn kernel_permits() -> bool {
    false
}

/// What tiles are like, as the processor reads it: rows, and bytes of a row, of each.
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Of (rows, bytes of a row) for each of eight tiles.
    pub(crate) fn new(tiles: [(usize, usize); 8]) -> Self {
        let mut shapes =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (at, (rows, bytes)) in tiles.into_iter().enumerate() {
            assert!((1..=TILE).contains(&rows) && (4..=ROW_BYTES).contains(&bytes) && bytes % 4 == 0);
            (shapes.rows[at], shapes.row_bytes[at]) = (rows as u8, bytes as u16);
        }
        shapes
    }

    /// Makes the tiles so.
    ///
    /// # Safety
    /// [`permitted`] said yes.
    #[inline(always)]
    pub(crate) unsafe fn configure(&self) {
        // SAFETY: 64 bytes of a valid configuration.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) std::ptr::from_ref(self), options(nostack, readonly), out("tmm0") _,
                out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

/// Gives the tiles back: a thread whose tiles are in use is dearer to switch.
///
/// # Safety
/// [`permitted`] said yes.
#[inline(always)]
pub(crate) unsafe fn release() {
    // SAFETY: the caller vouches for the instruction.
    unsafe {
        asm!("tilerelease", options(nostack, nomem), out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// Tiles 0, 2 and 4, or 1, 3 and 5: sums, activations, weights.
///
/// Writes the products of signed bytes at `x` (rows `x_stride` bytes apart) and unsigned ones at `w` to `sums`, rows of
/// sixteen.
///
/// # Safety
/// Tiles are configured, and memory is there for their shapes.
#[inline(always)]
pub(crate) unsafe fn byte_products<const ODD: bool>(
    x: *const i8,
    x_stride: usize,
    w: *const u8,
    sums: *mut i32,
) {
    // SAFETY: the caller's.
    unsafe {
        if ODD {
            asm!(
                "tilezero tmm1",
                "tileloadd tmm3, [{x} + {stride}]",
                "tileloadd tmm5, [{w} + {row}]",
                "tdpbsud tmm1, tmm3, tmm5",
                "tilestored [{sums} + {row}], tmm1",
                x = in(reg) x, stride = in(reg) x_stride, w = in(reg) w, row = in(reg) ROW_BYTES,
                sums = in(reg) sums, out("tmm1") _, out("tmm3") _, out("tmm5") _, options(nostack),
            );
        } else {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm2, [{x} + {stride}]",
                "tileloadd tmm4, [{w} + {row}]",
                "tdpbsud tmm0, tmm2, tmm4",
                "tilestored [{sums} + {row}], tmm0",
                x = in(reg) x, stride = in(reg) x_stride, w = in(reg) w, row = in(reg) ROW_BYTES,
                sums = in(reg) sums, out("tmm0") _, out("tmm2") _, out("tmm4") _, options(nostack),
            );
        }
    }
}

/// Two panels' rows of weights in bf16, and two chunks of activations.
#[derive(Clone, Copy)]
pub(crate) struct Pairs {
    /// Eight rows each, in blocks of 32 columns.
    pub(crate) w: [*const u16; 2],
    /// In blocks of sixteen pairs, of so many bytes each: a pair of every row of activations.
    pub(crate) x: [*const u32; 2],
    pub(crate) x_bytes: [usize; 2],
    pub(crate) blocks: usize,
}

impl Pairs {
    /// The tiles that [`Pairs::products`] uses: sums, weights, activations.
    pub(crate) fn shapes(x_bytes: [usize; 2]) -> Shapes {
        let sums = x_bytes.map(|bytes| (PANEL_ROWS, bytes));
        let weights = (PANEL_ROWS, ROW_BYTES);
        let [first, second] = x_bytes.map(|bytes| (TILE, bytes));
        Shapes::new([sums[0], sums[0], sums[1], sums[1], weights, weights, first, second])
    }

    /// Writes products to `sums: [chunk][panel][8 rows][16 activations]`.
    ///
    /// # Safety
    /// Tiles are configured as [`Pairs::shapes`] says, and memory is there for all blocks.
    #[inline(always)]
    pub(crate) unsafe fn products(self, sums: &mut [f32; 4 * PANEL_ROWS * TILE]) {
        let steps = self.x_bytes.map(|bytes| bytes * TILE);
        // SAFETY: the caller's; a prefetch may point anywhere.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "prefetcht0 [{w0} + 2560]",
                "prefetcht0 [{w0} + 2624]",
                "prefetcht0 [{w0} + 2688]",
                "prefetcht0 [{w0} + 2752]",
                "prefetcht0 [{w0} + 2816]",
                "prefetcht0 [{w0} + 2880]",
                "prefetcht0 [{w0} + 2944]",
                "prefetcht0 [{w0} + 3008]",
                "prefetcht0 [{w1} + 2560]",
                "prefetcht0 [{w1} + 2624]",
                "prefetcht0 [{w1} + 2688]",
                "prefetcht0 [{w1} + 2752]",
                "prefetcht0 [{w1} + 2816]",
                "prefetcht0 [{w1} + 2880]",
                "prefetcht0 [{w1} + 2944]",
                "prefetcht0 [{w1} + 3008]",
                "tileloadd tmm4, [{w0} + {row}]",
                "tileloadd tmm6, [{x0} + {bytes0}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{w1} + {row}]",
                "tdpbf16ps tmm1, tmm5, tmm6",
                "tileloadd tmm7, [{x1} + {bytes1}]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {w0}, 512",
                "add {w1}, 512",
                "add {x0}, {step0}",
                "add {x1}, {step1}",
                "dec {blocks}",
                "jnz 2b",
                "tilestored [{sums} + {row}], tmm0",
                "add {sums}, 512",
                "tilestored [{sums} + {row}], tmm1",
                "add {sums}, 512",
                "tilestored [{sums} + {row}], tmm2",
                "add {sums}, 512",
                "tilestored [{sums} + {row}], tmm3",
                w0 = inout(reg) self.w[0] => _, w1 = inout(reg) self.w[1] => _, row = in(reg) ROW_BYTES,
                x0 = inout(reg) self.x[0] => _, x1 = inout(reg) self.x[1] => _,
                bytes0 = in(reg) self.x_bytes[0], bytes1 = in(reg) self.x_bytes[1],
                step0 = in(reg) steps[0], step1 = in(reg) steps[1],
                blocks = inout(reg) self.blocks => _, sums = inout(reg) sums.as_mut_ptr() => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                out("tmm6") _, out("tmm7") _, options(nostack),
            );
        }
    }
}

/// The most products of bytes that tiles can do: `rounds` times four whole ones.
///
/// # Safety
/// [`permitted`] said yes.
pub(crate) unsafe fn rounds_of_products(rounds: usize) {
    let bytes = [1u8; TILE * ROW_BYTES];
    // SAFETY: whole tiles of memory; the caller vouches for the instructions.
    unsafe {
        Shapes::new([(TILE, ROW_BYTES); 8]).configure();
        asm!(
            "tileloadd tmm4, [{bytes} + {row}]",
            "tileloadd tmm5, [{bytes} + {row}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tdpbsud tmm0, tmm4, tmm5",
            "tdpbsud tmm1, tmm4, tmm5",
            "tdpbsud tmm2, tmm4, tmm5",
            "tdpbsud tmm3, tmm4, tmm5",
            "dec {rounds}",
            "jnz 2b",
            bytes = in(reg) bytes.as_ptr(), row = in(reg) ROW_BYTES, rounds = inout(reg) rounds.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, options(nostack),
        );
        release();
    }
}

/// Multiply-adds in a round of [`rounds_of_products`].
pub(crate) const ROUND: usize = 4 * TILE * TILE * ROW_BYTES;
